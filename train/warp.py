"""On the device: stored pixels of any size -> normalised canvases, boxes and ranges alike.

b chips, H x W stored pixels (padded), h x w canvas, G boxes of a canvas, k chips in one canvas.
Resizing, flipping, cropping and padding are separable and linear, so all of them are one matrix
along y and one along x for each chip: two batched products. On the CPU, where most of these
matrices' zeros cost time, `resize.by_taps` gives the same.
"""

import itertools
import math
from dataclasses import dataclass, fields, replace

import torch

from train.constants import constant
from train.resize import by_taps
from train.stream import Batch

MEAN = (123.675, 116.28, 103.53)  # of the pictures that torchvision's weights have seen
STD = (58.395, 57.12, 57.375)
GROUPS = 4  # of chips of like size in a batch: fewer products with padding, in larger pieces
LEFT = 0.8  # of a box's area that a shift has to leave, or the box is cut and not valid
LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class AugmentSettings:
    """How chips are varied; colours: the largest share by which a factor leaves 1."""

    flip: bool = True  # left to right, with probability 1/2
    shift: int = 15  # canvas px, at most, that a chip loses at its left and at its upper edge
    brightness: float = 0.0
    contrast: float = 0.0
    colour: float = 0.0

    def __post_init__(self):
        if self.shift < 0:
            raise ValueError(f"shift = {self.shift} must not be negative")
        for name in ("brightness", "contrast", "colour"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)} must be from 0 to below 1")

    @property
    def varies(self) -> bool:
        """Say whether colours change."""
        return max(self.brightness, self.contrast, self.colour) > 0


AS_IT_IS = AugmentSettings(flip=False, shift=0)


@dataclass(frozen=True)
class Targets:
    """What the labels of a batch of canvases are made from; boxes in canvas px."""

    boxes: torch.Tensor  # (b, G, 4) xyxy float32
    labels: torch.Tensor  # (b, G) int64; -1: no box
    valid: torch.Tensor  # (b, G) bool
    crowd: torch.Tensor  # (b, G) bool
    cut: torch.Tensor  # (b, G) bool: there is more of it beyond the chip
    ranges: torch.Tensor  # (b, k, 2) valid range of each chip of the canvas, row by row
    content: torch.Tensor  # (b, 2) width and height that hold pixels
    draws: torch.Tensor  # (b,) in [0, 1): for the choice of anchors
    cell: tuple[float, float]  # height and width of one chip's place in the canvas

    def part(self, start: int, end: int) -> "Targets":
        """Give the targets of some canvases."""
        parts = {f.name: getattr(self, f.name)[start:end] for f in fields(self) if f.name != "cell"}
        return Targets(**parts, cell=self.cell)


def warp(
    batch: Batch, canvas: tuple[int, int], settings: AugmentSettings, dtype: torch.dtype
) -> tuple[torch.Tensor, Targets]:
    """Draw each chip on a canvas of its own: (b, 3, h, w), channels last, and its targets."""
    canvases = _blank(len(batch.rows), canvas, [batch], dtype)
    return canvases, _draw(batch, canvases, settings, 1.0)


def collage(
    batches: list[Batch],
    canvas: tuple[int, int],
    settings: AugmentSettings,
    smallest: float,
    dtype: torch.dtype,
) -> tuple[torch.Tensor, Targets]:
    """Draw k = n x n batches into one: canvas i holds chip i of each, at 1/n of its size.

    Boxes under `smallest` px of area are dropped (section 4.6 of the paper on Dynamic Scale
    Training).
    """
    side, cell, zoom = _cells(batches, canvas)
    device = batches[0].boxes.device
    # where whole pixels don't divide evenly, an edge stays grey
    stitched = _blank(len(batches[0].rows), canvas, batches, dtype).zero_()
    targets = []
    corners = itertools.product(range(side), range(side))
    for (row, column), batch in zip(corners, batches, strict=True):
        y, x = row * cell[0], column * cell[1]
        part = stitched[:, :, y : y + cell[0], x : x + cell[1]]
        of_cell = _draw(batch, part, settings, zoom)
        shift = constant((x, y) * 2, device)
        targets.append(replace(of_cell, boxes=of_cell.boxes + shift))
    whole = constant(canvas[::-1], device)
    joined = replace(
        _joined(targets, 1, smallest),
        content=whole.expand(len(stitched), 2),
        draws=targets[0].draws,
    )
    return stitched, joined


def shrunk(
    batches: list[Batch],
    canvas: tuple[int, int],
    settings: AugmentSettings,
    smallest: float,
    dtype: torch.dtype,
) -> tuple[torch.Tensor, Targets]:
    """Draw k batches side by side in the batch dimension, at 1/k of the area: nothing stitched."""
    _, cell, zoom = _cells(batches, canvas)
    b = len(batches[0].rows)
    drawn = _blank(b * len(batches), cell, batches, dtype)
    targets = [
        _draw(batch, drawn[i * b : (i + 1) * b], settings, zoom) for i, batch in enumerate(batches)
    ]
    most = max(t.boxes.shape[1] for t in targets)
    return drawn, _joined([_padded(t, most) for t in targets], 0, smallest)


