"""Proposes levels and valid ranges for a data set, from its box sizes and the papers' rule.

The rule: an object should span 5 to 15 cells of the feature map (AutoFocus, section 3.2), which
for a stride of 16 is 80 to 240 canvas pixels. Sizes are square roots of box areas.
"""

import math
from dataclasses import dataclass

import numpy as np

from chipgen import boxes as box_math
from chipgen.dataset import Annotations
from chipgen.errors import Refusal
from chipgen.plan import ChipSettings, canvases_of, wanted
from chipgen.pyramid import Level, in_range

CELLS = (5, 15)  # that an object should span
FINEST = 3.0  # the papers enlarge no further: interpolation adds no detail
STEP = 2.2  # largest ratio of neighbouring factors; 15 / 5 less some overlap of the ranges
UNSURE = 1.4  # times the size up to which to look closer, it may be worth it (AutoFocus: 90 / 64)
NEAR = 1.1  # by which a ratio may be larger: no level is added for less
SMALL, LARGE = 0.02, 0.98  # quantiles of box sizes that the rule is for; all others must fit
OF_CROWD = 1.5  # detections for each object of the picture that has most
# what inference does if it is not told otherwise
DETECTIONS, PROPOSALS, TILE, OVERLAP = 100, 300, 2048, 256
ROUNDING = 0.99  # a factor times this is below it even when it is rounded to three digits


@dataclass(frozen=True)
class Suggestion:
    """Levels from fine to coarse, and the share of boxes that each would take."""

    levels: tuple[Level, ...]
    shares: tuple[float, ...]
    quantiles: tuple[float, ...]  # box sizes at 10, 50 and 90 %, picture px
    closer: int  # canvas px up to which a finer level has to look at an object
    crowd: int  # objects of the picture that has most
    longest: int  # canvas px of the longest object that tiles of a large canvas have to hold


def suggest(annotations: Annotations, chip: int, stride: int) -> Suggestion:
    """Propose a training pyramid for chips of a size and a network of a stride."""
    boxes = annotations.boxes[~annotations.crowd]
    sizes = box_math.sizes(boxes)
    if not len(sizes):
        raise Refusal("suggest: the data set has no boxes to go by")
    longs = np.maximum(annotations.widths, annotations.heights)
    # a chip has to hold the objects with some context, so half of it is the limit for one
    smallest, largest = CELLS[0] * stride, min(CELLS[1] * stride, chip / 2)
    whole = chip / float(np.median(longs))  # the factor at which a picture fits one chip
    # shrunk further than that, pictures would leave chips empty
    finest = float(np.clip(smallest / np.quantile(sizes, SMALL), min(whole, FINEST), FINEST))
    # the factor at which the longest box fits; 2 px go to rounded canvases and whole positions
    holding = ROUNDING * (chip - 2) / float((boxes[:, 2:] - boxes[:, :2]).max())
    if whole > finest:  # most pictures fit a chip at any level
        coarsest = min(finest, holding)
    else:
        # a coarser level than most large objects need would see no object of its own, but the
        # few that are larger still, or long and thin, have to fit a chip as well
        most = smallest / max(float(np.quantile(sizes, LARGE)), 1e-9)
        coarsest = min(finest, most, largest / float(sizes.max()), holding)
        coarsest = whole if coarsest < NEAR * whole else coarsest
    ratio = finest / coarsest
    count = 1 + max(0, int(np.ceil(np.log(ratio / NEAR) / np.log(STEP))))
    factors = coarsest * ratio ** (np.arange(count)[::-1] / max(count - 1, 1))
    whole_chip = chip if coarsest == whole else None
    levels = _levels(factors, smallest, largest, whole_chip)
    used = _wanted(annotations, levels, chip).any(axis=0)
    used[[0, -1]] = True
    levels = _levels(factors[used], smallest, largest, whole_chip)
    shares = _wanted(annotations, levels, chip).mean(axis=0)
    quantiles = np.quantile(sizes, [0.1, 0.5, 0.9])
    return Suggestion(
        levels,
        tuple(shares.tolist()),
        tuple(quantiles.tolist()),
        smallest,
        int(np.bincount(annotations.picture_of_box[~annotations.crowd]).max()),
        _longest(annotations, levels),
    )


