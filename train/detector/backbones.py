"""Backbones: a picture in, the feature maps that the heads stand on out.

Each gives a tuple of maps of one stride, (b, C, h / stride, w / stride): conv4 and conv5, or the
last alone. The RPN stands on the first, the focus head on the last, the box head on all of them.
conv5 keeps the stride of conv4 and is dilated instead, as the papers have it.
"""

import itertools
from collections.abc import Callable

import torch
import torchvision
from torch import nn
from torch.utils.checkpoint import checkpoint
from torchvision.ops import deform_conv2d

from chipgen.errors import Refusal
from train.detector.norms import Norm
from train.detector.settings import ModelSettings

RESNETS = {
    "resnet18": torchvision.models.resnet18,
    "resnet34": torchvision.models.resnet34,
    "resnet50": torchvision.models.resnet50,
    "resnet101": torchvision.models.resnet101,
    "resnext101": torchvision.models.resnext101_32x8d,
}


class Backbone(nn.Module):
    """Stages in a row; the maps are what the last `len(channels)` of them give."""

    def __init__(self, stages: list[nn.Module], channels: tuple[int, ...], stride: int):
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.channels, self.stride = channels, stride
        self.checkpointing = False

    def keep_first_map(self) -> None:
        """Drop the stages that only later maps need."""
        self.stages = self.stages[: len(self.stages) - len(self.channels) + 1]
        self.channels = self.channels[:1]

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Give the maps of canvases (b, 3, h, w)."""
        maps = []
        first, *others = self.stages
        with torch.autocast(x.device.type, enabled=False):
            x = first(x.to(next(first.parameters()).dtype))
        for stage in others:
            if self.checkpointing and self.training:
                # running statistics are moved twice by the same batch: once more on the way back
                x = checkpoint(stage, x, use_reentrant=False)
            else:
                x = stage(x)
            maps.append(x)
        return tuple(maps[-len(self.channels) :])


def build(settings: ModelSettings, norm: Norm) -> Backbone:
    """Make the backbone of a recipe, with its weights."""
    if settings.backbone == "small":
        if settings.weights not in ("", "DEFAULT"):
            raise Refusal(f"model.weights: {settings.weights} is no checkpoint of a training")
        backbone = small(settings.width, norm)
    elif settings.backbone == "mobilenet_v2":
        backbone = mobilenet(settings, norm)
    else:
        backbone = resnet(settings, norm)
    backbone.checkpointing = settings.checkpointing
    return backbone


def resnet(settings: ModelSettings, norm: Norm) -> Backbone:
    """Make a ResNet of torchvision whose conv5 is dilated, and deformable if asked for."""
    net = _with_weights(RESNETS[settings.backbone], settings.weights, norm)
    for block in net.layer4:
        for name, layer in block.named_modules():
            if isinstance(layer, nn.Conv2d):
                layer.stride = (1, 1)
                if layer.kernel_size == (3, 3):
                    layer.dilation = layer.padding = (2, 2)
                    if settings.deformable and name == "conv2":
                        block.conv2 = DeformableConvolution(layer)
    stem = nn.Sequential(net.bn1, net.relu, net.maxpool, net.layer1)
    middle = net.layer4[0].conv1.in_channels
    last = net.fc.in_features
    stages = [net.conv1, stem, net.layer2, net.layer3, net.layer4]
    return Backbone(stages, (middle, last), stride=16)


def mobilenet(settings: ModelSettings, norm: Norm) -> Backbone:
    """Make MobileNetV2 as it is; everything stands on its last map, of stride 32."""
    net = _with_weights(torchvision.models.mobilenet_v2, settings.weights, norm)
    first, *others = net.features
    cuts = (0, 3, 6, 13, len(others))
    parts = [nn.Sequential(*others[a:b]) for a, b in itertools.pairwise(cuts)]
    return Backbone([first, *parts], (net.last_channel,), stride=32)


def small(width: int, norm: Norm) -> Backbone:
    """Make a net for two CPU cores: plain residual blocks, no weights needed to begin with."""
    w1, w2, w3, w4 = width, 2 * width, 4 * width, 8 * width
    stages = [
        nn.Conv2d(3, w1, 3, stride=2, padding=1, bias=False),
        nn.Sequential(norm(w1), nn.ReLU(inplace=True), SmallBlock(w1, w2, norm, stride=2)),
        nn.Sequential(SmallBlock(w2, w3, norm, stride=2), SmallBlock(w3, w3, norm)),
        nn.Sequential(SmallBlock(w3, w4, norm, stride=2), SmallBlock(w4, w4, norm)),
        nn.Sequential(SmallBlock(w4, w4, norm, dilation=2)),
    ]
    return Backbone(stages, (w4, w4), stride=16)


class SmallBlock(nn.Module):
    """Two 3x3 convolutions and a way past them."""

    def __init__(self, inputs: int, outputs: int, norm: Norm, stride: int = 1, dilation: int = 1):
        super().__init__()
        around = {"padding": dilation, "dilation": dilation, "bias": False}
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, **around), norm(outputs), nn.ReLU(inplace=True),
            nn.Conv2d(outputs, outputs, 3, **around), norm(outputs),
        )  # fmt: skip
        past: list[nn.Module] = []
        if stride > 1:  # oneDNN crashes on a strided 1x1 convolution of 8 channels; means lose less
            past.append(nn.AvgPool2d(stride, ceil_mode=True))
        if inputs != outputs:
            past += [nn.Conv2d(inputs, outputs, 1, bias=False), norm(outputs)]
        self.past = nn.Sequential(*past)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(b, inputs, h, w) -> (b, outputs, h / stride, w / stride)."""
        return (self.body(x) + self.past(x)).relu()


