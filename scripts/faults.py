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
import hashlib
import importlib
import json
import os
import random
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ["OMP_NUM_THREADS"] = os.environ["NUMBA_NUM_THREADS"] = "1"  # equal weights, bit by bit

import injected  # noqa: E402
import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402

PICTURES = {"train": 20, "val": 6}
BOUND = 60.0  # s that a command may take; undisturbed ones take about two
OUTCOMES = ("at once", "recovered", "wrong", "lost", "hung", "unnamed")
BAD = OUTCOMES[2:]

RECIPE = """
[chips]
size = 96
stride = 16
levels = [
  { factor = 2.0, range = [0, 40] },
  { factor = 1.0, range = [24, 90] },
  { long = 96, range = [70, inf] },
]
[negatives]
min_proposals = 2
[shards]
chips_per_shard = 8
[model]
backbone = "small"
width = 8
weights = ""
anchor_sizes = [16, 32, 64]
rpn_channels = 16
candidates = 100
proposals = 16
roi_channels = 8
roi_size = 3
fc_channels = 16
focus_channels = 8
[labels]
anchors = 32
anchors_positive = 16
[train]
epochs = 1
drops = []
rpn_epochs = 1
batch = 8
lr = 0.01
lr_batch = 8
warmup = 0.2
precision = "fp64"
workers = 0
log_every = 1
checkpoint_every = 2
[infer]
levels = [
  { long = 96, range = [60, inf] },
  { factor = 1.0, range = [16, 90] },
  { factor = 1.5, range = [0, 40] },
]
focus = [
  { threshold = 0.02, dilation = 3, smallest = 64 },
  { threshold = 0.05, dilation = 3, smallest = 64 },
]
proposals = 16
min_score = 0.0001
precision = "fp32"
"""


# --- stages ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stage:
    """One step of the way, and the commands that make it; {run}, {data}, {recipe} are put in."""

    name: str
    of: str  # the stage of the reference whose result it has
    commands: tuple[str, ...]
    processes: int = 1  # of a training, started by torchrun


WRITE = "chipgen write {run} --kind"
TRAIN = "train {run} --recipe {recipe} --resume"
CHAIN = (
    Stage("plan", "plan", ("chipgen plan {run} --data {data} --recipe {recipe}",)),
    Stage("positive", "positive", (f"{WRITE} positive --workers 1",)),
    Stage("rpn", "rpn", (f"{TRAIN} --set train.task=rpn",)),
    Stage("proposals", "proposals", ("infer proposals {run}",)),
    Stage("negatives", "negatives", ("chipgen negatives {run}",)),
    Stage("negative", "negative", (f"{WRITE} negative --workers 1",)),
    Stage("train", "train", (TRAIN,)),
    Stage("detect", "detect", ("infer detect {run} {data}/val --out {run}/found",)),
    Stage("eval", "eval", ("infer eval {run} --data {data} --mode autofocus --mode 1",)),
)
PARTS = ("--workers 1 --part 0/2", "--workers 1 --part 1/2", "--finish")
VARIANTS = (
    Stage("positive-2", "positive", (f"{WRITE} positive --workers 2",)),
    Stage("positive-parts", "positive", tuple(f"{WRITE} positive {part}" for part in PARTS)),
    Stage(
        "proposals-parts",
        "proposals",
        tuple(
            f"infer proposals {{run}} {part}" for part in ("--part 0/2", "--part 1/2", "--finish")
        ),
    ),
    Stage("negative-2", "negative", (f"{WRITE} negative --workers 2",)),
    Stage("negative-parts", "negative", tuple(f"{WRITE} negative {part}" for part in PARTS)),
    Stage("train-loader", "train", (f"{TRAIN} --set train.workers=1",)),
    Stage("train-2", "train", (TRAIN,), processes=2),
)
STAGES = {stage.name: stage for stage in CHAIN + VARIANTS}
NAMES = [stage.name for stage in CHAIN]
FORKED = [name for name, stage in STAGES.items() if stage.processes == 1]
FOLDERS = {  # of the stages whose result is files
    "plan": "plan",
    "negatives": "plan",
    "positive": "shards/positive",
    "negative": "shards/negative",
    "proposals": "proposals",
}
TRAININGS = {"rpn": "rpn", "train": "train"}  # stage -> its folder


