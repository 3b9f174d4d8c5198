"""The [train] section of a recipe, and the sections that training reads together."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from chipgen.errors import Refusal
from chipgen.recipe import load
from train.assign import LabelSettings
from train.detector.settings import ModelSettings
from train.feedback import FeedbackSettings
from train.warp import AugmentSettings

# MegDet's policies: epochs, and (epoch, factor) of each drop
POLICIES = {
    "normal": (11, ((8.0, 0.1), (10.0, 0.1))),
    "long": (18, ((11.0, 0.1), (14.0, 0.1), (17.0, 0.5))),
}
# what may differ between the parts of one run: none of it changes what is learned, but for chips of
# a pass, which normalisation takes its statistics of, as it does of the processes', free as well
FREE = (
    "workers", "log_every", "checkpoint_every", "keep", "compile", "on_broken", "patience",
    "epochs", "pass_chips", "checkpointing",
)  # fmt: skip


@dataclass(frozen=True)
class TrainSettings:
    """How long, how fast, in what portions."""

    task: Literal["detector", "rpn"] = "detector"  # rpn: the short training for negative mining
    epochs: int = 6
    drops: tuple[tuple[float, float], ...] = ((5.33, 0.1),)  # (epoch, factor), in order
    policy: Literal["own", "normal", "long"] = "own"  # MegDet's two stand for epochs and drops
    rpn_epochs: int = 2  # of task rpn, at a fixed rate
    lr: float = 0.015  # for `lr_batch` chips, scaled linearly with the batch
    lr_batch: int = 128
    warmup: float = 0.1  # epochs over which the rate rises from warmup_lr
    warmup_lr: float = 0.0005  # not scaled

    batch: int = 128  # chips of all processes together
    pass_chips: int = 0  # most chips of a process in one pass; 0: all; more are accumulated
    momentum: float = 0.9
    weight_decay: float = 1e-4
    clip: float = 0.0  # largest norm of the gradient; 0: any
    ema: float = 0.0  # decay of averaged weights, such as 0.999; 0: none
    seed: int = 0

    # auto: bf16 where the device is faster in it; fp64: to compare runs, for they drift apart else
    precision: Literal["auto", "bf16", "fp32", "fp64"] = "auto"
    compile: bool = False  # backbone through torch.compile
    workers: int = 2  # loader processes of each process
    on_broken: Literal["stop", "replace"] = "stop"  # broken samples
    log_every: int = 10  # steps
    checkpoint_every: int = 500  # steps
    keep: int = 3  # checkpoints
    patience: float = 600.0  # s without progress after which a process names the culprit and ends

    def __post_init__(self):
        for name in (
            "epochs",
            "rpn_epochs",
            "lr_batch",
            "batch",
            "log_every",
            "checkpoint_every",
            "keep",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)} must be at least 1")
        for name in ("warmup", "pass_chips", "momentum", "weight_decay", "clip", "ema", "workers"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} = {getattr(self, name)} must not be negative")
        for name in ("lr", "patience"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} = {getattr(self, name)} must be positive")
        places = [epoch for epoch, _ in self.drops]
        if places != sorted(places):
            raise ValueError(f"drops = {self.drops} must be in the order of their epochs")
        if max(self.momentum, self.ema) >= 1:
            raise ValueError("momentum and ema must be below 1")

    def require_chips_for(self, processes: int) -> None:
        """Refuse more processes than a batch has chips."""
        if self.batch < processes:
            raise Refusal(f"train.batch = {self.batch}, but {processes} processes need a chip each")

    @property
    def length(self) -> int:
        """Give the number of epochs of the task and policy."""
        if self.task == "rpn":
            return self.rpn_epochs
        return POLICIES[self.policy][0] if self.policy != "own" else self.epochs

    @property
    def steps_down(self) -> tuple[tuple[float, float], ...]:
        """Give the drops of the task and policy."""
        if self.task == "rpn":
            return ()
        return POLICIES[self.policy][1] if self.policy != "own" else self.drops


@dataclass(frozen=True)
class Recipe:
    """The sections of a recipe that training reads."""

    model: ModelSettings = field(default_factory=ModelSettings)
    labels: LabelSettings = field(default_factory=LabelSettings)
    augment: AugmentSettings = field(default_factory=AugmentSettings)
    feedback: FeedbackSettings = field(default_factory=FeedbackSettings)
    train: TrainSettings = field(default_factory=TrainSettings)


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read the sections of training from a recipe file, or a shipped recipe by name."""
    kinds = {
        "model": ModelSettings,
        "labels": LabelSettings,
        "augment": AugmentSettings,
        "feedback": FeedbackSettings,
        "train": TrainSettings,
    }
    return Recipe(**load(name, kinds, overrides))
