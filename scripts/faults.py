"""A fault campaign: every stage is killed, starved and misled, and must end as if it had not been.

A small made-up data set goes through all stages once, undisturbed: the reference. Each fault then
starts from a copy of the state before a stage and runs the stage's own command with the fault in
it. What fails must end soon, with a code and one line that names the cause; the same command
without the fault, or with the remedy that the line names, must then give what the reference has:
the same bytes of plan, shards and proposals, the same batches and weights of trainings, the same
detections and figures. What does not fail must give that at once.

Commands run in forks of this process, which has imported all they need and computed nothing.
"""

import argparse
import collections
import contextlib
import dataclasses
import importlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ["OMP_NUM_THREADS"] = os.environ["NUMBA_NUM_THREADS"] = "1"  # equal weights, bit by bit

from fault.case import Case, Fault, Unlucky
from fault.kinds import kinds
from fault.reference import foreign, halves, reference
from fault.stages import RECIPE, STAGES, Places, draw_data
from fault.strikes import may_mount

OUTCOMES = ("at once", "recovered", "wrong", "lost", "hung", "unnamed")
BAD = OUTCOMES[2:]
MANY = 8  # stages of a kind for each of its turns


def parser() -> argparse.ArgumentParser:
    """Describe the arguments."""
    made = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    made.add_argument("--seed", type=int, default=0, help="of data and faults (default: 0)")
    made.add_argument("--faults", type=int, default=200, help="(default: 200)")
    made.add_argument("--only", metavar="KIND", help="one kind of faults; several with commas")
    made.add_argument("--stages", metavar="STAGE", help="strike these alone, with commas between")
    made.add_argument("--jobs", type=int, default=os.cpu_count(), help="at a time (default: cores)")
    made.add_argument("--out", type=Path, help="json file of all faults and what became of them")
    made.add_argument("--work", type=Path, help="folder to work in, emptied (default: a new one)")
    made.add_argument(
        "--keep", action="store_true", help="keep the folders of faults that ended well"
    )
    return made


def main(arguments: list[str] | None = None) -> int:
    """Run a campaign; returns the exit code."""
    args = parser().parse_args(arguments)
    faults = chosen(args.seed, args.faults, args.only, args.stages)
    load(faults)
    begin = time.monotonic()
    with contextlib.ExitStack() as stack:
        work = args.work or stack.enter_context(tempfile.TemporaryDirectory(prefix="faults-"))
        places = Places(Path(work).resolve())
        shutil.rmtree(places.work, ignore_errors=True)
        places.work.mkdir(parents=True)
        places.recipe.write_text(RECIPE)
        draw_data(places.data, args.seed)
        found = reference(places, faults)
        halves(places, found)
        if any(fault.kind.startswith("foreign") for fault in faults):
            foreign(places)
        print(f"reference: {time.monotonic() - begin:.0f} s", flush=True)
        done = []
        for fault in campaign(faults, places, found, args.jobs, args.keep):
            done.append(fault)
            mark = fault.outcome.upper() if fault.outcome in BAD else fault.outcome
            print(
                f"{len(done):4} {fault.kind:16} {fault.stage:15} {mark:9} {fault.how}; "
                f"{fault.why or fault.said}",
                flush=True,
            )
    done.sort(key=lambda fault: fault.number)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        about = {"seed": args.seed, "mounts": may_mount(), "seconds": time.monotonic() - begin}
        content = {**about, "faults": [dataclasses.asdict(fault) for fault in done]}
        args.out.write_text(json.dumps(content, indent=1) + "\n")
    print(table(done))
    print(f"{len(done)} faults in {time.monotonic() - begin:.0f} s")
    return 1 if any(fault.outcome in BAD for fault in done) else 0


