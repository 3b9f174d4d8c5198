"""Crops and resizes in one pass: a chip is exactly the window of the resized picture.

Pixels are (H, W) uint32, one RGBX pixel a word. Bilinear when enlarging, triangle-filtered
(antialiased) when shrinking, in 8-bit steps like Pillow's BILINEAR, from which it differs by at
most 2 grey levels.

The three channels of a pixel are spread over one 64-bit word, 21 bits apart. With 12-bit weights
that sum to 4096 a weighted sum needs 20 bits, so one multiplication serves three channels and no
lane spills into the next.
"""

import numpy as np
from numba import njit

BITS = 12
ONE = 1 << BITS
_LANES = np.uint64(0xFF | 0xFF << 21 | 0xFF << 42)
_HALF = np.uint64(ONE // 2 * (1 | 1 << 21 | 1 << 42))
_BITS = np.uint64(BITS)
_S13, _S26 = np.uint64(13), np.uint64(26)
_B0, _B1, _B2 = np.uint64(0xFF), np.uint64(0xFF00), np.uint64(0xFF0000)


def resample(
    pixels: np.ndarray, canvas: tuple[int, int], window: tuple[int, int, int, int]
) -> np.ndarray:
    """Cut window (x, y, width, height) out of the picture resized to canvas (width, height).

    pixels (H, W) uint32 -> (height, width) uint32. The window must lie on the canvas.
    """
    x, y, width, height = window
    if not (0 <= x < x + width <= canvas[0] and 0 <= y < y + height <= canvas[1]):
        raise ValueError(f"window {window} does not lie on the canvas {canvas}")
    rows, columns = pixels.shape
    if canvas == (columns, rows):
        return pixels[y : y + height, x : x + width]
    starts_x, weights_x = axis_weights(columns, canvas[0], x, width)
    starts_y, weights_y = axis_weights(rows, canvas[1], y, height)
    out = np.empty((height, width), np.uint32)
    _resample(pixels, starts_x, weights_x, starts_y, weights_y, out)
    return out


@njit(cache=True, nogil=True)
def axis_weights(source: int, target: int, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Give the taps of target pixels [first, first + count) of an axis resized from `source`.

    Returns the first source pixel of each, (count,) int64, and the weights, (count, taps) uint64
    that sum to ONE; taps past a pixel's support have weight 0 and may lie past the axis' end.
    """
    scale = source / target
    support = max(scale, 1.0)  # of the triangle filter, in source pixels
    taps = int(np.ceil(2 * support))
    starts = np.empty(count, np.int64)
    weights = np.zeros((count, taps), np.uint64)
    exact = np.empty(taps, np.float64)
    for i in range(count):
        center = (first + i + 0.5) * scale
        if scale <= 1:  # the two pixels whose centres lie around
            start = int(np.floor(center - 0.5))
            share = center - 0.5 - start
            if start < 0:
                start, share = 0, 0.0
            if start >= source - 1:
                start, share = source - 1, 0.0
            weights[i, 1] = np.uint64(int(share * ONE + 0.5))
            weights[i, 0] = np.uint64(ONE) - weights[i, 1]
            starts[i] = start
            continue
        start = max(int(center - support + 0.5), 0)
        stop = min(int(center + support + 0.5), source)
        total = 0.0
        for t in range(stop - start):
            exact[t] = max(1.0 - abs((start + t + 0.5 - center) / support), 0.0)
            total += exact[t]
        # Rounding the running sum keeps the total exact and every partial sum within half a step.
        run, before = 0.0, 0
        for t in range(stop - start):
            run += exact[t]
            upto = int(run / total * ONE + 0.5)
            weights[i, t] = np.uint64(upto - before)
            before = upto
        starts[i] = start
    return starts, weights


@njit(cache=True, nogil=True)
def _resample(pixels, starts_x, weights_x, starts_y, weights_y, out):
    """Resize along x into rows of spread pixels, then along y into packed ones."""
    height, width = out.shape
    taps_x, taps_y = weights_x.shape[1], weights_y.shape[1]
    first_row = starts_y[0]
    rows = min(starts_y[height - 1] + taps_y, pixels.shape[0]) - first_row
    first_column = starts_x[0]
    columns = min(starts_x[width - 1] + taps_x, pixels.shape[1]) - first_column
    offsets_x = starts_x - first_column
    columns_of_weights = np.ascontiguousarray(weights_x.T)  # (taps, width)

    spread = np.zeros(columns + taps_x, np.uint64)  # taps past the end meet zeros, with weight 0
    resized = np.empty((rows, width), np.uint64)
    for r in range(rows):
        line = pixels[first_row + r, first_column : first_column + columns]
        for c in range(columns):
            p = np.uint64(line[c])
            spread[c] = (p & _B0) | (p & _B1) << _S13 | (p & _B2) << _S26
        _weigh(spread, offsets_x, columns_of_weights, resized[r])

    total = np.empty(width, np.uint64)
    for y in range(height):
        row = starts_y[y] - first_row
        for t in range(0, taps_y, 2):
            upper, lower = resized[min(row + t, rows - 1)], resized[min(row + t + 1, rows - 1)]
            weight_lower = weights_y[y, t + 1] if t + 1 < taps_y else np.uint64(0)
            _add_rows(upper, lower, weights_y[y, t], weight_lower, t == 0, total)
        for x in range(width):
            lanes = total[x] >> _BITS & _LANES
            out[y, x] = np.uint32(lanes & _B0 | lanes >> _S13 & _B1 | lanes >> _S26 & _B2)


@njit(cache=True, nogil=True)
def _add_rows(upper, lower, weight_upper, weight_lower, first, total):
    for x in range(len(total)):
        pair = upper[x] * weight_upper + lower[x] * weight_lower
        total[x] = pair + (_HALF if first else total[x])


@njit(cache=True, nogil=True)
def _weigh(spread, offsets, weights, out):
    """Sum taps of one row: out[x] = sum of spread[offsets[x] + t] * weights[t, x], in 8 bits.

    The gathers are what takes the time, so the first two or three taps are summed in registers.
    """
    taps = len(weights)
    second, third, weight_0, weight_1 = spread[1:], spread[2:], weights[0], weights[1]
    if taps == 2:  # enlarging; the weights sum to ONE, which leaves one multiplication
        for x in range(len(out)):
            i = np.uint64(offsets[x])  # unsigned: no test for an index from the end
            total = (spread[i] << _BITS) + (second[i] - spread[i]) * weight_1[x] + _HALF
            out[x] = total >> _BITS & _LANES
        return
    weight_2 = weights[2]
    for x in range(len(out)):
        i = np.uint64(offsets[x])
        total = spread[i] * weight_0[x] + second[i] * weight_1[x] + third[i] * weight_2[x] + _HALF
        out[x] = total >> _BITS & _LANES if taps == 3 else total
    for t in range(3, taps):
        tap, weight = spread[t:], weights[t]
        for x in range(len(out)):
            total = out[x] + tap[np.uint64(offsets[x])] * weight[x]
            out[x] = total >> _BITS & _LANES if t == taps - 1 else total
