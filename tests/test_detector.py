"""The detector: every backbone and head, and that parts of a batch add up."""

import dataclasses

import pytest
import torch

from chipgen.errors import Refusal
from train import losses, settings
from train.detector import norms
from train.detector.model import Detector
from train.warp import Targets

CLASSES = 3
SMALL = {
    "backbone": "small",
    "width": 8,
    "weights": "",
    "anchor_sizes": (16.0, 48.0),
    "rpn_channels": 16,
    "candidates": 60,
    "proposals": 20,
    "roi_channels": 8,
    "fc_channels": 16,
    "focus_channels": 8,
}


def detector(classes: int = CLASSES, focus_weight: float = 1.0, **changes) -> Detector:
    torch.manual_seed(0)
    model = settings.ModelSettings(**{**SMALL, **changes})
    norm = norms.choose(model.norm, None, torch.device("cpu"))
    labels = settings.LabelSettings(anchors=32, anchors_positive=16, focus_weight=focus_weight)
    return Detector(model, labels, classes, norm)


def batch(count: int = 3, side: int = 96) -> tuple[torch.Tensor, Targets]:
    """Draw canvases, the last of which has no boxes."""
    generator = torch.Generator().manual_seed(1)
    corner = torch.rand(count, 5, 2, generator=generator) * side * 0.6
    size = 8 + torch.rand(count, 5, 2, generator=generator) * side * 0.3
    labels = torch.randint(0, CLASSES, (count, 5), generator=generator)
    labels[-1] = -1
    targets = Targets(
        boxes=torch.cat([corner, corner + size], -1),
        labels=labels,
        valid=torch.rand(count, 5, generator=generator) < 0.7,
        crowd=torch.zeros(count, 5, dtype=torch.bool),
        cut=torch.zeros(count, 5, dtype=torch.bool),
        ranges=torch.tensor([0.0, torch.inf]).expand(count, 1, 2),
        content=torch.full((count, 2), float(side)),
        draws=torch.rand(count, generator=generator),
        cell=(float(side), float(side)),
    )
    return torch.randn(count, 3, side, side, generator=generator), targets


def gradients(model: Detector) -> list[torch.Tensor]:
    return [p.grad.clone() for p in model.parameters()]


def test_focus_weight_scales_the_loss_of_focus_pixels_alone():
    plain, weighted = (
        detector(focus_weight=weight)(*batch(), 32.0).of_canvas for weight in (1.0, 2.5)
    )
    scale = [2.5 if name == "focus" else 1.0 for name in losses.NAMES]
    assert plain[:, losses.NAMES.index("focus")].min() > 0
    torch.testing.assert_close(weighted, plain * torch.tensor(scale))


