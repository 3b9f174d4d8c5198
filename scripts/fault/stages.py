"""The stages from pictures to figures, tiny, with the commands that users run."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

PICTURES = {"train": 20, "val": 6}

RECIPE = """
[chips]
size = 96
stride = 16
levels = [
  { factor = 2.0, range = [0, 40] },
  { factor = 1.0, range = [24, 90] },
  { long = 96, range = [70, inf] },
]
[negatives]
min_proposals = 2
[shards]
chips_per_shard = 8
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
epochs = 1
drops = []
rpn_epochs = 1
batch = 8
lr = 0.01
lr_batch = 8
warmup = 0.2
precision = "fp64"
workers = 0
log_every = 1
checkpoint_every = 2
[infer]
levels = [
  { long = 96, range = [60, inf] },
  { factor = 1.0, range = [16, 90] },
  { factor = 1.5, range = [0, 40] },
]
focus = [
  { threshold = 0.02, dilation = 3, smallest = 64 },
  { threshold = 0.05, dilation = 3, smallest = 64 },
]
proposals = 16
min_score = 0.0001
precision = "fp32"
"""


@dataclass(frozen=True)
class Stage:
    """One step of the way, and the commands that make it; {run}, {data}, {recipe} are put in."""

    name: str
    of: str  # the stage of the reference whose result it has
    commands: tuple[str, ...]
    processes: int = 1  # of a training, started by torchrun


WRITE = "chipgen write {run} --kind"
TRAIN = "train {run} --recipe {recipe} --resume"
CHAIN = (
    Stage("plan", "plan", ("chipgen plan {run} --data {data} --recipe {recipe}",)),
    Stage("positive", "positive", (f"{WRITE} positive --workers 1",)),
    Stage("rpn", "rpn", (f"{TRAIN} --set train.task=rpn",)),
    Stage("proposals", "proposals", ("infer proposals {run}",)),
    Stage("negatives", "negatives", ("chipgen negatives {run}",)),
    Stage("negative", "negative", (f"{WRITE} negative --workers 1",)),
    Stage("train", "train", (TRAIN,)),
    Stage("detect", "detect", ("infer detect {run} {data}/val --out {run}/found",)),
    Stage("eval", "eval", ("infer eval {run} --data {data} --mode autofocus --mode 1",)),
)
PARTS = ("--workers 1 --part 0/2", "--workers 1 --part 1/2", "--finish")
VARIANTS = (
    Stage("positive-2", "positive", (f"{WRITE} positive --workers 2",)),
    Stage("positive-parts", "positive", tuple(f"{WRITE} positive {part}" for part in PARTS)),
    Stage(
        "proposals-parts",
        "proposals",
        tuple(
            f"infer proposals {{run}} {part}" for part in ("--part 0/2", "--part 1/2", "--finish")
        ),
    ),
    Stage("negative-2", "negative", (f"{WRITE} negative --workers 2",)),
    Stage("negative-parts", "negative", tuple(f"{WRITE} negative {part}" for part in PARTS)),
    Stage("train-loader", "train", (f"{TRAIN} --set train.workers=1",)),
    Stage("train-2", "train", (TRAIN,), processes=2),
)
STAGES = {stage.name: stage for stage in CHAIN + VARIANTS}
NAMES = [stage.name for stage in CHAIN]
FORKED = [name for name, stage in STAGES.items() if stage.processes == 1]
FOLDERS = {  # of the stages whose result is files
    "plan": "plan",
    "negatives": "plan",
    "positive": "shards/positive",
    "negative": "shards/negative",
    "proposals": "proposals",
}
TRAININGS = {"rpn": "rpn", "train": "train"}  # stage -> its folder


@dataclass(frozen=True)
class Places:
    """Where the campaign's files lie."""

    work: Path

    @property
    def data(self) -> Path:
        """Give the data set."""
        return self.work / "data"

    @property
    def recipe(self) -> Path:
        """Give the recipe."""
        return self.work / "recipe.toml"

    def state(self, name: str) -> Path:
        """Give the run folder as it is after a stage ("" for before all)."""
        return self.work / "states" / (name or "nothing")

    def command(self, text: str, run: Path) -> list[str]:
        """Fill in a command's places."""
        values = {"run": run, "data": self.data, "recipe": self.recipe}
        return [word.format(**values) for word in text.split()]


def draw_data(folder: Path, seed: int) -> None:
    """Write a COCO data set of noise with coloured boxes; every fifth picture has none."""
    for split, count in PICTURES.items():
        rng = np.random.default_rng((seed, len(split)))
        (folder / split).mkdir(parents=True)
        images, annotations = [], []
        for picture_id in range(1, count + 1):
            width, height = rng.integers(100, 200, 2).tolist()
            coarse = rng.integers(60, 190, (height // 8, width // 8, 3), dtype=np.uint8)
            image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
            name = f"{picture_id:06d}.jpg"
            for _ in range(0 if picture_id % 5 == 0 else int(rng.integers(1, 5))):
                w, h = np.exp(rng.uniform(np.log(8), np.log([width, height]))).astype(int).tolist()
                x, y = (rng.uniform(0, 1, 2) * [width - w, height - h]).astype(int).tolist()
                label = int(rng.integers(2))
                image.paste(((255, 30, 30), (30, 30, 255))[label], (x, y, x + w, y + h))
                one = {"id": len(annotations) + 1, "image_id": picture_id, "iscrowd": 0}
                annotations.append(
                    {**one, "category_id": label + 1, "bbox": [x, y, w, h], "area": w * h}
                )
            image.save(folder / split / name, quality=90)
            images.append({"id": picture_id, "file_name": name, "width": width, "height": height})
        categories = [{"id": 1, "name": "red"}, {"id": 2, "name": "blue"}]
        content = {"images": images, "annotations": annotations, "categories": categories}
        path = folder / "annotations" / f"instances_{split}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content))


def before(stage: str) -> str:
    """Name the stage of the reference before one."""
    place = NAMES.index(stage)
    return NAMES[place - 1] if place else ""
