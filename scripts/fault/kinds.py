"""The kinds of faults, and the stages that each can strike."""

import signal
from collections.abc import Callable
from dataclasses import dataclass

from fault import calls, strikes
from fault.case import Case
from fault.stages import FORKED, STAGES
from fault.strikes import damaged, failing, half, misled, signalled


@dataclass(frozen=True)
class Kind:
    """A kind of fault, and the stages that it can strike."""

    stages: tuple[str, ...]
    strike: Callable[[Case], str]


def in_set(case: Case, *patterns: str) -> tuple[str, ...]:
    """Give the patterns of files in the set of shards that a stage makes."""
    return tuple(f"shards/{case.stage.of}/{pattern}" for pattern in patterns)


def kinds() -> dict[str, Kind]:
    """List the kinds of faults."""
    every = tuple(FORKED)
    everywhere = (*FORKED, "train-2")
    after_plan = tuple(n for n in FORKED if STAGES[n].of not in ("plan", "detect", "eval"))
    ways = ("cut", "flip", "gone")
    parquet = ("plan/pictures.parquet", "plan/boxes.parquet", "plan/positive.parquet")
    rows: dict[str, tuple[tuple[str, ...], Callable[[Case], str]]] = {
        "sigkill": (everywhere, lambda c: signalled(c, signal.SIGKILL)),
        "sigterm": (everywhere, lambda c: signalled(c, signal.SIGTERM)),
        "sigint": (every, lambda c: signalled(c, signal.SIGINT)),
        "sigusr1": (("rpn", "train", "train-loader"), lambda c: signalled(c, signal.SIGUSR1)),
        "worker-died": (("positive-2", "negative-2"), strikes.worker_died),
        "full-disk": (every, strikes.full_disk),
        "file-limit": (every, strikes.file_limit),
        "read-only": (every, strikes.read_only),
        "read-error": (every, lambda c: failing(c, calls.BROKEN, calls.READS, False)),
        "write-error": (every, lambda c: failing(c, calls.BROKEN, calls.WRITES, False)),
        "full-moment": (every, lambda c: failing(c, calls.FULL, calls.WRITES, False)),
        "shard": (("rpn", "train"), lambda c: damaged(c, ("shards/*/*/*.tar",), ways)),
        "index": (
            ("rpn", "train"),
            lambda c: damaged(c, ("shards/*/index.parquet",), ways),
        ),
        "manifest": (
            ("rpn", "train"),
            lambda c: damaged(c, ("shards/*/manifest.json",), ways),
        ),
        "foreign-manifest": (
            ("rpn", "train"),
            lambda c: misled(c, strikes.foreign_manifest, "manifest", "recipe", "index"),
        ),
        "plan-json": (after_plan, lambda c: damaged(c, ("plan/plan.json",), ways)),
        "plan-table": (
            ("positive", "proposals", "negatives", "negative"),
            lambda c: damaged(c, parquet, ways),
        ),
        "negative-json": (
            ("negative",),
            lambda c: damaged(c, ("plan/negative.*",), ways),
        ),
        "proposals-json": (
            ("negatives",),
            lambda c: damaged(c, ("proposals/proposals.*",), ways),
        ),
        "checkpoint": (
            ("rpn", "train"),
            lambda c: damaged(c, (f"{c.stage.of}/checkpoints/*",), ways, half(c)),
        ),
        "last-checkpoint": (("proposals", "detect", "eval"), strikes.last_checkpoint),
        "finished-set": (
            ("positive", "negative"),
            lambda c: damaged(c, in_set(c, "*", "*/*.tar"), ("cut", "gone"), c.stage.of),
        ),
        "cut-log": (
            ("rpn", "train"),
            lambda c: damaged(c, (f"{c.stage.of}/log.jsonl",), ("cut",), half(c)),
        ),
        "part": (
            ("proposals",),
            lambda c: damaged(c, ("proposals/*/part-*",), ways, "half-proposals"),
        ),
        "group": (
            ("positive", "negative"),
            lambda c: damaged(c, in_set(c, "groups/*/*"), ways, half(c)),
        ),
        "half-shard": (
            ("positive", "negative"),
            lambda c: damaged(c, in_set(c, "*/*.tar"), ("cut", "gone"), half(c)),
        ),
        "half-found": (
            ("detect",),
            lambda c: damaged(c, ("found/pictures.jsonl",), ways, "half-detect"),
        ),
        "figures": (
            ("eval",),
            lambda c: damaged(c, ("eval.json",), ("cut", "flip"), "eval"),
        ),
        "foreign-part": (("proposals",), lambda c: misled(c, strikes.foreign_part, "part")),
        "second-run": (tuple(n for n in FORKED if not n.endswith("-2")), strikes.second_run),
        "stale-lock": (("rpn", "train"), strikes.stale_lock),
        "clock-back": (every, strikes.clock_back),
    }  # fmt: skip
    return {
        name: Kind(tuple(s for s in stages if s in STAGES), strike)
        for name, (stages, strike) in rows.items()
    }
