"""The run folder: what a plan leaves on disk, and how the later steps read it.

RUN/plan/  pictures, boxes, rejects, positive and negative chips as Parquet; plan.json and
negative.json, each written last, say what they were made of
RUN/shards/positive, RUN/shards/negative  sets of shards (see shards.py)

Pictures lie in the order in which they are written, shuffled by the plan's seed, and boxes and
chips follow it: a group of shards needs one range of rows of each table.
"""

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from chipgen import draws
from chipgen.dataset import PICTURES, Annotations, reject_pictures
from chipgen.errors import Refusal
from chipgen.negatives import NegativeSettings
from chipgen.plan import ChipSettings, has_boxes, plan
from chipgen.recipe import build, digest, load
from chipgen.sealed import sealed, unsealed
from chipgen.shards import ShardSettings
from chipgen.storage import Folder, open_table, read_rows, read_table, table_bytes

FORMAT = 1
PROPOSALS = "proposals/proposals.parquet"  # where a run folder keeps those of its own
PROPOSALS_RECORD = "proposals/proposals.json"
EDGES = ("x1", "y1", "x2", "y2")
ORDER = 1 << 21  # stream of draws: the order of pictures
PIECE = 1 << 26  # bytes that are read at a time to be hashed


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
    order = np.argsort(draws.uniform(settings.seed, annotations.picture_ids, ORDER), kind="stable")
    annotations = annotations.take(order)
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
    run: Folder, inputs: str, annotations: Annotations, recipe: Recipe, chips: pa.Table
) -> PlanRecord:
    """Write a plan; its record comes last."""
    pictures = annotations.pictures.append_column("first_box", [annotations.offsets[:-1]])
    pictures = pictures.append_column("boxes", [np.diff(annotations.offsets)])
    boxes = pa.table(
        {
            **{name: annotations.boxes[:, k] for k, name in enumerate(EDGES)},
            "label": annotations.labels,
            "crowd": annotations.crowd,
            "annotation_id": annotations.annotation_ids,
        }
    )
    folder = run.sub("plan")
    for name in ("plan.json", "negative.json", "negative.parquet"):
        folder.remove(name)  # negatives belong to the plan that they were mined for
    rejects = annotations.rejects
    tables = {"pictures": pictures, "boxes": boxes, "rejects": rejects, "positive": chips}
    record = PlanRecord(
        format=FORMAT,
        inputs=inputs,
        content=_write_tables(folder, tables),
        recipe=dataclasses.asdict(recipe),
        roots=list(annotations.roots),
        classes=list(annotations.classes),
        listed=annotations.listed,
    )
    folder.write("plan.json", sealed(record))
    return record


def negative_inputs(record: PlanRecord, settings: NegativeSettings, proposals: bytes | None) -> str:
    """Hash what negatives follow from; `proposals` are the bytes of their file."""
    of_proposals = "none" if proposals is None else hashlib.sha256(proposals).hexdigest()
    text = f"{record.content} {digest(settings)} {of_proposals}"
    return hashlib.sha256(text.encode()).hexdigest()


def save_negatives(run: Folder, inputs: str, chips: pa.Table) -> None:
    """Write the pool of negative chips; its record comes last."""
    folder = run.sub("plan")
    folder.remove("negative.json")
    content = _write_tables(folder, {"negative": chips})
    folder.write("negative.json", sealed(NegativeRecord(inputs, content)))


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
    if written and _hash_of(run, (PROPOSALS,)) != written:
        raise Refusal(
            f"{run}/{PROPOSALS}: damaged, not what was written (sha256); delete it, and {again}"
        )


def _hash_of(run: Folder, names: Sequence[str]) -> str:
    """Hash files one after the other, a piece at a time."""
    state = hashlib.sha256()
    for name in names:
        for start in range(0, run.size(name), PIECE):
            state.update(run.read(name, start, PIECE))
    return state.hexdigest()


def _require(run: Folder, tables: Sequence[str], content: str, command: str) -> None:
    files = [f"plan/{name}.parquet" for name in tables]
    for name in files:
        if not run.exists(name):
            raise Refusal(f"{run}/{name}: missing; {_again(run, command)}")
    if _hash_of(run, files) != content:
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


def encode_json(value: Any) -> bytes:
    """Write a record so that a person can read it; infinity becomes null."""
    return msgspec.json.format(msgspec.json.encode(value), indent=1) + b"\n"


def _write_tables(folder: Folder, tables: dict[str, pa.Table]) -> str:
    """Write tables as NAME.parquet; returns the hash of them all."""
    state = hashlib.sha256()
    for name, table in tables.items():
        data = table_bytes(table)
        folder.write(f"{name}.parquet", data)
        state.update(data)
    return state.hexdigest()
