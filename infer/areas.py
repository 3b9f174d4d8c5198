"""The area of each object that COCO's sizes go by, read from the json once more.

N objects of all pictures; areas are float64 picture px^2.
"""

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from chipgen import boxes as box_math
from chipgen import coco, layout, raw
from chipgen.dataset import Annotations
from chipgen.raw import pairs


class _Annotation(msgspec.Struct, gc=False):
    id: Any = None
    image_id: Any = None
    area: Any = None


_Odd = list | int | float | str | bool | None  # what may stand where an object should


class _AnnotationFile(msgspec.Struct):
    annotations: list[_Annotation | _Odd]


def areas_of(where: str, splits: Sequence[str], annotations: Annotations) -> np.ndarray:
    """Give the area that COCO's sizes go by, (N,) float64.

    That is the annotation's own `area`, which in COCO is the segmentation's and so smaller than
    the box; where the data set has none, it is the box's.
    """
    areas = box_math.areas(annotations.boxes)
    found = layout.find(where)
    if found.style != "coco":
        return areas
    names = np.array(annotations.pictures["split"].to_pylist(), dtype=object)
    split_of_box = names[annotations.picture_of_box]
    picture_ids = annotations.picture_ids[annotations.picture_of_box]
    for name in splits:
        left = np.flatnonzero(split_of_box == name)  # objects whose file is still to come
        for file in found.files(found.split(name)):
            ids, pictures, listed = _listed(
                coco.parse(*coco.read_json(found, file), _AnnotationFile).annotations
            )
            if not len(ids):
                continue
            # their ids may be unique within a picture only, those of pictures over all files
            wanted = annotations.annotation_ids[left]
            numbers = pairs(
                np.concatenate([pictures, picture_ids[left]]), np.concatenate([ids, wanted])
            )
            known, first = np.unique(numbers[: len(ids)], return_index=True)
            place = np.searchsorted(known, numbers[len(ids) :])
            place = first[np.minimum(place, len(known) - 1)]
            here = (ids[place] == wanted) & (pictures[place] == picture_ids[left])
            usable = here & np.isfinite(listed[place]) & (listed[place] >= 0)
            areas[left[usable]] = listed[place[usable]]
            left = left[~here]
    return areas


def _listed(entries: list) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Give a file's annotations: ids, pictures, and areas, NaN for unusable ones."""
    entries = [one if isinstance(one, _Annotation) else _Annotation() for one in entries]
    pictures, _ = raw.ids([one.image_id for one in entries])
    areas = raw.floats([one.area for one in entries])
    values = [one.id for one in entries]
    if all(value is None for value in values):  # the reader numbers them, too
        return np.arange(len(values)), pictures, areas
    return raw.ids(values)[0], pictures, areas
