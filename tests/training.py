"""Small shards to train on, and runs of the trainer as a user starts them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import made_up

from chipgen import dataset, pipeline, pool, run
from chipgen.storage import open_folder

RECIPE = """
extends = "chips.toml"

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
epochs = 2
drops = [[1.5, 0.1]]
batch = 4
lr = 0.01
lr_batch = 4
warmup = 0.2
precision = "fp64"  # in float32 equal runs drift apart
workers = 1
log_every = 1
checkpoint_every = 3
"""


def recipe(folder: Path) -> Path:
    """Write a recipe of a tiny detector on chips of 96 px."""
    made_up.recipe(folder / "chips.toml")
    (folder / "tiny.toml").write_text(RECIPE)
    return folder / "tiny.toml"


def shards(folder: Path, pictures: int = 12, store: str = "source", **chips) -> Path:
    """Write the positive shards of a made-up data set; gives the run folder."""
    made_up.coco(folder / "data", pictures)
    return cut(folder, store, **chips)


def cut(folder: Path, store: str = "source", **chips) -> Path:
    """Write the positive shards of the data set that is there; gives the run folder."""
    name = made_up.recipe(folder / "r.toml", store, **chips)
    settings = run.load_recipe(str(name))
    target = open_folder(folder / "run")
    data = str(folder / "data")
    record = run.save_plan(target, "test", dataset.parts(data, ["train"]), settings)
    job = pipeline.open_job(target, "positive", record, settings)
    pool.run(job, pipeline.unfinished_groups(job), 1, lambda pictures: None)
    pipeline.finish(job)
    return folder / "run"


def command(run_folder: Path, name: Path, *arguments: str, processes: int = 1) -> list[str]:
    """Give the command line of a training run."""
    several = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    start = several if processes > 1 else []
    return [
        sys.executable,
        *start,
        "-m",
        "train",
        str(run_folder),
        "--recipe",
        str(name),
        *arguments,
    ]


def environment() -> dict[str, str]:
    """Give the environment of a run beside others: threads that wait for a busy core spin."""
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def trained(
    run_folder: Path, name: Path, *arguments: str, processes: int = 1, code: int = 0
) -> str:
    """Run a training to its end, of that exit code; gives what it said."""
    line = command(run_folder, name, *arguments, processes=processes)
    done = subprocess.run(line, capture_output=True, text=True, check=False, env=environment())
    assert done.returncode == code, done.stderr[-3000:]
    return done.stderr


def log(run_folder: Path) -> list[dict]:
    """Read the log of a run."""
    path = run_folder / "train" / "log.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def scenes(folder: Path, pictures: int) -> Path:
    """Write the chips of a few embedded scenes by the default recipe; gives the run folder."""
    script = Path(__file__).resolve().parent.parent / "scripts" / "make_scenes.py"
    arguments = ["--size", "small", "--pictures-train", str(pictures), "--pictures-val", "1"]
    data = folder / "scenes"
    for line in (
        [str(script), str(data), *arguments],
        ["-m", "chipgen", "plan", str(folder), "--data", str(data), "--recipe", "scenes-small"],
        ["-m", "chipgen", "write", str(folder), "--workers", "1"],
    ):
        subprocess.run([sys.executable, *line], check=True, capture_output=True)
    return folder
