"""How far the stages of a run folder are, from its files alone, on whatever machine.

A training that runs holds a lock and gives signs of life; chips and proposals are known by what
is there of them. Ages are those of files by this machine's clock.
"""

import contextlib
import itertools
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from chipgen import pipeline, run, shards
from chipgen.errors import Refusal
from chipgen.run import PlanRecord
from chipgen.sealed import unsealed
from chipgen.storage import LocalFolder, digest_of
from chipgen.tables import open_table, read_table
from infer import parts, proposals
from train import checkpoint, hold, journal

State = Literal["done", "running", "begun", "-"]
NAMED = 6  # ranges of missing parts that are named
REASONS = 4  # of rejects


@dataclass(frozen=True)
class Stage:
    """One step of the way from pictures to figures."""

    name: str
    state: State
    said: str
    remedy: str  # the command that brings it on


def report(folder: LocalFolder) -> str:
    """Lay out all stages on one screen."""
    found = list(stages(folder))
    lines = [str(folder)]
    lines += [f"  {one.name:15} {one.state:8} {one.said}".rstrip() for one in found]
    # who has a detector needs nothing of what comes before it
    trained = [n for n, one in enumerate(found) if one.name == "train" and one.state == "done"]
    to_do = found[trained[0] :] if trained else found
    following = next((one for one in to_do if one.state in ("-", "begun")), None)
    busy = [one.name for one in found if one.state == "running"]
    if busy:
        lines.append(f"running: {', '.join(busy)}")
    elif following:
        lines.append(f"next: {following.remedy}")
    return "\n".join(lines)


def stages(folder: LocalFolder) -> Iterator[Stage]:
    """Look at one stage after the other."""
    make = f"python -m chipgen plan {folder} --data DATA --recipe RECIPE"
    try:
        record = run.read_record(folder)
    except Refusal as refusal:
        yield Stage("plan", "-", str(refusal) if folder.exists("plan/plan.json") else "", make)
        return
    mined = run.recipe_of(record).chips.mines
    with open_table(folder.sub("plan"), "pictures.parquet") as table:
        pictures = table.metadata.num_rows
    rejects = read_table(folder.sub("plan"), "rejects.parquet", ["reason"])["reason"].to_pylist()
    yield Stage("plan", "done", f"{pictures:,} pictures{_rejects(rejects)}", make)
    yield _shards(folder, record, "positive")
    if mined:
        yield _training(folder, "rpn")
        yield _proposals(folder, record, pictures)
    negatives = _negatives(folder, record, mined)
    yield negatives
    if negatives.state == "done":
        yield _shards(folder, record, "negative")
    else:
        write = f"python -m chipgen write {folder} --kind negative"
        yield Stage("negative chips", "-", "", write)
    yield _training(folder, "train")
    yield _figures(folder)


def _shards(folder: LocalFolder, record: PlanRecord, kind: str) -> Stage:
    name, remedy = f"{kind} chips", f"python -m chipgen write {folder} --kind {kind}"
    try:
        job = pipeline.open_job(folder, kind, record, run.recipe_of(record))
        if job.folder.exists(shards.MANIFEST):
            manifest = shards.read_manifest(job.folder)
            reasons = read_table(job.folder, shards.REJECTS, ["reason"])["reason"].to_pylist()
            size = sum(shard.bytes for shard in manifest.shards) / 1e6
            count = manifest.counts["chips"]
            said = f"{count:,} in {len(manifest.shards):,} shards, {size:,.1f} MB"
            return Stage(name, "done", said + _rejects(reasons), remedy)
    except Refusal as refusal:
        return Stage(name, "begun", str(refusal), remedy)
    missing = pipeline.unfinished_groups(job)
    if len(missing) == len(job.groups):
        return Stage(name, "-", "", remedy)
    if not missing:
        return Stage(name, "begun", "all groups are written", f"{remedy} --finish")
    said = _parts("groups", missing, len(job.groups))
    return Stage(name, "begun", f"{said}; {_age(job.folder.sub('groups'))}", remedy)