@dataclass(frozen=True)
class Places:
    """Where the campaign's files lie."""

    work: Path

    @property
    def data(self) -> Path:
        """Give the data set."""
        return self.work / "data"

    @property
    def recipe(self) -> Path:
        """Give the recipe."""
        return self.work / "recipe.toml"

    def state(self, name: str) -> Path:
        """Give the run folder as it is after a stage ("" for before all)."""
        return self.work / "states" / (name or "nothing")

    def command(self, text: str, run: Path) -> list[str]:
        """Fill in a command's places."""
        values = {"run": run, "data": self.data, "recipe": self.recipe}
        return [word.format(**values) for word in text.split()]


def draw_data(folder: Path, seed: int) -> None:
    """Write a COCO data set of noise with coloured boxes; every fifth picture has none."""
    for split, count in PICTURES.items():
        rng = np.random.default_rng((seed, len(split)))
        (folder / split).mkdir(parents=True)
        images, annotations = [], []
        for picture_id in range(1, count + 1):
            width, height = rng.integers(100, 200, 2).tolist()
            coarse = rng.integers(60, 190, (height // 8, width // 8, 3), dtype=np.uint8)
            image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
            name = f"{picture_id:06d}.jpg"
            for _ in range(0 if picture_id % 5 == 0 else int(rng.integers(1, 5))):
                w, h = np.exp(rng.uniform(np.log(8), np.log([width, height]))).astype(int).tolist()
                x, y = (rng.uniform(0, 1, 2) * [width - w, height - h]).astype(int).tolist()
                label = int(rng.integers(2))
                image.paste(((255, 30, 30), (30, 30, 255))[label], (x, y, x + w, y + h))
                one = {"id": len(annotations) + 1, "image_id": picture_id, "iscrowd": 0}
                annotations.append(
                    {**one, "category_id": label + 1, "bbox": [x, y, w, h], "area": w * h}
                )
            image.save(folder / split / name, quality=90)
            images.append({"id": picture_id, "file_name": name, "width": width, "height": height})
        categories = [{"id": 1, "name": "red"}, {"id": 2, "name": "blue"}]
        content = {"images": images, "annotations": annotations, "categories": categories}
        path = folder / "annotations" / f"instances_{split}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content))


# --- running commands ------------------------------------------------------------------------


@dataclass
class Ran:
    """How a command ended."""

    code: int  # -n: by signal n
    text: str
    seconds: float
    hung: bool = False


@dataclass
class Child:
    """A command that runs in a process group of its own."""

    pid: int
    out: Path
    begin: float
    code: int | None = None

    def look(self) -> int | None:
        """Give the exit code, if it has ended."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
        return self.code

    def wait(self, seconds: float) -> bool:
        """Wait for its end for some time; says whether it came."""
        until = time.monotonic() + seconds
        while self.look() is None and time.monotonic() < until:
            time.sleep(0.005)
        return self.code is not None

    def ended(self) -> Ran:
        """Wait for its end, and end what has hung or was left behind."""
        hung = not self.wait(BOUND)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        if hung:
            self.wait(BOUND)
        text = self.out.read_text(errors="replace")
        return Ran(self.code, text, time.monotonic() - self.begin, hung)

    def group(self) -> list[int]:
        """List the other processes of its group that work: loader and writing workers."""
        found = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError, ValueError):
                state, _, group = (entry / "stat").read_text().rpartition(")")[2].split()[:3]
                tracker = b"resource_tracker" in (entry / "cmdline").read_bytes()
                if int(group) == self.pid != int(entry.name) and state not in "ZX" and not tracker:
                    found.append(int(entry.name))
        return found


def start(command: list[str], out: Path, prepare: Callable[[], Any] | None = None) -> Child:
    """Run `python -m PACKAGE ARGUMENTS` in a fork.

    `prepare` runs in it first; if that gives a function, it runs last.
    """
    begin = time.monotonic()
    pid = os.fork()
    if pid:
        with contextlib.suppress(OSError):  # it may have done so, or be gone
            os.setpgid(pid, pid)
        return Child(pid, out, begin)
    with contextlib.suppress(OSError):
        os.setpgid(0, 0)
    code, after = 1, None
    try:
        handle = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        sys.stdout, sys.stderr = open(1, "w"), open(2, "w", buffering=1)  # noqa: SIM115
        module = importlib.import_module(f"{command[0]}.__main__")
        sys.modules["__main__"] = module  # what spawned workers are told to import
        if prepare:
            after = prepare()
        code = module.main(command[1:])
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    with contextlib.suppress(BaseException):
        threading._shutdown()  # threads that never end would keep a real process, too
        from multiprocessing import util

        util._exit_function()
    if after:
        after()
    sys.stdout.flush()
    os._exit(code)


def launch(command: list[str], out: Path, processes: int) -> Child:
    """Start a training of several processes by torchrun."""
    begin = time.monotonic()
    line = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m"]
    with out.open("ab") as file:
        child = subprocess.Popen(
            [sys.executable, *line, *command],
            stdout=file,
            stderr=file,
            start_new_session=True,
            cwd=ROOT,
        )
    child.returncode = 0  # its end is waited for by its number
    return Child(child.pid, out, begin)


def in_fork(work: Callable[[], Any]) -> Any:
    """Give what a function returns that may start threads, by way of json."""
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        code = 1
        try:
            os.close(read)
            with os.fdopen(write, "w") as file:
                json.dump(work(), file)
            code = 0
        except BaseException:
            traceback.print_exc()
        os._exit(code)
    os.close(write)
    with os.fdopen(read) as file:
        text = file.read()
    os.waitpid(pid, 0)
    if not text:
        raise RuntimeError("what was forked failed")
    return json.loads(text)


# --- what a stage's result is ----------------------------------------------------------------


def tree(folder: Path, *patterns: str) -> dict[str, str]:
    """Map every file below a folder to the hash of its bytes."""
    files = sorted(p for pattern in patterns or ("**/*",) for p in folder.glob(pattern))
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in files
        if p.is_file()
    }


def result(run: Path, stage: str) -> dict[str, Any]:
    """Gather what a stage of a run has led to, to be held against another run's."""
    if stage == "plan":
        names = ("pictures", "boxes", "rejects", "positive")
        return tree(run / "plan", "plan.json", *(f"{name}.parquet" for name in names))
    if stage in ("positive", "negative"):
        return tree(run / "shards" / stage)
    if stage in TRAININGS:
        return trained(run / TRAININGS[stage])
    if stage == "proposals":
        return tree(run / "proposals")
    if stage == "negatives":
        return tree(run / "plan", "negative.*")
    if stage == "detect":
        return tree(run / "found", "*.json", "*.parquet")
    path = run / "eval.json"
    return {"figures": still(json.loads(path.read_bytes()))} if path.exists() else {}


def trained(folder: Path) -> dict[str, Any]:
    """Give the batches of a training, by step, and the last weights."""
    import torch

    from chipgen.storage import LocalFolder
    from train import checkpoint, journal

    torch.set_num_threads(1)
    state = checkpoint.load_last(LocalFolder(folder / "checkpoints"))
    order = {
        str(entry["step"]): entry["order"] for _, entry in journal.entries(LocalFolder(folder))
    }
    if state is None:
        return {"order": order}
    digest = hashlib.sha256()
    for name, value in sorted(state["model"].items()):
        digest.update(
            name.encode() + value.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        )
    sums = {name: value.double().abs().sum().item() for name, value in state["model"].items()}
    return {
        "order": order,
        "done": state["done"],
        "step": state["step"],
        "weights": digest.hexdigest(),
        "sums": sums,
    }


def still(value: Any) -> Any:
    """Take out of figures what the clock and the place have a part in."""
    if isinstance(value, dict):
        moving = ("pictures_per_s", "seconds", "inputs", "model", "data", "device", "seal")
        return {k: still(v) for k, v in value.items() if k not in moving}
    return [still(one) for one in value] if isinstance(value, list) else value


def differing(
    ours: dict[str, Any], theirs: dict[str, Any], stage: str, fault: "Fault"
) -> list[str]:
    """List in which of a stage's results two runs differ."""
    ours, theirs = dict(ours), dict(theirs)
    if stage in TRAININGS:
        if fault.kind == "cut-log":  # its entries are what the fault took
            got = ours.pop("order", {})
            ours["order"] = theirs.get("order", {}) | got
        if fault.stage == "train-2":  # sums of gradients in another order
            ours.pop("weights", None), theirs.pop("weights", None)
            mine, sums = ours.pop("sums", {}), theirs.pop("sums", {})
            if mine.keys() != sums.keys() or not np.allclose(
                [*mine.values()], [sums[k] for k in mine], rtol=1e-6
            ):
                return ["weights"]
    return [key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key)]


# --- faults ----------------------------------------------------------------------------------


@dataclass
class Fault:
    """One fault of the campaign, and what became of it."""

    number: int
    kind: str
    stage: str
    seed: int
    how: str = ""  # where and when it struck
    outcome: str = ""
    said: str = ""  # the last line of the command that failed
    why: str = ""  # of a bad outcome
    seconds: float = 0.0
    steps: list[str] = field(default_factory=list)  # commands and their codes


class Unlucky(Exception):
    """A bad outcome; the first word is which."""


@dataclass
class Case:
    """One fault being tried: its folder, its dice, and the reference."""

    fault: Fault
    places: Places
    reference: dict[str, Any]
    folder: Path
    rng: random.Random
    mounted: bool = False
    spoiled: str = ""  # input of the stage that may stay as the fault has left it

    @property
    def stage(self) -> Stage:
        """Give the stage."""
        return STAGES[self.fault.stage]

    @property
    def run(self) -> Path:
        """Give the run folder of this case."""
        return self.folder / "run"

    @property
    def told(self) -> Path:
        """Give the file that an injected error writes its place to."""
        return self.folder / "told"

    def copy(self, state: str) -> None:
        """Take over the run folder as it was after a stage of the reference."""
        shutil.copytree(self.places.state(state), self.run, dirs_exist_ok=True)

    def start(
        self, text: str, prepare: Callable[[], None] | None = None, processes: int = 1
    ) -> Child:
        """Start a command."""
        out = self.folder / f"out-{len(self.fault.steps)}"
        self.fault.steps.append(text)
        command = self.places.command(text, self.run)
        if processes > 1:
            return launch(command, out, processes)
        return start(command, out, prepare)

    def ended(self, child: Child) -> Ran:
        """Wait for a command's end."""
        ran = child.ended()
        self.fault.steps[-1] += f" -> {ran.code}"
        if ran.hung:
            raise Unlucky(f"hung: no end after {BOUND:g} s: {ran.text[-300:]}")
        return ran

    def do(self, text: str, prepare: Callable[[], None] | None = None, processes: int = 1) -> Ran:
        """Run a command to its end."""
        return self.ended(self.start(text, prepare, processes))

    def difference(self) -> list[str]:
        """List what of the run is not as in the reference, up to the stage."""
        names = NAMES[: NAMES.index(self.stage.of) + 1]
        found = in_fork(lambda: {name: result(self.run, name) for name in names})
        return [
            f"{name}: {key}"
            for name in names
            for key in differing(found[name], self.reference["results"][name], name, self.fault)
            if f"{FOLDERS.get(name)}/{key}" != self.spoiled
        ]

    def calls(self, index: int, groups: tuple[str, ...]) -> int:
        """Give the number of calls of some groups that a command made undisturbed."""
        counted = self.reference["calls"][self.stage.name][index]
        return sum(counted.get(group, 0) for group in groups)

    def require(self, ran: Ran, *names: str) -> None:
        """Demand that a failure is told in the house's way, with one of some words in it."""
        self.fault.said = last_line(ran.text)
        if "Traceback" in ran.text:
            raise Unlucky(f"unnamed: a traceback: {ran.text[-1500:]}")
        if names and not any(name in ran.text for name in names):
            raise Unlucky(f"unnamed: none of {names} in: {ran.text[-600:]}")

    def remedied(self) -> None:
        """Do as the last failure says, then run what make would, up to the stage."""
        said = self.fault.said
        if "python -m chipgen verify" in said:
            ran = self.do("chipgen verify {run}")
            self.require(ran)
            said = self.fault.said
        if found := re.search(r"delete (that folder|it\b|/\S+)", said):
            named = found[1]
            if not named.startswith("/"):
                named = re.search(r"(/[^:\s]+)", said)[1]
            path = Path(named.rstrip(",;."))
            if self.run not in (path, *path.parents):
                raise Unlucky(f"lost: the remedy is outside the run: {said}")
            self.fault.steps.append(f"delete {path.relative_to(self.run)}")
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        for name in NAMES[: NAMES.index(self.stage.of) + 1]:
            for text in STAGES[name].commands:
                ran = self.do(text)
                if ran.code:
                    raise Unlucky(f"lost: {text}: {ran.text[-600:]}")

    def finish(self, index: int, ran: Ran, remedies: bool = False, repeat: bool = False) -> str:
        """Bring a stage to its end after a fault in one of its commands; gives the outcome."""
        failed = ran.code != 0
        if failed or repeat:
            text = self.stage.commands[index]
            ran = self.do(text, processes=self.stage.processes)
        if ran.code and remedies:
            self.require(ran)
            self.remedied()
        elif ran.code:
            raise Unlucky(f"lost: {ran.text[-600:]}")
        else:
            for text in self.stage.commands[index + 1 :]:
                ran = self.do(text, processes=self.stage.processes)
                if ran.code:
                    raise Unlucky(f"lost: {text}: {ran.text[-600:]}")
        if wrong := self.difference():
            raise Unlucky(f"wrong: {', '.join(wrong[:6])}")
        return "recovered" if failed else "at once"

    def until_command(self) -> int:
        """Set the state before one of the stage's commands, drawn by lot; gives its number."""
        self.copy(before(self.stage.of))
        index = self.rng.randrange(len(self.stage.commands))
        for text in self.stage.commands[:index]:
            if self.do(text).code:
                raise Unlucky(f"lost: {text} failed undisturbed")
        return index


def before(stage: str) -> str:
    """Name the stage of the reference before one."""
    place = NAMES.index(stage)
    return NAMES[place - 1] if place else ""


def last_line(text: str) -> str:
    """Give the last line of what a command said, short."""
    lines = [line.strip() for line in re.split(r"[\r\n]", text) if line.strip()]
    return lines[-1][:400] if lines else ""


def signalled(case: Case, number: int) -> str:
    """Send a signal at a moment drawn by lot: at a system call, or by the clock."""
    index = case.until_command()
    text, processes = case.stage.commands[index], case.stage.processes
    group = case.rng.random() < 0.5  # a scheduler signals all processes, an operator one
    groups = injected.READS + injected.WRITES
    count = case.calls(index, groups) if processes == 1 else 0
    if count and case.rng.random() < 0.6:
        at = case.rng.randint(1, count)
        case.fault.how = f"command {index}, call {at} of {count}{', group' * group}"

        def prepare() -> None:
            watch(case, groups, at, injected.signalling(number, group))

        ran = case.do(text, prepare)
    else:
        after = case.rng.random() * case.reference["seconds"][case.stage.name][index]
        case.fault.how = f"command {index}, after {after:.2f} s{', group' * group}"
        child = case.start(text, processes=processes)
        if not child.wait(after):
            with contextlib.suppress(ProcessLookupError):
                (os.killpg if group else os.kill)(child.pid, number)
        ran = case.ended(child)
    if ran.code not in (0, -number):
        said = {signal.SIGINT: "stopped", signal.SIGTERM: "SIGTERM", signal.SIGKILL: "SIGKILL"}
        if processes == 1:
            case.require(ran, "stopped by a signal", "a worker died", said.get(number, "stopped"))
    elif ran.code:
        case.fault.said = f"ended by {signal.Signals(number).name}"
    return case.finish(index, ran)


def watch(
    case: Case,
    groups: tuple[str, ...],
    at: int,
    act: Callable[[str, str], None],
    lasting: bool = False,
) -> injected.Watch:
    """Install a watch of the run folder and the data set in this process."""
    folders = f"{case.run}", f"{case.places.data}"
    made = injected.Watch(folders, groups, at, act, lasting)
    made.install()
    return made


def failing(case: Case, number: int, groups: tuple[str, ...], lasting: bool) -> str:
    """Let system calls fail from a moment on, or once; the file must be named."""
    index = case.until_command()
    count = case.calls(index, groups)
    if not count:
        case.fault.how = f"command {index} makes no such call"
        return case.finish(index, case.do(case.stage.commands[index]))
    at = case.rng.randint(1, count)
    case.fault.how = f"command {index}, call {at} of {count}{', lasting' * lasting}"

    def prepare() -> None:
        watch(case, groups, at, injected.failing(number, case.told), lasting)

    ran = case.do(case.stage.commands[index], prepare)
    if ran.code:
        require_place(case, ran)
    return case.finish(index, ran)


def require_place(case: Case, ran: Ran) -> None:
    """Demand that a failure names one of the files whose calls have failed."""
    told = case.told.read_text().split("\n") if case.told.exists() else []
    names = {re.sub(r"^\.(.*)\.tmp$", r"\1", Path(line).name) for line in told if line}
    names = {f"/{name}" for name in names}
    case.fault.how += f" ({', '.join(sorted(names)[:3])})"
    case.require(ran, *names)


def worker_died(case: Case) -> str:
    """Kill one worker of a command that has such."""
    index = case.until_command()
    child = case.start(case.stage.commands[index])
    seconds = case.reference["seconds"][case.stage.name][index]
    while not (found := child.group()) and not child.wait(0.005):
        pass
    child.wait(case.rng.random() * max(seconds - (time.monotonic() - child.begin), 0.0))
    case.fault.how = f"{time.monotonic() - child.begin:.2f} s after the start"
    for pid in found[:1]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    ran = case.ended(child)
    if ran.code:
        case.require(ran, "worker died")
    return case.finish(index, ran)


def full_disk(case: Case) -> str:
    """Fill the file system: a real one where root may mount it, else by injected errors."""
    if not may_mount():
        return failing(case, injected.FULL, injected.WRITES, lasting=True)
    case.run.mkdir()
    mount(case, "64m")
    index = case.until_command()
    text = case.stage.commands[index]
    page = 4096
    grown = case.reference["grown"][case.stage.name][index]
    room = case.rng.randrange(0, max(grown, 2 * page), page)
    status = os.statvfs(case.run)
    used = (status.f_blocks - status.f_bfree) * status.f_bsize
    mount(case, f"{used + room}", "remount,")
    case.fault.how = f"command {index}, tmpfs, {room} bytes left of {grown}"
    ran = case.do(text)
    if ran.code:
        case.require(ran, str(case.run))
        case.require(ran, "full", "No space left")
    mount(case, "64m", "remount,")
    return case.finish(index, ran)


def read_only(case: Case) -> str:
    """Make the file system read-only."""
    if not may_mount():
        return failing(case, injected.FROZEN, injected.WRITES, lasting=True)
    case.run.mkdir()
    mount(case, "64m")
    index = case.until_command()
    mount(case, "64m", "remount,ro,")
    case.fault.how = f"command {index}, tmpfs"
    ran = case.do(case.stage.commands[index])
    if not ran.code:
        raise Unlucky("wrong: ended well where nothing can be written")
    case.require(ran, str(case.run))
    case.require(ran, "read-only", "Read-only")
    mount(case, "64m", "remount,rw,")
    return case.finish(index, ran)


def file_limit(case: Case) -> str:
    """Limit the size of files (ulimit -f)."""
    index = case.until_command()
    largest = case.reference["largest"][case.stage.name]
    limit = case.rng.randrange(1, largest)
    case.fault.how = f"command {index}, at most {limit} bytes (the largest has {largest})"

    def prepare() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # as Python starts

    # what it says goes to a file as well
    limit = max(limit, 4096)
    ran = case.do(case.stage.commands[index], prepare)
    if ran.code:
        case.require(ran, str(case.run))
        case.require(ran, "large", "File too large")
    return case.finish(index, ran)


def may_mount() -> bool:
    """Say whether this process may mount a tmpfs."""
    if os.geteuid() or not shutil.which("mount"):
        return False
    with tempfile.TemporaryDirectory() as folder:
        tried = subprocess.run(
            ["mount", "-t", "tmpfs", "tmpfs", folder], capture_output=True, check=False
        )
        if tried.returncode == 0:
            subprocess.run(["umount", folder], check=True)
        return tried.returncode == 0


def mount(case: Case, size: str, how: str = "") -> None:
    """Mount a tmpfs of a size at the run folder, or change it."""
    options = ["-o", f"{how}size={size}"]
    subprocess.run(["mount", "-t", "tmpfs", *options, "tmpfs", str(case.run)], check=True)
    case.mounted = True


def changed(path: Path, how: str, rng: random.Random) -> str:
    """Damage a file; says how."""
    data = path.read_bytes()
    if how == "gone":
        path.unlink()
        return f"{path.name} deleted"
    if how == "cut":
        size = rng.randrange(len(data))
        path.write_bytes(data[:size])
        return f"{path.name} cut to {size} of {len(data)} bytes"
    place, bit = rng.randrange(len(data)), 1 << rng.randrange(8)
    path.write_bytes(data[:place] + bytes([data[place] ^ bit]) + data[place + 1 :])
    return f"{path.name}: bit {bit} of byte {place} of {len(data)}"


def damaged(case: Case, patterns: tuple[str, ...], ways: tuple[str, ...], state: str = "") -> str:
    """Damage a file that a stage reads, and run the stage."""
    case.copy(state or before(case.stage.of))
    files = sorted(p for pattern in patterns for p in case.run.glob(pattern) if p.is_file())
    path = case.rng.choice(files)
    case.fault.how = changed(path, case.rng.choice(ways), case.rng)
    if not state:
        case.spoiled = str(path.relative_to(case.run))
    ran = case.do(case.stage.commands[0])
    if ran.code:
        case.require(ran, path.name, path.stem)
    elif len(case.stage.commands) == 1 and (wrong := case.difference()):
        raise Unlucky(f"wrong: ended well, but {', '.join(wrong[:6])}")
    return case.finish(0, ran, remedies=True)


def misled(case: Case, change: Callable[[Case], str], *names: str) -> str:
    """Put something foreign into the state before a stage, and run the stage."""
    case.copy(before(case.stage.of))
    case.fault.how = change(case)
    ran = case.do(case.stage.commands[0])
    if ran.code:
        case.require(ran, *names)
    elif wrong := case.difference():
        raise Unlucky(f"wrong: ended well, but {', '.join(wrong[:6])}")
    return case.finish(0, ran, remedies=True)


def half(case: Case) -> str:
    """Name the state in the midst of a case's stage."""
    return f"half-{case.stage.of}"


def last_checkpoint(case: Case) -> str:
    """Damage the newest checkpoint of a training that is finished."""
    name = "rpn" if case.stage.of == "proposals" else "train"
    folder = case.places.state(before(case.stage.of)) / name / "checkpoints"
    newest = max(path.stem for path in folder.glob("step-*.json"))
    kind, ways = case.rng.choice((("pt", ("cut", "flip", "gone")), ("json", ("cut", "flip"))))
    return damaged(case, (f"{name}/checkpoints/{newest}.{kind}",), ways)


def foreign_manifest(case: Case) -> str:
    """Let a manifest be of another recipe."""
    some = sorted(case.run.glob("shards/*/manifest.json"))
    path = case.rng.choice(some)
    other = case.places.work / "foreign" / path.relative_to(case.run)
    shutil.copy(other, path)
    return f"{path.parent.name}/{path.name} of another recipe"


def foreign_part(case: Case) -> str:
    """Let a part of the proposals be another network's."""
    parts = sorted((case.places.work / "foreign" / "proposals").glob("part-*.parquet"))
    path = case.rng.choice(parts)
    (case.run / "proposals").mkdir(exist_ok=True)
    shutil.copy(path, case.run / "proposals" / path.name)
    return f"{path.name} of another network"


def second_run(case: Case) -> str:
    """Start a stage twice: at a moment drawn by lot the first stands still, and the second runs."""
    index = case.until_command()
    text = case.stage.commands[index]
    groups = injected.WRITES
    count = case.calls(index, groups)
    at = case.rng.randint(1, count)
    case.fault.how = f"command {index}, the first stood at call {at} of {count}"

    def prepare() -> None:
        watch(case, groups, at, injected.signalling(signal.SIGSTOP, False))

    first = case.start(text, prepare)
    while first.look() is None and not stopped(first.pid):
        time.sleep(0.005)
    held = [*case.run.glob("*/lock.json")]
    second = case.do(text)
    if first.code is None:
        os.kill(first.pid, signal.SIGCONT)
    step = len(case.fault.steps)
    case.fault.steps.append(f"the first, {text}")
    ran = case.ended(first)
    if second.code:
        whose = f"pid {first.pid} on {socket.gethostname()}"
        # only trainings hold a folder: parts of the other stages may be many at a time
        case.require(second, whose if case.stage.of in TRAININGS else "another run")
    elif held and case.stage.of in TRAININGS and ran.code == 0:
        raise Unlucky(f"wrong: two runs held one folder ({case.fault.steps[step]})")
    if ran.code:
        case.require(ran, "held by", "in use", "another run")
    outcome = case.finish(index, ran, repeat=True)
    return "recovered" if second.code else outcome


def stopped(pid: int) -> bool:
    """Say whether a process stands still."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    return False


def stale_lock(case: Case) -> str:
    """Leave the lock of a run that is gone: here, on another machine, or unreadable."""
    from train import hold

    case.copy(before(case.stage.of))
    folder = case.run / TRAININGS[case.stage.of]
    folder.mkdir(parents=True)
    whose = case.rng.choice(("a dead one's", "another machine's", "unreadable", "a later boot's"))
    dead = os.fork()
    if not dead:
        os._exit(0)
    os.waitpid(dead, 0)
    machine = hold._machine()
    lock = {"host": socket.gethostname(), "pid": dead, "machine": machine, "born": "1"}
    if whose == "another machine's":
        lock |= {"host": "node7", "machine": "elsewhere"}
    elif whose == "a later boot's":
        lock |= {"pid": os.getpid(), "machine": f"{machine}x"}
    text = json.dumps({**lock, "token": "other", "beat": 3})
    (folder / hold.LOCK).write_text("{" if whose == "unreadable" else text)
    case.fault.how = f"{whose} lock"
    return case.finish(0, case.do(case.stage.commands[0]))


def clock_back(case: Case) -> str:
    """Let all files be of the future, and the clock go backwards at each look."""
    index = case.until_command()
    ahead = case.rng.choice((60.0, 86400.0, 1e8))
    now = time.time() + ahead
    for path in case.run.rglob("*"):
        os.utime(path, (now, now))
    case.fault.how = f"command {index}, files of {ahead:g} s ahead"

    def prepare() -> None:
        looks = iter(range(1 << 40))
        begin = time.time()
        time.time = lambda: begin - 10.0 * next(looks)

    return case.finish(index, case.do(case.stage.commands[index], prepare))


@dataclass(frozen=True)
class Kind:
    """A kind of fault, and the stages that it can strike."""

    stages: tuple[str, ...]
    strike: Callable[[Case], str]


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
        "worker-died": (("positive-2", "negative-2"), worker_died),
        "full-disk": (every, full_disk),
        "file-limit": (every, file_limit),
        "read-only": (every, read_only),
        "read-error": (every, lambda c: failing(c, injected.BROKEN, injected.READS, False)),
        "write-error": (every, lambda c: failing(c, injected.BROKEN, injected.WRITES, False)),
        "full-moment": (every, lambda c: failing(c, injected.FULL, injected.WRITES, False)),
        "shard": (("rpn", "train"), lambda c: damaged(c, ("shards/*/*.tar",), ways)),
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
            lambda c: misled(c, foreign_manifest, "manifest", "recipe", "index"),
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
        "last-checkpoint": (("proposals", "detect", "eval"), last_checkpoint),
        "finished-set": (
            ("positive", "negative"),
            lambda c: damaged(c, (f"shards/{c.stage.of}/*",), ("cut", "gone"), c.stage.of),
        ),
        "cut-log": (
            ("rpn", "train"),
            lambda c: damaged(c, (f"{c.stage.of}/log.jsonl",), ("cut",), half(c)),
        ),
        "part": (
            ("proposals",),
            lambda c: damaged(c, ("proposals/part-*",), ways, "half-proposals"),
        ),
        "group": (
            ("positive", "negative"),
            lambda c: damaged(c, (f"shards/{c.stage.of}/groups/*",), ways, half(c)),
        ),
        "half-shard": (
            ("positive", "negative"),
            lambda c: damaged(c, (f"shards/{c.stage.of}/*.tar",), ("cut", "gone"), half(c)),
        ),
        "half-found": (
            ("detect",),
            lambda c: damaged(c, ("found/pictures.jsonl",), ways, "half-detect"),
        ),
        "figures": (
            ("eval",),
            lambda c: damaged(c, ("eval.json",), ("cut", "flip"), "eval"),
        ),
        "foreign-part": (("proposals",), lambda c: misled(c, foreign_part, "part")),
        "second-run": (tuple(n for n in FORKED if not n.endswith("-2")), second_run),
        "stale-lock": (("rpn", "train"), stale_lock),
        "clock-back": (every, clock_back),
    }  # fmt: skip
    return {
        name: Kind(tuple(s for s in stages if s in STAGES), strike)
        for name, (stages, strike) in rows.items()
    }


# --- the campaign ----------------------------------------------------------------------------


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
        calls, seconds, grown = [], [], []
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
            calls.append(json.loads(told.read_text()) if stage.processes == 1 else {})
            seconds.append(ran.seconds)
            grown.append(max(used_by(run) - before_it, 0))
        files = [p.stat().st_size for p in run.rglob("*") if p.is_file()]
        found["calls"][stage.name], found["seconds"][stage.name] = calls, seconds
        found["grown"][stage.name], found["largest"][stage.name] = grown, max(files)
        if stage in CHAIN:
            found["results"][stage.name] = in_fork(lambda: result(run, stage.name))  # noqa: B023
            shutil.copytree(run, places.state(stage.name))
        else:
            got = in_fork(lambda: result(run, stage.of))  # noqa: B023
            fault = Fault(-1, "none", stage.name, 0)
            wrong = differing(got, found["results"][stage.of], stage.of, fault)
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

    groups = injected.READS + injected.WRITES
    injected.Watch((f"{run}", f"{data}"), groups, 1, act, lasting=True).install()
    return lambda: told.write_text(json.dumps(counted))


def halves(places: Places, found: dict[str, Any]) -> None:
    """Keep states in the midst of stages: half trained, parts made, groups written."""
    made = found["results"]

    def state(name: str, *commands: str, kill_at: int = 0) -> None:
        run = places.state(f"half-{name}")
        shutil.copytree(places.state(before(name)), run)

        def prepare() -> None:
            act = injected.signalling(signal.SIGKILL, False)
            injected.Watch((f"{run}/{name}/log.jsonl",), ("write",), kill_at, act).install()

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
    names = [name for name, some in strikes.items() if some]
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
