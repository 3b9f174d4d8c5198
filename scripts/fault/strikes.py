"""How each kind of fault strikes a stage; all give the outcome, or raise Unlucky."""

import contextlib
import json
import os
import random
import re
import resource
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from fault import calls
from fault.case import Case, Unlucky, watch
from fault.forks import Ran
from fault.stages import TRAININGS, before


def signalled(case: Case, number: int) -> str:
    """Send a signal at a moment drawn by lot: at a system call, or by the clock."""
    index = case.until_command()
    text, processes = case.stage.commands[index], case.stage.processes
    group = case.rng.random() < 0.5  # a scheduler signals all processes, an operator one
    groups = calls.READS + calls.WRITES
    count = case.calls(index, groups) if processes == 1 else 0
    if count and case.rng.random() < 0.6:
        at = case.rng.randint(1, count)
        case.fault.how = f"command {index}, call {at} of {count}{', group' * group}"

        def prepare() -> None:
            watch(case, groups, at, calls.signalling(number, group))

        ran = case.do(text, prepare)
    else:
        after = case.rng.random() * case.reference["seconds"][case.stage.name][index]
        case.fault.how = f"command {index}, after {after:.2f} s{', group' * group}"
        child = case.start(text, processes=processes)
        if not child.wait(after):
            with contextlib.suppress(ProcessLookupError):
                (os.killpg if group else os.kill)(child.pid, number)
        ran = case.ended(child)
    if ran.code not in (0, -number):
        said = {signal.SIGINT: "stopped", signal.SIGTERM: "SIGTERM", signal.SIGKILL: "SIGKILL"}
        if processes == 1:
            case.require(ran, "stopped by a signal", "a worker died", said.get(number, "stopped"))
    elif ran.code:
        case.fault.said = f"ended by {signal.Signals(number).name}"
    return case.finish(index, ran)


def failing(case: Case, number: int, groups: tuple[str, ...], lasting: bool) -> str:
    """Let system calls fail from a moment on, or once; the file must be named."""
    index = case.until_command()
    count = case.calls(index, groups)
    if not count:
        case.fault.how = f"command {index} makes no such call"
        return case.finish(index, case.do(case.stage.commands[index]))
    at = case.rng.randint(1, count)
    case.fault.how = f"command {index}, call {at} of {count}{', lasting' * lasting}"

    def prepare() -> None:
        watch(case, groups, at, calls.failing(number, case.told), lasting)

    ran = case.do(case.stage.commands[index], prepare)
    if ran.code:
        require_place(case, ran)
    return case.finish(index, ran)


def require_place(case: Case, ran: Ran) -> None:
    """Demand that a failure names one of the files whose calls have failed."""
    told = case.told.read_text().split("\n") if case.told.exists() else []
    names = {re.sub(r"^\.(.*)\.tmp$", r"\1", Path(line).name) for line in told if line}
    names = {f"/{name}" for name in names}
    case.fault.how += f" ({', '.join(sorted(names)[:3])})"
    case.require(ran, *names)


def worker_died(case: Case) -> str:
    """Kill one worker of a command that has such."""
    index = case.until_command()
    child = case.start(case.stage.commands[index])
    seconds = case.reference["seconds"][case.stage.name][index]
    while not (found := child.group()) and not child.wait(0.005):
        pass
    child.wait(case.rng.random() * max(seconds - (time.monotonic() - child.begin), 0.0))
    case.fault.how = f"{time.monotonic() - child.begin:.2f} s after the start"
    for pid in found[:1]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    ran = case.ended(child)
    if ran.code:
        case.require(ran, "worker died")
    return case.finish(index, ran)


def full_disk(case: Case) -> str:
    """Fill the file system: a real one where root may mount it, else by injected errors."""
    if not may_mount():
        return failing(case, calls.FULL, calls.WRITES, lasting=True)
    case.run.mkdir()
    mount(case, "64m")
    index = case.until_command()
    text = case.stage.commands[index]
    page = 4096
    grown = case.reference["grown"][case.stage.name][index]
    room = case.rng.randrange(0, max(grown, 2 * page), page)
    status = os.statvfs(case.run)
    used = (status.f_blocks - status.f_bfree) * status.f_bsize
    mount(case, f"{used + room}", "remount,")
    case.fault.how = f"command {index}, tmpfs, {room} bytes left of {grown}"
    ran = case.do(text)
    if ran.code:
        case.require(ran, str(case.run))
        case.require(ran, "full", "No space left")
    mount(case, "64m", "remount,")
    return case.finish(index, ran)


