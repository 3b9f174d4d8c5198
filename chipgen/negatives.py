"""Which chips are shown as negatives: those where an RPN proposes objects that are not there.

Legend: P pictures, L levels, Q proposals, C chips.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from chipgen import boxes as box_math
from chipgen import draws
from chipgen.cover import cover, fits
from chipgen.dataset import Annotations
from chipgen.errors import Refusal
from chipgen.plan import (
    Canvases,
    ChipSettings,
    canvases_of,
    chip_table,
    has_boxes,
    holders,
    whole_canvases,
    windows_on,
)
from chipgen.pyramid import in_range

PROPOSALS = ("picture_id", "level", "x1", "y1", "x2", "y2", "score")
FOREIGN = "proposals: none is of a picture of this plan; made from other data?"
AT_ONCE = 1 << 21  # proposals that are looked at together, about
SHUFFLE = 1 << 20  # stream of draws; the variants of a plan use the low ones


@dataclass(frozen=True)
class NegativeSettings:
    """How negative chips are mined."""

    min_proposals: int = 10  # a chip must hold this many proposals that no other chip holds: M
    per_picture: int = 2  # at most so many chips of a picture in one epoch
    min_score: float = 0.0  # proposals below are not looked at

    def __post_init__(self):
        for name in ("min_proposals", "per_picture"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)} must be at least 1")


@dataclass(frozen=True)
class Proposals:
    """Proposals by picture: those of picture p are boxes[offsets[p]:offsets[p + 1]]."""

    boxes: np.ndarray  # (Q, 4) float32 picture px
    offsets: np.ndarray  # (P + 1,) int64


def mine(
    annotations: Annotations,
    positives: pa.Table,
    proposals: pa.Table | None,
    chips: ChipSettings,
    settings: NegativeSettings,
) -> pa.Table:
    """Plan the pool of negative chips, cut into rounds: a table of plan.CHIPS.

    A picture without boxes gives one chip in any case; with proposals, every picture gives those
    chips in which at least `min_proposals` of them lie that no positive chip of the level holds.
    """
    canvases = canvases_of(annotations, chips.levels)
    rows = _empty_pictures(annotations, canvases, chips)  # (C, 6)
    if proposals is not None:
        if not chips.mines:
            raise Refusal(
                f"negatives: strategy {chips.strategy!r} trains on whole canvases, which hold "
                f"their background already; only 'sniper' takes proposals"
            )
        sorted_proposals = sort(annotations, proposals, settings.min_score)
        mined = _mined(annotations, canvases, positives, sorted_proposals, chips, settings)
        rows = np.unique(np.concatenate([rows, mined]), axis=0)
    return _in_rounds(annotations, canvases, rows, chips.seed, settings.per_picture)


class ProposalReader:
    """Reads the proposals of some pictures at a time out of a Parquet file in whatever order.

    It knows which pictures each of the file's groups of rows is about. Those of a run's own file,
    which has the order of the plan, are about neighbours; of others, most may be read each time.
    It counts the rows that are left out: those of no picture of the plan, and of the others those
    with a null, when they are asked for.
    """

    def __init__(self, file: pq.ParquetFile, picture_ids: np.ndarray):
        _require_columns(file.schema_arrow)
        self.strangers = self.incomplete = 0
        self._file = file
        self._by_id = np.argsort(picture_ids, kind="stable").astype(np.int32)
        self._ids = picture_ids[self._by_id]
        spans = [self._span(group) for group in range(file.num_row_groups)]
        self._spans = np.array(spans, np.int64).reshape(-1, 2)
        if file.metadata.num_rows and (self._spans[:, 0] >= self._spans[:, 1]).all():
            raise Refusal(FOREIGN)

    @property
    def pictures_at_once(self) -> int:
        """Give the number of pictures whose proposals have room in memory together."""
        rows = max(1, self._file.metadata.num_rows)
        return max(1, AT_ONCE * len(self._ids) // rows)

    def of(self, first: int, last: int) -> pa.Table:
        """Give the proposals of the pictures in rows [first, last) of the plan, and some others."""
        wanted = np.flatnonzero((self._spans[:, 0] < last) & (first < self._spans[:, 1]))
        kept = [self._schema().empty_table()]
        for group in wanted.tolist():
            table = self._file.read_row_group(group, columns=list(PROPOSALS))
            rows = self._rows(table["picture_id"])
            of_these = table.filter(pa.array((first <= rows) & (rows < last)))
            whole = of_these.drop_columns("level").drop_null()  # the level is not asked
            self.incomplete += of_these.num_rows - whole.num_rows  # `sort` leaves them out
            kept.append(of_these)
        return pa.concat_tables(kept)

    def _schema(self) -> pa.Schema:
        return pa.schema([self._file.schema_arrow.field(name) for name in PROPOSALS])

    def _span(self, group: int) -> tuple[int, int]:
        """Give the first and end row of the pictures that a group of rows is about."""
        table = self._file.read_row_group(group, columns=["picture_id"])
        rows = self._rows(table["picture_id"])
        rows = rows[rows >= 0]
        self.strangers += table.num_rows - len(rows)
        return (int(rows.min()), int(rows.max()) + 1) if len(rows) else (0, 0)

    def _rows(self, column: pa.ChunkedArray) -> np.ndarray:
        """Give the row of the plan of each picture id, -1 for a null and one that is not there."""
        if not len(self._ids):
            return np.full(len(column), -1)
        ids = column.fill_null(0).to_numpy()  # with nulls, integers would come as rounded floats
        place = np.minimum(np.searchsorted(self._ids, ids), len(self._ids) - 1)
        known = (self._ids[place] == ids) & column.is_valid().to_numpy()
        return np.where(known, self._by_id[place], -1)


def sort(annotations: Annotations, table: pa.Table, min_score: float) -> Proposals:
    """Put proposals in the order of the pictures, cut to their pictures."""
    _require_columns(table.schema)
    columns = {name: table[name].to_numpy() for name in PROPOSALS}
    ids = annotations.picture_ids
    if table.num_rows and not len(ids):
        raise Refusal(FOREIGN)
    by_id = np.argsort(ids, kind="stable")
    place = np.minimum(np.searchsorted(ids[by_id], columns["picture_id"]), len(ids) - 1)
    picture = by_id[place]
    known = ids[picture] == columns["picture_id"]
    if len(known) and not known.any():
        raise Refusal(FOREIGN)
    found = np.stack([columns[k] for k in ("x1", "y1", "x2", "y2")], axis=1).astype(np.float32)
    limits = np.stack([annotations.widths, annotations.heights] * 2, axis=1)[picture]
    with np.errstate(invalid="ignore"):
        found = np.clip(found, 0, limits).astype(np.float32)
        whole = (found[:, 2:] > found[:, :2]).all(axis=1)  # false for NaN, too
    used = np.flatnonzero(known & whole & (columns["score"] >= min_score))
    used = used[np.lexsort([*found[used].T, picture[used]])]  # whatever the table's own order
    offsets = np.searchsorted(picture[used], np.arange(len(ids) + 1))
    return Proposals(found[used], offsets)


def _require_columns(schema: pa.Schema) -> None:
    missing = [name for name in PROPOSALS if name not in schema.names]
    if missing:
        raise Refusal(
            f"proposals: no column {', '.join(missing)}; needed are {', '.join(PROPOSALS)}"
        )
    for name in PROPOSALS:
        if schema.names.count(name) > 1:
            raise Refusal(f"proposals: more than one column {name}; each may be there once")
        kind = schema.field(name).type
        if not pa.types.is_integer(kind) and not pa.types.is_floating(kind):
            raise Refusal(f"proposals: column {name} is of {kind}; it must hold plain numbers")


def _empty_pictures(
    annotations: Annotations, canvases: Canvases, chips: ChipSettings
) -> np.ndarray:
    """Give each picture without boxes one chip at its coarsest level, in the middle: (C, 6)."""
    pictures = np.flatnonzero(~has_boxes(annotations))
    level = canvases.coarsest[pictures]
    if chips.strategy != "sniper":
        rows = whole_canvases(canvases, pictures)
        return rows[rows[:, 1] == canvases.coarsest[rows[:, 0]]]
    origin = np.maximum(canvases.sizes[pictures, level] - chips.size, 0) // 2
    rows = np.concatenate([np.stack([pictures, level], axis=1), origin], axis=1)
    return windows_on(canvases, rows, chips.size)


def _mined(
    annotations: Annotations,
    canvases: Canvases,
    positives: pa.Table,
    proposals: Proposals,
    chips: ChipSettings,
    settings: NegativeSettings,
) -> np.ndarray:
    """Cover the proposals that each level's positive chips leave out: (C, 6).

    The paper pools the proposals of all levels of the pyramid; which of them count at a level is
    a matter of their size alone, so the column `level` is not asked.
    """
    first_variant = positives.filter(pa.array(positives["round"].to_numpy() == 0))
    levels = len(chips.levels)
    left = holders(annotations, proposals.offsets, proposals.boxes, first_variant, levels) == 0
    wants = left & in_range(chips.levels, box_math.sizes(proposals.boxes))
    picture = np.repeat(np.arange(len(proposals.offsets) - 1), np.diff(proposals.offsets))
    for level in range(levels):
        sizes, scales = canvases.sizes[picture, level], canvases.scales[picture, level]
        wants[:, level] &= fits(proposals.boxes, sizes, scales, chips.size)
    rows = cover(
        proposals.boxes,
        proposals.offsets,
        wants,
        canvases.sizes,
        canvases.scales,
        chip=chips.size,
        stride=chips.stride,
        minimum=settings.min_proposals,
    )
    return windows_on(canvases, rows, chips.size)


def _in_rounds(
    annotations: Annotations, canvases: Canvases, rows: np.ndarray, seed: int, per_picture: int
) -> pa.Table:
    """Shuffle each picture's pool and deal it out, `per_picture` chips a round.

    A picture starts over when its own pool is used up: of its r rounds, epoch e sees e % r.
    """
    picture = rows[:, 0]
    ids = annotations.picture_ids[picture]
    position = rows[:, 1] << 56 ^ rows[:, 3] << 28 ^ rows[:, 2]  # level, y, x
    chip = draws.states(seed, ids, SHUFFLE).view(np.int64) ^ position
    order = np.lexsort([draws.uniform(seed, chip, SHUFFLE), picture])
    rows, picture = rows[order], picture[order]
    starts = np.searchsorted(picture, picture)  # first row of the same picture
    pool = np.searchsorted(picture, picture, side="right") - starts
    turn = (np.arange(len(rows)) - starts) // per_picture
    return chip_table(
        annotations, canvases, np.insert(rows, 2, turn, axis=1), -(-pool // per_picture)
    )
