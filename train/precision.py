"""In what precision a device computes."""

from typing import Protocol

import torch


class Settings(Protocol):
    """What settings of training and of inference share."""

    precision: str


def precision_of(settings: Settings, device: torch.device) -> torch.dtype:
    """Give the type to compute in; "auto" is bf16 where that is faster."""
    if settings.precision != "auto":
        return {"bf16": torch.bfloat16, "fp32": torch.float32, "fp64": torch.float64}[
            settings.precision
        ]
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if fast else torch.float32


def mixed(precision: torch.dtype, device: torch.device) -> torch.autocast:
    """Give the context that computes in a precision; what needs float32 keeps it in there."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == torch.bfloat16)
