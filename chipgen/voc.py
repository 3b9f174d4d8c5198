"""Reads Pascal VOC: one xml a picture; "difficult" boxes count as crowd (they cause "ignore")."""

import xml.etree.ElementTree as ET
from collections.abc import Container
from dataclasses import dataclass, field

import numpy as np

from chipgen import raw
from chipgen.errors import Refusal
from chipgen.layout import Layout, Split
from chipgen.raw import RawSplit
from chipgen.storage import Folder

EDGES = ("xmin", "ymin", "xmax", "ymax")
FLAGS = ("-1", "0", "1")  # behind the names in a list of one class: not shown, difficult, shown


@dataclass
class _Picture:
    """One xml file as found."""

    size: tuple[float, float] = (np.nan, np.nan)
    names: list[str | None] = field(default_factory=list)
    boxes: list[list[float] | None] = field(default_factory=list)
    difficult: list[bool] = field(default_factory=list)
    fault: str = ""


def read_split(layout: Layout, split: Split) -> RawSplit:
    """Read a split's xml files; the classes are those of all splits, so that labels agree."""
    folder, name = layout.part(split.annotations)
    folder = folder.sub(name)
    stems = [n[:-4] for n in folder.names() if n.endswith(".xml")]
    if not stems:
        raise Refusal(f"annotations {folder}: no xml files")
    found = {stem: _read(folder, stem) for stem in stems}
    wanted = _listed(layout, split, found) if split.names else stems
    classes = layout.classes or tuple(
        sorted({name for one in found.values() for name in one.names if name is not None})
    )
    files = _files(layout.picture_folder(split))
    return _columns(wanted, _chosen(wanted, found), classes, files)


def _read(folder: Folder, stem: str) -> _Picture:
    picture = _Picture()
    if raw.as_text(stem) != stem:
        picture.fault = "its name is no UTF-8"
        return picture
    try:
        root = ET.fromstring(folder.read(f"{stem}.xml"))
    except (ET.ParseError, ValueError, LookupError) as error:
        picture.fault = f"not valid xml: {error}"
        return picture
    picture.size = (_number(root, "size/width"), _number(root, "size/height"))
    for entry in root.iter("object"):
        edges = [_number(entry, f"bndbox/{edge}") for edge in EDGES]
        # VOC counts pixels from 1 and includes the last one
        box = [edges[0] - 1, edges[1] - 1, edges[2], edges[3]]
        picture.boxes.append(box if _has_box(entry) else None)
        picture.names.append((entry.findtext("name") or "").strip() or None)
        difficult = (entry.findtext("difficult") or "").strip().lower()
        picture.difficult.append(difficult in ("1", "true"))
    return picture


def _number(entry: ET.Element, path: str) -> float:
    try:
        return float(entry.findtext(path) or "nan")
    except ValueError:
        return np.nan


def _has_box(entry: ET.Element) -> bool:
    return all(
        entry.find(f"bndbox/{edge}") is not None for edge in ("xmin", "ymin", "xmax", "ymax")
    )


def _listed(layout: Layout, split: Split, stems: Container[str]) -> list[str]:
    """Read the list of a split's pictures: a stem for each line."""
    folder, name = layout.part(split.names)
    try:
        lines = folder.read(name).decode("utf-8-sig", "replace").splitlines()
    except FileNotFoundError as error:
        raise Refusal(f"list of pictures {folder}/{name}: no such file") from error
    return [_stem_of(line.strip(), stems) for line in lines if line.strip()]


def _stem_of(line: str, stems: Container[str]) -> str:
    """Read a line of a list: a name, which may have spaces, and perhaps a flag behind it."""
    name, *rest = line.rsplit(maxsplit=1)
    return name if rest and rest[0] in FLAGS and line not in stems else line


def _chosen(wanted: list[str], found: dict[str, _Picture]) -> list[_Picture]:
    """Give a picture for each listed name; one that is listed again comes without its boxes."""
    missing = _Picture(fault="no xml file")
    chosen, seen = [], set()
    for stem in wanted:
        picture = found.get(stem, missing)
        chosen.append(_Picture(picture.size, fault=picture.fault) if stem in seen else picture)
        seen.add(stem)
    return chosen


def _files(folder: Folder) -> dict[str, str]:
    """Find each picture's file by its stem: the filename tags of own data sets are often wrong."""
    return {name.rpartition(".")[0]: name for name in reversed(folder.names()) if "." in name}


def _columns(
    stems: list[str], pictures: list[_Picture], classes: tuple[str, ...], files: dict[str, str]
) -> RawSplit:
    label_of = {name: label for label, name in enumerate(classes)}
    picture_ids = np.array([raw.picture_id_of(raw.as_text(stem)) for stem in stems], dtype=np.int64)
    names = [name for picture in pictures for name in picture.names]
    boxes, readable = raw.quadruples([box for picture in pictures for box in picture.boxes])
    return RawSplit(
        classes=classes,
        picture_ids=picture_ids,
        files=[raw.as_text(files.get(stem, f"{stem}.jpg")) for stem in stems],
        picture_sizes=np.array([p.size for p in pictures], dtype=np.float64).reshape(-1, 2),
        picture_faults={row: p.fault for row, p in enumerate(pictures) if p.fault},
        annotation_ids=np.arange(len(names)),
        annotation_pictures=np.repeat(picture_ids, [len(p.names) for p in pictures]),
        labels=np.array([label_of.get(name, -1) for name in names], dtype=np.int64),
        boxes=boxes,
        crowd=np.array([d for p in pictures for d in p.difficult], dtype=bool),
        readable=readable & np.array([name is not None for name in names], dtype=bool),
    )
