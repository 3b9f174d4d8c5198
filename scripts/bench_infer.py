"""Measure inference with a trained detector, in one run, and write the figures as json.

Speed of AutoFocus, of the full pyramid and of the coarsest level on the same pictures; AutoFocus
against its network floor (the same forward passes alone, on canvases that lie ready); latency of
a picture that comes alone.
"""

import argparse
import dataclasses
import json
import statistics
import time
from pathlib import Path

import torch

from chipgen.arguments import add_overrides, split_names
from chipgen.errors import Refusal
from infer import Detector, measure
from infer.cascade import AUTOFOCUS, PYRAMID, Machine
from infer.commands import load_detector
from infer.network import Network, Seen
from infer.proposals import sources_of
from train.memory import keep_freed
from train.meter import memory_mb
from train.processes import device_name

TURNS = 3
WARM_UP = 4  # pictures
ALONE = 20  # pictures whose latency is measured


class Recorder:
    """A network that keeps what it was shown, and counts its time."""

    def __init__(self, network: Network):
        self.network, self.shown, self.seconds = network, [], 0.0

    def __call__(self, canvases: torch.Tensor, content: torch.Tensor) -> Seen:
        """Look, and take the time."""
        self.shown.append((canvases, content))
        finish(canvases.device)  # of drawing them
        begin = time.perf_counter()
        seen = self.network(canvases, content)
        finish(canvases.device)
        self.seconds += time.perf_counter() - begin
        return seen


def main() -> None:
    """Run all measurements."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="run folder or checkpoint")
    parser.add_argument("--recipe", help="take [infer] of another recipe")
    add_overrides(parser)
    parser.add_argument("--data", required=True, help="data set to take pictures from")
    parser.add_argument("--split", default="val", help="splits to read (default: val)")
    parser.add_argument("--pictures", type=int, default=60, help="of them (default: 60)")
    parser.add_argument("--out", type=Path, required=True, help="json file to write")
    args = parser.parse_args()
    keep_freed()  # as the commands do
    try:
        detector = load_detector(args)
        test = measure.open_test(args.data, split_names(args.split), args.pictures)
    except Refusal as refusal:
        raise SystemExit(f"bench_infer: {refusal}") from refusal
    figures = bench(detector, list(sources_of(test.annotations)))
    for name, value in figures.items():
        print(f"{name:32}{value:,.3f}" if isinstance(value, float) else f"{name:32}{value}")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(figures, indent=1) + "\n")


def bench(detector: Detector, pictures: list) -> dict[str, float | str]:
    """Measure all modes in turns; ratios are medians of turns."""
    modes = {"autofocus": AUTOFOCUS, "pyramid": PYRAMID, "coarse": 0}
    for mode in modes.values():
        timed(detector, pictures[:WARM_UP], mode)
    timed(detector, pictures, PYRAMID)
    peak = memory_mb(detector.device)  # before the recorder keeps what was seen
    turns = []
    for _ in range(TURNS):
        seconds = {name: timed(detector, pictures, mode) for name, mode in modes.items()}
        recorder = Recorder(detector.machine.look)
        machine = dataclasses.replace(detector.machine, look=recorder)
        seconds["recorded"] = timed(detector, pictures, AUTOFOCUS, machine)
        seconds["network"] = recorder.seconds
        seconds["floor"] = floor(detector, recorder.shown)
        turns.append(seconds)

    def median(over: str, under: str) -> float:
        return statistics.median(turn[over] / turn[under] for turn in turns)

    count = len(pictures)
    return {
        "device": device_name(detector.device),
        "pictures": float(count),
        **{
            f"{name}_pictures_per_s": count / statistics.median(turn[name] for turn in turns)
            for name in modes
        },
        "autofocus_vs_pyramid_speed": median("pyramid", "autofocus"),
        "network_share": median("network", "recorded"),
        "time_vs_network_floor": median("autofocus", "floor"),
        "latency_ms": 1e3 * latency(detector, pictures[:ALONE]),
        "peak_mb": peak,
    }


def timed(
    detector: Detector, pictures: list, mode: str | int, machine: Machine | None = None
) -> float:
    """Take the time of a mode over all pictures, in s."""
    before = detector.machine
    detector.machine = machine or before
    begin = time.perf_counter()
    for result in detector(pictures, mode):
        if result.error:
            raise SystemExit(f"bench_infer: {result.picture}: {result.error}")
    finish(detector.device)
    detector.machine = before
    return time.perf_counter() - begin


def floor(detector: Detector, shown: list[tuple[torch.Tensor, torch.Tensor]]) -> float:
    """Take the time of the forward passes alone, in s."""
    finish(detector.device)
    begin = time.perf_counter()
    for canvases, content in shown:
        detector.machine.look(canvases, content)
    finish(detector.device)
    return time.perf_counter() - begin


def latency(detector: Detector, pictures: list) -> float:
    """Take the median time from asking for one picture to its result, in s."""
    return statistics.median(timed(detector, [picture], AUTOFOCUS) for picture in pictures)


def finish(device: torch.device) -> None:
    """Wait until the device has nothing left to do."""
    if device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