def _longest(annotations: Annotations, levels: tuple[Level, ...]) -> int:
    """Give the longest object of any level's range, canvas px, where a canvas is cut into tiles."""
    canvases = canvases_of(annotations, levels)
    picture = annotations.picture_of_box
    sides = annotations.boxes[:, 2:] - annotations.boxes[:, :2]
    longest = (sides[:, None] * canvases.scales[picture]).max(axis=2)  # (N, L)
    tiled = (canvases.sizes > TILE).any(axis=2)[picture]
    counts = in_range(levels, box_math.sizes(annotations.boxes)) & ~annotations.crowd[:, None]
    return math.ceil(longest[tiled & counts].max(initial=0))


def _levels(
    factors: np.ndarray, smallest: float, largest: float, long: int | None
) -> tuple[Level, ...]:
    """Give levels of falling factors their ranges; `long` spells the last one, if it is given."""
    highs = [*(largest / factors[:-1]), np.inf]
    lows = [0.0, *(smallest / factors[1:])]
    # a range begins where the finer one still counts, so that no size falls between two levels
    lows = [min(low, 0.8 * high) for low, high in zip(lows, [np.inf, *highs[:-1]], strict=True)]
    ranges = [(_tidy(low), _tidy(high)) for low, high in zip(lows, highs, strict=True)]
    levels = [
        Level(span, factor=float(f"{factor:.3g}"))
        for span, factor in zip(ranges, factors, strict=True)
    ]
    return (*levels[:-1], Level(ranges[-1], long=long) if long else levels[-1])


def _wanted(annotations: Annotations, levels: tuple[Level, ...], chip: int) -> np.ndarray:
    """Say which levels would cover which box that is no crowd, (N, L) bool."""
    settings = ChipSettings(levels=levels, size=chip, stride=1)
    wants = wanted(annotations, canvases_of(annotations, levels), settings)
    return wants[~annotations.crowd]


# What trains from nothing on a CPU; on a GPU the trainer's defaults serve, a pretrained ResNet-50.
NETWORKS = {
    "resnet50": """
[labels]
focus_high = {closer}
focus_ignore = {unsure}

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
focus_high = {closer}
focus_ignore = {unsure}
focus_weight = 3.0

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

# Probability from which on to look closer: what trains from nothing is less sure where.
THRESHOLDS = {"resnet50": 0.1, "small": 0.03}


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
    closer = suggestion.closer  # where the ranges of all levels but the finest begin, or above
    trained = NETWORKS[network].format(closer=closer, unsure=round(UNSURE * closer))
    lines += ["]", trained, "[infer]", "levels = [  # from coarse to fine"]
    lines += [f"  {{ {v.toml()} }}," for v in reversed(suggestion.levels)]
    lines += ["]", "focus = [  # of each level but the last: where to look closer"]
    threshold, smallest = THRESHOLDS[network], chip // 2  # half of what it is trained on to see
    look = f"  {{ threshold = {threshold}, dilation = 3, smallest = {smallest} }},"
    lines += [look] * (len(suggestion.levels) - 1)
    lines += ["]"]
    room = OF_CROWD * suggestion.crowd
    if room > DETECTIONS:
        told = f"there are pictures of {suggestion.crowd} objects"
        lines += [f"detections = {_up(room, 100)}  # of a picture: {told}"]
        lines += [f"proposals = {_up(max(2 * room, PROPOSALS), 100)}  # of a region"]
    if suggestion.longest > OVERLAP:
        overlap = min(_up(suggestion.longest, 32), TILE // 2)
        lines += [f"overlap = {overlap}  # of tiles: what is longer is whole in none of them"]
    return "\n".join([*lines, ""])


def _up(value: float, step: int) -> int:
    """Round up to whole steps."""
    return math.ceil(value / step) * step


def _tidy(size: float) -> float:
    """Round a size to what a person would write."""
    return float(size) if np.isinf(size) or size == 0 else float(f"{size:.2g}")
