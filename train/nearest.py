"""How all anchors lie to all boxes of a batch: what `assign.rpn_labels` asks of their overlaps.

b canvases, A anchors, G boxes of a canvas (padded); boxes (.., 4) float32 xyxy, half-open.
On the CPU a Numba kernel passes over padding, which is most of a batch whose fullest canvas holds
many boxes; on other devices all pairs are compared, in parts that bound the memory.
"""

import itertools
from dataclasses import dataclass

import numpy as np
import torch
from numba import njit, prange

BOXES_AT_ONCE = 8  # 900 boxes don't fill the memory
NEAR = 1e-4  # relative: overlaps that differ by less count as equal, on any device


@dataclass(frozen=True)
class Nearest:
    """What anchors overlap, (b, A) each."""

    valid: torch.Tensor  # largest IoU with a valid box
    place: torch.Tensor  # int64, that box; 0 where none overlaps
    closest: torch.Tensor  # bool: no other anchor overlaps some valid box more
    invalid: torch.Tensor  # largest IoU with an invalid box
    crowd: torch.Tensor  # largest share of the anchor in a crowd


def nearest(
    anchors: torch.Tensor,
    boxes: torch.Tensor,
    valid: torch.Tensor,
    invalid: torch.Tensor,
    crowd: torch.Tensor,
) -> Nearest:
    """Compare anchors (A, 4) with boxes (b, G, 4), each of which is of one kind or of none."""
    if boxes.device.type != "cpu":
        return nearest_by_parts(anchors, boxes, valid, invalid, crowd)
    b, count = len(boxes), len(anchors)
    kinds = valid.to(torch.int8) + 2 * invalid.to(torch.int8) + 3 * crowd.to(torch.int8)
    most = np.zeros((3, b, count), np.float32)
    place = np.zeros((b, count), np.int64)
    closest = np.zeros((b, count), np.bool_)
    _nearest(
        np.ascontiguousarray(anchors.float().numpy().T),
        boxes.float().numpy(),
        kinds.numpy(),
        np.float32(1 - NEAR),
        most,
        place,
        closest,
    )
    of_kind = torch.from_numpy(most)
    return Nearest(
        of_kind[0], torch.from_numpy(place), torch.from_numpy(closest), of_kind[1], of_kind[2]
    )


def nearest_by_parts(
    anchors: torch.Tensor,
    boxes: torch.Tensor,
    valid: torch.Tensor,
    invalid: torch.Tensor,
    crowd: torch.Tensor,
) -> Nearest:
    """Do the same with whole tensors, a few boxes of each canvas at a time."""
    best = anchors.new_zeros(len(boxes), len(anchors))
    most_invalid, most_crowd = best, best
    place = torch.zeros_like(best, dtype=torch.int64)
    closest = torch.zeros_like(best, dtype=torch.bool)
    edges = [*range(0, boxes.shape[1], BOXES_AT_ONCE), boxes.shape[1]]
    for part in itertools.starmap(slice, itertools.pairwise(edges)):
        iou, share = overlaps(boxes[:, part], anchors[None])  # (b, part, A)
        of_valid = iou * valid[:, part, None]
        top, at = of_valid.max(1)
        place = torch.where(top > best, at + part.start, place)
        best = torch.maximum(best, top)
        most = of_valid.amax(2, keepdim=True).clamp(min=1e-9)  # (b, part, 1)
        closest |= (of_valid - most * (1 - NEAR)).amax(1) >= 0
        most_invalid = torch.maximum(most_invalid, (iou * invalid[:, part, None]).amax(1))
        most_crowd = torch.maximum(most_crowd, (share * crowd[:, part, None]).amax(1))
    return Nearest(best, place, closest, most_invalid, most_crowd)


def overlaps(boxes: torch.Tensor, others: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Give IoU of (.., M, 4) with (.., N, 4), and the share of the others inside: (.., M, N)."""
    ax1, ay1, ax2, ay2 = boxes[..., None].unbind(-2)  # (.., M, 1): one contiguous axis in the end
    bx1, by1, bx2, by2 = others.mT[..., None, :].unbind(-3)  # (.., 1, N)
    width = (torch.minimum(ax2, bx2) - torch.maximum(ax1, bx1)).clamp_(min=0)
    height = (torch.minimum(ay2, by2) - torch.maximum(ay1, by1)).clamp_(min=0)
    shared = width * height
    own, theirs = (ax2 - ax1) * (ay2 - ay1), (bx2 - bx1) * (by2 - by1)
    return shared / (own + theirs - shared).clamp_(min=1e-9), shared / theirs.clamp(min=1e-9)


@njit(cache=True, nogil=True, parallel=True)
def _nearest(anchors, boxes, kinds, almost, most, place, closest):
    """`anchors` (4, A); `kinds` 0 none, 1 valid, 2 invalid, 3 crowd; fills the last three."""
    smallest, zero = np.float32(1e-9), np.float32(0)
    for b in prange(len(boxes)):
        row = np.empty(anchors.shape[1], np.float32)  # overlaps with one box
        for g in range(boxes.shape[1]):
            kind = kinds[b, g]
            if kind == 0:
                continue
            x1, y1, x2, y2 = boxes[b, g, 0], boxes[b, g, 1], boxes[b, g, 2], boxes[b, g, 3]
            # a crowd is asked for the anchor's share alone
            own = (x2 - x1) * (y2 - y1) if kind < 3 else zero
            of_kind = most[kind - 1, b]
            top = smallest
            for a in range(len(row)):
                width = max(min(anchors[2, a], x2) - max(anchors[0, a], x1), zero)
                height = max(min(anchors[3, a], y2) - max(anchors[1, a], y1), zero)
                shared = width * height
                area = (anchors[2, a] - anchors[0, a]) * (anchors[3, a] - anchors[1, a])
                whole = own + area - (shared if kind < 3 else zero)
                row[a] = shared / max(whole, smallest)
                top = max(top, row[a])
            if kind > 1:
                for a in range(len(row)):
                    of_kind[a] = max(of_kind[a], row[a])
                continue
            for a in range(len(row)):
                if row[a] > of_kind[a]:
                    of_kind[a] = row[a]
                    place[b, a] = g
                closest[b, a] |= row[a] >= top * almost
