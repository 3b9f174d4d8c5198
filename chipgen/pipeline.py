"""Samples -> shards, group by group: resumable, by parts, and the same bytes whoever writes.

The unit of work is a group: some pictures in a row whose chips fill a few shards together. A
finished group leaves its shards and, written last, a record in groups/; `finish` turns all records
into index, rejects and manifest, and removes them. What is in a group depends on the plan alone,
so it does not matter who writes it, or how often it was begun before.
"""

import dataclasses
import hashlib
import itertools
import os
import re
import subprocess
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from chipgen import shards
from chipgen.dataset import REJECTS
from chipgen.errors import Refusal
from chipgen.making import Made, Maker
from chipgen.recipe import digest
from chipgen.run import PlanRecord, Recipe, read_negative_record
from chipgen.sealed import sealed, unsealed
from chipgen.shards import Manifest, ShardEntry
from chipgen.storage import TEMPORARY, Folder, digest_of
from chipgen.tables import create_table, open_table


@dataclass(frozen=True)
class Job:
    """A set of shards to be written; small, so that it can be sent to workers."""

    run: Folder
    kind: str  # "positive" or "negative"
    recipe: Recipe
    record: PlanRecord
    content_hash: str
    groups: np.ndarray  # (G, 5) int64: see make_groups

    @property
    def folder(self) -> Folder:
        """Give the folder of the set."""
        return self.run.sub(f"shards/{self.kind}")

    def record_name(self, group: int) -> str:
        """Name the record that says that a group is finished."""
        inside = group // shards.FOLDER_SHARDS
        return f"groups/{inside:03d}/{self.content_hash[:16]}-{group:06d}.json"


class GroupRecord(msgspec.Struct, frozen=True):
    """What a finished group leaves: its entries of manifest, index and rejects."""

    shards: list[ShardEntry]
    index: list[list[Any]]  # columns of shards.INDEX_SCHEMA
    rejects: list[list[Any]]  # columns of dataset.REJECTS
    used: dict[str, int]  # pictures that gave chips, their annotations, pixels of chips' content


def open_job(run: Folder, kind: str, record: PlanRecord, recipe: Recipe) -> Job:
    """Lay out the work for one kind of chips of a planned run; refuses a foreign target."""
    content = record.content
    if kind == "negative":
        negative = read_negative_record(run)
        if negative is None:
            raise Refusal(f"{run}: no negatives; choose them with: python -m chipgen negatives")
        content = f"{content}-{negative.content}"
    text = f"{shards.CONTENT}-{kind}-{content}-{digest(recipe.shards)}"
    with open_table(run.sub("plan"), f"{kind}.parquet") as table:
        pictures = table.read(columns=["picture"])["picture"].to_numpy()
    per_group = recipe.shards.chips_per_shard * recipe.shards.shards_per_group
    job = Job(
        run, kind, recipe, record, hashlib.sha256(text.encode()).hexdigest(),
        make_groups(pictures, per_group),
    )  # fmt: skip
    _refuse_foreign(job)
    return job


