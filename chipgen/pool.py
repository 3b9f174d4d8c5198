"""Runs the groups of a job in processes: progress, Ctrl-C, and the death of either side."""

import multiprocessing as mp
import os
import signal
import threading
from collections.abc import Callable, Iterator
from multiprocessing import connection
from typing import Any

from chipgen.errors import Refusal
from chipgen.pipeline import Job, write_groups

POLL = 0.2  # s between two looks at the progress


def run(job: Job, groups: list[int], workers: int, on_pictures: Callable[[int], None]) -> None:
    """Write groups with some processes; a single worker is this process itself."""
    workers = min(workers, len(groups))
    if workers <= 1:
        for _ in write_groups(job, groups, on_pictures):
            pass
        return
    context = mp.get_context("spawn")  # a fork would share numba's and Arrow's threads
    turn, done = context.Value("q", 0), context.Value("q", 0)
    children = []
    try:
        for _ in range(workers):
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=_child, args=(job, groups, turn, done, theirs))
            process.start()
            theirs.close()  # so that the child's death shows as the end of the pipe
            children.append((process, ours))
        _watch(children, done, on_pictures)
    finally:
        for process, _ in children:
            process.terminate()
        for process, pipe in children:
            process.join()
            pipe.close()


def _watch(children: list[tuple[Any, Any]], done: Any, on_pictures: Callable[[int], None]) -> None:
    """Follow the children until all have ended well; raises what any of them met."""
    running = {pipe: process for process, pipe in children}
    shown = 0
    while running:
        for pipe in connection.wait(list(running), timeout=POLL):
            process = running.pop(pipe)
            try:
                error = pipe.recv()
            except EOFError:
                process.join()
                raise Refusal(
                    f"a worker died (exit code {process.exitcode}; -9 is what running out of "
                    f"memory gives); finished shards are kept: run the same command to go on"
                ) from None
            if error is not None:
                raise error
        on_pictures(done.value - shown)
        shown = done.value


def _child(job: Job, groups: list[int], turn: Any, done: Any, pipe: Any) -> None:
    """Write groups until there are no more; sends None at the end, or the exception."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    threading.Thread(target=_die_with_parent, daemon=True).start()

    def next_groups() -> Iterator[int]:
        while True:
            with turn.get_lock():
                place = turn.value
                turn.value += 1
            if place >= len(groups):
                return
            yield groups[place]

    def count(pictures: int) -> None:
        with done.get_lock():
            done.value += pictures

    try:
        for _ in write_groups(job, next_groups(), count):
            pass
    except Exception as error:  # handed to the parent, which raises it
        pipe.send(error)
    else:
        pipe.send(None)


def _die_with_parent() -> None:
    """End this process as soon as the parent is gone, also after a SIGKILL."""
    connection.wait([mp.parent_process().sentinel])
    os._exit(1)
