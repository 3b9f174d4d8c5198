"""The run that no fault strikes, and the states of it that faults start from."""

import collections
import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fault import calls
from fault.case import Fault
from fault.forks import in_fork, launch, start
from fault.results import differing, result
from fault.stages import CHAIN, NAMES, RECIPE, STAGES, TRAININGS, VARIANTS, Places, before


def reference(places: Places, faults: list[Fault]) -> dict[str, Any]:
    """Run the stages that faults need once, undisturbed: keeps states, counts calls and bytes."""
    found: dict[str, Any] = {"results": {}, "calls": {}, "seconds": {}, "grown": {}, "largest": {}}
    places.state("").mkdir(parents=True)
    struck = {fault.stage for fault in faults}
    last = max(NAMES.index(STAGES[name].of) for name in struck)
    variants = tuple(stage for stage in VARIANTS if stage.name in struck)
    for stage in CHAIN[: last + 1] + variants:
        run = places.work / "undisturbed"
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(places.state(before(stage.of)), run)
        counted, seconds, grown = [], [], []
        for text in stage.commands:
            before_it = used_by(run)
            told = places.work / "calls"
            out = places.work / f"undisturbed-{stage.name}"
            command = places.command(text, run)
            if stage.processes > 1:
                child = launch(command, out, stage.processes)
            else:
                child = start(
                    command, out, lambda run=run, told=told: count(run, places.data, told)
                )
            ran = child.ended()
            if ran.code:
                raise SystemExit(f"undisturbed, {text} fails: {ran.text[-3000:]}")
            counted.append(json.loads(told.read_text()) if stage.processes == 1 else {})
            seconds.append(ran.seconds)
            grown.append(max(used_by(run) - before_it, 0))
        files = [p.stat().st_size for p in run.rglob("*") if p.is_file()]
        found["calls"][stage.name], found["seconds"][stage.name] = counted, seconds
        found["grown"][stage.name], found["largest"][stage.name] = grown, max(files)
        if stage in CHAIN:
            found["results"][stage.name] = in_fork(lambda: result(run, stage.name))  # noqa: B023
            shutil.copytree(run, places.state(stage.name))
        else:
            got = in_fork(lambda: result(run, stage.of))  # noqa: B023
            expected = found["results"][stage.of]
            wrong = differing(got, expected, stage.of, processes=stage.processes)
            if wrong:
                raise SystemExit(f"undisturbed, {stage.name} is not as {stage.of}: {wrong}")
    return found


def used_by(folder: Path) -> int:
    """Give the bytes of a folder's files, in pages."""
    return sum(-(-p.stat().st_size // 4096) * 4096 for p in folder.rglob("*") if p.is_file())


def count(run: Path, data: Path, told: Path) -> Callable[[], None]:
    """Count this process's calls; the function returned writes them down."""
    counted: collections.Counter[str] = collections.Counter()

    def act(group: str, _path: str) -> None:
        counted[group] += 1

    groups = calls.READS + calls.WRITES
    calls.Watch((f"{run}", f"{data}"), groups, 1, act, lasting=True).install()
    return lambda: told.write_text(json.dumps(counted))


def halves(places: Places, found: dict[str, Any]) -> None:
    """Keep states in the midst of stages: half trained, parts made, groups written."""
    made = found["results"]

    def state(name: str, *commands: str, kill_at: int = 0) -> None:
        run = places.state(f"half-{name}")
        shutil.copytree(places.state(before(name)), run)

        def prepare() -> None:
            act = calls.signalling(signal.SIGKILL, False)
            calls.Watch((f"{run}/{name}/log.jsonl",), ("write",), kill_at, act).install()

        for text in commands:
            child = start(
                places.command(text, run), places.work / "halves", prepare if kill_at else None
            )
            if child.ended().code not in (0, -signal.SIGKILL):
                raise SystemExit(f"half of {name}: {text} fails")

    for name in TRAININGS.keys() & made.keys():
        steps = len(made[name]["order"])
        state(name, *STAGES[name].commands, kill_at=max(steps * 3 // 4, 3))
    if "proposals" in made:
        state("proposals", *STAGES["proposals-parts"].commands[:2])
    for kind in {"positive", "negative"} & made.keys():
        state(kind, STAGES[f"{kind}-parts"].commands[0])
    if "detect" not in made:
        return
    half = places.state("half-detect")
    shutil.copytree(places.state("detect"), half)
    for path in (half / "found").glob("detections.*"):
        path.unlink()
    lines = (half / "found" / "pictures.jsonl").read_bytes().splitlines(keepends=True)
    (half / "found" / "pictures.jsonl").write_bytes(b"".join(lines[: len(lines) // 2 + 1]))


def foreign(places: Places) -> None:
    """Make shards of another recipe, and proposals of another network."""
    run, name = places.work / "foreign", places.work / "foreign.toml"
    text = RECIPE.replace("[train]", "[train]\nseed = 1").replace(
        "[shards]", "[shards]\nquality = 60"
    )
    name.write_text(text)
    parts = STAGES["proposals-parts"].commands[:2]
    for stage in ("plan", "positive", "rpn", "parts", "negatives", "negative"):
        for text in parts if stage == "parts" else STAGES[stage].commands:
            command = places.command(text.replace("{recipe}", str(name)), run)
            ran = start(command, places.work / "foreign-out").ended()
            if ran.code:
                raise SystemExit(f"foreign, {text} fails: {ran.text[-2000:]}")
