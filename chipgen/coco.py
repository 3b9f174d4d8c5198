"""Reads a COCO json: one pass that builds only the fields that are used.

Segmentations, most of a COCO json, are skipped while parsing; every other field may
be of the wrong type, which is found out later, entry by entry.
"""

import contextlib
import gc
import json
import operator
from collections.abc import Iterator
from typing import Any, TypeVar

import msgspec
import numpy as np

from chipgen import raw
from chipgen.errors import Refusal
from chipgen.layout import Layout, Split
from chipgen.raw import RawSplit


class _Picture(msgspec.Struct, gc=False):
    id: Any = None
    file_name: Any = None
    width: Any = None
    height: Any = None


class _Annotation(msgspec.Struct, gc=False):
    id: Any = None
    image_id: Any = None
    category_id: Any = None
    bbox: Any = None
    iscrowd: Any = 0


class _Category(msgspec.Struct):
    id: Any
    name: str


_Odd = list | int | float | str | bool | None  # what may stand where an object should


Parsed = TypeVar("Parsed")


class _File(msgspec.Struct):
    images: list[_Picture | _Odd]
    annotations: list[_Annotation | _Odd]
    categories: list[_Category]


def read_split(layout: Layout, split: Split) -> RawSplit:
    """Read the json of a split."""
    data, where = read_json(layout, split)
    with _without_gc():
        return _columns(parse(data, where, _File), where)


def read_json(layout: Layout, split: Split) -> tuple[bytes, str]:
    """Read a json file of annotations: its bytes, and its name for messages."""
    folder, name = layout.part(split.annotations)
    where = f"{folder}/{name}"
    try:
        return folder.read(name), where
    except (FileNotFoundError, IsADirectoryError) as error:
        raise Refusal(f"annotations {where}: no such file") from error


def parse(data: bytes, where: str, kind: type[Parsed]) -> Parsed:
    """Read of a json what a struct names; NaN and Infinity are let in."""
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError as error:
        raise Refusal(f"annotations {where}: not COCO: {error}") from error
    except (msgspec.DecodeError, UnicodeDecodeError):
        pass  # Python's own writer puts NaN and Infinity into json, which the fast parser refuses
    try:
        return msgspec.convert(json.loads(data), type=kind)
    except msgspec.ValidationError as error:
        raise Refusal(f"annotations {where}: not COCO: {error}") from error
    except (ValueError, RecursionError) as error:
        raise Refusal(f"annotations {where}: not json: {error}") from error


def _columns(file: _File, where: str) -> RawSplit:
    category_ids, category_ids_readable = raw.ids(_column(file.categories, "id"))
    order = np.argsort(category_ids, kind="stable")
    classes, category_ids = [file.categories[k].name for k in order], category_ids[order]
    if not classes or not category_ids_readable.all() or (np.diff(category_ids) == 0).any():
        raise Refusal(f"annotations {where}: categories are missing, have no id or share one")

    pictures, picture_objects = _objects(file.images, _Picture)
    picture_ids, picture_ids_readable = raw.ids(_column(pictures, "id"))
    faults = dict.fromkeys(np.flatnonzero(~picture_ids_readable).tolist(), "no id")
    faults |= dict.fromkeys(np.flatnonzero(~picture_objects).tolist(), "not an object")
    # converters on Windows write its separator
    files = [
        name.replace("\\", "/") if isinstance(name, str) else ""
        for name in _column(pictures, "file_name")
    ]
    sizes = [raw.floats(_column(pictures, "width")), raw.floats(_column(pictures, "height"))]

    annotations, objects = _objects(file.annotations, _Annotation)
    ids, ids_readable = _annotation_ids(_column(annotations, "id"))
    of_picture, of_picture_readable = raw.ids(_column(annotations, "image_id"))
    category, category_readable = raw.ids(_column(annotations, "category_id"))
    boxes, boxes_readable = raw.quadruples(_column(annotations, "bbox"))
    boxes[:, 2:] += boxes[:, :2]  # xywh -> xyxy
    crowd = [mark == 1 or mark == "1" for mark in _column(annotations, "iscrowd")]  # true is 1

    place = np.minimum(np.searchsorted(category_ids, category), len(classes) - 1)
    known = category_readable & (category_ids[place] == category)
    return RawSplit(
        classes=tuple(classes),
        picture_ids=picture_ids,
        files=files,
        picture_sizes=np.stack(sizes, axis=1),
        picture_faults=faults,
        annotation_ids=ids,
        annotation_pictures=of_picture,
        labels=np.where(known, place, -1),
        boxes=boxes,
        crowd=np.array(crowd, dtype=bool),
        readable=objects & ids_readable & of_picture_readable & boxes_readable,
    )


def _objects(entries: list, kind: type) -> tuple[list, np.ndarray]:
    """Put an empty object in the place of every entry that is none, and say which were some."""
    if set(map(type, entries)) <= {kind}:
        return entries, np.ones(len(entries), bool)
    mask = np.array([isinstance(entry, kind) for entry in entries], dtype=bool)
    return [entry if ok else kind() for entry, ok in zip(entries, mask, strict=True)], mask


def _column(objects: list, name: str) -> list:
    return list(map(operator.attrgetter(name), objects))


def _annotation_ids(values: list) -> tuple[np.ndarray, np.ndarray]:
    """Read annotation ids; a file that gives none at all gets the rows' numbers."""
    if values and set(map(type, values)) == {type(None)}:
        return np.arange(len(values)), np.ones(len(values), bool)
    return raw.ids(values)


@contextlib.contextmanager
def _without_gc() -> Iterator[None]:
    """Hold the collector, which would walk millions of fresh lists again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
