"""The run folder: what a plan leaves on disk, and how the later steps read it.

RUN/plan/  pictures, boxes, rejects, positive and negative chips as Parquet; plan.json and
negative.json, each written last, say what they were made of
RUN/shards/positive, RUN/shards/negative  sets of shards (see shards.py)

Pictures lie in the order in which they are written, shuffled by the plan's seed, and boxes and
chips follow it: a group of shards needs one range of rows of each table.
"""

import contextlib
import dataclasses
import hashlib
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from chipgen import draws
from chipgen.dataset import (
    PICTURES,
    REJECTS,
    Annotations,
    reject_pictures,
    reject_repeats,
)
from chipgen.errors import Refusal
from chipgen.negatives import NegativeSettings
from chipgen.plan import CHIPS, ChipSettings, has_boxes, plan
from chipgen.recipe import build, digest, load
from chipgen.sealed import sealed, unsealed
from chipgen.shards import ShardSettings
from chipgen.shuffle import ORDER, Shuffle
from chipgen.storage import TEMPORARY, Folder, LocalFolder, digest_of
from chipgen.tables import TableSink, create_table, open_table, read_rows, read_table

FORMAT = 1
PROPOSALS = "proposals/proposals.parquet"  # where a run folder keeps those of its own
PROPOSALS_RECORD = "proposals/proposals.json"
EDGES = ("x1", "y1", "x2", "y2")
SCHEMAS = {
    "pictures": pa.schema([*PICTURES, ("first_box", pa.int64()), ("boxes", pa.int64())]),
    "boxes": pa.schema(
        [
            *((name, pa.float32()) for name in EDGES),
            ("label", pa.int32()),
            ("crowd", pa.bool_()),
            ("annotation_id", pa.int64()),
        ]
    ),
    "rejects": REJECTS,
    "positive": CHIPS,
}
PART = 1 << 14  # pictures that are looked at together


