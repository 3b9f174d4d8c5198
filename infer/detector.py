"""The detector as others use it: `Detector.load(path)`, then `for result in detector(pictures)`."""

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from chipgen.errors import Refusal
from chipgen.recipe import build
from infer.cascade import AUTOFOCUS, PYRAMID, Flight, Machine, fly, suppressed
from infer.detections import Detections
from infer.fold import fold
from infer.network import Network
from infer.pictures import Decoded, Picture, decoded, groups
from infer.settings import InferSettings
from train import checkpoint
from train.assign import LabelSettings
from train.detector.model import Detector as Model
from train.detector.norms import choose
from train.detector.settings import ModelSettings
from train.precision import precision_of
from train.processes import agree_on_threads

# Canvas px of one batch. Small chips fill even a CPU only in company; large regions gain nothing.
AT_ONCE = {"cpu": 600_000, "cuda": 8_000_000}


@dataclass(frozen=True)
class Result:
    """What was found in one picture."""

    picture: Any  # as it was given
    size: tuple[int, int]  # width, height; (0, 0) for a broken picture
    boxes: np.ndarray  # (N, 4) float32 xyxy picture px, best first
    scores: np.ndarray  # (N,) float32
    labels: np.ndarray  # (N,) int32, places in `Detector.classes`
    chips: dict[int, np.ndarray]  # by level, (n, 4) float32 picture px: regions looked at
    focus: dict[int, np.ndarray]  # by level, (rows, columns): where to look closer; -1: not seen
    processed: dict[int, int]  # by level, canvas px that went through the network
    canvases: dict[int, int]  # by level, canvas px of the whole picture
    error: str | None = None  # why there is nothing, of a broken picture

    def detections(self, picture_id: int) -> Detections:
        """Give the detections under a picture's id; `to_rows` makes COCO's json of them."""
        ids = np.full(len(self.scores), picture_id, np.int64)
        return Detections(ids, self.boxes, self.scores, self.labels)


class Detector:
    """One or several trained networks and the pyramid that they are run on."""

    def __init__(
        self,
        models: list[Model],
        classes: tuple[str, ...],
        settings: InferSettings,
        device: torch.device,
        weights: str = "",
    ):
        agree_on_threads()
        self.classes, self.settings, self.device = classes, settings, device
        self.weights = weights  # what they are, for those who keep results
        self.models = [
            model.to(device, memory_format=torch.channels_last).eval() for model in models
        ]
        self.precision = precision_of(settings, device)
        network = Network(self.models, settings, self.precision)
        self.machine = Machine(network, network.stride, self.precision, AT_ONCE[device.type])

    @classmethod
    def load(
        cls,
        *paths: str | Path,
        device: str | torch.device | None = None,
        settings: InferSettings | None = None,
    ) -> "Detector":
        """Load a run folder or a checkpoint file; several are used as an ensemble.

        Settings of inference are those of the recipe that the run was trained with, unless others
        are given.
        """
        device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        states = [checkpoint.read(path) for path in paths]
        for path, state in zip(paths, states, strict=True):
            if state["classes"] != states[0]["classes"]:
                raise Refusal(f"{path}: its classes are not those of {paths[0]}")
            if state["recipe"]["train"]["task"] == "rpn":
                raise Refusal(f"{path}: trained for proposals alone; it finds no classes")
        if settings is None:
            settings = build(InferSettings, states[0]["infer"], f"{paths[0]}: infer")
        models = [model_of(state) for state in states]
        if len({model.stride for model in models}) > 1:
            raise Refusal(f"{' '.join(map(str, paths))}: their feature maps differ in stride")
        weights = " ".join(_digest(checkpoint.weights_of(state)) for state in states)
        return cls(models, tuple(states[0]["classes"]), settings, device, weights)

    def with_settings(self, settings: InferSettings) -> "Detector":
        """Give the same networks with other settings of inference."""
        return Detector(self.models, self.classes, settings, self.device, self.weights)

    def __call__(
        self, pictures: Iterable[Picture] | Picture, mode: str | int = AUTOFOCUS
    ) -> Iterator[Result]:
        """Find objects; pictures are paths, arrays (H, W, 3) or tensors, of uint8.

        `mode` is "autofocus", "pyramid" (every level of the whole picture), or a level's number.
        A broken picture gives a result with an `error`. Pictures are taken in groups of up to 256,
        whose results come together: give those of a live camera one by one.
        """
        self.require_mode(mode)
        if isinstance(pictures, Picture):
            pictures = [pictures]
        return self._all_results(pictures, mode)

    def require_mode(self, mode: str | int) -> None:
        """Refuse a mode that there isn't."""
        known = (AUTOFOCUS, PYRAMID, *range(len(self.settings.levels)))
        if mode not in known:
            raise Refusal(f"mode {mode!r} is none of {', '.join(map(str, known))}")

    def _all_results(self, pictures: Iterable[Picture], mode: str | int) -> Iterator[Result]:
        found = decoded(pictures, self.settings.max_megapixels * 1e6)
        for group in groups(found, self.device):
            yield from self._results(group, mode)

    def _results(self, group: list[Decoded], mode: str | int) -> Iterator[Result]:
        ahead = self.device.type == "cuda"  # a CPU would read what has not arrived
        tensors = [
            torch.as_tensor(one.pixels).to(self.device, non_blocking=ahead)
            for one in group
            if one.pixels is not None
        ]
        flights = iter(fly(tensors, self.machine, self.settings, mode))
        for one in group:
            if one.error is None:
                yield landed(next(flights), one.picture, self.settings)
            else:
                yield broken(one.picture, one.error)


def landed(flight: Flight, picture: Any, settings: InferSettings) -> Result:
    """Suppress what was found twice (focus stacking), and make a result."""
    boxes, scores, labels = suppressed(*flight.found(), settings)
    return Result(
        picture=picture,
        size=(flight.pixels.shape[1], flight.pixels.shape[0]),
        boxes=boxes,
        scores=scores,
        labels=labels,
        chips=flight.regions,
        focus=flight.maps,
        processed=flight.processed,
        canvases={level: int(flight.canvases[level].prod()) for level in flight.regions},
    )


def broken(picture: Any, error: str) -> Result:
    """Give the result of a picture that can't be read."""
    nothing = np.zeros((0, 4), np.float32)
    none = np.zeros(0, np.float32), np.zeros(0, np.int32)
    return Result(picture, (0, 0), nothing, *none, {}, {}, {}, {}, error)


def _digest(weights: dict[str, torch.Tensor]) -> str:
    """Hash weights by content."""
    state = hashlib.sha256()
    for name, values in sorted(weights.items()):
        state.update(f"{name} {values.dtype} {tuple(values.shape)}".encode())
        state.update(values.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return state.hexdigest()


def model_of(state: dict[str, Any]) -> Model:
    """Make the network of a checkpoint for inference."""
    recipe = state["recipe"]
    settings = build(ModelSettings, recipe["model"], "checkpoint: model")
    model = Model(
        dataclasses.replace(settings, weights="", checkpointing=False),
        build(LabelSettings, recipe["labels"], "checkpoint: labels"),
        0 if recipe["train"]["task"] == "rpn" else len(state["classes"]),
        choose("frozen" if settings.norm == "frozen" else "batch", None, torch.device("cpu")),
    )
    model.load_state_dict(checkpoint.weights_of(state))
    side = 2 * model.stride
    fold(model.backbone, torch.zeros(1, 3, side, side))
    return model
