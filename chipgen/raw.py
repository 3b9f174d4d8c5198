"""What a reader found in a data set before anything is believed of it, and lenient conversions.

Legend: P pictures and A annotations as listed, good or bad. A column with entries of the wrong
kind becomes an array with a mask of those that could be read; nothing here raises.
"""

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

NAME_OF_VOC = re.compile("20[0-9]{2}_[0-9]{6}")
NUMBER = re.compile("0|(?!20[0-9]{8}$)[1-9][0-9]{0,17}")  # those that VOC's names give are theirs


@dataclass(frozen=True)
class RawSplit:
    """The entries of one split, as listed."""

    classes: tuple[str, ...]
    picture_ids: np.ndarray  # (P,) int64
    files: list[str]  # (P,) relative to the split's picture folder; "" where none was given
    picture_sizes: np.ndarray  # (P, 2) float64 width, height; NaN where it could not be read
    picture_faults: dict[int, str]  # row -> what made the entry unreadable
    annotation_ids: np.ndarray  # (A,) int64
    annotation_pictures: np.ndarray  # (A,) int64 picture ids
    labels: np.ndarray  # (A,) int64; -1 for a category that is not listed
    boxes: np.ndarray  # (A, 4) float64 xyxy
    crowd: np.ndarray  # (A,) bool
    readable: np.ndarray  # (A,) bool: false for an entry with a missing or mistyped field

    @property
    def picture_readable(self) -> np.ndarray:
        """Say which entries of pictures could be read, (P,) bool; others may have no id."""
        readable = np.ones(len(self.files), bool)
        readable[list(self.picture_faults)] = False
        return readable


def as_text(file: str) -> str:
    """Escape the bytes of a file's name that are no UTF-8, which json and Parquet don't take."""
    return file.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def picture_id_of(name: str) -> int:
    """Make a picture id of a name: the number that only this name gives, or 53 bits of its hash."""
    if NUMBER.fullmatch(name) or NAME_OF_VOC.fullmatch(name):
        return int(name)  # Python, too, reads 2007_000001 as 2007000001
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest()) >> 11


def ids(values: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Read ids: (n,) int64 and a mask of those that are ids (whole numbers, or names)."""
    array = _plain_array(values)
    if array is not None and array.ndim == 1 and array.dtype.kind == "i":
        return array.astype(np.int64), np.ones(len(array), bool)
    return _each(values, _id, 0, np.int64)


def repeats(ids: np.ndarray) -> np.ndarray:
    """Say which entries have an id that an earlier one has, (n,) bool."""
    again = np.ones(len(ids), bool)
    again[np.unique(ids, return_index=True)[1]] = False
    return again


def pairs(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Number pairs of ids, (n,) each: equal pairs have the same number, (n,) int64."""
    _, one = np.unique(first, return_inverse=True)
    values, two = np.unique(second, return_inverse=True)
    return one * len(values) + two


def floats(values: Sequence[Any]) -> np.ndarray:
    """Read numbers: (n,) float64, NaN where the value is none."""
    array = _plain_array(values)
    if array is not None and array.ndim == 1 and array.dtype.kind in "if":
        return array.astype(np.float64)
    return _each(values, _float, np.nan, np.float64)[0]


def quadruples(values: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Read lists of four numbers: (n, 4) float64 and a mask of those that are such a list."""
    if not values:
        return np.zeros((0, 4)), np.zeros(0, bool)
    array = _plain_array(values)
    if array is not None and array.dtype.kind in "if" and array.ndim == 2 and array.shape[1] == 4:
        return array.astype(np.float64), np.ones(len(array), bool)
    rows = np.zeros((len(values), 4))
    readable = np.zeros(len(values), bool)
    for i, value in enumerate(values):
        if isinstance(value, list | tuple) and len(value) == 4:
            numbers = [_float(one) for one in value]
            if None not in numbers:
                rows[i], readable[i] = numbers, True
    return rows, readable


def _plain_array(values: Sequence[Any]) -> np.ndarray | None:
    """Convert well-formed columns at once; None sends a column with odd entries the slow way."""
    try:
        return np.array(values)
    except (ValueError, TypeError, OverflowError):
        return None


def _each(
    values: Sequence[Any], read: Callable[[Any], Any], default: Any, dtype: type
) -> tuple[np.ndarray, np.ndarray]:
    found = [read(value) for value in values]
    readable = np.array([one is not None for one in found], dtype=bool)
    return np.array([default if one is None else one for one in found], dtype=dtype), readable


def _id(value: Any) -> int | None:
    if isinstance(value, str) and value:
        return picture_id_of(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if value != value or abs(value) >= 2**63 or int(value) != value:
        return None
    return int(value)


def _float(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:  # a whole number beyond what a float holds
        return None
