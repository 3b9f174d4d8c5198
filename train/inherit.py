"""Where the weights of a training begin: those of another training, as far as they fit.

`model.weights` may name a run folder or a checkpoint; what else it may name, backbones.py reads.
"""

import logging
from pathlib import Path
from typing import Any

import torch.distributed as dist

from chipgen.errors import Refusal
from train import checkpoint
from train.detector.model import Detector
from train.detector.settings import ModelSettings
from train.processes import Processes

log = logging.getLogger("train")
NOT_LEARNED = "num_batches_tracked"  # which other kinds of layers do without


def read(settings: ModelSettings, task: str) -> dict[str, Any] | None:
    """Read the training that `model.weights` names, if it does; refuses one that can't be taken."""
    weights, path = settings.weights, Path(settings.weights)
    if not {"/", "."} & {*weights} and not (weights and path.is_dir()):
        return None  # a name, or none
    if not path.exists():
        raise Refusal(f"model.weights: {weights}: no such file or run folder")
    if path.is_file():
        try:
            checkpoint.parse(path.read_bytes())
        except ValueError:  # of torchvision's kind, or damaged: told by who reads those
            return None
    state = checkpoint.read(path)
    if state["recipe"]["train"]["task"] == "rpn" != task:
        raise Refusal(f"model.weights: {weights} was trained for proposals alone")
    for name in ("backbone", "width" if settings.backbone == "small" else "deformable"):
        theirs, ours = state["recipe"]["model"][name], getattr(settings, name)
        if theirs != ours:
            raise Refusal(f"model.weights: {weights} has model.{name} = {theirs!r}, not {ours!r}")
    return state


def begin(
    model: Detector, state: dict[str, Any] | None, classes: tuple[str, ...], processes: Processes
) -> None:
    """Give all processes the weights of the state that the first one has read; see `take`."""
    if state:
        anew = ", ".join(take(model, state, classes)) or "nothing"
        log.info("model.weights: those of step %d; anew: %s", state["step"], anew)
    if processes.world > 1:
        for value in model.state_dict().values():
            sent = value.contiguous()
            dist.broadcast(sent, 0)
            value.copy_(sent)


def take(model: Detector, state: dict[str, Any], classes: tuple[str, ...]) -> list[str]:
    """Give a model the weights of a state; returns the layers that begin anew.

    Those are heads of other sizes, and what tells classes apart, where those are others.
    """
    theirs = checkpoint.weights_of(state)
    of_others = () if tuple(state["classes"]) == classes else _of_classes(model)
    taken, anew = {}, {}
    for name, value in model.state_dict().items():
        layer, _, kind = name.rpartition(".")
        there = theirs.get(name)
        if there is not None and there.shape == value.shape and layer not in of_others:
            taken[name] = there
        elif kind != NOT_LEARNED:
            anew[layer] = None
    model.load_state_dict(taken, strict=False)
    return list(anew)


def _of_classes(model: Detector) -> tuple[str, ...]:
    """Name the layers whose outputs are of one class each."""
    return ("box_head.classes",) + ("box_head.boxes",) * (not model.settings.class_agnostic)
