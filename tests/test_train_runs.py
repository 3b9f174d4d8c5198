"""Whole runs of the trainer, started as users start them."""

import contextlib
import os
import shutil
import signal
import subprocess

import made_up
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import training
from PIL import Image

from chipgen.storage import LocalFolder
from train import checkpoint
from train.hold import Hold
from train.index import open_index
from train.journal import Journal
from train.order import Order

STEPS_KEPT = 3  # checkpoint_every of the recipe


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    """Shards, the recipe, and an undisturbed run of one process."""
    folder = tmp_path_factory.mktemp("material")
    shards, name = training.shards(folder), training.recipe(folder)
    training.trained(shards, name)
    return shards, name


@pytest.fixture
def fresh(material, tmp_path):
    """The same shards in a run folder that has not been trained in."""
    shutil.copytree(material[0] / "shards", tmp_path / "shards")
    return tmp_path


def last(run_folder):
    return checkpoint.load_last(LocalFolder(run_folder / "train" / "checkpoints"))


def disturbed(run_folder, name, step, number, processes=1):
    """Start a run and send it a signal once it has logged a step; gives its exit code."""
    line = training.command(run_folder, name, "--resume", processes=processes)
    child = subprocess.Popen(
        line,
        stderr=subprocess.PIPE,
        start_new_session=True,
        env=training.environment(),
    )
    while child.poll() is None and len(training.log(run_folder)) < step:
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(timeout=0.02)
    if child.poll() is None:
        os.killpg(child.pid, number)  # loader workers too, as a scheduler does
    child.communicate()  # until the processes that torchrun leaves behind have ended as well
    return child.returncode


def assert_same_batches(run_folder, undisturbed):
    ours, theirs = training.log(run_folder), training.log(undisturbed)
    assert [e["step"] for e in ours] == [e["step"] for e in theirs]
    assert [e["order"] for e in ours] == [e["order"] for e in theirs]


def test_a_finished_run_says_so_and_does_nothing_more(material):
    before = training.log(material[0])
    assert "up to date" in training.trained(*material, "--resume")
    assert training.log(material[0]) == before


def test_a_run_learns_and_its_log_has_all_figures(material):
    log = training.log(material[0])
    figures = {"loss", "lr", "chips_per_s", "waiting_share", "memory_mb", "positive_rois"}
    assert figures | {"small_share", "positive_anchors", "rpn_class", "focus"} <= log[0].keys()
    losses = [entry["loss"] for entry in log]
    assert np.mean(losses[-5:]) < np.mean(losses[:5])
    assert last(material[0])["done"]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGUSR1])
def test_a_run_stopped_at_random_and_resumed_is_as_undisturbed(material, fresh, number):
    shards, name = material
    step = int(np.random.default_rng(int(number)).integers(1, len(training.log(shards)) - 2))
    code = disturbed(fresh, name, step, number)
    assert code == (-signal.SIGKILL if number == signal.SIGKILL else 75)
    training.trained(fresh, name, "--resume")
    assert_same_batches(fresh, shards)
    ours, theirs = (np.array([e["loss"] for e in training.log(f)]) for f in (fresh, shards))
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)


def test_a_run_goes_on_with_other_numbers_of_processes_over_the_same_batches(material, fresh):
    shards, name = material
    assert disturbed(fresh, name, 3, signal.SIGKILL, processes=2) != 0
    assert disturbed(fresh, name, 8, signal.SIGKILL, processes=1) != 0
    training.trained(fresh, name, "--resume", processes=4)
    assert_same_batches(fresh, shards)


def test_two_processes_do_what_one_does(material, tmp_path):
    """In float64: in float32 a proposal that just wins here and loses there sets runs apart."""
    runs = [tmp_path / "one", tmp_path / "two"]
    for count, folder in enumerate(runs, 1):
        shutil.copytree(material[0] / "shards", folder / "shards")
        double = ("--set", "train.precision=fp64")
        training.trained(folder, material[1], *double, processes=count)
    assert_same_batches(*runs)
    losses = [np.array([e["loss"] for e in training.log(folder)]) for folder in runs]
    assert len(losses[0]) >= 20
    np.testing.assert_allclose(*losses, rtol=1e-5)
    one, two = (last(folder)["model"] for folder in runs)
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, rtol=1e-6, atol=1e-8, msg=key)


