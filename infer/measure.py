"""Runs a detector over an annotated data set: precision, pixels and speed of each mode."""

import functools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from chipgen import dataset, layout
from chipgen.dataset import Annotations
from chipgen.errors import Refusal
from chipgen.progress import progress
from infer import evaluate, mistakes
from infer.areas import areas_of
from infer.cascade import AUTOFOCUS, PYRAMID
from infer.detections import Detections
from infer.detector import Detector
from infer.proposals import Proposer, sources_of
from infer.settings import InferSettings

WARM_UP = 4  # pictures that pass before the clock starts
RECALL = "proposals"  # where the figures of these stand
PROPOSALS = 300  # of a picture, of all levels together, whose recall is told
COCO = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR")
VOC = ("AP50", "AP70")


@dataclass(frozen=True)
class Test:
    """What a detector is measured on."""

    annotations: Annotations
    areas: np.ndarray  # (N,) float64, that sort objects into small, medium and large
    style: str  # "coco" or "voc"


@dataclass(frozen=True)
class Looked:
    """What was found in some pictures, and what it took."""

    found: Detections
    errors: dict[str, str]  # pictures that could not be read, and why
    processed: list[float]  # canvas px of each level
    whole: list[float]  # and of its whole canvases
    pictures: int
    seconds: float

    @classmethod
    def concatenate(cls, parts: Sequence["Looked"]) -> "Looked":
        """Put together what was found in several parts of a data set."""
        errors: dict[str, str] = {}
        for part in parts:
            errors |= part.errors
        return cls(
            Detections.concatenate(part.found for part in parts),
            errors,
            np.sum([part.processed for part in parts], axis=0).tolist(),
            np.sum([part.whole for part in parts], axis=0).tolist(),
            sum(part.pictures for part in parts),
            sum(part.seconds for part in parts),
        )


