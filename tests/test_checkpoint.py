import hashlib
import json
import logging
import os
import pickle
import subprocess
import sys

import pytest
import torch
import training

from chipgen.storage import LocalFolder
from train import checkpoint
from train.journal import LOG, Journal


@pytest.fixture
def folder(tmp_path):
    return LocalFolder(tmp_path / "checkpoints")


def state(step: int, **more) -> dict:
    """A small state of the kinds of values that training keeps."""
    torch.manual_seed(step)
    model = {
        "weight": torch.randn(3, 4),
        "half": torch.randn(5).bfloat16(),
        "count": torch.tensor(step),
        "none": torch.zeros(0, 4),
    }
    optimizer = {
        "state": {0: {"momentum_buffer": torch.randn(3, 4)}},
        "param_groups": [{"lr": 0.1}],
    }
    recipe = {"train": {"drops": [[5.33, 0.1]], "seed": 0}, "model": {"weights": ""}}
    place = [step // 10, step % 10]
    return {
        "model": model, "optimizer": optimizer, "average": {}, "feedback": None, "step": step,
        "place": place, "done": False, "recipe": recipe, "classes": ["ant"], "commit": None, **more,
    }  # fmt: skip


def assert_same(one, other) -> None:
    """Compare nested values, tensors to the last bit and with their types."""
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, torch.Tensor):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        assert torch.equal(one, other)
    else:
        assert one == other


def saved(folder: LocalFolder, *steps: int, keep: int = 3) -> None:
    for step in steps:
        checkpoint.save(folder, state(step), keep)


def path(folder: LocalFolder, step: int, kind: str):
    return folder.path / f"step-{step:08d}.{kind}"


def test_what_is_loaded_is_what_was_saved(folder):
    saved(folder, 7)
    assert_same(checkpoint.load_last(folder), state(7))
    assert_same(checkpoint.load(folder, 7), state(7))


def test_strided_and_shared_tensors_come_back_as_they_were(folder):
    whole = torch.arange(24.0).reshape(2, 3, 4)
    last = whole.permute(0, 2, 1)
    checkpoint.save(folder, state(1, whole=whole, last=last, part=whole[1:]), keep=1)
    found = checkpoint.load_last(folder)
    assert_same(found["last"], last)
    assert found["last"].stride() == last.stride()
    assert_same(found["part"], whole[1:])


def test_where_nothing_is_there_nothing_is_loaded(folder):
    assert checkpoint.load_last(folder) is None
    assert checkpoint.steps(folder) == []
    folder.path.mkdir()
    (folder.path / "notes.json").write_text("{}")
    assert checkpoint.load_last(folder) is None


def test_the_record_beside_it_says_what_it_is(folder):
    checkpoint.save(folder, state(23, done=True), keep=1)
    data = path(folder, 23, "pt").read_bytes()
    assert json.loads(path(folder, 23, "json").read_text()) == {
        "step": 23, "epoch": 2, "number": 3, "done": True,
        "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(),
    }  # fmt: skip


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_last_few_are_kept(folder, keep):
    for count, step in enumerate((5, 10, 100, 1000), 1):
        saved(folder, step, keep=keep)
        assert checkpoint.steps(folder) == [5, 10, 100, 1000][:count][-keep:]
        assert checkpoint.load_last(folder)["step"] == step
    assert len(folder.names()) == 2 * keep


def test_a_checkpoint_saved_again_takes_the_place_of_the_first(folder):
    saved(folder, 5)
    checkpoint.save(folder, state(5, done=True), keep=3)
    assert checkpoint.steps(folder) == [5]
    assert checkpoint.load_last(folder)["done"]


@pytest.mark.parametrize("keep", [1, 2])
def test_what_was_just_saved_is_kept_also_beside_a_damaged_later_one(folder, keep):
    saved(folder, 10, 20, 30)
    for step in (20, 30):
        path(folder, step, "pt").write_bytes(b"cut off")
    saved(folder, checkpoint.load_last(folder)["step"] + 5, keep=keep)
    found = checkpoint.load_last(folder)
    assert found is not None
    assert found["step"] == 15


