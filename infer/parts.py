"""Evaluation by parts, for many machines: what each has found, and all of it put together.

RUN/eval/part-N.parquet, one for each PICTURES pictures in the data set's order, says what was made
from what; `put_together` turns all of them into the figures that one machine would have given. A
part that is there is not made again, and none stays beside the figures of RUN/eval.json.
"""

import contextlib
import dataclasses
import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa

from chipgen.errors import Refusal
from chipgen.run import EDGES
from chipgen.storage import Folder, LocalFolder
from chipgen.tables import open_table, read_table, table_bytes
from infer import measure
from infer.detections import Detections
from infer.detector import Detector
from infer.measure import Looked, Test

PICTURES = 64  # of a part
NAME = re.compile(r"part-(\d{6,})\.parquet")
log = logging.getLogger("infer")


def folder_of(out: Path) -> LocalFolder:
    """Give the folder of the parts of a file of figures: RUN/eval of RUN/eval.json."""
    return LocalFolder(out.with_suffix("" if out.suffix else ".parts"))


def make(
    folder: Folder, inputs: str, detector: Detector, test: Test, modes: Sequence[str | int],
    part: tuple[int, int],
) -> None:  # fmt: skip
    """Make the missing parts n with n % N == I."""
    count = parts_of(test)
    mine = [n for n in missing(folder, inputs, count, whole=True) if n % part[1] == part[0]]
    for place, n in enumerate(mine):
        rows = np.arange(n * PICTURES, min((n + 1) * PICTURES, len(test.annotations.picture_ids)))
        annotations = test.annotations.take(rows)
        looked = measure.looks(detector, annotations, modes, warm_up=place == 0)
        folder.write(name_of(n), _encode(looked, inputs, count))
    log.info("eval: part %d/%d is made; then: --finish", *part)


def put_together(folder: Folder, inputs: str, test: Test) -> dict[str, Looked]:
    """Give what was found in all pictures, by name of the mode; refuses where parts are missing."""
    count = parts_of(test)
    if not count:
        raise Refusal("the split has no pictures")
    left = missing(folder, inputs, count)
    if left:
        raise Refusal(
            f"{folder}: {len(left)} of {count} parts are missing or of another model, data set, "
            f"setting or commit, such as {left[0]}; make them with --part I/N"
        )
    parts = [_decode(read_table(folder, name_of(n))) for n in range(count)]
    return {name: Looked.concatenate([part[name] for part in parts]) for name in parts[0]}


def remove(folder: Folder) -> None:
    """Remove parts, once the figures are written."""
    for n in _there(folder):
        folder.remove(name_of(n))


def missing(folder: Folder, inputs: str, count: int, whole: bool = False) -> list[int]:
    """List the parts that are not there, or not made from these inputs.

    Where those that are there are to be `whole`, also such as lack pictures that were broken.
    """
    there = set(_there(folder))
    return [n for n in range(count) if n not in there or not _is_made(folder, n, inputs, whole)]


def begun(folder: Folder) -> tuple[list[int], int] | None:
    """Say which parts are missing of how many, whatever they were made from; None: all are.

    A damaged one is refused.
    """
    counts = {}
    for n in _there(folder):
        # one that was just removed is no part
        with contextlib.suppress(FileNotFoundError), open_table(folder, name_of(n)) as file:
            counts[n] = int((file.schema_arrow.metadata or {}).get(b"parts", 0))
    if not counts:
        return None
    count = max(counts.values())
    return sorted(set(range(count)) - counts.keys()), count


def parts_of(test: Test) -> int:
    """Count the parts of a data set."""
    return -(-len(test.annotations.picture_ids) // PICTURES)


def name_of(n: int) -> str:
    """Name the file of a part."""
    return f"part-{n:06d}.parquet"


def _there(folder: Folder) -> Iterator[int]:
    """Go through the numbers of the parts that are there, whole or not."""
    for name in folder.names():
        if match := NAME.fullmatch(name):
            yield int(match[1])


def _is_made(folder: Folder, n: int, inputs: str, whole: bool) -> bool:
    try:
        with open_table(folder, name_of(n)) as file:
            metadata = file.schema_arrow.metadata or {}
    except Refusal:  # damaged: to be made again
        return False
    if metadata.get(b"inputs", b"").decode() != inputs:
        return False
    looked = msgspec.json.decode(metadata[b"looked"]).values()
    return not (whole and any(one["errors"] for one in looked))


def _encode(looked: dict[str, Looked], inputs: str, count: int) -> bytes:
    found = [one.found for one in looked.values()]
    whole = Detections.concatenate(found)
    table = pa.table(
        {
            "mode": np.repeat(np.arange(len(found), dtype=np.int16), [len(one) for one in found]),
            "picture_id": whole.picture_ids,
            **{name: whole.boxes[:, k] for k, name in enumerate(EDGES)},
            "score": whole.scores,
            "label": whole.labels,
        }
    )
    about = {
        name: {f.name: getattr(one, f.name) for f in dataclasses.fields(one) if f.name != "found"}
        for name, one in looked.items()
    }
    return table_bytes(
        table.replace_schema_metadata(
            {
                b"inputs": inputs.encode(),
                b"parts": str(count).encode(),
                b"looked": msgspec.json.encode(about),
            }
        )
    )


def _decode(table: pa.Table) -> dict[str, Looked]:
    about = msgspec.json.decode(table.schema.metadata[b"looked"])
    mode = table["mode"].to_numpy()
    found = Detections(
        table["picture_id"].to_numpy(),
        np.stack([table[name].to_numpy() for name in EDGES], axis=1),
        table["score"].to_numpy(),
        table["label"].to_numpy(),
    )
    return {
        name: Looked(found=found.take(np.flatnonzero(mode == place)), **values)
        for place, (name, values) in enumerate(about.items())
    }
