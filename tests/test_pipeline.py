import functools
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import made_up
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from chipgen import pipeline, shards
from chipgen.__main__ import main
from chipgen.run import read_record, recipe_of
from chipgen.storage import LocalFolder, open_folder
from chipgen.tables import read_table


def tree(folder: Path) -> dict[str, str]:
    """Map every file below a folder to the hash of its bytes."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def planned(tmp_path: Path, name: str, pictures: int = 40) -> Path:
    """Plan a made-up data set with negatives into a run folder of a name."""
    data, recipe = tmp_path / "data", tmp_path / "r.toml"
    if not data.exists():
        made_up.coco(data, pictures)
        (data / "train/000007.jpg").write_bytes(b"\xff\xd8 broken")
        made_up.recipe(recipe)
        pq.write_table(made_up_proposals(data), tmp_path / "proposals.parquet")
    run = tmp_path / name
    assert main(["plan", str(run), "--data", str(data), "--recipe", str(recipe)]) == 0
    assert main(["negatives", str(run), "--proposals", str(tmp_path / "proposals.parquet")]) == 0
    return run


def made_up_proposals(data: Path) -> pa.Table:
    """Scatter 40 proposals over each picture."""
    images = json.loads((data / "annotations/instances_train.json").read_text())["images"]
    rng = np.random.default_rng(0)
    rows = []
    for image in images:
        for _ in range(40):
            size = float(np.exp(rng.uniform(np.log(8), np.log(120))))
            x, y = rng.uniform(0, image["width"] - 8), rng.uniform(0, image["height"] - 8)
            rows.append((image["id"], 0, x, y, x + size, y + size, float(rng.random())))
    names = ("picture_id", "level", "x1", "y1", "x2", "y2", "score")
    return pa.table(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True)))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Write a run once with one worker: its parent folder and its tree of shards."""
    tmp_path = tmp_path_factory.mktemp("undisturbed")
    run = planned(tmp_path, "one")
    assert main(["write", str(run), "--workers", "1"]) == 0
    assert main(["verify", str(run)]) == 0
    return tmp_path, tree(run / "shards")


def test_the_reference_run_has_enough_groups_to_be_told_apart(undisturbed):
    _, expected = undisturbed
    assert sum(name.endswith(".tar") for name in expected) > 20
    assert any(name.startswith("negative/000/negative-") for name in expected)
    assert not any("groups" in name or name.endswith(".tmp") for name in expected)


def test_four_workers_write_the_same_tree(undisturbed):
    tmp_path, expected = undisturbed
    run = planned(tmp_path, "four")
    assert main(["write", str(run), "--workers", "4"]) == 0
    assert tree(run / "shards") == expected


def test_three_parts_and_finish_write_the_same_tree(undisturbed):
    tmp_path, expected = undisturbed
    run = planned(tmp_path, "parts")
    for part in ("2/3", "0/3"):
        assert main(["write", str(run), "--workers", "1", "--part", part]) == 0
    assert main(["write", str(run), "--finish"]) == 1  # a part is missing
    assert main(["write", str(run), "--workers", "1", "--part", "1/3"]) == 0
    assert main(["write", str(run), "--finish"]) == 0
    assert tree(run / "shards") == expected


@pytest.mark.parametrize("workers", [1, 2])
def test_a_run_killed_again_and_again_writes_the_same_tree(undisturbed, workers):
    """Kill with SIGKILL at 10 random moments for each number of workers: 20 in all."""
    tmp_path, expected = undisturbed
    run = planned(tmp_path, f"killed{workers}")
    command = [sys.executable, "-m", "chipgen", "write", str(run), "--workers", str(workers)]
    rng = random.Random(workers)
    kills = 0
    while kills < 10:
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
        try:
            process.wait(timeout=rng.uniform(0.3, 1.5))
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)  # the parent alone: workers must see to themselves
            process.wait()
            kills += 1
        else:
            assert process.returncode == 0
            # it was faster than the clock: throw away a random half and go on
            some = sorted((run / "shards").rglob("*.tar"))
            for path in rng.sample(some, len(some) // 2):
                path.unlink()
            for manifest in (run / "shards").rglob(shards.MANIFEST):
                manifest.unlink()
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    assert tree(run / "shards") == expected


def test_a_worker_that_dies_is_named_and_the_run_goes_on_later(undisturbed, capsys):
    tmp_path, expected = undisturbed
    run = planned(tmp_path, "worker-died")
    code = (
        "import os, signal, threading, multiprocessing as mp, sys\n"
        "from chipgen.__main__ import main\n"
        "def kill():\n"
        "    while not mp.active_children(): pass\n"
        "    os.kill(mp.active_children()[0].pid, signal.SIGKILL)\n"
        "if __name__ == '__main__':\n"
        "    threading.Thread(target=kill, daemon=True).start()\n"
        f"    sys.exit(main(['write', {str(run)!r}, '--workers', '2']))\n"
    )
    script = tmp_path / "kill_worker.py"
    script.write_text(code)
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 1
    assert "a worker died (exit code -9" in done.stderr
    assert "Traceback" not in done.stderr
    assert main(["write", str(run), "--workers", "2"]) == 0
    assert tree(run / "shards") == expected


def test_ctrl_c_stops_with_one_line_and_keeps_what_is_finished(undisturbed):
    tmp_path, expected = undisturbed
    run = planned(tmp_path, "interrupted")
    command = [sys.executable, "-m", "chipgen", "write", str(run), "--workers", "2"]
    # a test run in the background is deaf to Ctrl-C and would hand that down
    hearing = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, start_new_session=True, bufsize=1,
        preexec_fn=hearing,
    )  # fmt: skip
    while not list((run / "shards").glob("positive/groups/*/*.json")):
        assert process.poll() is None
    os.killpg(process.pid, signal.SIGINT)  # a terminal's Ctrl-C reaches every process
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert "the same command goes on from there" in err
    assert main(["write", str(run), "--workers", "1"]) == 0
    assert tree(run / "shards") == expected