def _cells(batches: list[Batch], canvas: tuple[int, int]) -> tuple[int, tuple[int, int], float]:
    """Give how k = n x n chips share a canvas: n, the size of a cell, and how far they shrink."""
    side = math.isqrt(len(batches))
    cell = canvas[0] // side, canvas[1] // side
    return side, cell, min(cell[0] / canvas[0], cell[1] / canvas[1])  # 1 / n, or what pixels leave


def _blank(
    count: int, canvas: tuple[int, int], batches: list[Batch], dtype: torch.dtype
) -> torch.Tensor:
    """Make room for canvases, (count, 3, h, w)."""
    return torch.empty(
        (count, 3, *canvas),
        dtype=dtype,
        device=batches[0].rows.device,
        memory_format=torch.channels_last,
    )


def _joined(targets: list[Targets], axis: int, smallest: float) -> Targets:
    """Put targets together, by canvas (0) or within canvases (1), without the smallest boxes."""

    def together(name: str) -> torch.Tensor:
        return torch.cat([getattr(t, name) for t in targets], axis)

    boxes = together("boxes")
    return Targets(
        boxes=boxes,
        labels=torch.where(areas(boxes) < smallest, -1, together("labels")),
        valid=together("valid"),
        crowd=together("crowd"),
        cut=together("cut"),
        ranges=together("ranges"),
        content=torch.cat([t.content for t in targets]),
        draws=torch.cat([t.draws for t in targets]),
        cell=targets[0].cell,
    )


def _draw(batch: Batch, canvases: torch.Tensor, settings: AugmentSettings, zoom: float) -> Targets:
    """Draw chips at `zoom` times their size, each in the upper left corner of its canvas."""
    if settings.shift:
        batch = _shifted(batch, settings.shift)
    resized = _by_taps if canvases.device.type == "cpu" else _by_products
    resized(batch, canvases, settings, zoom)
    content = batch.window * zoom  # (b, 2)
    flips = _flips(batch, settings)
    width = content[:, None, :1]
    boxes = batch.boxes * zoom
    mirrored = torch.stack(
        [
            width[..., 0] - boxes[..., 2],
            boxes[..., 1],
            width[..., 0] - boxes[..., 0],
            boxes[..., 3],
        ],
        -1,
    )
    return Targets(
        boxes=torch.where(flips[:, None, None], mirrored, boxes),
        labels=batch.labels,
        valid=batch.valid,
        crowd=batch.crowd,
        cut=batch.cut,
        ranges=batch.ranges[:, None] * zoom,
        content=content,
        draws=batch.draws[:, 4],
        cell=(float(canvases.shape[2]), float(canvases.shape[3])),
    )


def _shifted(batch: Batch, most: int) -> Batch:
    """Cut some px off the left and the upper edge of chips, `most` or an eighth of a side.

    A chip lies on whole strides of its level's canvas, so without this the cells of the feature map
    would part an object in the same places each time it is shown. A box that loses little stays
    what it is: many large ones reach to their picture's edge, and would hardly ever be learned.
    """
    room = (batch.window / 8).floor().clamp(max=most)
    shift = (batch.draws[:, 5:7] * (room + 1)).floor()  # (b, 2)
    moved = batch.boxes - shift.repeat(1, 2)[:, None]
    boxes = moved.clamp(min=0)
    lost = areas(boxes) < LEFT * areas(moved)
    return replace(
        batch,
        offset=batch.offset - shift,
        window=batch.window - shift,
        boxes=boxes,
        labels=torch.where((boxes[..., 2:] > boxes[..., :2]).all(-1), batch.labels, -1),
        valid=batch.valid & ~lost,
        cut=batch.cut | lost,
    )


def _by_taps(batch: Batch, canvases: torch.Tensor, settings: AugmentSettings, zoom: float) -> None:
    """Resize, flip and pad chips on the CPU, into canvases (b, 3, h, w)."""
    drawn = by_taps(
        _varied(batch, settings, torch.float32) if settings.varies else batch.pixels,
        batch.stored,
        batch.scale * zoom,
        batch.offset * zoom,
        batch.window * zoom,
        _flips(batch, settings),
        tuple(canvases.shape[2:]),
        MEAN,
        STD,
    )
    canvases.copy_(drawn)


def _by_products(
    batch: Batch, canvases: torch.Tensor, settings: AugmentSettings, zoom: float
) -> None:
    """Do the same on any device, with like sizes together."""
    for places, part in batch.alike(GROUPS):
        drawn = _product(part, tuple(canvases.shape[2:]), settings, zoom, canvases.dtype)
        canvases[places] = drawn.contiguous(memory_format=torch.channels_last)


