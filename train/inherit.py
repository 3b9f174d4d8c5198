"""Where the weights of a training begin: those of another training, as far as they fit.

`model.weights` may name a run folder or a checkpoint; what else it may name, backbones.py reads.
"""

import contextlib
from pathlib import Path
from typing import Any

from chipgen.errors import Refusal
from train import checkpoint
from train.detector.model import Detector

NOT_LEARNED = ("num_batches_tracked",)  # endings of what other kinds of layers do without


def read(weights: str) -> dict[str, Any] | None:
    """Read the checkpoint that `model.weights` names; None where it names something else."""
    path = Path(weights)
    if weights and path.is_dir():
        return checkpoint.read(path)
    with contextlib.suppress(ValueError, OSError):  # a file of torchvision's kind, or none at all
        checkpoint.parse(path.read_bytes())
        return checkpoint.read(path)
    return None


def take(model: Detector, state: dict[str, Any], classes: tuple[str, ...]) -> list[str]:
    """Give a model the weights of a checkpoint; returns the layers that begin anew.

    The backbone must be the same. Heads of other sizes begin anew, and so does what tells classes
    apart, where those are others.
    """
    theirs = checkpoint.weights_of(state)
    anew = () if tuple(state["classes"]) == classes else _of_classes(model)
    taken, layers = {}, {}
    for name, value in model.state_dict().items():
        layer, _, kind = name.rpartition(".")
        there = theirs.get(name)
        if there is not None and there.shape == value.shape and layer not in anew:
            taken[name] = there
        elif kind not in NOT_LEARNED:
            layers[layer] = None
    lacking = [one for one in layers if one.startswith("backbone.") and not one.endswith(".offset")]
    if lacking:
        raise Refusal(
            f"model.weights: {lacking[0]} is another one in that training, or not there; its "
            f"[model] had backbone = {state['recipe']['model']['backbone']!r}, "
            f"width = {state['recipe']['model']['width']}"
        )
    model.load_state_dict(taken, strict=False)
    return list(layers)


def _of_classes(model: Detector) -> tuple[str, ...]:
    """Name the layers whose outputs are of one class each."""
    return ("box_head.classes",) + ("box_head.boxes",) * (not model.settings.class_agnostic)
