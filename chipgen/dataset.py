"""Reads an annotated data set into arrays, checks every entry, and lists what it rejects and why.

Legend: P pictures, N boxes, A annotations as listed. Boxes are (N, 4) float32 xyxy in picture
pixels; those of picture p are boxes[offsets[p]:offsets[p + 1]]. A label is the place of the class
in `classes`.
"""

import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from chipgen import boxes as box_math
from chipgen import coco, layout, voc
from chipgen.errors import Refusal
from chipgen.raw import RawSplit, pairs, repeats
from chipgen.storage import Folder, LocalFolder, digest_of

PICTURES = pa.schema(
    {
        "picture_id": pa.int64(),
        "split": pa.string(),
        "root": pa.int32(),  # place of the picture folder in `roots`
        "file": pa.string(),
        "width": pa.int32(),
        "height": pa.int32(),
    }
)
REJECTS = pa.schema(
    {
        "picture_id": pa.int64(),  # null: the entry names no picture
        "file": pa.string(),
        "annotation_id": pa.int64(),  # null: the picture itself is rejected
        "reason": pa.string(),
        "detail": pa.string(),
    }
)
ALIKE = 0.05  # of the pictures; more that share an id with another are no single mistakes
MOST_PIXELS = 1 << 31  # a larger size is mistyped, and the grid of its chips would fill the memory


@dataclass(frozen=True)
class Picture:
    """One picture with its n boxes."""

    entry: dict[str, Any]  # its row of PICTURES
    boxes: np.ndarray  # (n, 4) float32
    labels: np.ndarray  # (n,) int32
    crowd: np.ndarray  # (n,) bool
    annotation_ids: np.ndarray  # (n,) int64

    @functools.cached_property
    def sizes(self) -> np.ndarray:
        """Square roots of the box areas, (n,) float64."""
        return box_math.sizes(self.boxes)


@dataclass(frozen=True)
class Annotations:
    """A data set, or some splits of it."""

    pictures: pa.Table  # of schema PICTURES
    offsets: np.ndarray  # (P + 1,) int64
    boxes: np.ndarray  # (N, 4) float32
    labels: np.ndarray  # (N,) int32
    crowd: np.ndarray  # (N,) bool: only ever causes "ignore"
    annotation_ids: np.ndarray  # (N,) int64
    classes: tuple[str, ...]
    roots: tuple[str, ...]  # picture folders
    rejects: pa.Table  # of schema REJECTS
    listed: dict[str, int]  # pictures and annotations in the input, and boxes that were clipped

    @property
    def picture_ids(self) -> np.ndarray:
        """Picture ids, (P,) int64."""
        return self.pictures["picture_id"].to_numpy()

    @property
    def widths(self) -> np.ndarray:
        """Picture widths, (P,) int32."""
        return self.pictures["width"].to_numpy()

    @property
    def heights(self) -> np.ndarray:
        """Picture heights, (P,) int32."""
        return self.pictures["height"].to_numpy()

    @property
    def picture_of_box(self) -> np.ndarray:
        """Give the row of the picture that each box lies in, (N,) int64."""
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))

    def each(self) -> Iterator[Picture]:
        """Go through the pictures one by one."""
        spans = itertools.pairwise(self.offsets.tolist())
        for entry, (first, last) in zip(self.pictures.to_pylist(), spans, strict=True):
            boxes = slice(first, last)
            yield Picture(
                entry,
                self.boxes[boxes],
                self.labels[boxes],
                self.crowd[boxes],
                self.annotation_ids[boxes],
            )

    def take(self, rows: np.ndarray) -> "Annotations":
        """Give the same data set with only these pictures, in this order."""
        lengths = np.diff(self.offsets)[rows]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        of_box = np.arange(offsets[-1]) + np.repeat(self.offsets[rows] - offsets[:-1], lengths)
        return dataclasses.replace(
            self,
            pictures=self.pictures.take(pa.array(rows)),
            offsets=offsets,
            boxes=self.boxes[of_box],
            labels=self.labels[of_box],
            crowd=self.crowd[of_box],
            annotation_ids=self.annotation_ids[of_box],
        )


