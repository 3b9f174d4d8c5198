"""A folder belongs to one run at a time: a lock that names its holder and outlives no dead one.

lock.json says who holds the folder and is written anew every BEAT seconds. On the holder's own
machine the kernel says whether it lives; elsewhere, whether it writes. No clocks are compared.
"""

import contextlib
import errno
import logging
import os
import socket
import sys
import threading
import time
import uuid
from pathlib import Path

import msgspec

from chipgen.errors import Refusal
from chipgen.storage import LocalFolder

LOCK = "lock.json"
BEAT = 5.0  # s between two signs of life
SILENCE = 30.0  # s without one, after which a holder on another machine counts as dead
READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)
log = logging.getLogger("train")


class Holder(msgspec.Struct):
    """What lock.json holds."""

    host: str
    pid: int
    machine: str  # this boot of this machine or container
    born: str  # the process among all that had its number
    token: str
    beat: int = 0


class Hold:
    """Holds a folder; `with` refuses one that a living run holds, with its host and number."""

    def __init__(self, folder: LocalFolder):
        self.folder = folder
        pid = os.getpid()
        self.me = Holder(socket.gethostname(), pid, _machine(), _born(pid), uuid.uuid4().hex)
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True, name="hold")

    def __enter__(self) -> "Hold":
        try:
            while not self._created():
                self._make_way()
        except OSError as error:
            if error.errno not in READ_ONLY:
                raise
            return self  # nobody writes here; who tries is told so
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._end.set()
        if self._thread.is_alive():
            self._thread.join()
            if self._is_mine():
                self.folder.remove(LOCK)

    def _created(self) -> bool:
        """Make the lock, unless there is one."""
        self.folder.path.mkdir(parents=True, exist_ok=True)
        try:
            file = os.open(self.folder.path / LOCK, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            return False
        os.write(file, msgspec.json.encode(self.me))
        os.close(file)
        return True

    def _make_way(self) -> None:
        """Remove the lock of a dead holder; refuse where it lives."""
        seen = _read(self.folder)
        if seen is None:
            return  # just released
        before = _holder(seen)
        alive = lives(before) if before else None
        if alive is None:
            whom = f"{before.host}, pid {before.pid}" if before else "somebody"
            log.info("%s: held by %s; does it live? (%g s)", self.folder, whom, SILENCE)
            alive = not self._stays(seen)
        if not alive:
            # by another name first: of two runs that find it dead, one gets it
            aside = self.folder.path / f".{LOCK}-{self.me.token}"
            with contextlib.suppress(FileNotFoundError):
                (self.folder.path / LOCK).rename(aside)
                if aside.read_bytes() != seen:  # a new holder's, not the dead one's
                    with contextlib.suppress(FileExistsError):
                        os.link(aside, self.folder.path / LOCK)
                aside.unlink()
        elif now := holder(self.folder):
            raise Refusal(
                f"{self.folder}: in use by the run with pid {now.pid} on {now.host}; wait for it, "
                f"stop it, or choose another run folder"
            )

    def _stays(self, seen: bytes) -> bool:
        """Watch whether the lock stays as it is."""
        until = time.monotonic() + SILENCE
        while time.monotonic() < until:
            time.sleep(min(BEAT, SILENCE) / 4)
            if _read(self.folder) != seen:
                return False
        return True

    def _beat(self) -> None:
        """Give signs of life; what is no longer held must not be written to any more."""
        while not self._end.wait(BEAT):
            try:
                if self._is_mine():
                    self.me.beat += 1
                    self.folder.write(LOCK, msgspec.json.encode(self.me))
                    continue
            except OSError:
                continue  # storage that hiccups: the next beat may get through
            print(
                f"train: {self.folder}: lost to another run while this one was silent; it ends "
                f"here, and what it has not saved is lost",
                file=sys.stderr,
                flush=True,
            )
            os._exit(1)

    def _is_mine(self) -> bool:
        now = holder(self.folder)
        return now is not None and now.token == self.me.token


def _read(folder: LocalFolder) -> bytes | None:
    try:
        return folder.read(LOCK)
    except FileNotFoundError:
        return None


def holder(folder: LocalFolder) -> Holder | None:
    """Say who holds a folder."""
    return _holder(_read(folder))


def lives(holder: Holder) -> bool | None:
    """Say whether a holder lives, as its kernel says; None: it is on another machine."""
    if holder.machine != _machine() or not holder.born:
        return None
    return _born(holder.pid) == holder.born


def _holder(data: bytes | None) -> Holder | None:
    """Read a lock; None where there is none, or one that is damaged."""
    with contextlib.suppress(msgspec.DecodeError):
        return msgspec.json.decode(data or b"", type=Holder)
    return None


def _machine() -> str:
    """Name this boot of this machine, and its space of process numbers."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return " ".join(parts)


def _born(pid: int) -> str:
    """Give when a process of this machine began, as the kernel counts; "" where none lives."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:  # ended, or no Linux
        return ""
    return "" if state in "ZX" else fields[18]
