"""Levels: one scale of the pyramid, its canvas for a picture, and the box sizes that count there.

Legend: P pictures, L levels. A canvas is the picture resized to a level; its scale is taken per
axis from the rounded canvas size (canvas width / picture width), so that the right edge of a
picture is the right edge of its canvas to the last digit.
"""

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Level:
    """A scale, spelled as a factor, a long side, or a short side with a limit for the long one."""

    range: tuple[float, float] = (0.0, math.inf)  # sqrt(box area), picture px, [low, high)
    factor: float | None = None  # canvas px per picture px
    short: int | None = None  # canvas px
    long: int | None = None  # canvas px

    def __post_init__(self):
        if (self.factor is None) == (self.short is None and self.long is None):
            raise ValueError("a level is either {factor}, {long}, or {short, long}")
        if self.short is not None and self.long is None:
            raise ValueError("a level with a short side needs a limit for the long one")
        for name in ("factor", "short", "long"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} = {value} must be positive")
        low, high = self.range
        if not 0 <= low < high:
            raise ValueError(f"range {self.range} must be 0 <= low < high, in picture pixels")

    def factors(self, widths: np.ndarray, heights: np.ndarray) -> np.ndarray:
        """Give canvas pixels per picture pixel, (P,) float64, before the canvas is rounded."""
        if self.factor is not None:
            return np.full(len(widths), self.factor)
        by_long = self.long / np.maximum(widths, heights)
        if self.short is None:
            return by_long
        return np.minimum(by_long, self.short / np.minimum(widths, heights))

    def times(self, factor: float) -> "Level":
        """Give the level that is larger by a factor."""

        def larger(side: int | None) -> int | None:
            return None if side is None else max(1, round(side * factor))

        scale = None if self.factor is None else self.factor * factor
        return Level(self.range, scale, larger(self.short), larger(self.long))

    def toml(self) -> str:
        """Write it as recipes do, without the braces."""
        scale = ", ".join(
            f"{name} = {_number(value)}"
            for name in ("factor", "short", "long")
            if (value := getattr(self, name)) is not None
        )
        low, high = self.range
        return f"{scale}, range = [{_number(low)}, {_number(high)}]"

    def __str__(self) -> str:
        if self.factor is not None:
            return f"x{self.factor:g}"
        return f"long {self.long}" if self.short is None else f"({self.short}, {self.long})"


def _number(value: float) -> str:
    """Write a number as people do, where it is then still the same one."""
    short = f"{value:g}"
    return short if float(short) == value else repr(value)


def canvas_sizes(levels: tuple[Level, ...], widths: np.ndarray, heights: np.ndarray) -> np.ndarray:
    """Give the canvas width and height of each picture at each level, (P, L, 2) int64."""
    factors = np.stack([level.factors(widths, heights) for level in levels], axis=1)  # (P, L)
    sizes = np.stack([widths, heights], axis=1)[:, None, :] * factors[:, :, None]  # (P, L, 2)
    return np.maximum(np.floor(sizes + 0.5).astype(np.int64), 1)


def canvas_scales(canvases: np.ndarray, widths: np.ndarray, heights: np.ndarray) -> np.ndarray:
    """Give canvas pixels per picture pixel along x and y, (P, L, 2) float64."""
    return canvases / np.stack([widths, heights], axis=1)[:, None, :]


def in_range(levels: tuple[Level, ...], sizes: np.ndarray) -> np.ndarray:
    """Say which levels want a box of a size (sqrt of its area in picture px): (N, L) bool."""
    lows = np.array([level.range[0] for level in levels])
    highs = np.array([level.range[1] for level in levels])
    return (sizes[:, None] >= lows) & (sizes[:, None] < highs)
