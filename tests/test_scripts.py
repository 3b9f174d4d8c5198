"""The scripts that measure: what of them can be tested without measuring."""

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import gpu_check
import pytest


@pytest.fixture
def claims(tmp_path, monkeypatch):
    """The script, with made-up figures instead of its commands, which `claims.said` lists."""
    import claims

    monkeypatch.setattr(claims, "said", [], raising=False)
    (tmp_path / "scenes" / "annotations").mkdir(parents=True)
    for split in ("train", "val"):
        (tmp_path / "scenes" / "annotations" / f"instances_{split}.json").write_text(split)

    def module(*words, **_):
        claims.said.append(words)
        if words[:2] == ("infer", "eval"):
            point = "--out" in words
            out = words[words.index("--out") + 1] if point else words[2] / "eval.json"
            ap = 10.0 * point + int(words[2].name[-1])
            row = {**dict.fromkeys(claims.FIGURES, ap), "lost": {"background": ap + 0.5}}
            proposals = {} if point else {"proposals": {"AR": ap + 60}}
            out.write_text(json.dumps(dict.fromkeys(("autofocus", "pyramid"), row) | proposals))
        elif words[0] == "train":
            (words[1] / "train").mkdir(parents=True, exist_ok=True)
            (words[1] / "train" / "log.jsonl").write_text('{"step": 10}\n{"step": 20}\n')

    monkeypatch.setattr(claims, "module", module)
    monkeypatch.setattr(claims, "pixels", lambda run: 1.0)
    return claims


def test_claims_gather_finished_runs_by_seed(claims, tmp_path):
    scenes = str(tmp_path / "scenes")
    for name, seed in (("sniper", 0), ("sniper", 2), ("single", 0)):
        claims.run_one(name, seed, scenes, tmp_path)
    (tmp_path / "snip-0").mkdir()  # not finished
    table = claims.collect(tmp_path, scenes)
    assert [(run["strategy"], run["mode"], run["seed"]) for run in table["runs"]] == [
        ("sniper", "pyramid", 0),
        ("sniper", "autofocus", 0),
        ("sniper", "quarter", 0),
        ("sniper", "pyramid", 2),
        ("sniper", "autofocus", 2),
        ("sniper", "quarter", 2),
        ("single", "pyramid", 0),
    ]
    means = {(row["strategy"], row["mode"]): row for row in table["means"]}
    assert means["sniper", "pyramid"]["AP"] == 1.0
    assert means["sniper", "pyramid"]["AP_deviation"] == pytest.approx(2**0.5)
    assert means["sniper", "quarter"]["AP"] == 11.0
    assert means["sniper", "quarter"]["lost_to_background"] == 11.5
    assert means["sniper", "pyramid"]["recall"] == 61.0
    assert "recall" not in means["sniper", "quarter"]
    assert means["single", "pyramid"]["AP_deviation"] is None
    assert "single pyramid" in claims.report(table)


def test_claims_name_a_wrong_folder(claims, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["claims", "--data", str(tmp_path / "nowhere")])
    with pytest.raises(SystemExit, match="nowhere: no scenes there"):
        claims.main()


def test_a_finished_run_of_claims_is_repeated_only_for_other_scenes_settings_or_padding(
    claims, tmp_path, monkeypatch
):
    scenes = tmp_path / "scenes"

    def commands():
        claims.said.clear()
        claims.run_one("sniper", 0, str(scenes), tmp_path)
        return len(claims.said)

    first = commands()
    assert first > 5
    assert commands() == 0
    monkeypatch.setattr(claims, "EPOCHS", 40)
    assert claims.collect(tmp_path, str(scenes))["runs"] == []
    assert (commands(), commands()) == (first, 0)
    monkeypatch.setattr(claims, "BEYOND", 1)
    assert (commands(), commands()) == (first, 0)
    by_default = dataclasses.make_dataclass(
        "Others", [("sigma", float, 0.4)], bases=(claims.InferSettings,), frozen=True
    )
    monkeypatch.setattr(claims, "InferSettings", by_default)
    assert (commands(), commands()) == (first, 0)
    (scenes / "annotations" / "instances_val.json").write_text("others")
    assert (commands(), commands()) == (first, 0)


