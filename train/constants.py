"""Small tensors that never change, made once for each device.

A GPU stands still while numbers are copied to it from the host's memory; in each step it would.
"""

import functools
from collections.abc import Callable
from typing import ParamSpec

import torch

KEPT = 32  # the anchors of a tile of 2048 px have 4 MB
Arguments = ParamSpec("Arguments")


def kept(make: Callable[Arguments, torch.Tensor]) -> Callable[Arguments, torch.Tensor]:
    """Keep what a function makes of the last arguments it had; nobody may change it in place."""

    @functools.lru_cache(KEPT)
    def keeping(*given, **named):
        with torch.inference_mode(False):  # what is made while inferring can't be trained with
            return make(*given, **named)

    return functools.wraps(make)(keeping)


@kept
def constant(
    values: tuple[float, ...], device: torch.device, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """Give numbers as a tensor (n,)."""
    return torch.tensor(values, dtype=dtype, device=device)
