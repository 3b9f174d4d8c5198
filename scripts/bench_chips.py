"""Measure chip generation against its limits, in one run, and write the figures as json.

Planning: pictures a second for COCO's number of pictures. Reading: a json of COCO's size against
pycocotools. Writing: one worker against the codec floor (the time of the same decode and encode
calls alone), two workers against one, bytes of both stores, and memory of a worker as the data
set grows. What is compared is measured in turns, and the median of the ratios is given.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from chipgen import codec, cut, dataset, pipeline, pool, run, shards
from chipgen.arguments import split_names
from chipgen.plan import plan
from chipgen.storage import open_folder

COCO_PICTURES, COCO_BOXES = 118_000, 860_000
FLOOR_PICTURES, SPEEDUP_PICTURES = 1500, 24_000
TURNS = 3
SEED = 0


def main() -> None:
    """Run all measurements."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="data set of real or embedded pictures")
    parser.add_argument("--split", default="train", help="splits to take pictures from")
    parser.add_argument("--out", type=Path, required=True, help="json file to write")
    args = parser.parse_args()
    annotations = dataset.read(args.data, split_names(args.split))
    figures: dict[str, Any] = {}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.out.parent) as scratch:
        for part in (
            lambda: {"machine": machine(), "data": Path(args.data).name},
            lambda: bench_planning(annotations),
            lambda: bench_reading(annotations, Path(scratch)),
            lambda: bench_writing(annotations, Path(scratch)),
            lambda: bench_speedup(annotations, Path(scratch)),
            lambda: bench_bytes(annotations, Path(scratch)),
            lambda: bench_memory(annotations, Path(scratch)),
        ):
            figures |= report(part())
            args.out.write_text(json.dumps(figures, indent=1) + "\n")


def machine() -> str:
    """Name the processor and the cores that this process may use."""
    name = platform.processor()
    with contextlib.suppress(FileNotFoundError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), name)
    return f"{name}, {len(os.sched_getaffinity(0))} cores"


def resampled(annotations: dataset.Annotations, pictures: int) -> dataset.Annotations:
    """Draw pictures with replacement, and give each an id of its own."""
    rows = np.random.default_rng(SEED).integers(0, len(annotations.picture_ids), pictures)
    drawn = annotations.take(rows)
    column = drawn.pictures.schema.get_field_index("picture_id")
    ids = [np.arange(1, pictures + 1)]
    return dataclasses.replace(drawn, pictures=drawn.pictures.set_column(column, "picture_id", ids))


def timed(call: Callable[[], Any]) -> float:
    """Time one call, in seconds."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def bench_planning(annotations: dataset.Annotations) -> dict[str, Any]:
    """Plan COCO's number of pictures, after compilation."""
    recipe = run.load_recipe("sniper")
    plan(annotations, recipe.chips)
    many = resampled(annotations, COCO_PICTURES)
    seconds = [timed(lambda: plan(many, recipe.chips)) for _ in range(TURNS)]
    return {"plan_pictures_per_s": COCO_PICTURES / statistics.median(seconds)}


READ_OURS = "from chipgen import dataset; dataset.read(sys.argv[1], ['train'])"
READ_THEIRS = (
    "from pycocotools.coco import COCO; COCO(sys.argv[1] + '/annotations/instances_train.json')"
)


def bench_reading(annotations: dataset.Annotations, scratch: Path) -> dict[str, Any]:
    """Read a json of COCO's size in turns with pycocotools, each time in a fresh process.

    Without outlines there is less that can be skipped; that case gives the ratio.
    """
    file = scratch / "annotations" / "instances_train.json"
    file.parent.mkdir()
    (scratch / "train").symlink_to(annotations.roots[0])
    figures: dict[str, Any] = {}
    for outlines in (True, False):
        file.write_text(json.dumps(large_json(annotations, outlines)))
        turns = [
            (in_process(READ_OURS, scratch), in_process(READ_THEIRS, scratch)) for _ in range(TURNS)
        ]
        name = "with_outlines" if outlines else "boxes_only"
        figures |= {
            f"read_json_mb_{name}": file.stat().st_size / 1e6,
            f"read_s_{name}": statistics.median(ours[0] for ours, _ in turns),
            f"read_time_vs_pycocotools_{name}": statistics.median(
                ours[0] / theirs[0] for ours, theirs in turns
            ),
            f"read_peak_mb_{name}": max(ours[1] for ours, _ in turns),
        }
    figures["read_time_vs_pycocotools"] = figures["read_time_vs_pycocotools_boxes_only"]
    return figures


