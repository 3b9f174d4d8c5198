"""Draws plans and chips to PNG, to look at.

Colours: a valid box is green, one that does not count at the level is red, a crowd is yellow;
positive chips are outlined in white, negative ones in orange.
"""

import io
from collections.abc import Iterable

import numpy as np
import pyarrow as pa
from PIL import Image, ImageDraw

from chipgen import codec
from chipgen.dataset import Annotations
from chipgen.plan import ChipSettings, canvases_of, wanted
from chipgen.shards import Chip

VALID, INVALID, CROWD = (40, 220, 70), (235, 50, 50), (250, 210, 40)
OUTLINES = {"positive": (255, 255, 255), "negative": (255, 140, 0)}
PANEL = 640  # px: the long side of a picture in a drawing
TILE = 256  # px: the side of a chip in a contact sheet
CAPTION = 14  # px


def draw_plan(
    picture: Annotations,
    pixels: np.ndarray,
    settings: ChipSettings,
    chips: dict[str, pa.Table],
) -> Image.Image:
    """Draw one picture (as a data set of one) with its boxes and chips, a panel a level."""
    whole = np.array([pixels.shape[1], pixels.shape[0]])
    size = tuple(np.maximum(np.round(whole * PANEL / whole.max()).astype(int), 1).tolist())
    scale = size / whole  # panel px per picture px, along x and y
    small = Image.fromarray(codec.unpack(pixels)).resize(size)
    wants = wanted(picture, canvases_of(picture, settings.levels), settings)
    sheet = Image.new("RGB", (size[0] * len(settings.levels), size[1] + CAPTION))
    for number, level in enumerate(settings.levels):
        panel = small.copy()
        draw = ImageDraw.Draw(panel)
        counts = {}
        for box, crowd, want in zip(picture.boxes, picture.crowd, wants[:, number], strict=True):
            color = CROWD if crowd else VALID if want else INVALID
            draw.rectangle((box * np.tile(scale, 2)).tolist(), outline=color)
        for kind, table in chips.items():
            rows = [row for row in table.to_pylist() if row["level"] == number]
            counts[kind] = len(rows)
            for row in rows:
                shrunk = np.array(size) / (row["canvas_width"], row["canvas_height"])
                first = np.array([row["x"], row["y"]]) * shrunk
                end = first + np.array([row["width"], row["height"]]) * shrunk
                last = np.maximum(end - 1, first)  # a window may be thinner than a pixel here
                draw.rectangle([*first, *last], outline=OUTLINES[kind])
        sheet.paste(panel, (number * size[0], CAPTION))
        low, high = level.range
        tally = ", ".join(f"{count} {kind}" for kind, count in counts.items())
        caption = f"{level}  [{low:g}, {high:g})  {tally}"
        ImageDraw.Draw(sheet).text((number * size[0] + 3, 1), caption)
    return sheet


def draw_chips(
    samples: Iterable[tuple[str, bytes, Chip]], classes: list[str], side: int, columns: int = 6
) -> Image.Image:
    """Draw a contact sheet of chips as stored, each brought to its place on the chip's canvas."""
    tiles = [_tile(key, jpg, chip, classes, side) for key, jpg, chip in samples]
    rows = -(-len(tiles) // columns)
    sheet = Image.new("RGB", (columns * (TILE + 2), rows * (TILE + CAPTION + 2)), (60, 60, 60))
    for i, tile in enumerate(tiles):
        sheet.paste(tile, (i % columns * (TILE + 2), i // columns * (TILE + CAPTION + 2)))
    return sheet


def _tile(key: str, jpg: bytes, chip: Chip, classes: list[str], side: int) -> Image.Image:
    stored = Image.open(io.BytesIO(jpg)).convert("RGB")
    side = max(side, *chip.window[2:])
    (scale_x, scale_y), (offset_x, offset_y) = chip.stored_scale, chip.stored_offset
    # a point of the chip lies at (point - offset) / scale of the stored image
    affine = (1 / scale_x, 0, -offset_x / scale_x, 0, 1 / scale_y, -offset_y / scale_y)
    canvas = stored.transform(
        chip.window[2:], Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR
    )
    padded = Image.new("RGB", (side, side))
    padded.paste(canvas, (0, 0))
    tile = Image.new("RGB", (TILE, TILE + CAPTION))
    tile.paste(padded.resize((TILE, TILE)), (0, CAPTION))
    draw = ImageDraw.Draw(tile)
    for box, label, valid, crowd in zip(
        chip.boxes, chip.labels, chip.valid, chip.crowd, strict=True
    ):
        x1, y1, x2, y2 = (edge * TILE / side for edge in box)
        color = CROWD if crowd else VALID if valid else INVALID
        draw.rectangle((x1, y1 + CAPTION, x2, y2 + CAPTION), outline=color)
        draw.text((x1 + 1, y1 + CAPTION), classes[label], fill=color)
    draw.text((2, 1), f"{key}  {chip.stored_size[0]}x{chip.stored_size[1]}")
    return tile


def png(image: Image.Image) -> bytes:
    """Encode a drawing."""
    sink = io.BytesIO()
    image.save(sink, "PNG")
    return sink.getvalue()
