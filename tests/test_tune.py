import dataclasses
import itertools
import math

import inferring
import made_up
import numpy as np
import pytest
import torch

from chipgen.recipe import load
from infer import measure, tune
from infer.__main__ import main
from infer.cascade import AUTOFOCUS, PYRAMID
from infer.detector import Detector
from infer.focus import FocusSettings
from infer.settings import InferSettings
from infer.tune import Point


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    """A detector, a data set, and what each level says of it."""
    data = made_up.coco(tmp_path_factory.mktemp("data"), 5, split="val")
    settings = inferring.pyramid()
    detector = Detector([inferring.model()], inferring.CLASSES, settings, torch.device("cpu"))
    test = measure.open_test(str(data), ["val"])
    return data, detector, test, tune.look(detector, test)


def with_focus(settings, *choices):
    return dataclasses.replace(settings, focus=tuple(FocusSettings(*c) for c in choices))


def test_a_limit_of_pixels_may_be_infinite(material, tmp_path):
    _, detector, test, seen = material
    settings = dataclasses.replace(detector.settings, max_megapixels=math.inf)
    without = Detector([inferring.model()], inferring.CLASSES, settings, torch.device("cpu"))
    assert len(tune.look(without, test)) == len(seen)
    (tmp_path / "tuned.toml").write_text(tune.fragment(settings, "made by a test"))
    assert load(str(tmp_path / "tuned.toml"), {"infer": InferSettings})["infer"] == settings


def test_looking_everywhere_is_the_full_pyramid(material):
    _, detector, test, seen = material
    everywhere = with_focus(detector.settings, (0.0, 1, 1), (0.0, 1, 1))
    point = tune.evaluate(everywhere, test, seen, detector.machine.stride)
    real = measure.measure(detector, test, PYRAMID)
    assert point.precision == pytest.approx(real["AP"], abs=1e-9)
    assert point.pixels == pytest.approx(real["pixels"])


def test_windows_of_the_second_level_are_those_of_a_real_run(material):
    _, detector, test, seen = material
    maps = np.concatenate([one.flights[0].maps[0].ravel() for one in seen])
    threshold = float(np.quantile(maps, 0.8))
    # no chip of the third level, so that all pixels follow from whole pictures' maps
    settings = with_focus(detector.settings, (threshold, 3, 48), (1.0, 1, 16))
    point = tune.evaluate(settings, test, seen, detector.machine.stride)
    real = measure.measure(detector.with_settings(settings), test, AUTOFOCUS)
    whole = measure.measure(detector, test, PYRAMID)
    assert point.pixels == pytest.approx(real["pixels"])
    assert point.pixels < whole["pixels"]


def test_the_finest_level_is_as_large_as_precision_asks_for(material, monkeypatch):
    _, detector, test, _ = material
    asked = []

    def look(tried, _test):
        asked.append(tried.settings)
        return [len(asked)]

    def evaluate(settings, _test, seen, _stride):
        return Point(settings, {1: 50.0, 2: 50.9, 3: 51.0, 4: 50.5}[seen[0]], 100.0)

    monkeypatch.setattr(tune, "look", look)
    monkeypatch.setattr(tune, "evaluate", evaluate)
    for within, number in ((0.3, 2), (0.05, 3), (2.0, 1)):
        asked.clear()
        sized, seen = tune.sized(detector, test, (1.5, 1.0, 1.2, 1.1), within)
        finest = [settings.levels[-1] for settings in asked]
        assert finest == [detector.settings.levels[-1].times(f) for f in (1.0, 1.1, 1.2, 1.5)]
        assert {settings.levels[:-1] for settings in asked} == {detector.settings.levels[:-1]}
        assert sized.settings.levels == asked[number - 1].levels
        assert seen == [number]


def test_the_front_keeps_what_nothing_beats():
    points = [Point(None, ap, px) for ap, px in ((5, 100), (4, 100), (6, 90), (3, 80), (6, 120))]
    kept = [(p.precision, p.pixels) for p in tune.front(points)]
    assert kept == [(3, 80), (6, 90)]


