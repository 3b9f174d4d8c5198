"""On the device: regions of pictures -> canvases, resized and normalised as in training.

b regions, H x W picture or window pixels, h x w canvas. A window is (x, y, width, height) in px of
a level's canvas, and the scale is canvas px per picture px, per axis.
"""

from dataclasses import dataclass

import torch

from train.stream import DRAWN, Batch
from train.warp import AS_IT_IS, warp

BAND = 1 << 22  # picture px that are drawn at once: a shrunk picture of 100 megapixels is many


@dataclass(frozen=True)
class Region:
    """A window of one picture at one level."""

    picture: int  # place among the pictures in flight
    window: tuple[int, int, int, int]  # canvas px
    scale: tuple[float, float]
    beyond: tuple[int, int] = (0, 0)  # canvas px of padding that it wants to the right and below


def draw(
    pictures: list[torch.Tensor], regions: list[Region], shape: tuple[int, int], dtype: torch.dtype
) -> torch.Tensor:
    """Draw regions of pictures (H, W, 3) uint8, each in the corner of a canvas: (b, 3, h, w)."""
    if all(_taken(pictures[r.picture], r)[1].numel() <= 3 * BAND for r in regions):
        return _drawn([_taken(pictures[r.picture], r) for r in regions], shape, dtype)
    parts = [_in_bands(pictures[r.picture], r, shape, dtype) for r in regions]
    return torch.cat(parts).contiguous(memory_format=torch.channels_last)


def _in_bands(
    picture: torch.Tensor, region: Region, shape: tuple[int, int], dtype: torch.dtype
) -> torch.Tensor:
    """Draw one region band by band: (1, 3, h, w)."""
    x, y, width, height = region.window
    pixels = _taken(picture, region)[1].numel() / 3
    rows = max(1, int(height * BAND / pixels))  # of the canvas, for a band
    bands = []
    for top in range(0, shape[0], rows):
        tall = min(rows, shape[0] - top)
        window = (x, y + top, width, min(tall, height - top))
        if window[3] > 0:
            part = Region(0, window, region.scale)
            bands.append(_drawn([_taken(picture, part)], (tall, shape[1]), dtype))
        else:  # below the picture
            bands.append(bands[-1].new_zeros(1, 3, tall, shape[1]))
    return torch.cat(bands, 2)


def _taken(picture: torch.Tensor, region: Region) -> tuple[Region, torch.Tensor, tuple[int, int]]:
    """Take what a region is made from: itself, its picture pixels, and where they begin."""
    limits = picture.shape[1], picture.shape[0]
    spans = []
    for axis in (0, 1):
        start, length, scale = region.window[axis], region.window[axis + 2], region.scale[axis]
        more = max(1.0, 1 / scale) + 1  # the filter's reach
        first = max(int(start / scale - more), 0)
        last = min(int((start + length) / scale + more) + 1, limits[axis])
        spans.append((min(first, last - 1), last))
    (x1, x2), (y1, y2) = spans
    return region, picture[y1:y2, x1:x2], (x1, y1)


def _drawn(
    taken: list[tuple[Region, torch.Tensor, tuple[int, int]]],
    shape: tuple[int, int],
    dtype: torch.dtype,
) -> torch.Tensor:
    """Draw pixels as a batch of stored chips, as the trainer does: (b, 3, h, w)."""
    b, device = len(taken), taken[0][1].device
    sizes = tuple((pixels.shape[1], pixels.shape[0]) for _, pixels, _ in taken)
    if b == 1:
        pixels = taken[0][1][None]
    else:
        tall, wide = max(h for _, h in sizes), max(w for w, _ in sizes)
        pixels = torch.zeros((b, tall, wide, 3), dtype=torch.uint8, device=device)
        for place, (_, part, _) in enumerate(taken):
            pixels[place, : part.shape[0], : part.shape[1]] = part
    scale = [region.scale for region, _, _ in taken]
    offset = [
        [region.scale[k] * start[k] - region.window[k] for k in (0, 1)]
        for region, _, start in taken
    ]

    def on_device(values: list, kind: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.tensor(values, dtype=kind).to(device, non_blocking=True)

    batch = Batch(
        rows=on_device([0] * b, torch.int64),
        pixels=pixels,
        stored=on_device(list(sizes)),
        scale=on_device(scale),
        offset=on_device(offset),
        window=on_device([region.window[2:] for region, _, _ in taken]),
        boxes=torch.zeros((b, 0, 4), device=device),
        labels=torch.zeros((b, 0), dtype=torch.int64, device=device),
        valid=torch.zeros((b, 0), dtype=torch.bool, device=device),
        crowd=torch.zeros((b, 0), dtype=torch.bool, device=device),
        cut=torch.zeros((b, 0), dtype=torch.bool, device=device),
        ranges=torch.zeros((b, 2), device=device),
        draws=torch.zeros((b, DRAWN), device=device),
        sizes=sizes,
    )
    return warp(batch, shape, AS_IT_IS, dtype)[0]
