"""What `detect` keeps: pictures.jsonl, a line for each picture, and the files made of them.

The first line says what the others were found with. Lines stay on disk: data sets that are looked
through have millions of pictures, and a place in the file is all that a picture takes in memory.
"""

import contextlib
import logging
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import msgspec
import numpy as np
import pyarrow as pa

from chipgen.errors import Refusal
from chipgen.raw import as_text
from chipgen.run import EDGES
from chipgen.sealed import encode_json
from chipgen.storage import LocalFolder, writing
from chipgen.tables import create_table
from infer.detections import Detections
from infer.detector import Result
from train.hold import Hold

LINES = "pictures.jsonl"
PARTS = "parts"  # folder of those of parts, PARTS/I-of-N
FOUND = pa.schema(
    [("file", pa.string())]
    + [(name, pa.float32()) for name in (*EDGES, "score")]
    + [("label", pa.int32()), ("class", pa.string())]
)
log = logging.getLogger("infer")


@dataclass(frozen=True)
class Line:
    """Where the line of a picture lies, and which version of its file it is of."""

    version: str | None  # None: of before there were versions
    start: int
    length: int


class Writer:
    """Adds lines to the end of the file."""

    def __init__(self, out: LocalFolder, file: BinaryIO):
        self._path, self._file = out.path / LINES, file

    def add(self, content: dict[str, Any]) -> Line:
        """Write a line at once, so that it is there whatever comes."""
        return self.copy(checked(content), content.get("version"))

    def copy(self, data: bytes, version: str | None) -> Line:
        """Write a line that is there already."""
        with writing(self._path):
            self._file.write(data)
            self._file.flush()
        return Line(version, self._file.tell() - len(data), len(data))


@contextlib.contextmanager
def opened(out: LocalFolder, head: dict[str, Any]) -> Iterator[Writer]:
    """Open the file to add lines; a new one begins with the head."""
    with writing(out.path):
        out.path.mkdir(parents=True, exist_ok=True)
    with (out.path / LINES).open("ab") as file:
        writer = Writer(out, file)
        if not file.tell():
            writer.add(head)
        yield writer


def read(out: LocalFolder, head: dict[str, Any], held: bool = True) -> dict[str, Line]:
    """Find what an earlier run left, by file; a line that is cut off or damaged is dropped.

    Only who holds the folder may cut off the end of a line: else somebody may be about to write it.
    """
    if not out.exists(LINES):
        return {}
    found: dict[str, Line] = {}
    start = lost = 0
    with (out.path / LINES).open("rb") as file:
        for data in file:
            if not data.endswith(b"\n"):
                if held:
                    os.truncate(out.path / LINES, start)
                break
            content = read_checked(data)
            if not start:
                _require_same(out, content, head)
            elif content is None:
                lost += 1
            elif "file" in content:
                found[content["file"]] = Line(content.get("version"), start, len(data))
            start += len(data)
    if lost:
        log.warning("%s/%s: %d damaged lines; those pictures are done again", out, LINES, lost)
    return found


def take_over(out: LocalFolder, head: dict[str, Any]) -> dict[str, Line]:
    """Move the lines of all parts to the others; refuses while one of them is still at it."""
    moved: dict[str, Line] = {}
    for part in parts(out):
        with Hold(part):
            if found := read(part, head):
                with (part.path / LINES).open("rb") as file, opened(out, head) as writer:
                    for name, line in found.items():
                        file.seek(line.start)
                        moved[name] = writer.copy(file.read(line.length), line.version)
            part.remove(LINES)
        with contextlib.suppress(OSError):  # somebody has just begun with that part anew
            part.path.rmdir()
            part.path.parent.rmdir()
    return moved


def parts(out: LocalFolder) -> list[LocalFolder]:
    """List the folders of the parts that are there."""
    return [LocalFolder(path) for path in sorted(out.path.glob(f"{PARTS}/*-of-*"))]


def _require_same(out: LocalFolder, first: dict[str, Any] | None, head: dict[str, Any]) -> None:
    if first is None:
        raise Refusal(f"{out}/{LINES}: its first line is damaged; delete that folder")
    differing = [key for key in head if first.get(key) != head[key]]
    if differing:
        raise Refusal(
            f"{out}: holds detections made with another {' and '.join(differing)}; delete it, or "
            f"choose another folder"
        )


def content_of(file: str, version: str, result: Result) -> dict[str, Any]:
    """Say what a line has of a result."""
    return {
        "file": as_text(file),
        "version": version,
        "size": list(result.size),
        "boxes": np.round(result.boxes.astype(np.float64), 3).tolist(),
        "scores": np.round(result.scores.astype(np.float64), 5).tolist(),
        "labels": result.labels.tolist(),
        "chips": {level: chips.round(1).tolist() for level, chips in result.chips.items()},
        "processed": result.processed,
    }


def checked(content: dict[str, Any]) -> bytes:
    """Write a line, with a checksum of what it says."""
    crc32 = zlib.crc32(msgspec.json.encode(content))
    return msgspec.json.encode({**content, "crc32": crc32}) + b"\n"


def read_checked(line: bytes) -> dict[str, Any] | None:
    """Read a line back; None where it is damaged."""
    try:
        read = msgspec.json.decode(line, type=dict)
    except ValueError:
        return None
    crc32 = read.pop("crc32", None)
    whole = crc32 is None or crc32 == zlib.crc32(msgspec.json.encode(read))
    return read if whole else None


def write_detections(out: LocalFolder, lines: list[Line], classes: tuple[str, ...]) -> int:
    """Write what lines have found as COCO's json of results, and as Parquet; gives its count."""
    numbers = range(1, len(classes) + 1)
    images = []
    with (
        (out.path / LINES).open("rb") as file,
        out.create("detections.json") as rows,
        create_table(out, "detections.parquet", FOUND) as table,
    ):
        rows.write(b"[")
        for picture_id, line in enumerate(lines, 1):
            file.seek(line.start)
            content = read_checked(file.read(line.length))
            if content is None:
                raise Refusal(f"{out}/{LINES}: damaged while it was in use; run the same again")
            width, height = content["size"]
            name = content["file"]
            images.append({"id": picture_id, "file_name": name, "width": width, "height": height})
            found = _detections_of(content, picture_id)
            if not len(found):
                continue
            rows.write(b"," * (table.rows > 0) + msgspec.json.encode(found.to_rows(numbers))[1:-1])
            table.add(_table_of(found, name, classes))
        rows.write(b"]")
    categories = [{"id": n, "name": name} for n, name in zip(numbers, classes, strict=True)]
    out.write("pictures.json", encode_json({"images": images, "categories": categories}))
    return table.rows


def _detections_of(content: dict[str, Any], picture_id: int) -> Detections:
    return Detections(
        np.full(len(content["scores"]), picture_id, np.int64),
        np.array(content["boxes"], np.float32).reshape(-1, 4),
        np.array(content["scores"], np.float32),
        np.array(content["labels"], np.int32),
    )


def _table_of(found: Detections, file: str, classes: tuple[str, ...]) -> pa.Table:
    return pa.table(
        {
            "file": pa.array([file] * len(found), pa.string()),
            **{name: found.boxes[:, k] for k, name in enumerate(EDGES)},
            "score": found.scores,
            "label": found.labels,
            "class": pa.array(classes, pa.string()).take(pa.array(found.labels)),
        }
    )