def test_a_front_that_is_made_thinner_keeps_its_most_precise_point():
    for count in range(1, 40):
        points = [Point(None, ap, ap) for ap in range(count)]
        kept = tune.thinned(points, 8)
        assert min(count, 4) <= len(kept) <= 8
        assert kept[-1] is points[-1]
        assert kept == sorted(kept, key=points.index)


def test_the_fewest_pixels_within_the_loss_are_chosen():
    points = [Point(None, ap, px) for ap, px in ((40, 100), (44, 200), (44.8, 300), (45, 400))]
    pyramid = Point(None, 45, 900)
    assert tune.choose(points, pyramid, 0.3).pixels == 300
    assert tune.choose(points, pyramid, 1.0).pixels == 200
    assert tune.choose(points[:1], pyramid, 1.0) is pyramid


def test_stretched_ranges_leave_no_size_out():
    settings = InferSettings()
    for level in (0, 1):
        candidates = list(tune._stretched(settings, level))
        assert settings.levels in [c.levels for c in candidates]
        assert len(candidates) > 5
        for candidate in candidates:
            for coarse, fine in itertools.pairwise(candidate.levels):
                assert coarse.range[0] <= fine.range[1]


def test_what_is_written_reads_as_what_was_chosen(tmp_path):
    settings = with_focus(inferring.pyramid(), (0.03, 1, 64), (0.2, 5, 128))
    settings = dataclasses.replace(settings, flip=True, suppression="hard", tile=1024)
    levels = dataclasses.replace(settings.levels[1], factor=1.23456789, range=(1 / 3, 90.0))
    settings = dataclasses.replace(
        settings, levels=(*settings.levels[:1], levels, *settings.levels[2:])
    )
    (tmp_path / "tuned.toml").write_text(tune.fragment(settings, "made by a test"))
    assert load(str(tmp_path / "tuned.toml"), {"infer": InferSettings})["infer"] == settings


@pytest.mark.parametrize(
    ("low", "high", "marks"),
    [
        (0, 1005, [0, 200, 400, 600, 800, 1000]),
        (37.1, 51.3, [38, 40, 42, 44, 46, 48, 50]),
        (49.9, 51, [50, 50.2, 50.4, 50.6, 50.8, 51]),
        (0, 4, [0, 1, 2, 3, 4]),
    ],
)
def test_the_drawing_is_marked_at_round_numbers(low, high, marks):
    assert tune.round_numbers(low, high) == pytest.approx(marks)


@pytest.mark.parametrize(
    "words", [("--within", "-0.1"), ("--within", "nan"), ("--finest", "1,0"), ("--finest", "1,b")]
)
def test_a_loss_below_zero_and_sizes_of_nothing_are_refused(words, capsys):
    with pytest.raises(SystemExit):
        main(["tune", "run", "--data", "data", "--out", "tuned.toml", *words])
    assert f"argument {words[0]}" in capsys.readouterr().err


def test_tune_writes_a_recipe_and_a_drawing(material, tmp_path, capsys, monkeypatch):
    data = material[0]
    monkeypatch.setattr(tune, "THRESHOLDS", (0.03, 0.06))
    monkeypatch.setattr(tune, "DILATIONS", (1,))
    monkeypatch.setattr(tune, "STRETCH", (0.8, 1.0))
    inferring.save(tmp_path / "run", inferring.plain(inferring.pyramid()))
    line = ["tune", str(tmp_path / "run"), "--data", str(data), "--smallest", "48"]
    line += ["--pictures", "3", "--finest", "0.9,1", "--out", str(tmp_path / "tuned.toml")]
    assert main(line) == 0
    assert "chosen, run" in capsys.readouterr().out
    assert load(str(tmp_path / "tuned.toml"), {"infer": InferSettings})["infer"].levels
    assert (tmp_path / "tuned.png").read_bytes().startswith(b"\x89PNG")
    assert main(line) == 1
    assert "is there already" in capsys.readouterr().err
    (tmp_path / "tuned.toml").unlink()
    assert main(line) == 1
    assert "tuned.png: is there already" in capsys.readouterr().err
