"""Untrained detectors, and run folders that hold such, to infer with."""

import dataclasses
from pathlib import Path

import msgspec
import torch

from chipgen.storage import LocalFolder
from infer.settings import InferSettings
from train import checkpoint, settings
from train.assign import LabelSettings
from train.detector.model import Detector as Model
from train.detector.norms import choose
from train.detector.settings import ModelSettings

CLASSES = "ant", "cat"
TINY = ModelSettings(
    backbone="small",
    width=8,
    weights="",
    anchor_sizes=(16.0, 32.0, 64.0),
    rpn_channels=16,
    candidates=100,
    proposals=16,
    roi_channels=8,
    roi_size=3,
    fc_channels=16,
    focus_channels=8,
)
# of the layers that are initialised near zero
SPREAD = {
    "objectness": 20.0,
    "offsets": 1.0,
    "classes": 20.0,
    "boxes": 5.0,
    "focus_head.focus": 20.0,
}


def model(seed: int = 0, classes: int = len(CLASSES), **changes) -> Model:
    """Make a tiny detector whose weights are random, and say more than zero everywhere."""
    torch.manual_seed(seed)
    made = Model(
        dataclasses.replace(TINY, **changes),
        LabelSettings(),
        classes,
        choose("batch", None, torch.device("cpu")),
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in made.named_parameters():
            for part, spread in SPREAD.items():
                if f"{part}.weight" in name:
                    value.normal_(0, spread / value[0].numel() ** 0.5, generator=generator)
    return made.eval()


def plain(values) -> dict:
    """Turn settings into what a checkpoint holds."""
    return msgspec.json.decode(msgspec.json.encode(dataclasses.asdict(values)))


def save(
    run: Path,
    infer: dict,
    task: str = "detector",
    step: int = 7,
    done: bool = True,
    classes: tuple[str, ...] = CLASSES,
) -> Path:
    """Write the checkpoint of an untrained detector or RPN into a run folder; gives its file."""
    recipe = settings.Recipe(model=TINY, train=settings.TrainSettings(task=task))
    made = model(0, 0 if task == "rpn" else len(classes))
    state = {
        "model": made.state_dict(),
        "average": {},
        "step": step,
        "place": [2, 0],
        "done": done,
        "recipe": plain(recipe),
        "shards": ["made up"],
        "classes": list(classes),
        "infer": infer,
    }
    folder = LocalFolder(run / ("rpn" if task == "rpn" else "train") / "checkpoints")
    checkpoint.save(folder, state, keep=3)
    return folder.path / checkpoint.file_of(step)


def run_of(folder: Path) -> Path:
    """Make a run folder with an untrained detector that looks closer nearly everywhere."""
    focus = [{"threshold": 0.01, "dilation": 1, "smallest": 64}] * 2
    save(folder, plain(pyramid(focus=focus)))
    return folder


def pyramid(**changes) -> InferSettings:
    """Three small levels, in float32, where equal computations give equal figures."""
    table = {**LEVELS, "precision": "fp32", **changes}
    from chipgen.recipe import build

    return build(InferSettings, table, "test")


LEVELS = {
    "levels": [
        {"long": 160, "range": [40, float("inf")]},
        {"factor": 1.0, "range": [12, 90]},
        {"factor": 1.8, "range": [0, 40]},
    ],
    "focus": [
        {"threshold": 0.5, "dilation": 3, "smallest": 64},
        {"threshold": 0.5, "dilation": 3, "smallest": 64},
    ],
    "proposals": 16,
}
