"""The training loop: batches in, checkpoints and a log out.

b canvases of this process, k chips of a canvas; "global" means of all processes.
"""

import contextlib
import inspect
import itertools
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from chipgen.errors import Refusal
from chipgen.storage import LocalFolder
from train import checkpoint, inherit, losses, warp
from train.detector import norms
from train.detector.model import Detector
from train.feedback import Feedback
from train.index import Index
from train.journal import Journal
from train.meter import Meter
from train.order import Order
from train.precision import mixed, precision_of
from train.processes import Processes, Stop
from train.schedule import rate
from train.settings import FREE, Recipe, TrainSettings
from train.stream import ChipReader, Loaded, Stream
from train.warp import Targets
from train.watch import COMPUTING, LOADING, SAVING, WAITING, Watch

FINISHED, STOPPED = "finished", "stopped"


def train(
    folder: LocalFolder,
    index: Index,
    recipe: Recipe,
    about: dict[str, Any],
    processes: Processes,
    state: dict[str, Any] | None,
) -> str:
    """Train to the end, or to a signal; returns which. `about` goes into each checkpoint."""
    settings, device = recipe.train, processes.device
    order = Order(index, settings.batch, settings.seed)
    model, network = build(recipe, index.classes, processes, inherits=state is None)
    optimizer = torch.optim.SGD(
        model.parameters(),
        settings.lr,
        settings.momentum,
        weight_decay=settings.weight_decay,
        fused=True,
    )
    average = copied(model) if settings.ema else {}
    feedback = Feedback(recipe.feedback, settings.seed)
    step, place = 0, (0, 0)
    if state:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        average = {name: value.to(device) for name, value in state["average"].items()}
        feedback.last, step, place = state["feedback"], state["step"], tuple(state["place"])

    def save(done: bool = False) -> None:
        require_finite(model, step)
        if processes.rank == 0:
            kept = {
                "model": model.state_dict(),
                "average": average,
                "optimizer": optimizer.state_dict(),
                "feedback": feedback.last,
                "step": step,
                "place": list(place),
                "done": done,
                **about,
            }
            checkpoint.save(folder.sub("checkpoints"), kept, settings.keep)

    reader = ChipReader(index, settings.seed, processes.rank, processes.world, settings.on_broken)
    pin = device.type == "cuda"
    holds = recipe.feedback.parts + 1
    stream = Stream(reader, order, place, settings.length, settings.workers, pin, holds)
    meter = Meter(processes)
    with (
        Stop() as stop,
        Watch(processes, settings.patience) as watch,
        contextlib.closing(iter(stream)) as loaded,
        opened_journal(folder, step, order, place, settings, processes) as journal,
    ):
        batches, ended = Taker(loaded), FINISHED
        watch.at(step, LOADING)
        while taken := batches.take(feedback.parts(step)):
            watch.at(step, COMPUTING)
            waited = batches.waited
            epoch, number = taken[0].planned.epoch, taken[0].planned.number
            lr = rate(settings, epoch + number / order.length(epoch))
            for group in optimizer.param_groups:
                group["lr"] = lr
            canvases, targets = draw(taken, recipe, device)
            count = chips_in(taken, canvases)  # global

            optimizer.zero_grad()
            report, of_canvas = torch.zeros(meter.width, device=device), []
            fewest = fewest_canvases(taken, count, processes.world)
            for piece, aims, last in passes(canvases, targets, settings, fewest):
                with contextlib.nullcontext() if last else unsynchronised(network):
                    with mixed(precision_of(settings, device), device):
                        found = network(piece, aims, recipe.feedback.small)
                    report += meter.of(found)
                    of_canvas.append(found.of_canvas.detach())
                    if last:
                        report[-2] = sum(len(loaded.broken) for loaded in taken)
                        report[-1] = stop.signal is not None
                        arriving = meter.fetch(processes.sum(report))
                    # DDP takes the mean over processes; this makes it the mean over all canvases
                    (found.of_canvas.sum() * (processes.world / count)).backward()
            told = arriving()  # waits for the forward passes; the device is still on its way back
            if not told.finite:
                raise Refusal(not_finite(torch.cat(of_canvas), taken, index, step))
            if settings.clip:
                nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
            optimizer.step()
            if average:
                follow(average, model, settings.ema, step)

            step += 1
            place = order.after(taken[-1].planned)
            feedback.tell(told.shares)
            meter.add(told, taken, count, waited)
            saves = step % settings.checkpoint_every == 0
            ends = told.stop or place[0] >= settings.length
            if journal:
                journal.advance(len(taken))
                # with each checkpoint, so that what goes on from it leaves no gap
                if saves or ends or step % settings.log_every == 0:
                    through = epoch_after(taken[-1], order)
                    journal.write({"step": step, "epoch": through, "lr": lr, **meter.entry()})
            if told.stop:
                ended = STOPPED
                break
            if saves:
                watch.at(step, SAVING)
                save()
            watch.at(step, LOADING)
        watch.at(step, SAVING)
        save(done=ended == FINISHED)
        watch.at(step, WAITING)
        processes.any(False)  # all leave together: srun kills who is left when one ends with 75
    return ended


