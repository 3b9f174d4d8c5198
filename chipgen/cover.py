"""Covers boxes with chips: algorithm 1 of SNIPER as one Numba kernel, parallel over pictures.

Legend: P pictures, L levels, N boxes of all pictures, n boxes of one level of one picture,
C chips chosen. Boxes come in as (N, 4) float32 xyxy in picture pixels; chips go out as integer
window origins on the canvas.

A chip at grid position (x, y) holds a box exactly when x lies in [x2 - K, x1] and y in
[y2 - K, y1]: a rectangle of grid cells. So each box adds one to its rectangle of a count map, the
best chip is the maximum of the map, and what a chosen chip covers is taken off the map again.
Rows keep their own maximum, so a step costs the rows that changed and not the whole map.
"""

import numpy as np
from numba import njit, prange

INSIDE = 1e-3  # canvas px by which a box may stick out of the chip that covers it: rounding only


def fits(
    boxes: np.ndarray, canvases: np.ndarray, scales: np.ndarray, chip: int | np.ndarray
) -> np.ndarray:
    """Say which boxes some K x K window at integer positions of their canvas holds: (N,) bool.

    `boxes` (N, 4) picture px; `canvases` and `scales` (N, 2) are those of each box's picture;
    `chip` is K for all, or (N, 1).
    """
    low = np.ceil(boxes[:, 2:] * scales - chip - INSIDE)  # (N, 2) float64
    high = np.floor(boxes[:, :2] * scales + INSIDE)
    last = np.maximum(canvases - chip, 0)
    return (np.maximum(low, 0) <= np.minimum(high, last)).all(axis=1)


def cover(
    boxes: np.ndarray,
    offsets: np.ndarray,
    wants: np.ndarray,
    canvases: np.ndarray,
    scales: np.ndarray,
    *,
    chip: int,
    stride: int,
    shifts: np.ndarray | None = None,
    places: np.ndarray | None = None,
    minimum: int = 1,
) -> np.ndarray:
    """Choose chips greedily until no chip holds `minimum` boxes that are not held already.

    boxes (N, 4) float32 picture px, offsets (P + 1,), wants (N, L) bool: which level covers which
    box (one that no window of the level holds is passed over; see `fits`), canvases (P, L, 2)
    int64, scales (P, L, 2) float64, shifts (P, 2) int64 in [0, stride): origin of the grid's inner
    positions, places (P, 2) float64 in [0, 1]: which of the windows that hold the same boxes is
    taken (0.5: the one in the middle).
    With `minimum` 1, a box that fits a chip but none of the grid's is given one of its own.

    Returns (C, 4) int64 rows of picture, level, x, y in the order of pictures and levels, and
    within them in the order of choice.
    """
    pictures, levels = len(offsets) - 1, canvases.shape[1]
    if wants.shape != (len(boxes), levels) or len(canvases) != pictures:
        raise ValueError(f"wants {wants.shape} and canvases {canvases.shape} do not fit the boxes")
    if shifts is None:
        shifts = np.zeros((pictures, 2), np.int64)
    if places is None:
        places = np.full((pictures, 2), 0.5)
    # every chip holds at least one new box, so a picture never needs more rows than this
    wanted = np.concatenate([[0], np.cumsum(wants.sum(axis=1))])[offsets]
    rows = np.empty((wanted[-1], 4), np.int64)
    counts = np.zeros(pictures, np.int64)
    _cover_all(
        np.ascontiguousarray(boxes, np.float32),
        offsets.astype(np.int64),
        wants,
        canvases.astype(np.int64),
        scales.astype(np.float64),
        chip,
        stride,
        shifts,
        places,
        minimum,
        wanted.astype(np.int64),
        rows,
        counts,
    )
    used = np.arange(len(rows)) < np.repeat(wanted[:-1] + counts, np.diff(wanted))
    return rows[used]