def _product(
    batch: Batch,
    canvas: tuple[int, int],
    settings: AugmentSettings,
    zoom: float,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Resize, flip and pad chips: (b, 3, h, w)."""
    content, flips = batch.window * zoom, _flips(batch, settings)
    scale, offset = batch.scale * zoom, batch.offset * zoom
    axes = zip(
        canvas[::-1], batch.pixels.shape[2:0:-1], (flips, torch.zeros_like(flips)), strict=True
    )
    along_x, along_y = (
        _weights(count, taps, scale[:, k], offset[:, k], batch.stored[:, k], content[:, k], mirror)
        for k, (count, taps, mirror) in enumerate(axes)
    )
    pixels = _normalised(batch, settings, dtype)
    tall = along_y.to(dtype) @ pixels  # (b, h, W * 3)
    planes = tall.unflatten(2, (-1, 3)).permute(0, 3, 1, 2)  # (b, 3, h, W)
    return planes @ along_x.to(dtype)[:, None].mT


def _flips(batch: Batch, settings: AugmentSettings) -> torch.Tensor:
    """Say which chips are mirrored, (b,)."""
    return (batch.draws[:, 0] < 0.5) & settings.flip


def _weights(
    count: int,
    taps: int,
    scale: torch.Tensor,
    offset: torch.Tensor,
    stored: torch.Tensor,
    content: torch.Tensor,
    flips: torch.Tensor,
) -> torch.Tensor:
    """Give what each stored pixel of an axis adds to each canvas pixel, (b, count, taps).

    Bilinear when enlarging, triangle-filtered when shrinking, the edge repeated: as the chip
    generator resizes. Canvas pixels outside the content get nothing, which is the mean colour.
    """
    x = torch.arange(count, device=scale.device) + 0.5  # (count,) centres of canvas pixels
    inside = x < content[:, None]  # (b, count)
    x = torch.where(flips[:, None], content[:, None] - x, x)
    u = (x - offset[:, None]) / scale[:, None]  # in stored pixels
    u = torch.minimum(u.clamp(min=0.5), stored[:, None] - 0.5)
    support = (1 / scale).clamp(min=1)[:, None, None]
    taken = torch.arange(taps, device=scale.device) + 0.5  # (taps,)
    weights = (1 - (u[..., None] - taken).abs() / support).clamp(min=0)
    weights = weights * (taken < stored[:, None])[:, None]
    return weights * (inside / weights.sum(-1).clamp(min=1e-6))[..., None]


def _normalised(batch: Batch, settings: AugmentSettings, dtype: torch.dtype) -> torch.Tensor:
    """Vary colours and normalise, (b, H, W * 3); bf16 holds all grey levels."""
    device, width = batch.pixels.device, batch.pixels.shape[2]
    lowest = constant(MEAN, device, dtype).repeat(width)
    by = (1 / constant(STD, device)).to(dtype).repeat(width)
    pixels = _varied(batch, settings, dtype) if settings.varies else batch.pixels.to(dtype)
    return (pixels.flatten(2) - lowest) * by  # rows of W * 3: three at a time take 5 times as long


def _varied(batch: Batch, settings: AugmentSettings, dtype: torch.dtype) -> torch.Tensor:
    """Vary colours, (b, H, W, 3).

    Brightness, contrast (about the mean colour) and colourfulness are one 3x3 matrix and one
    shift for each chip.
    """
    device = batch.pixels.device
    mean = constant(MEAN, device, dtype)
    spread = constant((settings.brightness, settings.contrast, settings.colour), device)
    brightness, contrast, colour = (1 + (2 * batch.draws[:, 1:4] - 1) * spread).unbind(1)
    grey = constant(LUMA, device).expand(3, 3)
    mix = colour[:, None, None] * (torch.eye(3, device=device) - grey) + grey  # (b, 3, 3)
    mix = (mix * (contrast * brightness)[:, None, None]).to(dtype)
    shift = mean * ((1 - contrast) * brightness)[:, None]  # (b, 3)
    pixels = batch.pixels.to(dtype)
    mixed = (pixels.flatten(1, 2) @ mix.mT).view_as(pixels)
    return (mixed + shift.to(dtype)[:, None, None]).clamp(0, 255)


def areas(boxes: torch.Tensor) -> torch.Tensor:
    """Give the areas of boxes (.., 4)."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def _padded(targets: Targets, most: int) -> Targets:
    """Pad the boxes of targets to a number."""
    more = most - targets.boxes.shape[1]
    pad = torch.nn.functional.pad
    return replace(
        targets,
        boxes=pad(targets.boxes, (0, 0, 0, more)),
        labels=pad(targets.labels, (0, more), value=-1),
        valid=pad(targets.valid, (0, more)),
        crowd=pad(targets.crowd, (0, more)),
        cut=pad(targets.cut, (0, more)),
    )