def build(
    recipe: Recipe, classes: Sequence[str], processes: Processes, inherits: bool = True
) -> tuple[Detector, nn.Module]:
    """Make the detector, the same on every process, and what distributes it.

    It has the weights that the recipe names if it `inherits`: a checkpoint has its own.
    """
    settings, device = recipe.train, processes.device
    group = norms.groups_of(recipe.model.norm_processes)
    torch.manual_seed(settings.seed)
    another = None
    if inherits:
        another = processes.on_first(lambda: inherit.read(recipe.model, settings.task))
    others = processes.any(another is not None)
    weights = recipe.model.weights if inherits and not others else ""
    model = Detector(
        replace(recipe.model, weights=weights),
        recipe.labels,
        0 if settings.task == "rpn" else len(classes),
        norms.choose(recipe.model.norm, group, device),
    )
    wide = torch.float64 if settings.precision == "fp64" else torch.float32
    model = model.to(device, wide, memory_format=torch.channels_last)
    if others:
        inherit.begin(model, another, tuple(classes), processes)
    if settings.compile:
        model.backbone.compile()
    if processes.world == 1:
        return model, model
    # running statistics are of each process or of all: nothing to hand round
    known = inspect.signature(DistributedDataParallel).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    return model, DistributedDataParallel(model, **{name: False})


def draw(taken: list[Loaded], recipe: Recipe, device: torch.device) -> tuple[torch.Tensor, Targets]:
    """Turn loaded batches into one batch of canvases on the device."""
    dtype = precision_of(recipe.train, device)
    batches = [loaded.batch().to(device) for loaded in taken]
    canvas = tuple(max(loaded.planned.canvas[axis] for loaded in taken) for axis in (0, 1))
    if len(batches) == 1:
        return warp.warp(batches[0], canvas, recipe.augment, dtype)
    shrink = warp.collage if recipe.feedback.form == "collage" else warp.shrunk
    return shrink(batches, canvas, recipe.augment, recipe.feedback.tiny, dtype)


def epoch_after(loaded: Loaded, order: Order) -> float:
    """Say how many epochs are done with a batch."""
    planned = loaded.planned
    return planned.epoch + (planned.number + 1) / order.length(planned.epoch)


def chips_in(taken: list[Loaded], canvases: torch.Tensor) -> int:
    """Count the canvases of all processes."""
    of_one = len(taken[0].planned.rows)
    stitched = len(canvases) == len(taken[0].pixels)
    return of_one if stitched else of_one * len(taken)


def fewest_canvases(taken: list[Loaded], count: int, world: int) -> int:
    """Tell the fewest canvases of any process; side by side, each batch is dealt out by itself."""
    of_one = len(taken[0].planned.rows)
    return of_one // world * (count // of_one)


