"""What each command of the command line does, given its parsed arguments."""

import argparse
import contextlib
import dataclasses
import hashlib
import logging
import math
import signal
import threading
from collections.abc import Iterable, Iterator
from glob import glob  # takes patterns with a root, which Path.glob does not
from pathlib import Path
from typing import Any

import numpy as np

from chipgen import dataset
from chipgen.arguments import interrupt, split_names
from chipgen.errors import Refusal
from chipgen.pipeline import commit
from chipgen.progress import progress
from chipgen.pyramid import canvas_sizes
from chipgen.raw import as_text
from chipgen.recipe import build, digest, load, load_table, override
from chipgen.run import read_record
from chipgen.sealed import sealed, unsealed
from chipgen.show import png
from chipgen.storage import LocalFolder, open_folder
from infer import follow, lines, measure, parts
from infer import proposals as mining
from infer import tune as tuning
from infer.cascade import AUTOFOCUS, PYRAMID
from infer.detector import Detector, Result
from infer.draw import draw_focus, draw_result
from infer.pictures import decoded
from infer.settings import InferSettings
from infer.status import report
from train import checkpoint, inherit
from train.detector.settings import ModelSettings
from train.hold import Hold
from train.settings import load_recipe as load_training

ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp")
DRAWN = "drawn"  # folder of drawings
LONGEST = 240  # bytes of a drawing's name without its ending; file systems take 255
OUT_OF_DATE = 3  # exit code, for the Makefile to tell it from a failure
log = logging.getLogger("infer")


def proposals(args: argparse.Namespace) -> int:
    """Propose in all pictures of a run."""
    run = open_folder(args.run)
    if args.check:
        if not args.recipe:
            raise Refusal("--check needs a --recipe")
        model = load(args.recipe, {"model": ModelSettings}, args.overrides)["model"]
        return 0 if mining.up_to_date(run, dataclasses.asdict(model)) else OUT_OF_DATE
    mining.make(run, args.part, args.finish)
    return 0


def check(args: argparse.Namespace) -> int:
    """Refuse at once what a later stage of a planned run would refuse, be it after days."""
    record = read_record(open_folder(args.run))
    table = load_table(args.recipe, args.overrides)
    training = load_training(args.recipe, args.overrides)
    training.train.require_chips_for(args.processes)
    if not checkpoint.steps(LocalFolder(args.run).sub("train/checkpoints")):
        inherit.read(training.model, training.train.task)  # a training that goes on has its own
    load(args.recipe, {"infer": InferSettings}, args.overrides)
    if "chips" in table and "infer" not in table:
        log.warning(
            "%s: has no [infer], so pictures will be looked at as suits COCO; its levels should be "
            "those of [chips], from coarse to fine",
            args.recipe,
        )
    if args.data:
        test = measure.open_test(args.data, split_names(args.split))
        measure.require_classes(record.classes, test, args.data)
    return 0


def status(args: argparse.Namespace) -> int:
    """Say how far a run folder is."""
    if not Path(args.run).is_dir():
        raise Refusal(f"{args.run}: no such run folder")
    print(report(LocalFolder(args.run)))
    return 0


def detect(args: argparse.Namespace) -> int:
    """Find objects in pictures; those done before and not written anew are not done again."""
    drawn = Path(args.out, DRAWN).resolve()
    files = [one for one in expand(args.pictures) if drawn not in Path(one).resolve().parents]
    detector = load_detector(args)
    mode = mode_of(args.mode)
    detector.require_mode(mode)
    out = LocalFolder(args.out)
    head = {
        "model": hashlib.sha256(detector.weights.encode()).hexdigest(),
        "settings": digest(dataclasses.replace(detector.settings, max_megapixels=math.inf)),
        "mode": mode,
        "classes": list(detector.classes),
    }
    if args.part:
        number, count = args.part
        files = files[number::count]
        part = out.sub(f"{lines.PARTS}/{number}-of-{count}")
        with ended_in_order(), Hold(part):
            before = {}
            for folder in (out, *lines.parts(out)):  # also of another count
                before |= lines.read(folder, head, held=folder.path == part.path)
            _, broken = _detect(args, files, detector, head, before, part)
        told = f"part {number}/{count} is made; the same without --part puts all together"
    else:
        with ended_in_order(), Hold(out):
            before = lines.read(out, head) | lines.take_over(out, head)
            done, broken = _detect(args, files, detector, head, before, out)
            kept = [done[file] for file in files if file in done]
            found = lines.write_detections(out, kept, detector.classes)
        told = f"{found} detections ({out})"
    log.info("detect: %d pictures, %d of them broken and left out; %s", len(files), broken, told)
    return 1 if not args.part and broken and broken == len(files) else 0


