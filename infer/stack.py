"""Focus stacking: which detections of a chip count, and suppression among those of all levels.

Legend: N detections, C classes among them, n detections of one class; boxes (N, 4) float32 xyxy,
half-open.
"""

import math

import numpy as np
from numba import njit, prange

METHODS = ("gaussian", "linear", "hard")
GAUSSIAN, LINEAR, HARD = range(3)
BLOCK = 64  # detections that are compared in one go, by vector instructions, before looking closer


def inside(
    boxes: np.ndarray,
    window: tuple[int, int, int, int],
    canvas: tuple[int, int],
    border: float,
) -> np.ndarray:
    """Say which boxes (N, 4), canvas px, keep clear of the inner borders of their chip: (N,) bool.

    `window` (x, y, width, height) is the chip's place on the canvas (width, height); an inner
    border is one that isn't the canvas's own. A box must be more than `border` px away from it.
    """
    # Each side is judged alone, and with that the two corner cases of section 3.4.3: where a chip
    # shares one border with the picture, a detection there still has to be enclosed at the other
    # side; where it shares both, that axis has no inner border and the detection stays.
    boxes = np.asarray(boxes, np.float64)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"boxes of shape {boxes.shape} must be (N, 4)")
    kept = np.ones(len(boxes), np.bool_)
    for axis in range(2):
        low, high = window[axis], window[axis] + window[2 + axis]
        if low > 0:
            kept &= boxes[:, axis] > low + border
        if high < canvas[axis]:  # a chip may well reach over the canvas: it is padded there
            kept &= boxes[:, 2 + axis] < high - border
    return kept


