"""What there is to see: the classes and decoys, by outline and mark.

Outlines and marks are polygons in the square from -1 to 1.
"""

import itertools
from dataclasses import dataclass

import numpy as np


def circle(x: float = 0, y: float = 0, radius: float = 1, power: float = 1) -> np.ndarray:
    """Return a closed circle's corners; a power below 1 squares the circle up."""
    angle = np.linspace(0, 2 * np.pi, 49)
    unit = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return radius * np.sign(unit) * np.abs(unit) ** power + (x, y)


def bar(x0: float, y0: float, x1: float, y1: float, thickness: float) -> np.ndarray:
    """Return the corners of a straight stroke between two points."""
    start, end, along = np.array([x0, y0]), np.array([x1, y1]), np.array([x1 - x0, y1 - y0])
    side = along[::-1] * (-1, 1) * thickness / 2 / np.hypot(*along)
    return np.array([start + side, end + side, end - side, start - side])


def turned(points: np.ndarray, angle: float) -> np.ndarray:
    """Rotate points about the origin."""
    cos, sin = np.cos(angle), np.sin(angle)
    return points @ np.array([[cos, sin], [-sin, cos]])


SQUARE = np.array([(-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0)])
TRIANGLE = np.array([(0.0, -1.0), (1.0, 1.0), (-1.0, 1.0)])
HALF_BOTTLE = np.array([(0.4, -1.0), (0.4, -0.5), (1.0, -0.2), (1.0, 1.0)])
BOTTLE = np.concatenate([HALF_BOTTLE, HALF_BOTTLE[::-1] * (-1, 1)])
CHEVRON = np.array([(-1.0, -1.0), (0.0, 0.0), (1.0, -1.0), (1.0, -0.3), (0.0, 0.8), (-1.0, -0.3)])

# The two classes of a family use about the same ink, so that the mean colour of an object too small
# to be read says nothing of its class.
MARKS: dict[str, tuple[np.ndarray, ...]] = {
    "spokes": (bar(-0.8, -0.8, 0.8, 0.8, 0.55), bar(-0.8, 0.8, 0.8, -0.8, 0.55)),
    "hands": (bar(-0.65, -1, -0.65, 1, 0.7), bar(-0.65, 0.65, 1, 0.65, 0.7)),
    "plus": (bar(0, -1, 0, 1, 0.36), bar(-1, 0, 1, 0, 0.36)),
    "dots": (circle(-0.55, 0, 0.45), circle(0.55, 0, 0.45)),
    "level": (bar(-1, -0.65, 1, -0.65, 0.65), bar(-1, 0.65, 1, 0.65, 0.65)),
    "upright": (bar(-0.65, -1, -0.65, 1, 0.65), bar(0.65, -1, 0.65, 1, 0.65)),
    "up": (-CHEVRON,),
    "down": (CHEVRON,),
}


@dataclass(frozen=True, eq=False)
class Outline:
    """What the kinds of a family share."""

    points: np.ndarray
    aspect: tuple[float, float]  # range of width over height
    mark_y: float  # where the mark stands, in half heights below the middle


@dataclass(frozen=True)
class Kind:
    """A class, or without a name a decoy."""

    family: str
    mark: str
    name: str = ""


OUTLINES = {
    "disc": Outline(circle(), (0.8, 1.25), 0),
    "plate": Outline(circle(power=0.4), (0.75, 1.35), 0),
    "triangle": Outline(TRIANGLE, (0.85, 1.2), 0.36),
    "bottle": Outline(BOTTLE, (0.36, 0.5), 0.35),
}
CLASSES = (
    Kind("disc", "spokes", "wheel"),
    Kind("disc", "hands", "clock"),
    Kind("plate", "plus", "switch"),
    Kind("plate", "dots", "socket"),
    Kind("triangle", "level", "sail"),
    Kind("triangle", "upright", "tent"),
    Kind("bottle", "up", "flask"),
    Kind("bottle", "down", "vase"),
)
# Each has a mark of a class, but one of another family.
DECOYS = tuple(
    Kind(family, kind.mark)
    for family, kind in itertools.product(OUTLINES, CLASSES)
    if family != kind.family
)
