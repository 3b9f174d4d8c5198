"""Greedy non-maximum suppression of all canvases of a batch at once.

b canvases, n boxes of each, best first. On the CPU a Numba kernel goes from box to box; on other
devices all pairs are compared at once and the answer is found by repetition, without asking the
device anything in between.
"""

import numpy as np
import torch
from numba import njit, prange

PAIRS = 1 << 26  # of boxes that are compared at once: some matrices of 256 MB
ROUNDS = 24  # of the repetition: more than any chain of boxes that was seen to matter


def suppress(boxes: torch.Tensor, there: torch.Tensor, threshold: float, most: int) -> torch.Tensor:
    """Say which boxes (b, n, 4), best first, stay: (b, n) bool; at least the first `most` of them.

    A box goes when it overlaps a better one that stays by more than the threshold (IoU).
    """
    if boxes.device.type != "cpu":
        return suppress_by_rounds(boxes, there, threshold)
    kept = np.zeros(there.shape, np.bool_)
    _suppress(boxes.float().numpy(), there.numpy(), np.float32(threshold), most, kept)
    return torch.from_numpy(kept)


def suppress_by_rounds(boxes: torch.Tensor, there: torch.Tensor, threshold: float) -> torch.Tensor:
    """Repeat "stay unless a better one that stays overlaps" until nothing changes any more.

    Round r settles every box at the end of a chain of up to r boxes, each the victim of the one
    before. The number of rounds is fixed, for asking whether all is settled would stop the device.
    """
    at_once = max(1, PAIRS // max(1, boxes.shape[1] ** 2))  # canvases
    parts = zip(boxes.split(at_once), there.split(at_once), strict=True)
    with torch.autocast(boxes.device.type, enabled=False):  # it would convert in each round
        return torch.cat([_by_rounds(some, here, threshold) for some, here in parts])


def _by_rounds(boxes: torch.Tensor, there: torch.Tensor, threshold: float) -> torch.Tensor:
    x1, y1, x2, y2 = boxes.unbind(-1)
    areas = (x2 - x1) * (y2 - y1)
    shared = _overlaps(x1, x2).mul_(_overlaps(y1, y2))
    hit = shared > threshold * (areas[:, :, None] + areas[:, None] - shared)
    # of numbers that are 0 or 1, any kind will do to ask whether their sum is 0
    kind = torch.float16 if boxes.device.type == "cuda" else boxes.dtype
    # (b, n, n): [i, j] says that j is better than i and overlaps it
    hit = (hit.tril(-1) & there[:, None]).to(kind)
    kept = there
    for _ in range(ROUNDS):
        kept = there & ((hit @ kept.to(kind)[..., None])[..., 0] == 0)
    return kept


def _overlaps(low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """Give the length that each two of the spans (b, n) share, (b, n, n)."""
    shared = torch.minimum(high[:, :, None], high[:, None])
    return shared.sub_(torch.maximum(low[:, :, None], low[:, None])).clamp_(min=0)


@njit(cache=True, nogil=True, parallel=True)
def _suppress(boxes, there, threshold, most, kept):
    for b in prange(len(boxes)):
        staying = np.empty((min(most, boxes.shape[1]), 5), np.float32)
        count = 0
        for i in range(boxes.shape[1]):
            if count == len(staying):
                break
            if not there[b, i]:
                continue
            x1, y1, x2, y2 = boxes[b, i, 0], boxes[b, i, 1], boxes[b, i, 2], boxes[b, i, 3]
            area = (x2 - x1) * (y2 - y1)
            free = True
            for k in range(count):
                width = min(x2, staying[k, 2]) - max(x1, staying[k, 0])
                height = min(y2, staying[k, 3]) - max(y1, staying[k, 1])
                if width <= 0 or height <= 0:
                    continue
                shared = width * height
                if shared > threshold * (area + staying[k, 4] - shared):
                    free = False
                    break
            if free:
                staying[count, 0], staying[count, 1] = x1, y1
                staying[count, 2], staying[count, 3] = x2, y2
                staying[count, 4] = area
                kept[b, i] = True
                count += 1
