"""The pyramid from coarse to fine, over a few pictures at once.

Level by level: regions of all pictures are cut into tiles, sorted by shape and run in batches; of
what is found there, stack.py says what counts; where the network asks for a closer look, focus.py
makes the regions of the next level. The full pyramid and single levels are the same loop, with
whole pictures as regions.

L levels; a window is (x, y, width, height) in canvas px of a level.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from chipgen.boxes import sizes
from chipgen.pyramid import canvas_scales, canvas_sizes
from infer import focus, stack
from infer.crop import Region, draw
from infer.network import Seen
from infer.settings import InferSettings

UNSEEN = -1.0  # in a map of focus, where no region lay
BEYOND = 8  # canvas px of padding after a picture's right and lower edge, at least
AUTOFOCUS, PYRAMID = "autofocus", "pyramid"  # modes; the number of a level is that level alone

Window = tuple[int, int, int, int]


@dataclass(frozen=True)
class Machine:
    """What computes, and in what portions."""

    look: Callable[[torch.Tensor, torch.Tensor], Seen]
    stride: int  # canvas px of a cell of focus
    dtype: torch.dtype  # of canvases
    pixels: int  # canvas px of one batch, at most, unless a region alone has more


@dataclass
class Flight:
    """One picture on its way through the levels, and what was found in it so far."""

    pixels: torch.Tensor  # (H, W, 3) uint8, on the device
    canvases: np.ndarray  # (L, 2) int64 width, height
    scales: np.ndarray  # (L, 2) float64 canvas px per picture px
    regions: dict[int, np.ndarray] = field(default_factory=dict)  # by level, (n, 4) picture px
    processed: dict[int, int] = field(default_factory=dict)  # by level, canvas px
    maps: dict[int, np.ndarray] = field(default_factory=dict)  # by level, (rows, columns) focus
    boxes: list[np.ndarray] = field(default_factory=list)  # of each tile, (n, 4) picture px
    scores: list[np.ndarray] = field(default_factory=list)  # (n,)
    labels: list[np.ndarray] = field(default_factory=list)  # (n,)

    @classmethod
    def start(cls, pixels: torch.Tensor, settings: InferSettings) -> "Flight":
        """Lay out the pyramid of a picture."""
        height, width = np.array([pixels.shape[0]]), np.array([pixels.shape[1]])
        canvases = canvas_sizes(settings.levels, width, height)
        return cls(pixels, canvases[0], canvas_scales(canvases, width, height)[0])

    def found(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Give all detections so far: boxes (n, 4) in picture px, scores and labels (n,)."""
        return (
            np.concatenate([np.zeros((0, 4), np.float32), *self.boxes]),
            np.concatenate([np.zeros(0, np.float32), *self.scores]),
            np.concatenate([np.zeros(0, np.int64), *self.labels]).astype(np.int32),
        )

    def whole(self, level: int) -> list[Window]:
        """Give the whole canvas as the only window."""
        return [(0, 0, *self.canvases[level].tolist())]


def fly(
    pictures: list[torch.Tensor], machine: Machine, settings: InferSettings, mode: str | int
) -> list[Flight]:
    """Take pictures (H, W, 3) uint8 through the levels of a mode."""
    flights = [Flight.start(pixels, settings) for pixels in pictures]
    levels = range(len(settings.levels)) if isinstance(mode, str) else [mode]
    for level in levels:
        regions = []
        for number, flight in enumerate(flights):
            closer = mode == AUTOFOCUS and level > 0
            windows = flight.whole(level)
            if closer:
                windows = focused(flight, level, machine.stride, settings)
            flight.regions[level] = _to_picture(windows, flight.scales[level])
            flight.processed[level] = 0
            flight.maps[level] = _blank(flight.canvases[level], machine.stride)
            canvas, scale = flight.canvases[level].tolist(), tuple(flight.scales[level].tolist())
            regions += [
                Region(number, tile, scale, beyond(tile, canvas))
                for window in windows
                for tile in tiles(window, settings.tile, settings.overlap, machine.stride)
            ]
        limits = settings.levels[level].range if isinstance(mode, str) else (0.0, np.inf)
        for shape, batch in batches(regions, settings.step, machine):
            for some, seen in _looked(pictures, batch, shape, machine):
                _keep(seen, some, flights, level, limits, machine.stride, settings)
    return flights


