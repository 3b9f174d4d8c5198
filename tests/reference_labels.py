"""Slow versions of the labels, one anchor, RoI, cell or box at a time, in Python's own floats.

Written from sections 3.2.1, 3.3.4 and 3.4.1 of the paper on scale-normalised pyramids and from the
contract in the design, "Labels" and "FocusPixels"; nothing is shared with train. Where a number
comes closer than SLACK to the limit that it is compared with, but not onto it, float32 may fall on
the other side: the verdict is in doubt. The second half makes the random chips of the tests.

Legend: a box is four numbers xyxy in canvas px, half-open; a range is (low, high), a cell of a
collage is (height, width), rows of cells come one after the other.
"""

import math
from typing import NamedTuple

import numpy as np

SLACK = 1e-5  # share of the limit
NEAR = 1e-4  # relative: an anchor this much worse than a box's best one is as close as that


class Box(NamedTuple):
    """A box of a chip; label -1: padding."""

    place: tuple[float, float, float, float]
    label: int
    valid: bool
    crowd: bool
    cut: bool = False


class Verdict(NamedTuple):
    """What an anchor or a RoI is: -1 ignored, 0 background, 1 object."""

    label: int
    boxes: set[int]  # any of which may be its box, for these overlap it most
    doubt: bool


class Judge:
    """Compares, and remembers whether it was a close thing."""

    def __init__(self):
        self.doubt = False

    def over(self, value, limit):
        self.doubt |= 0 < abs(value - limit) < SLACK * limit
        return value > limit

    def reaches(self, value, limit):
        return self.over(value, limit) or value == limit


def area(box):
    return (box[2] - box[0]) * (box[3] - box[1])


