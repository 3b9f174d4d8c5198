"""Measures detections: COCO's figures, VOC's average precision, the recall of proposals.

Legend: P pictures, N objects of all pictures, D detections, K classes; T the IoU thresholds .5 to
.95, R recall thresholds, A size ranges, M limits on the detections of a picture. Boxes are (.., 4)
float32 xyxy in picture pixels, half-open. A label is the place of the class in `classes`. Figures
are 0 to 100, and None where there is no object to find.
"""

import contextlib
import io
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from chipgen import boxes as box_math
from chipgen.dataset import Annotations
from chipgen.errors import Refusal
from infer.detections import Detections, xywh

# COCO's limits on the area, px^2, both inclusive as in pycocotools
EVERY = (0.0, 1e5**2)
SIZES = MappingProxyType({"s": (0.0, 32.0**2), "m": (32.0**2, 96.0**2), "l": (96.0**2, 1e5**2)})

AT_50, AT_75 = 0, 5  # places in COCO's IoU thresholds


# --- COCO ------------------------------------------------------------------------------------


def coco_figures(
    annotations: Annotations, areas: np.ndarray, detections: Detections, most: int = 100
) -> dict[str, Any]:
    """Give COCO's twelve figures and each class's AP, from the best `most` of a picture and class.

    `areas` (N,) sorts the objects into small, medium and large; see areas.py.
    """
    _require_known_labels(annotations, detections)
    rows_of_pictures(annotations, detections)
    limits = sorted({1, 10, most})
    found = _accumulate(annotations, areas, detections, [EVERY, *SIZES.values()], limits)
    last = limits.index(most)
    precision = found["precision"][..., last]  # (T, R, K, A)
    recall = found["recall"]  # (T, K, A, M)
    figures = {
        "AP": _mean(precision[..., 0]),
        "AP50": _mean(precision[AT_50, ..., 0]),
        "AP75": _mean(precision[AT_75, ..., 0]),
    }
    for place, size in enumerate(SIZES, 1):
        figures[f"AP{size}"] = _mean(precision[..., place])
    figures["AR1"] = _mean(recall[..., 0, limits.index(1)])
    figures["AR10"] = _mean(recall[..., 0, limits.index(10)])
    figures |= _recalls(recall[..., last], SIZES)
    figures["per_class"] = {
        name: _mean(precision[:, :, k, 0]) for k, name in enumerate(annotations.classes)
    }
    return figures


def average_precision(
    annotations: Annotations, areas: np.ndarray, detections: Detections, most: int
) -> float | None:
    """Give COCO's AP alone."""
    found = _accumulate(annotations, areas, detections, [EVERY], [most])
    return _mean(found["precision"])


def proposal_recall(
    annotations: Annotations,
    areas: np.ndarray,
    proposals: Detections,
    most: int,
    sizes: Mapping[str, tuple[float, float]] = SIZES,
) -> dict[str, float | None]:
    """Give the share of the objects that the best `most` proposals of a picture find.

    Labels don't matter. AR is the mean over T, all in all and for each range of `sizes` (name ->
    lowest and highest area, px^2); R50 counts at IoU 0.5 alone. Crowds are not to be found.
    """
    rows = rows_of_pictures(annotations, proposals)
    order = np.lexsort((-proposals.scores, rows))
    proposals, rows = proposals.take(order), rows[order]
    rank = np.arange(len(rows)) - np.searchsorted(rows, rows)
    # A proposal that overlaps no object by half finds none at any threshold, and recall does not
    # count misses. Left out, pycocotools' loops run over tens of proposals instead of hundreds.
    near = np.zeros(len(rows), bool)
    for mine, _, overlaps in overlaps_of(annotations, rows, proposals.boxes):
        near[mine] = overlaps.max(axis=1) > 0.499  # float noise must not decide
    chosen = proposals.take(np.flatnonzero((rank < most) & near))
    found = _accumulate(annotations, areas, chosen, [EVERY, *sizes.values()], [most], blind=True)
    recall = found["recall"][..., 0]  # (T, 1, A)
    return {**_recalls(recall, sizes), "R50": _mean(recall[AT_50, :, 0])}


