"""Command line of inference: parse, build, run, report."""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from chipgen.arguments import GOES_ON, add_command, add_overrides, execute, part, positive
from chipgen.errors import Refusal

BEGINS_ANEW = "nothing is kept; the same command begins anew (eval --part I/N keeps parts)"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    args = _parser().parse_args(arguments)
    in_parts = args.command == "eval" and (args.part or args.finish or args.follow)
    kept = BEGINS_ANEW if args.command in ("eval", "tune") and not in_parts else GOES_ON
    return execute(f"infer {args.command}", lambda: args.run_command(args), kept)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m infer", description="Find objects, from coarse to fine."
    )
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    status = add_command(
        subparsers,
        "status",
        _command("status"),
        "say how far the stages of a run folder are, and what comes next",
        "python -m infer status runs/coco",
    )
    status.add_argument("run", help="run folder")

    check = add_command(
        subparsers,
        "check",
        _command("check"),
        "refuse at once what a later stage of a planned run would refuse",
        "python -m infer check runs/coco --recipe coco-r50 --data /data/coco --split val",
    )
    check.add_argument("run", help="run folder with a plan")
    check.add_argument("--recipe", required=True, help="all its sections are looked at")
    add_overrides(check)
    check.add_argument("--data", help="to be evaluated on: folder, URL or dataset.toml")
    _add_split(check)
    check.add_argument("--processes", type=positive, default=1, help="of the training (default: 1)")

    proposals = add_command(
        subparsers,
        "proposals",
        _command("proposals"),
        "propose objects in all pictures of a run, for mining negatives",
        "python -m infer proposals runs/coco --part 0/8",
    )
    proposals.add_argument("run", help="run folder with a plan and a trained RPN")
    proposals.add_argument(
        "--recipe", help="with --check: whose [model] the proposals should be made with"
    )
    add_overrides(proposals)
    proposals.add_argument(
        "--check",
        action="store_true",
        help="only say if they are up to date (exit code 0, else 3)",
    )
    proposals.add_argument(
        "--part", type=part, metavar="I/N", help="make only part I (from 0) of N; then --finish"
    )
    proposals.add_argument(
        "--finish", action="store_true", help="check that all parts are there; put them together"
    )

    detect = add_command(
        subparsers,
        "detect",
        _command("detect"),
        "find objects in pictures",
        "python -m infer detect runs/coco photos/ 'more/*.png' --out found --draw",
    )
    _add_detector(detect)
    detect.add_argument("pictures", nargs="+", help="files, folders or globs")
    detect.add_argument("--out", required=True, help="folder for detections.json and .parquet")
    detect.add_argument("--draw", action="store_true", help="draw each picture with what was found")
    detect.add_argument(
        "--min-score", type=float, default=0.3, help="of boxes that are drawn (default: 0.3)"
    )
    _add_mode(detect)
    detect.add_argument(
        "--part",
        type=part,
        metavar="I/N",
        help="only every Nth picture, from number I (from 0) on; then the same without --part",
    )

    evaluate = add_command(
        subparsers,
        "eval",
        _command("evaluate"),
        "measure average precision, pixels and speed on an annotated data set",
        "python -m infer eval runs/coco --data /data/coco --split val",
    )
    _add_detector(evaluate)
    _add_data(evaluate)
    evaluate.add_argument(
        "--mode",
        action="append",
        dest="modes",
        help="autofocus, pyramid or a level's number; may be repeated (default: all)",
    )
    evaluate.add_argument("--pictures", type=positive, help="only so many, spread over the set")
    evaluate.add_argument("--out", type=Path, help="json file (default: RUN/eval.json)")
    evaluate.add_argument(
        "--part", type=part, metavar="I/N", help="look at only part I (from 0) of N; then --finish"
    )
    evaluate.add_argument(
        "--finish", action="store_true", help="check that all parts are there; give the figures"
    )
    evaluate.add_argument(
        "--follow", action="store_true", help="evaluate each checkpoint of a training as it appears"
    )

    tune = add_command(
        subparsers,
        "tune",
        _command("tune"),
        "search the finest level's size, valid ranges and where to look closer",
        "python -m infer tune runs/coco --data /data/coco --out tuned.toml",
    )
    _add_detector(tune)
    _add_data(tune)
    tune.add_argument(
        "--pictures", type=positive, default=100, help="sample of them (default: %(default)s)"
    )
    tune.add_argument(
        "--within", type=_loss, default=0.3, help="AP that may be lost for speed (default: 0.3)"
    )
    tune.add_argument(
        "--smallest",
        type=_sizes,
        default=(64, 128, 256),
        help="sizes of chips to try, canvas px, with commas between (default: 64,128,256)",
    )
    tune.add_argument(
        "--finest",
        type=_factors,
        default=(1.0, 1.2),
        help="sizes of the finest level to try, as factors of its own (default: 1,1.2)",
    )
    tune.add_argument("--out", required=True, help="recipe to write, with [infer] alone")
    return parser


def _add_detector(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="run folder or checkpoint; several with commas: an ensemble")
    parser.add_argument(
        "--recipe", help="take [infer] of another recipe (default: as the model was trained)"
    )
    add_overrides(parser)


def _add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", required=True, help="data set: folder, URL or dataset.toml")
    _add_split(parser)


def _add_split(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--split", default="val", help="splits to read, with commas between (default: val)"
    )


def _factors(text: str) -> tuple[float, ...]:
    factors = tuple(float(one) for one in text.split(","))
    if not all(0 < one < math.inf for one in factors):
        raise argparse.ArgumentTypeError(f"{text}: expected positive numbers with commas between")
    return factors


def _loss(text: str) -> float:
    value = float(text)
    if not value >= 0:
        raise argparse.ArgumentTypeError(f"{text} must be at least 0")
    return value


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(positive(one) for one in text.split(","))


def _add_mode(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--mode",
        default="autofocus",
        help="autofocus, pyramid (every level whole) or a level's number (default: autofocus)",
    )


def _command(name: str):
    """Give a command that is imported when it runs: torch takes seconds, and --help needs none."""

    def run(args: argparse.Namespace) -> int:
        import torch

        from infer import commands
        from train.memory import keep_freed

        keep_freed()
        try:
            return getattr(commands, name)(args)
        except torch.OutOfMemoryError as error:
            raise Refusal(
                f"the device has too little memory ({error}); lower infer.tile, or "
                f"see what else runs on it"
            ) from error

    return run


if __name__ == "__main__":
    sys.exit(main())
