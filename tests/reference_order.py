"""The order of an epoch in its plain form: everything at once, with an array for each batch."""

import numpy as np

from chipgen import draws
from train.index import Index
from train.order import CELL, SHUFFLE


def epoch(index: Index, batch: int, seed: int, epoch: int) -> list[tuple[np.ndarray, tuple]]:
    """Give the rows and the canvas of each batch."""
    columns = index.columns
    rows = np.flatnonzero(epoch % columns["rounds"] == columns["round"])
    rows = rows[np.argsort(draws.uniform(seed, rows, SHUFFLE + 2 * epoch), kind="stable")]
    batches = _cut(index, rows, batch)
    turns = draws.uniform(seed, np.arange(len(batches)), SHUFFLE + 2 * epoch + 1)
    chosen = [batches[k] for k in np.argsort(turns, kind="stable")]
    return [(rows, _canvas(index, rows)) for rows in chosen]


def _cut(index: Index, rows: np.ndarray, batch: int) -> list[np.ndarray]:
    columns = index.columns
    shapes = np.zeros(len(rows), np.int64)
    if index.chip_size is None:
        shapes = columns["level"][rows] * 2 + (columns["height"][rows] > columns["width"][rows])
    batches, left = [], np.zeros(len(rows), bool)
    for shape in np.unique(shapes):
        places = np.flatnonzero(shapes == shape)
        whole = len(places) // batch * batch
        batches += list(rows[places[:whole]].reshape(-1, batch))
        left[places[whole:]] = True
    mixed = rows[left]
    whole = len(mixed) // batch * batch
    return batches + list(mixed[:whole].reshape(-1, batch))


def _canvas(index: Index, rows: np.ndarray) -> tuple[int, int]:
    if index.chip_size is not None:
        return index.chip_size, index.chip_size
    height, width = (int(index.columns[side][rows].max()) for side in ("height", "width"))
    return -(-height // CELL) * CELL, -(-width // CELL) * CELL
