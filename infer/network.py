"""One or several detectors, as they are or mirrored, used as one.

b canvases, M members, P proposals of a canvas, C classes. As SNIP's ensembles: proposals are
shared, and each member's scores and boxes for them are averaged.
"""

from dataclasses import dataclass

import torch

from infer.settings import InferSettings
from train.detector import rpn
from train.detector.model import Detector as Model
from train.nms import suppress
from train.precision import mixed


@dataclass(frozen=True)
class Seen:
    """What the network says of canvases, before any suppression."""

    boxes: torch.Tensor  # (b, P, 1 or C, 4) canvas px
    scores: torch.Tensor  # (b, P, C)
    focus: torch.Tensor  # (b, rows, columns) probability


class Network:
    """Runs its members; with `settings.flip` each of them on mirrored canvases as well."""

    def __init__(self, models: list[Model], settings: InferSettings, precision: torch.dtype):
        self.models, self.settings, self.precision = models, settings, precision
        self.device = next(models[0].parameters()).device
        self.stride = models[0].stride

    @torch.inference_mode()
    def __call__(self, canvases: torch.Tensor, content: torch.Tensor) -> Seen:
        """Look at canvases (b, 3, h, w) whose content (b, 2) has a width and a height."""
        with mixed(self.precision, self.device):
            views = [(model, model.backbone(canvases), False) for model in self.models]
            if self.settings.flip:
                mirrored = _mirrored(canvases, content[:, 0])
                views += [(model, model.backbone(mirrored), True) for model in self.models]
            rois, there = self._proposals(
                views, content, self.settings.proposals_of(canvases.shape[2:])
            )
            boxes, scores, focus = 0, 0, 0
            for model, maps, flipped in views:
                own = _flip_boxes(rois, content) if flipped else rois
                of_boxes, of_scores = model.judge(maps, own, there, content)
                of_focus = model.focus(maps)
                if flipped:
                    of_boxes = _flip_boxes(of_boxes, content[:, None])
                    of_focus = _mirrored_cells(of_focus, content[:, 0], self.stride)
                boxes, scores, focus = boxes + of_boxes, scores + of_scores, focus + of_focus
        count = len(views)
        return Seen(boxes / count, scores / count, focus / count)

    def _proposals(
        self, views: list[tuple], content: torch.Tensor, count: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Give the proposals that all views share, (b, P, 4), and which are there, (b, P)."""
        found = [(*model.propose(maps, content, count), flipped) for model, maps, flipped in views]
        if len(found) == 1:
            return found[0][0], found[0][2]
        boxes = torch.cat(
            [_flip_boxes(b, content) if flipped else b for b, *_, flipped in found], 1
        )
        logits = torch.cat([logits for _, logits, _, _ in found], 1)
        there = torch.cat([one for _, _, one, _ in found], 1)
        keys = logits.masked_fill(~there, -torch.inf)
        logits, order = keys.sort(dim=1, descending=True, stable=True)
        boxes = boxes.gather(1, order[..., None].expand(-1, -1, 4))
        overlap = self.models[0].settings.proposal_iou
        kept = suppress(boxes, there.gather(1, order), overlap, count)
        boxes, _, there = rpn.first(kept, count, boxes, logits)
        return boxes, there


def _mirrored(canvases: torch.Tensor, widths: torch.Tensor) -> torch.Tensor:
    """Mirror the content of canvases, which stays in their left corner; padding stays padding."""
    x = torch.arange(canvases.shape[3], device=canvases.device)
    places = torch.where(x < widths[:, None], widths[:, None] - 1 - x, x).long()
    return canvases.take_along_dim(places[:, None, None], 3)


def _mirrored_cells(focus: torch.Tensor, widths: torch.Tensor, stride: int) -> torch.Tensor:
    """Mirror a map of cells (b, rows, columns): a cell gets what its centre fell on."""
    centres = (torch.arange(focus.shape[2], device=focus.device) + 0.5) * stride
    places = ((widths[:, None] - centres) / stride).long().clamp(0, focus.shape[2] - 1)
    return focus.take_along_dim(places[:, None], 2)


def _flip_boxes(boxes: torch.Tensor, content: torch.Tensor) -> torch.Tensor:
    """Mirror boxes (b, .., 4) in content (b, .., 2)."""
    width = content[..., :1]
    while width.dim() < boxes.dim():
        width = width[:, None]
    x1, y1, x2, y2 = boxes.split(1, -1)
    return torch.cat([width - x2, y1, width - x1, y2], -1)
