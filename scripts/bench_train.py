"""Measure the trainer against its limits, in one run, and write the figures as json.

Loader: chips of 512 px from two workers against the decode floor (the same decode calls alone, in
as many processes) and against a plain webdataset pipeline over the same shards. Step: the training
loop, without waiting for data, against the network floor (forward and backward on the same
canvases with labels, proposals and RoIs already there). Epochs: the same pictures by SNIPER, SNIP,
multi-scale and single-scale training in this trainer, and by torchvision's Faster R-CNN.
"""

import argparse
import dataclasses
import functools
import json
import multiprocessing as mp
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import simplejpeg
import torch
import torchvision
import webdataset

from chipgen import dataset, pipeline, pool, run, shards
from chipgen.arguments import split_names
from chipgen.storage import LocalFolder, open_folder
from chipgen.tables import read_table
from train import loop, settings
from train.index import Index, find_sets, open_index
from train.memory import keep_freed
from train.order import Order
from train.precision import mixed, precision_of
from train.processes import Processes, device_name, joined
from train.stream import ChipReader, Loaded, Stream

LOADER_PICTURES, LOADER_BATCH, WORKERS = 160, 16, 2
LOADER_EPOCHS = 3
STEPS = 12  # measured, after as many to warm up
TURNS = 3
STRATEGIES = {"sniper": 4, "snip": 1, "multiscale": 1, "single": 1}  # chips in a batch
EPOCH_PICTURES, EPOCH_PICTURES_CPU = 64, 6
SINGLE = 800, 1333  # short side and longest, of torchvision's reference


