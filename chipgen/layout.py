"""Finds the parts of a data set: COCO or VOC folders, or whatever a dataset.toml names."""

import fnmatch
import re
import tomllib
from dataclasses import dataclass, replace

from chipgen.errors import Refusal
from chipgen.recipe import build
from chipgen.storage import Folder, LocalFolder, open_folder

KNOWN = (
    "COCO (annotations/instances_NAME.json beside the picture folder NAME), "
    "VOC (Annotations, ImageSets/Main, JPEGImages), or a dataset.toml"
)


@dataclass(frozen=True)
class Split:
    """One split as a dataset.toml names it; paths are relative to that file, or whole."""

    annotations: str  # a COCO json, or several as part-*.json; or a folder of VOC xml files
    pictures: str  # the folder of the pictures
    names: str = ""  # VOC only: a text file that names the split's pictures, one a line


@dataclass(frozen=True)
class Layout:
    """Where the parts of a data set lie."""

    style: str  # "coco" or "voc"
    folder: Folder
    splits: dict[str, Split]
    classes: tuple[str, ...] = ()  # VOC only: their order; empty: as found in the xml, sorted

    def split(self, name: str) -> Split:
        """Find a split by its name, or by its name less the year: train for train2017."""
        if name in self.splits:
            return self.splits[name]
        alike = [full for full in self.splits if re.fullmatch(re.escape(name) + r"\d{4}", full)]
        if len(alike) == 1:
            return self.splits[alike[0]]
        known = ", ".join(sorted(self.splits)) or "none"
        raise Refusal(f"{self.folder}: no split {name!r}; there is {known} (see --split)")

    def files(self, split: Split) -> list[Split]:
        """Give a split as one for each of its files of annotations, in the order of names."""
        folder, name = self.part(split.annotations)
        parent, _, pattern = name.rpartition("/")
        if self.style != "coco" or "*" not in pattern:
            return [split]
        names = (folder.sub(parent) if parent else folder).names()
        found = fnmatch.filter(names, pattern)
        if not found:
            raise Refusal(f"annotations {split.annotations}: no such file in {folder}")
        stem = split.annotations.removesuffix(pattern)
        return [replace(split, annotations=stem + one) for one in sorted(found)]

    def part(self, path: str) -> tuple[Folder, str]:
        """Resolve a path of a split into its folder and the name in it."""
        if "://" in path or path.startswith("/"):
            parent, _, name = path.rstrip("/").rpartition("/")
            return open_folder(parent), name
        return self.folder, path

    def picture_folder(self, split: Split) -> Folder:
        """Open the folder of a split's pictures."""
        folder, name = self.part(split.pictures)
        return folder if name in (".", "") else folder.sub(name)


def find(where: str) -> Layout:
    """Recognise the data set at a path or URL."""
    if where.endswith(".toml"):
        parent, _, name = where.rpartition("/")
        return _from_toml(open_folder(parent or "."), name)
    folder = open_folder(where)
    names = folder.names()
    if not names:
        missing = isinstance(folder, LocalFolder) and not folder.path.exists()
        state = "does not exist" if missing else "is empty or not a folder"
        raise Refusal(f"data set {where}: {state}")
    if "dataset.toml" in names:
        return _from_toml(folder, "dataset.toml")
    if "annotations" in names:
        splits = _coco_splits(folder, names)
        if splits:
            return Layout("coco", folder, splits)
    if {"Annotations", "JPEGImages"} <= set(names):
        return Layout("voc", folder, _voc_splits(folder))
    raise Refusal(f"data set {where}: not a layout that is known; known are {KNOWN}")


def _coco_splits(folder: Folder, names: list[str]) -> dict[str, Split]:
    splits = {}
    for file in folder.sub("annotations").names():
        match = re.fullmatch(r"instances_(.+)\.json", file)
        if match:
            pictures = next((p for p in (match[1], "images") if p in names), match[1])
            splits[match[1]] = Split(f"annotations/{file}", pictures)
    return splits


def _voc_splits(folder: Folder) -> dict[str, Split]:
    lists = [n[:-4] for n in folder.sub("ImageSets/Main").names() if n.endswith(".txt")]
    return {
        name: Split("Annotations", "JPEGImages", f"ImageSets/Main/{name}.txt") for name in lists
    }


def _from_toml(folder: Folder, name: str) -> Layout:
    where = f"{folder}/{name}"
    try:
        table = tomllib.loads(folder.read(name).decode("utf-8"))
    except FileNotFoundError as error:
        raise Refusal(f"data set {where}: no such file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise Refusal(f"data set {where}: not valid TOML: {error}") from error
    file = build(_File, {k: v for k, v in table.items() if k != "splits"}, where)
    splits = table.get("splits", {})
    if not isinstance(splits, dict) or not splits:
        raise Refusal(f"data set {where}: needs a table [splits.NAME] for each split")
    if file.format not in ("coco", "voc"):
        raise Refusal(f"data set {where}: format = {file.format!r}; known are 'coco' and 'voc'")
    built = {key: build(Split, one, f"{where}: splits.{key}") for key, one in splits.items()}
    return Layout(file.format, folder, built, file.classes)


@dataclass(frozen=True)
class _File:
    """The part of a dataset.toml outside [splits]."""

    format: str
    classes: tuple[str, ...] = ()
