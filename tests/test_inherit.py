"""A training that begins with the network of another one."""

import inferring
import pytest
import torch
import torchvision
import training

from chipgen.errors import Refusal
from chipgen.storage import LocalFolder
from train import checkpoint, inherit
from train.__main__ import main

OF_OTHERS = ("ant", "dog", "cat")


def state_of(folder, seed=1, **changes):
    """A checkpoint of a network with other weights than those that a new one has."""
    file = inferring.save(folder, {})
    state = checkpoint.read(file)
    return {**state, "model": inferring.model(seed, **changes).state_dict()}


def taken(model, state, classes):
    """Take weights; gives the layers that begin anew, and those whose weights are the state's."""
    anew = inherit.take(model, state, classes)
    same = {
        name.rpartition(".")[0]
        for name, value in model.state_dict().items()
        if name in state["model"] and torch.equal(value, state["model"][name])
    }
    return anew, same


def test_the_same_network_is_taken_whole(tmp_path):
    model = inferring.model(0)
    anew, same = taken(model, state_of(tmp_path), inferring.CLASSES)
    assert anew == []
    assert same == {name.rpartition(".")[0] for name in model.state_dict()}


def test_averaged_weights_are_taken_where_there_are_some(tmp_path):
    state = state_of(tmp_path)
    averaged = {**state, "average": state["model"], "model": inferring.model(2).state_dict()}
    model = inferring.model(0)
    inherit.take(model, averaged, inferring.CLASSES)
    assert torch.equal(model.rpn.conv.weight, state["model"]["rpn.conv.weight"])


@pytest.mark.parametrize("classes", [OF_OTHERS, ("cat", "ant")])
@pytest.mark.parametrize("agnostic", [True, False])
def test_what_tells_classes_apart_begins_anew_where_they_are_others(tmp_path, classes, agnostic):
    state = state_of(tmp_path, class_agnostic=agnostic)
    model = inferring.model(0, len(classes), class_agnostic=agnostic)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    anew, same = taken(model, state, classes)
    assert anew == ["box_head.classes"] + ["box_head.boxes"] * (not agnostic)
    assert {"rpn.conv", "box_head.fc2", "focus_head.focus"} <= same
    for layer in anew:
        assert torch.equal(model.state_dict()[f"{layer}.weight"], before[f"{layer}.weight"])


def test_heads_of_other_sizes_begin_anew_and_the_short_task_has_fewer(tmp_path):
    state = state_of(tmp_path)
    anew, same = taken(inferring.model(0, fc_channels=24), state, inferring.CLASSES)
    assert anew == ["box_head.fc1", "box_head.fc2", "box_head.classes", "box_head.boxes"]
    assert "box_head.project" in same
    anew, same = taken(inferring.model(0, classes=0), state, inferring.CLASSES)
    assert anew == []
    assert "rpn.offsets" in same


def test_another_backbone_is_refused(tmp_path):
    with pytest.raises(Refusal, match=r"backbone\.stages\.0 .* 'small', width = 8"):
        inherit.take(inferring.model(0, width=12), state_of(tmp_path), inferring.CLASSES)
    of_rpn = state_of(tmp_path, classes=0)
    with pytest.raises(Refusal, match=r"backbone\.stages\.4\.0"):
        inherit.take(inferring.model(0), of_rpn, inferring.CLASSES)


def test_only_trainings_are_read_and_damaged_ones_refused(tmp_path):
    file = inferring.save(tmp_path / "run", {})
    assert inherit.read(str(tmp_path / "run"))["step"] == inherit.read(str(file))["step"] == 7
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "other.pt")
    for weights in ("", "DEFAULT", str(tmp_path / "other.pt"), str(tmp_path / "nowhere.pt")):
        assert inherit.read(weights) is None
    with pytest.raises(Refusal, match="no checkpoint in"):
        inherit.read(str(tmp_path))
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(Refusal, match="damaged"):
        inherit.read(str(file))


def test_a_training_goes_on_from_another_ones_weights(tmp_path, caplog):
    shards, name = training.shards(tmp_path, pictures=6), training.recipe(tmp_path)

    def trained(folder, *overrides):
        folder.mkdir()
        (folder / "shards").symlink_to(shards / "shards")
        line = [str(folder), "--recipe", str(name), "--set=train.workers=0", "--resume"]
        line += [f"--set={text}" for text in ("train.epochs=1", "train.drops=[]", *overrides)]
        assert main(line) == 0
        return checkpoint.load_last(LocalFolder(folder / "train" / "checkpoints"))["model"]

    first = trained(tmp_path / "first")
    with caplog.at_level("INFO"):
        still = "train.lr=1e-9", f'model.weights="{tmp_path / "first"}"'
        then = trained(tmp_path / "then", *still)
    assert f"weights of {tmp_path / 'first'}; anew: nothing" in caplog.text
    other = trained(tmp_path / "other", "train.seed=1", "train.lr=1e-9")
    weights = [name for name in first if name.endswith("weight")]
    assert all(torch.allclose(then[name], first[name], atol=1e-6) for name in weights)
    assert not all(torch.allclose(other[name], first[name], atol=1e-6) for name in weights)