def make_groups(pictures: np.ndarray, chips_per_group: int) -> np.ndarray:
    """Cut chips, given the ascending picture row of each, into groups of whole pictures.

    Returns (G, 5): first and end row of pictures, first and end row of chips, pictures with chips.
    """
    if not len(pictures):
        return np.zeros((0, 5), np.int64)
    first_chip = np.searchsorted(pictures, pictures)  # of the same picture
    starts = np.flatnonzero(np.diff(first_chip // chips_per_group, prepend=-1))
    ends = np.append(starts[1:], len(pictures))
    counts = np.add.reduceat(np.diff(pictures, prepend=-1) > 0, starts, dtype=np.int64)
    return np.stack([pictures[starts], pictures[ends - 1] + 1, starts, ends, counts], axis=1)


def is_finished(job: Job) -> bool:
    """Say whether the set is complete, and sweep away what a killed finish left behind.

    One that has a manifest, but not all that the manifest lists, is refused.
    """
    if not job.folder.exists(shards.MANIFEST):
        return False
    manifest = shards.read_manifest(job.folder)
    names = {*job.folder.names(), *shards.find_shards(job.folder)}
    shards.require_index(job.folder, manifest)
    for name in (shards.REJECTS, *(shard.name for shard in manifest.shards)):
        if name not in names:
            raise Refusal(f"{job.folder}/{name}: missing; {shards.AGAIN.format(job.folder)}")
    for shard in manifest.shards:
        if (size := job.folder.size(shard.name)) != shard.bytes:
            raise Refusal(
                f"{job.folder}/{shard.name}: damaged, {size} bytes where the manifest says "
                f"{shard.bytes}; {shards.AGAIN.format(job.folder)}"
            )
    if "groups" in names:
        _sweep(job.folder, {shard.name for shard in manifest.shards})
    return True


def unfinished_groups(job: Job) -> list[int]:
    """List the groups without a record, or with shards that are not as it says."""
    present = set(_records(job))
    groups = range(len(job.groups))
    return [g for g in groups if job.record_name(g) not in present or not _is_intact(job, g)]


def write_groups(
    job: Job, groups: Iterable[int], on_pictures: Callable[[int], None]
) -> Iterator[int]:
    """Write groups one after the other, yielding each when it is on disk.

    Hashing a group's shards and waiting for the disk is left to a thread while the next group is
    being made.
    """
    maker = Maker(job.run, job.kind, job.record, job.recipe)

    def make(group: int) -> Made:
        first, last, first_chip, last_chip, _ = job.groups[group].tolist()
        return maker.make((first, last), (first_chip, last_chip), on_pictures)

    with ThreadPoolExecutor(1) as flusher:
        pending: tuple[int, Future] | None = None
        for group in groups:
            # nobody but the flusher holds a group once it is made, so it is freed when written
            future = flusher.submit(_flush, job, group, make(group))
            if pending:
                pending[1].result()
                yield pending[0]
            pending = group, future
        if pending:
            pending[1].result()
            yield pending[0]


def finish(job: Job) -> Manifest:
    """Write index, rejects and manifest of a set whose groups are all there."""
    missing = unfinished_groups(job)
    if missing and job.folder.exists(shards.MANIFEST):  # another run was quicker
        _refuse_foreign(job)
        is_finished(job)
        return shards.read_manifest(job.folder)
    if missing:
        raise Refusal(
            f"{job.folder}: {len(missing)} of {len(job.groups)} groups are not written, the first "
            f"is {missing[0]}; run write again, or the part that holds it (group % parts)"
        )
    entries: list[ShardEntry] = []
    used: Counter[str] = Counter()
    levels = np.zeros(len(job.recipe.chips.levels), np.int64)
    rejected = 0  # annotations
    with (
        create_table(job.folder, shards.INDEX, shards.INDEX_SCHEMA) as index,
        create_table(job.folder, shards.REJECTS, REJECTS) as rejects,
        open_table(job.run.sub("plan"), "rejects.parquet") as of_plan,
    ):
        for batch in of_plan.iter_batches():
            rejects.add(pa.Table.from_batches([batch]))
            rejected += len(batch) - batch["annotation_id"].null_count
        for group in range(len(job.groups)):
            record = _read_record(job, group)
            entries += record.shards
            used.update(record.used)
            of_index = _table(record.index, shards.INDEX_SCHEMA)
            levels += np.bincount(of_index["level"].to_numpy(), minlength=len(levels))
            index.add(of_index)
            of_group = _table(record.rejects, REJECTS)
            rejected += of_group.num_rows - of_group["annotation_id"].null_count
            rejects.add(of_group)
    manifest = Manifest(
        format=shards.FORMAT,
        kind=job.kind,
        commit=commit(),
        recipe=dataclasses.asdict(job.recipe),
        recipe_hash=digest(job.recipe),
        content_hash=job.content_hash,
        classes=job.record.classes,
        counts=_counts(job, used, levels, rejects.rows - rejected, rejected),
        shards=entries,
        index_sha256=digest_of(job.folder, shards.INDEX),
        rejects_sha256=digest_of(job.folder, shards.REJECTS),
    )
    job.folder.write(shards.MANIFEST, sealed(manifest))
    _sweep(job.folder, {shard.name for shard in manifest.shards})
    return manifest


def _flush(job: Job, group: int, made: Made) -> None:
    """Write a group's shards, and its record last."""
    count = job.recipe.shards.shards_per_group
    edges = [len(made.samples) * i // count for i in range(count + 1)]
    entries, rows = [], []
    for number, (start, end) in enumerate(itertools.pairwise(edges), group * count):
        if start == end:
            continue
        name = shards.shard_name(job.kind, number)
        parts, places = shards.build_shard(made.samples[start:end])
        job.folder.write(name, *parts)
        state = hashlib.sha256()
        for part in parts:
            state.update(part)
        size = sum(map(len, parts))
        entries.append(ShardEntry(name, size, end - start, state.hexdigest()))
        rows += [
            (
                *(s.key, name, *place, s.picture_id, job.kind, s.level),
                *(s.width, s.height, s.round, s.rounds),
            )
            for s, place in zip(made.samples[start:end], places, strict=True)
        ]
    record = GroupRecord(
        shards=entries,
        index=[list(column) for column in zip(*rows, strict=True)],
        rejects=[column.to_pylist() for column in made.rejects.columns],
        used=dict(made.used),
    )
    job.folder.write(job.record_name(group), sealed(record))


def _read_record(job: Job, group: int) -> GroupRecord:
    return unsealed(job.folder.read(job.record_name(group)), GroupRecord)


def _is_intact(job: Job, group: int) -> bool:
    """Say whether the shards of a finished group are there, in their full size."""
    try:
        return all(job.folder.size(s.name) == s.bytes for s in _read_record(job, group).shards)
    except (FileNotFoundError, ValueError):
        return False


def _refuse_foreign(job: Job) -> None:
    """Refuse a folder that holds shards of another plan or other settings."""
    remedy = "delete that folder, or choose another run folder"
    if job.folder.exists(shards.MANIFEST):
        if shards.read_manifest(job.folder).content_hash != job.content_hash:
            raise Refusal(f"{job.folder}: holds the shards of another recipe or data; {remedy}")
        return
    for name in map(os.path.basename, _records(job)):
        if name.endswith(".json") and not name.startswith((".", job.content_hash[:16])):
            raise Refusal(f"{job.folder}: holds unfinished shards of another recipe; {remedy}")


def _sweep(folder: Folder, listed: set[str]) -> None:
    """Remove what killed runs left: records, half-written files, shards that nobody lists."""
    folder.remove_tree("groups")
    for home in ("", *(name for name in folder.names() if re.fullmatch(r"\d{3,}", name))):
        for one in (folder.sub(home) if home else folder).names():
            name = f"{home}/{one}" if home else one
            ours = re.fullmatch(r"(positive|negative)-\d{6,}\.tar", one)
            if one.endswith(TEMPORARY) or (ours and name not in listed):
                folder.remove(name)


def _records(job: Job) -> list[str]:
    """List the records of finished groups, by their names in the set's folder."""
    groups = job.folder.sub("groups")
    return [f"groups/{home}/{name}" for home in groups.names() for name in groups.sub(home).names()]


def _table(columns: list[list[Any]], schema: pa.Schema) -> pa.Table:
    """Make a table of the columns of a record; a group without rows has no columns."""
    if not columns:
        return schema.empty_table()
    arrays = [pa.array(c, field.type) for c, field in zip(columns, schema, strict=True)]
    return pa.Table.from_arrays(arrays, schema=schema)


def _counts(
    job: Job,
    used: Counter[str],
    levels: np.ndarray,
    rejected_pictures: int,
    rejected_annotations: int,
) -> dict[str, Any]:
    """Account for every picture and annotation of the input: used, without chips or rejected."""
    pictures, annotations = used["pictures"], used["annotations"]
    listed = job.record.listed
    return {
        "pictures": {
            "listed": listed["pictures"],
            "used": pictures,
            "without_chips": listed["pictures"] - rejected_pictures - pictures,
            "rejected": rejected_pictures,
        },
        "annotations": {
            "listed": listed["annotations"],
            "used": annotations,
            "without_chips": listed["annotations"] - rejected_annotations - annotations,
            "rejected": rejected_annotations,
        },
        "chips": int(levels.sum()),
        "chips_by_level": levels.tolist(),
        "content_pixels": used["pixels"],
    }


def commit() -> str | None:
    """Give the commit of this code, marked when it was changed since; None outside git."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        done = subprocess.run([*command, "--abbrev=40"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