def flip(file) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def cut(file) -> None:
    os.truncate(file, file.stat().st_size - 100)


DAMAGE = {
    "a byte flipped": ("pt", flip),
    "cut off": ("pt", cut),
    "empty": ("pt", lambda file: file.write_bytes(b"")),
    "gone": ("pt", lambda file: file.unlink()),
    "a folder": ("pt", lambda file: (file.unlink(), file.mkdir())),
    "record cut off": ("json", cut),
    "record empty": ("json", lambda file: file.write_bytes(b"")),
    "record of zeros": ("json", lambda file: file.write_bytes(bytes(200))),
    "record of another kind": ("json", lambda file: file.write_bytes(b"{}")),
    "record with another hash": (
        "json",
        lambda file: file.write_text(re_hashed(file.read_text(), "0" * 64)),
    ),
}


def re_hashed(record: str, digest: str) -> str:
    return json.dumps({**json.loads(record), "sha256": digest})


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(folder, caplog, damage):
    saved(folder, 1, 2)
    kind, change = DAMAGE[damage]
    change(path(folder, 2, kind))
    assert_same(checkpoint.load_last(folder), state(1))
    told = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(told) == 1
    assert f"{folder}/step-00000002.pt is passed over: " in told[0]


def test_where_all_are_damaged_nothing_is_loaded_and_each_is_named(folder, caplog):
    saved(folder, 1, 2, 3)
    for step in (1, 2, 3):
        flip(path(folder, step, "pt"))
    assert checkpoint.load_last(folder) is None
    places = [caplog.text.index(f"step-{step:08d}.pt is passed over") for step in (3, 2, 1)]
    assert places == sorted(places)


SHARED = """
import errno, os, sys, torch
from chipgen.errors import Refusal
from chipgen.storage import LocalFolder
from train import checkpoint
from train.processes import joined
read = LocalFolder.read

def stale(self, name):
    if name in sys.argv[2:] and os.environ["RANK"] == "1":
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), name)
    return read(self, name)

LocalFolder.read = stale
with joined() as processes:
    try:
        state = checkpoint.load_same(LocalFolder(sys.argv[1]), processes)
        told = f"loads step {state['step'] if state else None}"
    except Refusal as refusal:
        told = str(refusal)
    sys.stdout.write(f"process {processes.rank}: {told}\\n")
"""


def loaded_by_two(folder: LocalFolder, script, *stale: str) -> list[str]:
    """Let two processes load the last checkpoint; the second can't read some files."""
    script.write_text(SHARED)
    line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*line, str(script), str(folder), *stale], capture_output=True, text=True, check=True,
        env=training.environment(),
    )  # fmt: skip
    return sorted(done.stdout.splitlines())


def test_all_processes_load_the_same_checkpoint_or_none_does(folder, tmp_path):
    script = tmp_path / "load.py"
    assert loaded_by_two(folder, script) == [f"process {n}: loads step None" for n in (0, 1)]
    saved(folder, 1, 2)
    assert loaded_by_two(folder, script) == [f"process {n}: loads step 2" for n in (0, 1)]
    told = loaded_by_two(folder, script, path(folder, 2, "pt").name)
    assert all(f"checkpoint {folder}/step-00000002.pt: " in line for line in told)
    assert "process 1 on " in told[1]
    assert "Stale file handle" in told[1]


@pytest.mark.parametrize(
    "left",
    ["step-00000009.pt", ".step-00000009.pt.tmp", ".step-00000009.json.tmp", "step-9.json"],
)
def test_what_a_killed_save_leaves_is_not_taken_for_a_checkpoint(folder, left):
    saved(folder, 1, 2)
    (folder.path / left).write_bytes(path(folder, 2, "pt").read_bytes()[:1000])
    assert checkpoint.steps(folder) == [1, 2]
    assert_same(checkpoint.load_last(folder), state(2))
    saved(folder, 9)
    assert_same(checkpoint.load_last(folder), state(9))


