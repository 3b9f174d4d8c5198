"""Processes of a training that die, fail or hang: the others end soon, and say who it was."""

import os
import shutil
import signal
import socket
import subprocess
import sys

import pytest
import torch
import training

from train.processes import Processes
from train.settings import TrainSettings
from train.watch import LOADING, LOST, Watch

PATIENCE = 4  # s
BOUND = 60  # s
DISTURBED = """
import os, signal, sys, time
from train import checkpoint, stream
from train.__main__ import main

def at(number, disturbance, function):
    def disturbed(self, planned):
        if self.rank == self.world - 1 and planned.number == number:
            disturbance()
        return function(self, planned)
    return disturbed

def fail():
    raise OSError(5, "Input/output error", "shard-7")

def freeze():
    os.kill(os.getpid(), signal.SIGSTOP)

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def hang():
    time.sleep(1e6)

def stop():
    os.kill(os.getpid(), signal.SIGTERM)

if sys.argv[1] == "stop":  # and the first process dies while it saves what was reached
    checkpoint.save = lambda folder, state, keep: state["step"] > 3 and die()
stream.ChipReader._load = at(3, globals()[sys.argv[1]], stream.ChipReader._load)
sys.exit(main(sys.argv[2:]))
"""


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    folder = tmp_path_factory.mktemp("material")
    return training.shards(folder), training.recipe(folder)


def ended(material, folder, disturbance, processes, workers=0, patience=PATIENCE):
    """Train with the last process disturbed in its fourth batch: processes and what they said."""
    shutil.copytree(material[0] / "shards", folder / "shards")
    arguments = [str(folder), "--recipe", str(material[1])]
    arguments += [f"--set=train.workers={workers}", f"--set=train.patience={patience}"]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    children = []
    for rank in range(processes):
        place = {"RANK": str(rank), "WORLD_SIZE": str(processes), "LOCAL_RANK": "0"}
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        children.append(
            subprocess.Popen(
                [sys.executable, "-c", DISTURBED, disturbance, *arguments],
                stderr=subprocess.PIPE,
                text=True,
                env=training.environment() | place | meeting,
            )
        )
    try:
        said = [child.communicate(timeout=BOUND)[1] for child in children[: processes - 1]]
        if disturbance == "freeze":
            children[-1].kill()  # nothing else ends it
        said.append(children[-1].communicate(timeout=BOUND)[1])
    finally:
        for child in children:
            child.kill()
    return children, said


@pytest.mark.parametrize(
    ("disturbance", "told"),
    [
        ("hang", "is at step 3, waiting for its loader"),
        ("freeze", "is dead or stopped, last seen at step "),
        ("die", "is dead or stopped, last seen at step "),
        ("fail", "failed at step 3: [Errno 5] Input/output error"),
    ],
)
def test_the_process_that_the_others_lose_is_named(material, tmp_path, disturbance, told):
    children, said = ended(material, tmp_path, disturbance, 2)
    assert children[0].returncode in (1, LOST)  # as the error of a collective, or its end, is first
    assert f"process 1 (pid {children[1].pid} on {os.uname().nodename}) {told}" in said[0]
    if disturbance == "hang":
        assert children[1].returncode == LOST  # ends by itself as well
        assert "got nowhere" in said[1]
        assert "waiting for its loader" in said[1]
    assert training.log(tmp_path)[-1]["step"] == 3  # all that was done before


def test_nobody_leaves_at_a_stop_while_the_checkpoint_is_being_written(material, tmp_path):
    """A scheduler kills what is left of a run when its first process ends with such a code."""
    children, said = ended(material, tmp_path, "stop", 2, patience=30)
    assert children[0].returncode == -signal.SIGKILL, said
    assert children[1].returncode in (1, LOST), said
    assert "is gone" in said[1] or "is dead" in said[1]


def test_a_process_alone_ends_when_its_loader_hangs(material, tmp_path):
    (child,), (said,) = ended(material, tmp_path, "hang", 1, workers=1)
    assert child.returncode == LOST
    assert f"process 0 (pid {child.pid} on {os.uname().nodename}) got nowhere" in said
    assert "at step 3, waiting for its loader" in said
    training.trained(tmp_path, material[1], "--resume", "--set=train.patience=100")
    assert training.log(tmp_path)[-1]["step"] > 3
    steps = [entry["step"] for entry in training.log(tmp_path)]
    assert steps == list(range(1, len(steps) + 1))


def test_who_goes_on_is_left_alone(caplog):
    alone = Processes(0, 1, torch.device("cpu"))
    with Watch(alone, patience=0.4) as watch:
        for step in range(12):
            watch.at(step, LOADING)
            watch._ended.wait(0.1)  # longer than the patience, in all
    assert not caplog.text


def test_patience_is_positive():
    with pytest.raises(ValueError, match="patience = 0 must be positive"):
        TrainSettings(patience=0)