def read(where: str, splits: Sequence[str]) -> Annotations:
    """Read splits of the data set at a path or URL; the README shows the layouts that it knows."""
    whole = join(list(parts(where, splits)))
    again = repeated_pictures(whole)
    rejects = reject_repeats(whole.take(np.flatnonzero(again)))
    return dataclasses.replace(
        whole.take(np.flatnonzero(~again)),
        rejects=pa.concat_tables([whole.rejects, rejects]).combine_chunks(),
    )


def parts(where: str, splits: Sequence[str]) -> Iterator[Annotations]:
    """Read splits file by file; a picture may be in several, see `repeated_pictures`."""
    found = layout.find(where)
    named = [found.split(name) for name in splits]
    if len(set(named)) < len(named):
        raise Refusal(f"--split {','.join(splits)}: names one split twice")
    read_split = {"coco": coco.read_split, "voc": voc.read_split}[found.style]
    folders = [found.picture_folder(split) for split in named]
    roots = tuple(map(_absolute, folders))
    classes = None
    for root, (name, split) in enumerate(zip(splits, named, strict=True)):
        missing: list[str] = []  # pictures that were looked for, until one is found
        for one in found.files(split):
            raw = read_split(found, one)
            classes = classes or raw.classes
            if raw.classes != classes:
                raise Refusal(
                    f"{where}: the classes of split {name} ({one.annotations}) are not those of "
                    f"{splits[0]}; what is read together must list the same categories"
                )
            part = _check(raw, name, root)
            if missing is not None:
                sample = _sample(part.pictures["file"])
                there = any(folders[root].exists(file) for file in sample)
                missing = None if there else missing + sample
            yield dataclasses.replace(part, roots=roots)
        if missing:
            raise Refusal(
                f"picture folder {folders[root]}: has none of {len(missing)} pictures that the "
                f"annotations name, such as {missing[0]}; a dataset.toml can name the right folder"
            )


def picture_folders(where: str, splits: Sequence[str]) -> tuple[str, ...]:
    """Name the picture folder of each split."""
    found = layout.find(where)
    return tuple(_absolute(found.picture_folder(found.split(name))) for name in splits)


def _absolute(folder: Folder) -> str:
    """Name a folder so that it is found from any working directory."""
    return str(folder.path.absolute()) if isinstance(folder, LocalFolder) else str(folder)


def fingerprint(where: str, splits: Sequence[str]) -> str:
    """Hash what `read` reads: annotations by content, and where the pictures are."""
    found = layout.find(where)
    state = hashlib.sha256()
    for split in [found.split(name) for name in splits]:
        state.update(f"{found.style} {found.classes} {split}\n".encode())
        for folder, name in _annotation_files(found, split):
            try:
                state.update(bytes.fromhex(digest_of(folder, name)))
            except FileNotFoundError as error:
                raise Refusal(f"annotations {folder}/{name}: no such file") from error
    return state.hexdigest()


def _annotation_files(found: layout.Layout, split: layout.Split) -> list[tuple[Folder, str]]:
    if found.style == "coco":
        return [found.part(one.annotations) for one in found.files(split)]
    folder, name = found.part(split.annotations)
    folder = folder.sub(name)
    lists = [found.part(split.names)] if split.names else []
    return lists + [(folder, name) for name in folder.names() if name.endswith(".xml")]


def rejected(rows: Iterable[tuple]) -> pa.Table:
    """Make a table of rejects of (picture_id, file, annotation_id, reason, detail) rows."""
    columns = list(zip(*rows, strict=True)) or [[]] * len(REJECTS)
    return pa.Table.from_arrays(
        [pa.array(c, f.type) for c, f in zip(columns, REJECTS, strict=True)], schema=REJECTS
    )


