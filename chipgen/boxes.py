"""Arithmetic of boxes. Boxes are (N, 4) float32 xyxy in continuous pixels, half-open; no +1."""

import numpy as np


def areas(boxes: np.ndarray) -> np.ndarray:
    """Give the area of each box, (N,) float64 (so that sizes near a range's end don't round)."""
    wide = boxes.astype(np.float64)
    return (wide[:, 2] - wide[:, 0]) * (wide[:, 3] - wide[:, 1])


def sizes(boxes: np.ndarray) -> np.ndarray:
    """Give the square root of each box's area, (N,) float64: what valid ranges speak of."""
    return np.sqrt(areas(boxes))


def clip(boxes: np.ndarray, width: float, height: float) -> np.ndarray:
    """Cut boxes to the rectangle from the origin to (width, height)."""
    limits = np.array([width, height, width, height], dtype=boxes.dtype)
    return np.clip(boxes, 0, limits)


def scale(boxes: np.ndarray, x: float, y: float) -> np.ndarray:
    """Stretch boxes about the origin."""
    return (boxes * np.array([x, y, x, y])).astype(boxes.dtype)


def shift(boxes: np.ndarray, x: float, y: float) -> np.ndarray:
    """Move boxes by (x, y)."""
    return (boxes + np.array([x, y, x, y])).astype(boxes.dtype)


def flip(boxes: np.ndarray, width: float) -> np.ndarray:
    """Mirror boxes left to right in a picture of a width."""
    flipped = boxes.copy()
    flipped[:, 0] = width - boxes[:, 2]
    flipped[:, 2] = width - boxes[:, 0]
    return flipped


def intersections(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Give the area that each box of `a` (N, 4) shares with each of `b` (M, 4): (N, M) float64."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    sides = np.maximum(high - low, 0)
    return sides[..., 0] * sides[..., 1]


def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Give intersection over union of all pairs, (N, M) float64; 0 where both are empty."""
    shared = intersections(a, b)
    union = areas(a)[:, None] + areas(b)[None, :] - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def ioa(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Give the share of each box of `a` that lies in each of `b`, (N, M); 0 for an empty `a`."""
    shared = intersections(a, b)
    own = np.broadcast_to(areas(a)[:, None], shared.shape)
    return np.divide(shared, own, out=np.zeros_like(shared), where=own > 0)
