"""Draws what was found, and where the network looked closer, for people to see."""

import colorsys

import numpy as np
from PIL import Image, ImageDraw

from infer.detector import Result

CHIP = ((255, 255, 255), (255, 220, 0), (0, 255, 255), (255, 0, 255))  # by level
FOCUS = (255, 60, 0)  # of FocusPixels
SIDE = 1600  # px of the longer side of a drawing, at most
ENLARGED = 4  # times at most, so that what is written at small objects can be read
LINE = 2


def draw_result(
    pixels: np.ndarray, result: Result, classes: tuple[str, ...], min_score: float
) -> Image.Image:
    """Draw detections and FocusChips on a picture (H, W, 3) uint8."""
    image, scale = _resized(pixels)
    draw = ImageDraw.Draw(image)
    for level, chips in result.chips.items():
        if level:  # the coarsest is the whole picture
            for chip in chips:
                _rectangle(draw, chip * scale, CHIP[level % len(CHIP)], LINE)
    shown = result.scores >= min_score
    for box, score, label in zip(
        result.boxes[shown], result.scores[shown], result.labels[shown].tolist(), strict=True
    ):
        color = _color(label)
        _rectangle(draw, box * scale, color, LINE)
        where = box[0] * scale + 2, max(box[1] * scale - 11, 0)
        draw.text(where, f"{classes[label]} {score:.2f}", fill=color)
    return image


def draw_focus(
    pixels: np.ndarray, focus: np.ndarray, canvas: tuple[int, int], stride: int
) -> Image.Image:
    """Lay a map of focus (rows, columns) over a picture; what was not looked at is dark.

    Its cells are of `stride` px of a canvas (width, height), whose last ones it may reach over.
    """
    image, _ = _resized(pixels)
    reach = [n * stride / side for n, side in zip(focus.shape[::-1], canvas, strict=True)]

    def laid(opacity: np.ndarray) -> Image.Image:
        whole = tuple(round(side * r) for side, r in zip(image.size, reach, strict=True))
        mask = Image.fromarray(opacity.astype(np.uint8)).resize(whole, Image.Resampling.NEAREST)
        return mask.crop((0, 0, *image.size))

    image.paste(Image.new("RGB", image.size, FOCUS), (0, 0), laid(focus.clip(0, 1) * 200))
    image.paste(Image.new("RGB", image.size), (0, 0), laid((focus < 0) * 160))
    return image


def _resized(pixels: np.ndarray) -> tuple[Image.Image, float]:
    """Give a picture at the size of its drawing, and how many times as large that is."""
    longer = max(pixels.shape[:2])
    scale = SIDE / longer if longer > SIDE else min(SIDE // longer, ENLARGED)
    size = max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale))
    return Image.fromarray(pixels).resize(size), scale


def _rectangle(draw: ImageDraw.ImageDraw, box: np.ndarray, color: tuple, width: int) -> None:
    x1, y1, x2, y2 = box.tolist()
    # half-open: the last pixel is the one before the edge
    draw.rectangle((x1, y1, max(x2 - 1, x1), max(y2 - 1, y1)), outline=color, width=width)


def _color(label: int) -> tuple[int, int, int]:
    """Give a class a colour; the golden angle keeps neighbours apart."""
    return tuple(round(255 * v) for v in colorsys.hsv_to_rgb(label * 0.381966 % 1, 0.9, 1.0))
