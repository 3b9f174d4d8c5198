"""Draw a data set of synthetic scenes in the COCO 2017 layout, hard in the ways that COCO is hard.

Objects differ twentyfold in size, small ones stand in tight clusters, and the classes come in
families of one outline whose members differ only in a small inner mark. Unlabelled decoys carry
the family's outline with a mark of another family. They stand apart, on shelves of their own, so
that pixels round the objects hardly ever show them. Picture i of a split depends on (seed, split,
i) alone, so the number of workers never shows in the result.
"""

import argparse
import functools
import itertools
import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image
from scenes.composition import PORTRAIT, compose, photograph
from scenes.kinds import CLASSES
from tqdm import tqdm

VERSION = 3  # to be raised with every change of the drawing, so that no older set passes for new
SPLITS = ("train", "val")
MARKER = "unfinished.json"


@dataclass(frozen=True)
class Settings:
    """What the content of a data set depends on."""

    width: int
    height: int
    train: int  # pictures in the split
    val: int
    seed: int = 0


SIZES = {"small": Settings(320, 240, 720, 480), "full": Settings(640, 480, 4000, 500)}


def draw_scene(settings: Settings, split: str, index: int) -> tuple[Image.Image, list[dict]]:
    """Return one picture with its annotations."""
    rng = np.random.default_rng((settings.seed, SPLITS.index(split), index))
    sides = settings.width, settings.height
    pixels, annotations = compose(rng, *(sides[::-1] if rng.random() < PORTRAIT else sides))
    return photograph(rng, pixels), annotations


def describe(settings: Settings) -> dict:
    """Return the info entry of a data set's json files."""
    return {"description": "Fovea scenes", "version": VERSION, "settings": asdict(settings)}


def read_info(path: Path) -> dict | None:
    """Return the info entry of a json file, None where there is none."""
    try:
        return json.loads(path.read_text())["info"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_json(path: Path, content: dict) -> None:
    """Write a json file that exists in full or not at all."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(content, separators=(",", ":")))
    part.replace(path)


def instances(out: Path, split: str) -> Path:
    """Return the place of a split's annotations."""
    return out / "annotations" / f"instances_{split}.json"


def is_finished(out: Path, settings: Settings) -> bool:
    """Tell whether a folder holds the whole set, and refuse one that holds anything else."""
    info = describe(settings)
    if all(read_info(instances(out, split)) == info for split in SPLITS):
        return True
    empty = not out.exists() or (out.is_dir() and not any(out.iterdir()))
    if not empty and read_info(out / MARKER) != info:
        raise FileExistsError(f"{out} holds something other than these scenes: name another folder")
    return False


def render(settings: Settings, out: Path, split: str, index: int) -> tuple[dict, list[dict]]:
    """Save one picture and return its COCO image entry with its annotations."""
    image_id = index + 1 + (settings.train if split == "val" else 0)
    name = f"{image_id:012d}.jpg"
    picture, annotations = draw_scene(settings, split, index)
    picture.save(out / split / name, quality=95)
    image = {"id": image_id, "file_name": name, "width": picture.width, "height": picture.height}
    return image, annotations


def render_all(settings: Settings, out: Path, workers: int) -> Iterator[tuple[dict, list[dict]]]:
    """Render both splits, in order."""
    counts = asdict(settings)
    splits, indices = zip(*((s, i) for s in SPLITS for i in range(counts[s])), strict=True)
    task = functools.partial(render, settings, out)
    if workers == 1:
        yield from map(task, splits, indices)
        return
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"))
    # Workers inherit deafness to Ctrl-C, so that this process alone stops, and stops them.
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        results = pool.map(task, splits, indices, chunksize=4)
        signal.signal(signal.SIGINT, handler)
        yield from results
    finally:
        pool.shutdown(cancel_futures=True)


def write(settings: Settings, out: Path, workers: int) -> str:
    """Write the data set, its annotations last, and return a line about it."""
    info = describe(settings)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / MARKER, {"info": info})  # first, so that a broken run is known for ours
    for folder in ("annotations", *SPLITS):
        (out / folder).mkdir(exist_ok=True)
    total = settings.train + settings.val
    records = list(tqdm(render_all(settings, out, workers), total=total, disable=None))

    ids = itertools.count(1)
    categories = [
        {"id": number, "name": kind.name, "supercategory": kind.family}
        for number, kind in enumerate(CLASSES, start=1)
    ]
    parts = records[: settings.train], records[settings.train :]
    for split, part in zip(SPLITS, parts, strict=True):
        content = {
            "info": info,
            "images": [image for image, _ in part],
            "annotations": [
                {"id": next(ids), "image_id": image["id"]} | entry
                for image, entries in part
                for entry in entries
            ],
            "categories": categories,
        }
        write_json(instances(out, split), content)
    (out / MARKER).unlink()
    return summary(records)


def summary(records: list[tuple[dict, list[dict]]]) -> str:
    """Return a line with counts and percentiles of the objects' sizes."""
    sizes = [
        (entry["bbox"][2] * entry["bbox"][3] / image["width"] / image["height"]) ** 0.5
        for image, entries in records
        for entry in entries
        if not entry["iscrowd"]
    ]
    crowds = sum(len(entries) for _, entries in records) - len(sizes)
    low, median, high = np.percentile(sizes or [0], (10, 50, 90))
    return (
        f"{len(records)} pictures, {len(sizes)} objects, {crowds} crowds; size over picture: "
        f"10% under {low:.3f}, median {median:.3f}, 90% under {high:.3f}"
    )


def main() -> int:
    """Run from the command line and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write")
    parser.add_argument("--size", choices=SIZES, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--pictures-train", type=int, help="instead of the size's own number")
    parser.add_argument("--pictures-val", type=int, help="instead of the size's own number")
    args = parser.parse_args()
    size = SIZES[args.size]
    train = size.train if args.pictures_train is None else args.pictures_train
    val = size.val if args.pictures_val is None else args.pictures_val
    if min(train, val, args.workers) < 1 or args.seed < 0:
        parser.error("numbers of pictures and workers start at 1, seeds at 0")
    settings = replace(size, train=train, val=val, seed=args.seed)
    try:
        if is_finished(args.out, settings):
            print(f"{args.out} already holds these scenes")
        else:
            print(write(settings, args.out, args.workers))
    except FileExistsError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: the same command starts again", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
