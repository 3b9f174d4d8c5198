"""How chip generation and training scale: a table for data sets that are not at hand, and a trial.

    python scripts/scale.py                         # core-hours, bytes, files and memory, on paper
    python scripts/scale.py --simulate 10000000     # plan and order made-up pictures; with limits

The table measures its rates on made-up pictures, or takes what writing costs from the file of `make
bench-chips`, and takes all pictures to be such as COCO's. The trial runs the planner, the trainer's
index and two epochs' order in processes of their own, and exits with 1 where one takes more than
MEMORY_LIMIT or TIME_LIMIT.
"""

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from reckon import BOXES, MEMORY_LIMIT, NEGATIVES, Rates, on_paper

from chipgen import codec, dataset, pipeline, run, shards
from chipgen.dataset import PICTURES, REJECTS, Annotations
from chipgen.sealed import encode_json
from chipgen.shards import Manifest
from chipgen.storage import digest_of, open_folder
from chipgen.tables import create_table, open_table

TIME_LIMIT = 600.0  # s
PART = 100_000  # made-up pictures that come at a time, as from a json of such a size
BATCH = 128
SEED = 0
CLASSES = tuple(f"class {i}" for i in range(80))
SIZES = np.array([(640, 480), (480, 640), (640, 427), (500, 375), (640, 640)])  # px


def main() -> int:
    """Print the table, or run the trial."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--simulate", type=int, metavar="N", help="made-up pictures to try it with")
    parser.add_argument("--scratch", default=".", help="where files may lie for a while")
    parser.add_argument(
        "--rates", type=Path, default=Path("runs/bench/chips.json"), help="file of make bench-chips"
    )
    parser.add_argument("--cores", type=int, default=64, help="of a node (default: %(default)s)")
    parser.add_argument("--gpus", type=int, default=8, help="of a node (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="json file to write as well")
    parser.add_argument("--step", choices=sorted(STEPS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.step:
        print(json.dumps(STEPS[args.step](args.folder, args.simulate)))
        return 0
    if args.simulate:
        found = trial(args.simulate, args.scratch)
    else:
        with tempfile.TemporaryDirectory(dir=args.scratch, prefix="scale-") as folder:
            found = on_paper(rates(Path(folder), args.rates), args.cores, args.gpus)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_bytes(encode_json(found))
    return int(any(one["over"] for one in found["steps"].values())) if args.simulate else 0


def trial(pictures: int, scratch: str) -> dict[str, Any]:
    """Plan made-up pictures, index their chips and make two epochs' order."""
    steps: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=scratch, prefix="scale-") as folder:
        for step, told in STEPS_TOLD.items():
            found = in_process(step, folder, pictures)
            found["over"] = step in LIMITED and (
                found["peak"] > MEMORY_LIMIT or found["seconds"] > TIME_LIMIT
            )
            steps[step] = found
            mark = f"  over {MEMORY_LIMIT / 1e9:g} GB or {TIME_LIMIT:g} s" * found["over"]
            facts = ", ".join(f"{value:,} {key}" for key, value in found["facts"].items())
            print(
                f"{told:<34}{found['seconds']:8.1f} s{found['peak'] / 1e9:8.2f} GB  {facts}{mark}",
                flush=True,
            )
    return {"pictures": pictures, "steps": steps}


STEPS_TOLD = {
    "plan": "plan, annotations to Parquet",
    "index": "(the index of chips, made up)",
    "map": "trainer's index, laid out to map",
    "order": "order of two epochs",
}
LIMITED = ("plan", "map", "order")


def in_process(step: str, folder: str, pictures: int) -> dict[str, Any]:
    """Run a step in a fresh process: seconds with its start, peak memory, and what it made."""
    command = [sys.executable, __file__, "--step", step, "--folder", folder]
    start = time.perf_counter()
    done = subprocess.run(
        [*command, "--simulate", str(pictures)], stdout=subprocess.PIPE, text=True, check=True
    )
    seconds = time.perf_counter() - start
    return {"seconds": seconds, **json.loads(done.stdout.splitlines()[-1])}