def in_process(statement: str, *arguments: object) -> tuple[float, float]:
    """Run `imports; call` in a fresh process; gives the call's seconds, and peak memory in MB."""
    imports, _, call = statement.partition("; ")
    code = (
        f"import sys, time, pathlib; {imports}; start = time.perf_counter(); {call}\n"
        "seconds = time.perf_counter() - start\n"
        # not getrusage: its peak starts from that of the process that forked this one
        "status = pathlib.Path('/proc/self/status').read_text()\n"
        "print(seconds, int(status.split('VmHWM:')[1].split()[0]) / 1e3)"
    )
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds, peak = done.stdout.split()[-2:]
    return float(seconds), float(peak)


def large_json(annotations: dataset.Annotations, outlines: bool) -> dict[str, Any]:
    """Make a COCO json of COCO's size out of some pictures and boxes."""
    rng = np.random.default_rng(SEED)
    files = [f for f, root in zip(annotations.pictures["file"].to_pylist(),
             annotations.pictures["root"].to_pylist(), strict=True) if root == 0]  # fmt: skip
    width, height = int(annotations.widths.max()), int(annotations.heights.max())
    images = [
        {"license": 1, "file_name": files[i % len(files)], "id": i + 1, "width": width,
         "height": height, "date_captured": "2013-11-14 11:18:45",
         "coco_url": "http://images.example/train/000000000001.jpg"}
        for i in range(COCO_PICTURES)
    ]  # fmt: skip
    boxes = annotations.boxes[rng.integers(0, len(annotations.boxes), COCO_BOXES)].astype(float)
    of_picture = np.sort(rng.integers(1, COCO_PICTURES + 1, COCO_BOXES)).tolist()
    label = rng.integers(1, len(annotations.classes) + 1, COCO_BOXES).tolist()
    entries = [
        {"area": (x2 - x1) * (y2 - y1), "iscrowd": 0, "image_id": of_picture[i],
         "bbox": [round(v, 2) for v in (x1, y1, x2 - x1, y2 - y1)], "category_id": label[i],
         "id": i + 1}
        for i, (x1, y1, x2, y2) in enumerate(boxes.tolist())
    ]  # fmt: skip
    if outlines:  # a box's corners three times over: as many numbers as COCO's outlines have
        for entry, (x1, y1, x2, y2) in zip(entries, boxes.round(2).tolist(), strict=True):
            entry["segmentation"] = [[x1, y1, x2, y1, x2, y2, x1, y2] * 3]
    names = [{"id": i + 1, "name": name} for i, name in enumerate(annotations.classes)]
    return {"images": images, "annotations": entries, "categories": names}


def planned(annotations: dataset.Annotations, folder: Path, store: str) -> Path:
    """Plan a run with the default recipe and one kind of store."""
    recipe = run.load_recipe("sniper", [f"shards.store={store}"])
    run.save_plan(open_folder(folder), "benchmark", [annotations], recipe)
    return folder


def job_of(folder: Path) -> pipeline.Job:
    """Open the positive chips of a run, with nothing of them written."""
    shutil.rmtree(folder / "shards", ignore_errors=True)
    place = open_folder(folder)
    record = run.read_record(place)
    return pipeline.open_job(place, "positive", record, run.recipe_of(record))


def write(folder: Path, workers: int) -> float:
    """Time writing a run from its plan to its manifest."""
    job = job_of(folder)
    groups = list(range(len(job.groups)))
    start = time.perf_counter()
    pool.run(job, groups, workers, lambda pictures: None)
    pipeline.finish(job)
    return time.perf_counter() - start


