"""The command that refuses at once what a later stage would refuse."""

import json

import made_up
import pytest

from chipgen.__main__ import main as chipgen
from infer.__main__ import main


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    """A planned run, its data set and its recipe."""
    folder = tmp_path_factory.mktemp("planned")
    data = made_up.coco(folder / "data", 4)
    made_up.coco(data, 2, split="val", first_id=11)
    made_up.coco(data, 2, split="other", first_id=21)
    other = data / "annotations" / "instances_other.json"
    content = json.loads(other.read_text())
    other.write_text(json.dumps(content | {"categories": content["categories"][:1]}))
    recipe = made_up.recipe(folder / "recipe.toml")
    run = folder / "run"
    assert chipgen(["plan", str(run), "--data", str(data), "--recipe", str(recipe)]) == 0
    return run, data, recipe


def checked(planned, *arguments, recipe=None):
    return main(["check", str(planned[0]), "--recipe", str(recipe or planned[2]), *arguments])


def test_what_is_in_order_passes(planned, capsys):
    for data in ([], ["--data", str(planned[1])]):
        assert checked(planned, *data, "--set", "train.batch=8", "--processes=8") == 0
    assert not capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--set", "train.epoch=3"], "did you mean 'epochs'"),
        (["--set", "labels.anchor=3"], "did you mean 'anchors'"),
        (["--set", "infer.step=0"], "step = 0 must be positive"),
        (["--set", "train.batch=7", "--processes=8"], "train.batch = 7, but 8 processes"),
        (["--set", "model.weights=runs/no"], "runs/no: no such file or run folder"),
        (["--data", "DATA", "--split", "test"], "no split 'test'; there is other, train, val"),
        (["--data", "DATA", "--split", "other"], "its classes (cat) are not those"),
    ],
)
def test_what_a_later_stage_would_refuse_is_told_in_one_line(planned, capsys, arguments, told):
    arguments = [str(planned[1]) if word == "DATA" else word for word in arguments]
    assert checked(planned, *arguments) == 1
    said = capsys.readouterr().err
    assert told in said
    assert said.count("\n") == 1


def test_chips_of_own_levels_without_a_pyramid_of_theirs_are_told(planned, caplog):
    assert checked(planned) == 0
    assert "has no [infer]" in caplog.text
    caplog.clear()
    assert checked(planned, "--set", "infer.flip=true") == 0
    assert not caplog.text