def test_the_log_counts_the_broken_samples_of_all_processes(material, fresh):
    positive = fresh / "shards" / "positive"
    for sample in pq.read_table(positive / "index.parquet").to_pylist()[::5]:
        shard = positive / sample["shard"]
        data = bytearray(shard.read_bytes())
        data[sample["offset"] + 700] ^= 255
        shard.write_bytes(data)
    batches = Order(open_index([LocalFolder(positive)]), batch=4, seed=0).epoch(0)
    broken = sum(int((planned.rows % 5 == 0).sum()) for planned in batches)
    replaced = ("--set", "train.on_broken=replace", "--set", "train.epochs=1")
    training.trained(fresh, material[1], *replaced, processes=2)
    assert sum(entry["broken"] for entry in training.log(fresh)) == broken > 4


def test_a_half_written_checkpoint_is_passed_over(material, fresh):
    shutil.copytree(material[0] / "train", fresh / "train")
    newest = sorted((fresh / "train" / "checkpoints").glob("*.pt"))[-1]
    newest.write_bytes(newest.read_bytes()[:-100])
    assert "passed over" in training.trained(fresh, material[1], "--resume")
    assert_same_batches(fresh, material[0])


def test_a_folder_with_another_run_is_refused(material):
    line = training.command(*material, "--resume", "--set", "train.lr=0.02")
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "differs in train.lr" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_finished_run_is_refused_the_chips_of_pictures_that_changed_since(material, tmp_path):
    shutil.copytree(material[0].parent, tmp_path, dirs_exist_ok=True)
    run, name = tmp_path / "run", material[1]

    def cut_again():
        shutil.rmtree(run / "shards")
        training.cut(tmp_path)

    cut_again()
    assert "up to date" in training.trained(run, name, "--resume")
    picture = tmp_path / "data" / "train" / "000001.jpg"
    picture.write_bytes(made_up.encoded(Image.open(picture).rotate(180)))
    cut_again()
    line = training.command(run, name, "--resume")
    done = subprocess.run(
        line, capture_output=True, text=True, check=False, env=training.environment()
    )
    assert done.returncode == 1
    assert "differs in the pixels of its shards" in done.stderr


@pytest.mark.parametrize("processes", [1, 2])
def test_a_folder_that_a_run_holds_is_refused_to_another(material, fresh, processes):
    with Hold(LocalFolder(fresh / "train")):
        line = training.command(fresh, material[1], processes=processes)
        done = subprocess.run(
            line, capture_output=True, text=True, check=False, env=training.environment()
        )
    assert done.returncode == 1
    told = f"in use by the run with pid {os.getpid()} on {os.uname().nodename}"
    assert done.stderr.count(told) == 1
    assert "RuntimeError" not in done.stderr  # of processes that were left alone
    if processes == 1:
        assert done.stderr.count("\n") == 1
    assert not (fresh / "train" / "checkpoints").exists()


def test_a_wrong_folder_and_a_typo_are_one_line(material, tmp_path):
    for arguments, said in (
        ((tmp_path, material[1]), "no finished set of shards"),
        (
            (material[0].as_uri(), material[1]),
            f"give a local run folder, and --shards {material[0].as_uri()}/shards",
        ),
        ((*material, "--set", "train.epoch=3"), "did you mean 'epochs'"),
        ((material[0], tmp_path / "no.toml"), "no such file"),
    ):
        done = subprocess.run(
            training.command(*arguments), capture_output=True, text=True, check=False
        )
        assert done.returncode == 1
        assert said in done.stderr
        assert done.stderr.count("\n") == 1


def test_what_a_crash_left_in_the_log_and_steps_done_again_are_dropped(tmp_path):
    good = b'{"step":1,"loss":0.5}\n'
    rest = [
        b"\0\0\0\n",
        b'{"step":1,"x":"\xff"}\n',
        b"[1]\n",
        b'{"step":"x"}\n',
        b'{"step":4}\n',
        b'{"step":2',
    ]
    (tmp_path / "log.jsonl").write_bytes(good + b"".join(rest))
    with Journal(LocalFolder(tmp_path), step=3, batches=9, done=3):
        pass
    assert (tmp_path / "log.jsonl").read_bytes() == good