@dataclass(frozen=True)
class Recipe:
    """The sections of a recipe that chip generation reads."""

    chips: ChipSettings = field(default_factory=ChipSettings)
    negatives: NegativeSettings = field(default_factory=NegativeSettings)
    shards: ShardSettings = field(default_factory=ShardSettings)


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read the sections of chip generation from a recipe file, or a shipped recipe by name."""
    kinds = {"chips": ChipSettings, "negatives": NegativeSettings, "shards": ShardSettings}
    return Recipe(**load(name, kinds, overrides))


class PlanRecord(msgspec.Struct, frozen=True):
    """What plan.json holds."""

    format: int
    inputs: str  # hash of annotations, splits and [chips]: what makes a plan out of date
    content: str  # hash of the tables
    recipe: dict[str, Any]  # all sections of the chip generator
    roots: list[str]  # picture folders
    classes: list[str]
    listed: dict[str, int]  # pictures and annotations in the input, boxes clipped


class NegativeRecord(msgspec.Struct, frozen=True):
    """What negative.json holds."""

    inputs: str  # hash of the plan, the proposals and [negatives]
    content: str  # hash of the table


@dataclass(frozen=True)
class Plan:
    """A plan read back whole."""

    record: PlanRecord
    annotations: Annotations
    recipe: Recipe
    chips: dict[str, pa.Table]  # by kind; "negative" only after mining


def make(annotations: Annotations, settings: ChipSettings) -> tuple[Annotations, pa.Table]:
    """Put pictures into writing order and plan them; one whose boxes fit no chip is rejected."""
    numbers = draws.uniform(settings.seed, annotations.picture_ids, ORDER)
    return _planned(annotations.take(np.argsort(numbers, kind="stable")), settings)


def _planned(annotations: Annotations, settings: ChipSettings) -> tuple[Annotations, pa.Table]:
    chips = plan(annotations, settings)
    planned = np.zeros(len(annotations.picture_ids), bool)
    planned[chips["picture"].to_numpy()] = True
    lost = has_boxes(annotations) & ~planned
    if not lost.any():
        return annotations, chips
    detail = "larger than a chip at every level; add a coarser level to the recipe"
    rejects = reject_pictures(annotations.take(np.flatnonzero(lost)).each(), "no_box_fits", detail)
    annotations = dataclasses.replace(
        annotations.take(np.flatnonzero(~lost)),
        rejects=pa.concat_tables([annotations.rejects, rejects]),
    )
    return annotations, plan(annotations, settings)


def save_plan(
    run: Folder,
    inputs: str,
    parts: Iterable[Annotations],
    recipe: Recipe,
    on_part: Callable[[Annotations, pa.Table], None] = lambda annotations, chips: None,
) -> PlanRecord:
    """Plan the parts of a data set and write the plan; its record comes last.

    Memory follows the largest part: the rest is put in order on disk. The plan is the same however
    the data set is cut into parts; `on_part` sees it pass by.
    """
    folder = run.sub("plan")
    with contextlib.ExitStack() as stack:
        tables = {
            name: stack.enter_context(create_table(folder, f"{name}.parquet", schema))
            for name, schema in SCHEMAS.items()
        }
        scratch = stack.enter_context(_scratch(folder))
        shuffle = Shuffle(recipe.chips.seed, scratch)
        listed: Counter[str] = Counter()
        for part in parts:
            tables["rejects"].add(part.rejects)
            listed.update(part.listed)
            shuffle.add(part)
        for name in ("plan.json", "negative.json", "negative.parquet"):
            folder.remove(name)  # negatives belong to the plan that they were mined for
        repeated, lost = [], []
        for annotations, again in shuffle.parts():
            repeated.append(reject_repeats(annotations.take(np.flatnonzero(again))))
            annotations, chips = _planned(annotations.take(np.flatnonzero(~again)), recipe.chips)
            lost.append(annotations.rejects)
            _add(tables, annotations, chips)
            on_part(annotations, chips)
        for rejects in repeated + lost:
            tables["rejects"].add(rejects)
    record = PlanRecord(
        format=FORMAT,
        inputs=inputs,
        content=_content(folder, SCHEMAS),
        recipe=dataclasses.asdict(recipe),
        roots=list(shuffle.like.roots),
        classes=list(shuffle.like.classes),
        listed=dict(listed),
    )
    folder.write("plan.json", sealed(record))
    return record


def _add(tables: dict[str, TableSink], annotations: Annotations, chips: pa.Table) -> None:
    """Add some pictures with their boxes and chips to the tables of a plan."""
    first_picture, first_box = tables["pictures"].rows, tables["boxes"].rows
    pictures = annotations.pictures.append_column(
        "first_box", [annotations.offsets[:-1] + first_box]
    )
    tables["pictures"].add(pictures.append_column("boxes", [np.diff(annotations.offsets)]))
    tables["boxes"].add(
        pa.table(
            {
                **{name: annotations.boxes[:, k] for k, name in enumerate(EDGES)},
                "label": annotations.labels,
                "crowd": annotations.crowd,
                "annotation_id": annotations.annotation_ids,
            }
        )
    )
    tables["positive"].add(moved(chips, first_picture))


def moved(chips: pa.Table, pictures: int) -> pa.Table:
    """Give chips whose pictures lie so many rows further down."""
    place = pa.array(chips["picture"].to_numpy() + np.int32(pictures))
    return chips.set_column(CHIPS.get_field_index("picture"), CHIPS.field("picture"), place)


@contextlib.contextmanager
def _scratch(folder: Folder) -> Iterator[Path]:
    """Give a place for temporary files: beside the plan where that is on disk."""
    if not isinstance(folder, LocalFolder):
        with tempfile.TemporaryDirectory() as path:
            yield Path(path)
        return
    name = f".parts{TEMPORARY}"
    folder.remove_tree(name)  # of a run that was killed
    try:
        yield folder.path / name
    finally:
        folder.remove_tree(name)


def negative_inputs(record: PlanRecord, settings: NegativeSettings, proposals: str | None) -> str:
    """Hash what negatives follow from; `proposals` is the hash of their file."""
    text = f"{record.content} {digest(settings)} {proposals or 'none'}"
    return hashlib.sha256(text.encode()).hexdigest()


def save_negatives(run: Folder, inputs: str, parts: Iterable[pa.Table]) -> None:
    """Write the pool of negative chips; its record comes last."""
    folder = run.sub("plan")
    folder.remove("negative.json")
    with create_table(folder, "negative.parquet", CHIPS) as table:
        for chips in parts:
            table.add(chips)
    record = NegativeRecord(inputs, _content(folder, ["negative"]))
    folder.write("negative.json", sealed(record))


def read_record(run: Folder) -> PlanRecord:
    """Read plan.json."""
    try:
        data = run.read("plan/plan.json")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise Refusal(f"{run}: no plan in it; make one with: python -m chipgen plan") from error
    try:
        record = unsealed(data, PlanRecord)
    except ValueError as error:
        raise Refusal(
            f"{run}/plan/plan.json: damaged ({error}); make it again: python -m chipgen plan"
        ) from error
    if record.format != FORMAT:
        raise Refusal(f"{run}: plan of format {record.format}, this version reads {FORMAT}")
    return record


def read_negative_record(run: Folder) -> NegativeRecord | None:
    """Read negative.json, if there is one."""
    if not run.exists("plan/negative.json"):
        return None
    try:
        return unsealed(run.read("plan/negative.json"), NegativeRecord)
    except ValueError as error:
        raise Refusal(
            f"{run}/plan/negative.json: damaged ({error}); delete it, and make it again: python -m "
            f"chipgen negatives"
        ) from error


def require_whole(run: Folder, record: PlanRecord) -> None:
    """Refuse a plan whose tables are not, byte for byte, those that were written."""
    _require(run, ("pictures", "boxes", "rejects", "positive"), record.content, "plan")
    negative = read_negative_record(run)
    if negative is not None:
        _require(run, ("negative",), negative.content, "negatives")


def require_whole_proposals(run: Folder) -> None:
    """Refuse a run's own proposals that are not, byte for byte, those that were made."""
    again = f"make them again: python -m infer proposals {run}"
    if not run.exists(PROPOSALS_RECORD):
        return  # made elsewhere, or not at all
    try:
        written = unsealed(run.read(PROPOSALS_RECORD), dict).get("sha256")
    except ValueError as error:
        raise Refusal(f"{run}/{PROPOSALS_RECORD}: damaged ({error}); {again}") from error
    if not run.exists(PROPOSALS):
        raise Refusal(f"{run}/{PROPOSALS}: missing; {again}")
    if written and digest_of(run, PROPOSALS) != written:
        raise Refusal(
            f"{run}/{PROPOSALS}: damaged, not what was written (sha256); delete it, and {again}"
        )


