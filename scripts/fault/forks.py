"""Commands in forks of this process, which has imported all they need and computed nothing."""

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
BOUND = 60.0  # s that a command may take; undisturbed ones take about two


@dataclass
class Ran:
    """How a command ended."""

    code: int  # -n: by signal n
    text: str
    seconds: float
    hung: bool = False


@dataclass
class Child:
    """A command that runs in a process group of its own."""

    pid: int
    out: Path
    begin: float
    code: int | None = None

    def look(self) -> int | None:
        """Give the exit code, if it has ended."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
        return self.code

    def wait(self, seconds: float) -> bool:
        """Wait for its end for some time; says whether it came."""
        until = time.monotonic() + seconds
        while self.look() is None and time.monotonic() < until:
            time.sleep(0.005)
        return self.code is not None

    def ended(self) -> Ran:
        """Wait for its end, and end what has hung or was left behind."""
        hung = not self.wait(BOUND)
        # not the tracker of semaphores, which ends by itself and leaves none
        for pid in [self.pid] * hung + self.group():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if hung:
            self.wait(BOUND)
        text = self.out.read_text(errors="replace")
        return Ran(self.code, text, time.monotonic() - self.begin, hung)

    def group(self) -> list[int]:
        """List the other processes of its group that work: loader and writing workers."""
        found = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError, ValueError):
                state, _, group = (entry / "stat").read_text().rpartition(")")[2].split()[:3]
                tracker = b"resource_tracker" in (entry / "cmdline").read_bytes()
                if int(group) == self.pid != int(entry.name) and state not in "ZX" and not tracker:
                    found.append(int(entry.name))
        return found


def start(command: list[str], out: Path, prepare: Callable[[], Any] | None = None) -> Child:
    """Run `python -m PACKAGE ARGUMENTS` in a fork.

    `prepare` runs in it first; if that gives a function, it runs last.
    """
    begin = time.monotonic()
    pid = os.fork()
    if pid:
        with contextlib.suppress(OSError):  # it may have done so, or be gone
            os.setpgid(pid, pid)
        return Child(pid, out, begin)
    with contextlib.suppress(OSError):
        os.setpgid(0, 0)
    code, after = 1, None
    try:
        handle = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        sys.stdout, sys.stderr = open(1, "w"), open(2, "w", buffering=1)  # noqa: SIM115
        module = importlib.import_module(f"{command[0]}.__main__")
        sys.modules["__main__"] = module  # what spawned workers are told to import
        if prepare:
            after = prepare()
        code = module.main(command[1:])
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    with contextlib.suppress(BaseException):
        threading._shutdown()  # threads that never end would keep a real process, too
        from multiprocessing import util

        util._exit_function()
    if after:
        after()
    sys.stdout.flush()
    os._exit(code)


def launch(command: list[str], out: Path, processes: int) -> Child:
    """Start a training of several processes by torchrun."""
    begin = time.monotonic()
    line = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m"]
    with out.open("ab") as file:
        child = subprocess.Popen(
            [sys.executable, *line, *command],
            stdout=file,
            stderr=file,
            start_new_session=True,
            cwd=ROOT,
        )
    child.returncode = 0  # its end is waited for by its number
    return Child(child.pid, out, begin)


def in_fork(work: Callable[[], Any]) -> Any:
    """Give what a function returns that may start threads, by way of json."""
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        code = 1
        try:
            os.close(read)
            with os.fdopen(write, "w") as file:
                json.dump(work(), file)
            code = 0
        except BaseException:
            traceback.print_exc()
        os._exit(code)
    os.close(write)
    with os.fdopen(read) as file:
        text = file.read()
    os.waitpid(pid, 0)
    if not text:
        raise RuntimeError("what was forked failed")
    return json.loads(text)
