"""What a run says while it goes: a bar, a log of JSON lines, TensorBoard."""

import contextlib
from collections.abc import Iterator
from typing import Any

import msgspec

from chipgen.progress import progress
from chipgen.storage import LocalFolder, writing

LOG = "log.jsonl"


class Journal:
    """Only the first process keeps one."""

    def __init__(self, folder: LocalFolder, step: int, batches: int, done: int):
        from torch.utils.tensorboard import SummaryWriter  # a second of imports

        _forget_after(folder, step)
        self._bar = progress(total=batches, initial=done, unit=" batches", desc="training")
        folder.path.mkdir(parents=True, exist_ok=True)
        self._path = folder.path / LOG
        self._file = self._path.open("ab")
        self._writer = SummaryWriter(str(folder.path / "tensorboard"), purge_step=step + 1)

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_) -> None:
        self._bar.close()
        self._file.close()
        self._writer.close()

    def advance(self, batches: int) -> None:
        """Move the bar."""
        self._bar.update(batches)

    def write(self, entry: dict[str, Any]) -> None:
        """Log one entry; its numbers also go to TensorBoard."""
        self._bar.set_postfix(refresh=False, loss=f"{entry['loss']:.3f}", lr=f"{entry['lr']:.4f}")
        with writing(self._path):
            self._file.write(msgspec.json.encode(entry) + b"\n")
            self._file.flush()
        for name, value in entry.items():
            if isinstance(value, float):
                self._writer.add_scalar(name, value, entry["step"])


def entries(folder: LocalFolder) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Read the log: lines and what they say; a crash may have left unreadable ones."""
    if not folder.exists(LOG):
        return
    for line in folder.read(LOG).splitlines(keepends=True):
        with contextlib.suppress(ValueError):  # also of what is no UTF-8
            entry = msgspec.json.decode(line)
            whole = isinstance(entry, dict) and isinstance(entry.get("step"), int)
            if whole and line.endswith(b"\n"):
                yield line, entry


def _forget_after(folder: LocalFolder, step: int) -> None:
    """Drop the entries of steps that are done again, and unreadable lines."""
    if folder.exists(LOG):
        kept = [line for line, entry in entries(folder) if entry["step"] <= step]
        folder.write(LOG, *kept)
