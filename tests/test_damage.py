"""What a stage does about damage in what an earlier one left: it names it, and never goes on."""

import logging
import random
import shutil

import inferring
import made_up
import pytest

from chipgen.__main__ import main as chipgen
from chipgen.errors import Refusal
from chipgen.storage import LocalFolder
from infer.__main__ import main as infer
from train import checkpoint
from train.journal import Journal


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run folder with a plan, both sets of shards, and proposals of an untrained RPN."""
    folder = tmp_path_factory.mktemp("whole")
    data = made_up.coco(folder / "data", 7)
    name = made_up.recipe(folder / "r.toml")
    run = folder / "run"
    assert chipgen(["plan", str(run), "--data", str(data), "--recipe", str(name)]) == 0
    inferring.save(run, {}, task="rpn")
    inferring.save(run, {})
    assert infer(["proposals", str(run)]) == 0
    assert chipgen(["negatives", str(run)]) == 0
    assert chipgen(["write", str(run), "--workers", "1"]) == 0
    return folder


@pytest.fixture
def run(whole, tmp_path):
    return shutil.copytree(whole / "run", tmp_path / "run")


def damage(path, how):
    data = path.read_bytes()
    path.unlink()
    if how == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif how == "flipped":
        place = random.Random(path.name).randrange(len(data))
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])


def files(run, *folders):
    return {
        path.relative_to(run): path.read_bytes()
        for folder in folders
        for path in (run / folder).rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize(
    ("table", "how"),
    [("pictures", "gone"), ("boxes", "flipped"), ("positive", "cut"), ("negative", "flipped")],
)
def test_a_damaged_plan_is_named_with_what_makes_it_again(whole, run, capsys, table, how):
    expected = files(run, "plan", "shards")
    damage(run / "plan" / f"{table}.parquet", how)
    shutil.rmtree(run / "shards")
    for line in (["write", str(run)], ["negatives", str(run)]):
        assert chipgen(line) == 1
        said = capsys.readouterr().err
        assert f"plan/{table}.parquet" in said
        assert "delete" in said
        assert said.count("\n") == 1
    if table == "negative":
        assert f"delete {run}/plan/negative.json, and make it again: " in said
        (run / "plan/negative.json").unlink()
    else:
        assert f"delete {run}/plan, and make it again: " in said
        shutil.rmtree(run / "plan")
        assert plan(whole, run) == 0
    assert chipgen(["negatives", str(run)]) == 0
    assert chipgen(["write", str(run), "--workers", "1"]) == 0
    assert files(run, "plan", "shards") == expected


def plan(whole, run):
    line = ["--data", str(whole / "data"), "--recipe", str(whole / "r.toml")]
    return chipgen(["plan", str(run), *line])


@pytest.mark.parametrize("how", ["flipped", "gone"])
def test_a_plan_whose_record_is_damaged_is_made_again_beside_its_shards(whole, run, capsys, how):
    expected = files(run, "plan", "shards")
    damage(run / "plan" / "plan.json", how)
    assert chipgen(["write", str(run)]) == 1
    assert "python -m chipgen plan" in capsys.readouterr().err
    assert plan(whole, run) == 0
    assert chipgen(["negatives", str(run)]) == 0
    assert chipgen(["write", str(run)]) == 0
    assert files(run, "plan", "shards") == expected


@pytest.mark.parametrize("how", ["cut", "flipped"])
def test_a_damaged_record_of_negatives_is_named(run, capsys, how):
    damage(run / "plan" / "negative.json", how)
    assert chipgen(["write", str(run)]) == 1
    assert "plan/negative.json: damaged" in capsys.readouterr().err


@pytest.mark.parametrize("how", ["flipped", "gone"])
@pytest.mark.parametrize("name", ["proposals.json", "proposals.parquet"])
def test_damaged_proposals_are_never_mined(run, capsys, name, how):
    expected = files(run, "plan", "proposals")
    damage(run / "proposals" / name, how)
    (run / "plan" / "negative.json").unlink()
    if (name, how) != ("proposals.json", "gone"):  # as if they were made elsewhere
        assert chipgen(["negatives", str(run)]) == 1
        said = capsys.readouterr().err
        assert f"proposals/{name}" in said
        assert "python -m infer proposals" in said
    (run / "proposals" / "proposals.parquet").unlink(missing_ok=True)
    assert infer(["proposals", str(run)]) == 0
    assert chipgen(["negatives", str(run)]) == 0
    assert files(run, "plan", "proposals") == expected


def test_a_damaged_part_of_proposals_is_made_again_or_named(run, monkeypatch, capsys):
    monkeypatch.setattr("infer.proposals.PICTURES", 2)
    shutil.rmtree(run / "proposals")
    assert infer(["proposals", str(run)]) == 0
    expected = files(run, "proposals")
    shutil.rmtree(run / "proposals")
    for part in ("0/2", "1/2"):
        assert infer(["proposals", str(run), "--part", part]) == 0
    damage(run / "proposals" / "000" / "part-000000.parquet", "cut")
    part = run / "proposals" / "000" / "part-000002.parquet"
    damage(part, "flipped")
    assert infer(["proposals", str(run)]) == 1
    assert f"{part}: damaged" in capsys.readouterr().err
    part.unlink()
    assert infer(["proposals", str(run)]) == 0
    assert files(run, "proposals") == expected


@pytest.mark.parametrize(
    ("name", "how", "said"),
    [
        ("index.parquet", "gone", "missing"),
        ("index.parquet", "flipped", "damaged"),
        ("000/positive-000001.tar", "gone", "missing"),
        ("000/positive-000001.tar", "cut", "damaged"),
    ],
)
def test_a_finished_set_that_lost_a_file_is_not_up_to_date(run, capsys, name, how, said):
    expected = files(run, "shards")
    damage(run / "shards" / "positive" / name, how)
    assert chipgen(["write", str(run)]) == 1
    told = capsys.readouterr().err
    folder = run / "shards" / "positive"
    assert f"{folder}/{name}: {said}" in told
    assert f"delete {folder}, and write it again" in told
    shutil.rmtree(folder)
    assert chipgen(["write", str(run), "--workers", "1"]) == 0
    assert files(run, "shards") == expected


def test_verify_says_how_a_damaged_set_is_made_again(run, capsys):
    damage(run / "shards" / "positive" / "000" / "positive-000000.tar", "flipped")
    assert chipgen(["verify", str(run)]) == 1
    assert f"delete {run}/shards/positive, and write it again" in capsys.readouterr().out


def test_a_detector_whose_last_checkpoint_is_damaged_is_not_an_older_one(run):
    newest = inferring.save(run, {}, step=9)
    assert checkpoint.read(run)["step"] == 9
    damage(newest, "flipped")
    with pytest.raises(Refusal, match=rf"{newest}: damaged .*--resume"):
        checkpoint.read(run)


@pytest.mark.usefixtures("one_by_one")
def test_damaged_lines_of_detect_are_done_again(whole, run, tmp_path, caplog):
    line = ["detect", str(run), str(whole / "data/train"), "--out", str(tmp_path / "out")]
    levels = ["--set", "infer.levels=[{long=96}]", "--set", "infer.focus=[]"]
    assert infer([*line, *levels]) == 0
    expected = files(tmp_path, "out")
    lines = tmp_path / "out" / "pictures.jsonl"
    data = lines.read_bytes()
    for place in (len(data) // 2, len(data) - 20):
        lines.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        caplog.clear()
        caplog.set_level(logging.WARNING)
        assert infer([*line, *levels]) == 0
        assert "1 damaged lines; those pictures are done again" in caplog.text
        assert {**files(tmp_path, "out"), lines.relative_to(tmp_path): b""} == {
            **expected,
            lines.relative_to(tmp_path): b"",
        }


def test_a_log_that_can_not_be_written_is_told_with_its_name(tmp_path, monkeypatch):
    with Journal(LocalFolder(tmp_path), step=0, batches=9, done=0) as journal:

        class Full:
            def write(self, _data):
                raise OSError(28, "No space left on device")

            def close(self):
                pass

        journal._file.close()
        monkeypatch.setattr(journal, "_file", Full())
        with pytest.raises(Refusal, match=r"log\.jsonl: the disk is full"):
            journal.write({"step": 1, "loss": 1.0, "lr": 0.1})
