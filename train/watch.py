"""Nobody waits for ever: each process of a training tells the others what it is doing.

A process that gets nowhere for `patience` seconds, or that loses the others, finds out whom the
group waits for, says so, and ends. Signs of life go through the store in which the group has met;
no clocks are compared.
"""

import contextlib
import logging
import multiprocessing
import os
import threading
import time
from typing import Any

import msgspec
import torch

from chipgen.errors import Refusal
from train.processes import Processes

BEAT = 5.0  # s between two signs of life, at most
BEATS = 8  # signs of life in the time of the patience, at least
LOOK = 3  # signs of life between two looks at the others
LOST = 124  # exit code, as that of `timeout`: run it again
SAVING, LOADING, COMPUTING = "saving", "waiting for its loader", "computing"
WAITING = "waiting for the others to end"
IN_ORDER = (SAVING, LOADING, COMPUTING, WAITING)  # what is done after so many steps
log = logging.getLogger("train")


class Sign(msgspec.Struct):
    """What a process says of itself."""

    host: str
    pid: int
    step: int
    doing: str
    beat: int = 0
    failed: str = ""  # its last words

    def where(self, rank: int) -> str:
        """Name the process."""
        return f"process {rank} (pid {self.pid} on {self.host})"


class Watch:
    """Gives signs of life within `with`, and ends this process when it gets nowhere."""

    def __init__(self, processes: Processes, patience: float):
        self.processes, self.patience = processes, patience
        self._beat = min(BEAT, patience / BEATS)
        self._sign = Sign(os.uname().nodename, os.getpid(), 0, COMPUTING)
        self._since = time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Watch":
        self._tell()
        self._thread.start()
        return self

    def __exit__(self, _kind: type | None, error: BaseException | None, _trace) -> None:
        try:
            if error is not None and self.processes.world > 1:
                self._last_words(error)
        finally:
            self._ended.set()
            self._thread.join()

    def at(self, step: int, doing: str) -> None:
        """Note that this process has got somewhere."""
        self._sign.step, self._sign.doing = step, doing
        self._since = time.monotonic()

    def _last_words(self, error: BaseException) -> None:
        """Tell the others why this process ends; raises the reason where another one is it."""
        lost = isinstance(error, RuntimeError) and not isinstance(error, torch.OutOfMemoryError)
        gone = self._gone(*self._two_looks()) if lost else None
        if gone:  # the error is of a collective with it
            raise Refusal(f"{gone}; {_first_line(error)}") from error
        self._sign.failed = _first_line(error) or type(error).__name__
        self._beats()

    def _watch(self) -> None:
        while not self._ended.wait(self._beat):
            self._beats()
            if time.monotonic() - self._since > self.patience:
                self._end_waiting()

    def _end_waiting(self) -> None:
        """End this process, unless it goes on after all while it looks at the others."""
        since, sign = self._since, self._sign
        before, now = self._two_looks()
        if self._ended.is_set() or self._since != since:
            return
        guilty = self._gone(before, now) or self._behind(now)
        log.error(
            "train: %s got nowhere for %.0f s, at step %d, %s: %s. Run again with --resume; if it "
            "only needs longer, raise train.patience",
            sign.where(self.processes.rank), time.monotonic() - since, sign.step, sign.doing,
            guilty,
        )  # fmt: skip
        for child in multiprocessing.active_children():
            child.kill()
        os._exit(LOST)  # the main thread can't be woken

    def _two_looks(self) -> tuple[dict[int, Sign], dict[int, Sign]]:
        """Look at the signs of all, and again when each that lives has given others."""
        before = self._signs()
        for _ in range(LOOK):
            time.sleep(self._beat)
            self._beats()
        return before, self._signs()

    def _gone(self, before: dict[int, Sign], now: dict[int, Sign]) -> str | None:
        """Name another process that has failed or gives no more signs."""
        if not now and self.processes.world > 1:
            return "the process that keeps the group together, of rank 0 or its torchrun, is gone"
        others = {rank: sign for rank, sign in now.items() if rank != self.processes.rank}
        for rank, sign in others.items():
            if sign.failed:
                return f"{sign.where(rank)} failed at step {sign.step}: {sign.failed}"
        for rank, sign in others.items():
            if rank in before and sign.beat == before[rank].beat:
                return f"{sign.where(rank)} is dead or stopped, last seen at step {sign.step}"
        return None

    def _behind(self, now: dict[int, Sign]) -> str:
        """Name the processes that are the least far."""
        places = {rank: (sign.step, IN_ORDER.index(sign.doing)) for rank, sign in now.items()}
        last = min(places.values(), default=None)
        behind = [rank for rank in places if places[rank] == last]
        if len(behind) == len(places) > 1:
            return "all are at the same place, and which is at fault can't be told"
        told = [f"{now[n].where(n)} is at step {now[n].step}, {now[n].doing}" for n in behind]
        return " and ".join(told)

    def _beats(self) -> None:
        self._sign.beat += 1
        with contextlib.suppress(RuntimeError):  # the store is gone: `_signs` shows it
            self._tell()

    def _tell(self) -> None:
        if self.processes.store is not None:
            self.processes.store.set(_key(self.processes.rank), msgspec.json.encode(self._sign))

    def _signs(self) -> dict[int, Sign]:
        """Give the signs of all by rank; none where the store is gone."""
        if self.processes.store is None:
            return {self.processes.rank: self._sign}
        keys = [_key(rank) for rank in range(self.processes.world)]
        try:
            found = self.processes.store.multi_get(keys)
        except RuntimeError:
            return {}
        return {rank: msgspec.json.decode(one, type=Sign) for rank, one in enumerate(found)}


def _key(rank: int) -> str:
    return f"watch/{rank}"


def _first_line(error: Any) -> str:
    return str(error).partition("\n")[0]
