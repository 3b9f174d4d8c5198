"""Batch normalisation over processes: MegDet's algorithm 1 against one process that has all."""

import functools

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from train.detector import norms

CHANNELS = 5


def inputs(process: int) -> torch.Tensor:
    """Draw what a process sees; processes have different numbers of canvases."""
    generator = torch.Generator().manual_seed(process)
    x = torch.randn(1 + process % 3, CHANNELS, 4, 3, generator=generator, dtype=torch.float64)
    return x * (process + 1) + process


def step(norm: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """Run forward and backward; gives output, gradients and running statistics."""
    norm = norm.double()
    with torch.no_grad():
        norm.weight.copy_(torch.arange(1.0, CHANNELS + 1))
        norm.bias.copy_(torch.arange(float(CHANNELS)))
    x = x.requires_grad_()
    y = norm(x)
    (
        y * torch.linspace(-1, 2, y[0].numel(), dtype=y.dtype).view(y[0].shape)
    ).square().sum().backward()
    return [y, x.grad, norm.weight.grad, norm.bias.grad, norm.running_mean, norm.running_var]


def of_process(process: int, world: int, together: int, folder: str) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=process, world_size=world
    )
    make = norms.choose("sync", norms.groups_of(together), torch.device("cpu"))
    assert isinstance(make(CHANNELS), norms.CrossBatchNorm)
    results = [t.detach() for t in step(make(CHANNELS), inputs(process))]
    torch.save(results, f"{folder}/{process}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize(("world", "together"), [(4, 2), (2, 0)])
def test_groups_of_processes_share_their_statistics_and_no_others(tmp_path, world, together):
    work = functools.partial(of_process, world=world, together=together, folder=str(tmp_path))
    mp.spawn(work, nprocs=world)
    found = [torch.load(tmp_path / f"{p}.pt", weights_only=True) for p in range(world)]
    size = together or world
    for first in range(0, world, size):
        members = range(first, first + size)
        alone = step(nn.BatchNorm2d(CHANNELS), torch.cat([inputs(p) for p in members]))
        mine = [found[p] for p in members]
        for k in (0, 1):  # output and its gradient: each process has its part
            torch.testing.assert_close(torch.cat([m[k] for m in mine]), alone[k])
        for k in (2, 3):  # of weight and bias: their parts add up
            torch.testing.assert_close(sum(m[k] for m in mine), alone[k])
        for k in (4, 5):  # running statistics: all have the same
            for m in mine:
                torch.testing.assert_close(m[k], alone[k])


def test_kinds_of_the_recipe_give_their_layers():
    cpu = torch.device("cpu")
    assert type(norms.choose("sync", None, cpu)(3)) is nn.BatchNorm2d
    assert type(norms.choose("batch", None, cpu)(3)) is nn.BatchNorm2d
    assert not list(norms.choose("frozen", None, cpu)(3).parameters())
