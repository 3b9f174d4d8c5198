"""The [model] section of a recipe."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class ModelSettings:
    """What the detector is made of."""

    backbone: Literal[
        "small", "resnet18", "resnet34", "resnet50", "resnet101", "resnext101", "mobilenet_v2"
    ] = "resnet50"
    width: int = 24  # channels of the first layer of "small"
    weights: str = "DEFAULT"  # torchvision's name, a file, a run of Fovea's; or "": random
    norm: Literal["frozen", "batch", "sync"] = "sync"
    norm_processes: int = 0  # that share the statistics of "sync"; 0: all (MegDet's BN size)
    deformable: bool = True  # 3x3 convolutions of conv5
    checkpointing: bool = False  # keep fewer activations, compute them again (MegDet's memory)

    anchor_sizes: tuple[float, ...] = (32.0, 64.0, 112.0, 160.0, 208.0, 256.0, 384.0)  # canvas px
    anchor_shapes: tuple[float, ...] = (0.5, 1.0, 2.0)  # height over width
    rpn_channels: int = 512
    candidates: int = 2000  # best anchors of a canvas that suppression sees
    proposals: int = 300  # of a canvas, after it
    proposal_iou: float = 0.7  # above which the worse of two proposals goes
    smallest: float = 2.0  # canvas px: shorter proposals are left out

    roi_channels: int = 256
    roi_size: int = 7  # cells along a side of a pooled RoI
    roi_samples: int = 2  # along a side of such a cell
    fc_channels: int = 1024
    class_agnostic: bool = True  # one box a RoI, or one for each class
    focus_channels: int = 256

    def __post_init__(self):
        for name in ("width", "candidates", "proposals", "roi_channels", "roi_size", "fc_channels"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)} must be at least 1")
        if not self.anchor_sizes or not self.anchor_shapes:
            raise ValueError("anchor_sizes and anchor_shapes must not be empty")
        named = self.weights not in ("", "DEFAULT") and not {".", "/"} & {*self.weights}
        if self.backbone == "small" and named:
            raise ValueError(
                f"weights = {self.weights!r}, but there are none for small; those of a training "
                f"have a path, such as ./{self.weights}"
            )
        if self.norm_processes < 0:
            raise ValueError(f"norm_processes = {self.norm_processes} must not be negative")
