"""Faults at a process's own system calls: what is to happen at the n-th call on watched files.

Calls are those of this process in Python: through `os`, and on files that `open` has opened. What
a library calls from C (a memory-mapped table) is not seen.
"""

import builtins
import errno
import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

READS, WRITES = ("open-r", "read"), ("open-w", "write", "fsync", "replace", "mkdir", "unlink")
NAMED = {  # calls that take a name, and which of the groups they are of
    "mkdir": "mkdir",
    "unlink": "unlink",
    "remove": "unlink",
    "rmdir": "unlink",
    "replace": "replace",
    "rename": "replace",
}
BY_HANDLE = {"read": "read", "pread": "read", "write": "write", "fsync": "fsync"}
_open, _os_open, _close = io.open, os.open, os.close


@dataclass
class Watch:
    """Counts calls of some groups on files below some folders, and acts from the n-th on."""

    folders: tuple[str, ...]
    groups: tuple[str, ...]
    at: int  # from 1; 0: only count
    act: Callable[[str, str], None]  # group, path
    lasting: bool = False  # acts on all calls after that, too
    seen: int = 0

    def __post_init__(self):
        self.process = os.getpid()
        self._handles: dict[int, str] = {}

    def covers(self, path: Any) -> bool:
        """Say whether a path lies below a watched folder."""
        if not isinstance(path, str | os.PathLike):
            return False
        return os.path.abspath(path).startswith(self.folders)  # noqa: PTH100

    def call(self, group: str, path: Any) -> None:
        """Count a call; raises or signals when its turn has come."""
        if group not in self.groups:
            return
        self.seen += 1
        if self.at and (self.seen == self.at or (self.lasting and self.seen > self.at)):
            self.act(group, os.fspath(path))

    def install(self) -> None:
        """Put the watch between this process and its system calls, for good."""
        os.open, os.close = self._os_open, self._os_close
        io.open = builtins.open = self._io_open
        for name, group in NAMED.items():
            setattr(os, name, self._named(getattr(os, name), group))
        for name, group in BY_HANDLE.items():
            setattr(os, name, self._by_handle(getattr(os, name), group))

    def _os_open(self, path: Any, flags: int, *args: Any, **more: Any) -> int:
        if not self.covers(path):
            return _os_open(path, flags, *args, **more)
        writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        self.call("open-w" if writes else "open-r", path)
        handle = _os_open(path, flags, *args, **more)
        self._handles[handle] = os.fspath(path)
        return handle

    def _os_close(self, handle: int) -> None:
        self._handles.pop(handle, None)
        _close(handle)

    def _io_open(self, file: Any, mode: str = "r", buffering: int = -1, *args: Any, **more: Any):
        if not self.covers(file):
            return _open(file, mode, buffering, *args, **more)
        writes = not {*"wax+"}.isdisjoint(mode)
        self.call("open-w" if writes else "open-r", file)
        raw = _File(self, file, mode.replace("b", "").replace("t", ""))
        self._handles[raw.fileno()] = os.fspath(file)
        size = buffering if buffering > 1 else io.DEFAULT_BUFFER_SIZE
        kind = io.BufferedWriter if writes else io.BufferedReader
        if "+" in mode:
            kind = io.BufferedRandom
        return kind(raw, size) if "b" in mode else io.TextIOWrapper(kind(raw, size), *args, **more)

    def _named(self, original: Callable, group: str) -> Callable:
        def called(path: Any, *args: Any, **more: Any) -> Any:
            if self.covers(path):
                self.call(group, path)
            return original(path, *args, **more)

        return called

    def _by_handle(self, original: Callable, group: str) -> Callable:
        def called(handle: int, *args: Any) -> Any:
            if handle in self._handles:
                self.call(group, self._handles[handle])
            return original(handle, *args)

        return called


class _File(io.FileIO):
    """A file whose reads and writes are counted; one that fails has written half."""

    def __init__(self, watch: Watch, path: Any, mode: str):
        super().__init__(path, mode)
        self._watch = watch

    def write(self, data: Any) -> int:
        try:
            self._watch.call("write", self.name)
        except OSError:
            super().write(bytes(data)[: len(data) // 2])
            raise
        return super().write(data)

    def readinto(self, buffer: Any) -> int:
        self._watch.call("read", self.name)
        return super().readinto(buffer)

    def readall(self) -> bytes:
        self._watch.call("read", self.name)
        return super().readall()


def failing(number: int, told: Path) -> Callable[[str, str], None]:
    """Make calls fail with an errno; `told` gets the name of each file where that happened."""

    def act(_group: str, path: str) -> None:
        line = f"{path}\n".encode()
        handle = _os_open(told, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        _WRITE(handle, line)
        _close(handle)
        # as the kernel does it: calls on an open file don't know its name
        if _group in ("read", "write", "fsync"):
            raise OSError(number, os.strerror(number))
        raise OSError(number, os.strerror(number), path)

    return act


def signalling(number: int, group: bool) -> Callable[[str, str], None]:
    """Send a signal to this process, or to all of its group; children don't."""
    process = os.getpid()

    def act(_group: str, _path: str) -> None:
        if os.getpid() == process:
            (os.killpg if group else os.kill)(process, number)

    return act


_WRITE = os.write
FULL, BROKEN, FROZEN = errno.ENOSPC, errno.EIO, errno.EROFS
