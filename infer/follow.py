"""Evaluates each checkpoint of a training run as it appears, into the run's log and TensorBoard."""

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from chipgen.errors import Refusal
from chipgen.storage import LocalFolder
from infer import measure
from infer.detector import Detector
from infer.settings import InferSettings
from train import checkpoint
from train.journal import LOG, entries

PAUSE = 5.0  # s between two looks
log = logging.getLogger("infer")


def follow(
    run: Path, test: measure.Test, modes: Sequence[str | int], settings: InferSettings | None,
    about: dict[str, Any],
) -> None:  # fmt: skip
    """Evaluate checkpoints until the last one of the training is done.

    Each entry of the log says what `about` does; its `inputs` tell figures of other pictures,
    modes or settings apart from these.
    """
    from torch.utils.tensorboard import SummaryWriter  # a second of imports

    if not run.is_dir():
        raise Refusal(f"{run}: no such run folder")
    folder = LocalFolder(run / "train")
    checkpoints = folder.sub("checkpoints")
    ended = False
    log.info("waiting for checkpoints in %s; Ctrl-C ends it", checkpoints)
    with SummaryWriter(str(folder.path / "tensorboard")) as writer:
        while not ended:
            done = evaluated(folder, about["inputs"])
            new = [n for n in checkpoint.steps(checkpoints) if n not in done]
            for step in new:
                try:
                    detector = Detector.load(
                        folder.path / "checkpoints" / checkpoint.file_of(step), settings=settings
                    )
                except Refusal as gone:
                    if step in checkpoint.steps(checkpoints):
                        raise
                    log.info("step %d: removed before it was evaluated (%s)", step, gone)
                    continue
                measure.require_classes(detector.classes, test, str(run))
                entry = {"step": step, **about, **measure.compare(detector, test, modes)}
                append(folder, entry)
                for mode in map(measure.name_of, modes):
                    for name, value in entry[mode].items():
                        if isinstance(value, float):
                            writer.add_scalar(f"{mode}/{name}", value, step)
                writer.flush()
                log.info("step %d\n%s", step, measure.table_of(entry))
            last = checkpoint.steps(checkpoints)[-1:]
            ended = any(is_done(checkpoints, n) for n in last)
            ended &= all(n in evaluated(folder, about["inputs"]) for n in last)
            if not (ended or new):
                time.sleep(PAUSE)  # shared file systems don't tell of new files


def is_done(checkpoints: LocalFolder, step: int) -> bool:
    """Say whether a checkpoint is the last one of its training."""
    try:
        return checkpoint.read_record(checkpoints, step).done
    except FileNotFoundError:  # removed by the training, which goes on
        return False
    except ValueError as error:  # waiting for what may never come would be no better
        raise Refusal(f"{checkpoints}/{error}; train with --resume to make it again") from error


def evaluated(folder: LocalFolder, inputs: str) -> set[int]:
    """List the steps that the log has figures of, from these inputs."""
    return {entry["step"] for _, entry in entries(folder) if entry.get("inputs") == inputs}


def append(folder: LocalFolder, entry: dict) -> None:
    """Add a line to the log: one write, so that it does not mix with the training's own."""
    with (folder.path / LOG).open("ab", buffering=0) as file:
        file.write(msgspec.json.encode(entry) + b"\n")