@pytest.mark.parametrize(
    ("backbone", "stride"),
    [("resnet18", 16), ("resnet50", 16), ("mobilenet_v2", 32), ("small", 16)],
)
def test_every_backbone_gives_losses_gradients_and_detections(backbone, stride):
    model = detector(backbone=backbone, class_agnostic=backbone != "small")
    canvases, targets = batch()
    found = model(canvases, targets, 32.0)
    assert found.of_canvas.shape == (3, len(losses.NAMES))
    assert found.of_canvas.isfinite().all()
    found.of_canvas.sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    seen = model.eval().find(canvases, targets.content)
    boxes = CLASSES if backbone == "small" else 1
    assert seen.boxes.shape == (3, 20, boxes, 4)
    assert seen.scores.shape == (3, 20, CLASSES)
    assert seen.focus.shape == (3, 96 // stride, 96 // stride)
    assert (seen.boxes >= 0).all()
    assert (seen.boxes <= 96).all()


def test_deformable_convolutions_begin_as_plain_ones():
    canvases, _ = batch(1)
    plain, deformable = (detector(backbone="resnet50", deformable=d).eval() for d in (False, True))
    shared = {k: v for k, v in deformable.state_dict().items() if "offset" not in k}
    plain.load_state_dict(shared, strict=False)
    for a, b in zip(plain.backbone(canvases), deformable.backbone(canvases), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_the_short_task_keeps_only_what_the_rpn_needs():
    model = detector(classes=0)
    canvases, targets = batch()
    found = model(canvases, targets, 32.0)
    found.of_canvas.sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    assert (found.of_canvas[:, 2:] == 0).all()
    assert len(model.backbone.stages) == len(detector().backbone.stages) - 1


def test_a_canvas_without_boxes_has_no_positives_and_a_background_loss():
    canvases, targets = batch()
    found = detector()(canvases, targets, 32.0)
    assert (found.of_canvas[-1, [1, 3]] == 0).all()
    assert (found.of_canvas[-1, [0, 2, 4]] > 0).all()


def test_halves_of_a_batch_add_up_to_the_whole():
    """With frozen statistics a canvas does not see the others."""
    canvases, targets = batch(4)
    model = detector(norm="frozen").double()
    canvases = canvases.double()
    model(canvases, targets, 32.0).of_canvas.sum().backward()
    whole = gradients(model)
    model.zero_grad()
    for start in (0, 2):
        half = targets.part(start, start + 2)
        model(canvases[start : start + 2], half, 32.0).of_canvas.sum().backward()
    for a, b in zip(gradients(model), whole, strict=True):
        torch.testing.assert_close(a, b)


def test_computing_activations_again_gives_the_same_gradient():
    canvases, targets = batch()
    found = []
    for again in (False, True):
        model = detector(checkpointing=again)
        model(canvases, targets, 32.0).of_canvas.sum().backward()
        found.append(gradients(model))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


def test_the_share_of_small_boxes_is_of_their_losses():
    canvases, targets = batch()
    model = detector()
    nothing, everything = (model(canvases, targets, small) for small in (0.0, 1e6))
    assert (nothing.small == 0).all()
    torch.testing.assert_close(everything.small, everything.whole)
    assert everything.whole[2] == (targets.labels >= 0).sum()


def test_weights_come_from_a_file_and_a_wrong_one_is_refused(tmp_path):
    net = detector(backbone="resnet18").backbone
    good, bad = tmp_path / "good.pt", tmp_path / "bad.pt"
    import torchvision

    state = torchvision.models.resnet18(weights=None).state_dict()
    torch.save(state, good)
    loaded = detector(backbone="resnet18", weights=str(good)).backbone
    torch.testing.assert_close(loaded.stages[0].weight, state["conv1.weight"])
    assert not torch.equal(net.stages[0].weight, loaded.stages[0].weight)
    bad.write_bytes(b"not weights")
    for name, said in ((bad, "not a file of weights"), (tmp_path / "no.pt", "no such file")):
        with pytest.raises(Refusal, match=said):
            detector(backbone="resnet18", weights=str(name))
    with pytest.raises(Refusal, match="none of DEFAULT, IMAGENET1K_V1"):
        detector(backbone="resnet18", weights="IMAGENET")
    with pytest.raises(Refusal, match="does not fit"):
        detector(backbone="resnet34", weights=str(good))


def test_weights_of_a_net_for_other_classes_are_taken_without_its_head(tmp_path):
    import torchvision

    state = torchvision.models.resnet18(num_classes=20).state_dict()
    torch.save(state, tmp_path / "w.pt")
    loaded = detector(backbone="resnet18", weights=str(tmp_path / "w.pt")).backbone
    torch.testing.assert_close(loaded.stages[0].weight, state["conv1.weight"])


@pytest.mark.parametrize("kind", ["other shapes", "a list", "numbers as keys", "no tensors"])
def test_weights_that_do_not_fit_are_refused_in_one_line(tmp_path, kind):
    import torchvision

    state = torchvision.models.resnet18().state_dict()
    state = {
        "other shapes": {**state, "conv1.weight": torch.zeros(64, 1, 7, 7)},
        "a list": [*state.values()],
        "numbers as keys": dict(enumerate(state.values())),
        "no tensors": {**state, "conv1.weight": 3.0},
    }[kind]
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(Refusal, match=r"w\.pt does not fit resnet18: .+") as caught:
        detector(backbone="resnet18", weights=str(tmp_path / "w.pt"))
    assert "\n" not in str(caught.value)


def test_weights_that_cannot_be_fetched_are_told_of_with_a_remedy(monkeypatch, tmp_path):
    def offline(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(Refusal, match=r"fetched \(no route to host\); give a file"):
        detector(backbone="resnet18", weights="DEFAULT")


def test_settings_that_cannot_be_are_refused():
    for change in ({"anchor_sizes": ()}, {"proposals": 0}, {"norm_processes": -1}):
        with pytest.raises(ValueError, match="must"):
            dataclasses.replace(settings.ModelSettings(), **change)
    with pytest.raises(ValueError, match="none for small"):
        settings.ModelSettings(backbone="small", weights="IMAGENET1K_V1")
    with pytest.raises(Refusal, match=r"mine\.pt is no checkpoint of a training"):
        detector(backbone="small", weights="mine.pt")