def shared(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return width * height if width > 0 and height > 0 else 0.0


def iou(a, b):
    both = shared(a, b)
    return both / (area(a) + area(b) - both) if both > 0 else 0.0


def share_inside(box, other):
    """Give the share of a box's own area that lies in another one."""
    both = shared(box, other)
    return both / area(box) if both > 0 else 0.0


def among_best(values):
    """List the places of the largest values, as float32 may see them."""
    top = max(values.values(), default=0.0)
    return {place for place, value in values.items() if value >= top * (1 - SLACK)}


def rpn_labels(anchors, boxes):
    """Label anchors: valid boxes make positives, the others of a chip only make "ignore"."""
    table = [[iou(box.place, anchor) for anchor in anchors] for box in boxes]
    verdicts = []
    for i, anchor in enumerate(anchors):
        judge = Judge()
        of_valid, closest, near_invalid, in_crowd = {}, False, False, False
        for g, box in enumerate(boxes):
            if box.label < 0:
                continue
            if box.crowd:
                in_crowd |= judge.over(share_inside(anchor, box.place), 0.3)
            elif not box.valid:
                near_invalid |= judge.over(table[g][i], 0.3)
            elif table[g][i] > 0:
                of_valid[g] = table[g][i]
                closest |= judge.reaches(table[g][i] / max(table[g]), 1 - NEAR)
        best = max(of_valid.values(), default=0.0)
        positive, background = judge.reaches(best, 0.7), not judge.reaches(best, 0.3)
        if near_invalid:
            label = -1
        elif positive or closest:
            label = 1
        else:
            label = 0 if background and not in_crowd else -1
        verdicts.append(Verdict(label, among_best(of_valid), judge.doubt))
    return verdicts


def in_range(box, ranges, cell, judge):
    """Say whether a box has a size in the range of the cell of the collage its centre lies in."""
    side = math.isqrt(len(ranges))
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    row = sum(judge.reaches(y, k * cell[0]) for k in range(1, side))
    column = sum(judge.reaches(x, k * cell[1]) for k in range(1, side))
    low, high = ranges[row * side + column]
    size = math.sqrt(area(box))
    return judge.reaches(size, low) & (not judge.reaches(size, high))


def roi_labels(rois, there, boxes, ranges, cell):
    """Label RoIs by all boxes in the chip, valid or not; those out of the range are ignored."""
    verdicts = []
    for roi, is_there in zip(rois, there, strict=True):
        judge = Judge()
        objects, in_crowd = {}, False
        for g, box in enumerate(boxes):
            if box.label >= 0 and box.crowd:
                in_crowd |= judge.over(share_inside(roi, box.place), 0.5)
            elif box.label >= 0:
                objects[g] = iou(box.place, roi)
        positive = judge.reaches(max(objects.values(), default=0.0), 0.5)
        if not is_there or not in_range(roi, ranges, cell, judge):
            label = -1
        elif positive:
            label = 1
        else:
            label = -1 if in_crowd else 0
        verdicts.append(Verdict(label, among_best(objects), judge.doubt))
    return verdicts


def focus_labels(boxes, rows, columns, stride):
    """Label cells: (label, doubt) by row and column."""
    kinds = []  # (place, is small, is unsure, doubt) of each box
    for box in boxes:
        if box.label >= 0:
            judge, size = Judge(), math.sqrt(area(box.place))
            over_low, over_ignored = judge.over(size, 5), judge.over(size, 90)
            reaches_high = judge.reaches(size, 64)
            small = over_low and not reaches_high and not box.crowd and not box.cut
            unsure = not small and (not over_ignored or box.crowd)
            kinds.append((box.place, small, unsure, judge.doubt))
    labels = [[(0, False)] * columns for _ in range(rows)]
    for r in range(rows):
        for c in range(columns):
            cell = c * stride, r * stride, (c + 1) * stride, (r + 1) * stride
            touching = [kind for kind in kinds if shared(cell, kind[0]) > 0]
            label = -1 if any(unsure for _, _, unsure, _ in touching) else 0
            label = 1 if any(small for _, small, _, _ in touching) else label
            labels[r][c] = label, any(doubt for *_, doubt in touching)
    return labels


def suppressed(boxes, there, threshold, slack):
    """Go through boxes, best first; list which stay, and say whether any comparison was close."""
    kept, doubt = [], False
    for i, box in enumerate(boxes):
        overlaps = [iou(boxes[k], box) for k in kept] if there[i] else [1.0]
        doubt |= any(abs(overlap - threshold) < slack for overlap in overlaps)
        if all(overlap <= threshold for overlap in overlaps):
            kept.append(i)
    return kept, doubt


# --- random chips ----------------------------------------------------------------------------


def random_place(rng, size, before, anchors):
    """Draw one box, not yet cut to the chip: of any kind that chips of real pictures have."""
    width, height = size
    sides = np.exp(rng.uniform(np.log(2), np.log(1.2 * max(size)), 2))
    kind = rng.integers(8)
    if kind == 0:  # elongated
        sides[rng.integers(2)] /= 12
    elif kind == 1:  # degenerate
        sides[rng.integers(2)] = 10 ** rng.uniform(-2, 0)
    elif kind == 2:  # small
        sides = rng.uniform(0.2, 12, 2)
    corner = rng.uniform(-sides / 2, np.array(size) - sides / 2)
    box = np.concatenate([corner, corner + sides])
    if kind == 3 and len(before):  # a duplicate
        box = before[rng.integers(len(before))].copy()
    elif kind == 4 and len(before):  # touches another at an edge
        other = before[rng.integers(len(before))]
        box += np.tile([other[2] - box[0], other[1] - box[1]], 2)
    elif kind == 5:  # about what an anchor sees
        box = anchors[rng.integers(len(anchors))] + rng.normal(0, 2.5, 4)
    elif kind == 6:  # with edges between cells
        corner = rng.integers(0, [width // 8, height // 8], 2) * 8
        box = np.concatenate([corner, corner + 8 * rng.integers(1, 12, 2)]).astype(float)
    return box


def random_boxes(rng, count, size, anchors):
    """Draw the boxes of a chip of a size (width, height), cut to it: list of `Box`."""
    limits = np.tile(np.array(size, np.float32), 2)
    boxes, places = [], []
    while len(boxes) < count:
        place = random_place(rng, size, places, anchors).astype(np.float32)
        place = np.clip(place, 0, limits)
        if np.all(place[2:] - place[:2] > 1e-3):  # what is cut to nothing isn't in the chip
            places.append(place)
            crowd = rng.random() < 0.12
            valid = rng.random() < 0.6
            cut = not valid and rng.random() < 0.5
            label = int(rng.integers(5))
            boxes.append(Box(tuple(place.tolist()), label, valid, crowd, cut))
    return boxes


def random_rois(rng, count, size, boxes, anchors):
    """Draw RoIs (count, 4) float32: half of them near boxes, the others anywhere."""
    limits = np.tile(np.array(size, np.float32), 2)
    rois = np.zeros((count, 4), np.float32)
    for roi in rois:
        if boxes and rng.random() < 0.5:
            box = np.array(boxes[rng.integers(len(boxes))].place)
            sides = box[2:] - box[:2]
            near = box + rng.normal(0, 0.13, 4) * np.tile(sides, 2)
        else:
            near = random_place(rng, size, [], anchors)
        near = np.clip(near, 0, limits)
        roi[:2], roi[2:] = np.minimum(near[:2], near[2:]), np.maximum(near[:2], near[2:])
    return rois