def peak() -> int:
    """Give the most memory that this process has held, in bytes; mapped files count."""
    # not getrusage: its peak starts from that of the process that forked this one
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def made_up(pictures: int) -> Iterator[Annotations]:
    """Draw pictures with boxes such as COCO's, some at a time."""
    for first in range(0, pictures, PART):
        yield made_up_part(first, min(PART, pictures - first))


def made_up_part(first: int, count: int) -> Annotations:
    """Draw the pictures with ids from first + 1 on: number, size and place of boxes by chance."""
    rng = np.random.default_rng((SEED, first))
    sizes = SIZES[rng.integers(0, len(SIZES), count)]
    boxes_of = np.where(rng.random(count) < 0.01, 0, rng.geometric(1 / BOXES, count))
    picture = np.repeat(np.arange(count), boxes_of)
    n = len(picture)
    side = np.exp(rng.normal(np.log(45), 1.2, n))[:, None]
    stretch = np.exp(rng.normal(0, 0.4, n))[:, None]
    limits = sizes[picture]
    extent = np.clip(side * np.concatenate([stretch, 1 / stretch], axis=1), 2, limits)
    corner = (limits - extent) * rng.random((n, 2))
    ids = first + 1 + np.arange(count)
    columns = [ids, ["train"] * count, np.zeros(count), [f"{i:012d}.jpg" for i in ids.tolist()],
               *sizes.T]  # fmt: skip
    return Annotations(
        pictures=pa.Table.from_arrays(
            [pa.array(c, f.type, safe=False) for c, f in zip(columns, PICTURES, strict=True)],
            schema=PICTURES,
        ),
        offsets=np.concatenate([[0], np.cumsum(boxes_of)]),
        boxes=np.concatenate([corner, corner + extent], axis=1).astype(np.float32),
        labels=rng.integers(0, len(CLASSES), n).astype(np.int32),
        crowd=rng.random(n) < 0.01,
        annotation_ids=first * 1000 + np.arange(n),
        classes=CLASSES,
        roots=("/made/up",),
        rejects=REJECTS.empty_table(),
        listed={"pictures": count, "annotations": n, "clipped": 0},
    )


def step_plan(folder: str, pictures: int) -> dict[str, Any]:
    """Plan, as `python -m chipgen plan` does once it has read."""
    place = open_folder(folder)
    run.save_plan(place, "made up", made_up(pictures), run.load_recipe("sniper"))
    names = {"pictures": "pictures", "boxes": "boxes", "positive": "chips"}
    counts = {
        told: open_table(place.sub("plan"), f"{name}.parquet").metadata.num_rows
        for name, told in names.items()
    }
    return {"peak": peak(), "facts": counts}


def step_index(folder: str, pictures: int) -> dict[str, Any]:
    """Write indexes and manifests as if the plan's chips, and negatives, were in shards."""
    place, rows = open_folder(folder), 0
    record = run.read_record(place)
    per_shard = run.recipe_of(record).shards.chips_per_shard
    positive = open_table(place.sub("plan"), "positive.parquet").iter_batches(1 << 17)
    columns = ["picture_id", "level", "width", "height", "round", "rounds", "x", "y"]
    positives = (pa.Table.from_batches([batch]).select(columns) for batch in positive)
    for kind, tables in (("positive", positives), ("negative", negatives(pictures))):
        home = place.sub(f"shards/{kind}")
        with create_table(home, shards.INDEX, shards.INDEX_SCHEMA) as sink:
            for table in tables:
                sink.add(indexed(table, kind, sink.rows, per_shard))
            rows += sink.rows
        manifest = Manifest(
            format=shards.FORMAT, kind=kind, commit=None, recipe=record.recipe, recipe_hash="",
            content_hash="", classes=list(CLASSES), counts={}, shards=[],
            index_sha256=digest_of(home, shards.INDEX), rejects_sha256="",
        )  # fmt: skip
        home.write(shards.MANIFEST, encode_json(manifest))
    size = sum(place.sub(f"shards/{k}").size(shards.INDEX) for k in ("positive", "negative"))
    return {"peak": peak(), "facts": {"chips": rows, "MB": round(size / 1e6)}}