class DeformableConvolution(nn.Module):
    """A 3x3 convolution whose taps move by learned offsets; it begins as the plain one."""

    def __init__(self, plain: nn.Conv2d):
        super().__init__()
        self.weight, self.stride = plain.weight, plain.stride
        self.padding, self.dilation = plain.padding, plain.dilation
        self.offset = nn.Conv2d(
            plain.in_channels, 18, 3, plain.stride, plain.padding, plain.dilation
        )
        nn.init.zeros_(self.offset.weight)
        nn.init.zeros_(self.offset.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Convolve (b, C, h, w)."""
        geometry = self.stride, self.padding, self.dilation
        offset, wide = self.offset(x), self.weight.dtype
        with torch.autocast(x.device.type, enabled=False):  # torchvision has no kernel for bf16
            y = deform_conv2d(x.to(wide), offset.to(wide), self.weight, None, *geometry)
        return y.to(x.dtype)


def _with_weights(build_net: Callable, weights: str, norm: Norm) -> nn.Module:
    """Build a torchvision net with weights from a file or, by name, from torchvision."""
    if not weights:
        return build_net(weights=None, norm_layer=norm)
    state = _weights_file(weights) if "." in weights or "/" in weights else None
    if state is None:
        return _published(build_net, weights, norm)
    net, heads = build_net(weights=None, norm_layer=norm), ("fc.", "classifier.")
    try:  # without its head, which is not used and may be of other classes
        body = {key: value for key, value in state.items() if not key.startswith(heads)}
        missing, unknown = net.load_state_dict(body, strict=False)
    except (AttributeError, RuntimeError, TypeError) as error:
        last = str(error).splitlines()[-1].strip()  # of many lines, each on one parameter
        raise Refusal(
            f"model.weights: {weights} does not fit {build_net.__name__}: {last}"
        ) from error
    lost = [key for key in (*missing, *unknown) if not key.startswith(heads)
            and not key.endswith("num_batches_tracked")]  # fmt: skip
    if lost:
        raise Refusal(f"model.weights: {weights} does not fit {build_net.__name__}: {lost[0]}")
    return net


def _published(build_net: Callable, weights: str, norm: Norm) -> nn.Module:
    """Build a net with weights that torchvision names, and fetches unless they are there."""
    known = [entry.name for entry in torchvision.models.get_model_weights(build_net)]
    if weights not in ("DEFAULT", *known):
        raise Refusal(f"model.weights: {weights} is none of DEFAULT, {', '.join(known)}")
    try:
        return build_net(weights=weights, norm_layer=norm)
    except OSError as error:
        raise Refusal(
            f"model.weights: {weights} of {build_net.__name__} can't be fetched ({error}); give a "
            f'file, or "" for random ones'
        ) from error


def _weights_file(path: str) -> dict:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise Refusal(f"model.weights: {path}: no such file") from error
    except Exception as error:  # torch raises many kinds for what is not a file of weights
        raise Refusal(f"model.weights: {path} is not a file of weights: {error}") from error
