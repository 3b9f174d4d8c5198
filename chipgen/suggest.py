"""Proposes levels and valid ranges for a data set, from its box sizes and the papers' rule.

The rule: an object should span 5 to 15 cells of the feature map (AutoFocus, section 3.2), which
for a stride of 16 is 80 to 240 canvas pixels. Sizes are square roots of box areas.
"""

from dataclasses import dataclass

import numpy as np

from chipgen import boxes as box_math
from chipgen.dataset import Annotations
from chipgen.errors import Refusal
from chipgen.pyramid import Level, in_range

CELLS = (5, 15)  # that an object should span
FINEST = 3.0  # the papers enlarge no further: interpolation adds no detail
STEP = 2.2  # largest ratio of neighbouring factors; 15 / 5 less some overlap of the ranges
SMALL, LARGE = 0.02, 0.98  # quantiles of box sizes that the pyramid must serve


@dataclass(frozen=True)
class Suggestion:
    """Levels from fine to coarse, and the share of boxes that each would take."""

    levels: tuple[Level, ...]
    shares: tuple[float, ...]
    quantiles: tuple[float, ...]  # box sizes at 10, 50 and 90 %, picture px


def suggest(annotations: Annotations, chip: int, stride: int) -> Suggestion:
    """Propose a training pyramid for chips of a size and a network of a stride."""
    sizes = box_math.sizes(annotations.boxes[~annotations.crowd])
    if not len(sizes):
        raise Refusal("suggest: the data set has no boxes to go by")
    longs = np.maximum(annotations.widths, annotations.heights)
    # a chip has to hold the objects with some context, so half of it is the limit for one
    smallest, largest = CELLS[0] * stride, min(CELLS[1] * stride, chip / 2)
    finest = float(np.clip(smallest / np.quantile(sizes, SMALL), 1e-3, FINEST))
    whole = chip / float(np.median(longs))  # the factor at which a picture fits one chip
    # a coarser level than the largest objects need would see no object of its own
    coarsest = max(whole, smallest / max(float(np.quantile(sizes, LARGE)), 1e-9))
    count = 1 + max(0, int(np.ceil(np.log(finest / coarsest) / np.log(STEP))))
    factors = finest * (min(coarsest, finest) / finest) ** (np.arange(count) / max(count - 1, 1))
    highs = [*(largest / factors[:-1]), np.inf]
    lows = [0.0, *(smallest / factors[1:])]
    # a range begins where the finer one still counts, so that no size falls between two levels
    lows = [min(low, 0.8 * high) for low, high in zip(lows, [np.inf, *highs[:-1]], strict=True)]
    fits_whole = coarsest == whole and count > 1
    levels = tuple(
        Level((_tidy(low), _tidy(high)), long=chip)
        if fits_whole and i == count - 1
        else Level((_tidy(low), _tidy(high)), factor=round(float(factor), 3))
        for i, (factor, low, high) in enumerate(zip(factors, lows, highs, strict=True))
    )
    shares = in_range(levels, sizes).mean(axis=0)
    quantiles = np.quantile(sizes, [0.1, 0.5, 0.9])
    return Suggestion(levels, tuple(shares.tolist()), tuple(quantiles.tolist()))


# What trains from nothing on a CPU; on a GPU the trainer's defaults serve, a pretrained ResNet-50.
NETWORKS = {
    "resnet50": """
[train]
batch = 16  # chips; the rate follows it
epochs = 12
drops = [[9, 0.1], [11, 0.1]]
""",
    "small": """
[model]
backbone = "small"
width = 16
weights = ""
rpn_channels = 128
candidates = 1000
proposals = 100
roi_channels = 64
roi_samples = 1
fc_channels = 256
focus_channels = 64

[labels]
anchors = 96
anchors_positive = 48

[train]
epochs = 20
drops = [[15, 0.1]]
batch = 8
lr = 0.03
lr_batch = 8
warmup = 0.5
clip = 5.0
""",
}


def fragment(suggestion: Suggestion, chip: int, network: str) -> str:
    """Write a suggestion as a recipe: chips, a network, and the same levels for inference."""
    small, median, large = suggestion.quantiles
    lines = [
        "# Proposed from the box sizes of a data set: sqrt(area) is "
        f"{small:.0f} / {median:.0f} / {large:.0f} px at 10 / 50 / 90 %.",
        "[chips]",
        'strategy = "sniper"',
        f"size = {chip}",
        "levels = [",
    ]
    for level, share in zip(suggestion.levels, suggestion.shares, strict=True):
        lines.append(f"  {{ {level.toml()} }},  # takes {share:.0%} of boxes")
    lines += ["]", NETWORKS[network], "[infer]", "levels = [  # from coarse to fine"]
    lines += [f"  {{ {v.toml()} }}," for v in reversed(suggestion.levels)]
    lines += ["]", "focus = [  # of each level but the last: where to look closer"]
    closer = "  { threshold = 0.1, dilation = 3, smallest = 128 },"
    lines += [closer] * (len(suggestion.levels) - 1)
    return "\n".join([*lines, "]", ""])


def _tidy(size: float) -> float:
    """Round a size to what a person would write."""
    return float(size) if np.isinf(size) or size == 0 else float(f"{size:.2g}")
