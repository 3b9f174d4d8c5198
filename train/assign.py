"""Labels by the rules of SNIP, SNIPER and AutoFocus, for a whole batch at once.

b canvases, A anchors, P proposals or RoIs of a canvas, G boxes of a canvas (padded), k chips of
a canvas; boxes (.., 4) float32 xyxy, half-open. Labels: -1 ignore, 0 background, above: object.
"""

from dataclasses import dataclass

import torch

from train.constants import kept
from train.nearest import nearest, overlaps
from train.warp import Targets, areas


@dataclass(frozen=True)
class LabelSettings:
    """What counts as what, and how much; sizes are sqrt(area) in canvas px."""

    anchor_positive: float = 0.7  # IoU with a valid box from which on an anchor is positive
    anchor_negative: float = 0.3  # and below which it is background
    anchor_invalid: float = 0.3  # overlap with an invalid box above which it is ignored
    anchors: int = 256  # that count towards the loss, of a canvas
    anchors_positive: int = 128  # of them positive, at most
    proposal_positive: float = 0.5  # IoU from which on a proposal is an object
    focus_low: float = 5.0  # boxes above this and below focus_high make FocusPixels
    focus_high: float = 64.0
    focus_ignore: float = 90.0  # boxes from focus_high to this make ignored ones
    focus_weight: float = 1.0  # of the loss of FocusPixels, a mean over cells; others have 1

    def __post_init__(self):
        if not 0 <= self.anchor_negative <= self.anchor_positive <= 1:
            raise ValueError("0 <= anchor_negative <= anchor_positive <= 1 must hold")
        if not 0 < self.anchors_positive <= self.anchors:
            raise ValueError("0 < anchors_positive <= anchors must hold")
        if not 0 <= self.focus_low <= self.focus_high <= self.focus_ignore:
            raise ValueError("0 <= focus_low <= focus_high <= focus_ignore must hold")
        if not self.focus_weight >= 0:
            raise ValueError(f"focus_weight = {self.focus_weight} must not be negative")


def rpn_labels(
    anchors: torch.Tensor, targets: Targets, settings: LabelSettings
) -> tuple[torch.Tensor, torch.Tensor]:
    """Label anchors (A, 4): labels (b, A) and the valid box of each, (b, A) int64.

    Valid boxes make positives: from an IoU on, and the anchors that come closest to a box. What
    overlaps an invalid box is ignored; a crowd only turns background into ignored.
    """
    there = targets.labels >= 0
    valid = there & targets.valid & ~targets.crowd
    crowd = there & targets.crowd
    invalid = there & ~valid & ~crowd
    found = nearest(anchors, targets.boxes, valid, invalid, crowd)
    near_invalid = found.invalid > settings.anchor_invalid
    in_crowd = found.crowd > settings.anchor_invalid
    positive = (found.valid >= settings.anchor_positive) | found.closest
    unsure = ~positive & (in_crowd | (found.valid >= settings.anchor_negative))
    return torch.where(near_invalid | unsure, -1, positive.long()), found.place


def sample(
    labels: torch.Tensor, draws: torch.Tensor, settings: LabelSettings
) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose the anchors that count, at random: places (b, S) and whether each is taken.

    The first `anchors_positive` places are of positives, the others of background, which fills
    up what positives leave. One random number a canvas turns a fixed random order of the anchors:
    the choice does not depend on how the batch is spread over processes.
    """
    count = labels.shape[1]
    keys = (_order(count, labels.device) + draws[:, None]) % 1  # (b, A)
    most = min(settings.anchors_positive, count), min(settings.anchors, count)
    positive, places_positive = torch.where(labels == 1, keys, 2).topk(most[0], largest=False)
    negative, places_negative = torch.where(labels == 0, keys, 2).topk(most[1], largest=False)
    taken = positive < 2
    free = settings.anchors - taken.sum(1, keepdim=True)
    first = torch.arange(most[1], device=labels.device) < free
    return torch.cat([places_positive, places_negative], 1), torch.cat(
        [taken, (negative < 2) & first], 1
    )


@kept
def _order(count: int, device: torch.device) -> torch.Tensor:
    """Give the order of anchors, a random number for each, (A,)."""
    return torch.rand(count, generator=torch.Generator().manual_seed(count)).to(device)


def roi_labels(
    rois: torch.Tensor, there: torch.Tensor, targets: Targets, settings: LabelSettings
) -> tuple[torch.Tensor, torch.Tensor]:
    """Label RoIs (b, P, 4): labels (b, P), class + 1 for objects, and the box of each.

    All boxes in the chip label RoIs, valid or not; RoIs out of the valid range are ignored, and
    background in a crowd.
    """
    objects = (targets.labels >= 0) & ~targets.crowd
    crowd = (targets.labels >= 0) & targets.crowd
    iou, share = overlaps(targets.boxes, rois)  # (b, G, P)
    best, matched = (iou * objects[..., None]).max(1)
    positive = best >= settings.proposal_positive
    in_crowd = (share * crowd[..., None]).amax(1) > settings.proposal_positive
    labels = torch.where(positive, targets.labels.gather(1, matched) + 1, 0)
    ignored = ~there | ~in_range(rois, targets) | ~positive & in_crowd
    return torch.where(ignored, -1, labels), matched


def in_range(boxes: torch.Tensor, targets: Targets) -> torch.Tensor:
    """Say which boxes (b, P, 4) have a size in the valid range of the chip they lie in, (b, P)."""
    size = sizes(boxes)
    k = targets.ranges.shape[1]
    side = round(k**0.5)
    x, y = (boxes[..., 0] + boxes[..., 2]) / 2, (boxes[..., 1] + boxes[..., 3]) / 2
    column = (x / targets.cell[1]).long().clamp(0, side - 1)
    row = (y / targets.cell[0]).long().clamp(0, side - 1)
    limits = targets.ranges.gather(1, (row * side + column)[..., None].expand(-1, -1, 2))
    return (limits[..., 0] <= size) & (size < limits[..., 1])


def focus_labels(
    targets: Targets, rows: int, columns: int, stride: int, settings: LabelSettings
) -> torch.Tensor:
    """Label the stride x stride cells of canvases: (b, rows, columns).

    What the chip's border has cut may be a sliver of something large: its cells are ignored, unless
    already the part in the chip is too large. Learned as small, slivers make false FocusPixels.
    """
    size = sizes(targets.boxes)
    there = targets.labels >= 0
    whole = there & ~targets.crowd & ~targets.cut
    small = whole & (settings.focus_low < size) & (size < settings.focus_high)
    unsure = there & (targets.crowd | (size <= settings.focus_ignore))
    across = _touches(
        targets.boxes[..., 0], targets.boxes[..., 2], columns, stride
    )  # (b, G, columns)
    down = _touches(targets.boxes[..., 1], targets.boxes[..., 3], rows, stride)  # (b, G, rows)

    def touched(boxes: torch.Tensor) -> torch.Tensor:
        return (down * boxes[..., None]).mT @ across > 0

    return torch.where(touched(small), 1, -touched(unsure).long())


def sizes(boxes: torch.Tensor) -> torch.Tensor:
    """Give sqrt(area) of boxes (.., 4)."""
    return areas(boxes).clamp(min=0).sqrt()


def _touches(low: torch.Tensor, high: torch.Tensor, cells: int, stride: int) -> torch.Tensor:
    """Say which cells of an axis share more than an edge with [low, high): (b, G, cells)."""
    start = torch.arange(cells, device=low.device) * stride
    return ((start < high[..., None]) & (start + stride > low[..., None])).float()
