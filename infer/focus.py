"""FocusPixels -> FocusChips: algorithm 2 of AutoFocus on the map of one picture.

Legend: H rows and W columns of cells, each stride x stride px of the canvas; R runs, which are
cells of one row side by side; n windows, (n, 4) int64 x1 y1 x2 y2 in cells, half-open.
"""

from dataclasses import dataclass

import numpy as np
from numba import njit

TURNED = (1, 0, 3, 2)  # columns of windows whose x is y


@dataclass(frozen=True)
class FocusSettings:
    """What is looked at once more, and with how much around it."""

    threshold: float = 0.5  # probability from which on a cell is a FocusPixel
    dilation: int = 3  # cells: side of the square filter
    smallest: int = 256  # k: least side of a FocusChip, canvas px of the next, finer level

    def __post_init__(self):
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold = {self.threshold} must be from 0 to 1")
        for name in ("dilation", "smallest"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)} must be at least 1")


def enclosed(probabilities: np.ndarray, threshold: float, dilation: int) -> np.ndarray:
    """Enclose each component of a map's (H, W) float32 dilated FocusPixels: windows (n, 4) int64.

    A cell that was never looked at holds a negative number and is no FocusPixel, whatever the
    threshold, which is compared in float32 as the cells are. A FocusPixel spreads over the offsets
    -(dilation // 2) .. dilation - 1 - dilation // 2 along both axes.
    """
    if probabilities.ndim != 2:
        raise ValueError(f"a map of shape {probabilities.shape} has not one number for each cell")
    if not 0 <= threshold <= 1:  # a negative one would take in what was never looked at
        raise ValueError(f"threshold = {threshold} must be from 0 to 1")
    if dilation < 1:
        raise ValueError(f"dilation = {dilation} must be at least 1")
    rows, columns = probabilities.shape
    before, after = dilation // 2, dilation - 1 - dilation // 2
    wide, dilated = np.zeros((2, rows, columns), np.bool_)
    _spread_along_rows(
        np.ascontiguousarray(probabilities, np.float32), np.float32(threshold), before, after, wide
    )
    _spread_along_columns(wide, before, after, dilated)
    # the most runs that a map can have; what isn't needed is never touched and so costs nothing
    most = rows * ((columns + 1) // 2)
    runs, parents = np.empty((most, 3), np.int64), np.empty(most, np.int64)
    places, found = np.empty(most, np.int64), np.empty((most, 4), np.int64)
    return found[: _enclose(dilated, runs, parents, places, found)]


def apart(windows: np.ndarray, smallest: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """Let windows (m, 4) of a map grow to the smallest, and replace those that overlap: (n, 4).

    That is done until none do. `smallest` and `size` (height, width) in cells. The windows come in
    the order of y1, then x1.
    """
    if min(smallest) < 1:
        raise ValueError(f"smallest = {smallest} must be at least 1")
    found = _grown(windows, smallest, size)
    owners, parents = np.full(size, -1, np.int32), np.arange(len(windows))
    _merge(found, owners, parents)
    found = found[parents == np.arange(len(found))]
    x1, y1, x2, y2 = found.T
    return found[np.lexsort((x2, y2, x1, y1))]


def filled(windows: np.ndarray, step: int, size: tuple[int, int]) -> np.ndarray:
    """Let windows (n, 4) grow to whole steps, where there is room in a map (height, width): (n, 4).

    Their regions are padded to whole steps in any case, and what is there in the picture says more
    than padding. All windows grow along x and then along y, one after the other and about their
    centres, but not onto the cells of others.
    """
    occupied = np.zeros(size, np.bool_)
    grown = windows.astype(np.int64)
    _fill_along_rows(grown, occupied, step)
    turned = grown[:, TURNED].copy()
    _fill_along_rows(turned, occupied.T.copy(), step)
    return turned[:, TURNED]


def _grown(found, smallest, size):
    """Give windows at least the smallest (height, width) inside a map of a size (height, width).

    They grow about their centre, by the odd cell to the right and to the bottom.
    """
    size = np.array(size[::-1], np.int64)
    sides = found[:, 2:] - found[:, :2]
    wanted = np.minimum(np.maximum(sides, smallest[::-1]), size)
    corner = np.clip(found[:, :2] - (wanted - sides) // 2, 0, size - wanted)
    return np.concatenate([corner, corner + wanted], axis=1)


@njit(cache=True, nogil=True)
def _spread_along_rows(probabilities, threshold, before, after, wide):
    """Mark FocusPixels and what lies `before` and `after` them in their row: wide (H, W) bool."""
    rows, columns = probabilities.shape
    for r in range(rows):
        filled = 0  # cells that are settled, so that each is written once however wide the filter
        for c in range(columns):
            if probabilities[r, c] >= threshold:
                end = min(c + after + 1, columns)
                for k in range(max(c - before, filled), end):
                    wide[r, k] = True
                filled = end


@njit(cache=True, nogil=True)
def _spread_along_columns(wide, before, after, dilated):
    """Do the same along columns, row by row as memory lies: dilated (H, W) bool."""
    rows, columns = wide.shape
    reach = np.full(columns, -1, np.int64)  # the last row that what was met spreads onto
    for r in range(rows):
        for c in range(columns):
            if wide[r, c]:
                reach[c] = r + after
            dilated[r, c] = r <= reach[c]
    reach[:] = rows  # and, on the way back, the first
    for r in range(rows - 1, -1, -1):
        for c in range(columns):
            if wide[r, c]:
                reach[c] = r - before
            dilated[r, c] |= r >= reach[c]


@njit(cache=True, nogil=True)
def _enclose(dilated, runs, parents, places, found):
    """Write the window of each 8-connected component into found (R, 4); returns their number.

    runs (R, 3): row, start, stop; parents (R,): a union-find over runs whose roots are the first of
    their components; places (R,): where a root's window is.
    """
    rows, columns = dilated.shape
    count = above = 0  # runs of the row above are runs[above:here]
    for r in range(rows):
        here, k = count, above
        c = 0
        while c < columns:
            if not dilated[r, c]:
                c += 1
                continue
            start = c
            while c < columns and dilated[r, c]:
                c += 1
            runs[count, 0], runs[count, 1], runs[count, 2] = r, start, c
            parents[count] = count
            # cells that share a corner are connected: hence runs that end where this one starts
            while k < here and runs[k, 2] < start:
                k += 1
            j = k
            while j < here and runs[j, 1] <= c:
                a, b = _root(parents, j), _root(parents, count)
                parents[max(a, b)] = min(a, b)
                j += 1
            count += 1
        above = here

    components = 0
    for i in range(count):
        row, start, stop = runs[i, 0], runs[i, 1], runs[i, 2]
        root = _root(parents, i)
        if root == i:
            place = places[i] = components
            components += 1
            found[place, 0], found[place, 1] = start, row
            found[place, 2], found[place, 3] = stop, row + 1
        else:
            place = places[root]
            found[place, 0] = min(found[place, 0], start)
            found[place, 2] = max(found[place, 2], stop)
            found[place, 3] = row + 1  # runs come row by row
    return components


@njit(cache=True, nogil=True)
def _merge(windows, owners, parents):
    """Replace windows that overlap by the one around them until none do, in place.

    owners (H, W) int32, all -1; parents (n,) int64, all their own. In the end the windows that are
    their own parents are the ones that stay.

    Each window is painted onto the map, under its own number; whom it meets there joins it, and
    what both have grown to is painted under the number of the larger one, less what that has
    painted before. So the time goes with the cells of the map, where comparing all pairs would go
    with the square of the windows: a map full of noise has tens of thousands. The outcome doesn't
    depend on the order, for windows that overlap still do when either has grown.
    """
    for i in range(len(windows)):
        me = i
        x1, y1, x2, y2 = windows[i, 0], windows[i, 1], windows[i, 2], windows[i, 3]
        done_x1, done_y1, done_x2, done_y2 = x1, y1, x1, y1
        while True:
            next_x1, next_y1, next_x2, next_y2 = x1, y1, x2, y2
            largest, area = me, (x2 - x1) * (y2 - y1)
            for y in range(y1, y2):
                x = x1
                while x < x2:
                    if done_y1 <= y < done_y2 and done_x1 <= x < done_x2:
                        x = done_x2
                        continue
                    owner = owners[y, x]
                    if owner < 0:
                        owners[y, x] = me
                        x += 1
                        continue
                    root = _root(parents, owner)
                    if root != me:
                        parents[root] = me
                        of_root = windows[root]
                        next_x1, next_y1 = min(next_x1, of_root[0]), min(next_y1, of_root[1])
                        next_x2, next_y2 = max(next_x2, of_root[2]), max(next_y2, of_root[3])
                        of_root_area = (of_root[2] - of_root[0]) * (of_root[3] - of_root[1])
                        if of_root_area > area:
                            largest, area = root, of_root_area
                    # up to there, everything is its owner's or belongs to whom that has met
                    x = windows[owner, 2]
            windows[me, 0], windows[me, 1], windows[me, 2], windows[me, 3] = x1, y1, x2, y2
            if x1 == next_x1 and y1 == next_y1 and x2 == next_x2 and y2 == next_y2:
                break
            parents[me] = largest
            parents[largest] = largest
            me = largest
            done_x1, done_y1 = windows[me, 0], windows[me, 1]
            done_x2, done_y2 = windows[me, 2], windows[me, 3]
            x1, y1, x2, y2 = next_x1, next_y1, next_x2, next_y2
            if x1 == done_x1 and y1 == done_y1 and x2 == done_x2 and y2 == done_y2:
                break


@njit(cache=True, nogil=True)
def _fill_along_rows(windows, occupied, step):
    """Let windows grow to a multiple of `step` columns, in place; `occupied` (H, W) follows."""
    columns = occupied.shape[1]
    for x1, y1, x2, y2 in windows:
        occupied[y1:y2, x1:x2] = True
    for i in range(len(windows)):
        x1, y1, x2, y2 = windows[i, 0], windows[i, 1], windows[i, 2], windows[i, 3]
        more = -(x2 - x1) % step
        left = right = 0
        while left < more and left < x1 and not occupied[y1:y2, x1 - left - 1].any():
            left += 1
        while right < more and x2 + right < columns and not occupied[y1:y2, x2 + right].any():
            right += 1
        left = min(left, max(more // 2, more - right))
        right = min(right, more - left)
        windows[i, 0], windows[i, 2] = x1 - left, x2 + right
        occupied[y1:y2, x1 - left : x2 + right] = True


@njit(cache=True, nogil=True)
def _root(parents, i):
    while parents[i] != i:
        parents[i] = parents[parents[i]]  # halves the way for whoever comes next
        i = parents[i]
    return i
