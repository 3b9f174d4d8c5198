"""The script that tells how things scale, tried on few made-up pictures."""

import json
import sys

import numpy as np
import pytest
import reckon
import scale

from chipgen import run, shuffle
from chipgen.storage import open_folder


def called(monkeypatch, *arguments) -> int:
    monkeypatch.setattr(sys, "argv", ["scale.py", *map(str, arguments)])
    return scale.main()


def test_the_trial_plans_maps_and_orders_and_tells_time_and_memory(monkeypatch, tmp_path, capsys):
    out = tmp_path / "out.json"
    assert called(monkeypatch, "--simulate", 3000, "--scratch", tmp_path, "--out", out) == 0
    found = json.loads(out.read_text())["steps"]
    assert list(found) == ["plan", "index", "map", "order"]
    assert found["plan"]["facts"]["pictures"] == 3000
    chips = found["plan"]["facts"]["chips"] + 3000 * scale.NEGATIVES
    assert found["index"]["facts"]["chips"] == found["map"]["facts"]["chips"] == chips
    epoch = (chips - 3000 * (scale.NEGATIVES - 1)) // scale.BATCH
    assert found["order"]["facts"]["batches"] == 2 * epoch
    assert all(5e7 < step["peak"] < 4e9 and step["seconds"] > 0 for step in found.values())
    assert "GB" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]


@pytest.mark.parametrize("limit", ["MEMORY_LIMIT", "TIME_LIMIT"])
@pytest.mark.parametrize("step", ["plan", "order"])
def test_a_step_over_a_limit_fails_the_trial(monkeypatch, tmp_path, capsys, limit, step):
    found = {"seconds": 1.0, "peak": 1e6, "facts": {}}
    over = {"seconds": 601.0} if limit == "TIME_LIMIT" else {"peak": 4.1e9}
    steps = {name: dict(found) for name in scale.STEPS}
    steps[step] |= over
    steps["index"] |= over  # made up, and no part of what is tried
    monkeypatch.setattr(scale, "in_process", lambda name, *_: steps[name])
    assert called(monkeypatch, "--simulate", 5, "--scratch", tmp_path) == 1
    assert capsys.readouterr().out.count("over 4 GB or 600 s") == 1
    steps[step] = dict(found)
    assert called(monkeypatch, "--simulate", 5, "--scratch", tmp_path) == 0


def test_made_up_pictures_make_one_plan_whatever_is_held(monkeypatch, tmp_path):
    recipe = run.load_recipe("sniper")
    monkeypatch.setattr(scale, "PART", 300)
    records = []
    for held in (10**9, 1000):
        monkeypatch.setattr(shuffle, "HELD", held)
        folder = open_folder(tmp_path / str(held))
        records.append(run.save_plan(folder, "x", scale.made_up(2000), recipe))
    assert records[0] == records[1]


def test_made_up_boxes_lie_in_their_pictures_and_are_as_many_as_said():
    part = scale.made_up_part(0, 5000)
    assert len(part.boxes) / 5000 == pytest.approx(scale.BOXES, rel=0.05)
    limits = np.stack([part.widths, part.heights] * 2, axis=1)[part.picture_of_box]
    assert ((part.boxes >= 0) & (part.boxes <= limits + 0.01)).all()
    assert (part.boxes[:, 2:] > part.boxes[:, :2]).all()


@pytest.fixture
def one():
    """Rates that are easy to reckon with."""
    return reckon.Rates(
        source="nowhere", read=1e-5, plan=1e-4, write=0.36, chips=4.0, chip_bytes=4e4,
        json_bytes=1e3, plan_bytes=200, index_bytes=20, map_bytes=70, held_bytes=300,
    )  # fmt: skip


def test_the_table_reckons_with_the_rates(one):
    found = reckon.of_set(1_000_000, one)
    assert found["chips"] == 6e6
    assert found["write_hours"] == pytest.approx(0.36 * 1.5 * 1e6 / 3600)
    assert found["bytes"] == pytest.approx(2.4e11)
    assert (found["shards"], found["files"]) == (23438, 1000)
    assert found["order"] == 24e6
    assert reckon.of_set(100, one)["files"] == 3
    large = reckon.of_set(10**9, one)
    assert large["shards"] <= reckon.MOST_SHARDS
    assert large["order"] == 8 * 6e9  # too many chips for four bytes


def test_the_table_has_every_data_set_and_every_number_of_nodes(one, capsys):
    found = reckon.on_paper(one, cores=64, gpus=8)["sets"]
    out = capsys.readouterr().out
    for name in ("COCO", "Objects365", "OpenImages", "1 billion"):
        assert name in out
        hours = [found[name][f"write_hours_{nodes}_nodes"] for nodes in (8, 100, 1000)]
        assert hours == pytest.approx([found[name]["write_hours"] / n / 64 for n in (8, 100, 1000)])
    assert "!" in out  # the order of a billion pictures does not fit, and that is said


def test_rates_come_from_a_trial_and_writing_from_the_benchmark_where_there_is_one(
    monkeypatch, tmp_path
):
    monkeypatch.setattr(scale, "TRIED", 300)
    monkeypatch.setattr(scale, "DRAWN", 2)
    own = scale.rates(tmp_path / "a", tmp_path / "none.json")
    assert own.source == "made-up pictures"
    assert all(value > 0 for value in list(vars(own).values())[1:])
    assert 3 < own.chips < 8
    bench = tmp_path / "chips.json"
    bench.write_text(json.dumps({"write_pictures_per_s_source": 50, "kb_per_chip_source": 43}))
    told = scale.rates(tmp_path / "b", bench)
    assert (told.source, told.write, told.chip_bytes) == (str(bench), 0.02, 43_000)
