"""Things drawn on patches of their own: objects, and scraps that are none."""

import functools
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw

from scenes.kinds import MARKS, OUTLINES, SQUARE, Kind, bar, turned
from scenes.surfaces import contrasting, log_uniform, noise, ramp, texture, tint

TILT = np.radians(20)  # well under 45 degrees, so that a mark's direction keeps its meaning
MARK = 0.28  # side of the mark's square over the object's size
RIM = 0.12  # width of the rim over half the object's size


@dataclass(frozen=True, eq=False)
class Sprite:
    """A drawn thing on its own patch."""

    colour: np.ndarray  # (h, w, 3), from 0 to 1
    alpha: np.ndarray  # (h, w, 1), the same
    core: np.ndarray  # (h, w), true in the square of the mark


def coverage(polygons: Iterable[np.ndarray], shape: tuple[int, int], fine: int) -> np.ndarray:
    """Return the part of each pixel that polygons cover, drawn `fine` times larger and reduced."""
    sheet = Image.new("L", (shape[1] * fine, shape[0] * fine))
    pen = ImageDraw.Draw(sheet)
    for polygon in polygons:
        pen.polygon(np.rint(polygon * fine - 0.5).ravel().tolist(), fill=255)
    return np.asarray(sheet.reduce(fine), np.float32)[..., None] / 255


def patch(points: np.ndarray) -> tuple[np.ndarray, tuple[int, int]]:
    """Return the middle, (x, y), and the shape, (h, w), of a patch for points round the origin."""
    reach = np.ceil(np.abs(points).max(axis=0)).astype(int) + 1
    return reach, (2 * int(reach[1]), 2 * int(reach[0]))


def draw_object(rng: Generator, kind: Kind, size: float) -> Sprite:
    """Draw an object whose width times height is about the square of `size` pixels."""
    outline = OUTLINES[kind.family]
    aspect = log_uniform(rng, *outline.aspect)
    half = size / 2 * np.array([aspect**0.5, aspect**-0.5])
    angle = rng.uniform(-TILT, TILT)
    body = turned(outline.points * half, angle)
    middle, shape = patch(body)
    middle = middle + rng.uniform(-0.5, 0.5, 2)  # objects keep no step with the pixels
    cover = functools.partial(coverage, shape=shape, fine=int(np.clip(192 / size, 2, 8)))

    def inked(part: np.ndarray) -> np.ndarray:
        """Return a part of the mark where it stands on the patch."""
        return turned(part * MARK * size / 2 + (0, outline.mark_y * half[1]), angle) + middle

    hull, inside = cover([body + middle]), cover([body * (1 - RIM) + middle])
    ink, core = cover(map(inked, MARKS[kind.mark])), cover([inked(SQUARE)])
    base = tint(rng)
    colour = base * (inside + rng.uniform(0.3, 0.8) * (1 - inside))
    colour += ink * (contrasting(rng, base) - colour)
    shade = 1 + rng.uniform(0, 0.2) * ramp(rng, *shape) + rng.uniform(0, 0.2) * noise(rng, *shape)
    return Sprite((colour * shade[..., None]).astype(np.float32), hull, core[..., 0] > 0.5)


def draw_scrap(rng: Generator, points: np.ndarray) -> Sprite:
    """Draw a textured polygon that is no object, given round the origin in pixels."""
    middle, shape = patch(points)
    colour = texture(rng, *shape) * (1 + rng.uniform(0, 0.3) * ramp(rng, *shape))[..., None]
    return Sprite(colour, coverage([points + middle], shape, 4), np.zeros(shape, bool))


def slat(rng: Generator, length: float) -> np.ndarray:
    """Return a slim stroke through the origin, most often near upright."""
    return turned(bar(0, -length / 2, 0, length / 2, 1 + length / 25), rng.normal(0, 0.5))


def shard(rng: Generator, size: float) -> np.ndarray:
    """Return an irregular polygon round the origin."""
    count = int(rng.integers(3, 8))
    angle = (np.arange(count) + rng.uniform(-0.3, 0.3, count)) * 2 * np.pi / count
    radius = size / 2 * rng.uniform(0.5, 1.1, (count, 1))
    return radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)