def read_only(case: Case) -> str:
    """Make the file system read-only."""
    if not may_mount():
        return failing(case, calls.FROZEN, calls.WRITES, lasting=True)
    case.run.mkdir()
    mount(case, "64m")
    index = case.until_command()
    mount(case, "64m", "remount,ro,")
    case.fault.how = f"command {index}, tmpfs"
    ran = case.do(case.stage.commands[index])
    if not ran.code:
        raise Unlucky("wrong: ended well where nothing can be written")
    case.require(ran, str(case.run))
    case.require(ran, "read-only", "Read-only")
    mount(case, "64m", "remount,rw,")
    return case.finish(index, ran)


def file_limit(case: Case) -> str:
    """Limit the size of files (ulimit -f)."""
    index = case.until_command()
    largest = case.reference["largest"][case.stage.name]
    limit = case.rng.randrange(1, largest)
    case.fault.how = f"command {index}, at most {limit} bytes (the largest has {largest})"

    def prepare() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # as Python starts

    # what it says goes to a file as well
    limit = max(limit, 4096)
    ran = case.do(case.stage.commands[index], prepare)
    if ran.code:
        case.require(ran, str(case.run), "cannot share")  # with loader workers: files as well
        case.require(ran, "large", "File too large")
    return case.finish(index, ran)


def may_mount() -> bool:
    """Say whether this process may mount a tmpfs."""
    if os.geteuid() or not shutil.which("mount"):
        return False
    with tempfile.TemporaryDirectory() as folder:
        tried = subprocess.run(
            ["mount", "-t", "tmpfs", "tmpfs", folder], capture_output=True, check=False
        )
        if tried.returncode == 0:
            subprocess.run(["umount", folder], check=True)
        return tried.returncode == 0


def mount(case: Case, size: str, how: str = "") -> None:
    """Mount a tmpfs of a size at the run folder, or change it."""
    options = ["-o", f"{how}size={size}"]
    subprocess.run(["mount", "-t", "tmpfs", *options, "tmpfs", str(case.run)], check=True)
    case.mounted = True


def changed(path: Path, how: str, rng: random.Random) -> str:
    """Damage a file; says how."""
    data = path.read_bytes()
    if how == "gone":
        path.unlink()
        return f"{path.name} deleted"
    if how == "cut":
        size = rng.randrange(len(data))
        path.write_bytes(data[:size])
        return f"{path.name} cut to {size} of {len(data)} bytes"
    place, bit = rng.randrange(len(data)), 1 << rng.randrange(8)
    path.write_bytes(data[:place] + bytes([data[place] ^ bit]) + data[place + 1 :])
    return f"{path.name}: bit {bit} of byte {place} of {len(data)}"


def damaged(case: Case, patterns: tuple[str, ...], ways: tuple[str, ...], state: str = "") -> str:
    """Damage a file that a stage reads, and run the stage."""
    case.copy(state or before(case.stage.of))
    files = sorted(p for pattern in patterns for p in case.run.glob(pattern) if p.is_file())
    path = case.rng.choice(files)
    case.fault.how = changed(path, case.rng.choice(ways), case.rng)
    if not state:
        case.spoiled = str(path.relative_to(case.run))
    ran = case.do(case.stage.commands[0])
    if ran.code:
        case.require(ran, path.name, path.stem)
    elif len(case.stage.commands) == 1 and (wrong := case.difference()):
        raise Unlucky(f"wrong: ended well, but {', '.join(wrong[:6])}")
    return case.finish(0, ran, remedies=True)


def misled(case: Case, change: Callable[[Case], str], *names: str) -> str:
    """Put something foreign into the state before a stage, and run the stage."""
    case.copy(before(case.stage.of))
    case.fault.how = change(case)
    ran = case.do(case.stage.commands[0])
    if ran.code:
        case.require(ran, *names)
    elif wrong := case.difference():
        raise Unlucky(f"wrong: ended well, but {', '.join(wrong[:6])}")
    return case.finish(0, ran, remedies=True)


def half(case: Case) -> str:
    """Name the state in the midst of a case's stage."""
    return f"half-{case.stage.of}"


def last_checkpoint(case: Case) -> str:
    """Damage the newest checkpoint of a training that is finished."""
    name = "rpn" if case.stage.of == "proposals" else "train"
    folder = case.places.state(before(case.stage.of)) / name / "checkpoints"
    newest = max(path.stem for path in folder.glob("step-*.json"))
    kind, ways = case.rng.choice((("pt", ("cut", "flip", "gone")), ("json", ("cut", "flip"))))
    return damaged(case, (f"{name}/checkpoints/{newest}.{kind}",), ways)


