"""Command line of the chip generator: parse, build, run, report."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from chipgen.arguments import add_command, add_overrides, execute, part, positive


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    from chipgen import commands  # kept out of --help and of the workers, which import this file

    parser = _parser(commands)
    args = parser.parse_args(arguments)
    return execute(f"chipgen {args.command}", lambda: args.run_command(args))


def _parser(commands) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m chipgen", description="Cut annotated pictures into shards of chips."
    )
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    plan = add_command(
        subparsers,
        "plan",
        commands.plan,
        "choose the positive chips of a data set",
        "python -m chipgen plan runs/coco --data /data/coco --recipe sniper",
    )
    plan.add_argument("run", nargs="?", help="run folder; without it, figures are printed only")
    _add_data(plan, required=True)
    _add_json(plan)

    negatives = add_command(
        subparsers,
        "negatives",
        commands.negatives,
        "choose the negative chips of a planned run",
        "python -m chipgen negatives runs/coco --proposals runs/coco/proposals.parquet",
    )
    negatives.add_argument("run", help="run folder with a plan")
    negatives.add_argument(
        "--proposals",
        help="Parquet file of RPN proposals (picture_id, level, x1, y1, x2, y2, score; picture "
        "pixels); default: RUN/proposals/proposals.parquet where there is one; without any, only "
        "pictures without boxes give a negative chip",
    )
    _add_recipe(negatives)

    write = add_command(
        subparsers,
        "write",
        commands.write,
        "cut the planned chips and write them to shards",
        "python -m chipgen write runs/coco --workers 8",
    )
    write.add_argument("run", help="run folder with a plan")
    write.add_argument(
        "--kind", choices=("positive", "negative"), help="one kind; default: all that is planned"
    )
    write.add_argument(
        "--workers", type=positive, default=os.cpu_count(), help="processes (default: %(default)s)"
    )
    write.add_argument(
        "--part", type=part, metavar="I/N", help="write only part I (from 0) of N; then --finish"
    )
    write.add_argument(
        "--finish", action="store_true", help="check that all parts are there; write the manifest"
    )
    _add_recipe(write)

    verify = add_command(
        subparsers,
        "verify",
        commands.verify,
        "re-read shards against their manifest and index",
        "python -m chipgen verify runs/coco",
    )
    verify.add_argument("run", help="run folder, or the folder of one set of shards")

    stats = add_command(
        subparsers,
        "stats",
        commands.stats,
        "print the figures of a plan: chips, coverage, pixels, bytes",
        "python -m chipgen stats --data /data/coco --split train,val --recipe sniper",
    )
    stats.add_argument("run", nargs="?", help="run folder; or give --data")
    _add_data(stats, required=False)
    _add_json(stats)

    show = add_command(
        subparsers,
        "show",
        commands.show,
        "draw pictures with boxes and chips, and contact sheets of chips",
        "python -m chipgen show runs/coco --out drawings --count 10",
    )
    show.add_argument("run", nargs="?", help="run folder; or give --data")
    show.add_argument("--out", default="show", help="folder for the PNGs (default: %(default)s)")
    show.add_argument(
        "--count", type=positive, default=8, help="pictures to draw (default: %(default)s)"
    )
    _add_data(show, required=False)

    suggest = add_command(
        subparsers,
        "suggest",
        commands.suggest,
        "propose levels and valid ranges for a data set",
        "python -m chipgen suggest --data my-pictures --out my-recipe.toml",
    )
    suggest.add_argument("--data", required=True, help="data set: folder, URL or dataset.toml")
    suggest.add_argument("--split", default="train", help="splits to read (default: %(default)s)")
    suggest.add_argument(
        "--size", type=positive, default=512, help="side of a chip in px (default: %(default)s)"
    )
    suggest.add_argument(
        "--stride",
        type=positive,
        default=16,
        help="stride of the network's features in px (default: %(default)s)",
    )
    suggest.add_argument(
        "--network",
        choices=("resnet50", "small"),
        default="resnet50",
        help="resnet50, pretrained, or a small one for a CPU (default: %(default)s)",
    )
    suggest.add_argument("--out", help="recipe file to write; it must not exist")
    _add_json(suggest)
    return parser


def _add_data(parser: argparse.ArgumentParser, required: bool) -> None:
    parser.add_argument("--data", required=required, help="data set: folder, URL or dataset.toml")
    parser.add_argument(
        "--split", default="train", help="splits to read, with commas between (default: train)"
    )
    _add_recipe(parser)


def _add_recipe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--recipe", help="recipe file, or the name of a shipped one (default: the run's, or sniper)"
    )
    add_overrides(parser)


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures as json")


if __name__ == "__main__":
    sys.exit(main())
