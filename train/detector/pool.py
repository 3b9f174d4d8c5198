"""RoIAlign: the mean of bilinear samples in each of size x size cells of a RoI.

b canvases, P RoIs of each, C channels of a map (b, C, h, w); the result is (b * P, size, size, C).
Bilinear sampling on a grid is separable, so on the CPU it is two matrix products, whose gradient
is two more: torchvision's kernel takes one thread there, and 4 times as long as the backbone's
largest layer. On CUDA torchvision's kernel needs far less memory.
"""

import torch
from torchvision.ops import roi_align


def pool(
    features: torch.Tensor, rois: torch.Tensor, size: int, samples: int, stride: int
) -> torch.Tensor:
    """Pool RoIs (b, P, 4), in canvas px, from a map."""
    if features.device.type == "cpu":
        return pool_by_products(features, rois, size, samples, stride)
    b, p = rois.shape[:2]
    of = torch.arange(b, device=rois.device, dtype=features.dtype).repeat_interleave(p)
    flat = torch.cat([of[:, None], rois.reshape(-1, 4).to(features.dtype)], 1)
    pooled = roi_align(features, flat, size, 1 / stride, samples, aligned=True)
    return pooled.permute(0, 2, 3, 1)


def pool_by_products(
    features: torch.Tensor, rois: torch.Tensor, size: int, samples: int, stride: int
) -> torch.Tensor:
    """Pool as matrix products: first along y for all RoIs of a canvas, then along x."""
    b, channels, h, w = features.shape
    cells = (rois / stride).to(features.dtype)
    down = _weights(cells[..., 1], cells[..., 3], h, size, samples)  # (b, P, size, h)
    across = _weights(cells[..., 0], cells[..., 2], w, size, samples)  # (b, P, size, w)
    lines = features.permute(0, 2, 3, 1).reshape(b, h, w * channels)
    tall = down.flatten(1, 2) @ lines  # (b, P * size, w * C)
    tall = tall.view(-1, size, w, channels)  # (b * P, size, w, C)
    return across.flatten(0, 1)[:, None] @ tall  # (b * P, size, size, C)


def _weights(
    low: torch.Tensor, high: torch.Tensor, length: int, size: int, samples: int
) -> torch.Tensor:
    """Give what each place of an axis adds to each cell of each RoI: (b, P, size, length)."""
    count = size * samples
    parts = (torch.arange(count, device=low.device, dtype=low.dtype) + 0.5) / count
    at = low[..., None] + (high - low)[..., None] * parts - 0.5  # (b, P, count)
    at = at.clamp(0, length - 1)
    places = torch.arange(length, device=low.device, dtype=low.dtype)
    weights = (1 - (at[..., None] - places).abs()).clamp(min=0)
    return weights.unflatten(2, (size, samples)).mean(3)