def _check(raw: RawSplit, split: str, root: int) -> Annotations:
    """Sort the entries of one split into pictures with boxes and rejects."""
    picture_reasons = _picture_reasons(raw)
    kept = np.flatnonzero(picture_reasons == "")
    order = kept[np.argsort(raw.picture_ids[kept], kind="stable")]
    sorted_ids = raw.picture_ids[order]
    sizes = raw.picture_sizes[order].astype(np.int64)  # (P, 2)

    row = np.searchsorted(sorted_ids, raw.annotation_pictures)  # (A,) place among the good ones
    row = np.minimum(row, max(len(order) - 1, 0))
    has_picture = np.zeros(len(row), bool)
    if len(order):
        has_picture = sorted_ids[row] == raw.annotation_pictures
    limits = np.tile(sizes, 2)[row] if len(order) else np.zeros((len(row), 4))
    with np.errstate(invalid="ignore"):
        clipped = np.clip(raw.boxes, 0, limits).astype(np.float32)
    reasons = _annotation_reasons(raw, has_picture, clipped)

    good = np.flatnonzero(reasons == "")
    good = good[np.argsort(row[good], kind="stable")]
    counts = np.bincount(row[good], minlength=len(order))
    files = [raw.files[i] for i in order]
    arrays = [
        sorted_ids,
        [split] * len(order),
        [root] * len(order),
        files,
        sizes[:, 0],
        sizes[:, 1],
    ]
    return Annotations(
        pictures=pa.Table.from_arrays(
            [pa.array(a, f.type) for a, f in zip(arrays, PICTURES, strict=True)], schema=PICTURES
        ),
        offsets=np.concatenate([[0], np.cumsum(counts)]),
        boxes=clipped[good],
        labels=raw.labels[good].astype(np.int32),
        crowd=raw.crowd[good],
        annotation_ids=raw.annotation_ids[good],
        classes=raw.classes,
        roots=(),
        rejects=_rejects(raw, picture_reasons, reasons),
        listed={
            "pictures": len(raw.files),
            "annotations": len(raw.annotation_ids),
            "clipped": int((clipped[good] != raw.boxes[good].astype(np.float32)).any(1).sum()),
        },
    )


def _picture_reasons(raw: RawSplit) -> np.ndarray:
    """Give each listed picture the first reason against it, (P,) str; "" for a good one."""
    readable = raw.picture_readable
    duplicate = np.zeros(len(readable), bool)
    duplicate[readable] = repeats(raw.picture_ids[readable])
    sizes = raw.picture_sizes
    with np.errstate(invalid="ignore", over="ignore"):
        whole = ((sizes >= 1) & (sizes == np.floor(sizes))).all(axis=1)
        small = sizes.prod(axis=1) < MOST_PIXELS
    named = np.array([_is_safe(name) for name in raw.files], dtype=bool)
    conditions = [~readable, duplicate, ~named, ~(whole & small)]
    names = ["malformed", "duplicate_picture_id", "unsafe_name", "bad_size"]
    return np.select(conditions, names, default="")


def _is_safe(name: str) -> bool:
    """Say whether a file name from outside stays inside the picture folder."""
    if not name or "\\" in name or "\0" in name or "://" in name:
        return False
    return not name.startswith("/") and ".." not in name.split("/")


def _annotation_reasons(raw: RawSplit, has_picture: np.ndarray, clipped: np.ndarray) -> np.ndarray:
    """Give each listed annotation the first reason against it, (A,) str; "" for a good one."""
    finite = np.isfinite(raw.boxes).all(axis=1)
    unlisted = ~has_picture
    listed = raw.picture_ids[raw.picture_readable]
    unlisted[unlisted] = ~np.isin(raw.annotation_pictures[unlisted], listed)
    duplicate = np.zeros(len(raw.readable), bool)
    duplicate[raw.readable] = repeats(raw.annotation_ids[raw.readable])
    if duplicate.any():  # in some files, each picture counts from one
        of = raw.annotation_pictures[raw.readable], raw.annotation_ids[raw.readable]
        duplicate[raw.readable] = repeats(pairs(*of))
    with np.errstate(invalid="ignore"):
        empty = (raw.boxes[:, 2:] <= raw.boxes[:, :2]).any(axis=1)
        outside = (clipped[:, 2:] <= clipped[:, :2]).any(axis=1)
    conditions = [
        ~raw.readable, unlisted, ~has_picture, duplicate, raw.labels < 0, ~finite, empty, outside
    ]  # fmt: skip
    names = [
        "malformed",
        "no_such_picture",
        "picture_rejected",
        "duplicate_annotation_id",
        "unknown_category",
        "not_finite",
        "empty_box",
        "outside_picture",
    ]
    return np.select(conditions, names, default="")


