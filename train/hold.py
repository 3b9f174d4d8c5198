"""A folder belongs to one run at a time: a lock that names its holder and outlives no dead one.

lock.json says who holds the folder and is written anew every BEAT seconds. On the holder's own
machine the kernel says whether it lives; elsewhere, whether it writes. No clocks are compared.
"""

import contextlib
import errno
import hashlib
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
from chipgen.storage import LocalFolder, writing

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
        self._read_only = False
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True, name="hold")

    def __enter__(self) -> "Hold":
        while not self._created():
            if self._read_only:
                return self  # nobody writes here, and who tries is told so
            if self._taken_over():
                break
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._end.set()
        if self._read_only:
            return
        self._thread.join()
        with contextlib.suppress(OSError, Refusal):  # how the run ended is what counts
            if self._is_mine():
                self.folder.remove(LOCK)

    def _created(self) -> bool:
        """Make the lock, unless there is one."""
        try:
            self.folder.path.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):  # removed since, for it was empty
                return self._made(LOCK)
            return False
        except OSError as error:
            self._read_only = error.errno in READ_ONLY
            if not self._read_only:
                raise
            return False

    def _made(self, name: str) -> bool:
        """Make a file that names this run, unless there is one: of several runs, one does."""
        path = self.folder.path / name
        try:
            file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            return False
        try:
            with writing(path):
                os.write(file, msgspec.json.encode(self.me))
        except (OSError, Refusal):
            self.folder.remove(name)  # empty, it would be somebody's for a while
            raise
        finally:
            os.close(file)
        return True

    def _taken_over(self) -> bool:
        """Take a dead holder's place; refuse a living one's."""
        seen = _read(self.folder)
        if seen is None:
            return False  # just released
        before = _holder(seen)
        alive = lives(before) if before else None
        if alive is None:
            whom = f"{before.host}, pid {before.pid}" if before else "somebody"
            log.info("%s: held by %s; does it live? (%g s)", self.folder, whom, SILENCE)
            alive = not self._stays(seen)
        if alive:
            if now := holder(self.folder):
                raise Refusal(
                    f"{self.folder}: in use by the run with pid {now.pid} on {now.host}; wait for "
                    f"it, stop it, or choose another folder"
                )
            return False
        claim = f".{LOCK}-{hashlib.sha256(seen).hexdigest()[:16]}"
        if not self._made(claim):  # another run is at it
            if self._stays(seen):  # and died at it
                self.folder.remove(claim)
            return False
        try:
            if _read(self.folder) != seen:
                return False
            self.folder.write(LOCK, msgspec.json.encode(self.me))
            return True
        finally:
            self.folder.remove(claim)

    def _stays(self, seen: bytes) -> bool:
        """Watch whether the lock stays as it is."""
        until = time.monotonic() + SILENCE
        while time.monotonic() < until:
            time.sleep(min(BEAT, SILENCE) / 4)  # shared file systems don't tell of changes
            with contextlib.suppress(OSError):
                if _read(self.folder) != seen:
                    return False
        return True

    def _beat(self) -> None:
        """Give signs of life; what another run holds must not be written to any more."""
        while not self._end.wait(BEAT):
            try:
                if self._is_mine():
                    self.me.beat += 1
                    self.folder.write(LOCK, msgspec.json.encode(self.me))
                elif not self._created() and (now := holder(self.folder)):
                    self._lost_to(now)
            except (OSError, Refusal):
                continue  # storage that hiccups or is full: the next beat may get through

    def _lost_to(self, now: Holder) -> None:
        """End the process at once, whatever it is at."""
        try:
            print(
                f"{self.folder}: now held by the run with pid {now.pid} on {now.host}, for this "
                f"one was silent for too long; it ends here, and saves nothing more",
                file=sys.stderr,
                flush=True,
            )
        finally:
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
    """Say whether a holder lives, as its kernel says; None: this machine's can't tell."""
    if holder.machine != _machine() or not holder.born:
        return None
    born = _born(holder.pid)
    if born:
        return born == holder.born
    try:
        os.kill(holder.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's, and hidden
        return None
    return False  # ended, and not yet waited for


def _holder(data: bytes | None) -> Holder | None:
    """Read a lock; None where there is none, or one that is damaged."""
    with contextlib.suppress(ValueError):  # also of what is no UTF-8
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