def test_a_second_write_does_nothing(undisturbed, caplog):
    tmp_path, expected = undisturbed
    times = {p: p.stat().st_mtime_ns for p in (tmp_path / "one").rglob("*") if p.is_file()}
    caplog.set_level("INFO")
    planned(tmp_path, "one")
    assert main(["write", str(tmp_path / "one")]) == 0
    assert caplog.text.count("up to date") == 4
    assert times == {p: p.stat().st_mtime_ns for p in (tmp_path / "one").rglob("*") if p.is_file()}
    assert tree(tmp_path / "one/shards") == expected


def test_a_run_that_finds_its_set_finished_by_another_is_content(undisturbed):
    tmp_path, expected = undisturbed
    run = open_folder(planned(tmp_path, "one"))
    record = read_record(run)
    job = pipeline.open_job(run, "positive", record, recipe_of(record))
    run.write(f"shards/positive/{job.record_name(0)}", b"{}")  # what it has begun again
    assert pipeline.finish(job) == shards.read_manifest(job.folder)
    assert tree(tmp_path / "one/shards") == expected


def test_every_positive_of_an_epoch_is_written_once_and_rejects_are_counted(undisturbed):
    tmp_path, _ = undisturbed
    folder = open_folder(tmp_path / "one")
    manifest = shards.read_manifest(folder.sub("shards/positive"))
    rejects = read_table(folder.sub("shards/positive"), shards.REJECTS).to_pylist()
    (picture,) = [r for r in rejects if r["annotation_id"] is None]
    assert (picture["file"], picture["reason"]) == ("000007.jpg", "not_a_picture")
    plan = read_table(folder.sub("plan"), "positive.parquet")
    broken = sum(picture_id == 7 for picture_id in plan["picture_id"].to_pylist())
    assert broken > 0
    assert manifest.counts["chips"] == plan.num_rows - broken
    for kind in ("pictures", "annotations"):
        counts = manifest.counts[kind]
        assert counts["listed"] == counts["used"] + counts["without_chips"] + counts["rejected"]
    assert manifest.counts["pictures"]["without_chips"] == 8  # every fifth has no boxes


def test_other_shard_settings_are_refused_by_a_folder_that_holds_shards(undisturbed, capsys):
    tmp_path, expected = undisturbed
    arguments = ["write", str(tmp_path / "one"), "--recipe", str(tmp_path / "r.toml")]
    assert main([*arguments, "--set", "shards.quality=50"]) == 1
    assert "holds the shards of another recipe" in capsys.readouterr().err
    assert main([*arguments, "--set", "chips.stride=8"]) == 1
    assert "planned with other [chips]" in capsys.readouterr().err
    plans = tree(tmp_path / "one/plan")
    other = ["plan", str(tmp_path / "one"), "--data", str(tmp_path / "data")]
    assert main(other) == 1
    assert "holds the shards of another recipe" in capsys.readouterr().err
    assert tree(tmp_path / "one/plan") == plans
    assert tree(tmp_path / "one/shards") == expected


def test_unfinished_shards_of_another_recipe_are_refused(undisturbed, capsys):
    tmp_path, _ = undisturbed
    run = planned(tmp_path, "half")
    assert main(["write", str(run), "--workers", "1", "--part", "0/2"]) == 0
    arguments = ["write", str(run), "--recipe", str(tmp_path / "r.toml")]
    assert main([*arguments, "--set", "shards.quality=50"]) == 1
    assert "unfinished shards of another recipe" in capsys.readouterr().err


def test_a_storage_error_stops_the_run_and_rejects_nothing(undisturbed, capsys, monkeypatch):
    tmp_path, expected = undisturbed
    run = planned(tmp_path, "flaky")
    read = LocalFolder.read
    failures = iter([True])

    def flaky(self, name, start=0, length=None):
        if name == "000003.jpg" and next(failures, False):
            raise OSError(5, "Input/output error")
        return read(self, name, start, length)

    monkeypatch.setattr("chipgen.storage.LocalFolder.read", flaky)
    assert main(["write", str(run), "--workers", "1"]) == 1
    err = capsys.readouterr().err
    assert "000003.jpg" in err
    assert "Input/output error" in err
    assert main(["write", str(run), "--workers", "1"]) == 0
    assert tree(run / "shards") == expected