def _recalls(recall: np.ndarray, sizes: Iterable[str]) -> dict[str, float | None]:
    """Average recalls (T, K, A), whose first range is that of every object."""
    figures = {"AR": _mean(recall[..., 0])}
    for place, size in enumerate(sizes, 1):
        figures[f"AR_{size}"] = _mean(recall[..., place])
    return figures


def _mean(values: np.ndarray) -> float | None:
    """Average shares that are defined, as 0 to 100: -1 is pycocotools' sign of no objects."""
    defined = values[values > -1]
    return 100 * float(defined.mean()) if defined.size else None


def _accumulate(
    annotations: Annotations,
    areas: np.ndarray,
    detections: Detections,
    ranges: Sequence[tuple[float, float]],
    limits: Sequence[int],
    blind: bool = False,
) -> dict[str, np.ndarray]:
    """Run pycocotools: `precision` (T, R, K, A, M) and `recall` (T, K, A, M), -1 for no objects.

    Its `summarize` takes AP at 100 detections only, so that step is left to the caller. With
    `blind` there is one class, K = 1, and crowds are left out.
    """
    if areas.shape != (len(annotations.boxes),):
        raise ValueError(f"areas: {areas.shape} for {len(annotations.boxes)} objects")
    objects = np.flatnonzero(~annotations.crowd) if blind else np.arange(len(annotations.boxes))
    picture_ids = annotations.picture_ids
    classes = 1 if blind else len(annotations.classes)
    with contextlib.redirect_stdout(io.StringIO()):  # it prints progress
        truth = _as_coco(
            picture_ids,
            classes,
            picture_ids[annotations.picture_of_box][objects],
            annotations.boxes[objects],
            annotations.labels[objects] * (not blind),
            areas[objects],
            annotations.crowd[objects],
            np.zeros(len(objects)),
        )
        found = _as_coco(
            picture_ids,
            classes,
            detections.picture_ids,
            detections.boxes,
            detections.labels * (not blind),
            box_math.areas(detections.boxes),
            np.zeros(len(detections), bool),
            detections.scores,
        )
        run = COCOeval(truth, found, "bbox")
        run.params.areaRng = [list(one) for one in ranges]
        run.params.areaRngLbl = [str(one) for one in ranges]
        run.params.maxDets = list(limits)
        run.evaluate()
        run.accumulate()
    return run.eval


def _as_coco(
    picture_ids: np.ndarray,
    classes: int,
    of_picture: np.ndarray,
    boxes: np.ndarray,
    labels: np.ndarray,
    areas: np.ndarray,
    crowd: np.ndarray,
    scores: np.ndarray,
) -> COCO:
    """Make pycocotools' own index of boxes in memory; the categories are the labels."""
    columns = {
        # not the data set's: ids repeat between splits, and 0 would mean "not matched"
        "id": range(1, len(boxes) + 1),
        "image_id": of_picture.tolist(),
        "category_id": labels.tolist(),
        "bbox": xywh(boxes).tolist(),
        "area": areas.tolist(),
        "iscrowd": crowd.astype(int).tolist(),
        "score": scores.tolist(),
    }
    index = COCO()
    index.dataset = {
        "images": [{"id": one} for one in picture_ids.tolist()],
        "categories": [{"id": one} for one in range(classes)],
        "annotations": [
            dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)
        ],
    }
    index.createIndex()
    return index


# --- VOC -------------------------------------------------------------------------------------


