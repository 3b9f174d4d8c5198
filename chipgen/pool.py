"""Runs the groups of a job in processes: progress, Ctrl-C, and the death of either side."""

import contextlib
import multiprocessing as mp
import os
import signal
import threading
from collections.abc import Callable, Iterator
from multiprocessing import connection
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any

from chipgen.errors import Refusal
from chipgen.pipeline import Job, write_groups

POLL = 0.2  # s between two looks at the progress
HELD = 60.0  # s after which a lock, held for microseconds by the living, is a dead one's


def run(job: Job, groups: list[int], workers: int, on_pictures: Callable[[int], None]) -> None:
    """Write groups with some processes, of which this is one."""
    context = mp.get_context("spawn")  # a fork would share the threads of numba and Arrow
    workers = max(1, min(workers, len(groups)))
    turn = context.Value("q", 0)
    done = context.RawArray("q", workers)  # pictures of each process: no lock to die with
    children: dict[Connection, SpawnProcess] = {}
    shown = 0

    def look(pictures: int) -> None:
        """Count own pictures, then see how the children are."""
        nonlocal shown
        done[0] += pictures
        before, shown = shown, sum(done)
        on_pictures(shown - before)
        for pipe in connection.wait(list(children), timeout=0):
            _hear(pipe, children.pop(pipe))

    try:
        for number in range(1, workers):
            ours, theirs = context.Pipe(duplex=False)
            arguments = (job, groups, turn, done, number, theirs)
            process = context.Process(target=_child, args=arguments)
            with _interrupt_held():
                process.start()
            theirs.close()  # so that the child's death shows as the end of the pipe
            children[ours] = process
        for _ in write_groups(job, _in_turn(groups, turn), look):
            pass
        while children:
            connection.wait(list(children), timeout=POLL)
            look(0)
    finally:
        for process in children.values():
            process.terminate()
        for pipe, process in children.items():
            process.join()
            pipe.close()


@contextlib.contextmanager
def _interrupt_held() -> Iterator[None]:
    """Hold Ctrl-C back for a moment: a child keeps this for life, and leaves it to the parent."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _hear(pipe: Connection, process: SpawnProcess) -> None:
    """Take a child's last word; raises what it met, or that it died without one."""
    try:
        error = pipe.recv()
    except EOFError:
        process.join()
        raise Refusal(
            f"a worker died (exit code {process.exitcode}); finished shards are kept: run the same "
            f"command to go on, after -9, which running out of memory gives, with fewer --workers"
        ) from None
    finally:
        pipe.close()
    if error is not None:
        raise error
    process.join()


def _in_turn(groups: list[int], turn: Any) -> Iterator[int]:
    """Take the next group that no process has taken, until there are no more."""
    while True:
        if not turn.get_lock().acquire(timeout=HELD):
            raise Refusal("a worker died while it took its turn; run the same command to go on")
        place = turn.value
        turn.value += 1
        turn.get_lock().release()
        if place >= len(groups):
            return
        yield groups[place]


def _child(
    job: Job, groups: list[int], turn: Any, done: Any, number: int, pipe: Connection
) -> None:
    """Write groups until there are no more; sends None at the end, or the exception."""
    threading.Thread(target=_die_with_parent, daemon=True).start()

    def count(pictures: int) -> None:
        done[number] += pictures

    try:
        for _ in write_groups(job, _in_turn(groups, turn), count):
            pass
    except Exception as error:  # handed to the parent, which raises it
        pipe.send(error)
    else:
        pipe.send(None)


def _die_with_parent() -> None:
    """End this process as soon as the parent is gone, also after a SIGKILL."""
    connection.wait([mp.parent_process().sentinel])
    os._exit(1)
