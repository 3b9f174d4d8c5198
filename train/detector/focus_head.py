"""Where to look closer: FocusPixels on conv5 (section 3.4.1 of the AutoFocus paper)."""

import torch
import torch.nn.functional as F
from torch import nn


class FocusHead(nn.Module):
    """Two convolutions; a sigmoid of one logit is the paper's softmax of two."""

    def __init__(self, inputs: int, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(inputs, channels, 3, padding=1)
        self.focus = nn.Conv2d(channels, 1, 1)
        nn.init.kaiming_normal_(self.conv.weight, nonlinearity="relu")
        nn.init.normal_(self.focus.weight, std=0.01)
        nn.init.constant_(self.focus.bias, -2.0)  # about one cell in ten is positive

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Give logits (b, h, w)."""
        return self.focus(F.relu(self.conv(features)))[:, 0]