def _looked(
    pictures: list[torch.Tensor], batch: list[Region], shape: tuple[int, int], machine: Machine
) -> Iterator[tuple[list[Region], Seen]]:
    """Look at a batch of regions, or at its halves one by one where memory is too small for it."""
    if seen := _at_once(pictures, batch, shape, machine):
        yield batch, seen
        return
    half = len(batch) // 2
    for part in (batch[:half], batch[half:]):
        yield from _looked(pictures, part, shape, machine)


def _at_once(
    pictures: list[torch.Tensor], batch: list[Region], shape: tuple[int, int], machine: Machine
) -> Seen | None:
    try:
        canvases = draw(pictures, batch, shape, machine.dtype)
        content = torch.tensor([region.window[2:] for region in batch], dtype=torch.float32)
        return machine.look(canvases, content.to(canvases.device, non_blocking=True))
    except torch.OutOfMemoryError:
        if len(batch) == 1:
            raise
        return None


def focused(flight: Flight, level: int, stride: int, settings: InferSettings) -> list[Window]:
    """Make the windows of a level from the map of focus of the one before (algorithm 2).

    Objects reach to the edges of their FocusPixels, and what is found there would fall to the
    border rule: so windows have a border around them, unless dilation has given them more. They
    also grow to whole steps where there is room: less of what the network sees is padding.
    """
    choice = settings.focus[level - 1]
    before, after = flight.scales[level - 1], flight.scales[level]
    cell = stride * after / before  # canvas px of this level, along x and y
    border_low = (settings.border - choice.dilation // 2 * cell).clip(0)
    border_high = (settings.border - (choice.dilation - 1) // 2 * cell).clip(0)
    found = focus.enclosed(flight.maps[level - 1], choice.threshold, choice.dilation)
    # whole px: a scale's last digit must not cost a row of cells
    edges = np.rint(found * np.tile(cell, 2))  # (n, 4)
    # outward to whole cells of this level, so that its map of focus has one grid
    canvas = flight.canvases[level]
    cells = -(-canvas // stride)
    low = np.floor((edges[:, :2] - border_low) / stride).astype(int)
    low = np.minimum(low, (canvas - choice.smallest) // stride).clip(0)  # the last cell may be less
    high = np.minimum(np.ceil((edges[:, 2:] + border_high) / stride).astype(int), cells)
    least, size = -(-choice.smallest // stride), tuple(cells[::-1].tolist())
    apart = focus.apart(np.concatenate([low, high], axis=1), (least, least), size)
    drawn = -(-(canvas + BEYOND) // stride)  # what a window at the edge is drawn with counts
    apart[:, 2:] = np.where(apart[:, 2:] == cells, drawn, apart[:, 2:])
    grown = focus.filled(apart, -(-settings.step // stride), tuple(drawn[::-1].tolist()))
    low = grown[:, :2] * stride
    sides = np.minimum(grown[:, 2:] * stride, canvas) - low
    return [tuple(w) for w in np.concatenate([low, sides], axis=1).tolist()]


def suppressed(
    boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, settings: InferSettings
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lower or drop what was found twice, class by class; the best come first."""
    places, scores = stack.suppress(
        boxes,
        scores,
        labels,
        settings.suppression,
        settings.suppress_overlap,
        settings.sigma,
        settings.min_score,
        settings.detections,
    )
    return boxes[places], scores, labels[places]


def tiles(window: Window, tile: int, overlap: int, stride: int) -> list[Window]:
    """Cut a window that is longer than a tile into such as overlap and begin on whole cells."""

    def spans(start: int, length: int) -> list[tuple[int, int]]:
        if length < tile + stride:  # what is left over is less than a cell
            return [(start, length)]
        count = -(-(length - overlap) // (tile - overlap))
        last = (length - tile) // stride * stride
        begins = [last * i // (count - 1) // stride * stride for i in range(count)]
        ends = [begin + tile for begin in begins[:-1]] + [length]
        return [(start + b, e - b) for b, e in zip(begins, ends, strict=True)]

    x, y, width, height = window
    return [
        (left, top, wide, tall)
        for (top, tall), (left, wide) in itertools.product(spans(y, height), spans(x, width))
    ]


def beyond(window: Window, canvas: Sequence[int]) -> tuple[int, int]:
    """Give the padding that a window on a canvas (width, height) wants to the right and below.

    In training a picture rarely ends where its chip ends: it is smaller, or shifted towards the
    upper left corner. What lies at an edge is found worse where there is nothing beyond it.
    """
    x, y, width, height = window
    return BEYOND * (x + width == canvas[0]), BEYOND * (y + height == canvas[1])


def batches(
    regions: list[Region], step: int, machine: Machine
) -> Iterator[tuple[tuple[int, int], list[Region]]]:
    """Sort regions by padded shape (height, width), which is theirs alone, and cut into batches."""
    step = -(-step // machine.stride) * machine.stride  # whole cells
    by_shape: dict[tuple[int, int], list[Region]] = {}
    for region in regions:
        _, _, *sides = region.window
        width, height = (
            -(-(side + more) // step) * step
            for side, more in zip(sides, region.beyond, strict=True)
        )
        by_shape.setdefault((height, width), []).append(region)
    for shape, alike in sorted(by_shape.items(), reverse=True):  # the most memory first
        count = max(1, machine.pixels // (shape[0] * shape[1]))
        for start in range(0, len(alike), count):
            yield shape, alike[start : start + count]


def _keep(
    seen: Seen, batch: list[Region], flights: list[Flight], level: int,
    limits: tuple[float, float], stride: int, settings: InferSettings,
) -> None:  # fmt: skip
    """Sort what a batch gave into the flights: detections that count, and maps of focus."""
    place, proposal, label = torch.nonzero(seen.scores > settings.min_score, as_tuple=True)
    of_class = label if seen.boxes.shape[2] > 1 else torch.zeros_like(label)
    boxes = seen.boxes[place, proposal, of_class].float().cpu().numpy()
    scores = seen.scores[place, proposal, label].float().cpu().numpy()
    place, label = place.cpu().numpy(), label.cpu().numpy()
    focus_maps = seen.focus.float().cpu().numpy()
    starts = np.searchsorted(place, np.arange(len(batch) + 1))
    for number, region in enumerate(batch):
        flight, (x, y, width, height) = flights[region.picture], region.window
        part = slice(starts[number], starts[number + 1])
        on_canvas = boxes[part] + np.array([x, y, x, y], np.float32)
        canvas = tuple(flight.canvases[level].tolist())
        kept = stack.inside(on_canvas, region.window, canvas, settings.border)
        found = (on_canvas / np.tile(flight.scales[level], 2)).astype(np.float32)
        size = sizes(found)
        kept &= (limits[0] <= size) & (size < limits[1])
        flight.boxes.append(found[kept])
        flight.scores.append(scores[part][kept])
        flight.labels.append(label[part][kept])
        flight.processed[level] += width * height
        rows, columns = -(-height // stride), -(-width // stride)
        into = flight.maps[level][y // stride :, x // stride :][:rows, :columns]
        np.maximum(into, focus_maps[number, :rows, :columns], out=into)


def _blank(canvas: np.ndarray, stride: int) -> np.ndarray:
    return np.full((-(-canvas[1] // stride), -(-canvas[0] // stride)), UNSEEN, np.float32)


def _to_picture(windows: list[Window], scale: np.ndarray) -> np.ndarray:
    """Turn windows into boxes in picture px, (n, 4) float32."""
    corners = np.array(windows, np.float64).reshape(-1, 4)
    corners[:, 2:] += corners[:, :2]
    return (corners / np.tile(scale, 2)).astype(np.float32)