def main() -> None:
    """Run all measurements."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="data set of real or embedded pictures")
    parser.add_argument("--split", default="train", help="splits to take pictures from")
    parser.add_argument("--out", type=Path, required=True, help="json file to write")
    args = parser.parse_args()
    keep_freed()  # as the trainer does
    annotations = dataset.read(args.data, split_names(args.split))
    figures: dict[str, Any] = {}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.out.parent) as scratch, joined() as processes:
        on_gpu = processes.device.type == "cuda"
        net = "coco-r50" if on_gpu else "scenes-small"
        parts: list[Callable[[], dict[str, Any]]] = [
            lambda: {"device": device_name(processes.device), "recipe": net},
            lambda: bench_loader(annotations, Path(scratch)),
            lambda: bench_step(annotations, Path(scratch), net, processes),
            lambda: bench_epochs(annotations, Path(scratch), processes),
            lambda: bench_torchvision(annotations, Path(scratch), processes),
        ]
        if on_gpu:
            parts.append(lambda: bench_largest(annotations, Path(scratch), net, processes))
        for part in parts:
            found = part()
            for name, value in found.items():
                print(f"{name:36}{value:,.3f}" if isinstance(value, float) else f"{name:36}{value}")
            figures |= found
            args.out.write_text(json.dumps(figures, indent=1) + "\n")


def written(annotations: dataset.Annotations, folder: Path, recipe: str, *overrides: str) -> Index:
    """Write the positive shards of a recipe, and open their index."""
    chosen = run.load_recipe(recipe, overrides)
    target = open_folder(folder)
    record = run.save_plan(target, "bench", [annotations], chosen)
    job = pipeline.open_job(target, "positive", record, chosen)
    pool.run(job, pipeline.unfinished_groups(job), WORKERS, lambda pictures: None)
    pipeline.finish(job)
    return open_index(find_sets(f"{folder}/shards"))


def bench_loader(annotations: dataset.Annotations, scratch: Path) -> dict[str, Any]:
    """Read all chips, stored as 512x512 canvases, by each of the ways in turn."""
    rows = range(min(LOADER_PICTURES, len(annotations.picture_ids)))
    index = written(
        annotations.take(list(rows)), scratch / "loader", "sniper", "shards.store=canvas"
    )
    folder = LocalFolder(scratch / "loader/shards/positive")
    jpegs = [jpg for _, jpg, _ in shards.read_samples(folder, read_table(folder, shards.INDEX))]
    floors, ours, plain = [], [], []
    for _ in range(TURNS):
        floors.append(decode_floor(jpegs))
        ours.append(our_loader(index))
        plain.append(plain_webdataset(sorted(map(str, folder.path.glob("*/*.tar")))))
    return {
        "loader_chips_per_s": 1 / statistics.median(ours),
        "loader_time_vs_floor": statistics.median(a / b for a, b in zip(ours, floors, strict=True)),
        "loader_time_vs_webdataset": statistics.median(
            a / b for a, b in zip(ours, plain, strict=True)
        ),
        "webdataset_time_vs_floor": statistics.median(
            a / b for a, b in zip(plain, floors, strict=True)
        ),
    }


def decode_floor(jpegs: list[bytes]) -> float:
    """Decode all chips in as many processes as the loader has workers; s a chip."""
    context = mp.get_context("fork")
    start, done = context.Barrier(WORKERS + 1), context.Barrier(WORKERS + 1)

    def decode(part: int) -> None:
        start.wait()
        for _ in range(LOADER_EPOCHS):
            for jpg in jpegs[part::WORKERS]:
                simplejpeg.decode_jpeg(jpg, "RGB")
        done.wait()

    workers = [context.Process(target=decode, args=(part,)) for part in range(WORKERS)]
    for worker in workers:
        worker.start()
    start.wait()
    begin = time.perf_counter()
    done.wait()
    seconds = time.perf_counter() - begin
    for worker in workers:
        worker.join()
    return seconds / (LOADER_EPOCHS * len(jpegs))


def our_loader(index: Index) -> float:
    """Take every batch of some epochs; s a chip."""
    order = Order(index, LOADER_BATCH, 0)
    reader = ChipReader(index, 0, 0, 1, "stop")
    stream = Stream(reader, order, (0, 0), LOADER_EPOCHS, WORKERS, pin=False, holds=1)
    return per_chip(len(loaded.pixels) for loaded in stream)


def plain_webdataset(tars: list[str]) -> float:
    """Shuffle, decode and batch as webdataset's own pages show it; s a chip."""
    pages = webdataset.WebDataset(tars, shardshuffle=len(tars), empty_check=False)
    batches = pages.shuffle(1000).decode("torchrgb8").to_tuple("jpg", "json")
    loader = webdataset.WebLoader(
        batches.batched(LOADER_BATCH, collation_fn=list), batch_size=None, num_workers=WORKERS
    )
    return per_chip(len(batch) for _ in range(LOADER_EPOCHS) for batch in loader)


def per_chip(counts) -> float:
    """Time what a loader gives from its first batch on, s a chip: starting workers is left out."""
    counts = iter(counts)
    next(counts)
    begin, chips = time.perf_counter(), 0
    for count in counts:
        chips += count
    return (time.perf_counter() - begin) / chips


def of(recipe: str, *overrides: str) -> settings.Recipe:
    """Load a recipe for measuring: random weights, no checkpoints, each step logged.

    On the CPU without deformable convolutions, for which torchvision has no fast kernel there.
    """
    quiet = ("train.log_every=1", "train.checkpoint_every=1000000", "train.workers=0")
    if not torch.cuda.is_available():
        quiet += ("model.deformable=false",)
    return settings.load_recipe(recipe, ['model.weights=""', *quiet, *overrides])


def trained(index: Index, recipe: settings.Recipe, processes: Processes) -> list[dict[str, Any]]:
    """Run the training loop itself; gives its log."""
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.object(loop, "Taker", functools.partial(Settled, processes)),
    ):
        loop.train(LocalFolder(folder), index, recipe, {}, processes, None)
        return [json.loads(line) for line in (Path(folder) / "log.jsonl").read_text().splitlines()]


