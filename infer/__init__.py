"""The AutoFocus pyramid: coarse-to-fine inference, evaluation, proposals."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from infer.detector import Detector, Result

__all__ = ["Detector", "Result"]


def __getattr__(name: str):
    if name not in __all__:
        raise AttributeError(f"module 'infer' has no attribute {name!r}")
    from infer import detector  # torch takes seconds, and --help needs none of it

    return getattr(detector, name)
