"""Normalisation worked into the convolutions before it: at inference both are linear."""

import contextlib

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torchvision.ops import FrozenBatchNorm2d

NORMS = nn.BatchNorm2d, FrozenBatchNorm2d


def fold(network: nn.Module, canvas: torch.Tensor) -> None:
    """Fold each norm that takes what a convolution gives, in place; `canvas` is any fit input.

    Who feeds whom is seen from a pass over the canvas: it doesn't show in how modules are nested.
    As in all backbones here, each runs once, and a norm is the only one to take its convolution's
    output. The norm of a deformable convolution stays.
    """
    outputs, pairs = [], []

    def from_convolution(module: nn.Module, _inputs: tuple, output: torch.Tensor) -> None:
        outputs.append((output, module))

    def into_norm(module: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        pairs.extend((conv, module) for output, conv in outputs if output is inputs[0])

    with torch.no_grad():
        with contextlib.ExitStack() as hooks:
            for module in network.modules():
                if isinstance(module, nn.Conv2d):
                    hooks.enter_context(module.register_forward_hook(from_convolution))
                elif isinstance(module, NORMS):
                    hooks.enter_context(module.register_forward_pre_hook(into_norm))
            network.eval()(canvas)
        for conv, norm in pairs:
            conv.weight, conv.bias = fuse_conv_bn_weights(
                conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps,
                norm.weight, norm.bias,
            )  # fmt: skip
    folded = {id(norm) for _, norm in pairs}
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if id(child) in folded:
                setattr(parent, name, nn.Identity())
