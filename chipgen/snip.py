"""SNIP's crops of the finest level: the best of 50 random windows, again and again (section 6.2).

Legend: P pictures, N boxes, C crops. Boxes in picture pixels, windows on the canvas.
"""

import numpy as np
from numba import njit, prange

from chipgen.cover import inside_window, own_position
from chipgen.draws import next_uniform

DRAWS = 50  # random windows to choose from in each step


def sample_crops(
    boxes: np.ndarray,
    offsets: np.ndarray,
    wants: np.ndarray,
    canvases: np.ndarray,
    scales: np.ndarray,
    *,
    crop: int,
    states: np.ndarray,
) -> np.ndarray:
    """Cover the boxes with `wants` (N,) bool; canvases and scales (P, 2); states (P,) uint64.

    Returns (C, 3) int64 rows of picture, x, y in the order of pictures.
    """
    wanted = np.concatenate([[0], np.cumsum(wants)])[offsets]
    rows = np.empty((wanted[-1], 3), np.int64)
    counts = np.zeros(len(offsets) - 1, np.int64)
    _sample_all(boxes, offsets, wants, canvases, scales, crop, states.copy(), wanted, rows, counts)
    return rows[np.arange(len(rows)) < np.repeat(wanted[:-1] + counts, np.diff(wanted))]


@njit(cache=True, parallel=True, nogil=True)
def _sample_all(boxes, offsets, wants, canvases, scales, crop, states, starts, rows, counts):
    """Sample for each picture; picture p writes rows[starts[p]:] and counts[p]."""
    for p in prange(len(offsets) - 1):
        n = starts[p + 1] - starts[p]
        if n == 0:
            continue
        edges = np.empty((n, 4), np.float64)
        n = 0
        for b in range(offsets[p], offsets[p + 1]):
            if wants[b]:
                for k in range(4):
                    edges[n, k] = boxes[b, k] * scales[p, k % 2]
                n += 1
        out = rows[starts[p] : starts[p + 1]]
        counts[p] = _sample_one(edges, canvases[p], crop, states[p : p + 1], out)
        out[: counts[p], 0] = p


@njit(cache=True, nogil=True)
def _sample_one(edges, canvas, crop, state, out):
    left = np.ones(len(edges), np.bool_)
    chosen = 0
    while left.any():
        best, best_x, best_y = 0, 0, 0
        for _ in range(DRAWS):
            x = _snapped(next_uniform(state), canvas[0], crop)
            y = _snapped(next_uniform(state), canvas[1], crop)
            taken = 0
            for i in range(len(edges)):
                taken += left[i] and inside_window(edges[i], x, y, crop)
            if taken > best:
                best, best_x, best_y = taken, x, y
        if best == 0:  # a box that chance may miss for ever: give it a window of its own
            first = np.argmax(left)
            best_x = own_position(edges[first, 0], edges[first, 2], canvas[0], crop, 0.5)
            best_y = own_position(edges[first, 1], edges[first, 3], canvas[1], crop, 0.5)
        for i in range(len(edges)):
            left[i] = left[i] and not inside_window(edges[i], best_x, best_y, crop)
        out[chosen, 1] = best_x
        out[chosen, 2] = best_y
        chosen += 1
    return chosen


@njit(cache=True, nogil=True)
def _snapped(draw, length, crop):
    """Centre a window anywhere on the canvas, and push it back inside: it snaps to the borders."""
    return min(max(int(draw * length - crop / 2), 0), max(length - crop, 0))
