"""The whole pipeline as Slurm jobs on two simulated nodes, with kills and pre-emptions."""

import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import local_slurm
import pytest
import training

from chipgen.recipe import SHIPPED
from chipgen.storage import LocalFolder
from infer.status import report

pytestmark = pytest.mark.cluster

HOME = Path(__file__).resolve().parent.parent
BOUND = 900  # s for a whole chain
CLUSTER = """
[cluster]
parts = 4
eval_parts = 2
cpus = 1
gpus = 0
nodes = 2
notice = 60
address = "127.0.0.1"
"""
STEPS = (
    "plan", "check", "positive", "positive-finish", "rpn", "proposals", "negatives", "negative",
    "negative-finish", "train", "eval", "eval-finish",
)  # fmt: skip


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    """Scenes, a recipe, and what `make` makes of them."""
    if lacking := local_slurm.missing():
        pytest.fail(lacking)
    folder = tmp_path_factory.mktemp("material")
    shutil.copy(SHIPPED / "sniper.toml", folder)
    text = (SHIPPED / "scenes-small.toml").read_text()
    for key, value in (
        ("epochs", "4\nlog_every = 1"),
        ("drops", "[[3, 0.1]]"),
        ("checkpoint_every", "10"),
        ("chips_per_shard", "32"),
    ):
        text, count = re.subn(f"^{key} = .*", f"{key} = {value}", text, flags=re.MULTILINE)
        assert count == 1, key
    recipe = folder / "recipe.toml"
    recipe.write_text(text + CLUSTER)
    data = folder / "scenes"
    scenes = [HOME / "scripts/make_scenes.py", data, "--size", "small"]
    count = ["--pictures-train", "64", "--pictures-val", "80"]
    subprocess.run([sys.executable, *scenes, *count], check=True, capture_output=True)
    made(folder / "by-make", data, recipe, "eval", "WORKERS=2")
    return data, recipe, folder / "by-make"


def made(run, data, recipe, *targets, **environment):
    """Call make for a run folder; gives what it printed."""
    line = ["make", "--no-print-directory", f"RUN={run}", f"DATA={data}", f"RECIPE={recipe}"]
    done = subprocess.run(
        [*line, *targets], cwd=HOME, capture_output=True, text=True, check=False,
        env=training.environment() | environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture
def slurm():
    with (
        tempfile.TemporaryDirectory(prefix="slurm-") as folder,
        local_slurm.Slurm(Path(folder), nodes=2) as cluster,
    ):
        yield cluster


def submitted(slurm, run, material, *options):
    """Submit a chain by `make cluster`; gives the jobs' numbers by step."""
    said = made(run, *material[:2], "cluster", f"CLUSTER={' '.join(options)}", **slurm.environment)
    lines = [line.replace(",", "").split() for line in said.splitlines() if line[:1] == " "]
    return {step: number for number, step, *_ in lines}


def until(condition, slurm):
    """Wait for something that jobs bring about, and give it."""
    end = time.monotonic() + BOUND
    while not (found := condition()):
        assert time.monotonic() < end, f"{slurm.states()}"
        time.sleep(0.02)
    return found


def processes(*words):
    """List the processes whose command line has all of these words."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            line = path.read_bytes().decode(errors="replace").split("\0")
            if "python" in line[0] and all(word in line for word in words):
                found.append(int(path.parent.name))
    return found


def hashes(run, pattern):
    return {
        str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(run.glob(pattern))
    }


def stage(run, name):
    """What `status` says of a stage."""
    lines = report(LocalFolder(run)).splitlines()
    return next((line for line in lines if line.strip().startswith(f"{name} ")), "")


def test_a_chain_with_a_killed_task_and_two_preemptions_gives_what_make_gives(
    material, slurm, tmp_path
):
    by_make = material[2]
    run = tmp_path / "on-cluster"
    numbers = submitted(slurm, run, material)
    assert tuple(numbers) == STEPS
    mine = str(run)

    (task,) = until(lambda: processes("chipgen", "write", mine, "--part", "1/4"), slurm)
    os.kill(task, signal.SIGKILL)

    # a job of a partition that takes precedence wants both nodes
    until(lambda: len(training.log(run)) > 4, slurm)
    slurm.run(
        "sbatch",
        "--partition=urgent",
        "--nodes=2",
        "--exclusive",
        "--wrap=true",
        "--output=/dev/null",
    )
    until(lambda: "begun" in stage(run, "train"), slurm)
    stopped_at = len(training.log(run))
    until(lambda: len(training.log(run)) > stopped_at + 2, slurm)

    # what Slurm sends before the time limit
    slurm.run("scancel", "--batch", "--signal=USR1", numbers["train"])
    until(lambda: "begun" in stage(run, "train"), slurm)
    until(lambda: (run / "eval.json").exists(), slurm)
    until(lambda: not slurm.run("squeue", "-h").strip(), slurm)

    logs = {path.name: path.read_text() for path in (run / "logs").iterdir()}
    assert sum("exit code 137: this job is queued once more" in text for text in logs.values()) == 1
    (of_train,) = (text for name, text in logs.items() if "-train-" in name)
    assert "stopped before the time limit; this job is queued once more" in of_train
    assert of_train.count("going on from step") == 2
    for pattern in ("shards/*/*/*.tar", "shards/*/*.parquet", "shards/*/manifest.json"):
        expected = hashes(by_make, pattern)
        assert expected
        assert hashes(run, pattern) == expected
    ours, theirs = training.log(run), training.log(by_make)
    assert [(e["step"], e["order"]) for e in ours] == [(e["step"], e["order"]) for e in theirs]
    figures = json.loads((run / "eval.json").read_text())
    assert figures["pyramid"]["pictures"] == 80
    assert set(figures) == set(json.loads((by_make / "eval.json").read_text()))
    for name in ("plan", "positive", "rpn", "proposals", "negative", "train", "eval"):
        assert " done " in stage(run, name)
