"""How far a long job is: a bar on a terminal, in a log a line now and then."""

import sys
from collections.abc import Iterable
from typing import Any, TextIO

from tqdm import tqdm

PAUSE = 30.0  # s between two lines of a log
LINE = "{desc}: {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"


def progress(things: Iterable | None = None, **options: Any) -> tqdm:
    """Pass things on, or count by hand, and show how far that is; the options are tqdm's."""
    if sys.stderr.isatty():
        return tqdm(things, **options)
    pauses = {"mininterval": PAUSE, "maxinterval": PAUSE}
    return tqdm(things, file=_Lines(sys.stderr), bar_format=LINE, **pauses, **options)


class _Lines:
    """A stream where what would be drawn over the last state becomes a line of its own."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> None:
        """Write one state."""
        if text := text.strip():
            self._stream.write(f"{text}\n")

    def flush(self) -> None:
        """Show what was written."""
        self._stream.flush()
