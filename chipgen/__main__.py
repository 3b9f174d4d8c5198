"""Command line of the chip generator: parse, build, run, report."""

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from chipgen.errors import Refusal

log = logging.getLogger("chipgen")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    from chipgen import commands  # kept out of --help and of the workers, which import this file

    parser = _parser(commands)
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        return args.run_command(args)
    except Refusal as refusal:
        print(f"chipgen {args.command}: {refusal}", file=sys.stderr)
        return 1
    except OSError as error:  # the system's own words name the file
        print(f"chipgen {args.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            f"\nchipgen {args.command}: stopped; what is finished is kept, and the same command "
            f"goes on from there",
            file=sys.stderr,
        )
        return 130


def _parser(commands) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m chipgen", description="Cut annotated pictures into shards of chips."
    )
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    plan = _command(
        subparsers,
        "plan",
        commands.plan,
        "choose the positive chips of a data set",
        "python -m chipgen plan runs/coco --data /data/coco --recipe sniper",
    )
    plan.add_argument("run", nargs="?", help="run folder; without it, figures are printed only")
    _add_data(plan, required=True)
    _add_json(plan)

    negatives = _command(
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
        "pixels); without it, only pictures without boxes give a negative chip",
    )
    _add_recipe(negatives)

    write = _command(
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
        "--workers", type=_positive, default=os.cpu_count(), help="processes (default: %(default)s)"
    )
    write.add_argument(
        "--part", type=_part, metavar="I/N", help="write only part I (from 0) of N; then --finish"
    )
    write.add_argument(
        "--finish", action="store_true", help="check that all parts are there; write the manifest"
    )
    _add_recipe(write)

    verify = _command(
        subparsers,
        "verify",
        commands.verify,
        "re-read shards against their manifest and index",
        "python -m chipgen verify runs/coco",
    )
    verify.add_argument("run", help="run folder, or the folder of one set of shards")

    stats = _command(
        subparsers,
        "stats",
        commands.stats,
        "print the figures of a plan: chips, coverage, pixels, bytes",
        "python -m chipgen stats --data /data/coco --split train,val --recipe sniper",
    )
    stats.add_argument("run", nargs="?", help="run folder; or give --data")
    _add_data(stats, required=False)
    _add_json(stats)

    show = _command(
        subparsers,
        "show",
        commands.show,
        "draw pictures with boxes and chips, and contact sheets of chips",
        "python -m chipgen show runs/coco --out drawings --count 10",
    )
    show.add_argument("run", nargs="?", help="run folder; or give --data")
    show.add_argument("--out", default="show", help="folder for the PNGs (default: %(default)s)")
    show.add_argument(
        "--count", type=_positive, default=8, help="pictures to draw (default: %(default)s)"
    )
    _add_data(show, required=False)

    suggest = _command(
        subparsers,
        "suggest",
        commands.suggest,
        "propose levels and valid ranges for a data set",
        "python -m chipgen suggest --data my-pictures --out my-recipe.toml",
    )
    suggest.add_argument("--data", required=True, help="data set: folder, URL or dataset.toml")
    suggest.add_argument("--split", default="train", help="splits to read (default: %(default)s)")
    suggest.add_argument(
        "--size", type=_positive, default=512, help="side of a chip in px (default: %(default)s)"
    )
    suggest.add_argument(
        "--stride",
        type=_positive,
        default=16,
        help="stride of the network's features in px (default: %(default)s)",
    )
    suggest.add_argument("--out", help="recipe file to write; it must not exist")
    _add_json(suggest)
    return parser


def _command(
    subparsers, name: str, run: Callable, summary: str, example: str
) -> argparse.ArgumentParser:
    parser = subparsers.add_parser(
        name, help=summary, description=summary.capitalize() + ".", epilog=f"example: {example}"
    )
    parser.set_defaults(run_command=run)
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
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="override one key of the recipe, such as chips.stride=16; may be repeated",
    )


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures as json")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} must be at least 1")
    return value


def _part(text: str) -> tuple[int, int]:
    part, _, parts = text.partition("/")
    if not (part.isdigit() and parts.isdigit() and int(part) < int(parts)):
        raise argparse.ArgumentTypeError(f"{text}: expected I/N with I from 0 to N - 1")
    return int(part), int(parts)


if __name__ == "__main__":
    sys.exit(main())
