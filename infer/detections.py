"""What was found in pictures: the columns that all of inference hands on.

D detections; boxes are (D, 4) float32 xyxy in picture pixels, half-open. A label is the place of
the class in `classes`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Detections:
    """What was found in some pictures, in any order."""

    picture_ids: np.ndarray  # (D,) int64
    boxes: np.ndarray  # (D, 4) float32
    scores: np.ndarray  # (D,) float32
    labels: np.ndarray  # (D,) int32

    def __post_init__(self):
        shapes = {field.name: getattr(self, field.name).shape for field in fields(self)}
        one = (len(self.picture_ids),)
        wanted = {"picture_ids": one, "boxes": (*one, 4), "scores": one, "labels": one}
        if shapes != wanted:
            raise ValueError(f"detections: the shapes must be {wanted}, not {shapes}")

    def __len__(self) -> int:
        return len(self.picture_ids)

    @classmethod
    def concatenate(cls, parts: Iterable["Detections"]) -> "Detections":
        """Put many behind one another; none at all make empty ones."""
        empty = cls(
            np.zeros(0, np.int64),
            np.zeros((0, 4), np.float32),
            np.zeros(0, np.float32),
            np.zeros(0, np.int32),
        )
        parts = [empty, *parts]
        columns = [[getattr(part, field.name) for part in parts] for field in fields(cls)]
        return cls(*map(np.concatenate, columns))

    def take(self, rows: np.ndarray) -> "Detections":
        """Give only these detections, in this order."""
        return Detections(*(getattr(self, field.name)[rows] for field in fields(self)))

    def to_rows(self, category_ids: Sequence[int]) -> list[dict[str, Any]]:
        """Make the rows of a COCO results file; `category_ids` has the json's id of each class."""
        category = np.asarray(category_ids, np.int64)[self.labels]
        # a thousandth of a pixel and float32's own noise are not worth their bytes
        columns = [
            self.picture_ids.tolist(),
            category.tolist(),
            np.round(xywh(self.boxes), 3).tolist(),
            np.round(self.scores.astype(np.float64), 5).tolist(),
        ]
        names = ("image_id", "category_id", "bbox", "score")
        return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def xywh(boxes: np.ndarray) -> np.ndarray:
    """Give boxes as COCO writes them: (n, 4) float64 x, y, width, height."""
    wide = boxes.astype(np.float64)
    wide[:, 2:] -= wide[:, :2]
    return wide