def negatives(pictures: int) -> Iterator[pa.Table]:
    """Make up negatives, of as many rounds as there are of a picture."""
    for first in range(0, pictures, PART):
        ids = np.repeat(np.arange(first, min(first + PART, pictures)) + 1, NEGATIVES)
        turn = np.arange(len(ids)) % NEGATIVES
        plain = {name: np.full(len(ids), 512) for name in ("width", "height")}
        places = {"x": turn * 32, "y": ids % 64, "level": turn}
        yield pa.table({"picture_id": ids, **plain, **places, "round": turn,
                        "rounds": np.full(len(ids), NEGATIVES)})  # fmt: skip


def indexed(chips: pa.Table, kind: str, first: int, per_shard: int) -> pa.Table:
    """Make rows of an index of chips, as if each had 43 KB."""
    columns = {name: chips[name].to_numpy() for name in chips.column_names}
    places = first + np.arange(chips.num_rows)
    rows = zip(*(columns[k].tolist() for k in ("picture_id", "level", "x", "y", "round")),
               strict=True)  # fmt: skip
    mixed = (places * 2654435761) % 2**32  # no pattern that would compress
    table = {
        "key": [f"train-{i}-{kind[0]}{level}-{x}-{y}-{turn}" for i, level, x, y, turn in rows],
        "shard": [shards.shard_name(kind, n) for n in (places // per_shard).tolist()],
        "offset": places % per_shard * 43_008 + mixed % 40_000 // 512 * 512,
        "length": 20_480 + mixed % 46_080 // 512 * 512,
        "crc32": mixed.astype(np.uint32),
        "kind": [kind] * len(places),
        **{k: columns[k] for k in ("picture_id", "level", "width", "height", "round", "rounds")},
    }
    return pa.table({name: table[name] for name in shards.INDEX_SCHEMA.names}).cast(
        shards.INDEX_SCHEMA
    )


def step_map(folder: str, pictures: int) -> dict[str, Any]:
    """Lay the index out, as the first process of a training does."""
    from train.index import find_sets, open_index

    del pictures
    index = open_index(find_sets(f"{folder}/shards"))
    size = Path(index.path).stat().st_size
    return {"peak": peak(), "facts": {"chips": len(index), "MB": round(size / 1e6)}}


def step_order(folder: str, pictures: int) -> dict[str, Any]:
    """Make the order of two epochs over the mapped index, and walk over all batches."""
    from train.index import find_sets, open_index
    from train.order import Order, from_place

    del pictures
    order = Order(open_index(find_sets(f"{folder}/shards")), BATCH, SEED)
    batches = sum(1 for _ in from_place(order, 0, 0, 2))
    return {"peak": peak(), "facts": {"batches": batches}}


def rates(folder: Path, measured: Path) -> Rates:
    """Measure the rates in core-seconds, which do not depend on what else a machine does."""
    place = open_folder(folder)
    recipe = run.load_recipe("sniper")
    run.save_plan(place.sub("compiled"), "rates", made_up(100), recipe)
    part = made_up_part(0, TRIED)
    plan_s = core_seconds(lambda: run.save_plan(place, "rates", [part], recipe))
    step_index(str(folder), TRIED)
    indexed, mapped = step_map(str(folder), TRIED)["facts"], folder / "shards"
    homes = [place.sub(f"shards/{kind}") for kind in ("positive", "negative")]
    (map_file,) = mapped.glob("index-*.map")
    text = json.dumps(as_json(part)).encode()
    place.write("annotations/instances_train.json", text)
    place.write(f"train/{part.pictures['file'][0]}", b"")  # that the folder is not the wrong one
    read_s = core_seconds(lambda: list(dataset.parts(str(folder), ["train"])))
    plan_files = [path.stat().st_size for path in (folder / "plan").iterdir()]
    positive = open_table(place.sub("plan"), "positive.parquet").metadata.num_rows
    if measured.is_file():
        known = json.loads(measured.read_text())
        source, write_s = str(measured), 1 / known["write_pictures_per_s_source"]
        chip_bytes = known["kb_per_chip_source"] * 1e3
    else:
        source, write_s, chip_bytes = rates_of_writing(folder / "pictures", recipe)
    arrays = [part.boxes, part.labels, part.crowd, part.annotation_ids, part.offsets]
    return Rates(
        source=source,
        read=read_s / TRIED,
        plan=plan_s / TRIED,
        write=write_s,
        chips=positive / TRIED,
        chip_bytes=chip_bytes,
        json_bytes=len(text) / TRIED,
        plan_bytes=sum(plan_files) / TRIED,
        index_bytes=sum(home.size(shards.INDEX) for home in homes) / indexed["chips"],
        map_bytes=map_file.stat().st_size / indexed["chips"],
        held_bytes=(sum(a.nbytes for a in arrays) + part.pictures.nbytes) / TRIED,
    )


def core_seconds(call: Callable[[], Any]) -> float:
    """Give the processor time that a call takes, of all threads."""
    start = time.process_time()
    call()
    return time.process_time() - start


def as_json(part: Annotations) -> dict[str, Any]:
    """Write annotations as COCO's json has them."""
    sizes = zip(part.picture_ids.tolist(), part.pictures["file"].to_pylist(),
                part.widths.tolist(), part.heights.tolist(), strict=True)  # fmt: skip
    boxes = part.boxes.astype(float).round(2)
    boxes[:, 2:] -= boxes[:, :2]
    of_picture = part.picture_ids[part.picture_of_box].tolist()
    of_box = zip(part.annotation_ids.tolist(), of_picture, boxes.tolist(),
                 part.labels.tolist(), part.crowd.tolist(), strict=True)  # fmt: skip
    return {
        "images": [dict(zip(("id", "file_name", "width", "height"), one, strict=True))
                   for one in sizes],
        "annotations": [
            {"id": i, "image_id": picture, "bbox": [round(v, 2) for v in box],
             "category_id": label, "iscrowd": int(crowd), "area": round(box[2] * box[3], 2)}
            for i, picture, box, label, crowd in of_box
        ],
        "categories": [{"id": i, "name": name} for i, name in enumerate(part.classes)],
    }  # fmt: skip


def rates_of_writing(folder: Path, recipe: run.Recipe) -> tuple[str, float, float]:
    """Write chips of drawn pictures: where from, core-s a picture, bytes a chip."""
    part = made_up_part(0, DRAWN)
    rng = np.random.default_rng(SEED)
    place = open_folder(folder)
    for name, width, height in zip(
        part.pictures["file"].to_pylist(), part.widths.tolist(), part.heights.tolist(), strict=True
    ):
        place.write(name, codec.encode_jpeg(drawn_pixels(rng, width, height), 90))
    part = dataclasses.replace(part, roots=(str(folder.absolute()),))
    target = open_folder(folder / "run")
    record = run.save_plan(target, "rates", [part], recipe)
    job = pipeline.open_job(target, "positive", record, recipe)

    def write() -> None:
        for _ in pipeline.write_groups(job, range(len(job.groups)), lambda pictures: None):
            pass

    write()  # compiles
    seconds = core_seconds(write)
    manifest = pipeline.finish(job)
    size = sum(shard.bytes for shard in manifest.shards)
    return "made-up pictures", seconds / DRAWN, size / manifest.counts["chips"]


def drawn_pixels(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """Draw noise of all sizes, the larger the stronger, as pictures have it: packed, (H, W)."""
    pixels = np.full((height, width, 3), 128.0)
    for cell in (2, 4, 8, 16, 32, 64, 128):
        coarse = rng.normal(0, 1.5 * cell**0.6, (height // cell + 2, width // cell + 2, 3))
        pixels += coarse.repeat(cell, axis=0).repeat(cell, axis=1)[:height, :width]
    return codec.pack(np.clip(pixels, 0, 255).astype(np.uint8))


TRIED = 20_000  # made-up pictures that are planned for the rates
DRAWN = 60  # pictures that are drawn for the rates, and written
STEPS = {"plan": step_plan, "index": step_index, "map": step_map, "order": step_order}

if __name__ == "__main__":
    sys.exit(main())