class Settled(loop.Taker):
    """Waits for the device before it waits for data, or both would count as waiting for data."""

    def __init__(self, processes: Processes, batches: Iterator[Loaded]):
        super().__init__(batches)
        self._processes = processes

    def take(self, count: int) -> list[Loaded]:
        """Take batches once the step before is over."""
        finish(self._processes)
        return super().take(count)


def seconds(entry: dict[str, Any], batch: int) -> float:
    """Give how long a step took, without waiting for data."""
    return batch / entry["chips_per_s"] * (1 - entry["waiting_share"])


def bench_step(
    annotations: dataset.Annotations, scratch: Path, net: str, processes: Processes
) -> dict[str, Any]:
    """Time the loop's steps, and the network alone on the same canvases."""
    index = written(annotations, scratch / "step", net)
    recipe = of(net, "train.epochs=1", f"train.log_every={STEPS}", *step_batch(processes))
    batch = recipe.train.batch
    ratios, steps = [], []
    for _ in range(TURNS):
        floor = network_floor(index, recipe, processes)
        log = trained(short(index, 2 * STEPS * batch), recipe, processes)
        steps.append(seconds(log[1], batch))  # the entry before is of the steps that warm up
        ratios.append(steps[-1] / floor)
    return {
        "step_batch": batch,
        "step_ms": 1e3 * statistics.median(steps),
        "step_time_vs_floor": statistics.median(ratios),
        "chips_per_s": batch / statistics.median(steps),
        "memory_mb_per_chip": log[-1]["memory_mb"] / batch,
        "collage_time_vs_regular": bench_collage(index, recipe, processes),
    }


def bench_collage(index: Index, recipe: settings.Recipe, processes: Processes) -> float:
    """Compare steps on collages of 4 batches with steps on one, data already there."""
    batch, times = recipe.train.batch, {}
    for mode in ("never", "all"):
        feedback = dataclasses.replace(recipe.feedback, mode=mode)
        chips = batch * STEPS * (2 if mode == "never" else 8)
        log = trained(
            short(index, chips), dataclasses.replace(recipe, feedback=feedback), processes
        )
        taken = batch if mode == "never" else 4 * batch
        times[mode] = seconds(log[1], taken)
    return times["all"] / times["never"]


def step_batch(processes: Processes) -> tuple[str, ...]:
    """Give the batch to measure: the recipe's on the CPU, 20 chips (as the papers) on a GPU."""
    return ("train.batch=20",) if processes.device.type == "cuda" else ()


def short(index: Index, chips: int) -> Index:
    """Keep the first chips of an index, over and over where there are too few."""
    import numpy as np

    rows = np.arange(chips) % len(index)
    columns = {name: values[rows] for name, values in index.columns.items()}
    return dataclasses.replace(
        index,
        keys=index.keys.take(rows),
        set_of=index.set_of[rows],
        shard_of=index.shard_of[rows],
        columns=columns,
    )


def network_floor(index: Index, recipe: settings.Recipe, processes: Processes) -> float:
    """Time forward and backward with everything else already there; s a step."""
    model, _ = loop.build(recipe, index.classes, processes)
    order = Order(index, recipe.train.batch, 0)
    stream = iter(Stream(ChipReader(index, 0, 0, 1, "stop"), order, (0, 0), 1, 0, False))
    precision = precision_of(recipe.train, processes.device)
    ready = []
    for _ in range(4):
        canvases, targets = loop.draw([next(stream)], recipe, processes.device)
        with torch.no_grad(), mixed(precision, processes.device):
            maps = model.backbone(canvases)
            labels = model.label(maps, *model.rpn(maps[0]), targets)
        ready.append((canvases, targets, labels))
    times = []
    for turn in range(2 * STEPS):
        canvases, targets, labels = ready[turn % len(ready)]
        model.zero_grad()
        finish(processes)
        begin = time.perf_counter()
        with mixed(precision, processes.device):
            maps = model.backbone(canvases)
            logits, offsets = model.rpn(maps[0])
            found = model.losses(maps, logits, offsets, targets, labels, 32.0)
        found.of_canvas.sum().backward()
        finish(processes)
        times.append(time.perf_counter() - begin)
    return statistics.median(times[STEPS:])


