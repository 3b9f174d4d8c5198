"""Submit the way from pictures to figures as a chain of Slurm jobs.

Each job waits for the one before. What is done already is skipped by the jobs themselves, so the
same command, given again, goes on where a chain was broken.
"""

import argparse
import hashlib
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from chipgen.arguments import add_overrides, execute
from chipgen.errors import Refusal
from chipgen.recipe import load, locate

HOME = Path(__file__).resolve().parent.parent.parent


@dataclass(frozen=True)
class ClusterSettings:
    """The [cluster] section of a recipe: what jobs ask for, in Slurm's own words."""

    partition: str = ""  # "": the cluster's default
    account: str = ""
    options: tuple[str, ...] = ()  # of sbatch, for every job, such as "--qos=low"
    setup: str = ""  # shell commands that each job begins with, such as "module load cuda"
    parts: int = 16  # array tasks of chips and of proposals
    eval_parts: int = 4  # array tasks of the evaluation
    at_once: int = 0  # array tasks that may run at a time; 0: any number
    hours: int = 8  # time limit of every job but trainings

    nodes: int = 1  # of the training; the short one for negatives takes one
    processes: int = 0  # of each node in trainings; 0: one for each GPU, or one alone
    gpus: int = 1  # of a node, where networks run; 0: they run on CPUs
    cpus: int = 8  # of each process
    train_hours: int = 24  # time limit of a training until it is queued once more
    notice: int = 300  # s before that limit at which it writes a checkpoint; a step must fit in
    address: str = ""  # where the processes of a training meet; "": the first node's name

    def __post_init__(self):
        for name in ("parts", "eval_parts", "hours", "nodes", "cpus", "train_hours", "notice"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)} must be at least 1")
        for name in ("at_once", "processes", "gpus"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} = {getattr(self, name)} must not be negative")

    @property
    def tasks(self) -> int:
        """Give the processes of each node in a training."""
        return self.processes or max(self.gpus, 1)


@dataclass(frozen=True)
class Step:
    """One job of the chain, or an array of jobs."""

    name: str
    script: tuple[str, ...]  # of this folder, with its arguments
    options: tuple[str, ...]
    parts: int = 0  # of an array; 0: none


