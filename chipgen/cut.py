"""Cuts one chip: its stored pixels, and the record that goes with them.

Legend: n boxes of a picture, m of them in the chip. Boxes come in picture pixels and go out in
chip pixels (canvas pixels relative to the window's corner).
"""

import math
from dataclasses import dataclass

import numpy as np
from numba import njit

from chipgen.pyramid import Level
from chipgen.resample import resample

INSIDE = 1.0  # canvas px: a box cut by less than this counts as whole
DECIMALS = 5  # of stored box coordinates: exact to 1e-3 picture px down to a factor of 0.005
THINNEST = 2 * 10.0**-DECIMALS  # chip px: a thinner slip of a box would be rounded to nothing


@dataclass(frozen=True)
class Stored:
    """Pixels as stored, and where they lie: chip point = scale * stored point + offset."""

    pixels: np.ndarray  # (H, W) uint32
    scale: tuple[float, float]
    offset: tuple[float, float]


def stored_pixels(
    pixels: np.ndarray, canvas: tuple[int, int], window: tuple[int, int, int, int], store: str
) -> Stored:
    """Cut a window (x, y, width, height) of the canvas out of a picture, for one kind of store."""
    factors = canvas[0] / pixels.shape[1], canvas[1] / pixels.shape[0]
    if store == "canvas" or min(factors) <= 1:
        return Stored(resample(pixels, canvas, window), (1.0, 1.0), (0.0, 0.0))
    x0, x1 = _source_span(window[0], window[2], factors[0], pixels.shape[1])
    y0, y1 = _source_span(window[1], window[3], factors[1], pixels.shape[0])
    offset = x0 * factors[0] - window[0], y0 * factors[1] - window[1]
    return Stored(pixels[y0:y1, x0:x1], factors, offset)


def _source_span(first: int, count: int, factor: float, length: int) -> tuple[int, int]:
    """Give the picture pixels that bilinear enlargement needs for some canvas pixels.

    The start is even, so that 4:2:0 chroma is kept as the picture has it.
    """
    start = math.floor((first + 0.5) / factor - 0.5)
    stop = math.floor((first + count - 0.5) / factor - 0.5) + 2
    return max(start, 0) // 2 * 2, min(stop, length)


@njit(cache=True, nogil=True)
def chip_boxes(boxes, scale_x, scale_y, x, y, width, height):
    """Move boxes (n, 4) into a chip and cut them to it.

    Returns rows (m,) of those that touch it, boxes (m, 4) float64, and inside (m,): not cut.
    """
    rows = np.empty(len(boxes), np.int64)
    out = np.empty((len(boxes), 4), np.float64)
    inside = np.empty(len(boxes), np.bool_)
    m = 0
    for i in range(len(boxes)):
        x1, y1 = boxes[i, 0] * scale_x - x, boxes[i, 1] * scale_y - y
        x2, y2 = boxes[i, 2] * scale_x - x, boxes[i, 3] * scale_y - y
        out[m, 0], out[m, 1] = max(x1, 0.0), max(y1, 0.0)
        out[m, 2], out[m, 3] = min(x2, float(width)), min(y2, float(height))
        if out[m, 2] - out[m, 0] < THINNEST or out[m, 3] - out[m, 1] < THINNEST:
            continue
        inside[m] = min(x1, y1) >= -INSIDE and x2 <= width + INSIDE and y2 <= height + INSIDE
        rows[m] = i
        m += 1
    return rows[:m], out[:m], inside[:m]


def valid_range(level: Level, factor: tuple[float, float]) -> tuple[float, float | None]:
    """Give a level's valid range in chip pixels; None stands for no upper limit."""
    scale = math.sqrt(factor[0] * factor[1])
    low, high = level.range
    return low * scale, None if math.isinf(high) else high * scale
