"""Checkpoints: whole or not there, checked before they are used, the last few kept.

step-N.pt holds the state, step-N.json, written after it, its hash: without that it is not used.
There is no generator's state in it: every random number of training is a function of seed, epoch
and chip.
"""

import hashlib
import io
import logging
import os
import re
from pathlib import Path
from typing import Any

import msgspec
import torch

from chipgen.errors import Refusal
from chipgen.storage import TEMPORARY, Folder, LocalFolder
from train.processes import Processes

log = logging.getLogger("train")
NAME = re.compile(r"step-(\d{8})\.json")
NEEDED = {"model", "average", "recipe", "infer", "classes"}  # of a checkpoint of a detector
OURS = re.compile(rf"step-\d{{8}}\.pt|\.step-\d{{8}}\.(pt|json){re.escape(TEMPORARY)}")


class Record(msgspec.Struct, frozen=True):
    """What step-N.json holds."""

    step: int
    epoch: int  # place of the next batch: epoch, and number in it
    number: int
    done: bool
    bytes: int
    sha256: str


def save(folder: Folder, state: dict[str, Any], keep: int) -> None:
    """Write a checkpoint; remove the oldest beyond `keep`, and later ones, which were damaged.

    What killed runs have left half written goes as well; only the holder of the run writes here.
    """
    sink = io.BytesIO()
    torch.save(state, sink)
    data = sink.getvalue()
    step = state["step"]
    record = Record(
        step, *state["place"], state["done"], len(data), hashlib.sha256(data).hexdigest()
    )
    folder.write(file_of(step), data)
    folder.write(record_of(step), msgspec.json.encode(record) + b"\n")
    found = steps(folder)
    kept = [s for s in found if s <= step][-keep:]
    for old in {*found} - {*kept}:
        folder.remove(record_of(old))  # first: without it a reader leaves the other alone
    files = {file_of(s) for s in kept}
    for name in folder.names():
        if OURS.fullmatch(name) and name not in files:
            folder.remove(name)


def load_last(folder: Folder) -> dict[str, Any] | None:
    """Read the newest checkpoint that is whole; what is damaged is passed over with a warning."""
    for step in reversed(steps(folder)):
        try:
            return load(folder, step)
        except (OSError, ValueError) as error:
            log.warning("checkpoint %s/%s is passed over: %s", folder, file_of(step), error)
    return None


def load_same(folder: Folder, processes: Processes) -> dict[str, Any] | None:
    """Read on all processes the checkpoint that the first one takes for the newest whole one.

    A file system may show one node less than another, and each would choose its own.
    """
    state = load_last(folder) if processes.rank == 0 else None
    step = processes.first(state["step"] if state else -1)
    refusal = None
    if processes.rank and step >= 0:
        try:
            state = load(folder, step)
        except (OSError, ValueError) as error:
            refusal = Refusal(
                f"checkpoint {folder}/{file_of(step)}: process {processes.rank} on "
                f"{os.uname().nodename} can't read what the first process has read: {error}; look "
                f"at the file system there, and run the same command again"
            )
    if processes.any(refusal is not None):
        raise refusal or Refusal(
            f"checkpoint {folder}/{file_of(step)}: not every process can read it"
        )
    return state


def load(folder: Folder, step: int) -> dict[str, Any]:
    """Read a checkpoint; raises ValueError where it is damaged."""
    record = read_record(folder, step)
    data = folder.read(file_of(step))
    if hashlib.sha256(data).hexdigest() != record.sha256:
        raise ValueError(f"{len(data)} bytes that are not those that were written (sha256)")
    return parse(data)


def parse(data: bytes) -> dict[str, Any]:
    """Turn a checkpoint file's bytes into its state; raises ValueError where they are damaged."""
    try:
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # torch's reader raises anything on a file of another kind
        raise ValueError(f"not a checkpoint: {error!r}") from error
    if not isinstance(state, dict) or not {"model", "step"} <= state.keys():
        raise ValueError("not a checkpoint of a training run")
    return state


def read(path: str | Path) -> dict[str, Any]:
    """Read the last checkpoint of a run folder, or the one of a file."""
    path = Path(path)
    if path.is_dir():
        folder = LocalFolder(path).sub("train/checkpoints")
        found = steps(folder)
        if not found:
            raise Refusal(f"{path}: no checkpoint in {folder}; train first, or name a file")
        return _whole(folder, found[-1])
    if not path.is_file():
        raise Refusal(f"{path}: no such run folder or checkpoint file")
    folder = LocalFolder(path.parent)
    for step in steps(folder):
        if file_of(step) == path.name:
            return _whole(folder, step)
    try:  # a copy, without the record that lies beside the original
        state = parse(path.read_bytes())
    except ValueError as error:
        raise Refusal(f"{path}: {error}") from error
    if NEEDED - state.keys():
        raise Refusal(f"{path}: no checkpoint of a detector's training")
    return state


def _whole(folder: LocalFolder, step: int) -> dict[str, Any]:
    """Read a checkpoint of a run; one that is damaged is refused: older ones differ in results."""
    try:
        return load(folder, step)
    except (OSError, ValueError) as error:
        raise Refusal(
            f"{folder}/{file_of(step)}: damaged ({error}); train with --resume to make "
            f"it again, or name another checkpoint file"
        ) from error


def weights_of(state: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Give the weights that inference uses: the averaged ones, where there are such."""
    return state["average"] or state["model"]


def steps(folder: Folder) -> list[int]:
    """List the steps of finished checkpoints, oldest first."""
    found = (NAME.fullmatch(name) for name in folder.names())
    return sorted(int(match[1]) for match in found if match)


def read_record(folder: Folder, step: int) -> Record:
    """Read what is known of the checkpoint of a step; raises ValueError where it is damaged."""
    try:
        return msgspec.json.decode(folder.read(record_of(step)), type=Record)
    except ValueError as error:
        raise ValueError(f"{record_of(step)}: {error}") from error


def file_of(step: int) -> str:
    """Name the file of a step's state."""
    return f"step-{step:08d}.pt"


def record_of(step: int) -> str:
    """Name the file of what is known of it."""
    return f"step-{step:08d}.json"
