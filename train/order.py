"""Which chips each batch of each epoch holds: a function of index, batch size and seed alone.

Neither the number of processes nor that of loader workers enters, so a run goes on where it was
stopped on any number of GPUs. Rows are places in the joint index of all sets of shards.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from chipgen import draws, shards
from chipgen.errors import Refusal
from chipgen.storage import Folder, open_folder

SHUFFLE = 1 << 24  # stream of draws: the order of an epoch's chips; its batches have the next
CELL = 64  # canvas px: windows of any size are padded to a multiple, which bounds the shapes


@dataclass(frozen=True)
class Index:
    """The samples of some sets of shards."""

    sets: tuple[str, ...]  # folders or URLs
    classes: tuple[str, ...]
    chip_size: int | None  # px of every canvas; None: canvases are as large as their windows
    keys: pa.ChunkedArray  # (N,) string
    shards: list[str]
    set_of: np.ndarray  # (N,) place in sets
    shard_of: np.ndarray  # (N,) place in shards
    columns: dict[str, np.ndarray]  # offset, length, crc32, level, width, height, round, rounds

    def __len__(self) -> int:
        return len(self.set_of)

    def fits(self, row: int, canvas: tuple[int, int]) -> bool:
        """Say whether a sample's window fits a canvas (height, width)."""
        return self.columns["height"][row] <= canvas[0] and self.columns["width"][row] <= canvas[1]

    def name(self, row: int) -> str:
        """Say where a sample lies."""
        place = f"{self.sets[self.set_of[row]]}/{self.shards[self.shard_of[row]]}"
        return f"{place}: sample {self.keys[row]}"


@dataclass(frozen=True)
class Planned:
    """One batch of the order: its rows, and the canvas that holds each of their windows."""

    epoch: int
    number: int  # in the epoch
    rows: np.ndarray  # (B,) int64
    canvas: tuple[int, int]  # height, width


def open_index(folders: list[Folder]) -> Index:
    """Read manifests and indexes of sets of shards that belong together."""
    manifests = [shards.read_manifest(folder) for folder in folders]
    first = manifests[0]
    for folder, manifest in zip(folders, manifests, strict=True):
        for what, mine, theirs in (
            ("classes", manifest.classes, first.classes),
            ("[chips] settings", manifest.recipe["chips"], first.recipe["chips"]),
        ):
            if mine != theirs:
                raise Refusal(f"{folder}: its {what} differ from those of {folders[0]}")
    tables = [
        shards.read_index(folder, manifest)
        for folder, manifest in zip(folders, manifests, strict=True)
    ]
    table = pa.concat_tables(tables)
    names = table["shard"].combine_chunks().dictionary_encode()
    wanted = ("offset", "length", "crc32", "level", "width", "height", "round", "rounds")
    chips = first.recipe["chips"]
    return Index(
        sets=tuple(str(folder) for folder in folders),
        classes=tuple(first.classes),
        chip_size=chips["size"] if chips["strategy"] == "sniper" else None,
        keys=table["key"],
        shards=names.dictionary.to_pylist(),
        set_of=np.repeat(np.arange(len(tables)), [t.num_rows for t in tables]).astype(np.int16),
        shard_of=names.indices.to_numpy(),
        columns={name: table[name].to_numpy() for name in wanted},
    )


class Order:
    """The batches of every epoch."""

    def __init__(self, index: Index, batch: int, seed: int):
        self.index, self.batch, self.seed = index, batch, seed
        self._made: tuple[int, list[Planned]] = (-1, [])

    def epoch(self, epoch: int) -> list[Planned]:
        """Give the batches of an epoch; less than one batch of its chips is left out."""
        if self._made[0] != epoch:
            self._made = epoch, self._make(epoch)
        return self._made[1]

    def length(self, epoch: int) -> int:
        """Give the number of batches of an epoch, without making them."""
        return len(self._rows(epoch)) // self.batch

    def after(self, planned: Planned) -> tuple[int, int]:
        """Give the place, epoch and number, that follows a batch."""
        if planned.number + 1 < self.length(planned.epoch):
            return planned.epoch, planned.number + 1
        return planned.epoch + 1, 0

    def _rows(self, epoch: int) -> np.ndarray:
        columns = self.index.columns
        return np.flatnonzero(epoch % columns["rounds"] == columns["round"])

    def _make(self, epoch: int) -> list[Planned]:
        rows = self._rows(epoch)
        if len(rows) < self.batch:
            raise Refusal(
                f"{self.index.sets[0]}: epoch {epoch} has {len(rows)} chips, fewer than one batch "
                f"of {self.batch}; lower train.batch"
            )
        rows = rows[np.argsort(draws.uniform(self.seed, rows, SHUFFLE + 2 * epoch), kind="stable")]
        batches = self._cut(rows)
        turns = draws.uniform(self.seed, np.arange(len(batches)), SHUFFLE + 2 * epoch + 1)
        placed = enumerate(np.argsort(turns, kind="stable"))
        return [Planned(epoch, i, batches[k], self._canvas(batches[k])) for i, k in placed]

    def _cut(self, rows: np.ndarray) -> list[np.ndarray]:
        """Cut shuffled rows into batches, each of one shape where shapes differ.

        SNIP takes each batch from one scale. What is left of each shape makes mixed batches, so
        that still less than one batch is left out.
        """
        columns = self.index.columns
        shapes = np.zeros(len(rows), np.int64)
        if self.index.chip_size is None:
            shapes = columns["level"][rows] * 2 + (columns["height"][rows] > columns["width"][rows])
        batches, left = [], np.zeros(len(rows), bool)
        for shape in np.unique(shapes):
            places = np.flatnonzero(shapes == shape)
            whole = len(places) // self.batch * self.batch
            batches += list(rows[places[:whole]].reshape(-1, self.batch))
            left[places[whole:]] = True
        mixed = rows[left]  # still in random order: no shape is left out more often than others
        whole = len(mixed) // self.batch * self.batch
        return batches + list(mixed[:whole].reshape(-1, self.batch))

    def _canvas(self, rows: np.ndarray) -> tuple[int, int]:
        if self.index.chip_size is not None:
            return self.index.chip_size, self.index.chip_size
        height, width = (int(self.index.columns[side][rows].max()) for side in ("height", "width"))
        return -(-height // CELL) * CELL, -(-width // CELL) * CELL


def share(planned: Planned, rank: int, world: int) -> np.ndarray:
    """Give the rows of a batch that one of `world` processes takes; together they are all."""
    count = len(planned.rows)
    return planned.rows[count * rank // world : count * (rank + 1) // world]


def from_place(order: Order, epoch: int, number: int, epochs: int) -> Iterator[Planned]:
    """Yield the batches from a place on to the end of the last epoch."""
    for e in range(epoch, epochs):
        yield from order.epoch(e)[number if e == epoch else 0 :]


def find_sets(shards_folder: str, negatives: bool = True) -> list[Folder]:
    """Find the sets of shards of a run: positive, and negative where that was begun."""
    folder: Any = open_folder(shards_folder)
    positive, negative = folder.sub("positive"), folder.sub("negative")
    if not positive.exists(shards.MANIFEST):
        raise Refusal(
            f"{folder}: no finished set of shards (no positive/{shards.MANIFEST}); make "
            f"one with: python -m chipgen write"
        )
    if not negatives or not negative.names():
        return [positive]
    if not negative.exists(shards.MANIFEST):  # trained without it, a run would be another
        raise Refusal(
            f"{negative}: not finished (no {shards.MANIFEST}); finish it with: python -m chipgen "
            f"write --kind negative, or delete it to train without negatives"
        )
    return [positive, negative]
