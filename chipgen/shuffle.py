"""Puts the pictures of a data set into writing order, however many they are.

The order is that of a number drawn for each picture id. What comes is held until it is too much,
then goes to disk as a run, sorted and cut into BUCKETS ranges of those numbers, all runs in one
file; one range of all runs at a time is read back, merged and given out. A picture that is listed
twice has one number, so it meets itself in its bucket.
"""

import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from chipgen import draws
from chipgen.dataset import PICTURES, REJECTS, Annotations, join, repeated_pictures

ORDER = 1 << 21  # stream of draws: the order of pictures
BUCKETS = 1024
HELD = 3 << 20  # pictures and boxes that are held in memory: about 150 MB
PART = 1 << 14  # pictures that are given out at a time


class Shuffle:
    """Takes the parts of a data set, then gives its pictures in writing order."""

    def __init__(self, seed: int, scratch: Path):
        self.seed = seed
        self.path = scratch / "runs.arrow"  # made, with its folder, when it is needed; not removed
        self._held: list[Annotations] = []
        self._weight = 0
        self._runs = 0
        self._file: pa.ipc.RecordBatchFileWriter | None = None
        self.like: Annotations | None = None  # no pictures, but classes and roots of all parts

    def add(self, part: Annotations) -> None:
        """Take some pictures."""
        part = dataclasses.replace(part, rejects=REJECTS.empty_table())  # who adds has them
        self.like = part.take(np.zeros(0, np.int64))
        self._held.append(part)
        self._weight += len(part.picture_ids) + len(part.boxes)
        if self._weight > HELD:
            self._write_run()

    def parts(self) -> Iterator[tuple[Annotations, np.ndarray]]:
        """Give the pictures in order, some at a time, and which are there again, (P,) bool."""
        if not self._runs:
            yield from self._pieces(self._in_order(self._held))
            return
        if self._held:
            self._write_run()
        self._file.close()
        with pa.ipc.open_file(pa.OSFile(str(self.path))) as file:
            for bucket in range(BUCKETS):
                of_runs = [file.get_batch(run * BUCKETS + bucket) for run in range(self._runs)]
                found = _annotations(pa.Table.from_batches(of_runs), self.like)
                yield from self._pieces(self._in_order([found]))

    def _in_order(self, parts: list[Annotations]) -> Annotations:
        if not parts:
            return self.like
        whole = join(parts)
        return whole.take(np.argsort(self._numbers(whole), kind="stable"))

    def _pieces(self, whole: Annotations) -> Iterator[tuple[Annotations, np.ndarray]]:
        again = repeated_pictures(whole)
        for start in range(0, len(again), PART):
            rows = np.arange(start, min(start + PART, len(again)))
            yield whole.take(rows), again[rows]

    def _numbers(self, annotations: Annotations) -> np.ndarray:
        return draws.uniform(self.seed, annotations.picture_ids, ORDER)

    def _write_run(self) -> None:
        """Write what is held, one record batch a bucket."""
        whole = self._in_order(self._held)
        self._held, self._weight = [], 0
        edges = np.searchsorted(self._numbers(whole), np.arange(BUCKETS + 1) / BUCKETS)
        rows = _rows(whole)
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = pa.ipc.new_file(str(self.path), rows.schema)
        for first, last in itertools.pairwise(edges.tolist()):
            self._file.write_batch(rows.slice(first, last - first))
        self._runs += 1


def _rows(annotations: Annotations) -> pa.RecordBatch:
    """Make a row of each picture, with its boxes as lists."""
    offsets = pa.array(annotations.offsets, pa.int64())
    values = {
        "boxes": pa.FixedSizeListArray.from_arrays(pa.array(annotations.boxes.ravel()), 4),
        "labels": pa.array(annotations.labels),
        "crowd": pa.array(annotations.crowd.view(np.uint8)),
        "annotation_ids": pa.array(annotations.annotation_ids),
    }
    columns = {name: annotations.pictures[name].combine_chunks() for name in PICTURES.names}
    for name, of_boxes in values.items():
        columns[name] = pa.LargeListArray.from_arrays(offsets, of_boxes)
    return pa.RecordBatch.from_pydict(columns)


def _annotations(table: pa.Table, like: Annotations) -> Annotations:
    """Take the boxes out of the rows of `_rows`."""
    lists = {
        name: table[name].combine_chunks()
        for name in ("boxes", "labels", "crowd", "annotation_ids")
    }
    values = {name: column.flatten() for name, column in lists.items()}
    lengths = np.diff(lists["labels"].offsets.to_numpy())
    return dataclasses.replace(
        like,
        pictures=table.select(PICTURES.names).combine_chunks(),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        boxes=values["boxes"].flatten().to_numpy().reshape(-1, 4),
        labels=values["labels"].to_numpy(),
        crowd=values["crowd"].to_numpy().view(bool),
        annotation_ids=values["annotation_ids"].to_numpy(),
    )
