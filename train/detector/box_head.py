"""The classifier of proposals: conv4 and conv5 projected, pooled, two fully connected layers."""

import torch
import torch.nn.functional as F
from torch import nn

from train.detector.pool import pool
from train.detector.settings import ModelSettings

WEIGHTS = 10.0, 5.0  # of a proposal's offsets


class BoxHead(nn.Module):
    """Gives each RoI its classes and its box."""

    def __init__(self, settings: ModelSettings, inputs: int, classes: int, stride: int):
        super().__init__()
        self.size, self.samples, self.stride = settings.roi_size, settings.roi_samples, stride
        self.project = nn.Conv2d(inputs, settings.roi_channels, 1)
        self.fc1 = nn.Linear(settings.roi_channels * self.size**2, settings.fc_channels)
        self.fc2 = nn.Linear(settings.fc_channels, settings.fc_channels)
        self.classes = nn.Linear(settings.fc_channels, classes + 1)  # 0 is background
        self.boxes = nn.Linear(
            settings.fc_channels, 4 * (1 if settings.class_agnostic else classes)
        )
        for layer in (self.project, self.fc1, self.fc2):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.normal_(self.classes.weight, std=0.01)
        nn.init.normal_(self.boxes.weight, std=0.001)
        for layer in (self.project, self.fc1, self.fc2, self.classes, self.boxes):
            nn.init.zeros_(layer.bias)

    def forward(
        self, maps: tuple[torch.Tensor, ...], rois: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Give logits (b, P, C + 1) and offsets (b, P, 1 or C, 4) of RoIs (b, P, 4)."""
        b, p = rois.shape[:2]
        features = F.relu(self.project(torch.cat(maps, 1)))
        with torch.autocast(features.device.type, enabled=False):
            features = features.to(self.fc1.weight.dtype)
            pooled = pool(features, rois, self.size, self.samples, self.stride)
            x = F.relu(self.fc2(F.relu(self.fc1(pooled.flatten(1)))))
            logits, offsets = self.classes(x), self.boxes(x)
        return logits.view(b, p, -1), offsets.view(b, p, -1, 4)
