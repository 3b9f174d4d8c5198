"""The detector in one place: Faster R-CNN on scale-normalised canvases.

b canvases, A anchors, P proposals or RoIs of a canvas, G boxes of a canvas, C classes.
"""

from dataclasses import dataclass, replace

import torch
from torch import nn

from train import anchors, assign, losses
from train.assign import LabelSettings
from train.detector import backbones, box_head, rpn
from train.detector.box_head import BoxHead
from train.detector.focus_head import FocusHead
from train.detector.norms import Norm
from train.detector.rpn import RPN
from train.detector.settings import ModelSettings
from train.warp import Targets

SMOOTH_RPN, SMOOTH_BOX = 1 / 9, 1.0  # where smooth L1 becomes a line


@dataclass(frozen=True)
class Losses:
    """What a batch of canvases costs, and how it is made up."""

    of_canvas: torch.Tensor  # (b, len(losses.NAMES)), with gradient
    small: torch.Tensor  # (3,) sums over small boxes: regression, classification, number of boxes
    whole: torch.Tensor  # (3,) the same over all boxes
    positives: torch.Tensor  # (2,) positive anchors and RoIs


@dataclass(frozen=True)
class Labels:
    """What the losses compare with; made without gradient."""

    anchors: torch.Tensor  # (b, S) 1 or 0, -1 where there is no choice left
    anchor_places: torch.Tensor  # (b, S)
    anchor_boxes: torch.Tensor  # (b, S) place of the box of a positive one
    rois: torch.Tensor  # (b, P, 4)
    roi_labels: torch.Tensor  # (b, P)
    roi_boxes: torch.Tensor  # (b, P)
    focus: torch.Tensor  # (b, h, w)


@dataclass(frozen=True)
class Found:
    """What the network says of canvases, before any suppression."""

    boxes: torch.Tensor  # (b, P, 1 or C, 4) canvas px, inside the content
    scores: torch.Tensor  # (b, P, C)
    proposals: torch.Tensor  # (b, P, 4)
    objectness: torch.Tensor  # (b, P)
    there: torch.Tensor  # (b, P)
    focus: torch.Tensor  # (b, h, w) probability


