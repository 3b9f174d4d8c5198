"""On the CPU: stored pixels -> canvases by a kernel that touches each canvas pixel's few taps.

b chips, H x W stored pixels (padded), h x w canvas. Other devices take a dense matrix along each
axis instead; here most of its zeros would only cost time.
"""

import numpy as np
import torch
from numba import njit, prange

ROWS = 16  # of a canvas that one task draws


def by_taps(
    pixels: torch.Tensor,
    stored: torch.Tensor,
    scale: torch.Tensor,
    offset: torch.Tensor,
    content: torch.Tensor,
    flips: torch.Tensor,
    canvas: tuple[int, int],
    mean: tuple[float, float, float],
    deviation: tuple[float, float, float],
) -> torch.Tensor:
    """Resize, flip, normalise and pad chips (b, H, W, 3), uint8 or float32: (b, 3, h, w) float32.

    `stored`, `scale`, `offset` and `content` (b, 2) along x and y, as in `Batch`; `flips` (b,).
    """
    b, height, width = pixels.shape[:3]
    limits = torch.tensor([width, height])
    if not (len(stored) == b and (stored >= 1).all() and (stored <= limits).all()):
        raise ValueError(f"chips of {stored.tolist()} px do not lie in {tuple(pixels.shape)}")
    drawn = torch.empty((b, 3, *canvas), memory_format=torch.channels_last)
    most = int(2 * (1 / scale).clamp(min=1).max()) + 2
    starts, counts = np.zeros((2, b, canvas[1]), np.int64)
    shares = np.zeros((b, canvas[1], most), np.float32)
    numbers = [values.float().numpy() for values in (stored, scale, offset, content)]
    mirrored = flips.numpy()
    _taps_along_x(*numbers, mirrored, starts, counts, shares)
    _draw(
        pixels.flatten(2).numpy(),
        *numbers,
        starts,
        counts,
        shares,
        np.tile(np.array(mean, np.float32), width),
        np.tile(1 / np.array(deviation, np.float32), width),
        drawn.permute(0, 2, 3, 1).numpy(),
    )
    return drawn


@njit(cache=True, nogil=True, inline="always")
def _taps(place, stored, scale, offset, content, mirror):
    """Give the first stored pixel that a canvas pixel is made of, how many, and the sum of weights.

    Bilinear when enlarging, triangle-filtered when shrinking, the edge repeated.
    """
    x = place + 0.5
    if mirror:
        x = content - x
    centre = min(max((x - offset) / scale, 0.5), stored - 0.5)  # in stored pixels
    support = max(1 / scale, 1.0)
    first = max(int(np.ceil(centre - support - 0.5)), 0)
    last = min(int(np.floor(centre + support - 0.5)), int(stored) - 1)
    total = 0.0
    for tap in range(first, last + 1):
        total += max(1 - abs(centre - tap - 0.5) / support, 0.0)
    return centre, support, first, last + 1 - first, total


@njit(cache=True, nogil=True)
def _taps_along_x(stored, scale, offset, content, flips, starts, counts, shares):
    """Fill starts and counts (b, w), and shares (b, w, most)."""
    for i in range(len(starts)):
        for x in range(starts.shape[1]):
            if x + 0.5 >= content[i, 0]:
                break
            centre, support, first, count, total = _taps(
                x, stored[i, 0], scale[i, 0], offset[i, 0], content[i, 0], flips[i]
            )
            starts[i, x], counts[i, x] = first, count
            for k in range(count):
                shares[i, x, k] = max(1 - abs(centre - first - k - 0.5) / support, 0.0) / total


@njit(cache=True, nogil=True, parallel=True)
def _draw(pixels, stored, scale, offset, content, starts, counts, shares, mean, by, drawn):
    """Fill drawn (b, h, w, 3) from pixels (b, H, W * 3): a line of stored pixels, then along it.

    mean, by (W * 3,): what is taken from a line, and what it is multiplied by then.
    """
    b, height, width, _ = drawn.shape
    parts = -(-height // ROWS)
    for task in prange(b * parts):
        i, part = task // parts, task % parts
        filled = min(max(int(np.ceil(content[i, 0] - 0.5)), 0), width)
        across = int(stored[i, 0]) * 3
        line = np.empty(across, np.float32)
        for y in range(part * ROWS, min(part * ROWS + ROWS, height)):
            row = drawn[i, y]
            if y + 0.5 >= content[i, 1]:
                row[:] = 0
                continue
            centre, support, first, count, total = _taps(
                y, stored[i, 1], scale[i, 1], offset[i, 1], content[i, 1], False
            )
            for k in range(count):
                share = np.float32(max(1 - abs(centre - first - k - 0.5) / support, 0.0) / total)
                taken = pixels[i, first + k]
                if k == 0:
                    for c in range(across):
                        line[c] = share * taken[c]
                else:
                    for c in range(across):
                        line[c] += share * taken[c]
            for c in range(across):  # shares add up to 1, so it can be done before them
                line[c] = (line[c] - mean[c]) * by[c]
            for x in range(filled):
                at = starts[i, x] * 3
                if counts[i, x] == 2:  # as nearly always where a picture is enlarged
                    one, other = shares[i, x, 0], shares[i, x, 1]
                    row[x, 0] = one * line[at] + other * line[at + 3]
                    row[x, 1] = one * line[at + 1] + other * line[at + 4]
                    row[x, 2] = one * line[at + 2] + other * line[at + 5]
                    continue
                red = green = blue = np.float32(0)
                for k in range(counts[i, x]):
                    share = shares[i, x, k]
                    red += share * line[at]
                    green += share * line[at + 1]
                    blue += share * line[at + 2]
                    at += 3
                row[x, 0], row[x, 1], row[x, 2] = red, green, blue
            row[filled:] = 0
