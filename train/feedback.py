"""Dynamic Scale Training: what share of the loss small objects have, and what follows from it."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from chipgen import draws

CHOICE = 1 << 27  # stream of draws: the random mode

MEASURES = ("regression", "classification", "joint", "input")


@dataclass(frozen=True)
class FeedbackSettings:
    """When batches are made of shrunken chips; the paper's equation (1)."""

    mode: Literal["never", "feedback", "random", "all"] = "never"
    threshold: float = 0.1  # tau: at or below this share the next batch is a collage
    measure: Literal["regression", "classification", "joint", "input"] = "regression"
    form: Literal["collage", "batch"] = "collage"  # stitched, or side by side in the batch
    parts: int = 4  # k: chips in one canvas; that many batches go into one
    small: float = 32.0  # canvas px: sqrt(area) below which an object is small
    tiny: float = 100.0  # canvas px of area: smaller boxes in a collage are dropped

    def __post_init__(self):
        if self.parts < 1 or math.isqrt(self.parts) ** 2 != self.parts:
            raise ValueError(f"parts = {self.parts} must be a square number, such as 4")
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold = {self.threshold} must be from 0 to 1")


class Feedback:
    """Decides what the next batch is made of."""

    def __init__(self, settings: FeedbackSettings, seed: int, last: float = 1.0):
        self.settings, self.seed = settings, seed
        self.last = last  # share of the batch before; 1 at the beginning, which asks for no collage

    def tell(self, sums: dict[str, tuple[float, float]]) -> None:
        """Take the loss of small objects and of all, for regression, classification and input."""
        (r, r_all), (c, c_all) = sums["regression"], sums["classification"]
        small, whole = {**sums, "joint": (r + c, r_all + c_all)}[self.settings.measure]
        if whole > 0:  # a batch without objects says nothing
            self.last = small / whole

    def parts(self, step: int) -> int:
        """Say how many chips each canvas of a step holds: 1, or `parts`."""
        mode = self.settings.mode
        if mode == "random":
            shrink = draws.uniform(self.seed, np.array([step]), CHOICE)[0] < 0.5
        else:
            shrink = mode == "all" or (mode == "feedback" and self.last <= self.settings.threshold)
        return self.settings.parts if shrink else 1
