import json
import os
import shutil
import subprocess
import sys

import inferring
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import training

from chipgen import __main__ as chipgen
from chipgen.storage import LocalFolder
from infer import proposals
from infer.__main__ import main
from infer.status import report
from train.hold import LOCK, Hold

ENTRY = {"step": 40, "epoch": 1.5, "loss": 0.5, "chips_per_s": 20.0}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A planned run with positive chips and an RPN; proposals are made in parts of two pictures."""
    folder = training.shards(tmp_path, 7)
    inferring.save(folder, {}, task="rpn")
    monkeypatch.setattr(proposals, "PICTURES", 2)
    return folder


def lines(run):
    """The report by stage, and what comes next."""
    said = report(LocalFolder(run)).splitlines()[1:]
    by_name = {line[2:17].strip(): line[18:] for line in said if line.startswith("  ")}
    return by_name, said[-1]


def test_an_empty_folder_and_none(tmp_path, capsys):
    assert main(["status", str(tmp_path)]) == 0
    assert "next: python -m chipgen plan" in capsys.readouterr().out
    assert main(["status", str(tmp_path / "none")]) == 1
    assert "no such run folder" in capsys.readouterr().err


def test_chips_are_counted_by_groups(run):
    shutil.rmtree(run / "shards")
    stages, following = lines(run)
    assert stages["plan"].startswith("done     7 pictures")
    assert stages["positive chips"].strip() == "-"
    assert following == f"next: python -m chipgen write {run} --kind positive"
    assert chipgen.main(["write", str(run), "--workers", "1", "--part", "0/2"]) == 0
    stages, following = lines(run)
    groups = len(list((run / "shards" / "positive" / "groups").glob("*/*.json")))
    assert f"begun    {groups} of " in stages["positive chips"]
    assert "missing 1;" in stages["positive chips"]
    assert chipgen.main(["write", str(run), "--workers", "1", "--part", "1/2"]) == 0
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    stages, following = lines(run)
    assert "all groups are written" in stages["positive chips"]
    assert following.endswith("--kind positive --finish")
    # looking changes nothing
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
    assert chipgen.main(["write", str(run), "--finish"]) == 0
    assert "done     " in lines(run)[0]["positive chips"]


def test_proposals_are_counted_by_parts(run):
    assert main(["proposals", str(run), "--part", "1/2"]) == 0
    stages, following = lines(run)
    assert "2 of 4 parts; missing 0, 2" in stages["proposals"]
    assert following == f"next: python -m infer proposals {run}"
    assert main(["proposals", str(run)]) == 0
    stages, following = lines(run)
    assert stages["proposals"].startswith("done")
    assert following == f"next: python -m chipgen negatives {run}"
    assert chipgen.main(["negatives", str(run)]) == 0
    assert lines(run)[0]["negatives"].strip() == "done"
    inferring.save(run, {}, task="rpn", step=8)
    home = run / "proposals"
    (home / "proposals.parquet").write_bytes((home / "proposals.parquet").read_bytes() + b" ")
    assert "not of proposals/proposals.parquet" in lines(run)[0]["negatives"]
    record = json.loads((home / "proposals.json").read_bytes())
    record.pop("seal")
    (home / "proposals.json").write_text(json.dumps({**record, "inputs": "other"}))
    assert "out of date" in lines(run)[0]["proposals"]


def test_parts_of_another_rpn_are_missing(run):
    assert main(["proposals", str(run), "--part", "1/2"]) == 0
    inferring.save(run, {}, task="rpn", step=8)
    assert lines(run)[0]["proposals"].strip() == "-"


def test_a_training_that_runs_failed_and_is_finished(run):
    home = LocalFolder(run / "train")
    assert lines(run)[0]["train"].strip() == "-"
    with Hold(home):
        home.write("log.jsonl", json.dumps(ENTRY).encode() + b"\n")
        stages, following = lines(run)
        assert stages["train"].startswith("running  step 40, epoch 1.5, loss 0.500, 20 chips/s")
        assert f"pid {os.getpid()}" in stages["train"]
        assert following == "running: train"
        left = json.loads(home.read(LOCK))
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    home.write(LOCK, json.dumps({**left, "pid": dead.pid}).encode())
    assert "begun" in lines(run)[0]["train"]
    assert f"pid {dead.pid} on {left['host']} is dead" in lines(run)[0]["train"]
    home.write(LOCK, json.dumps({**left, "machine": "other", "host": "node7"}).encode())
    assert "running" in lines(run)[0]["train"]
    os.utime(run / "train" / LOCK, (1, 1))
    assert "begun" in lines(run)[0]["train"]
    assert "on node7 last gave a sign of life" in lines(run)[0]["train"]
    home.remove(LOCK)
    assert "not running, last entry" in lines(run)[0]["train"]
    inferring.save(run, {})
    stages, following = lines(run)
    assert stages["train"].startswith("done")
    assert following.startswith("next: python -m infer eval")  # whatever was left out before
    (run / "train" / "checkpoints" / "step-00000007.json").write_bytes(b"\0")
    assert "begun" in lines(run)[0]["train"]


def test_a_figure_is_told(run):
    (run / "eval.json").write_text(json.dumps({"style": "voc", "pyramid": {"AP50": 41.25}}))
    assert "pyramid AP50 41.2" in lines(run)[0]["eval"]


def test_an_evaluation_is_counted_by_parts(run):
    for n in (0, 2):
        table = pa.table({"score": [0.5]}).replace_schema_metadata({b"parts": b"3"})
        (run / "eval").mkdir(exist_ok=True)
        pq.write_table(table, run / "eval" / f"part-{n:06d}.parquet")
    assert "2 of 3 parts; missing 1; last 0 s ago" in lines(run)[0]["eval"]
    pq.write_table(table, run / "eval" / "part-000001.parquet")
    inferring.save(run, {})
    found, following = lines(run)
    assert "all parts are made" in found["eval"]
    assert following == f"next: python -m infer eval {run} --data DATA --finish"


def test_a_damaged_part_of_an_evaluation_is_told_and_hides_no_other_stage(run):
    (run / "eval").mkdir()
    for n in range(2):
        table = pa.table({"score": [0.5]}).replace_schema_metadata({b"parts": b"2"})
        pq.write_table(table, run / "eval" / f"part-{n:06d}.parquet")
    for n in (0, 1):
        part = run / "eval" / f"part-{n:06d}.parquet"
        data = part.read_bytes()
        part.write_bytes(data[:-9])
        stages, _ = lines(run)
        assert stages["plan"].startswith("done")
        assert stages["eval"].startswith("begun")
        assert f"part-{n:06d}.parquet: damaged" in stages["eval"]
        part.write_bytes(data)
    assert "all parts are made" in lines(run)[0]["eval"]


def test_damaged_records_and_figures_are_told_at_their_stage(run):
    (run / "plan" / "negative.json").write_text('{"inputs": ')
    (run / "eval.json").write_text('{"autofocus": ')
    stages, _ = lines(run)
    assert "negative.json: damaged" in stages["negatives"]
    assert stages["negatives"].startswith("begun")
    assert stages["eval"].startswith("begun")
    assert "eval.json is damaged" in stages["eval"]
