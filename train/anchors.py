"""Anchors, and boxes as offsets from them; everything (.., 4) float32 xyxy in canvas px."""

import math

import torch

from train.constants import kept

LARGEST = math.log(1000 / 16)  # of a predicted log scale, so that exp stays finite


@kept
def grid(
    rows: int,
    columns: int,
    stride: int,
    sizes: tuple[float, ...],
    shapes: tuple[float, ...],
    device: torch.device | str = "cpu",
) -> torch.Tensor:
    """Lay anchors of all sizes and shapes (height over width) about each cell's centre.

    Returns (rows * columns * len(sizes) * len(shapes), 4), cell by cell.
    """
    size = torch.tensor(sizes, device=device)[:, None]
    root = torch.tensor(shapes, device=device).sqrt()[None]
    width, height = (size / root).flatten(), (size * root).flatten()
    around = torch.stack([-width, -height, width, height], 1) / 2  # (sizes * shapes, 4)
    y, x = torch.meshgrid(
        (torch.arange(rows, device=device) + 0.5) * stride,
        (torch.arange(columns, device=device) + 0.5) * stride,
        indexing="ij",
    )
    centres = torch.stack([x, y, x, y], -1).reshape(-1, 1, 4)
    return (centres + around).reshape(-1, 4)


def encode(
    boxes: torch.Tensor, references: torch.Tensor, weights: tuple[float, float]
) -> torch.Tensor:
    """Give boxes as offsets from references: shift over size, and log of the ratio of sizes."""
    centre, size = _centre_size(boxes)
    from_centre, from_size = _centre_size(references)
    from_size = from_size.clamp(min=1e-3)  # a padded box has none
    shift = (centre - from_centre) / from_size
    return torch.cat(
        [shift * weights[0], (size.clamp(min=1e-3) / from_size).log() * weights[1]], -1
    )


def decode(
    offsets: torch.Tensor, references: torch.Tensor, weights: tuple[float, float]
) -> torch.Tensor:
    """Undo `encode`; sizes grow by a bounded factor."""
    from_centre, from_size = _centre_size(references)
    centre = from_centre + offsets[..., :2] / weights[0] * from_size
    half = from_size * (offsets[..., 2:] / weights[1]).clamp(max=LARGEST).exp() / 2
    return torch.cat([centre - half, centre + half], -1)


def _centre_size(boxes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    low, high = boxes[..., :2], boxes[..., 2:]
    return (low + high) / 2, high - low
