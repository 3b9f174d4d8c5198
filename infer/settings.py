"""The [infer] section of a recipe."""

import math
from dataclasses import dataclass
from typing import Literal

from chipgen.pyramid import Level
from infer.focus import FocusSettings

CELLS = 32  # canvas px: what any network's cells divide
PAPER_LEVELS = (
    Level((75.0, math.inf), short=480, long=512),
    Level((32.0, 180.0), short=800, long=1280),
    Level((0.0, 75.0), short=1400, long=2000),
)


@dataclass(frozen=True)
class InferSettings:
    """The pyramid from coarse to fine, where to look closer, and what is kept."""

    levels: tuple[Level, ...] = PAPER_LEVELS
    focus: tuple[FocusSettings, ...] = (FocusSettings(), FocusSettings())  # of all but the finest
    flip: bool = False  # look at each region mirrored as well, and average

    tile: int = 2048  # canvas px: longer regions are cut into tiles
    overlap: int = 256  # canvas px that neighbouring tiles share
    step: int = 64  # canvas px: regions grow or are padded to multiples: there are few shapes
    max_megapixels: float = 500.0  # of a picture; larger ones are refused (as for chips)

    proposals: int = 300  # of a region, at most
    density: float = 2000.0  # proposals for each megapixel of a region, if that is fewer
    border: float = 3.0  # canvas px: what comes so near to an inner border of its region goes
    min_score: float = 0.001
    suppression: Literal["gaussian", "linear", "hard"] = "gaussian"
    suppress_overlap: float = 0.5  # IoU, for linear and hard
    sigma: float = 0.55  # for gaussian
    detections: int = 100  # of a picture, at most
    precision: Literal["auto", "bf16", "fp32"] = "auto"

    def __post_init__(self):
        if not self.levels:
            raise ValueError("levels is empty; inference needs at least one level")
        if len(self.focus) != len(self.levels) - 1:
            raise ValueError(
                f"focus has {len(self.focus)} entries, and levels {len(self.levels)}: each level "
                f"but the last, the finest, needs one"
            )
        if not 0 <= self.overlap <= self.tile / 2 or self.tile < 1:
            raise ValueError("0 <= overlap <= tile / 2 must hold")
        if self.tile % CELLS or self.overlap % CELLS:  # so that tiles on whole cells leave no gap
            raise ValueError(f"tile and overlap must be multiples of {CELLS}")
        for name in ("step", "max_megapixels", "proposals", "density", "sigma", "detections"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} = {getattr(self, name)} must be positive")
        for name in ("border", "min_score"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} = {getattr(self, name)} must not be negative")
        if not 0 <= self.suppress_overlap <= 1:
            raise ValueError(f"suppress_overlap = {self.suppress_overlap} must be from 0 to 1")

    def proposals_of(self, shape: tuple[int, int]) -> int:
        """Give the number of proposals for a region of a padded height and width."""
        return math.ceil(min(self.proposals, self.density * shape[0] * shape[1] / 1e6))