def take_away(data: Path, how: str) -> Path:
    """Take the pictures of a data set away, as moving or unmounting does; gives where they are."""
    pictures = data / "train"
    away = pictures.rename(data / "away")
    if how == "a file":
        pictures.touch()
    elif how != "gone":
        pictures.mkdir()
    if how == "others":
        (pictures / "lost+found").mkdir()
    return away


def bring_back(away: Path) -> None:
    pictures = away.with_name("train")
    shutil.rmtree(pictures, ignore_errors=True)
    pictures.unlink(missing_ok=True)
    away.rename(pictures)


def rejected_pictures(run: Path) -> list[str]:
    rejects = read_table(open_folder(run / "shards/positive"), shards.REJECTS).to_pylist()
    return [row["file"] for row in rejects if row["annotation_id"] is None]


@pytest.mark.parametrize("how", ["gone", "empty", "a file", "others"])
@pytest.mark.parametrize("part", [[], ["--part", "1/3"]], ids=["whole", "part"])
def test_pictures_that_went_after_planning_are_not_rejected(tmp_path, capsys, how, part):
    run = planned(tmp_path, "run", 12)
    away = take_away(tmp_path / "data", how)
    assert main(["write", str(run), "--workers", "1", *part]) == 1
    said = capsys.readouterr().err
    assert str(tmp_path / "data/train") in said
    assert "mount" in said
    bring_back(away)
    assert main(["write", str(run), "--workers", "1"]) == 0
    assert rejected_pictures(run) == ["000007.jpg"]


@pytest.mark.parametrize("how", ["gone", "empty"])
def test_pictures_that_go_while_they_are_cut_are_not_rejected(tmp_path, capsys, monkeypatch, how):
    run = planned(tmp_path, "run", 12)
    away = []

    def unmount(job, group, made):
        flush(job, group, made)
        if not away:
            away.append(take_away(tmp_path / "data", how))

    flush = pipeline._flush
    monkeypatch.setattr(pipeline, "_flush", unmount)
    assert main(["write", str(run), "--workers", "1"]) == 1
    assert "data/train: not there, or empty" in capsys.readouterr().err
    monkeypatch.undo()
    bring_back(away[0])
    assert main(["write", str(run), "--workers", "1"]) == 0
    assert rejected_pictures(run) == ["000007.jpg"]


def test_pictures_that_are_missing_one_by_one_are_rejected_one_by_one(tmp_path):
    run = planned(tmp_path, "run", 12)
    gone = [f"{number:06d}.jpg" for number in (1, 2, 3, 4, 6, 8, 9)]
    for name in gone:
        (tmp_path / "data/train" / name).unlink()
    assert main(["write", str(run), "--workers", "1"]) == 0
    assert sorted(rejected_pictures(run)) == sorted([*gone, "000007.jpg"])


def test_a_plan_of_whose_pictures_none_can_be_decoded_is_not_written(tmp_path, capsys):
    run = planned(tmp_path, "run", 4)
    for path in (tmp_path / "data/train").iterdir():
        path.write_text("version https://git-lfs.github.com/spec/v1")
    assert main(["write", str(run), "--workers", "1"]) == 1
    said = capsys.readouterr().err
    assert "pictures: of 4 that were tried, none can be read" in said
    assert "not_a_picture" in said


@pytest.mark.parametrize("per_group", [1, 5, 1000])
def test_groups_hold_whole_pictures_and_every_chip_once(per_group):
    rng = np.random.default_rng(per_group)
    pictures = np.sort(rng.integers(0, 30, 200))
    groups = pipeline.make_groups(pictures, per_group)
    assert groups[0, 2] == 0
    assert groups[-1, 3] == len(pictures)
    assert (groups[1:, 2] == groups[:-1, 3]).all()
    assert groups[:, 4].sum() == len(set(pictures.tolist()))
    for first, last, start, end, _ in groups:
        assert set(pictures[start:end]) <= set(range(first, last))
        assert start == 0 or pictures[start - 1] < first
    largest = np.bincount(pictures).max()
    assert (groups[:, 3] - groups[:, 2]).max() < per_group + largest


def test_no_chips_make_an_empty_set(tmp_path):
    made_up.coco(tmp_path / "data", 5)
    content = json.loads((tmp_path / "data/annotations/instances_train.json").read_text())
    (tmp_path / "data/annotations/instances_train.json").write_text(
        json.dumps({**content, "annotations": []})
    )
    run = str(tmp_path / "run")
    assert main(["plan", run, "--data", str(tmp_path / "data")]) == 0
    assert main(["negatives", run]) == 0
    assert main(["write", run, "--workers", "2"]) == 0
    assert main(["verify", run]) == 0
    kinds = {kind: shards.read_manifest(open_folder(f"{run}/shards/{kind}")).counts["chips"]
             for kind in ("positive", "negative")}  # fmt: skip
    assert kinds == {"positive": 0, "negative": 5}
