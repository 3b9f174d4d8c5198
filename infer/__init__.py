"""The AutoFocus pyramid: coarse-to-fine inference, evaluation, proposals."""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from infer.detector import Detector, Result

__all__ = ["Detector", "Result"]


# oneDNN compiles each convolution for each shape of a batch and keeps 1024 of them. FocusChips come
# in more shapes than that holds. torch has no other way to say so, and asks when the first
# convolution of the process runs, so it is said here; who has set it is not overruled.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16384")


def __getattr__(name: str):
    if name not in __all__:
        raise AttributeError(f"module 'infer' has no attribute {name!r}")
    from infer import detector  # torch takes seconds, and --help needs none of it

    return getattr(detector, name)