@njit(cache=True, parallel=True, nogil=True)
def held(
    boxes: np.ndarray,
    offsets: np.ndarray,
    windows: np.ndarray,
    slack: np.ndarray,
    window_levels: np.ndarray,
    starts: np.ndarray,
    levels: int,
) -> np.ndarray:
    """Count the windows of each level that hold each box whole, (N, L) int64.

    windows (C, 4) picture px, which may be overstepped by slack (C,); those of picture p are
    windows[starts[p]:starts[p + 1]].
    """
    counts = np.zeros((len(boxes), levels), np.int64)
    for p in prange(len(offsets) - 1):
        for b in range(offsets[p], offsets[p + 1]):
            for c in range(starts[p], starts[p + 1]):
                enters = windows[c, 0] - slack[c] <= boxes[b, 0]
                enters = enters and windows[c, 1] - slack[c] <= boxes[b, 1]
                stays = boxes[b, 2] <= windows[c, 2] + slack[c]
                if enters and stays and boxes[b, 3] <= windows[c, 3] + slack[c]:
                    counts[b, window_levels[c]] += 1
    return counts


@njit(cache=True, parallel=True, nogil=True)
def _cover_all(
    boxes,
    offsets,
    wants,
    canvases,
    scales,
    chip,
    stride,
    shifts,
    places,
    minimum,
    starts,
    rows,
    counts,
):
    """Cover each picture at each level; picture p writes rows[starts[p]:] and counts[p]."""
    levels = wants.shape[1]
    for p in prange(len(offsets) - 1):
        first, last = offsets[p], offsets[p + 1]
        held = 0
        for level in range(levels):
            n = 0
            for b in range(first, last):
                if wants[b, level]:
                    n += 1
            if n == 0:
                continue
            edges = np.empty((n, 4), np.float64)  # xyxy on the canvas
            n = 0
            for b in range(first, last):
                if wants[b, level]:
                    for k in range(4):
                        edges[n, k] = boxes[b, k] * scales[p, level, k % 2]
                    n += 1
            out = rows[starts[p] + held : starts[p + 1]]
            chosen = _cover_one(
                edges, canvases[p, level], chip, stride, shifts[p], places[p], minimum, out
            )
            for c in range(chosen):
                out[c, 0] = p
                out[c, 1] = level
            held += chosen
        counts[p] = held


@njit(cache=True, nogil=True)
def _cover_one(edges, canvas, chip, stride, shift, place, minimum, out):
    """Cover the boxes of one level; writes x, y into out[:, 2:] and returns C."""
    n = len(edges)
    axis_x = _positions(canvas[0], chip, stride, shift[0])
    axis_y = _positions(canvas[1], chip, stride, shift[1])
    spans = np.empty((n, 4), np.int64)  # grid cells that hold the box: x first, last, y first, last
    left = np.ones(n, np.bool_)
    for i in range(n):
        spans[i, 0] = np.searchsorted(axis_x, edges[i, 2] - chip - INSIDE)
        spans[i, 1] = np.searchsorted(axis_x, edges[i, 0] + INSIDE, side="right") - 1
        spans[i, 2] = np.searchsorted(axis_y, edges[i, 3] - chip - INSIDE)
        spans[i, 3] = np.searchsorted(axis_y, edges[i, 1] + INSIDE, side="right") - 1

    chosen = 0
    # Boxes between the grid's positions first: their chips are needed whatever else is chosen.
    for i in range(n):
        if spans[i, 0] > spans[i, 1] or spans[i, 2] > spans[i, 3]:
            x = own_position(edges[i, 0], edges[i, 2], canvas[0], chip, place[0])
            y = own_position(edges[i, 1], edges[i, 3], canvas[1], chip, place[1])
            if minimum > 1 or x < 0 or y < 0:
                left[i] = False
            elif left[i]:
                out[chosen, 2] = x
                out[chosen, 3] = y
                chosen += 1
                for j in range(n):
                    left[j] = left[j] and not inside_window(edges[j], x, y, chip)

    counts = np.zeros((len(axis_y), len(axis_x)), np.int32)
    for i in range(n):
        if left[i]:
            _add(counts, spans[i], 1)
    row_best = np.empty(len(axis_y), np.int32)
    for r in range(len(axis_y)):
        row_best[r] = counts[r].max()

    while True:
        # ties: the topmost row, then the leftmost column ...
        r = np.argmax(row_best)
        best = row_best[r]
        if best < minimum:
            break
        c = 0
        while counts[r, c] != best:
            c += 1
        # ... then, of the cells that hold the very same boxes (again a rectangle), the one at
        # `place`: the middle keeps context around the boxes, where the first would push them
        # against the chip's lower right corner.
        x0, x1, y0, y1 = 0, len(axis_x) - 1, 0, len(axis_y) - 1
        for i in range(n):
            if left[i] and _holds(spans[i], r, c):
                left[i] = False
                _add(counts, spans[i], -1)
                x0, x1 = max(x0, spans[i, 0]), min(x1, spans[i, 1])
                y0, y1 = max(y0, spans[i, 2]), min(y1, spans[i, 3])
                for row in range(spans[i, 2], spans[i, 3] + 1):
                    row_best[row] = -1  # to be found anew
        for row in range(len(axis_y)):
            if row_best[row] < 0:
                row_best[row] = counts[row].max()
        out[chosen, 2] = axis_x[_between(x0, x1, place[0])]
        out[chosen, 3] = axis_y[_between(y0, y1, place[1])]
        chosen += 1
    return _drop_redundant(edges, chip, out, chosen) if minimum == 1 else chosen