def test_claims_do_not_repeat_what_another_machine_found(claims, tmp_path, monkeypatch):
    elsewhere, here, scenes = tmp_path / "elsewhere", tmp_path / "here", str(tmp_path / "scenes")
    claims.run_one("sniper", 1, scenes, elsewhere)
    table = claims.collect(elsewhere, scenes)
    table["runs"].append({**table["runs"][0], "seed": 0, "source": "of other settings"})
    (tmp_path / "known.json").write_text(json.dumps(table))

    def main(*words):
        claims.said.clear()
        line = ["claims", "--data", scenes, "--out", str(here), "--only", "sniper", *words]
        monkeypatch.setattr(sys, "argv", line)
        claims.main()
        return {words[2].name for words in claims.said if words[:2] == ("infer", "eval")}

    known = "--known", str(tmp_path / "known.json")
    assert main("--seeds", "0,1", *known) == {"sniper-0"}
    runs = json.loads((tmp_path / "here.json").read_text())["runs"]
    assert [(run["seed"], run["mode"]) for run in runs] == [
        (seed, mode) for seed in (0, 1) for mode in ("pyramid", "autofocus", "quarter")
    ]
    assert runs[3:] == table["runs"][:3]
    assert main("--seeds", "0,1", *known) == set()
    assert main("--seeds", "1") == {"sniper-1"}


def test_the_budget_of_claims_needs_the_chips_of_sniper_but_no_training_on_them(
    claims, tmp_path, monkeypatch
):
    monkeypatch.setattr(claims, "pixels", lambda run: {"sniper-1": 1.0, "snip-1": 1.5}[run.name])
    claims.run_one("snip", 1, str(tmp_path / "scenes"), tmp_path)
    trained = [words for words in claims.said if words[0] == "train"]
    assert [words[1].name for words in trained] == ["sniper-1", "snip-1"]
    assert "--set=train.task=rpn" in trained[0]
    epochs = claims.EPOCHS * 3 / 1.5  # three times the pixels of sniper
    assert f"--set=train.epochs={epochs:.0f}" in trained[1]


def test_claims_compare_recall_after_as_many_epochs(claims, tmp_path, monkeypatch):
    monkeypatch.setattr(
        claims, "pixels", lambda run: {"sniper-1": 1.0, "equal-epochs-1": 0.5}[run.name]
    )
    claims.run_one("equal-epochs", 1, str(tmp_path / "scenes"), tmp_path)
    (trained,) = [words for words in claims.said if words[0] == "train"]
    assert f"--set=train.epochs={claims.EPOCHS}" in trained
    assert not [words for words in claims.said if "negatives" in words]


def test_claims_do_not_leave_a_training_behind_when_they_are_ended(tmp_path):
    (tmp_path / "slow.py").write_text("import time; print('begun', flush=True); time.sleep(60)")
    line = [sys.executable, "-c", "import claims; claims.module('slow')"]
    folders = [str(Path(gpu_check.__file__).parent), str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(folders)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(line, env=environment, start_new_session=True, **pipes)
    assert process.stdout.readline() == "begun\n"
    process.terminate()
    assert "slow ended with code -15" in process.communicate(timeout=30)[1]
    assert process.returncode == 1
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


def test_what_only_a_gpu_shows_is_not_measured_without_one(tmp_path):
    line = [sys.executable, gpu_check.__file__, "--out", str(tmp_path / "x.json")]
    done = subprocess.run(
        line, capture_output=True, text=True, check=False, env={"CUDA_VISIBLE_DEVICES": ""}
    )
    assert done.returncode == 1
    assert "no GPU" in done.stderr
    assert not (tmp_path / "x.json").exists()


def test_a_failed_part_is_told_with_its_last_words():
    later = time.monotonic() + 60
    told = gpu_check.run(["-c", "import sys; sys.exit('it broke')"], later)
    assert "it broke" in told
    assert gpu_check.run(["-c", "pass"], later) is None
    assert gpu_check.run(["-c", "pass"], 0.0) == "no time was left"


def test_nothing_outlives_a_part_whose_time_is_up(monkeypatch):
    monkeypatch.setattr(gpu_check, "GRACE", 1)
    deaf = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); {}time.sleep(1000)"
    worker = f"subprocess.Popen([sys.executable, '-c', '{deaf.format('')}'])"
    words = "print('its last words', file=sys.stderr, flush=True)"
    start = f"import subprocess, sys; {worker}; {words}; "
    told = gpu_check.run(["-c", deaf.format(start)], time.monotonic() + 3)
    assert "not done when the time was up" in told
    assert "its last words" in told  # which are heard when nobody holds the pipe any more
