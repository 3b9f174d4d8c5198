"""The figures of training: of each step over all processes, and of the steps of a log entry."""

import dataclasses
import logging
import resource
import time
import zlib
from collections.abc import Callable
from typing import Any

import torch

from train import losses
from train.detector.model import Losses
from train.processes import Processes
from train.stream import Loaded

log = logging.getLogger("train")

KINDS = ("regression", "classification", "input")  # of what small boxes have a share


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

    def of(self, found: Losses) -> torch.Tensor:
        """Lay the figures of one pass side by side, (width,); the last two: broken, stop."""
        parts = [found.of_canvas.detach().sum(0), found.positives, found.small, found.whole]
        return torch.cat([*(p.float() for p in parts), parts[0].new_zeros(2).float()])

    def fetch(self, report: torch.Tensor) -> Callable[[], Told]:
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
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