def finish(processes: Processes) -> None:
    """Wait until the device has nothing left to do."""
    if processes.device.type == "cuda":
        torch.cuda.synchronize()


def bench_epochs(
    annotations: dataset.Annotations, scratch: Path, processes: Processes
) -> dict[str, Any]:
    """Train coco-r50 for one epoch of the same pictures by each strategy."""
    count = EPOCH_PICTURES if processes.device.type == "cuda" else EPOCH_PICTURES_CPU
    chosen = annotations.take(list(range(min(count, len(annotations.picture_ids)))))
    times = {}
    for strategy, batch in STRATEGIES.items():
        index = written(chosen, scratch / f"epoch-{strategy}", strategy)
        recipe = of("coco-r50", "train.epochs=1", f"train.batch={batch}")
        log = trained(index, recipe, processes)
        # the first step warms up; what less than a batch leaves out is added in proportion
        times[strategy] = statistics.fmean(seconds(e, batch) for e in log[1:]) * len(index) / batch
    return {
        **{f"epoch_s_{name}": value for name, value in times.items()},
        **{
            f"epoch_time_sniper_vs_{name}": times["sniper"] / times[name]
            for name in ("snip", "multiscale", "single")
        },
    }


def bench_torchvision(
    annotations: dataset.Annotations, scratch: Path, processes: Processes
) -> dict[str, Any]:
    """Compare an epoch of coco-r50 by chips with one of torchvision's detector by pictures."""
    on_gpu = processes.device.type == "cuda"
    pictures, batch = (24, 8) if on_gpu else (4, 2)
    chosen = annotations.take(list(range(pictures)))
    index = written(chosen, scratch / "torchvision", "coco-r50")
    recipe = of("coco-r50", "train.epochs=1", f"train.batch={batch}")
    log = trained(index, recipe, processes)
    ours = statistics.median(seconds(e, batch) for e in log[1:]) / batch * len(index) / pictures
    model = torchvision.models.detection.fasterrcnn_resnet50_fpn(
        weights=None, weights_backbone=None, min_size=SINGLE[0], max_size=SINGLE[1]
    ).to(processes.device)
    optimizer = torch.optim.SGD(model.parameters(), 1e-4, 0.9)
    precision = precision_of(recipe.train, processes.device)
    times = []
    for _ in range(4):
        images = [torch.rand(3, 480, 640, device=processes.device) for _ in range(2)]
        boxes = torch.tensor([[50.0, 60.0, 150.0, 200.0]] * 7, device=processes.device)
        boxes = boxes + torch.arange(7, device=processes.device)[:, None] * 20
        labels = torch.arange(7, device=processes.device)
        begin = time.perf_counter()
        with mixed(precision, processes.device):
            found = model(images, [{"boxes": boxes, "labels": labels}] * 2)
        optimizer.zero_grad()
        sum(found.values()).backward()
        optimizer.step()
        finish(processes)
        times.append((time.perf_counter() - begin) / len(images))
    theirs = statistics.median(times[1:])
    return {
        "s_per_picture_coco_r50_chips": ours,
        "s_per_picture_torchvision": theirs,
        "epoch_time_sniper_vs_torchvision": ours / theirs,
    }


def bench_largest(
    annotations: dataset.Annotations, scratch: Path, net: str, processes: Processes
) -> dict[str, Any]:
    """Double the chips of a pass until the device has no memory left."""
    index = open_index(find_sets(f"{scratch}/step/shards"))
    batch = 20
    while True:
        recipe = of(net, "train.epochs=1", f"train.batch={2 * batch}")
        try:
            trained(short(index, 4 * batch), recipe, processes)
        except RuntimeError as error:  # libraries on the device tell of it in words of their own
            return {"largest_batch": batch, "beyond_it": str(error).partition("\n")[0]}
        batch *= 2


if __name__ == "__main__":
    main()