@njit(cache=True, nogil=True)
def _positions(length, chip, stride, shift):
    """Give the grid along one axis: 0, then every stride px from `shift` on, then the far edge."""
    last = max(length - chip, 0)
    if last == 0:
        return np.zeros(1, np.int64)
    start = shift if shift > 0 else stride
    inner = max(0, (last - start + stride - 1) // stride)
    axis = np.empty(inner + 2, np.int64)
    axis[0] = 0
    for i in range(inner):
        axis[i + 1] = start + i * stride
    axis[inner + 1] = last
    return axis


@njit(cache=True, nogil=True)
def own_position(low_edge, high_edge, length, chip, place):
    """Place a chip for one box along one axis, anywhere on the canvas; -1 where none holds it."""
    low = max(int(np.ceil(high_edge - chip - INSIDE)), 0)
    high = min(int(np.floor(low_edge + INSIDE)), max(length - chip, 0))
    return _between(low, high, place) if low <= high else -1


@njit(cache=True, nogil=True)
def _between(low, high, place):
    return low + int((high - low) * place + 0.5)


@njit(cache=True, nogil=True)
def _drop_redundant(edges, chip, out, chosen):
    """Drop chips whose boxes the others hold too; returns how many are left."""
    holders = np.zeros(len(edges), np.int64)
    for c in range(chosen):
        for i in range(len(edges)):
            holders[i] += inside_window(edges[i], out[c, 2], out[c, 3], chip)
    kept = 0
    for c in range(chosen):
        needed = False
        for i in range(len(edges)):
            needed = needed or (
                holders[i] == 1 and inside_window(edges[i], out[c, 2], out[c, 3], chip)
            )
        if needed:
            out[kept, 2] = out[c, 2]
            out[kept, 3] = out[c, 3]
            kept += 1
        else:
            for i in range(len(edges)):
                holders[i] -= inside_window(edges[i], out[c, 2], out[c, 3], chip)
    return kept


@njit(cache=True, nogil=True)
def inside_window(edge, x, y, chip):
    """Say whether a box on the canvas lies in the window at (x, y), but for rounding."""
    inside_x = x <= edge[0] + INSIDE and edge[2] - INSIDE <= x + chip
    return inside_x and y <= edge[1] + INSIDE and edge[3] - INSIDE <= y + chip


@njit(cache=True, nogil=True)
def _add(counts, span, value):
    for r in range(span[2], span[3] + 1):
        for c in range(span[0], span[1] + 1):
            counts[r, c] += value


@njit(cache=True, nogil=True)
def _holds(span, r, c):
    return span[0] <= c <= span[1] and span[2] <= r <= span[3]
