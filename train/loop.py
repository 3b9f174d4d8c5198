"""The training loop: batches in, checkpoints and a log out.

b canvases of this process, k chips of a canvas; "global" means of all processes.
"""

import contextlib
import dataclasses
import inspect
import itertools
import logging
import time
import zlib
from collections import deque
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from chipgen.errors import Refusal
from chipgen.storage import LocalFolder
from train import checkpoint, losses, warp
from train.detector import norms
from train.detector.model import Detector
from train.feedback import Feedback
from train.index import Index
from train.journal import Journal
from train.order import Order
from train.processes import Processes, Stop
from train.schedule import rate
from train.settings import FREE, Recipe, TrainSettings
from train.stream import ChipReader, Loaded, Stream
from train.warp import Targets
from train.watch import COMPUTING, LOADING, SAVING, WAITING, Watch

log = logging.getLogger("train")

FINISHED, STOPPED = "finished", "stopped"
KINDS = ("regression", "classification", "input")  # of what small boxes have a share


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
    model, network = build(recipe, len(index.classes), processes)
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


def build(recipe: Recipe, classes: int, processes: Processes) -> tuple[Detector, nn.Module]:
    """Make the detector, the same on every process, and what distributes it."""
    settings, device = recipe.train, processes.device
    group = norms.groups_of(recipe.model.norm_processes)
    torch.manual_seed(settings.seed)
    model = Detector(
        recipe.model,
        recipe.labels,
        0 if settings.task == "rpn" else classes,
        norms.choose(recipe.model.norm, group, device),
    )
    wide = torch.float64 if settings.precision == "fp64" else torch.float32
    model = model.to(device, wide, memory_format=torch.channels_last)
    if settings.compile:
        model.backbone.compile()
    if processes.world == 1:
        return model, model
    # running statistics are of each process or of all: nothing to hand round
    known = inspect.signature(DistributedDataParallel).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    return model, DistributedDataParallel(model, **{name: False})


def precision_of(settings: TrainSettings, device: torch.device) -> torch.dtype:
    """Give the type to compute in; "auto" is bf16 where that is faster."""
    if settings.precision != "auto":
        return {"bf16": torch.bfloat16, "fp32": torch.float32, "fp64": torch.float64}[
            settings.precision
        ]
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if fast else torch.float32


def mixed(precision: torch.dtype, device: torch.device) -> torch.autocast:
    """Give the context that computes in a precision; what needs float32 keeps it in there."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == torch.bfloat16)


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


@dataclasses.dataclass(frozen=True)
class Told:
    """The figures of one step over all processes, on the host."""

    losses: list[float]  # sums over canvases, in the order of losses.NAMES
    positives: list[float]  # anchors, RoIs
    shares: dict[str, tuple[float, float]]  # of small boxes and of all, by kind
    broken: int  # samples that others stand in for
    stop: bool
    finite: bool


class Meter:
    """Gathers figures on the device and, over some steps, into entries of the log."""

    def __init__(self, processes: Processes):
        self.processes = processes
        self.width = len(losses.NAMES) + 2 + 2 * len(KINDS) + 2
        self._begin()

    def of(self, found) -> torch.Tensor:
        """Lay the figures of one pass side by side, (width,); the last two: broken, stop."""
        parts = [found.of_canvas.detach().sum(0), found.positives, found.small, found.whole]
        return torch.cat([*(p.float() for p in parts), parts[0].new_zeros(2).float()])

    def fetch(self, report: torch.Tensor):
        """Start copying a report to the host; the function returned waits for it alone."""
        if report.device.type == "cpu":
            return lambda: self._told(report.tolist())
        host = torch.empty_like(report, device="cpu", pin_memory=True)
        host.copy_(report, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record()

        def told() -> Told:
            arrived.synchronize()
            return self._told(host.tolist())

        return told

    def _told(self, values: list[float]) -> Told:
        n, k = len(losses.NAMES), len(KINDS)
        small, whole = values[n + 2 : n + 2 + k], values[n + 2 + k : n + 2 + 2 * k]
        return Told(
            losses=values[:n],
            positives=values[n : n + 2],
            shares=dict(zip(KINDS, zip(small, whole, strict=True), strict=True)),
            broken=int(values[-2]),
            stop=values[-1] > 0,
            finite=all(abs(v) < float("inf") for v in values),
        )

    def add(self, told: Told, taken: list[Loaded], canvases: int, waited: float) -> None:
        """Add a step."""
        self.steps += 1
        self.canvases += canvases
        self.chips += sum(len(loaded.planned.rows) for loaded in taken)
        self.waited += waited
        self.shrunk += len(taken) > 1
        self.sums = [a + b for a, b in zip(self.sums, told.losses + told.positives, strict=True)]
        small, whole = told.shares["regression"]
        self.small, self.whole = self.small + small, self.whole + whole
        self.broken += told.broken
        for loaded in taken:
            for reason in loaded.broken:
                log.warning("replaced a broken sample: %s", reason)
            self.order = zlib.crc32(loaded.planned.rows.tobytes(), self.order)

    def entry(self) -> dict[str, Any]:
        """Give the figures of all steps since the last entry."""
        seconds = time.perf_counter() - self.start
        means = [value / self.canvases for value in self.sums]
        names = [*losses.NAMES, "positive_anchors", "positive_rois"]
        entry = {
            "loss": sum(means[: len(losses.NAMES)]),
            **dict(zip(names, means, strict=True)),
            "small_share": self.small / self.whole if self.whole > 0 else 0.0,
            "shrunk_share": self.shrunk / self.steps,
            "chips_per_s": self.chips / seconds,
            "waiting_share": self.waited / seconds,
            "memory_mb": memory_mb(self.processes.device),
            "broken": self.broken,
            "order": self.order,
        }
        self._begin()
        return entry

    def _begin(self) -> None:
        self.steps = self.canvases = self.chips = self.broken = self.shrunk = self.order = 0
        self.waited = self.small = self.whole = 0.0
        self.sums = [0.0] * (len(losses.NAMES) + 2)
        self.start = time.perf_counter()


def memory_mb(device: torch.device) -> float:
    """Give the most memory that was in use: the device's, or this process's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def same_run(state: dict[str, Any], about: dict[str, Any]) -> list[str]:
    """List what of a checkpoint differs from a run in a way that changes what is learned."""
    differing = []
    for section, values in about["recipe"].items():
        for key, value in values.items():
            if key not in FREE and state["recipe"].get(section, {}).get(key) != value:
                differing.append(f"{section}.{key}")
    if state["shards"] != about["shards"]:
        differing.append("the shards")
    return differing
