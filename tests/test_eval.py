"""The command that evaluates, as users call it."""

import json

import inferring
import made_up
import pytest

from chipgen.arguments import GOES_ON
from chipgen.storage import LocalFolder
from infer import Detector, measure, parts
from infer.__main__ import BEGINS_ANEW, main


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return inferring.run_of(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def annotated(tmp_path_factory):
    return made_up.coco(tmp_path_factory.mktemp("data"), 5, split="val")


def evaluated(run, data, *arguments):
    return main(["eval", str(run), "--data", str(data), *map(str, arguments)])


def test_eval_compares_modes_and_is_not_repeated(run, annotated, capsys, caplog):
    assert evaluated(run, annotated) == 0
    table = capsys.readouterr().out
    result = json.loads((run / "eval.json").read_text())
    modes = ["autofocus", "pyramid", "level0", "level1", "level2"]
    for mode in modes:
        assert mode in table
        keys = ("AP", "AP50", "AP75", "APs", "APm", "APl", "pixels", "pictures_per_s")
        assert all(key in result[mode] for key in keys)
    levels = [result[f"level{n}"]["pixels"] ** 2 for n in range(3)]
    assert result["pyramid"]["pixels"] ** 2 == pytest.approx(sum(levels))
    assert result["pyramid"]["shares"] == dict.fromkeys(result["pyramid"]["shares"], 1.0)
    assert result["autofocus"]["pixels"] <= result["pyramid"]["pixels"]
    assert 0 <= result["proposals"]["AR"] <= result["proposals"]["R50"] <= 100
    with caplog.at_level("INFO"):
        assert evaluated(run, annotated) == 0
    assert "up to date" in caplog.text
    assert capsys.readouterr().out == table


@pytest.mark.parametrize(
    ("arguments", "told"),
    [([], BEGINS_ANEW), (["--part", "0/2"], GOES_ON), (["--follow"], GOES_ON)],
)
def test_ctrl_c_tells_whether_anything_is_kept(monkeypatch, capsys, arguments, told):
    def interrupted(args):
        raise KeyboardInterrupt

    monkeypatch.setattr("infer.commands.evaluate", interrupted)
    assert evaluated("run", "data", *arguments) == 130
    assert capsys.readouterr().err == f"\ninfer eval: stopped; {told}\n"


def test_eval_reads_splits_with_a_space_between(run, tmp_path):
    data = made_up.coco(tmp_path / "data", 2, split="val")
    made_up.coco(data, 3, split="test", first_id=11)
    out = tmp_path / "eval.json"
    spaced = "--split", "val, test", "--mode", "0", "--out", out
    assert evaluated(run, data, *spaced) == 0
    assert json.loads(out.read_text())["split"] == ["val", "test"]


def test_eval_by_parts_gives_the_figures_of_one_machine(run, tmp_path, monkeypatch, capsys, caplog):
    data = made_up.coco(tmp_path / "data", 7, split="val")
    (data / "val" / "000002.jpg").write_bytes(b"\xff\xd8 broken")
    monkeypatch.setattr("infer.parts.PICTURES", 2)
    alone, together = tmp_path / "alone.json", tmp_path / "together" / "eval.json"
    assert evaluated(run, data, "--out", alone) == 0
    by_parts = run, data, "--out", together
    assert evaluated(*by_parts, "--part", "1/3") == 0
    assert evaluated(*by_parts, "--finish") == 1
    assert "3 of 4 parts are missing" in capsys.readouterr().err
    assert parts.begun(LocalFolder(tmp_path / "together/eval")) == ([0, 2, 3], 4)
    first = (tmp_path / "together/eval/part-000001.parquet").stat()
    for number in range(3):
        assert evaluated(*by_parts, "--part", f"{number}/3") == 0
    assert (tmp_path / "together/eval/part-000001.parquet").stat() == first  # not made again
    assert evaluated(*by_parts, "--finish") == 0
    expected, found = (json.loads(path.read_text()) for path in (alone, together))
    for mode in ("autofocus", "pyramid", "level0", "level1", "level2", "proposals"):
        for name, value in expected[mode].items():
            if name != "pictures_per_s":
                assert found[mode][name] == (
                    pytest.approx(value, abs=0.05) if isinstance(value, float) else value
                ), (mode, name)
    assert not list((tmp_path / "together").glob("eval/part-*"))
    with caplog.at_level("INFO"):
        assert evaluated(*by_parts, "--finish") == 0
    assert "up to date" in caplog.text


def test_parts_of_an_evaluation_with_other_settings_or_damaged_are_made_again(
    run, annotated, tmp_path, capsys
):
    arguments = run, annotated, "--out", tmp_path / "eval.json", "--mode", "0"
    part = tmp_path / "eval/part-000000.parquet"
    assert evaluated(*arguments, "--part", "0/1", "--set", "infer.border=7") == 0
    assert evaluated(*arguments, "--finish") == 1
    assert evaluated(*arguments, "--part", "0/1") == 0
    part.write_bytes(part.read_bytes()[:-20])
    assert evaluated(*arguments, "--finish") == 1
    assert "1 of 1 parts are missing" in capsys.readouterr().err
    assert evaluated(*arguments, "--part", "0/1") == 0
    assert evaluated(*arguments, "--finish") == 0


def test_parts_do_not_stay_beside_the_figures_that_are_written_or_up_to_date(
    run, annotated, tmp_path
):
    arguments = run, annotated, "--mode", "0", "--out", tmp_path / "eval.json"
    left = tmp_path / "eval/part-000000.parquet"
    assert evaluated(*arguments, "--part", "0/1") == 0
    part = left.read_bytes()
    assert evaluated(*arguments) == 0  # on one machine after all
    assert not left.exists()
    for data in (part, b"damaged"):  # as a --finish leaves it that is killed in its last moment
        left.write_bytes(data)
        assert evaluated(*arguments) == 0
        assert not left.exists()


@pytest.mark.parametrize("name", ["other.json", "other"])
def test_parts_of_another_file_of_figures_stay(run, annotated, tmp_path, name):
    arguments = run, annotated, "--mode", "0", "--out"
    assert evaluated(*arguments, tmp_path / name, "--part", "0/1") == 0
    assert evaluated(*arguments, tmp_path / "eval.json") == 0
    assert evaluated(*arguments, tmp_path / name, "--finish") == 0
    assert (tmp_path / name).is_file()


def test_eval_of_voc_gives_its_own_figures(tmp_path, capsys):
    data = made_up.voc(tmp_path / "voc")
    run = tmp_path / "run"
    inferring.save(run, inferring.plain(inferring.pyramid()), classes=("cat", "dog"))
    out = tmp_path / "eval.json"
    assert evaluated(run, data, "--split", "train", "--out", out, "--mode", "0") == 0
    assert set(json.loads(out.read_text())["level0"]) >= {"AP50", "AP70", "pixels"}
    assert "AP70" in capsys.readouterr().out


def test_eval_tells_of_pictures_that_can_not_be_read(run, tmp_path, capsys):
    data = made_up.coco(tmp_path / "data", 4, split="val")
    (data / "val" / "000002.jpg").write_bytes(b"\xff\xd8 broken")
    out = tmp_path / "eval.json"
    assert evaluated(run, data, "--out", out, "--mode", "0") == 0
    assert "1 pictures could not be read" in capsys.readouterr().out
    assert json.loads(out.read_text())["level0"]["pictures"] == 3


def test_pictures_that_were_broken_are_looked_at_again_once_they_can_be_read(
    run, tmp_path, monkeypatch, caplog
):
    data = made_up.coco(tmp_path / "data", 4, split="val")
    file = data / "val" / "000002.jpg"
    whole = file.read_bytes()
    file.write_bytes(b"\xff\xd8 broken")
    monkeypatch.setattr("infer.parts.PICTURES", 2)
    alone, together = tmp_path / "eval.json", tmp_path / "by-parts.json"
    line = run, data, "--mode", "0", "--out"
    by_parts = *line, together, "--part", "0/1"
    caplog.set_level("INFO")
    assert evaluated(*line, alone) == evaluated(*by_parts) == 0
    assert evaluated(*line, alone) == 0
    assert "up to date" in caplog.text
    parts_of = [tmp_path / f"by-parts/part-00000{n}.parquet" for n in (0, 1)]
    before = [path.stat().st_mtime_ns for path in parts_of]
    file.write_bytes(whole)
    assert evaluated(*line, alone) == evaluated(*by_parts) == 0
    assert "1 pictures can be read by now" in caplog.text
    after = [path.stat().st_mtime_ns for path in parts_of]
    assert [a != b for a, b in zip(before, after, strict=True)] == [True, False]
    assert evaluated(*line, together, "--finish") == 0
    for path in (alone, together):
        assert json.loads(path.read_text())["level0"]["pictures"] == 4


def test_a_mistyped_mode_is_refused_before_anything_is_looked_at(run, annotated, tmp_path, capsys):
    out = tmp_path / "eval.json"
    assert evaluated(run, annotated, "--mode", "0", "--mode", "pyramd", "--out", out) == 1
    told = capsys.readouterr().err.strip()
    assert told.count("\n") == 0
    assert "'pyramd' is none of autofocus, pyramid, 0, 1, 2" in told


def test_the_parts_of_an_empty_split_are_refused(run, tmp_path, capsys):
    data = made_up.coco(tmp_path / "data", 1, split="val")
    path = data / "annotations/instances_val.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "images": [], "annotations": []}))
    assert evaluated(run, data, "--out", tmp_path / "eval.json", "--finish") == 1
    assert "the split has no pictures" in capsys.readouterr().err


def test_eval_refuses_other_classes(run, tmp_path, capsys):
    data = made_up.coco(tmp_path / "data", 2, split="val")
    path = data / "annotations" / "instances_val.json"
    path.write_text(path.read_text().replace('"cat"', '"dog"'))
    for follow in ((), ("--follow",)):
        assert evaluated(run, data, *follow) == 1
        assert "its classes (ant, dog) are not those" in capsys.readouterr().err
    assert evaluated(run / "nowhere", data, "--follow") == 1
    assert "no such run folder" in capsys.readouterr().err


def test_eval_follows_a_training_into_its_log(annotated, tmp_path):
    table = inferring.plain(inferring.pyramid())
    inferring.save(tmp_path, table, step=3, done=False)
    inferring.save(tmp_path, table, step=6, done=True)
    log = tmp_path / "train" / "log.jsonl"
    log.write_text('{"step": 3, "loss": 1.0}\n')
    assert evaluated(tmp_path, annotated, "--follow", "--mode", "0") == 0
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    assert [entry["step"] for entry in entries] == [3, 3, 6]
    assert all(0 <= entry["level0"]["AP"] <= 100 for entry in entries[1:])
    assert list((tmp_path / "train" / "tensorboard").iterdir())
    assert evaluated(tmp_path, annotated, "--follow", "--mode", "0") == 0  # nothing is left to do
    assert len(log.read_text().splitlines()) == 3


def test_figures_of_another_mode_setting_or_data_set_do_not_stand_for_those_asked_for(
    annotated, tmp_path
):
    inferring.save(tmp_path / "run", inferring.plain(inferring.pyramid()))
    other = made_up.coco(tmp_path / "other", 4, split="val")
    made_up.coco(other, 3)
    asked = [
        (annotated, "--mode", "0"),
        (annotated, "--mode", "1"),
        (annotated, "--mode", "0", "--pictures", "2"),
        (annotated, "--mode", "0", "--set", "infer.border=7"),
        (other, "--mode", "0"),
        (other, "--mode", "0", "--split", "train"),
    ]
    for arguments in asked * 2:
        assert evaluated(tmp_path / "run", *arguments, "--follow") == 0
    lines = (tmp_path / "run" / "train" / "log.jsonl").read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    assert [entry["data"] for entry in entries] == [str(data) for data, *_ in asked]
    assert [entry["split"] for entry in entries] == [["val"]] * 5 + [["train"]]
    assert ["level1" in entry for entry in entries] == [False, True, *[False] * 4]


@pytest.mark.parametrize("data", [b"", b"\0", b'{"step": 7}', b'{"step": 7, "done": "\xff'])
def test_following_a_checkpoint_with_a_damaged_record_is_refused(annotated, tmp_path, capsys, data):
    record = inferring.save(tmp_path, inferring.plain(inferring.pyramid())).with_suffix(".json")
    record.write_bytes(data)
    assert evaluated(tmp_path, annotated, "--follow", "--mode", "0") == 1
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert str(record.parent) in told
    assert record.name in told
    assert "--resume" in told


def test_figures_lie_in_the_table(run, annotated):
    test = measure.open_test(str(annotated), ["val"], pictures=3)
    assert len(test.annotations.picture_ids) == 3
    found = measure.compare(Detector.load(run), test, [0])
    assert measure.table_of(found).splitlines()[1].startswith("level0")


def test_figures_of_an_ensemble_need_a_place_of_their_own(run, annotated, tmp_path, capsys):
    both = f"{run},{run}"
    assert evaluated(both, annotated, "--mode", "0") == 1
    assert "name an --out" in capsys.readouterr().err
    assert evaluated(both, annotated, "--mode", "0", "--out", tmp_path / "both.json") == 0
    assert json.loads((tmp_path / "both.json").read_text())["model"] == both
