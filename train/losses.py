"""The losses of a batch, each a sum for each canvas over a number that does not depend on others.

b canvases, S chosen anchors, P RoIs. A loss of one canvas depends on that canvas alone, so any
split of a batch over processes or passes adds up to the same gradient.
"""

import torch
import torch.nn.functional as F

NAMES = ("rpn_class", "rpn_box", "class", "box", "focus")
FEWEST = 32  # RoIs: a canvas with fewer that count must not weigh more for each of them


def binary(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross entropy of logits with labels 0 or 1; 0 where the label is -1."""
    loss = F.binary_cross_entropy_with_logits(
        _wide(logits), labels.to(_wide(logits).dtype), reduction="none"
    )
    return loss * (labels >= 0)


def classes(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Softmax cross entropy (b, P) of logits (b, P, C + 1); 0 where the label is -1."""
    flat = F.cross_entropy(
        _wide(logits).flatten(0, 1), labels.flatten(), ignore_index=-1, reduction="none"
    )
    return flat.view_as(labels)


def offsets(found: torch.Tensor, wanted: torch.Tensor, beta: float) -> torch.Tensor:
    """Smooth L1 of offsets (.., 4), summed over the four."""
    return F.smooth_l1_loss(_wide(found), _wide(wanted), beta=beta, reduction="none").sum(-1)


def _wide(values: torch.Tensor) -> torch.Tensor:
    """Widen half precision."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
