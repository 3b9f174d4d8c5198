"""Tells what average precision loses to each kind of mistake: what it would be without them."""

from collections.abc import Callable

import numpy as np

from chipgen import boxes as box_math
from chipgen.dataset import Annotations
from infer.detections import Detections
from infer.evaluate import overlaps_of, rows_of_pictures

KINDS = ("background", "class", "place")
NEAR, HIT = 0.1, 0.5  # IoU from which a detection is about an object, and from which it finds it


def lost(
    annotations: Annotations,
    detections: Detections,
    precision: Callable[[Detections], float | None],
) -> dict[str, float | None]:
    """Give for each kind of mistake what a measure of precision gains when they are left out."""
    now, kinds = precision(detections), kinds_of(annotations, detections)
    if now is None:
        return dict.fromkeys(KINDS)
    return {
        name: precision(detections.take(np.flatnonzero(kinds != kind))) - now
        for kind, name in enumerate(KINDS)
    }


def kinds_of(annotations: Annotations, detections: Detections) -> np.ndarray:
    """Sort detections by mistake, (D,): the place in KINDS, or -1.

    Background: no object is near. Class: it finds an object, of another class. Place: it is near
    an object of its class. What finds one of its class is no mistake here, also where another
    detection finds the same. Near a crowd is what lies in it.
    """
    rows = rows_of_pictures(annotations, detections)
    own, other = np.zeros((2, len(detections)))
    for mine, objects, overlaps in overlaps_of(annotations, rows, detections.boxes):
        boxes, crowd = detections.boxes[mine], annotations.crowd[objects]
        inside = box_math.ioa(boxes, annotations.boxes[objects[crowd]])
        overlaps[:, crowd] = np.maximum(overlaps[:, crowd], inside)
        same = detections.labels[mine][:, None] == annotations.labels[objects]
        own[mine] = np.where(same, overlaps, 0).max(axis=1)
        other[mine] = np.where(same, 0, overlaps).max(axis=1)
    conditions = [own >= HIT, other >= HIT, own >= NEAR, other < NEAR]
    return np.select(conditions, [-1, 1, 2, 0], default=-1)