class Detector(nn.Module):
    """The network and its losses; `classes` 0 leaves only the RPN, for negative mining."""

    def __init__(self, settings: ModelSettings, labels: LabelSettings, classes: int, norm: Norm):
        super().__init__()
        self.settings, self.labels, self.classes = settings, labels, classes
        self.backbone = backbones.build(settings, norm)
        if not classes:
            self.backbone.keep_first_map()
        channels, self.stride = self.backbone.channels, self.backbone.stride
        self.rpn = RPN(settings, channels[0])
        if classes:
            self.box_head = BoxHead(settings, sum(channels), classes, self.stride)
            self.focus_head = FocusHead(channels[-1], settings.focus_channels)

    def forward(self, canvases: torch.Tensor, targets: Targets, small: float) -> Losses:
        """Give the losses of canvases (b, 3, h, w); `small`: px below which a box is small."""
        maps = self.backbone(canvases)
        logits, offsets = self.rpn(maps[0])
        labels = self.label(maps, logits.detach(), offsets.detach(), targets)
        return self.losses(maps, logits, offsets, targets, labels, small)

    @torch.no_grad()
    def label(
        self, maps: tuple[torch.Tensor, ...], logits: torch.Tensor, offsets: torch.Tensor,
        targets: Targets,
    ) -> Labels:  # fmt: skip
        """Choose anchors and RoIs, and say what they are."""
        rows, columns = maps[0].shape[2:]
        grid = self.grid(rows, columns, logits.device)
        of_anchors, nearest = assign.rpn_labels(grid, targets, self.labels)
        places, taken = assign.sample(of_anchors, targets.draws, self.labels)
        rois = targets.boxes[:, :0]
        roi_labels = roi_boxes = targets.labels[:, :0]
        if self.classes:
            found = rpn.propose(logits, offsets, grid, targets.content, self.settings)
            rois, there = self.with_boxes(found[0], found[2], targets)
            roi_labels, roi_boxes = assign.roi_labels(rois, there, targets, self.labels)
        return Labels(
            anchors=torch.where(taken, of_anchors.gather(1, places), -1),
            anchor_places=places,
            anchor_boxes=nearest.gather(1, places),
            rois=rois,
            roi_labels=roi_labels,
            roi_boxes=roi_boxes,
            focus=assign.focus_labels(targets, rows, columns, self.stride, self.labels),
        )

    def with_boxes(
        self, proposals: torch.Tensor, there: torch.Tensor, targets: Targets
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Put the boxes of the valid range in front: early proposals hit hardly any object."""
        wanted = (targets.labels >= 0) & ~targets.crowd & assign.in_range(targets.boxes, targets)
        boxes = torch.cat([targets.boxes, proposals], 1)
        kept = torch.cat([wanted, there], 1)
        rois, _, there = rpn.first(kept, self.settings.proposals, boxes, kept.float())
        return rois, there

    def losses(
        self, maps: tuple[torch.Tensor, ...], logits: torch.Tensor, offsets: torch.Tensor,
        targets: Targets, labels: Labels, small: float,
    ) -> Losses:  # fmt: skip
        """Compare what the heads say with the labels; all of the gradient begins here."""
        grid = self.grid(*maps[0].shape[2:], logits.device)
        is_small = assign.sizes(targets.boxes) < small  # (b, G)
        chosen = labels.anchor_places
        positive = labels.anchors == 1
        rpn_class = losses.binary(logits.gather(1, chosen), labels.anchors)  # (b, S)
        wanted = anchors.encode(
            _pick(targets.boxes, labels.anchor_boxes), grid[chosen], rpn.WEIGHTS
        )
        rpn_box = losses.offsets(_pick(offsets, chosen), wanted, SMOOTH_RPN) * positive
        count = self.labels.anchors
        parts = [rpn_class.sum(1) / count, rpn_box.sum(1) / count]
        anchor_small = is_small.gather(1, labels.anchor_boxes) & positive
        of_small = [
            (rpn_box * anchor_small).sum() / count,
            (rpn_class * anchor_small).sum() / count,
        ]
        of_all = [rpn_box.sum() / count, (rpn_class * positive).sum() / count]
        positives = [positive.sum(), positive.sum() * 0]
        if self.classes:
            roi_logits, roi_offsets = self.box_head(maps, labels.rois)
            positive = labels.roi_labels > 0
            count = (labels.roi_labels >= 0).sum(1).clamp(min=losses.FEWEST)  # (b,)
            wanted = anchors.encode(
                _pick(targets.boxes, labels.roi_boxes), labels.rois, box_head.WEIGHTS
            )
            box_class = losses.classes(roi_logits, labels.roi_labels) / count[:, None]  # (b, P)
            of_class = _of_class(roi_offsets, labels.roi_labels)
            box = losses.offsets(of_class, wanted, SMOOTH_BOX) * positive / count[:, None]
            focus = losses.binary(self.focus_head(maps[-1]), labels.focus).mean((1, 2))
            parts += [box_class.sum(1), box.sum(1), self.labels.focus_weight * focus]
            roi_small = is_small.gather(1, labels.roi_boxes) & positive
            of_small = [
                of_small[0] + (box * roi_small).sum(),
                of_small[1] + (box_class * roi_small).sum(),
            ]
            of_all = [of_all[0] + box.sum(), of_all[1] + (box_class * positive).sum()]
            positives[1] = positive.sum()
        else:
            parts += [torch.zeros_like(parts[0])] * 3
        there = (targets.labels >= 0) & ~targets.crowd
        return Losses(
            of_canvas=torch.stack(parts, 1),
            small=torch.stack([*of_small, (there & is_small).sum()]).detach(),
            whole=torch.stack([*of_all, there.sum()]).detach(),
            positives=torch.stack(positives),
        )

    @torch.no_grad()
    def find(self, canvases: torch.Tensor, content: torch.Tensor) -> Found:
        """Run on canvases (b, 3, h, w) whose content (b, 2) has a width and a height."""
        maps = self.backbone(canvases)
        rois, objectness, there = self.propose(maps, content)
        boxes, scores = self.judge(maps, rois, there, content)
        return Found(boxes, scores, rois, objectness, there, self.focus(maps))

    @torch.no_grad()
    def propose(
        self, maps: tuple[torch.Tensor, ...], content: torch.Tensor, count: int | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Give proposals (b, P, 4), best first, their logits (b, P), and which are there (b, P).

        `count` is how many, with as many candidates for each, in place of the settings'.
        """
        logits, offsets = self.rpn(maps[0])
        grid = self.grid(*maps[0].shape[2:], logits.device)
        settings = self.settings
        if count is not None:
            candidates = settings.candidates * count // settings.proposals
            settings = replace(settings, proposals=count, candidates=max(candidates, count))
        return rpn.propose(logits, offsets, grid, content, settings)

    @torch.no_grad()
    def judge(
        self, maps: tuple[torch.Tensor, ...], rois: torch.Tensor, there: torch.Tensor,
        content: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
        """Give RoIs (b, P, 4) their boxes (b, P, 1 or C, 4) and scores (b, P, C)."""
        logits, moved = self.box_head(maps, rois)
        boxes = anchors.decode(moved, rois[:, :, None], box_head.WEIGHTS)
        boxes = torch.minimum(boxes.clamp(min=0), content.repeat(1, 2)[:, None, None])
        return boxes, logits.softmax(-1)[..., 1:] * there[..., None]

    @torch.no_grad()
    def focus(self, maps: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """Give each cell's probability to be worth a closer look, (b, h, w)."""
        return self.focus_head(maps[-1]).float().sigmoid()

    def grid(self, rows: int, columns: int, device: torch.device) -> torch.Tensor:
        """Give the anchors of a map, (A, 4)."""
        sizes, shapes = self.settings.anchor_sizes, self.settings.anchor_shapes
        return anchors.grid(rows, columns, self.stride, sizes, shapes, device)


def _pick(values: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Take (b, N, 4) of (b, M, 4) by places (b, N)."""
    return values.gather(1, places[..., None].expand(-1, -1, values.shape[-1]))


def _of_class(offsets: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Take the offsets of each RoI's class, (b, P, 4) of (b, P, 1 or C, 4)."""
    if offsets.shape[2] == 1:
        return offsets[:, :, 0]
    places = (labels - 1).clamp(min=0)[..., None, None].expand(-1, -1, 1, 4)
    return offsets.gather(2, places)[:, :, 0]
