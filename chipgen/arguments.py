"""What the command lines of all packages share: arguments, and how a command ends."""

import argparse
import logging
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType

from chipgen.errors import Refusal

GOES_ON = "what is finished is kept, and the same command goes on from there"
SOON = 1e-3  # s, more than a kernel takes to make its arrays


def execute(name: str, run: Callable[[], int], interrupted: str = GOES_ON) -> int:
    """Run a command and return its exit code; a refusal is told in one line."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    # a job in the background is deaf to Ctrl-C, and stays so; so is a thread
    heard = (
        signal.getsignal(signal.SIGINT) is signal.default_int_handler
        and threading.current_thread() is threading.main_thread()
    )
    if heard:
        signal.signal(signal.SIGINT, interrupt)
    try:
        return run()
    except (Refusal, OSError) as error:  # the system's own words name the file
        print(f"{name}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\n{name}: stopped; {interrupted}", file=sys.stderr)
        return 130
    finally:
        if heard:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def interrupt(number: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt, but not before a compiled kernel has made the arrays it returns.

    It calls Python for each, and an exception from there is lost, or leaves an array that is none.
    """
    while frame is not None:
        if frame.f_code.co_name == "_numba_unpickle":
            again = threading.Timer(SOON, signal.pthread_kill, (threading.get_ident(), number))
            again.start()
            return
        frame = frame.f_back
    raise KeyboardInterrupt


def add_command(
    subparsers, name: str, run: Callable, summary: str, example: str
) -> argparse.ArgumentParser:
    """Add a command with its help and an example."""
    parser = subparsers.add_parser(
        name, help=summary, description=summary.capitalize() + ".", epilog=f"example: {example}"
    )
    parser.set_defaults(run_command=run)
    return parser


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """Add --set."""
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="override one key of the recipe, such as chips.stride=16; may be repeated",
    )


def positive(text: str) -> int:
    """Read a number from 1 on."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} must be at least 1")
    return value


def split_names(text: str) -> list[str]:
    """Read the names of splits, with commas between."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise Refusal(f"--split {text!r}: names no split; write them with commas between")
    return names


def part(text: str) -> tuple[int, int]:
    """Read I/N, a part of the work."""
    number, _, parts = text.partition("/")
    if not (number.isdigit() and parts.isdigit() and int(number) < int(parts)):
        raise argparse.ArgumentTypeError(f"{text}: expected I/N with I from 0 to N - 1")
    return int(number), int(parts)
