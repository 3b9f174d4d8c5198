"""The region proposal network, and the proposals that come out of it.

b canvases, A anchors, n candidates, P proposals of a canvas.
"""

import torch
import torch.nn.functional as F
from torch import nn

from train import anchors
from train.detector.settings import ModelSettings
from train.nms import suppress

WEIGHTS = 1.0, 1.0  # of an anchor's offsets


class RPN(nn.Module):
    """Says for each anchor how much it looks like an object, and how to move it onto one."""

    def __init__(self, settings: ModelSettings, inputs: int):
        super().__init__()
        kinds = len(settings.anchor_sizes) * len(settings.anchor_shapes)
        self.conv = nn.Conv2d(inputs, settings.rpn_channels, 3, padding=1)
        self.objectness = nn.Conv2d(settings.rpn_channels, kinds, 1)
        self.offsets = nn.Conv2d(settings.rpn_channels, 4 * kinds, 1)
        nn.init.kaiming_normal_(self.conv.weight, nonlinearity="relu")
        for layer in (self.objectness, self.offsets):
            nn.init.normal_(layer.weight, std=0.01)
        for layer in (self.conv, self.objectness, self.offsets):
            nn.init.zeros_(layer.bias)

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Give logits (b, A) and offsets (b, A, 4) in the order of `anchors.grid`."""
        x = F.relu(self.conv(features))
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(self.objectness.weight.dtype)
            logits, offsets = self.objectness(x), self.offsets(x)
        b = len(features)  # (b, kinds * c, h, w) -> (b, h * w * kinds, c)
        return (
            logits.permute(0, 2, 3, 1).reshape(b, -1),
            offsets.permute(0, 2, 3, 1).reshape(b, -1, 4),
        )


@torch.no_grad()
def propose(
    logits: torch.Tensor,
    offsets: torch.Tensor,
    grid: torch.Tensor,
    content: torch.Tensor,
    settings: ModelSettings,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Turn anchors into proposals, best first.

    Returns boxes (b, P, 4) inside the content, logits (b, P), and which of them are there (b, P).
    """
    best, places = logits.topk(min(settings.candidates, logits.shape[1]))  # (b, n)
    moved = offsets.gather(1, places[..., None].expand(-1, -1, 4))
    boxes = anchors.decode(moved, grid[places], WEIGHTS)
    limits = content.repeat(1, 2)[:, None]  # (b, 1, 4)
    boxes = torch.minimum(boxes.clamp(min=0), limits)
    there = ((boxes[..., 2:] - boxes[..., :2]) >= settings.smallest).all(-1)
    kept = suppress(boxes, there, settings.proposal_iou, settings.proposals)
    return first(kept, settings.proposals, boxes, best)


def first(
    kept: torch.Tensor, count: int, boxes: torch.Tensor, values: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Take the first `count` kept of each row: boxes (b, count, 4), values, and which are there."""
    short = count - kept.shape[1]
    if short > 0:
        kept, values = F.pad(kept, (0, short)), F.pad(values, (0, short))
        boxes = F.pad(boxes, (0, 0, 0, short))
    # a stable order with the kept ones in front, by a key that needs no sort of equal elements
    key = torch.arange(kept.shape[1], device=kept.device) + kept.shape[1] * ~kept
    places = key.topk(count, largest=False).indices
    there = kept.gather(1, places)
    boxes = boxes.gather(1, places[..., None].expand(-1, -1, 4)) * there[..., None]
    return boxes, values.gather(1, places), there