def floor(folder: Path) -> float:
    """Time the decode and encode calls alone that writing a run makes."""
    planned_run = run.read_plan(open_folder(folder))
    recipe = planned_run.recipe
    table = planned_run.chips["positive"].to_pylist()
    roots = [Path(root) for root in planned_run.annotations.roots]
    of_picture: dict[int, list] = {}
    for chip in table:
        of_picture.setdefault(chip["picture"], []).append(chip)
    seconds = 0.0
    for row, picture in enumerate(planned_run.annotations.each()):
        if row not in of_picture:
            continue
        entry = picture.entry
        data = (roots[entry["root"]] / entry["file"]).read_bytes()
        start = time.perf_counter()
        pixels = codec.decode(data, (entry["width"], entry["height"]), 10**9)
        seconds += time.perf_counter() - start
        for chip in of_picture[row]:
            canvas = chip["canvas_width"], chip["canvas_height"]
            window = chip["x"], chip["y"], chip["width"], chip["height"]
            stored = cut.stored_pixels(pixels, canvas, window, recipe.shards.store).pixels
            start = time.perf_counter()
            codec.encode_jpeg(stored, recipe.shards.quality)
            seconds += time.perf_counter() - start
    return seconds


def bench_writing(annotations: dataset.Annotations, scratch: Path) -> dict[str, Any]:
    """Write both stores with one worker, in turns with the floor."""
    figures: dict[str, Any] = {}
    drawn = resampled(annotations, FLOOR_PICTURES)
    for store in ("canvas", "source"):
        folder = planned(drawn, scratch / store, store)
        write(folder, 1)  # compiles, and brings the pictures into memory
        ratios, seconds = [], []
        for _ in range(TURNS):
            lowest, one = floor(folder), write(folder, 1)
            ratios.append(one / lowest)
            seconds.append(one)
        figures[f"write_time_vs_floor_{store}"] = statistics.median(ratios)
        figures[f"write_pictures_per_s_{store}"] = FLOOR_PICTURES / statistics.median(seconds)
        shutil.rmtree(folder)
    return figures


def bench_speedup(annotations: dataset.Annotations, scratch: Path) -> dict[str, Any]:
    """Write with one worker and with two; enough that starting a process does not count."""
    folder = planned(resampled(annotations, SPEEDUP_PICTURES), scratch / "speedup", "source")
    one, two = write(folder, 1), write(folder, 2)
    shutil.rmtree(folder)
    return {"two_worker_speedup": one / two, "two_worker_pictures_per_s": SPEEDUP_PICTURES / two}


def bench_bytes(annotations: dataset.Annotations, scratch: Path) -> dict[str, Any]:
    """Write each picture of the data set once in both stores, for the bytes of the shards."""
    figures, sizes = {}, {}
    for store in ("canvas", "source"):
        folder = planned(annotations, scratch / f"bytes-{store}", store)
        write(folder, 1)
        manifest = shards.read_manifest(open_folder(folder / "shards/positive"))
        sizes[store] = sum(shard.bytes for shard in manifest.shards)
        figures[f"kb_per_chip_{store}"] = sizes[store] / manifest.counts["chips"] / 1e3
    return {**figures, "source_bytes_vs_canvas": sizes["source"] / sizes["canvas"]}


WRITE = (
    "from chipgen.__main__ import main; "
    "main(['write', sys.argv[1], '--workers', '1', '--part', '0/1'])"
)


def bench_memory(annotations: dataset.Annotations, scratch: Path) -> dict[str, Any]:
    """Take the peak memory of a worker that writes 300 and 3,000 pictures."""
    peaks = {}
    for pictures in (300, 3000):
        drawn = resampled(annotations, pictures)
        folder = planned(drawn, scratch / f"memory{pictures}", "canvas")
        _, peaks[pictures] = in_process(WRITE, folder)
        shutil.rmtree(folder)
    return {
        "worker_peak_mb": peaks[3000],
        "worker_peak_mb_300_pictures": peaks[300],
        "worker_peak_growth": peaks[3000] / peaks[300],
    }


def report(figures: dict[str, Any]) -> dict[str, Any]:
    """Print figures as rows of a table, and hand them on."""
    for key, value in figures.items():
        print(f"{key:<32}{value if isinstance(value, str) else f'{value:,.3f}'}", flush=True)
    return figures


if __name__ == "__main__":
    main()
