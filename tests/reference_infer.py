"""Slow versions of FocusChips and focus stacking, one cell, window or detection at a time.

Written from sections 3.4.2 and 3.4.3 of the paper on scale-normalised pyramids, from that on
Soft-NMS and from the design; nothing is shared with infer. The second half makes the random maps
and detections of the tests.

Legend: a map is rows of probabilities, a cell is (row, column), a window or box is x1 y1 x2 y2,
half-open, in cells or px of the canvas.
"""

import itertools
import math

import numpy as np


def share_area(a, b):
    return min(a[2], b[2]) > max(a[0], b[0]) and min(a[3], b[3]) > max(a[1], b[1])


def around(a, b):
    return min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3])


def dilated(cells, rows, columns, side):
    """Put a square on each cell of a set; an even one reaches further up and left."""
    offsets = [k - side // 2 for k in range(side)]
    spread = {(r + dr, c + dc) for r, c in cells for dr in offsets for dc in offsets}
    return {(r, c) for r, c in spread if 0 <= r < rows and 0 <= c < columns}


def components(cells):
    """Split a set of cells into those that hang together, corners included."""
    left, found = set(cells), []
    while left:
        front, component = [left.pop()], set()
        while front:
            r, c = front.pop()
            component.add((r, c))
            near = {(r + dr, c + dc) for dr in (-1, 0, 1) for dc in (-1, 0, 1)} & left
            left -= near
            front += near
        found.append(component)
    return found


def stretched(low, high, smallest, length):
    """Lengthen a span cell by cell, high end first, and then push it back onto the axis."""
    at_high_end = True
    while high - low < min(smallest, length):
        low, high = (low, high + 1) if at_high_end else (low - 1, high)
        at_high_end = not at_high_end
    while low < 0:
        low, high = low + 1, high + 1
    while high > length:
        low, high = low - 1, high - 1
    return low, high


def merged(windows):
    """Replace any two that overlap by what encloses them, until there are no such two."""
    windows = list(windows)
    while True:
        pairs = ((a, b) for b in range(len(windows)) for a in range(b))
        pair = next((p for p in pairs if share_area(windows[p[0]], windows[p[1]])), None)
        if pair is None:
            return windows
        b, a = windows.pop(pair[1]), windows.pop(pair[0])
        windows.append(around(a, b))


def focus_windows(probabilities, threshold, dilation, smallest):
    """Follow algorithm 2 line by line: a list of windows in the order of y1, then x1."""
    rows = len(probabilities)
    columns = len(probabilities[0]) if rows else 0
    pixels = {
        (r, c)
        for r in range(rows)
        for c in range(columns)
        if probabilities[r][c] >= 0 and probabilities[r][c] >= threshold
    }
    enclosing = []
    for component in components(dilated(pixels, rows, columns, dilation)):
        of_rows, of_columns = [r for r, _ in component], [c for _, c in component]
        x1, x2 = stretched(min(of_columns), max(of_columns) + 1, smallest[1], columns)
        y1, y2 = stretched(min(of_rows), max(of_rows) + 1, smallest[0], rows)
        enclosing.append((x1, y1, x2, y2))
    return sorted(merged(enclosing), key=lambda w: (w[1], w[0], w[3], w[2]))


def filled(windows, step, rows, columns):
    """Try for each window and axis how far it can grow both ways, up to a multiple of `step`."""
    windows = [list(window) for window in windows]
    for axis, length in ((0, columns), (1, rows)):
        for i, window in enumerate(windows):
            others = set().union(*(cells(w) for j, w in enumerate(windows) if j != i))
            more = -(window[axis + 2] - window[axis]) % step
            tried = {}
            for low, high in itertools.product(range(more + 1), repeat=2):
                grown = list(window)
                grown[axis], grown[axis + 2] = window[axis] - low, window[axis + 2] + high
                fits = low + high <= more and grown[axis] >= 0 and grown[axis + 2] <= length
                if fits and not (cells(grown) - cells(window)) & others:
                    tried[low + high, -abs(low - more // 2)] = grown
            windows[i] = tried[max(tried)]
    return windows


def cells(window):
    """List the cells of a window."""
    x1, y1, x2, y2 = window
    return set(itertools.product(range(x1, x2), range(y1, y2)))


def is_kept(box, window, canvas, border):
    """Say whether a detection of a chip at a window (x, y, width, height) counts."""
    x, y, width, height = window
    gaps_of_picture = x, y, canvas[0] - (x + width), canvas[1] - (y + height)
    gaps_of_box = box[0] - x, box[1] - y, x + width - box[2], y + height - box[3]
    for of_picture, of_box in zip(gaps_of_picture, gaps_of_box, strict=True):
        if of_picture > 0 and of_box <= border:
            return False
    return True


def iou(a, b):
    if not share_area(a, b):
        return 0.0
    both = (min(a[2], b[2]) - max(a[0], b[0])) * (min(a[3], b[3]) - max(a[1], b[1]))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return both / (sum(areas) - both)


def rescored(score, overlap_with_best, method, overlap, sigma):
    """Give the score that a detection is left with beside a better one; None: it goes."""
    if method == "gaussian":
        factor = math.exp(-(overlap_with_best**2) / sigma)
    elif overlap_with_best > overlap:
        factor = 1 - overlap_with_best if method == "linear" else None
    else:
        factor = 1.0
    return None if factor is None else float(np.float32(score * factor))


def suppressed(boxes, scores, labels, method, overlap, sigma, min_score, most):
    """List (place, score) of the detections that stay, best first: all pairs are looked at."""
    min_score = float(np.float32(min_score))
    staying = []
    for label in sorted(set(labels)):
        left = {i: s for i, s in enumerate(scores) if labels[i] == label and s >= min_score}
        while left:
            best = max(left, key=lambda i: (left[i], -i))
            staying.append((best, left.pop(best)))
            for i in list(left):
                score = rescored(left[i], iou(boxes[best], boxes[i]), method, overlap, sigma)
                if score is None or score < min_score:
                    del left[i]
                else:
                    left[i] = score
    return sorted(staying, key=lambda one: (-one[1], one[0]))[:most]


# --- random maps and detections --------------------------------------------------------------


def random_map(rng, rows, columns):
    """Draw a map (rows, columns) float32: noise, blobs at any place, cells never looked at."""
    found = rng.uniform(0, 0.49, (rows, columns))
    noise = rng.random((rows, columns)) < rng.choice([0, 0.01, 0.05, 0.3])
    found[noise] = rng.uniform(0.5, 1, int(noise.sum()))
    for _ in range(rng.integers(5)):
        y, x = rng.integers(-2, [rows + 2, columns + 2])
        height, width = rng.integers(1, 6, 2)
        found[max(y, 0) : max(y + height, 0), max(x, 0) : max(x + width, 0)] = rng.random()
    if rng.random() < 0.5:
        for _ in range(rng.integers(4)):
            y, x = rng.integers(0, [rows + 1, columns + 1])
            found[y : y + rng.integers(1, 9), x : x + rng.integers(1, 9)] = -1
    return found.astype(np.float32)


def random_detections(rng, count, classes):
    """Draw boxes (N, 4) and scores (N,) float32 in clusters, with twins, ties and thin boxes."""
    centres = rng.uniform(0, 100, (1 + count // 8, 2))
    corner = centres[rng.integers(len(centres), size=count)] + rng.normal(0, 6, (count, 2))
    sides = rng.uniform(5, 50, (count, 2))
    sides[rng.random(count) < 0.05, 0] = 0  # degenerate
    boxes = np.concatenate([corner, corner + sides], axis=1)
    whole = rng.random(count) < 0.3  # overlaps that are just what the limit says, and touching
    boxes[whole] = np.round(boxes[whole] / 10) * 10
    scores = rng.random(count)
    even = rng.random(count) < 0.3
    scores[even] = np.round(scores[even] * 8) / 8
    for i in np.flatnonzero(rng.random(count) < 0.1):
        twin = rng.integers(count)
        boxes[i], scores[i] = boxes[twin], scores[twin]
    labels = rng.choice([-1, 0, 3, 7, 80], count) if classes > 1 else np.full(count, 5)
    return boxes.astype(np.float32), scores.astype(np.float32), labels
