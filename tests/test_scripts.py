"""The scripts that measure: what of them can be tested without measuring."""

import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"


def script(name):
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def finished(folder, ap):
    figures = dict.fromkeys(("AP50", "AP75", "APs", "APm", "APl", "pixels", "pictures_per_s"), 1.0)
    (folder / "train").mkdir(parents=True)
    (folder / "train" / "log.jsonl").write_text('{"step": 10}\n{"step": 20}\n')
    modes = {mode: {"AP": ap, **figures} for mode in ("autofocus", "pyramid")}
    (folder / "eval.json").write_text(json.dumps(modes))


def test_claims_gather_finished_runs_by_seed(tmp_path):
    claims = script("claims")
    finished(tmp_path / "sniper-0", 40.0)
    finished(tmp_path / "sniper-1", 42.0)
    finished(tmp_path / "single-0", 30.0)
    (tmp_path / "snip-0").mkdir()  # not finished
    table = claims.collect(tmp_path)
    assert [(run["strategy"], run["mode"], run["seed"]) for run in table["runs"]] == [
        ("sniper", "autofocus", 0),
        ("sniper", "pyramid", 0),
        ("sniper", "autofocus", 1),
        ("sniper", "pyramid", 1),
        ("single", "pyramid", 0),
    ]
    means = {(row["strategy"], row["mode"]): row for row in table["means"]}
    assert means["sniper", "pyramid"]["AP"] == 41.0
    assert means["sniper", "pyramid"]["AP_deviation"] == pytest.approx(2**0.5)
    assert means["single", "pyramid"]["AP_deviation"] is None
    assert "single pyramid" in claims.report(table)


def test_claims_tell_of_further_settings_of_autofocus(tmp_path, monkeypatch):
    claims = script("claims")
    run = tmp_path / "sniper-0"
    (run / "train").mkdir(parents=True)
    (run / "train" / "log.jsonl").write_text('{"step": 9}\n')
    row = dict.fromkeys(claims.FIGURES, 1.0)
    (run / "eval.json").write_text(json.dumps({"autofocus": row, "pyramid": row}))
    said = []

    def module(*words, **_):
        said.append(words)
        out = words[words.index("--out") + 1]
        out.write_text(json.dumps({"autofocus": {**row, "AP": 0.5}}))

    monkeypatch.setattr(claims, "module", module)
    for _ in range(2):  # the second time nothing is left to do
        claims.run_one("sniper", 0, "scenes", tmp_path)
    assert len(said) == 1
    modes = {one["mode"]: one["AP"] for one in claims.collect(tmp_path)["runs"]}
    assert modes == {"autofocus": 1.0, "pyramid": 1.0, "quarter": 0.5}


def test_finished_runs_of_claims_are_not_repeated(tmp_path, monkeypatch):
    claims = script("claims")
    finished(tmp_path / "single-0", 30.0)
    monkeypatch.setattr(claims, "module", lambda *words, **_: pytest.fail("ran something"))
    claims.run_one("single", 0, "nowhere", tmp_path)


def test_what_only_a_gpu_shows_is_not_measured_without_one(tmp_path):
    line = [sys.executable, str(SCRIPTS / "gpu_check.py"), "--out", str(tmp_path / "x.json")]
    done = subprocess.run(
        line, capture_output=True, text=True, check=False, env={"CUDA_VISIBLE_DEVICES": ""}
    )
    assert done.returncode == 1
    assert "no GPU" in done.stderr
    assert not (tmp_path / "x.json").exists()


def test_a_failed_part_is_told_with_its_last_words():
    check = script("gpu_check")
    later = time.monotonic() + 60
    told = check.run(["-c", "import sys; sys.exit('it broke')"], later)
    assert "it broke" in told
    assert check.run(["-c", "pass"], later) is None
    assert check.run(["-c", "pass"], 0.0) == "no time was left"