@contextlib.contextmanager
def ended_in_order() -> Iterator[None]:
    """Let SIGTERM, by which schedulers end a job, do what Ctrl-C does: nothing stays held."""
    if threading.current_thread() is not threading.main_thread():  # which alone has signals
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _detect(
    args: argparse.Namespace, files: list[str], detector: Detector, head: dict[str, Any],
    before: dict[str, lines.Line], folder: LocalFolder,
) -> tuple[dict[str, lines.Line], int]:  # fmt: skip
    """Find objects in files, and add lines to a folder that nobody else writes in.

    Gives the line of each file that is done, and how many are broken.
    """
    versions = {file: version_of(file) for file in files}
    done = {
        file: line
        for file, version in versions.items()
        if (line := before.get(as_text(file))) and line.version == version
    }
    left = [file for file in files if file not in done]
    if args.draw and len(left) < len(files):
        log.info("detect: %d pictures are done and not drawn again", len(files) - len(left))
    broken = 0
    results = detector(left, head["mode"])
    with lines.opened(folder, head) as writer:
        for result in progress(results, total=len(left), unit=" pictures", desc="detect"):
            file = result.picture
            if result.error:
                broken += 1
                log.warning("%s is left out: %s", as_text(file), result.error)
                continue
            if args.draw:
                _draw(Path(args.out, DRAWN), file, result, detector, args.min_score)
            done[file] = writer.add(lines.content_of(file, versions[file], result))
    return done, broken


def expand(patterns: Iterable[str]) -> list[str]:
    """List the picture files that files, folders and globs name, each once."""
    files: dict[str, None] = {}
    for pattern in patterns:
        path = Path(pattern)
        if path.is_dir():
            found = sorted(p for p in path.rglob("*") if p.suffix.lower() in ENDINGS)
        elif path.is_file():
            found = [path]
        else:
            found = sorted(p for p in map(Path, glob(pattern, recursive=True)) if p.is_file())  # noqa: PTH207
        if not found:
            kinds = ", ".join(ENDINGS)
            raise Refusal(f"{pattern}: no such picture, folder or pattern (of {kinds})")
        files |= dict.fromkeys(map(str, found))
    return list(files)


def version_of(file: str) -> str:
    """Say what changes when a picture is written anew; empty for one that is gone."""
    path = Path(file)
    try:
        return LocalFolder(path.parent).version(path.name)
    except OSError:  # told when it is to be read
        return ""


def drawing_of(file: str) -> str:
    """Name the drawing of a picture: in one folder for all, not hidden, and no two alike."""
    name = as_text(file).replace("_", "__").replace("/", "_-")
    name = f"_{name}" if name.startswith(".") else name
    if len(name.encode()) <= LONGEST:
        return name
    start = name.encode()[: LONGEST - 17].decode(errors="ignore")
    return f"{start}_{hashlib.sha256(name.encode()).hexdigest()[:16]}"


def _draw(folder: Path, file: str, result: Result, detector: Detector, min_score: float) -> None:
    """Draw a result, and its coarsest map of focus."""
    (one,) = decoded([file], detector.settings.max_megapixels * 1e6)
    folder.mkdir(parents=True, exist_ok=True)
    stem = drawing_of(file)
    draw_result(one.pixels, result, detector.classes, min_score).save(folder / f"{stem}.png")
    if len(detector.settings.levels) > 1 and 0 in result.focus:
        width, height = (np.array([side]) for side in result.size)
        canvas = tuple(canvas_sizes(detector.settings.levels, width, height)[0, 0].tolist())
        drawing = draw_focus(one.pixels, result.focus[0], canvas, detector.machine.stride)
        drawing.save(folder / f"{stem}_focus.png")


def evaluate(args: argparse.Namespace) -> int:
    """Measure a detector on an annotated data set."""
    splits = split_names(args.split)
    modes = [mode_of(mode) for mode in args.modes or ()]
    if args.follow:
        test = measure.open_test(args.data, splits, args.pictures)
        modes, settings = modes or [AUTOFOCUS], settings_of(args)
        inputs = inputs_of(args, digest(settings) if settings else "of the model", modes)
        about = {"inputs": inputs, "data": args.data, "split": splits}
        follow.follow(Path(args.model), test, modes, settings, about)
        return 0
    detector = load_detector(args)
    for mode in modes:
        detector.require_mode(mode)
    modes = modes or [AUTOFOCUS, PYRAMID, *range(len(detector.settings.levels))]
    model = Path(args.model.split(",")[0])
    if "," in args.model and not args.out:
        raise Refusal(f"{args.model}: figures of an ensemble belong to none of them; name an --out")
    out = args.out or (model if model.is_dir() else model.parent) / "eval.json"
    inputs = inputs_of(args, commit(), detector.weights, digest(detector.settings), modes)
    folder = parts.folder_of(out)
    if out.is_file():
        before = None
        with contextlib.suppress(ValueError):  # damaged: measured again
            before = unsealed(out.read_bytes(), dict)
        same = bool(before) and before.get("inputs") == inputs
        if same and (count := mended(before, args, detector.settings)):
            log.info("eval: %d pictures can be read by now; measured again", count)
        elif same:
            log.info("eval: up to date (%s)", out)
            parts.remove(folder)  # which a run has left that was stopped after it wrote the file
            print(measure.table_of(before))
            return 0
    test = open_for(detector, args)
    if args.part and not args.finish:
        parts.make(folder, inputs, detector, test, modes, args.part)
        return 0
    if args.finish:
        looked = parts.put_together(folder, inputs, test)
        found = measure.figures(test, looked, detector.settings)
    else:
        found = measure.compare(detector, test, modes)
    result = {"inputs": inputs, "model": args.model, "data": args.data, "split": splits, **found}
    LocalFolder(out.parent).write(out.name, sealed(result))
    parts.remove(folder)
    print(measure.table_of(result))
    return 0


