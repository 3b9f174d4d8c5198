"""Which chips a strategy wants: sniper, snip or whole; all three make the same table.

Legend: P pictures, L levels, N boxes, C chips.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa

from chipgen import boxes as box_math
from chipgen import draws
from chipgen.cover import cover, fits, held
from chipgen.dataset import Annotations
from chipgen.pyramid import Level, canvas_scales, canvas_sizes, in_range
from chipgen.snip import sample_crops

CHIPS = pa.schema(
    {
        "picture": pa.int32(),  # row in the table of pictures
        "picture_id": pa.int64(),
        "level": pa.int16(),
        "round": pa.int32(),  # an epoch uses the chips with epoch % rounds == round
        "rounds": pa.int32(),
        "x": pa.int32(),  # the chip's content on the canvas, without padding
        "y": pa.int32(),
        "width": pa.int32(),
        "height": pa.int32(),
        "canvas_width": pa.int32(),
        "canvas_height": pa.int32(),
    }
)

PAPER_LEVELS = (
    Level((0.0, 80.0), factor=3.0),
    Level((32.0, 150.0), factor=1.667),
    Level((120.0, math.inf), long=512),
)


@dataclass(frozen=True)
class ChipSettings:
    """What to cut. The defaults are the training pyramid of the SNIPER paper for COCO."""

    strategy: Literal["sniper", "snip", "whole"] = "sniper"
    levels: tuple[Level, ...] = PAPER_LEVELS
    size: int = 512  # canvas px: the side K of a chip (sniper)
    stride: int = 32  # canvas px between the positions that chips may take (sniper)
    crop: int = 1000  # canvas px: the side of the crops of the finest level (snip)
    variants: int = 1  # plans with other chip positions; epoch e uses variant e % variants
    seed: int = 0

    def __post_init__(self):
        for name in ("size", "stride", "crop", "variants"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)} must be at least 1")
        if not self.levels:
            raise ValueError("levels is empty; a plan needs at least one level")
        if self.stride > self.size:
            raise ValueError(f"stride {self.stride} is wider than a chip ({self.size})")
        if self.variants > 1 and self.strategy == "whole":
            raise ValueError("strategy 'whole' has no positions to vary; set variants = 1")

    @property
    def mines(self) -> bool:
        """Say whether the strategy mines negatives where an RPN errs."""
        return self.strategy == "sniper"


@dataclass(frozen=True)
class Canvases:
    """The canvases of all pictures at all levels."""

    sizes: np.ndarray  # (P, L, 2) int64 width, height
    scales: np.ndarray  # (P, L, 2) float64 canvas px per picture px

    @property
    def finest(self) -> np.ndarray:
        """The level with the largest canvas, (P,) int64."""
        return self.sizes.prod(axis=2).argmax(axis=1)

    @property
    def coarsest(self) -> np.ndarray:
        """The level with the smallest canvas, (P,) int64."""
        return self.sizes.prod(axis=2).argmin(axis=1)


def canvases_of(annotations: Annotations, levels: tuple[Level, ...]) -> Canvases:
    """Lay out the pyramid of each picture."""
    sizes = canvas_sizes(levels, annotations.widths, annotations.heights)
    return Canvases(sizes, canvas_scales(sizes, annotations.widths, annotations.heights))


def plan(annotations: Annotations, settings: ChipSettings) -> pa.Table:
    """Plan the positive chips: a table of schema CHIPS in the order of pictures."""
    canvases = canvases_of(annotations, settings.levels)
    strategy = {"sniper": _sniper, "snip": _snip, "whole": _whole}[settings.strategy]
    parts = []
    for variant in range(settings.variants):
        rows = strategy(annotations, canvases, settings, variant)  # (C, 6)
        parts.append(np.insert(rows, 2, variant, axis=1))
    rows = np.concatenate(parts)
    rows = rows[np.argsort(rows[:, 0], kind="stable")]
    return chip_table(annotations, canvases, rows, np.full(len(rows), settings.variants))


def chip_table(
    annotations: Annotations, canvases: Canvases, rows: np.ndarray, rounds: np.ndarray
) -> pa.Table:
    """Make a table of (C, 7) rows of picture, level, round, x, y, width, height."""
    picture, level, turn, x, y, width, height = rows.T
    canvas = canvases.sizes[picture, level]
    ids = annotations.picture_ids[picture]
    columns = [picture, ids, level, turn, rounds, x, y, width, height, canvas[:, 0], canvas[:, 1]]
    arrays = [
        pa.array(c.astype(f.type.to_pandas_dtype())) for c, f in zip(columns, CHIPS, strict=True)
    ]
    return pa.Table.from_arrays(arrays, schema=CHIPS)


def chip_side(settings: ChipSettings, canvases: Canvases) -> np.ndarray:
    """Give the side of the windows that each level of each picture is cut into, (P, L) int64."""
    whole = canvases.sizes.max(axis=2)
    if settings.strategy == "sniper":
        return np.full_like(whole, settings.size)
    if settings.strategy == "snip":
        whole[np.arange(len(whole)), canvases.finest] = settings.crop
    return whole


def wanted(annotations: Annotations, canvases: Canvases, settings: ChipSettings) -> np.ndarray:
    """Say which levels have to cover which box, (N, L) bool.

    A box is wanted where its size is in the level's range and a window can hold it. One that no
    such level can take (too long for its area, or outside every range) goes to the finest level
    where it fits. Crowds are wanted nowhere.
    """
    picture = annotations.picture_of_box
    sides = chip_side(settings, canvases)
    fitting = np.stack(
        [
            fits(
                annotations.boxes,
                canvases.sizes[picture, level],
                canvases.scales[picture, level],
                sides[picture, level, None],
            )
            for level in range(len(settings.levels))
        ],
        axis=1,
    )  # (N, L)
    wants = fitting & in_range(settings.levels, box_math.sizes(annotations.boxes))
    left_over = np.flatnonzero(~wants.any(axis=1) & fitting.any(axis=1))
    scales = canvases.scales.prod(axis=2)[picture[left_over]]
    scales = np.where(fitting[left_over], scales, -1.0)
    wants[left_over, scales.argmax(axis=1)] = True
    return wants & ~annotations.crowd[:, None]


def has_boxes(annotations: Annotations) -> np.ndarray:
    """Say which pictures have a box that is not a crowd, (P,) bool."""
    real = np.concatenate([[0], np.cumsum(~annotations.crowd)])
    return np.diff(real[annotations.offsets]) > 0


def holders(
    annotations: Annotations, offsets: np.ndarray, boxes: np.ndarray, chips: pa.Table, levels: int
) -> np.ndarray:
    """Count the chips of each level that hold each box whole, (N, L) int64."""
    names = ("picture", "level", "x", "y", "width", "height", "canvas_width", "canvas_height")
    columns = {name: chips[name].to_numpy() for name in names}
    picture = columns["picture"]
    scale_x = columns["canvas_width"] / annotations.widths[picture]
    scale_y = columns["canvas_height"] / annotations.heights[picture]
    windows = np.stack(
        [
            columns["x"] / scale_x,
            columns["y"] / scale_y,
            (columns["x"] + columns["width"]) / scale_x,
            (columns["y"] + columns["height"]) / scale_y,
        ],
        axis=1,
    )
    slack = 1e-3 / np.minimum(scale_x, scale_y)
    starts = np.searchsorted(picture, np.arange(len(annotations.offsets)))
    return held(boxes, offsets, windows, slack, columns["level"], starts, levels)


def _sniper(
    annotations: Annotations, canvases: Canvases, settings: ChipSettings, variant: int
) -> np.ndarray:
    """Cover the boxes that each level wants with K x K chips: (C, 6) picture ... height."""
    ids = annotations.picture_ids
    shifts = places = None
    if variant:
        drawn = [draws.uniform(settings.seed, ids, 4 * variant + k) for k in range(4)]
        shifts = np.stack(drawn[:2], axis=1) * settings.stride
        shifts, places = shifts.astype(np.int64), np.stack(drawn[2:], axis=1)
    chips = cover(
        annotations.boxes,
        annotations.offsets,
        wanted(annotations, canvases, settings),
        canvases.sizes,
        canvases.scales,
        chip=settings.size,
        stride=settings.stride,
        shifts=shifts,
        places=places,
    )
    return windows_on(canvases, chips, settings.size)


def windows_on(canvases: Canvases, chips: np.ndarray, side: int) -> np.ndarray:
    """Add to (C, 4) picture, level, x, y the width and height that lie on the canvas."""
    room = canvases.sizes[chips[:, 0], chips[:, 1]] - chips[:, 2:]
    return np.concatenate([chips, np.minimum(room, side)], axis=1)


def _snip(
    annotations: Annotations, canvases: Canvases, settings: ChipSettings, variant: int
) -> np.ndarray:
    """Take whole canvases of all levels but the finest, and crops of that one."""
    rows = np.arange(len(canvases.finest))
    on_finest = wanted(annotations, canvases, settings)[
        np.arange(len(annotations.boxes)), canvases.finest[annotations.picture_of_box]
    ]
    crops = sample_crops(
        annotations.boxes,
        annotations.offsets,
        on_finest,
        canvases.sizes[rows, canvases.finest],
        canvases.scales[rows, canvases.finest],
        crop=settings.crop,
        states=draws.states(settings.seed, annotations.picture_ids, variant),
    )  # (C, 3) picture, x, y
    crops = np.insert(crops, 1, canvases.finest[crops[:, 0]], axis=1)
    whole = _whole(annotations, canvases, settings, variant)
    whole = whole[whole[:, 1] != canvases.finest[whole[:, 0]]]
    return np.concatenate([windows_on(canvases, crops, settings.crop), whole])


def _whole(
    annotations: Annotations, canvases: Canvases, settings: ChipSettings, variant: int
) -> np.ndarray:
    """Take the whole canvas of every level of each picture that has a box."""
    del settings, variant  # the same whatever they are
    return whole_canvases(canvases, np.flatnonzero(has_boxes(annotations)))


def whole_canvases(canvases: Canvases, pictures: np.ndarray) -> np.ndarray:
    """Give the whole canvas of every level of some pictures: (C, 6)."""
    levels = canvases.sizes.shape[1]
    picture = np.repeat(pictures, levels)
    level = np.tile(np.arange(levels), len(pictures))
    origin = np.zeros((len(picture), 2), np.int64)
    return np.concatenate(
        [np.stack([picture, level], axis=1), origin, canvases.sizes[picture, level]], axis=1
    )