def suppress(
    boxes: np.ndarray,
    scores: np.ndarray,
    labels: np.ndarray,
    method: str,
    overlap: float,
    sigma: float,
    min_score: float,
    most: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Let better detections of a class lower the scores of those they overlap, or remove them.

    boxes (N, 4), scores (N,) float32, labels (N,) integers. A class gives its best one, which
    multiplies the scores of the others by exp(-IoU^2 / sigma) ("gaussian"), by 1 - IoU where that
    is above `overlap` ("linear"), or removes these ("hard"); then the best of the rest, and so on.
    What has less than `min_score`, to begin with or by then, is out.

    Returns the places (n,) int64 and new scores (n,) float32 of the `most` best of all classes,
    best first, and among equals the first in the input.
    """
    if boxes.shape != (len(scores), 4) or labels.shape != scores.shape or scores.ndim != 1:
        raise ValueError(
            f"boxes {boxes.shape}, scores {scores.shape} and labels {labels.shape} must be "
            "(N, 4), (N,) and (N,)"
        )
    if method not in METHODS:
        raise ValueError(f"method = {method!r} must be one of {', '.join(METHODS)}")
    # a negative score would rise where others fall
    if not (0 <= overlap <= 1 and sigma > 0 and min_score >= 0 and most >= 0):
        raise ValueError(
            f"overlap = {overlap} must be from 0 to 1, sigma = {sigma} positive, "
            f"min_score = {min_score} and most = {most} not negative"
        )
    scores = scores.astype(np.float32)
    least = np.float32(min_score)
    candidates = np.flatnonzero(scores >= least)
    # by class, best first, and among equals the first in the input
    order = candidates[np.lexsort((-scores[candidates], labels[candidates]))]
    # (C + 1,), for NaN differs from any label
    starts = np.flatnonzero(np.diff(labels[order], prepend=np.nan, append=np.nan) != 0)
    places, kept = np.empty(len(order), np.int64), np.empty(len(order), np.float32)
    counts = np.zeros(len(starts) - 1, np.int64)
    # a class's detections are taken best first, so no more than `most` of any can matter
    _suppress_all(
        boxes[order].astype(np.float32),
        scores[order],
        order,
        starts,
        METHODS.index(method),
        float(overlap),
        float(sigma),
        least,
        int(most),
        places,
        kept,
        counts,
    )
    used = np.arange(len(order)) < np.repeat(starts[:-1] + counts, np.diff(starts))
    places, kept = places[used], kept[used]
    best = np.lexsort((places, -kept))[:most]
    return places[best], kept[best]


@njit(cache=True, nogil=True, parallel=True)
def _suppress_all(
    boxes, scores, order, starts, method, overlap, sigma, least, most, places, kept, counts
):
    """Suppress class by class; class c writes places[starts[c]:], kept[starts[c]:], counts[c]."""
    for c in prange(len(counts)):
        first, last = starts[c], starts[c + 1]
        counts[c] = _suppress_one(
            boxes[first:last],
            scores[first:last],
            order[first:last],
            method,
            overlap,
            sigma,
            least,
            min(most, last - first),
            places[first:last],
            kept[first:last],
        )


@njit(cache=True, nogil=True)
def _suppress_one(boxes, scores, order, method, overlap, sigma, least, most, places, kept):
    """Suppress the detections (n, 4) of one class, best first; returns how many were taken.

    Scores only fall, so an old score is a limit: whoever comes up as the best by old scores is
    compared with those taken since it was last looked at, in their order, and is put back if that
    lowered it. If not, it really is the best one. Each pair is compared once at most, and most
    pairs never, which is what the plain rule does for all of them.

    Scores are float32 and rounded after each factor, for then detections that are equal in what is
    returned were equal all along, and the rule for equals holds in it; factors are float64.
    """
    n = len(boxes)
    heap = np.arange(n)  # the best is its root; in order of scores, it is a heap already
    size = n
    seen = np.zeros(n, np.int64)  # how many of those taken it was compared with
    taken = np.empty((4, most), np.float32)  # x1, y1, x2, y2
    count = 0
    while size > 0 and count < most:
        i = heap[0]
        x1, y1, x2, y2 = boxes[i, 0], boxes[i, 1], boxes[i, 2], boxes[i, 3]
        score = scores[i]
        out = False
        for start in range(seen[i], count, BLOCK):
            if out or (score == 0 and method != HARD):  # nothing can change it any more
                break
            stop = min(start + BLOCK, count)
            near = 0
            for k in range(start, stop):
                beside = (x1 < taken[2, k]) & (taken[0, k] < x2)
                near += beside & (y1 < taken[3, k]) & (taken[1, k] < y2)
            if near == 0:  # a factor of exactly 1 from each
                continue
            for k in range(start, stop):
                iou = _iou(x1, y1, x2, y2, taken[0, k], taken[1, k], taken[2, k], taken[3, k])
                if iou == 0 or (method != GAUSSIAN and iou <= overlap):
                    continue
                if method == GAUSSIAN:
                    score = np.float32(score * math.exp(-iou * iou / sigma))
                else:
                    score = np.float32(score * (1 - iou))
                if method == HARD or score < least:
                    out = True
                    break
        seen[i] = count
        if not out and score < scores[i]:
            scores[i] = score
        else:
            if not out:
                taken[0, count], taken[1, count], taken[2, count], taken[3, count] = x1, y1, x2, y2
                places[count], kept[count] = order[i], score
                count += 1
            size -= 1
            heap[0] = heap[size]
        _sink(heap, size, scores, order)
    return count


@njit(cache=True, nogil=True)
def _sink(heap, size, scores, order):
    """Let the root of a heap sink to where it belongs."""
    parent = 0
    while 2 * parent + 1 < size:
        child = 2 * parent + 1
        if child + 1 < size and _better(heap[child + 1], heap[child], scores, order):
            child += 1
        if not _better(heap[child], heap[parent], scores, order):
            break
        heap[child], heap[parent] = heap[parent], heap[child]
        parent = child


@njit(cache=True, nogil=True)
def _better(a, b, scores, order):
    return scores[a] > scores[b] or (scores[a] == scores[b] and order[a] < order[b])


@njit(cache=True, nogil=True)
def _iou(ax1, ay1, ax2, ay2, bx1, by1, bx2, by2):
    """Give the IoU of two boxes in float64; 0 where they share no area."""
    # np.float64, for here float() would leave float32 as it is
    left, right = np.float64(max(ax1, bx1)), np.float64(min(ax2, bx2))
    top, bottom = np.float64(max(ay1, by1)), np.float64(min(ay2, by2))
    if not (left < right and top < bottom):
        return 0.0
    shared = (right - left) * (bottom - top)
    area_a = (np.float64(ax2) - ax1) * (np.float64(ay2) - ay1)
    area_b = (np.float64(bx2) - bx1) * (np.float64(by2) - by1)
    return shared / (area_a + area_b - shared)
