"""Normalisation layers by recipe: frozen, by process, or over processes (MegDet's algorithm 1)."""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from chipgen.errors import Refusal

Norm = Callable[[int], nn.Module]


def choose(kind: str, group: dist.ProcessGroup | None, device: torch.device) -> Norm:
    """Give the layer for a kind of the recipe; `group` are the processes that share statistics."""
    if kind == "frozen":
        return FrozenBatchNorm2d
    if kind == "batch" or group is None or dist.get_world_size(group) == 1:
        return nn.BatchNorm2d
    if device.type == "cuda":  # fused kernels; it refuses other devices
        return lambda channels: nn.SyncBatchNorm(channels, process_group=group)
    return lambda channels: CrossBatchNorm(channels, group)


class CrossBatchNorm(nn.BatchNorm2d):
    """Batch normalisation over the processes of a group, on any device."""

    def __init__(self, channels: int, group: dist.ProcessGroup):
        super().__init__(channels)
        self.group = group

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise (b, C, h, w) by the statistics of all processes; b may differ between them."""
        if not self.training:
            return super().forward(x)
        y, mean, variance, count = _CrossNorm.apply(x, self.weight, self.bias, self.eps, self.group)
        with torch.no_grad():
            self.num_batches_tracked += 1
            unbiased = variance * (count / (count - 1))
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
            self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum)
        return y


class _CrossNorm(torch.autograd.Function):
    """Algorithm 1, and its gradient, whose two means are taken over all processes as well."""

    @staticmethod
    def forward(ctx, x, weight, bias, eps, group):
        wide = x.to(torch.promote_types(x.dtype, weight.dtype))
        # (C + 1,): the sums of step 1 to 5, and how many pixels there are
        sums = torch.cat([wide.sum((0, 2, 3)), wide.new_tensor([x.numel() / x.shape[1]])])
        dist.all_reduce(sums, group=group)
        count = sums[-1]
        mean = sums[:-1] / count
        centred = wide - mean[:, None, None]
        variance = centred.square().sum((0, 2, 3))  # step 6 to 10
        dist.all_reduce(variance, group=group)
        variance = variance / count
        inverse = (variance + eps).rsqrt()
        ctx.save_for_backward(x, weight, mean, inverse, count)
        ctx.group = group
        y = centred * (inverse * weight)[:, None, None] + bias[:, None, None]
        ctx.mark_non_differentiable(mean, variance, count)
        return y.to(x.dtype), mean, variance, count

    @staticmethod
    def backward(ctx, gradient, *_):
        x, weight, mean, inverse, count = ctx.saved_tensors
        gradient = gradient.to(weight.dtype)
        unit = (x.to(weight.dtype) - mean[:, None, None]) * inverse[:, None, None]
        for_bias, for_weight = gradient.sum((0, 2, 3)), (gradient * unit).sum((0, 2, 3))
        sums = torch.stack([for_bias, for_weight])
        dist.all_reduce(sums, group=ctx.group)
        means = (sums / count)[..., None, None]
        scale = (inverse * weight)[:, None, None]
        for_x = (gradient - means[0] - unit * means[1]) * scale
        # DDP averages the gradients of weight and bias itself, so theirs are of this process alone
        return for_x.to(x.dtype), for_weight, for_bias, None, None


def groups_of(processes: int) -> dist.ProcessGroup | None:
    """Make the group of this process among groups of so many in a row; None: nobody to share."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return None
    world = dist.get_world_size()
    if processes in (0, world):
        return dist.group.WORLD
    if world % processes:
        raise Refusal(
            f"model.norm_processes = {processes} does not divide the {world} processes; choose a "
            f"divisor, or 0 for all"
        )
    ours, _ = dist.new_subgroups(processes)
    return ours
