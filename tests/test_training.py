"""The loop within one process: that it learns, what stops it, and what must not change it."""

import dataclasses
import multiprocessing

import numpy as np
import pytest
import torch
import torchvision
import training
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torchvision.ops import batched_nms

from chipgen.errors import Refusal
from chipgen.storage import LocalFolder
from train import checkpoint, loop, losses, warp
from train.__main__ import main
from train.index import find_sets, open_index
from train.meter import KINDS, Meter, Told
from train.order import Order
from train.precision import mixed, precision_of
from train.processes import Processes
from train.settings import load_recipe
from train.stream import ChipReader, Stream

ONE = Processes(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    folder = tmp_path_factory.mktemp("training")
    return training.shards(folder, pictures=10), training.recipe(folder)


def run(folder, shards, name, *overrides):
    """Train in this process; gives the state at the end and the log."""
    recipe = load_recipe(str(name), ["train.workers=0", *overrides])
    index = open_index(find_sets(str(shards / "shards")))
    target = LocalFolder(folder / "train")
    assert loop.train(target, index, recipe, {}, ONE, None) == loop.FINISHED
    return checkpoint.load_last(target.sub("checkpoints")), training.log(folder)


def test_passes_over_parts_of_a_batch_take_the_same_steps(material, tmp_path):
    double = ("train.precision=fp64", 'model.norm="frozen"', "train.epochs=1")
    (whole, log), (parts, other) = (
        run(tmp_path / str(most), *material, *double, f"train.pass_chips={most}") for most in (0, 3)
    )
    np.testing.assert_allclose([e["loss"] for e in log], [e["loss"] for e in other], rtol=1e-5)
    for key, value in whole["model"].items():
        torch.testing.assert_close(parts["model"][key], value, rtol=1e-6, atol=1e-9, msg=key)


def test_averaged_weights_follow_the_model_from_its_start(material, tmp_path):
    state, _ = run(tmp_path, *material, "train.ema=0.9", "train.epochs=1")
    distance = [(state["average"][k] - v).abs().max() for k, v in state["model"].items()]
    assert 0 < max(float(d) for d in distance) < 0.5
    assert state["average"].keys() == state["model"].keys()


def test_a_loss_that_is_not_finite_stops_before_the_update_and_names_the_chips(
    material, tmp_path, monkeypatch
):
    drawn, steps = loop.draw, []

    def poisoned(*arguments):
        canvases, targets = drawn(*arguments)
        steps.append(1)
        if len(steps) == 3:
            canvases[2, 0, 0, 0] = float("nan")
        return canvases, targets

    monkeypatch.setattr(loop, "draw", poisoned)
    frozen = ('model.norm="frozen"', "train.checkpoint_every=1", "train.keep=9")
    with pytest.raises(Refusal, match=r"step 2: the loss is not finite.*sample train-") as caught:
        run(tmp_path, *material, *frozen)
    assert str(caught.value).count("sample") == 1
    state = checkpoint.load_last(LocalFolder(tmp_path / "train" / "checkpoints"))
    assert state["step"] == 2
    assert all(v.isfinite().all() for v in state["model"].values())


def test_weights_that_an_update_has_spoilt_are_not_kept(material, tmp_path, monkeypatch):
    inner, steps = torch.optim.SGD.step, []

    def spoiling(self, *arguments):
        inner(self, *arguments)
        steps.append(1)
        if len(steps) == 2:
            self.param_groups[0]["params"][0].data[0] = float("inf")

    monkeypatch.setattr(torch.optim.SGD, "step", spoiling)
    with pytest.raises(Refusal, match="the weights are not finite after step 2"):
        run(tmp_path, *material, "train.checkpoint_every=1")
    state = checkpoint.load_last(LocalFolder(tmp_path / "train" / "checkpoints"))
    assert state["step"] == 1


def test_a_run_goes_on_in_less_memory_and_where_its_first_weights_are_gone(
    material, tmp_path, caplog
):
    torch.manual_seed(3)
    weights = tmp_path / "weights.pt"
    torch.save(torchvision.models.resnet18().state_dict(), weights)
    settings = ('model.backbone="resnet18"', f'model.weights="{weights}"', 'train.precision="fp32"')
    shards, name = material
    (tmp_path / "shards").symlink_to(shards / "shards")
    line = [str(tmp_path), "--recipe", str(name), *(f"--set={text}" for text in settings)]
    assert main([*line, "--set=train.epochs=1"]) == 0
    assert "train.drops: the rate does not fall at epoch 1.5, for there are only 1" in caplog.text
    weights.unlink()
    caplog.clear()
    less = "--set=train.pass_chips=2", "--set=model.checkpointing=true"
    assert main([*line, *less, "--resume"]) == 0
    assert "train.drops" not in caplog.text
    state = checkpoint.load_last(LocalFolder(tmp_path / "train" / "checkpoints"))
    assert state["place"] == [2, 0]
    assert state["done"]


@pytest.mark.parametrize("form", ["collage", "batch"])
@pytest.mark.parametrize(("batch", "world"), [(5, 2), (4, 2), (7, 4), (3, 3)])
def test_all_processes_make_as_many_passes_none_of_them_empty(
    material, tmp_path, form, batch, world
):
    settings = (f"train.batch={batch}", "train.pass_chips=1", f'feedback.form="{form}"')
    recipe = load_recipe(str(material[1]), settings)
    index = open_index(find_sets(str(material[0] / "shards")))
    order, counts = Order(index, batch, 0), []
    for rank in range(world):
        reader = ChipReader(index, 0, rank, world, "stop")
        taken = list(Stream(reader, order, (0, 0), 1, 0, pin=False))[:4]
        canvases, targets = loop.draw(taken, recipe, ONE.device)
        fewest = loop.fewest_canvases(taken, loop.chips_in(taken, canvases), world)
        pieces = list(loop.passes(canvases, targets, recipe.train, fewest))
        assert all(len(piece) for piece, *_ in pieces)
        assert [last for *_, last in pieces] == [False] * (len(pieces) - 1) + [True]
        assert len(torch.cat([piece for piece, *_ in pieces])) == len(canvases)
        counts.append((len(pieces), len(canvases)))
    assert {made for made, _ in counts} == {min(most for _, most in counts)}


def test_the_log_has_all_steps_up_to_each_checkpoint_and_the_end(material, tmp_path):
    frozen = ("train.precision=fp64", 'model.norm="frozen"')
    _, each = run(tmp_path / "each", *material, *frozen)
    windows = ("train.log_every=5", "train.checkpoint_every=7")
    _, log = run(tmp_path / "windows", *material, *frozen, *windows)
    last, ends = len(each), [entry["step"] for entry in log]
    assert last % 5
    assert last % 7
    assert ends == sorted({*range(5, last, 5), *range(7, last, 7), last})
    for start, entry in zip([0, *ends], log, strict=False):
        window = each[start : entry["step"]]
        assert entry["loss"] == pytest.approx(np.mean([e["loss"] for e in window]))
        assert entry["epoch"] == window[-1]["epoch"]
    assert log[-1]["epoch"] == 2.0


def told(small: float, whole: float, broken: int) -> Told:
    shares = dict.fromkeys(KINDS, (small, whole))
    return Told([0.0] * len(losses.NAMES), [0.0, 0.0], shares, broken, stop=False, finite=True)


def test_an_entry_has_the_share_of_small_boxes_and_the_broken_samples_of_all_its_steps():
    meter = Meter(ONE)
    for figures in ((3.0, 4.0, 2), (0.0, 8.0, 0), (0.0, 0.0, 1)):
        meter.add(told(*figures), [], canvases=4, waited=0.0)
    entry = meter.entry()
    assert (entry["small_share"], entry["broken"]) == (0.25, 3)
    meter.add(told(0.0, 0.0, 0), [], canvases=4, waited=0.0)
    entry = meter.entry()
    assert (entry["small_share"], entry["broken"]) == (0.0, 0)


@pytest.mark.parametrize("form", ["collage", "batch"])
def test_shrunken_batches_use_each_chip_once_and_finish(material, tmp_path, form):
    feedback = ('feedback.mode="all"', f'feedback.form="{form}"', "train.epochs=1")
    state, log = run(tmp_path, *material, *feedback)
    _, plain = run(tmp_path / "plain", *material, "train.epochs=1")
    batches, steps = len(plain), len(log)
    assert steps == batches // 4 + batches % 4  # what is left at the end goes in one by one
    assert state["place"] == [1, 0]
    assert sum(e["shrunk_share"] for e in log) == batches // 4
    assert log[0]["epoch"] == plain[3]["epoch"]
    assert log[-1]["epoch"] == 1.0


def test_feedback_turns_to_collages_when_small_boxes_have_no_share(material, tmp_path):
    """A threshold of 1 is always met: from the second step on all batches are collages."""
    _, log = run(tmp_path, *material, 'feedback.mode="feedback"', "feedback.threshold=1")
    assert [e["shrunk_share"] for e in log[:4]] == [1.0] * 4
    _, log = run(tmp_path / "b", *material, 'feedback.mode="feedback"', "feedback.threshold=0")
    assert log[0]["shrunk_share"] == 0


def test_both_stores_train_alike(tmp_path):
    means = []
    for store in ("source", "canvas"):
        shards = training.shards(tmp_path / store, pictures=10, store=store)
        steps = ("train.epochs=8", "train.drops=[]", "train.checkpoint_every=1000")
        _, log = run(tmp_path / store, shards, training.recipe(tmp_path / store), *steps)
        means.append(np.array([e["loss"] for e in log])[-40:].mean())
    assert means[0] == pytest.approx(means[1], rel=0.1)


def evaluated(recipe, index, state) -> float:
    """Give the AP50 of a model on its own chips, each at its level and in its valid range."""
    model, _ = loop.build(recipe, index.classes, ONE)
    model.load_state_dict(state["model"])
    model.eval()
    order = Order(index, len(index), 0)
    (loaded,) = Stream(ChipReader(index, 0, 0, 1, "stop"), order, (0, 0), 1, 0, pin=False)
    plain = dataclasses.replace(recipe, augment=warp.AS_IT_IS)
    canvases, targets = loop.draw([loaded], plain, ONE.device)
    with mixed(precision_of(recipe.train, ONE.device), ONE.device):
        found = model.find(canvases, targets.content)
    truth, detections = [], []
    for i in range(len(canvases)):
        low, high = targets.ranges[i, 0].tolist()
        for box, label, valid in zip(
            targets.boxes[i].tolist(), targets.labels[i].tolist(), targets.valid[i].tolist(),
            strict=True,
        ):  # fmt: skip
            if label >= 0:
                ignored = 0 if valid else 1
                truth.append({**row(i, box, label), "id": len(truth) + 1, "iscrowd": ignored})
        scores = found.scores[i]
        boxes = found.boxes[i].expand(*scores.shape, 4).flatten(0, 1)
        labels = torch.arange(scores.shape[1]).repeat(len(scores))
        kept = batched_nms(boxes, scores.flatten(), labels, 0.5)[:100]
        for k in kept.tolist():
            entry = row(i, boxes[k].tolist(), int(labels[k]))
            if low <= entry["area"] ** 0.5 < high:
                detections.append({**entry, "score": float(scores.flatten()[k])})
    coco = COCO()
    coco.dataset = {
        "images": [{"id": i} for i in range(len(canvases))],
        "annotations": truth,
        "categories": [{"id": k} for k in range(len(index.classes))],
    }
    coco.createIndex()
    evaluation = COCOeval(coco, coco.loadRes(detections), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return float(evaluation.stats[1])


def row(image: int, box: list[float], label: int) -> dict:
    x1, y1, x2, y2 = box
    sides = x2 - x1, y2 - y1
    return {
        "image_id": image,
        "category_id": label,
        "bbox": [x1, y1, *sides],
        "area": sides[0] * sides[1],
    }


def test_eight_pictures_are_learned_by_heart(tmp_path):
    """The default recipe on its own pictures: near perfect, or there is a bug."""
    shards = training.scenes(tmp_path, pictures=8)
    steps = (
        "train.epochs=215",
        "train.drops=[[172, 0.1]]",
        "augment.flip=false",
        "augment.shift=0",
    )
    steps += ("train.batch=9", "train.lr=0.05")  # for 8: many small steps are what a heart needs
    quiet = ("train.checkpoint_every=1000", "train.log_every=100", "train.ema=0")
    state, _ = run(tmp_path, shards, "scenes-small", *steps, *quiet)
    recipe = load_recipe("scenes-small", quiet)
    index = open_index(find_sets(str(shards / "shards")))
    assert evaluated(recipe, index, state) >= 0.95


def test_too_little_memory_on_the_device_is_told_with_what_helps(
    material, tmp_path, capsys, monkeypatch
):
    def full(*_, **__):
        raise torch.OutOfMemoryError("tried to allocate 2 GiB")

    monkeypatch.setattr(loop, "build", full)
    (tmp_path / "shards").symlink_to(material[0] / "shards")
    assert main([str(tmp_path), "--recipe", str(material[1])]) == 1
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert "tried to allocate 2 GiB" in told
    assert "train.pass_chips" in told


def test_a_loader_worker_that_is_killed_is_told_in_one_line(
    material, tmp_path, capsys, monkeypatch
):
    inner = loop.draw

    def killing(*arguments):
        for child in multiprocessing.active_children():
            child.kill()
        return inner(*arguments)

    monkeypatch.setattr(loop, "draw", killing)
    (tmp_path / "shards").symlink_to(material[0] / "shards")
    assert main([str(tmp_path), "--recipe", str(material[1]), "--set=train.epochs=9"]) == 1
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert "a loader worker died" in told
    assert "train.workers" in told