def mended(figures: dict[str, Any], args: argparse.Namespace, settings: InferSettings) -> int:
    """Count the pictures that figures lack, for they were broken, and that can be read by now."""
    rows = [row for row in figures.values() if isinstance(row, dict)]
    lacking = {name for row in rows for name in row.get("broken", ())}
    if not lacking:
        return 0
    annotations = dataset.read(args.data, split_names(args.split))
    sources = [one for one in mining.sources_of(annotations) if str(one) in lacking]
    return sum(one.error is None for one in decoded(sources, settings.max_megapixels * 1e6))


def inputs_of(args: argparse.Namespace, *state: Any) -> str:
    """Hash what figures come from: a state, and the pictures that the arguments name."""
    text = " ".join(map(str, [*state, args.pictures]))
    text += dataset.fingerprint(args.data, split_names(args.split))
    return hashlib.sha256(text.encode()).hexdigest()


def tune(args: argparse.Namespace) -> int:
    """Search settings of inference on a sample of a data set, and write the chosen ones."""
    out = Path(args.out)
    for file in (out, out.with_suffix(".png")):
        if file.exists():
            raise Refusal(f"{file}: is there already; delete it, or choose another name")
    detector = load_detector(args)
    if len(detector.settings.levels) < 2:
        raise Refusal(f"{args.model}: has one level; there is nothing to focus")
    test = open_for(detector, args)
    detector, seen = tuning.sized(detector, test, args.finest, args.within)
    pyramid, points = tuning.search(detector, test, seen, args.smallest)
    chosen = tuning.choose(points, pyramid, args.within)
    print(f"{'':14}{'AP':>7}{'pixels':>8}  threshold/dilation/smallest of each level")
    for point in [*points, pyramid]:
        name = "chosen" if point is chosen else "pyramid" if point is pyramid else ""
        choice = ", ".join(
            f"{f.threshold:g}/{f.dilation}/{f.smallest}" for f in point.settings.focus
        )
        print(f"{name:14}{point.precision:7.1f}{point.pixels:8.0f}  {choice}")
    found = tuning.measured(detector, test, chosen)
    value = found.get("AP", found["AP50"]) or 0.0
    print(f"{'chosen, run':14}{value:7.1f}{found['pixels']:8.0f}")
    note = (
        f"Tuned on {len(test.annotations.picture_ids)} pictures of {args.data}: AP {value:.1f} at "
        f"{found['pixels']:.0f} pixels, the full pyramid {pyramid.precision:.1f} at "
        f"{pyramid.pixels:.0f}."
    )
    folder = LocalFolder(out.parent)
    folder.write(out.name, tuning.fragment(chosen.settings, note).encode())
    folder.write(out.with_suffix(".png").name, png(tuning.draw_front(points, pyramid, chosen)))
    log.info("tune: %s and its drawing %s are written", out, out.with_suffix(".png").name)
    return 0


def open_for(detector: Detector, args: argparse.Namespace) -> measure.Test:
    """Read the data set that the arguments name; its classes must be the detector's."""
    test = measure.open_test(args.data, split_names(args.split), args.pictures)
    measure.require_classes(detector.classes, test, args.data)
    return test


def load_detector(args: argparse.Namespace) -> Detector:
    """Load the networks that the arguments name, with their settings of inference."""
    return Detector.load(*args.model.split(","), settings=settings_of(args))


def settings_of(args: argparse.Namespace) -> InferSettings | None:
    """Give the settings that the arguments ask for; None: those of the model's own recipe."""
    if args.recipe:
        return load(args.recipe, {"infer": InferSettings}, args.overrides)["infer"]
    if args.overrides:
        table = checkpoint.read(args.model.split(",")[0])["infer"]
        return build(InferSettings, override(table, "infer", args.overrides), "--set")
    return None


def mode_of(text: str) -> str | int:
    """Read a mode: a word, or the number of a level."""
    return int(text) if text.isdigit() else text
