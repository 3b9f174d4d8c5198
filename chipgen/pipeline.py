"""Pictures -> chips -> shards, with a pool of processes, by parts, and resumable.

The unit of work is a group: some pictures in a row whose chips fill a few shards together. A
finished group leaves its shards and, written last, a record in groups/; `finish` turns all records
into index, rejects and manifest, and removes them. What is in a group depends on the plan alone,
so it does not matter who writes it, or how often it was begun before.
"""

import dataclasses
import errno
import hashlib
import itertools
import operator
import re
import subprocess
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from chipgen import codec, cut, draws, shards
from chipgen.dataset import REJECTS, Picture, reject_pictures
from chipgen.errors import PictureError, Refusal
from chipgen.recipe import digest
from chipgen.run import PlanRecord, Reader, Recipe, encode_json, read_negative_record
from chipgen.shards import Chip, Manifest, Sample, ShardEntry
from chipgen.storage import (
    TEMPORARY,
    Folder,
    open_folder,
    open_table,
    read_rows,
    read_table,
    table_bytes,
)

SPREAD = 1 << 22  # stream of draws: the order of a group's chips


@dataclass(frozen=True)
class Job:
    """A set of shards to be written; small, so that it can be sent to workers."""

    run: Folder
    kind: str  # "positive" or "negative"
    recipe: Recipe
    record: PlanRecord
    content_hash: str
    groups: np.ndarray  # (G, 4) int64: first and end row of pictures, first and end row of chips

    @property
    def folder(self) -> Folder:
        """Give the folder of the set."""
        return self.run.sub(f"shards/{self.kind}")

    def record_name(self, group: int) -> str:
        """Name the record that says that a group is finished."""
        return f"groups/{self.content_hash[:16]}-{group:06d}.json"


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
    text = f"{shards.FORMAT}-{kind}-{content}-{digest(recipe.shards)}"
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
    """Cut chips, given the ascending picture row of each, into groups of whole pictures."""
    if not len(pictures):
        return np.zeros((0, 4), np.int64)
    first_chip = np.searchsorted(pictures, pictures)  # of the same picture
    starts = np.flatnonzero(np.diff(first_chip // chips_per_group, prepend=-1))
    ends = np.append(starts[1:], len(pictures))
    return np.stack([pictures[starts], pictures[ends - 1] + 1, starts, ends], axis=1)


def is_finished(job: Job) -> bool:
    """Say whether the set is complete, and sweep away what a killed finish left behind."""
    if not job.folder.exists(shards.MANIFEST):
        return False
    if job.folder.exists("groups"):
        _sweep(job.folder, {s.name for s in shards.read_manifest(job.folder).shards})
    return True


def unfinished_groups(job: Job) -> list[int]:
    """List the groups without a record, or with shards that are not as it says."""
    present = set(job.folder.sub("groups").names())
    missing = []
    for group in range(len(job.groups)):
        name = job.record_name(group)
        if name.removeprefix("groups/") not in present or not _is_intact(job, group):
            missing.append(group)
    return missing


def write_groups(
    job: Job, groups: Iterable[int], on_pictures: Callable[[int], None]
) -> Iterator[int]:
    """Write groups one after the other, yielding each when it is on disk.

    Syncing a group's shards takes a quarter of the time of making them, so it is left to a thread
    while the next group is being made.
    """
    maker = _Maker(job)
    with ThreadPoolExecutor(1) as flusher:
        pending: tuple[int, Future] | None = None
        for group in groups:
            # nobody but the flusher holds a group once it is made, so it is freed when written
            future = flusher.submit(_flush, job, group, maker.make(group, on_pictures))
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
    if missing:
        raise Refusal(
            f"{job.folder}: {len(missing)} of {len(job.groups)} groups are not written, the first "
            f"is {missing[0]}; run write again, or the part that holds it (group % parts)"
        )
    entries: list[ShardEntry] = []
    used: Counter[str] = Counter()
    indexes = [shards.INDEX_SCHEMA.empty_table()]
    rejects = [read_table(job.run.sub("plan"), "rejects.parquet")]
    for group in range(len(job.groups)):  # Arrow at once: rows of Python objects take ten times it
        record = _read_record(job, group)
        entries += record.shards
        used.update(record.used)
        indexes.append(_table(record.index, shards.INDEX_SCHEMA))
        rejects.append(_table(record.rejects, REJECTS))
    index = pa.concat_tables(indexes).combine_chunks()
    rejects = pa.concat_tables(rejects).combine_chunks()
    index_bytes, rejects_bytes = table_bytes(index), table_bytes(rejects)
    recipe = dataclasses.asdict(job.recipe)
    manifest = Manifest(
        format=shards.FORMAT,
        kind=job.kind,
        commit=_commit(),
        recipe=recipe,
        recipe_hash=digest(job.recipe),
        content_hash=job.content_hash,
        classes=job.record.classes,
        counts=_counts(job, used, index, rejects),
        shards=entries,
        index_sha256=hashlib.sha256(index_bytes).hexdigest(),
        rejects_sha256=hashlib.sha256(rejects_bytes).hexdigest(),
    )
    job.folder.write(shards.INDEX, index_bytes)
    job.folder.write(shards.REJECTS, rejects_bytes)
    job.folder.write(shards.MANIFEST, encode_json(manifest))
    _sweep(job.folder, {shard.name for shard in manifest.shards})
    return manifest


@dataclass(frozen=True)
class _Made:
    """A group before it is on disk."""

    samples: list[Sample]  # in the order of the shards
    rejects: pa.Table
    used: Counter[str]  # as in GroupRecord


class _Maker:
    """Makes the samples of groups; holds the open tables of the plan."""

    def __init__(self, job: Job):
        self.job = job
        self.reader = Reader(job.run)
        self.chips = open_table(job.run.sub("plan"), f"{job.kind}.parquet")
        self.roots = [open_folder(root) for root in job.record.roots]

    def make(self, group: int, on_pictures: Callable[[int], None]) -> _Made:
        """Make a group: each picture is decoded once, then cut into all of its chips."""
        first, last, first_chip, last_chip = self.job.groups[group].tolist()
        annotations = self.reader.annotations(first, last, self.job.record)
        chips = read_rows(self.chips, first_chip, last_chip).to_pylist()
        pictures = enumerate(annotations.each(), first)
        samples, rejects = [], []
        used: Counter[str] = Counter()
        for row, of_picture in itertools.groupby(chips, key=operator.itemgetter("picture")):
            picture = next(picture for place, picture in pictures if place == row)
            try:
                samples += self._samples(picture, list(of_picture), used)
            except PictureError as error:
                rejects.append(reject_pictures([picture], error.reason, error.detail))
            except Exception as error:
                error.add_note(f"while cutting picture {picture.entry['file']}")
                raise
            on_pictures(1)
        order = spread(samples, self.job.recipe.chips.seed)
        table = pa.concat_tables([REJECTS.empty_table(), *rejects])
        return _Made([samples[i] for i in order], table, used)

    def _samples(self, picture: Picture, chips: list[dict], used: Counter[str]) -> list[Sample]:
        """Cut one picture, and add to what is used."""
        recipe = self.job.recipe
        folder = self.roots[picture.entry["root"]]
        pixels = read_pixels(picture, folder, recipe.shards.max_megapixels)
        samples = [make_sample(picture, pixels, chip, self.job.kind, recipe) for chip in chips]
        used["pictures"] += 1
        used["annotations"] += len(picture.boxes)
        used["pixels"] += sum(chip["width"] * chip["height"] for chip in chips)
        return samples


def read_pixels(picture: Picture, folder: Folder, max_megapixels: float) -> np.ndarray:
    """Read and decode a picture; only a fault of its own raises PictureError."""
    row = picture.entry
    try:
        data = folder.read(row["file"])
    except OSError as error:
        broken = (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError)
        if isinstance(error, broken) or error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
            raise PictureError("missing_file", error.strerror or str(error)) from error
        raise Refusal(
            f"picture {folder}/{row['file']}: {error}; that is the storage and not the "
            f"picture, so it is not rejected; run the same command again to go on"
        ) from error
    return codec.decode(data, (row["width"], row["height"]), int(max_megapixels * 1e6))


def make_sample(
    picture: Picture, pixels: np.ndarray, chip: dict[str, int], kind: str, recipe: Recipe
) -> Sample:
    """Cut one chip (a row of plan.CHIPS) out of a decoded picture."""
    row = picture.entry
    level = recipe.chips.levels[chip["level"]]
    canvas = chip["canvas_width"], chip["canvas_height"]
    window = chip["x"], chip["y"], chip["width"], chip["height"]
    factor = canvas[0] / row["width"], canvas[1] / row["height"]
    stored = cut.stored_pixels(pixels, canvas, window, recipe.shards.store)
    rows, boxes, inside = cut.chip_boxes(picture.boxes, *factor, *window)
    low, high = level.range
    wanted = (low <= picture.sizes[rows]) & (picture.sizes[rows] < high)
    crowd = picture.crowd[rows]
    record = Chip(
        picture_id=row["picture_id"],
        split=row["split"],
        file=row["file"],
        picture_size=(row["width"], row["height"]),
        kind=kind,
        level=chip["level"],
        factor=factor,
        canvas_size=canvas,
        window=window,
        stored_size=stored.pixels.shape[::-1],
        stored_scale=stored.scale,
        stored_offset=stored.offset,
        valid_range=cut.valid_range(level, factor),
        boxes=boxes.round(cut.DECIMALS).tolist(),
        labels=picture.labels[rows].tolist(),
        valid=(inside & wanted & ~crowd).tolist(),
        crowd=crowd.tolist(),
    )
    key = shards.key_of(
        row["split"], row["picture_id"], kind, chip["level"], *window[:2], chip["round"]
    )
    return Sample(
        key=key,
        jpg=codec.encode_jpeg(stored.pixels, recipe.shards.quality),
        json=msgspec.json.encode(record),
        picture_id=row["picture_id"],
        level=chip["level"],
        round=chip["round"],
        rounds=chip["rounds"],
    )


def spread(samples: list[Sample], seed: int) -> np.ndarray:
    """Order a group's samples so that those of one picture lie evenly apart, (C,) int64.

    The n chips of a picture take the places (k + u) / n of the group in random order, with one
    random u a picture: they are spread over all of the group's shards, and not side by side.
    """
    if not samples:
        return np.zeros(0, np.int64)
    pictures = np.array([s.picture_id for s in samples], dtype=np.int64)
    keys = np.array([zlib.crc32(s.key.encode()) for s in samples], dtype=np.int64)
    order = np.lexsort([draws.uniform(seed, keys, SPREAD), pictures])
    pictures = pictures[order]
    first = np.searchsorted(pictures, pictures)
    count = np.searchsorted(pictures, pictures, side="right") - first
    shift = draws.uniform(seed, pictures, SPREAD + 1)
    places = (np.arange(len(samples)) - first + shift) / count
    return order[np.argsort(places, kind="stable")]


def _flush(job: Job, group: int, made: _Made) -> None:
    """Write a group's shards, and its record last."""
    count = job.recipe.shards.shards_per_group
    edges = [len(made.samples) * i // count for i in range(count + 1)]
    entries, rows = [], []
    for number, (start, end) in enumerate(itertools.pairwise(edges), group * count):
        if start == end:
            continue
        name = f"{job.kind}-{number:06d}.tar"
        parts, places = shards.build_shard(made.samples[start:end])
        job.folder.write(name, *parts)
        state = hashlib.sha256()
        for part in parts:
            state.update(part)
        size = sum(map(len, parts))
        entries.append(ShardEntry(name, size, end - start, state.hexdigest()))
        rows += [
            (s.key, name, *place, s.picture_id, job.kind, s.level, s.round, s.rounds)
            for s, place in zip(made.samples[start:end], places, strict=True)
        ]
    record = GroupRecord(
        shards=entries,
        index=[list(column) for column in zip(*rows, strict=True)],
        rejects=[column.to_pylist() for column in made.rejects.columns],
        used=dict(made.used),
    )
    job.folder.write(job.record_name(group), msgspec.json.encode(record))


def _read_record(job: Job, group: int) -> GroupRecord:
    return msgspec.json.decode(job.folder.read(job.record_name(group)), type=GroupRecord)


def _is_intact(job: Job, group: int) -> bool:
    """Say whether the shards of a finished group are there, in their full size."""
    try:
        return all(job.folder.size(s.name) == s.bytes for s in _read_record(job, group).shards)
    except (FileNotFoundError, msgspec.DecodeError):
        return False


def _refuse_foreign(job: Job) -> None:
    """Refuse a folder that holds shards of another plan or other settings."""
    remedy = "delete that folder, or choose another run folder"
    if job.folder.exists(shards.MANIFEST):
        if shards.read_manifest(job.folder).content_hash != job.content_hash:
            raise Refusal(f"{job.folder}: holds the shards of another recipe or data; {remedy}")
        return
    prefix = job.record_name(0).removeprefix("groups/").partition("-")[0]
    for name in job.folder.sub("groups").names():
        if name.endswith(".json") and not name.startswith((".", prefix)):
            raise Refusal(f"{job.folder}: holds unfinished shards of another recipe; {remedy}")


def _sweep(folder: Folder, listed: set[str]) -> None:
    """Remove what killed runs left: records, half-written files, shards that nobody lists."""
    folder.remove_tree("groups")
    for name in folder.names():
        ours = re.fullmatch(r"(positive|negative)-\d{6,}\.tar", name)
        if name.endswith(TEMPORARY) or (ours and name not in listed):
            folder.remove(name)


def _table(columns: list[list[Any]], schema: pa.Schema) -> pa.Table:
    """Make a table of the columns of a record; a group without rows has no columns."""
    if not columns:
        return schema.empty_table()
    arrays = [pa.array(c, field.type) for c, field in zip(columns, schema, strict=True)]
    return pa.Table.from_arrays(arrays, schema=schema)


def _counts(job: Job, used: Counter[str], index: pa.Table, rejects: pa.Table) -> dict[str, Any]:
    """Account for every picture and annotation of the input: used, without chips or rejected."""
    rejected_pictures = rejects["annotation_id"].null_count
    rejected_annotations = rejects.num_rows - rejected_pictures
    pictures, annotations = used["pictures"], used["annotations"]
    listed = job.record.listed
    levels = np.bincount(index["level"].to_numpy(), minlength=len(job.recipe.chips.levels))
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
        "chips": index.num_rows,
        "chips_by_level": levels.tolist(),
        "content_pixels": used["pixels"],
    }


def _commit() -> str | None:
    """Give the commit of this code, marked when it was changed since; None outside git."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        done = subprocess.run([*command, "--abbrev=40"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