def _rejects(raw: RawSplit, picture_reasons: np.ndarray, reasons: np.ndarray) -> pa.Table:
    rows = []
    for i in np.flatnonzero(picture_reasons != "").tolist():
        width, height = raw.picture_sizes[i].tolist()
        detail = raw.picture_faults.get(i, f"{width:g}x{height:g}")
        if picture_reasons[i] == "unsafe_name":
            detail = "no name of a file within the picture folder"
        rows.append((int(raw.picture_ids[i]), raw.files[i], None, picture_reasons[i], detail))
    faulty = np.flatnonzero(reasons != "").tolist()
    readable = np.flatnonzero(raw.picture_readable).tolist() if faulty else []
    file_of = {int(raw.picture_ids[i]): raw.files[i] for i in readable}
    for i in faulty:
        picture_id = int(raw.annotation_pictures[i])
        detail = f"xyxy {' '.join(f'{v:g}' for v in raw.boxes[i])}"
        file = file_of.get(picture_id, "")
        rows.append((picture_id, file, int(raw.annotation_ids[i]), reasons[i], detail))
    return rejected(rows)


def _sample(files: pa.ChunkedArray) -> list[str]:
    """Choose up to 20 pictures; where none of them exists, the picture folder is the wrong one."""
    return files.take(np.arange(0, len(files), max(1, len(files) // 20))[:20]).to_pylist()


def join(parts: list[Annotations]) -> Annotations:
    """Put parts of a data set behind one another."""
    ends = np.cumsum([0] + [len(part.boxes) for part in parts])
    shifted = [part.offsets[1:] + end for part, end in zip(parts, ends[:-1], strict=True)]
    return Annotations(
        pictures=pa.concat_tables([part.pictures for part in parts]).combine_chunks(),
        offsets=np.concatenate([[0], *shifted]).astype(np.int64),
        boxes=np.concatenate([part.boxes for part in parts]),
        labels=np.concatenate([part.labels for part in parts]),
        crowd=np.concatenate([part.crowd for part in parts]),
        annotation_ids=np.concatenate([part.annotation_ids for part in parts]),
        classes=parts[0].classes,
        roots=parts[0].roots,
        rejects=pa.concat_tables([part.rejects for part in parts]).combine_chunks(),
        listed={key: sum(part.listed[key] for part in parts) for key in parts[0].listed},
    )


def repeated_pictures(whole: Annotations) -> np.ndarray:
    """Say which pictures another split or file has brought already, (P,) bool.

    Refuses splits or files that number other pictures alike: most of them would be lost.
    """
    ids = whole.picture_ids
    again = repeats(ids)
    rows = np.flatnonzero(again)
    if not len(rows):
        return again
    _, first, place = np.unique(ids, return_index=True, return_inverse=True)
    names = list(zip(_where(whole, first[place[rows]]), _where(whole, rows), strict=True))
    alike = [n for n, (one, other) in enumerate(names) if one != other]
    if len(alike) > max(1, ALIKE * len(ids)):
        one, other = names[alike[0]]
        raise Refusal(
            f"{len(alike)} picture ids stand for two pictures, such as {ids[rows[alike[0]]]} for "
            f"{one} and {other}; what is read together must number its pictures differently"
        )
    return again


def _where(whole: Annotations, rows: np.ndarray) -> list[str]:
    """Name the files of some pictures, with their folders."""
    entries = whole.pictures.take(rows).to_pylist()
    return [f"{whole.roots[entry['root']]}/{entry['file']}" for entry in entries]


def reject_repeats(pictures: Annotations) -> pa.Table:
    """Make the rejects of pictures whose id another part of the data set has taken."""
    return reject_pictures(pictures.each(), "duplicate_picture_id", "in an earlier split or file")


def reject_pictures(pictures: Iterable[Picture], reason: str, detail: str) -> pa.Table:
    """Make the rejects of whole pictures: a row for each, and one for each of their boxes."""
    rows = []
    for picture in pictures:
        name = picture.entry["picture_id"], picture.entry["file"]
        rows.append((*name, None, reason, detail))
        rows += [
            (*name, one, "picture_rejected", reason) for one in picture.annotation_ids.tolist()
        ]
    return rejected(rows)
