import os
import subprocess
from pathlib import Path

import pytest

HOME = Path(__file__).parent.parent


def tried(target, *variables):
    """Ask make what it would do."""
    return subprocess.run(
        ["make", "--dry-run", target, *variables],
        cwd=HOME, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("data", "run"),
    [
        ("/data/coco", "runs/coco"),
        ("/data/coco//", "runs/coco"),
        ("../coco/", "runs/coco"),
        ("s3://bucket/coco/", "runs/coco"),
        ("/data/my pictures/", "runs/my pictures"),
        ("/data/.coco", "runs/.coco"),
    ],
)
def test_a_run_folder_is_named_after_the_data(data, run):
    done = tried("chips", f"DATA={data}")
    assert done.returncode == 0
    assert f'chipgen plan "{run}" --data "{data}"' in done.stdout
    assert f'--out "{run}/recipe.toml"' in done.stdout


@pytest.mark.parametrize("data", [".", "..", "../", "./", "/", "//", "/data/..", "/data/.//"])
@pytest.mark.parametrize("target", ["chips", "cluster"])
def test_data_without_a_name_needs_one_for_the_run_folder(data, target):
    done = tried(target, f"DATA={data}")
    assert done.returncode != 0
    assert "runs/" not in done.stdout
    (line,) = done.stderr.splitlines()
    assert f"DATA={data} has no name for the run folder; name one with RUN=" in line
    assert tried(target, f"DATA={data}", "RUN=runs/mine").returncode == 0
    assert tried("help", f"DATA={data}").returncode == 0


@pytest.mark.parametrize("target", ["eval", "cluster", "bench-chips", "bench-infer"])
def test_splits_with_a_space_between_are_one_argument(target):
    done = tried(target, "DATA=/data", "PICTURES=/data", "SPLIT=one, two", "SPLIT_EVAL=three, four")
    assert done.returncode == 0
    given = [line for line in done.stdout.splitlines() if "--split" in line]
    assert given
    for line in given:
        assert line.count("--split") == line.count('"one, two"') + line.count('"three, four"')


@pytest.mark.parametrize(
    ("targets", "split"), [(["chips"], None), (["train"], None), (["eval"], '"test"')]
)
def test_what_is_to_be_evaluated_on_is_checked_before_anything_is_trained(targets, split):
    done = tried(*targets, "DATA=/data", "SPLIT_EVAL=test", "GPUS=4")
    (place, check), *more = [
        (n, line) for n, line in enumerate(done.stdout.splitlines()) if "infer check" in line
    ]
    assert not more
    assert "--processes 4" in check
    assert ("--data" in check) == bool(split)
    assert not split or f"--split {split}" in check
    assert not any("-m train" in line for line in done.stdout.splitlines()[:place])
