import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from infer.fold import NORMS, fold
from train.detector import backbones
from train.detector.norms import choose
from train.detector.settings import ModelSettings


@pytest.mark.parametrize("kind", ["batch", "frozen"])
@pytest.mark.parametrize(
    ("name", "stay"), [("small", 0), ("resnet18", 2), ("resnet50", 3), ("mobilenet_v2", 0)]
)
def test_a_folded_backbone_gives_what_it_gave(name, stay, kind):
    torch.manual_seed(0)
    settings = ModelSettings(backbone=name, weights="", width=8)
    norm = choose(kind, None, torch.device("cpu"))
    backbone = backbones.build(replace(settings, norm=kind), norm).eval()
    for module in backbone.modules():
        if isinstance(module, NORMS):
            for values in (module.weight, module.running_var):
                nn.init.uniform_(values, 0.5, 1.5)
            for values in (module.bias, module.running_mean):
                nn.init.normal_(values, std=0.5)
    folded = copy.deepcopy(backbone)
    fold(folded, torch.zeros(1, 3, 64, 64))
    # what is left stands behind the deformable convolutions of conv5
    assert sum(isinstance(module, NORMS) for module in folded.modules()) == stay
    canvases = torch.randn(2, 3, 96, 64)
    with torch.no_grad():
        for was, now in zip(backbone(canvases), folded(canvases), strict=True):
            torch.testing.assert_close(now, was, atol=1e-3 * float(was.abs().max()), rtol=0)
