import torch

from train import anchors
from train.constants import constant

CPU = torch.device("cpu")


def test_a_constant_is_made_once_for_each_kind():
    first = constant((1.0, 2.0), CPU)
    assert first.tolist() == [1.0, 2.0]
    assert constant((1.0, 2.0), CPU) is first
    assert constant((1.0, 2.0), CPU, torch.bfloat16).dtype == torch.bfloat16
    assert constant((1.0, 3.0), CPU).tolist() == [1.0, 3.0]


def test_what_was_first_made_while_inferring_can_be_trained_with():
    with torch.inference_mode():
        grid = anchors.grid(3, 5, 16, (17.0,), (0.5, 1.0), CPU)
    assert anchors.grid(3, 5, 16, (17.0,), (0.5, 1.0), CPU) is grid
    moved = torch.ones_like(grid, requires_grad=True)
    (moved * grid).sum().backward()
    assert torch.equal(moved.grad, grid)