def test_what_killed_saves_have_left_is_removed_by_the_next_and_nothing_else(folder):
    saved(folder, 10)
    left = "step-00000007.pt", ".step-00000008.pt.tmp", ".step-00000012.json.tmp"
    others = "step-00000007.pt.bak", "best.pt", "step-7.pt", ".notes.tmp"
    for name in (*left, *others):
        (folder.path / name).write_bytes(b"x")
    saved(folder, 20, 30, keep=2)
    whole = {path(folder, step, kind).name for step in (20, 30) for kind in ("pt", "json")}
    assert {*folder.names()} == {*whole, *others}


class Bomb:
    """Unpickled without care, it makes a folder."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


def zipped(content, place) -> bytes:
    torch.save(content, place)
    return place.read_bytes()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol:UserWarning")  # torch, of the bare one
@pytest.mark.parametrize("form", ["saved by torch", "bare", "no pickle", "nothing"])
def test_a_checkpoint_that_is_none_is_never_run_but_passed_over(folder, tmp_path, caplog, form):
    saved(folder, 1, 2)
    bomb = {**state(2), "model": Bomb(tmp_path / "exploded")}
    data = {
        "saved by torch": lambda: zipped(bomb, tmp_path / "bomb.pt"),
        "bare": lambda: pickle.dumps(bomb["model"]),
        "no pickle": lambda: b"PK\3\4" + bytes(1000),
        "nothing": lambda: b"",
    }[form]()
    record = path(folder, 2, "json")
    path(folder, 2, "pt").write_bytes(data)
    record.write_text(re_hashed(record.read_text(), hashlib.sha256(data).hexdigest()))
    try:
        assert_same(checkpoint.load_last(folder), state(1))
    finally:
        assert not (tmp_path / "exploded").exists()
    assert "step-00000002.pt is passed over" in caplog.text


def entry(step: int) -> dict:
    return {"step": step, "loss": 1.0 / step, "lr": 0.01, "order": step * 7}


def journal(folder: LocalFolder, step: int, *steps: int) -> None:
    """Go on after a step, and log some more."""
    with Journal(folder, step, batches=10, done=step) as opened:
        for one in steps:
            opened.advance(1)
            opened.write(entry(one))


def logged(folder: LocalFolder) -> list[dict]:
    return [json.loads(line) for line in folder.read(LOG).splitlines()]


def test_a_journal_has_each_entry_and_tensorboard_files(tmp_path):
    folder = LocalFolder(tmp_path / "run")
    journal(folder, 0, 1, 2, 3)
    assert logged(folder) == [entry(step) for step in (1, 2, 3)]
    assert list((folder.path / "tensorboard").glob("events.out.tfevents.*"))


def test_entries_after_the_resumed_step_are_dropped(tmp_path):
    folder = LocalFolder(tmp_path)
    journal(folder, 0, 1, 2, 3, 4)
    journal(folder, 2, 3, 4, 5)
    assert logged(folder) == [entry(step) for step in (1, 2, 3, 4, 5)]
    journal(folder, 0)
    assert logged(folder) == []


@pytest.mark.parametrize("rest", [b'{"step":3,"lo', b"{", b'{"step":2,"loss":0.5}', bytes(20)])
def test_a_last_line_that_was_cut_off_is_dropped(tmp_path, rest):
    folder = LocalFolder(tmp_path)
    journal(folder, 0, 1, 2)
    with (tmp_path / LOG).open("ab") as file:
        file.write(rest)
    journal(folder, 2, 3)
    assert logged(folder) == [entry(step) for step in (1, 2, 3)]


def test_tensorboard_shows_each_step_of_a_resumed_run_once(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = LocalFolder(tmp_path)
    journal(folder, 0, 1, 2, 3, 4)
    journal(folder, 2, 3, 4, 5)
    shown = EventAccumulator(str(tmp_path / "tensorboard"))
    shown.Reload()
    assert set(shown.Tags()["scalars"]) == {"loss", "lr"}
    assert [one.step for one in shown.Scalars("loss")] == [1, 2, 3, 4, 5]
