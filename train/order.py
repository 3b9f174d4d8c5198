"""Which chips each batch of each epoch holds: a function of index, batch size and seed alone.

Neither the number of processes nor that of loader workers enters, so a run goes on where it was
stopped on any number of GPUs. Rows are places in the joint index of all sets of shards.

An epoch of 65 million chips takes 260 MB here, four bytes a chip, and no more than twice that while
it is made: it is drawn and sorted in parts, and a batch becomes an object when it is asked for.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from chipgen import draws
from chipgen.errors import Refusal
from train.index import Index

SHUFFLE = 1 << 24  # stream of draws: the order of an epoch's chips; its batches have the next
CELL = 64  # canvas px: windows of any size are padded to a multiple, which bounds the shapes
PART = 1 << 20  # rows looked at in one go
BUCKETS = 256  # an epoch is sorted in so many parts


@dataclass(frozen=True)
class Planned:
    """One batch of the order: its rows, and the canvas that holds each of their windows."""

    epoch: int
    number: int  # in the epoch
    rows: np.ndarray  # (B,) int64
    canvas: tuple[int, int]  # height, width


@dataclass(frozen=True)
class Epoch(Sequence):
    """The batches of an epoch, each made when it is asked for."""

    epoch: int
    samples: Index
    rows: np.ndarray  # (batches * B,) unsigned: the rows of one batch after the other
    turns: np.ndarray  # (batches,) int64: which of them comes when

    def __len__(self) -> int:
        return len(self.turns)

    def __getitem__(self, number: int) -> Planned:
        """Give a batch by its number."""
        turn = self.turns[number]
        batch = len(self.rows) // len(self.turns)
        rows = self.rows[turn * batch : (turn + 1) * batch].astype(np.int64)
        return Planned(self.epoch, range(len(self))[number], rows, self._canvas(rows))

    def _canvas(self, rows: np.ndarray) -> tuple[int, int]:
        if self.samples.chip_size is not None:
            return self.samples.chip_size, self.samples.chip_size
        height, width = (
            int(self.samples.columns[side][rows].max()) for side in ("height", "width")
        )
        return -(-height // CELL) * CELL, -(-width // CELL) * CELL


class Order:
    """The batches of every epoch."""

    def __init__(self, index: Index, batch: int, seed: int):
        self.index, self.batch, self.seed = index, batch, seed
        self._made: Epoch | None = None
        self._counts: dict[int, int] = {}

    def epoch(self, epoch: int) -> Epoch:
        """Give the batches of an epoch; less than one batch of its chips is left out."""
        if self._made is None or self._made.epoch != epoch:
            self._made = None  # two epochs are not held at a time
            self._made = self._make(epoch)
        return self._made

    def length(self, epoch: int) -> int:
        """Give the number of batches of an epoch, without making them."""
        if epoch not in self._counts:
            self._counts[epoch] = sum(map(len, self._rows(epoch)))
        return self._counts[epoch] // self.batch

    def after(self, planned: Planned) -> tuple[int, int]:
        """Give the place, epoch and number, that follows a batch."""
        if planned.number + 1 < self.length(planned.epoch):
            return planned.epoch, planned.number + 1
        return planned.epoch + 1, 0

    def _rows(self, epoch: int) -> Iterator[np.ndarray]:
        """Give the rows of an epoch in ascending order, (n,) int64 at a time."""
        turns, rounds = self.index.columns["round"], self.index.columns["rounds"]
        for start in range(0, len(self.index), PART):
            part = slice(start, start + PART)
            yield start + np.flatnonzero(epoch % rounds[part] == turns[part])

    def _make(self, epoch: int) -> Epoch:
        if self.length(epoch) < 1:
            raise Refusal(
                f"{self.index.sets[0]}: epoch {epoch} has {self._counts[epoch]} chips, fewer than "
                f"one batch of {self.batch}; lower train.batch"
            )
        rows = self._cut(self._shuffled(epoch))
        turns = draws.uniform(
            self.seed, np.arange(len(rows) // self.batch), SHUFFLE + 2 * epoch + 1
        )
        return Epoch(epoch, self.index, rows, np.argsort(turns, kind="stable"))

    def _shuffled(self, epoch: int) -> np.ndarray:
        """Give the rows of an epoch in the order of the numbers drawn for them.

        The rows go to one bucket for each range of numbers, then each bucket is sorted by itself;
        the numbers are drawn again for each step, which costs less than to keep them.
        """

        def drawn(rows: np.ndarray) -> np.ndarray:
            return draws.uniform(self.seed, rows, SHUFFLE + 2 * epoch)

        def bucket_of(rows: np.ndarray) -> np.ndarray:
            return (drawn(rows) * BUCKETS).astype(np.uint8)

        counts = np.zeros(BUCKETS, np.int64)
        for rows in self._rows(epoch):
            counts += np.bincount(bucket_of(rows), minlength=BUCKETS)
        kind = np.uint32 if len(self.index) <= 2**32 else np.uint64
        shuffled = np.empty(counts.sum(), kind)
        ends = np.cumsum(counts)
        free = ends - counts  # the next free place of each bucket
        for rows in self._rows(epoch):
            buckets = bucket_of(rows)
            order = np.argsort(buckets, kind="stable")
            here = np.bincount(buckets, minlength=BUCKETS)
            shift = np.repeat(free - (np.cumsum(here) - here), here)
            shuffled[np.arange(len(rows)) + shift] = rows[order]
            free += here
        for start, end in zip(ends - counts, ends, strict=True):
            rows = shuffled[start:end]
            shuffled[start:end] = rows[np.argsort(drawn(rows), kind="stable")]
        return shuffled

    def _cut(self, rows: np.ndarray) -> np.ndarray:
        """Put shuffled rows behind one another as batches, each of one shape where shapes differ.

        SNIP takes each batch from one scale. What is left of each shape makes mixed batches, so
        that still less than one batch is left out.
        """
        whole = len(rows) // self.batch * self.batch
        if self.index.chip_size is not None:
            return rows[:whole]
        shapes = np.concatenate(
            [self._shapes(rows[start : start + PART]) for start in range(0, len(rows), PART)]
        )
        cut, left, end = np.empty(whole, rows.dtype), np.zeros(len(rows), bool), 0
        for shape in np.unique(shapes):
            places = np.flatnonzero(shapes == shape)
            count = len(places) // self.batch * self.batch
            cut[end : end + count] = rows[places[:count]]
            left[places[count:]] = True
            end += count
        # still in random order: no shape is left out more often than others
        cut[end:] = rows[left][: whole - end]
        return cut

    def _shapes(self, rows: np.ndarray) -> np.ndarray:
        """Tell levels and orientations of rows apart, (n,) int32."""
        columns = self.index.columns
        upright = columns["height"][rows] > columns["width"][rows]
        return columns["level"][rows].astype(np.int32) * 2 + upright


def share(planned: Planned, rank: int, world: int) -> np.ndarray:
    """Give the rows of a batch that one of `world` processes takes; together they are all."""
    count = len(planned.rows)
    return planned.rows[count * rank // world : count * (rank + 1) // world]


def from_place(order: Order, epoch: int, number: int, epochs: int) -> Iterator[Planned]:
    """Yield the batches from a place on to the end of the last epoch."""
    for e in range(epoch, epochs):
        batches = order.epoch(e)
        yield from (batches[n] for n in range(number if e == epoch else 0, len(batches)))