def load(faults: list[Fault]) -> None:
    """Import what the commands need, and shorten what they wait for; computes nothing."""
    from chipgen import commands, pool  # noqa: F401

    importlib.import_module("chipgen.__main__")
    pool.HELD = 5.0
    if {STAGES[fault.stage].of for fault in faults} <= {"plan", "positive"}:
        return  # torch takes seconds
    import torch.utils.tensorboard  # noqa: F401

    for name in ("train.__main__", "train.loop", "infer.__main__", "infer.commands"):
        importlib.import_module(name)
    from infer import proposals
    from train import hold

    proposals.PICTURES = 6  # several parts of few pictures
    hold.SILENCE = 1.0


def chosen(seed: int, number: int, only: str | None, stages: str | None) -> list[Fault]:
    """Deal a number of faults out over kinds and their stages evenly."""
    known = kinds()
    wanted = {"kinds": (only, list(known)), "stages": (stages, list(STAGES))}
    for what, (text, all_of_it) in wanted.items():
        if strange := set(text.split(",") if text else ()) - set(all_of_it):
            raise SystemExit(f"{', '.join(strange)}: the {what} are {', '.join(all_of_it)}")
    strikes = {
        name: [one for one in known[name].stages if not stages or one in stages.split(",")]
        for name in (only.split(",") if only else known)
    }
    # who can strike many stages has more turns
    names = [name for name, some in strikes.items() for _ in range(-(-len(some) // MANY))]
    if not names:
        raise SystemExit(f"no fault of {only} strikes {stages}")
    rng = random.Random(seed)
    dealt = {name: rng.sample(strikes[name], len(strikes[name])) for name in names}
    turns = collections.Counter()
    faults = []
    for n in range(number):
        name = names[n % len(names)]
        stage = dealt[name][turns[name] % len(dealt[name])]
        turns[name] += 1
        faults.append(Fault(n, name, stage, rng.randrange(1 << 30)))
    return faults


def campaign(
    faults: list[Fault], places: Places, found: dict[str, Any], jobs: int, keep: bool
) -> Iterator[Fault]:
    """Try faults, some at a time, each in a process of its own."""
    waiting, running = list(reversed(faults)), {}
    while waiting or running:
        while waiting and len(running) < jobs:
            fault = waiting.pop()
            path = places.work / "outcomes" / f"{fault.number}.json"
            path.parent.mkdir(exist_ok=True)
            pid = os.fork()
            if not pid:
                code = 1
                try:
                    tried = attempt(fault, places, found, keep)
                    path.write_text(json.dumps(dataclasses.asdict(tried)))
                    code = 0
                except BaseException:
                    traceback.print_exc()
                os._exit(code)
            running[pid] = path
        pid, _ = os.waitpid(-1, 0)
        yield Fault(**json.loads(running.pop(pid).read_bytes()))


def attempt(fault: Fault, places: Places, found: dict[str, Any], keep: bool) -> Fault:
    """Try one fault."""
    begin = time.monotonic()
    folder = places.work / "cases" / f"{fault.number:04d}"
    folder.mkdir(parents=True)
    case = Case(fault, places, found, folder, random.Random(fault.seed))
    try:
        fault.outcome = kinds()[fault.kind].strike(case)
    except Unlucky as unlucky:
        fault.outcome, _, fault.why = str(unlucky).partition(": ")
    except Exception:
        fault.outcome, fault.why = "lost", f"the campaign itself: {traceback.format_exc()}"
    finally:
        fault.seconds = round(time.monotonic() - begin, 2)
        if case.mounted:
            subprocess.run(["umount", str(case.run)], check=False)
        if not keep and fault.outcome not in BAD:
            shutil.rmtree(folder, ignore_errors=True)
    return fault


def table(faults: list[Fault]) -> str:
    """Lay out outcomes by kind."""
    lines = [f"{'':18}{'injected':>9}" + "".join(f"{outcome:>10}" for outcome in OUTCOMES)]
    by_kind: dict[str, collections.Counter] = {}
    for fault in faults:
        by_kind.setdefault(fault.kind, collections.Counter())[fault.outcome] += 1
    by_kind["all"] = sum(by_kind.values(), collections.Counter())
    for kind, counted in by_kind.items():
        figures = "".join(f"{counted[outcome]:10}" for outcome in OUTCOMES)
        lines.append(f"{kind:18}{counted.total():9}{figures}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