def voc_figures(annotations: Annotations, detections: Detections) -> dict[str, Any]:
    """Give VOC's mean AP at IoU 0.5 and 0.7, and each class's at 0.5, by the rule since 2010.

    A detection is held against the object of its class that it overlaps most, be that taken or
    not; "difficult" objects (crowd) need not be found, and who finds one is not counted.
    """
    _require_known_labels(annotations, detections)
    rows = rows_of_pictures(annotations, detections)
    best = np.zeros(len(detections), np.int64)  # the object that it overlaps most
    overlap = np.zeros(len(detections))
    for mine, objects, overlaps in overlaps_of(annotations, rows, detections.boxes):
        same = detections.labels[mine][:, None] == annotations.labels[objects][None]
        overlaps = np.where(same, overlaps, 0.0)
        place = overlaps.argmax(axis=1)
        best[mine] = objects[place]
        overlap[mine] = overlaps[np.arange(len(mine)), place]

    order = np.argsort(-detections.scores, kind="stable")
    best, overlap, labels = best[order], overlap[order], detections.labels[order]
    wanted = np.bincount(
        annotations.labels[~annotations.crowd], minlength=len(annotations.classes)
    )  # (K,)

    def per_class(threshold: float) -> np.ndarray:  # (K,), -1 for a class without objects
        return np.array(
            [
                _average_precision(
                    best[labels == k], overlap[labels == k] >= threshold, annotations.crowd, count
                )
                for k, count in enumerate(wanted.tolist())
            ]
        )

    at_50 = per_class(0.5)
    return {
        "AP50": _mean(at_50),
        "AP70": _mean(per_class(0.7)),
        "per_class": {name: _mean(at_50[[k]]) for k, name in enumerate(annotations.classes)},
    }


def _average_precision(best: np.ndarray, hit: np.ndarray, crowd: np.ndarray, wanted: int) -> float:
    """Give the area under the envelope of precision over recall, for one class; -1 for no objects.

    `best` and `hit` (d,): each detection's object and whether it overlaps it enough, the best
    score first; `crowd` (N,); `wanted` objects are to be found.
    """
    if not wanted:
        return -1.0
    counted = ~hit
    counted[hit] = ~crowd[best[hit]]
    best, hit = best[counted], hit[counted]
    right = np.zeros(len(best), bool)
    hits = np.flatnonzero(hit)
    right[hits[np.unique(best[hits], return_index=True)[1]]] = True  # an object's first finder
    found = np.cumsum(right)
    precision = found / np.arange(1, len(found) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(envelope[right].sum()) / wanted  # each find is a step of recall, 1 / wanted


# --- shared ----------------------------------------------------------------------------------


def _require_known_labels(annotations: Annotations, detections: Detections) -> None:
    """Refuse detections of more classes than there are: pycocotools would drop them in silence."""
    strange = ~np.isin(detections.labels, np.arange(len(annotations.classes)))
    if strange.any():
        raise Refusal(
            f"detections: a label is {detections.labels[strange][0]}, but the data set has "
            f"{len(annotations.classes)} classes; evaluate on the classes that were trained on"
        )


def rows_of_pictures(annotations: Annotations, detections: Detections) -> np.ndarray:
    """Find the row of each detection's picture, (D,) int64; refuse detections of other data."""
    order = np.argsort(annotations.picture_ids, kind="stable")
    ids = annotations.picture_ids[order]
    place = np.searchsorted(ids, detections.picture_ids)
    known = place < len(ids)
    known[known] = ids[place[known]] == detections.picture_ids[known]
    if not known.all():
        per_picture = Counter(detections.picture_ids[~known].tolist())
        raise Refusal(
            f"detections: {len(per_picture)} of their pictures, such as {min(per_picture)}, are "
            f"not among the {len(ids)} annotated ones; evaluate on the splits they were made from"
        )
    return order[place]


def overlaps_of(
    annotations: Annotations, rows: np.ndarray, boxes: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Go through the pictures that have both detections (d of them) and objects (n).

    Yields the places of the detections (d,), those of the objects (n,) and their IoU (d, n).
    """
    order = np.argsort(rows, kind="stable")
    in_order = rows[order]
    seen, firsts = np.unique(in_order, return_index=True)
    lasts = np.searchsorted(in_order, seen, side="right")
    for picture, first, last in zip(seen.tolist(), firsts, lasts, strict=True):
        mine = order[first:last]
        objects = np.arange(annotations.offsets[picture], annotations.offsets[picture + 1])
        if len(objects):
            yield mine, objects, box_math.iou(boxes[mine], annotations.boxes[objects])