def _proposals(folder: LocalFolder, record: PlanRecord, pictures: int) -> Stage:
    remedy, home = f"python -m infer proposals {folder}", folder.sub(proposals.FOLDER)
    done, inputs, weights = proposals.finished(folder), "", ""
    with contextlib.suppress(Refusal):  # no finished RPN
        state, weights = proposals.read_weights(folder)
        inputs = proposals.inputs_of(record, state["recipe"]["model"])
    if done is not None:
        if inputs and done.inputs != inputs:
            return Stage("proposals", "begun", "out of date: of another plan or [model]", remedy)
        broken = f"; {len(done.rejected)} pictures can't be read" if done.rejected else ""
        return Stage("proposals", "done", f"{done.proposals:,}{broken}", remedy)
    count, origin = -(-pictures // proposals.PICTURES), proposals.origin_of(inputs, weights)
    missing = [n for n in range(count) if not proposals.is_made(home, n, origin)]
    if len(missing) == count:
        return Stage("proposals", "-", "", remedy)
    if not missing:
        return Stage("proposals", "begun", "all parts are made", f"{remedy} --finish")
    said = f"{_parts('parts', missing, count)}; {_age(home)}"
    return Stage("proposals", "begun", said, remedy)


def _negatives(folder: LocalFolder, record: PlanRecord, mined: bool) -> Stage:
    remedy = f"python -m chipgen negatives {folder}"
    try:
        negative = run.read_negative_record(folder)
    except Refusal as refusal:
        return Stage("negatives", "begun", str(refusal), remedy)
    if negative is None:
        return Stage("negatives", "-", "", remedy)
    if mined and folder.exists(run.PROPOSALS):
        settings = run.recipe_of(record).negatives
        if negative.inputs != run.negative_inputs(
            record, settings, digest_of(folder, run.PROPOSALS)
        ):
            said = f"not of {run.PROPOSALS} and this plan"
            return Stage("negatives", "begun", said, remedy)
    return Stage("negatives", "done", "", remedy)


def _training(folder: LocalFolder, name: str) -> Stage:
    task = " --set train.task=rpn" if name == "rpn" else ""
    remedy = f"python -m train {folder} --recipe RECIPE{task} --resume"
    home = folder.sub(name)
    said, done = [], False
    saved = checkpoint.steps(home.sub("checkpoints"))
    last = [entry for _, entry in journal.entries(home) if "loss" in entry][-1:]
    for entry in last:
        said.append(f"step {entry['step']:,}, epoch {entry['epoch']:.1f}, loss {entry['loss']:.3f}")
        said.append(f"{entry['chips_per_s']:,.0f} chips/s")
    for step in reversed(saved):
        # a damaged one, which a run passes over as well, or one that the run has just removed
        with contextlib.suppress(ValueError, FileNotFoundError):
            done = checkpoint.read_record(home.sub("checkpoints"), step).done
            said.append(f"checkpoint {step:,}")
            break
    holder = hold.holder(home)
    if holder:
        lives, age = hold.lives(holder), _seconds_since(home, hold.LOCK)
        if lives or (lives is None and age < hold.SILENCE):
            said.append(f"pid {holder.pid} on {holder.host}")
            return Stage(name, "running", ", ".join(said), remedy)
        gone = "is dead" if lives is False else f"last gave a sign of life {_ago(age)}"
        said.append(f"pid {holder.pid} on {holder.host} {gone}")
    elif last and not done:
        said.append(f"not running, last entry {_ago(_seconds_since(home, journal.LOG))}")
    state = "done" if done else "begun" if said else "-"
    return Stage(name, state, ", ".join(said), remedy)


def _figures(folder: LocalFolder) -> Stage:
    remedy = f"python -m infer eval {folder} --data DATA"
    home = parts.folder_of(folder.path / "eval.json")
    try:
        begun = parts.begun(home)
    except Refusal as refusal:
        return Stage("eval", "begun", str(refusal), remedy)
    if begun:
        missing, count = begun
        said = (
            f"{_parts('parts', missing, count)}; {_age(home)}" if missing else "all parts are made"
        )
        return Stage("eval", "begun", said, remedy if missing else f"{remedy} --finish")
    if not folder.exists("eval.json"):
        return Stage("eval", "-", "", remedy)
    try:
        found = unsealed(folder.read("eval.json"), dict)
    except ValueError as error:
        return Stage("eval", "begun", f"eval.json is damaged ({error})", remedy)
    said = [
        f"{mode} AP {row['AP']:.1f}" if "AP" in row else f"{mode} AP50 {row['AP50']:.1f}"
        for mode, row in found.items()
        if isinstance(row, dict) and row.get("AP50") is not None
    ]
    return Stage("eval", "done", ", ".join(said), remedy)


def _rejects(reasons: Sequence[str]) -> str:
    if not reasons:
        return ""
    most = Counter(reasons).most_common(REASONS)
    return f"; rejects: {', '.join(f'{reason} {count:,}' for reason, count in most)}"


def _parts(what: str, missing: Sequence[int], count: int) -> str:
    """Say how many are there and name those that are not, in ranges."""
    ranges = []
    for _, run_of in itertools.groupby(enumerate(missing), lambda pair: pair[1] - pair[0]):
        numbers = [number for _, number in run_of]
        ends = f"{numbers[0]}-{numbers[-1]}" if len(numbers) > 1 else f"{numbers[0]}"
        ranges.append(ends)
    more = ", .." if len(ranges) > NAMED else ""
    named = ", ".join(ranges[:NAMED])
    return f"{count - len(missing):,} of {count:,} {what}; missing {named}{more}"


def _age(folder: LocalFolder) -> str:
    names = folder.names()
    return f"last {_ago(min(_seconds_since(folder, name) for name in names))}" if names else ""


def _seconds_since(folder: LocalFolder, name: str) -> float:
    try:
        return max(time.time() - (folder.path / name).stat().st_mtime, 0.0)
    except FileNotFoundError:  # just removed
        return 0.0


def _ago(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"