def main() -> int:
    """Submit; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="submit",
        description=__doc__.splitlines()[0],
        epilog="example: scripts/slurm/submit runs/coco --data /data/coco --recipe coco-r50 "
        "--set cluster.nodes=4 --set cluster.gpus=8",
    )
    parser.add_argument("run", help="run folder, which all nodes must see under the same path")
    parser.add_argument("--data", required=True, help="data set: folder, URL or dataset.toml")
    parser.add_argument("--split", default="train", help="splits to train on (default: train)")
    parser.add_argument("--split-eval", default="val", help="to evaluate on (default: val)")
    parser.add_argument("--recipe", required=True, help="recipe file, or the name of a shipped one")
    add_overrides(parser)
    parser.add_argument("--only", metavar="STEP", help="one step alone, which waits for nothing")
    parser.add_argument("--part", type=int, help="with --only: one part of an array alone")
    parser.add_argument("--dry-run", action="store_true", help="only say what would be done")
    args = parser.parse_args()
    return execute("submit", lambda: submit(args))


def submit(args: argparse.Namespace) -> int:
    """Hand the steps to sbatch, one after the other, and print their numbers."""
    settings = load(args.recipe, {"cluster": ClusterSettings}, args.overrides)["cluster"]
    steps = list(chain(args, settings))
    if args.only:
        steps = [step for step in steps if step.name == args.only]
        if not steps:
            names = ", ".join(step.name for step in chain(args, settings))
            raise Refusal(f"--only {args.only}: not one of {names}")
    if args.part is not None and not (args.only and 0 <= args.part < steps[0].parts):
        of = f"of 0 to {steps[0].parts - 1}" if args.only and steps[0].parts else "of an array"
        raise Refusal(f"--part {args.part}: goes with --only, and must be one {of}")
    logs = absolute(args.run) / "logs"
    if not args.dry_run:
        logs.mkdir(parents=True, exist_ok=True)
    before = None
    for step in steps:
        line = sbatch(step, settings, absolute(args.run), logs, before, args.part)
        if args.dry_run:
            print(shlex.join(line))
            before = f"<{step.name}>"
            continue
        before = handed_over(line, settings)
        print(f"{before:>10}  {step.name}" + (f", {step.parts} parts" if step.parts else ""))
    if not args.dry_run:
        print(f"logs: {logs}; how far it is: python -m infer status {absolute(args.run)}")
    return 0


def chain(args: argparse.Namespace, settings: ClusterSettings) -> Iterator[Step]:
    """List the steps from pictures to figures."""
    run = str(absolute(args.run))
    data = args.data if "://" in args.data else str(absolute(args.data))
    path = locate(args.recipe)
    recipe = ("--recipe", str(path.resolve()), *(f"--set={text}" for text in args.overrides))
    parts = str(settings.parts)
    short = (f"--time={settings.hours}:00:00", f"--cpus-per-task={settings.cpus}")
    gpus = (f"--gres=gpu:{settings.gpus}",) if settings.gpus else ()
    one = ("--gres=gpu:1",) if settings.gpus else ()
    training = (
        f"--ntasks-per-node={settings.tasks}",
        f"--cpus-per-task={settings.cpus}",
        f"--time={settings.train_hours}:00:00",
        f"--signal=B:USR1@{settings.notice}",
        *gpus,
    )
    source = ("--data", data, "--split", args.split)
    measured = run, "--data", data, "--split", args.split_eval, *recipe
    yield Step("plan", ("chips.sbatch", "plan", run, *source, *recipe), short)
    processes = f"--processes={settings.nodes * settings.tasks}"
    yield Step("check", ("eval.sbatch", "check", *measured, processes), short)
    for kind in ("positive", "negative"):
        if kind == "negative":
            yield Step("rpn", ("train.sbatch", "rpn", run, *recipe), ("--nodes=1", *training))
            make = "proposals.sbatch", "make", run, parts
            yield Step("proposals", make, (*short, *one), settings.parts)
            yield Step("negatives", ("proposals.sbatch", "finish", run), short)
        write = "chips.sbatch", "write", run, kind, parts
        yield Step(kind, write, short, settings.parts)
        yield Step(f"{kind}-finish", ("chips.sbatch", "finish", run, kind), short)
    nodes = f"--nodes={settings.nodes}"
    yield Step("train", ("train.sbatch", "detector", run, *recipe), (nodes, *training))
    look = "eval.sbatch", "look", str(settings.eval_parts), *measured
    yield Step("eval", look, (*short, *one), settings.eval_parts)
    yield Step("eval-finish", ("eval.sbatch", "finish", *measured), short)


def sbatch(
    step: Step,
    settings: ClusterSettings,
    run: Path,
    logs: Path,
    before: str | None,
    part: int | None,
) -> list[str]:
    """Give the command line that submits a step.

    Of all jobs with one name, which stands for the run folder and the step, Slurm runs one at a
    time: two chains of one run don't get into each other's way.
    """
    mark = hashlib.sha256(str(run).encode()).hexdigest()[:6]
    log = "%x-%A_%a.out" if step.parts else "%x-%j.out"
    waits = [f"afterok:{before}"] if before else []
    if not step.parts:
        waits.append("singleton")
    line = ["sbatch", "--parsable", f"--job-name={run.name}-{mark}-{step.name}"]
    line += [f"--chdir={HOME}", f"--output={logs / log}", *step.options]
    if step.parts:
        at_once = f"%{settings.at_once}" if settings.at_once else ""
        line.append(f"--array={f'0-{step.parts - 1}' if part is None else part}{at_once}")
    if waits:
        line += [f"--dependency={','.join(waits)}", "--kill-on-invalid-dep=yes"]
    line += [
        f"--{key}={getattr(settings, key)}"
        for key in ("partition", "account")
        if getattr(settings, key)
    ]
    return [
        *line,
        *settings.options,
        str(HOME / "scripts" / "slurm" / step.script[0]),
        *step.script[1:],
    ]


def handed_over(line: list[str], settings: ClusterSettings) -> str:
    """Run sbatch; gives the number of the job."""
    environment = {**os.environ, "FOVEA_SETUP": settings.setup, "FOVEA_ADDRESS": settings.address}
    try:
        done = subprocess.run(line, capture_output=True, text=True, check=False, env=environment)
    except FileNotFoundError as error:
        raise Refusal("sbatch: no such command; is this a machine of a Slurm cluster?") from error
    if done.returncode:
        raise Refusal(f"{done.stderr.strip()} (of: {shlex.join(line)})")
    return done.stdout.strip().partition(";")[0]


def absolute(path: str) -> Path:
    """Give a path that holds on any node, links left as they are."""
    return Path(path).absolute()


if __name__ == "__main__":
    sys.exit(main())
