"""A training that begins with the network of another one."""

import dataclasses
import re

import inferring
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torchvision
import training

from chipgen.errors import Refusal
from chipgen.storage import LocalFolder
from train import checkpoint, inherit
from train.processes import Processes

OF_OTHERS = ("ant", "dog", "cat")


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A run of some steps, and its recipe."""
    folder = tmp_path_factory.mktemp("first")
    run, name = training.shards(folder, pictures=6), training.recipe(folder)
    training.trained(run, name, "--set=train.epochs=1", "--set=train.drops=[]")
    return run, name


def last(run):
    return checkpoint.load_last(LocalFolder(run / "train" / "checkpoints"))


def read(weights, task="detector", **changes):
    return inherit.read(dataclasses.replace(inferring.TINY, weights=str(weights), **changes), task)


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


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"width": 12}, "has model.width = 8, not 12"),
        ({"backbone": "resnet18"}, "has model.backbone = 'small', not 'resnet18'"),
    ],
)
def test_a_training_of_another_backbone_is_refused(tmp_path, changes, told):
    inferring.save(tmp_path, {})
    with pytest.raises(Refusal, match=re.escape(f"{tmp_path} {told}")):
        read(tmp_path, **changes)


def test_trained_offsets_are_not_dropped_in_silence(tmp_path):
    state = checkpoint.read(inferring.save(tmp_path, {}))
    state["recipe"]["model"]["backbone"] = "resnet18"
    torch.save(state, tmp_path / "copy.pt")
    assert read(tmp_path / "copy.pt", backbone="resnet18")
    with pytest.raises(Refusal, match=r"copy\.pt has model\.deformable = True, not False"):
        read(tmp_path / "copy.pt", backbone="resnet18", deformable=False)


def test_a_training_for_proposals_alone_is_taken_for_such_a_one_only(tmp_path):
    file = inferring.save(tmp_path, {}, task="rpn")
    with pytest.raises(Refusal, match="trained for proposals alone"):
        read(file)
    state = read(file, task="rpn")
    anew, _ = taken(inferring.model(5, classes=0), state, inferring.CLASSES)
    assert anew == []


def test_only_trainings_are_read_and_damaged_ones_refused(tmp_path):
    file = inferring.save(tmp_path / "run", {})
    assert read(tmp_path / "run")["step"] == read(file)["step"] == 7
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "other.pt")
    for weights in ("", "DEFAULT", tmp_path / "other.pt"):
        assert read(weights, backbone="resnet18") is None
    for weights, told in (
        (tmp_path, "no checkpoint in"),
        (tmp_path / "no.pt", "no such file"),
        ("runs/no", "no such file"),
    ):
        with pytest.raises(Refusal, match=told):
            read(weights)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(Refusal, match="damaged"):
        read(file)


def of_process(process, folder):
    where = f"file://{folder}/meet"
    dist.init_process_group("gloo", init_method=where, rank=process, world_size=2)
    state = {**checkpoint.read(folder), "model": theirs()} if process == 0 else None
    model = inferring.model(process).to(memory_format=torch.channels_last)
    processes = Processes(process, 2, torch.device("cpu"))
    inherit.begin(model, state, inferring.CLASSES, processes)
    torch.save(model.state_dict(), f"{folder}/{process}.pt")
    dist.destroy_process_group()


def theirs():
    """Weights and statistics that no new network has."""
    return {name: value * 0 + 3 for name, value in inferring.model(0).state_dict().items()}


def test_all_processes_have_what_the_first_one_reads(tmp_path):
    inferring.save(tmp_path, {})
    mp.spawn(of_process, (str(tmp_path),), nprocs=2)
    for process in range(2):
        found = torch.load(tmp_path / f"{process}.pt", weights_only=True)
        assert all(torch.equal(found[name], value) for name, value in theirs().items())


@pytest.mark.parametrize("processes", [1, 2])
def test_a_training_goes_on_from_another_ones_weights(first, tmp_path, processes):
    run, name = first
    (tmp_path / "shards").symlink_to(run / "shards")
    line = "--set=train.epochs=1", "--set=train.drops=[]", "--set=train.lr=1e-9"
    weights = f"--set=model.weights={run}"
    told = training.trained(tmp_path, name, *line, weights, processes=processes)
    mine, theirs = (last(folder)["model"] for folder in (tmp_path, run))
    assert f"those of step {last(run)['step']}; anew: nothing" in told
    for key in (key for key in theirs if key.endswith("weight")):
        torch.testing.assert_close(mine[key], theirs[key], rtol=0, atol=1e-6)


def test_processes_refuse_together_what_the_first_one_refuses(first, tmp_path):
    run, name = first
    (tmp_path / "shards").symlink_to(run / "shards")
    weights = f"--set=model.weights={tmp_path / 'no.pt'}"
    told = training.trained(tmp_path, name, weights, processes=2, code=1)
    assert "no.pt: no such file or run folder" in told