def _require(run: Folder, tables: Sequence[str], content: str, command: str) -> None:
    files = [f"plan/{name}.parquet" for name in tables]
    for name in files:
        if not run.exists(name):
            raise Refusal(f"{run}/{name}: missing; {_again(run, command)}")
    if digest_of(run, *files) != content:
        raise Refusal(
            f"{run}: damaged: {', '.join(files)} are not what was written (sha256); "
            f"{_again(run, command)}"
        )


def _again(run: Folder, command: str) -> str:
    what = f"{run}/plan" if command == "plan" else f"{run}/plan/negative.json"
    return f"delete {what}, and make it again: python -m chipgen {command}"


def read_plan(run: Folder) -> Plan:
    """Read a plan whole."""
    record = read_record(run)
    folder = run.sub("plan")
    reader = Reader(run)
    kinds = ["positive"] + (["negative"] if folder.exists("negative.json") else [])
    annotations = reader.annotations(0, reader.pictures.metadata.num_rows, record)
    annotations = dataclasses.replace(annotations, rejects=read_table(folder, "rejects.parquet"))
    chips = {kind: read_table(folder, f"{kind}.parquet") for kind in kinds}
    return Plan(record, annotations, recipe_of(record), chips)


def recipe_of(record: PlanRecord) -> Recipe:
    """Give back the recipe that a plan was made with."""
    return build(Recipe, record.recipe, "plan.json")


class Reader:
    """Reads ranges of a plan's pictures, so that memory does not grow with the data set."""

    def __init__(self, run: Folder):
        folder = run.sub("plan")
        self.pictures = open_table(folder, "pictures.parquet")
        self.boxes = open_table(folder, "boxes.parquet")

    def picture_ids(self) -> np.ndarray:
        """Read the ids of all pictures, (P,) int64."""
        return self.pictures.read(columns=["picture_id"])["picture_id"].to_numpy()

    def annotations(self, first: int, last: int, record: PlanRecord) -> Annotations:
        """Read the pictures [first, last) with their boxes; without rejects."""
        pictures = read_rows(self.pictures, first, last)
        counts = pictures["boxes"].to_numpy()
        start = pictures["first_box"][0].as_py() if last > first else 0
        boxes = read_rows(self.boxes, start, start + int(counts.sum()))
        return Annotations(
            pictures=pictures.select(PICTURES.names).combine_chunks(),
            offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            boxes=np.stack([boxes[k].to_numpy() for k in EDGES], axis=1),
            labels=boxes["label"].to_numpy(),
            crowd=boxes["crowd"].to_numpy(),
            annotation_ids=boxes["annotation_id"].to_numpy(),
            classes=tuple(record.classes),
            roots=tuple(record.roots),
            rejects=pa.table({}),
            listed=record.listed,
        )


def parts_of(
    run: Folder, record: PlanRecord, most: int | None = None
) -> Iterator[tuple[int, Annotations, dict]]:
    """Go through a plan some pictures at a time: the first one's row, annotations, chips by kind.

    The chips name the rows of these pictures, from 0 on; the rejects are left out. `most` pictures
    are taken at a time, if that is fewer than else.
    """
    folder, reader = run.sub("plan"), Reader(run)
    kinds = ["positive"] + (["negative"] if folder.exists("negative.json") else [])
    chips = {kind: ChipReader(folder, kind) for kind in kinds}
    count = reader.pictures.metadata.num_rows
    part = min(most or PART, PART)
    for first in range(0, max(count, 1), part):
        last = min(first + part, count)
        of_part = {kind: moved(one.until(last), -first) for kind, one in chips.items()}
        yield first, reader.annotations(first, last, record), of_part


class ChipReader:
    """Reads the chips of a plan from the first to the last picture."""

    def __init__(self, folder: Folder, kind: str):
        self._batches = open_table(folder, f"{kind}.parquet").iter_batches(1 << 16)
        self._waiting = CHIPS.empty_table()

    def until(self, picture: int) -> pa.Table:
        """Give the chips of the pictures before a row that were not given yet."""
        found = [self._waiting]
        while not found[-1].num_rows or found[-1]["picture"][-1].as_py() < picture:
            batch = next(self._batches, None)
            if batch is None:
                break
            found.append(pa.Table.from_batches([batch]))
        whole = pa.concat_tables(found).combine_chunks()
        count = int(np.searchsorted(whole["picture"].to_numpy(), picture))
        self._waiting = whole.slice(count)
        return whole.slice(0, count)


def _content(folder: Folder, names: Iterable[str]) -> str:
    """Hash some tables of a plan."""
    return digest_of(folder, *(f"{name}.parquet" for name in names))