def passes(
    canvases: torch.Tensor, targets: Targets, settings: TrainSettings, fewest: int
) -> Iterator[tuple[torch.Tensor, Targets, bool]]:
    """Cut a batch into passes, and say which is the last.

    Their number follows from the fewest canvases of any process, for all must make as many: where
    a batch can't be dealt out evenly, a pass may have one more than it should.
    """
    count = -(-fewest // settings.pass_chips) if settings.pass_chips else 1
    edges = [len(canvases) * i // count for i in range(count + 1)]
    for start, end in itertools.pairwise(edges):
        yield canvases[start:end], targets.part(start, end), end == len(canvases)


def unsynchronised(network: nn.Module) -> contextlib.AbstractContextManager:
    """Let gradients add up without handing them round."""
    return network.no_sync() if hasattr(network, "no_sync") else contextlib.nullcontext()


def copied(model: nn.Module) -> dict[str, torch.Tensor]:
    """Copy what a model has learned."""
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


@torch.no_grad()
def follow(average: dict[str, torch.Tensor], model: nn.Module, decay: float, step: int) -> None:
    """Move averaged weights towards the model's; faster in the first steps."""
    decay = min(decay, (1 + step) / (10 + step))
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            average[name].lerp_(value, 1 - decay)
        else:
            average[name].copy_(value)


def not_finite(of_canvas: torch.Tensor, taken: list[Loaded], index: Index, step: int) -> str:
    """Name the chips whose loss is not a number, for the message that stops the run."""
    bad = torch.nonzero(~of_canvas.isfinite().all(1)).flatten().tolist()
    b = len(taken[0].pixels)
    rows = [int(loaded.arrays["rows"][i % b]) for i in bad for loaded in taken][:8]
    named = "; ".join(index.name(row) for row in rows) or "none of this process: see the others"
    parts = [name for k, name in enumerate(losses.NAMES) if not of_canvas[:, k].isfinite().all()]
    return (
        f"step {step}: the loss is not finite ({', '.join(parts) or 'elsewhere'}); the weights are "
        f"as before this step. Chips: {named}. Lower train.lr or lengthen train.warmup, or look at "
        f"these chips"
    )


def opened_journal(
    folder: LocalFolder,
    step: int,
    order: Order,
    place: tuple[int, int],
    settings: TrainSettings,
    processes: Processes,
) -> contextlib.AbstractContextManager:
    """Open the journal where it is kept: at the first process."""
    if processes.rank:
        return contextlib.nullcontext()
    lengths = [order.length(epoch) for epoch in range(settings.length)]
    return Journal(folder, step, sum(lengths), sum(lengths[: place[0]]) + place[1])


class Taker:
    """Takes one loaded batch after the other, or several at once, and counts the waiting."""

    def __init__(self, batches: Iterator[Loaded]):
        self._batches, self._ahead = batches, deque()
        self.waited = 0.0  # s, for what was taken last

    def take(self, count: int) -> list[Loaded]:
        """Take `count` batches; one where fewer are left, none at the end."""
        start = time.perf_counter()
        while len(self._ahead) < count and (loaded := next(self._batches, None)) is not None:
            self._ahead.append(loaded)
        self.waited = time.perf_counter() - start
        enough = count if len(self._ahead) >= count else min(1, len(self._ahead))
        return [self._ahead.popleft() for _ in range(enough)]


def require_finite(model: nn.Module, step: int) -> None:
    """Refuse weights that an update has spoilt before a checkpoint holds them."""
    if not nn.utils.get_total_norm([value.detach() for value in model.parameters()]).isfinite():
        raise Refusal(
            f"the weights are not finite after step {step}, though each loss was, and are not "
            f"kept: start anew with a lower train.lr, or with train.clip"
        )


def same_run(state: dict[str, Any], about: dict[str, Any]) -> list[str]:
    """List what of a checkpoint differs from a run in a way that changes what is learned."""
    differing = []
    for section, values in about["recipe"].items():
        for key, value in values.items():
            if key not in FREE and state["recipe"].get(section, {}).get(key) != value:
                differing.append(f"{section}.{key}")
    if state["shards"] != about["shards"]:
        differing.append("the shards")
    elif state.get("indexes", about["indexes"]) != about["indexes"]:  # of plan and settings alike
        differing.append("the pixels of its shards, which were cut again from other pictures")
    return differing