def foreign_manifest(case: Case) -> str:
    """Let a manifest be of another recipe."""
    some = sorted(case.run.glob("shards/*/manifest.json"))
    path = case.rng.choice(some)
    other = case.places.work / "foreign" / path.relative_to(case.run)
    shutil.copy(other, path)
    return f"{path.parent.name}/{path.name} of another recipe"


def foreign_part(case: Case) -> str:
    """Let a part of the proposals be another network's."""
    parts = sorted((case.places.work / "foreign" / "proposals").glob("*/part-*.parquet"))
    path = case.rng.choice(parts)
    home = case.run / "proposals" / path.parent.name
    home.mkdir(parents=True, exist_ok=True)
    shutil.copy(path, home)
    return f"{path.name} of another network"


def second_run(case: Case) -> str:
    """Start a stage twice: at a moment drawn by lot the first stands still, and the second runs."""
    index = case.until_command()
    text = case.stage.commands[index]
    groups = calls.WRITES
    count = case.calls(index, groups)
    at = case.rng.randint(1, count)
    case.fault.how = f"command {index}, the first stood at call {at} of {count}"

    def prepare() -> None:
        watch(case, groups, at, calls.signalling(signal.SIGSTOP, False))

    first = case.start(text, prepare)
    while first.look() is None and not stopped(first.pid):
        time.sleep(0.005)
    held = [*case.run.glob("*/lock.json")]
    second = case.do(text)
    if first.code is None:
        os.kill(first.pid, signal.SIGCONT)
    step = len(case.fault.steps)
    case.fault.steps.append(f"the first, {text}")
    ran = case.ended(first)
    if second.code:
        whose = f"pid {first.pid} on {socket.gethostname()}"
        # only trainings hold a folder: parts of the other stages may be many at a time
        case.require(second, whose if case.stage.of in TRAININGS else "another run")
    elif held and case.stage.of in TRAININGS and ran.code == 0:
        raise Unlucky(f"wrong: two runs held one folder ({case.fault.steps[step]})")
    if ran.code:
        case.require(ran, "held by", "in use", "another run")
    outcome = case.finish(index, ran, repeat=True)
    return "recovered" if second.code else outcome


def stopped(pid: int) -> bool:
    """Say whether a process stands still."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    return False


def stale_lock(case: Case) -> str:
    """Leave the lock of a run that is gone: here, on another machine, or unreadable; or one lives.

    One that lives on another machine is known by its beats alone, and is refused.
    """
    from train import hold

    case.copy(before(case.stage.of))
    folder = case.run / TRAININGS[case.stage.of]
    folder.mkdir(parents=True)
    owners = (
        "a dead one's",
        "a silent machine's",
        "a living machine's",
        "nobody's",
        "a later boot's",
    )
    whose = case.rng.choice(owners)
    dead = os.fork()
    if not dead:
        os._exit(0)
    os.waitpid(dead, 0)
    machine = hold._machine()
    lock = {"host": socket.gethostname(), "pid": dead, "machine": machine, "born": "1"}
    if whose.endswith("machine's"):
        lock |= {"host": "node7", "machine": "elsewhere", "pid": 1}
    elif whose == "a later boot's":
        lock |= {"pid": os.getpid(), "machine": f"{machine}x"}
    text = json.dumps({**lock, "token": "other", "beat": 0})
    (folder / hold.LOCK).write_text("{" if whose == "nobody's" else text)
    case.fault.how = f"{whose} lock"
    child = case.start(case.stage.commands[0])
    beat = 0
    while whose == "a living machine's" and not child.wait(0.1):
        beat += 1
        (folder / "beat").write_text(json.dumps({**json.loads(text), "beat": beat}))
        (folder / "beat").replace(folder / hold.LOCK)
    ran = case.ended(child)
    if whose == "a living machine's":
        if not ran.code:
            raise Unlucky("wrong: took the folder of a run that lives")
        case.require(ran, "pid 1 on node7")
    elif ran.code:
        raise Unlucky(f"lost: {ran.text[-600:]}")
    return case.finish(0, ran)


def clock_back(case: Case) -> str:
    """Let all files be of the future, and the clock go backwards at each look."""
    index = case.until_command()
    ahead = case.rng.choice((60.0, 86400.0, 1e8))
    now = time.time() + ahead
    for path in case.run.rglob("*"):
        os.utime(path, (now, now))
    case.fault.how = f"command {index}, files of {ahead:g} s ahead"

    def prepare() -> None:
        looks = iter(range(1 << 40))
        begin = time.time()
        time.time = lambda: begin - 10.0 * next(looks)

    return case.finish(index, case.do(case.stage.commands[index], prepare))
