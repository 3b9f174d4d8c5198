"""Run all that only a GPU shows, and write one json with the device's name; needs no network.

The benchmarks of chips, training (with the step of coco-r50 and its largest batch) and inference,
and a short training of scenes-full with its evaluation. Each part is written as it is done; one
that fails is told, and the others still run.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

SCENES = {"bench": (160, 1), "full": (600, 120)}  # pictures to train on, and to evaluate on
EPOCHS = 6  # of scenes-full
TAIL = 2000  # characters of a failed command's last words
GRACE = 15  # s that a command has to clean up when the time is up


def main() -> None:
    """Run all parts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="json file to write")
    parser.add_argument("--minutes", type=float, default=10, help="limit of all (default: 10)")
    parser.add_argument("--anyway", action="store_true", help="run without a GPU, to try it out")
    args = parser.parse_args()
    if not torch.cuda.is_available() and not args.anyway:
        raise SystemExit("gpu-check: no GPU that torch can use is here (--anyway runs without)")
    found: dict[str, Any] = {"device": device_name(), "torch": torch.__version__, "failed": {}}
    end = time.monotonic() + 60 * args.minutes
    folder = args.out.parent / "gpu-check"
    shutil.rmtree(folder / "run", ignore_errors=True)  # its figures may be of another device
    for name, commands, result in parts(folder):
        begin = time.monotonic()
        failure = next(filter(None, (run(command, end) for command in commands)), None)
        if failure:
            found["failed"][name] = failure
        elif result:
            found[name] = json.loads(result.read_text())
        print(f"{name:12}{time.monotonic() - begin:8.0f} s  {'FAILED' if failure else 'done'}")
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(found, indent=1) + "\n")
    for name, failure in found["failed"].items():
        print(f"\n{name} failed:\n{failure}", file=sys.stderr)
    raise SystemExit(1 if found["failed"] else 0)


def parts(folder: Path) -> list[tuple[str, list[list[str]], Path | None]]:
    """List the parts: name, commands, and the json they leave; what matters most comes first."""
    bench, full, run_folder = folder / "scenes-bench", folder / "scenes-full", folder / "run"
    scenes = [
        ["scripts/make_scenes.py", str(data), "--size", "full", "--pictures-train", str(train),
         "--pictures-val", str(val)]
        for data, (train, val) in zip((bench, full), SCENES.values(), strict=True)
    ]  # fmt: skip
    recipe = ["--recipe", "scenes-full"]
    rpn, epochs = "--set=train.task=rpn", f"--set=train.epochs={EPOCHS}"
    drops = f"--set=train.drops=[[{EPOCHS * 0.75}, 0.1]]"
    whole = [str(run_folder)]
    training = [
        ["-m", "chipgen", "plan", *whole, "--data", str(full), *recipe],
        ["-m", "chipgen", "write", *whole, "--kind", "positive"],
        ["-m", "train", *whole, *recipe, rpn, "--resume"],
        ["-m", "infer", "proposals", *whole],
        ["-m", "chipgen", "negatives", *whole],
        ["-m", "chipgen", "write", *whole, "--kind", "negative"],
        ["-m", "train", *whole, *recipe, epochs, drops, "--resume"],
        ["-m", "infer", "eval", *whole, "--data", str(full)],
    ]
    results = {name: folder / f"{name}.json" for name in ("train", "infer", "chips")}

    def bench_of(name: str, *arguments: str) -> list[str]:
        return [f"scripts/bench_{name}.py", *arguments, "--out", str(results[name])]

    return [
        ("scenes", scenes, None),
        ("training", training, run_folder / "eval.json"),
        ("train", [bench_of("train", "--data", str(bench))], results["train"]),
        ("infer", [bench_of("infer", *whole, "--data", str(full))], results["infer"]),
        ("chips", [bench_of("chips", "--data", str(bench))], results["chips"]),
    ]


def run(command: list[str], end: float) -> str | None:
    """Run one command of the project; gives the last words of one that fails."""
    left = end - time.monotonic()
    if left <= 0:
        return "no time was left"
    line = [sys.executable, *command]
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    # a session of its own, so that its workers end with it
    with subprocess.Popen(line, **pipes, text=True, start_new_session=True) as process:
        try:
            told = process.communicate(timeout=left)[1]
        except subprocess.TimeoutExpired:
            told = _stopped(process)
            return f"{' '.join(command)}: not done when the time was up\n{told[-TAIL:]}"
        except KeyboardInterrupt:  # which does not reach another session by itself
            _stopped(process)
            raise
    return f"{' '.join(command)}:\n{told[-TAIL:]}" if process.returncode else None


def _stopped(process: subprocess.Popen) -> str:
    """End a command with all that it has started, gently at first; gives what it said."""
    for number in (signal.SIGINT, signal.SIGKILL):
        with contextlib.suppress(subprocess.TimeoutExpired, ProcessLookupError):
            os.killpg(process.pid, number)
            return process.communicate(timeout=GRACE)[1]
    return ""


def device_name() -> str:
    """Name the device."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"


if __name__ == "__main__":
    main()