def open_test(where: str, splits: Sequence[str], pictures: int | None = None) -> Test:
    """Read a data set, or some pictures spread over it."""
    annotations = dataset.read(where, splits)
    if pictures is not None and pictures < len(annotations.picture_ids):
        count = len(annotations.picture_ids)
        annotations = annotations.take(np.arange(pictures) * count // pictures)
    areas = areas_of(where, splits, annotations)
    return Test(annotations, areas, layout.find(where).style)


def require_classes(trained: Sequence[str], test: Test, where: str) -> None:
    """Refuse a data set of other classes than those that are trained on."""
    found = test.annotations.classes
    if list(found) != list(trained):
        raise Refusal(
            f"{where}: its classes ({_some(found)}) are not those that are trained on "
            f"({_some(trained)})"
        )


def _some(classes: Sequence[str]) -> str:
    return ", ".join(classes[:8]) + (", .." if len(classes) > 8 else "")


def compare(detector: Detector, test: Test, modes: Sequence[str | int]) -> dict[str, Any]:
    """Measure each mode; with the full pyramid also what its proposals recall."""
    return figures(test, looks(detector, test.annotations, modes), detector.settings)


def measure(detector: Detector, test: Test, mode: str | int) -> dict[str, Any]:
    """Measure one mode."""
    return _of_mode(test, look(detector, test.annotations, mode), detector.settings)


def looks(
    detector: Detector, annotations: Annotations, modes: Sequence[str | int], warm_up: bool = True
) -> dict[str, Looked]:
    """Look at pictures in each mode; with the full pyramid also for proposals, under that name."""
    found = {name_of(mode): look(detector, annotations, mode, warm_up) for mode in modes}
    if PYRAMID in modes:
        found[RECALL] = propose(detector, annotations)
    return found


def look(
    detector: Detector, annotations: Annotations, mode: str | int, warm_up: bool = True
) -> Looked:
    """Run one mode over pictures."""
    sources = list(sources_of(annotations))
    for _ in detector(sources[: WARM_UP * warm_up], mode):
        pass
    found, errors = [], {}
    processed, whole = np.zeros((2, len(detector.settings.levels)))
    start = time.perf_counter()
    for result in progress(
        detector(sources, mode), total=len(sources), unit=" pictures", desc=name_of(mode)
    ):
        if result.error:
            errors[str(result.picture)] = result.error
            continue
        found.append(result.detections(result.picture.picture_id))
        for level, pixels in result.processed.items():
            processed[level] += pixels
            whole[level] += result.canvases[level]
    seconds = time.perf_counter() - start
    return Looked(
        Detections.concatenate(found), errors, processed.tolist(), whole.tolist(), len(sources),
        seconds,
    )  # fmt: skip


def propose(detector: Detector, annotations: Annotations) -> Looked:
    """Take the first network's proposals over the whole pyramid."""
    proposer = Proposer(detector.models[0], detector.settings, detector.device)
    start = time.perf_counter()
    with progress(total=len(annotations.picture_ids), unit=" pictures", desc=RECALL) as bar:
        table, errors = proposer.table(annotations, bar.update)
    boxes = np.stack([table[name].to_numpy() for name in ("x1", "y1", "x2", "y2")], axis=1)
    ids, scores = table["picture_id"].to_numpy(), table["score"].to_numpy()
    found = Detections(ids, boxes, scores, np.zeros(len(ids), np.int32))
    return Looked(found, errors, [], [], bar.n, time.perf_counter() - start)


def figures(test: Test, looked: dict[str, Looked], settings: InferSettings) -> dict[str, Any]:
    """Turn what was found in all pictures of a data set into the figures of each mode."""
    result: dict[str, Any] = {"style": test.style}
    for name, one in looked.items():
        if name == RECALL:
            result[name] = evaluate.proposal_recall(
                test.annotations, test.areas, one.found, PROPOSALS
            )
        else:
            result[name] = _of_mode(test, one, settings)
        if name in (AUTOFOCUS, PYRAMID):
            judge = functools.partial(main_figure, test, most=settings.detections)
            result[name]["lost"] = mistakes.lost(test.annotations, one.found, judge)
    return result


def _of_mode(test: Test, looked: Looked, settings: InferSettings) -> dict[str, Any]:
    seen = looked.pictures - len(looked.errors)
    if not seen:
        why = next(iter(looked.errors.values()), "the split is empty")
        raise Refusal(f"none of {looked.pictures} pictures could be read: {why}")
    processed, whole = np.array(looked.processed), np.array(looked.whole)
    shares = np.divide(processed, whole, out=np.zeros_like(whole), where=whole > 0)
    return {
        **precision(test, looked.found, settings.detections),
        "pixels": float(np.sqrt(processed.sum() / seen)),
        "pictures_per_s": seen / looked.seconds,
        "shares": {
            str(level): float(shares[n]) for n, level in enumerate(settings.levels) if whole[n]
        },
        "pictures": seen,
        "broken": looked.errors,
    }


def precision(test: Test, found: Detections, most: int) -> dict[str, Any]:
    """Give the figures of the data set's own kind."""
    if test.style == "voc":
        return evaluate.voc_figures(test.annotations, found)
    return evaluate.coco_figures(test.annotations, test.areas, found, most)


def main_figure(test: Test, found: Detections, most: int) -> float | None:
    """Give the first of those figures: AP, or VOC's AP50."""
    if test.style == "voc":
        return evaluate.voc_figures(test.annotations, found)["AP50"]
    return evaluate.average_precision(test.annotations, test.areas, found, most)


def name_of(mode: str | int) -> str:
    """Name a mode as eval.json does."""
    return mode if isinstance(mode, str) else f"level{mode}"


def table_of(result: dict[str, Any]) -> str:
    """Lay out what `compare` found for people."""
    columns = COCO if result["style"] == "coco" else VOC
    modes = {
        name: row for name, row in result.items() if isinstance(row, dict) and columns[0] in row
    }
    heads = "".join(f"{name:>7}" for name in columns)
    lines = [f"{'':12}{heads}{'pixels':>8}{'pict./s':>9}  share of each level"]
    for name, row in modes.items():
        values = "".join(_cell(row[column]) for column in columns)
        shares = ", ".join(f"{level} {share:.0%}" for level, share in row["shares"].items())
        speed = f"{row['pixels']:8.0f}{row['pictures_per_s']:9.2f}"
        lines.append(f"{name:12}{values}{speed}  {shares}")
        if row["broken"]:
            lines.append(f"{'':12}{len(row['broken'])} pictures could not be read")
    if RECALL in result:
        recalls = ", ".join(f"{k} {_cell(v).strip()}" for k, v in result[RECALL].items())
        lines.append(f"proposals   {recalls} (best {PROPOSALS} of a picture)")
    name, first = next(iter(modes.items()))
    if "lost" in first:
        of_kind = ", ".join(f"{k} {_cell(v).strip()}" for k, v in first["lost"].items())
        lines.append(f"{'lost to':12}{of_kind} ({name})")
    if len(first.get("per_class", {})) > 1:
        of_class = ", ".join(f"{k} {_cell(v).strip()}" for k, v in first["per_class"].items())
        lines.append(f"by class    {of_class} ({name})")
    return "\n".join(lines)


def _cell(value: float | None) -> str:
    return f"{'-':>7}" if value is None else f"{value:7.1f}"
