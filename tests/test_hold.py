import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from chipgen.errors import Refusal
from chipgen.storage import LocalFolder
from train import hold
from train.hold import Hold

KEEP = """
import sys, time
from chipgen.storage import LocalFolder
from train import hold
hold.BEAT = 0.05
with hold.Hold(LocalFolder(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(hold, "BEAT", 0.05)
    monkeypatch.setattr(hold, "SILENCE", 0.5)
    return LocalFolder(tmp_path)


def lock(folder):
    return folder.path / hold.LOCK


def until(there):
    """Wait for what another thread does."""
    limit = time.monotonic() + 10
    while not there():
        assert time.monotonic() < limit
        time.sleep(0.01)


@pytest.fixture
def child(folder):
    """A process that holds the folder."""
    line = [sys.executable, "-c", KEEP, str(folder)]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as made:
        assert made.stdout.readline() == "held\n"
        yield made
        made.kill()


def written_by(folder, **changes):
    """Leave a lock as another process would have written it."""
    with Hold(folder):
        left = json.loads(lock(folder).read_bytes())
    lock(folder).write_text(json.dumps({**left, "token": "other", **changes}))


def test_a_folder_is_let_go_at_the_end_and_after_an_error(folder):
    with Hold(folder):
        assert json.loads(lock(folder).read_bytes())["pid"] == os.getpid()
    with pytest.raises(RuntimeError), Hold(folder):
        raise RuntimeError
    assert folder.names() == []
    with Hold(folder):
        pass


def test_a_second_run_is_refused_with_the_holder_and_a_killed_ones_lock_is_not_in_the_way(
    folder, child
):
    with pytest.raises(Refusal, match=rf"pid {child.pid} on {os.uname().nodename}"), Hold(folder):
        pass
    child.send_signal(signal.SIGSTOP)  # silent, but alive
    time.sleep(2 * hold.SILENCE)
    with pytest.raises(Refusal, match="in use"), Hold(folder):
        pass
    child.kill()
    while hold._born(child.pid):  # also while nobody has asked for its exit code
        time.sleep(0.01)
    with Hold(folder):
        assert json.loads(lock(folder).read_bytes())["pid"] == os.getpid()
    assert folder.names() == []


def test_a_number_that_another_process_has_now_is_no_holder(folder):
    written_by(folder, born="1")
    with Hold(folder):
        pass


def test_of_another_machine_only_a_holder_that_writes_is_alive(folder):
    written_by(folder, machine="elsewhere", host="node7", pid=1)
    begin = time.monotonic()
    with Hold(folder):
        assert time.monotonic() - begin >= hold.SILENCE
    written_by(folder, machine="elsewhere", host="node7", pid=1)

    def beat():
        for n in range(60):
            left = json.loads(lock(folder).read_bytes())
            folder.write(hold.LOCK, json.dumps({**left, "beat": n}).encode())
            time.sleep(0.02)

    other = threading.Thread(target=beat)
    other.start()
    with pytest.raises(Refusal, match="pid 1 on node7"), Hold(folder):
        pass
    other.join()


def test_a_damaged_lock_is_in_the_way_only_for_a_while(folder):
    for damage in (b"\0\0", b"", b'{"host":"\xff"}'):
        lock(folder).write_bytes(damage)
        with Hold(folder):
            pass
        assert folder.names() == []


def test_a_run_whose_folder_went_to_another_while_it_slept_ends_at_once(folder, child):
    child.send_signal(signal.SIGSTOP)
    lock(folder).unlink()
    with Hold(folder):
        child.send_signal(signal.SIGCONT)
        assert child.wait(10) == 1
        assert f"now held by the run with pid {os.getpid()}" in child.stderr.read()
        assert json.loads(lock(folder).read_bytes())["pid"] == os.getpid()


def test_a_lock_that_somebody_deleted_comes_back_and_a_full_disk_costs_a_beat(folder, monkeypatch):
    with Hold(folder) as held:
        lock(folder).unlink()
        until(lambda: lock(folder).exists() and lock(folder).read_bytes())

        def full(*_):
            failed.set()
            raise Refusal("no space left")

        failed = threading.Event()
        with monkeypatch.context() as patch:
            patch.setattr(held.folder, "write", full)
            assert failed.wait(10)
        beat = json.loads(lock(folder).read_bytes())["beat"]
        until(lambda: json.loads(lock(folder).read_bytes())["beat"] > beat)
    assert folder.names() == []


def test_who_died_at_taking_over_is_not_in_the_way_either(folder):
    written_by(folder, born="1")
    name = hashlib.sha256(lock(folder).read_bytes()).hexdigest()[:16]
    (folder.path / f".{hold.LOCK}-{name}").write_bytes(b"")
    with Hold(folder):
        assert json.loads(lock(folder).read_bytes())["pid"] == os.getpid()
    assert folder.names() == []


def test_of_many_that_find_a_dead_holder_one_gets_the_folder(folder):
    written_by(folder, born="1")
    got, refused = [], []
    inside, start = threading.Lock(), threading.Barrier(8)

    def take():
        start.wait()
        try:
            with Hold(folder):
                assert inside.acquire(blocking=False)
                got.append(1)
                time.sleep(0.02)
                inside.release()
        except Refusal:
            refused.append(1)

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got
    assert len(got) + len(refused) == 8
    assert folder.names() == []


def test_a_folder_that_nobody_can_write_needs_no_lock(folder, monkeypatch):
    def read_only(*_args, **_more):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(hold.os, "open", read_only)
    with Hold(folder):
        pass


def test_a_lock_that_a_full_disk_takes_no_bytes_of_is_told_and_not_left(folder, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(hold.os, "write", full)
        with pytest.raises(Refusal, match=r"lock\.json: the disk is full"), Hold(folder):
            pass
    assert folder.names() == []
    with Hold(folder):
        pass
