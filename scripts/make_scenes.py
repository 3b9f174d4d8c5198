"""Draw a data set of synthetic scenes in the COCO 2017 layout, hard in the ways that COCO is hard.

Objects differ twentyfold in size, small ones stand in tight clusters, and the classes come in
families of one outline whose members differ only in a small inner mark. Unlabelled decoys carry
the family's outline with a mark of no class. Some stand among the objects; most of the small ones
stand apart, on shelves of their own and with marks of their own, so that pixels round the objects
alone never show them. Picture i of a split depends on (seed, split, i) alone, so the number of
workers never shows in the result.
"""

import argparse
import functools
import itertools
import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw, ImageFilter
from tqdm import tqdm

VERSION = 2  # to be raised with every change of the drawing, so that no older set passes for new
SPLITS = ("train", "val")
MARKER = "unfinished.json"

# What a picture holds. Sizes are over the root of the picture's area.
SINGLES = 4  # mean count of objects that stand anywhere
SINGLE_SIZES = (0.085, 1.0)
SINGLE_DECOYS = 0.35  # for each labelled one
SHELF_SIZES = (0.018, 0.095)
SHELVES = (0.57, 0.34, 0.09)  # chances of none, one and two
DECOY_SHELVES = (0.6, 0.32, 0.08)  # the same for shelves of decoys
CROWD_SIZES = (0.015, 0.03)
CROWD = 0.07  # chance of a crowd
BARE = 0.04  # chance of nothing but decoys
PORTRAIT = 0.2  # chance of an upright picture

MIN_SEEN = 0.4  # least part of an object, and of the square round its mark, left in sight
MIN_PIXELS = 5.0  # drawn size below which not even the outline would survive
TRIES = 12  # placements tried for one object before it is dropped
TILT = np.radians(20)  # well under 45 degrees, so that a mark's direction keeps its meaning
MARK = 0.28  # side of the mark's square over the object's size
RIM = 0.12  # width of the rim over half the object's size
LUMA = np.array([0.299, 0.587, 0.114])


@dataclass(frozen=True)
class Settings:
    """What the content of a data set depends on."""

    width: int
    height: int
    train: int  # pictures in the split
    val: int
    seed: int = 0


SIZES = {"small": Settings(320, 240, 360, 120), "full": Settings(640, 480, 4000, 500)}


# Outlines and marks, as polygons in the square from -1 to 1 ---------------------------------------


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
    "blank": (),
    "ring": tuple(np.array([p, q, q / 2, p / 2]) for p, q in itertools.pairwise(circle())),
    "slashes": tuple(bar(d - 0.4, d + 0.4, d + 0.4, d - 0.4, 0.3) for d in (-0.5, 0, 0.5)),
    "diamond": (np.array([(0.0, -0.9), (0.9, 0.0), (0.0, 0.9), (-0.9, 0.0)]),),
    "bow": (np.array([(-0.9, -0.9), (0.9, 0.9), (0.9, -0.9), (-0.9, 0.9)]),),
    "slash": (bar(-0.8, 0.8, 0.8, -0.8, 0.6),),
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
DECOYS = tuple(Kind(*pair) for pair in itertools.product(OUTLINES, ("blank", "ring", "slashes")))
SHELF_DECOYS = tuple(
    Kind(*pair) for pair in itertools.product(OUTLINES, ("diamond", "bow", "slash"))
)


# Surfaces ---------------------------------------------------------------------------------------


def log_uniform(rng: Generator, low: float, high: float) -> float:
    """Return a number whose logarithm is uniform between those of two others."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def tint(rng: Generator) -> np.ndarray:
    """Return a random colour, most often a muted one."""
    colour = rng.uniform(0.05, 0.95, 3)
    return colour + rng.beta(3, 2) * (LUMA @ colour - colour)


def contrasting(rng: Generator, colour: np.ndarray) -> np.ndarray:
    """Return a random colour that is clearly lighter or darker than the one given."""
    other, luma, step = tint(rng), LUMA @ colour, rng.uniform(0.4, 0.6)
    lighter = luma + step < 1 and (luma - step < 0 or rng.random() < 0.5)
    return np.clip(other - LUMA @ other + luma + (step if lighter else -step), 0, 1)


def ramp(rng: Generator, height: int, width: int, angle: float | None = None) -> np.ndarray:
    """Return every pixel's place along a direction, by default a random one: about -1 to 1."""
    angle = rng.uniform(0, 2 * np.pi) if angle is None else angle
    y, x = np.ogrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    return (x * np.cos(angle) + y * np.sin(angle)).astype(np.float32)


def noise(rng: Generator, height: int, width: int) -> np.ndarray:
    """Return smooth noise of four octaves, from 0 to 1."""
    cells = int(rng.integers(2, 9))
    total = np.zeros((height, width), np.float32)
    for octave in range(4):
        knots = rng.random((cells << octave, cells << octave), dtype=np.float32)
        smooth = Image.fromarray(knots).resize((width, height), Image.Resampling.BICUBIC)
        total += np.asarray(smooth) * np.float32(0.6**octave)
    return (total - total.min()) / np.ptp(total)


def stripes(rng: Generator, height: int, width: int) -> np.ndarray:
    """Return slanted stripes, soft or hard."""
    wave = np.sin(ramp(rng, height, width) * rng.uniform(10, 90))
    return np.clip(wave * rng.uniform(0.5, 6) / 2 + 0.5, 0, 1)


def bricks(rng: Generator, height: int, width: int) -> np.ndarray:
    """Return bricks of uneven tone in mortar."""
    tall = max(4, height * rng.uniform(0.03, 0.12))
    wide = tall * rng.uniform(1, 3)
    row = (np.arange(height) / tall)[:, None]
    column = (np.arange(width) / wide)[None] + row.astype(int) % 2 / 2
    tone = rng.uniform(0.5, 1, (int(row.max()) + 1, int(column.max()) + 1))
    mortar = (row % 1 < 0.12) | (column % 1 < 0.12 * tall / wide)
    return np.where(mortar, 0, tone[row.astype(int), column.astype(int)]).astype(np.float32)


def grass(rng: Generator, height: int, width: int) -> np.ndarray:
    """Return many short strokes over one another."""
    sheet = Image.new("L", (width * 2, height * 2), 100)
    pen = ImageDraw.Draw(sheet)
    count = height * width // 200
    foot = rng.uniform(0, 2, (count, 2)) * (width, height)
    tip = foot + (rng.normal(0, 0.5, (count, 2)) - (0, 1)) * 0.06 * width
    for ends in np.hstack([foot, tip]).tolist():
        pen.line(ends, fill=int(rng.integers(256)), width=2)
    return np.asarray(sheet.reduce(2), np.float32) / 255


def texture(rng: Generator, height: int, width: int) -> np.ndarray:
    """Return a coloured surface, (height, width, 3)."""
    pattern = (noise, ramp, stripes, bricks, grass)[rng.integers(5)](rng, height, width)
    share = np.float32(rng.uniform(0.4, 0.9))
    mix = (share * pattern + (1 - share) * noise(rng, height, width))[..., None]
    first = tint(rng)
    second = np.clip(first + rng.normal(0, 0.25, 3), 0, 1).astype(np.float32)
    return first.astype(np.float32) * (1 - mix) + second * mix


def backdrop(rng: Generator, height: int, width: int) -> np.ndarray:
    """Return a textured wall, most often with a textured ground before it."""
    wall = texture(rng, height, width)
    if rng.random() < 0.3:
        return wall
    horizon = ramp(rng, height, width, np.pi / 2 + rng.normal(0, 0.1)) > rng.uniform(-0.5, 0.6)
    return np.where(horizon[..., None], texture(rng, height, width), wall)


# Sprites ----------------------------------------------------------------------------------------


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


# Composition ------------------------------------------------------------------------------------


class Canvas:
    """A picture being painted, which knows what shows at every pixel."""

    def __init__(self, pixels: np.ndarray):
        self.pixels = pixels
        # In all three the first axis tells whole things from the squares of their marks. Thing 0
        # is the background, which may be hidden altogether.
        self.owner = np.zeros((2, *pixels.shape[:2]), np.int16)
        self.drawn = np.zeros((2, 1), int)
        self.seen = np.full((2, 1), pixels.size)

    def window(self, sprite: Sprite, x: int, y: int) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
        """Return where a sprite round (x, y) lies, in the picture and of the sprite."""
        height, width = sprite.core.shape
        top, left = y - height // 2, x - width // 2
        y0, x0 = max(top, 0), max(left, 0)
        here = slice(y0, max(top + height, 0)), slice(x0, max(left + width, 0))
        rows, columns = self.owner[0][here].shape
        return here, (slice(y0 - top, y0 - top + rows), slice(x0 - left, x0 - left + columns))

    def paint(self, sprite: Sprite, x: int, y: int) -> None:
        """Lay a sprite down, whatever it hides."""
        here, part = self.window(sprite, x, y)
        self.pixels[here] += sprite.alpha[part] * (sprite.colour[part] - self.pixels[here])

    def place(self, sprite: Sprite, x: int, y: int) -> int | None:
        """Lay a sprite down and return its number, unless it would hide too much or hardly show."""
        here, part = self.window(sprite, x, y)
        solid = sprite.alpha[..., 0] > 0.5
        masks = np.stack([solid, solid & sprite.core])
        owner, mine, number = self.owner[:, *here], masks[:, *part], self.seen.shape[1]
        hidden = [np.bincount(plane[mine[0]], minlength=number) for plane in owner]
        drawn = np.column_stack([self.drawn, masks.sum(axis=(1, 2))])
        seen = np.column_stack([self.seen - hidden, mine.sum(axis=(1, 2))])
        if (seen < MIN_SEEN * drawn).any():
            return None
        self.drawn, self.seen = drawn, seen
        owner[:, mine[0]] = 0
        owner[mine] = number
        self.paint(sprite, x, y)
        return number


@dataclass(frozen=True)
class Area:
    """A slanted rectangle in which things are placed, in pixels."""

    x: float
    y: float
    along: float  # half its width
    across: float  # half its height
    angle: float = 0

    def spot(self, rng: Generator) -> np.ndarray:
        """Return a random (x, y), which may lie outside the picture."""
        offset = rng.uniform(-1, 1, 2) * (self.along, self.across)
        return np.rint(np.add(turned(offset, self.angle), (self.x, self.y))).astype(int)


@dataclass(frozen=True)
class Item:
    """An object to be drawn."""

    kind: Kind
    size: float  # in pixels
    area: Area
    crowd: bool = False


def pick(rng: Generator, kinds: Sequence[Kind]) -> Kind:
    """Return any of some kinds."""
    return kinds[rng.integers(len(kinds))]


def plan_shelf(
    rng: Generator, x: float, y: float, unit: float, kinds: Sequence[Kind]
) -> list[Item]:
    """Plan tight rows of small things of two families."""
    count = min(2 + rng.geometric(0.18), 30)
    size = log_uniform(rng, *SHELF_SIZES) * unit
    rows = rng.integers(1, 3) + count // 10
    length = count * size * rng.uniform(0.5, 0.9) / rows
    area = Area(x, y, length, 0.4 * size * rows, rng.normal(0, 0.12))
    families = rng.choice(list(OUTLINES), 2, replace=False)
    kinds = [kind for kind in kinds if kind.family in families]
    sizes = size * np.exp(rng.normal(0, 0.2, count))
    return [Item(pick(rng, kinds), size, area) for size in sizes.tolist()]


def plan_crowd(rng: Generator, x: float, y: float, unit: float) -> list[Item]:
    """Plan a dense patch of tiny objects of one class."""
    count = int(rng.integers(30, 60))
    size = log_uniform(rng, *CROWD_SIZES) * unit
    area = Area(x, y, 0.7 * size * count**0.5, 0.4 * size * count**0.5, rng.normal(0, 0.12))
    kind = pick(rng, CLASSES)
    sizes = size * np.exp(rng.normal(0, 0.1, count))
    return [Item(kind, size, area, crowd=True) for size in sizes.tolist()]


def plan(rng: Generator, whole: Area) -> list[Item]:
    """Choose what a picture holds: things of any size anywhere, and small ones in few places."""
    unit = 2 * (whole.along * whole.across) ** 0.5
    singles = min(rng.geometric(1 / SINGLES), 16)
    kinds = [pick(rng, CLASSES) for _ in range(singles)]
    kinds += [pick(rng, DECOYS) for _ in range(rng.binomial(singles, SINGLE_DECOYS))]
    items = [Item(kind, log_uniform(rng, *SINGLE_SIZES) * unit, whole) for kind in kinds]

    planners = [functools.partial(plan_shelf, kinds=CLASSES)] * rng.choice(3, p=SHELVES)
    planners += [functools.partial(plan_shelf, kinds=SHELF_DECOYS)] * rng.choice(3, p=DECOY_SHELVES)
    planners += [plan_crowd] * (rng.random() < CROWD)
    middles = np.empty((0, 2))
    for planner in planners:
        # the best of a few places keeps the groups, and so the decoys, away from one another
        options = rng.uniform(-0.85, 0.85, (6, 1, 2)) * (whole.along, whole.across)
        gaps = np.linalg.norm(options - middles, axis=2).min(axis=1, initial=unit)
        middle = options[gaps.argmax(), 0]
        middles = np.vstack([middles, middle])
        items += planner(rng, *np.add(middle, (whole.x, whole.y)), unit)
    bare = rng.random() < BARE
    return [item for item in items if not (bare and item.kind.name)]


def annotate(canvas: Canvas, placed: dict[int, Item]) -> list[dict]:
    """Return the COCO annotations, less their ids, of what is seen of the placed objects."""
    crowd = [number for number, item in placed.items() if item.crowd]
    groups = [[number] for number, item in placed.items() if item.kind.name and not item.crowd]
    annotations = []
    for group in groups + [crowd] * bool(crowd):
        y, x = np.nonzero(np.isin(canvas.owner[0], group))
        box = (x.min(), y.min(), np.ptp(x) + 1, np.ptp(y) + 1)
        annotations.append(
            {
                "category_id": CLASSES.index(placed[group[0]].kind) + 1,
                "bbox": [float(value) for value in box],
                "area": float(len(x)),
                "iscrowd": int(placed[group[0]].crowd),
                "segmentation": [],
            }
        )
    return annotations


def compose(rng: Generator, width: int, height: int) -> tuple[np.ndarray, list[dict]]:
    """Paint a scene in even light and return it with its annotations."""
    unit = (width * height) ** 0.5
    whole = Area(width / 2, height / 2, width / 2, height / 2)
    items = plan(rng, whole)
    canvas = Canvas(backdrop(rng, height, width))
    for _ in range(rng.integers(8, 40)):
        outline = slat if rng.random() < 0.4 else shard
        scrap = draw_scrap(rng, outline(rng, log_uniform(rng, 0.02, 0.4) * unit))
        canvas.paint(scrap, *whole.spot(rng))
    for area in dict.fromkeys(item.area for item in items if item.area != whole):
        board = bar(-1.2 * area.along, area.across, 1.2 * area.along, area.across, area.across / 2)
        scrap = draw_scrap(rng, turned(board, area.angle))
        canvas.paint(scrap, round(area.x), round(area.y))

    # large things mostly stand behind small ones, as few of the small would be seen otherwise
    depth = [item.size * np.exp(rng.normal(0, 0.4)) for item in items]
    placed = {}
    for item in (items[i] for i in np.argsort(depth)[::-1]):
        sprite = draw_object(rng, item.kind, max(item.size, MIN_PIXELS))
        numbers = (canvas.place(sprite, *item.area.spot(rng)) for _ in range(TRIES))
        if number := next(filter(None, numbers), None):
            placed[number] = item
    for _ in range(rng.poisson(4)):
        scrap = draw_scrap(rng, slat(rng, log_uniform(rng, 0.1, 0.8) * unit))
        canvas.place(scrap, *whole.spot(rng))
    return canvas.pixels, annotate(canvas, placed)


def photograph(rng: Generator, pixels: np.ndarray) -> Image.Image:
    """Return a scene under uneven coloured light, a little soft at times, with sensor noise."""
    height, width, _ = pixels.shape
    light = rng.uniform(0.7, 1.2) * (1 + rng.uniform(0, 0.35) * ramp(rng, height, width))
    if rng.random() < 0.4:
        shadow = np.clip(ramp(rng, height, width) * rng.uniform(5, 60) + rng.normal(0, 5), 0, 1)
        light *= 1 - rng.uniform(0.25, 0.55) * shadow
    pixels = pixels * light[..., None] * rng.uniform(0.88, 1.12, 3)
    picture = Image.fromarray(np.rint(np.clip(pixels, 0, 1) * 255).astype(np.uint8))
    if rng.random() < 0.5:  # a wider blur would wipe the smallest marks out for good
        picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.2, 0.55)))
    grain = rng.standard_normal(pixels.shape, dtype=np.float32) * rng.uniform(1, 6)
    return Image.fromarray(np.rint(np.clip(picture + grain, 0, 255)).astype(np.uint8))


def draw_scene(settings: Settings, split: str, index: int) -> tuple[Image.Image, list[dict]]:
    """Return one picture with its annotations."""
    rng = np.random.default_rng((settings.seed, SPLITS.index(split), index))
    sides = settings.width, settings.height
    pixels, annotations = compose(rng, *(sides[::-1] if rng.random() < PORTRAIT else sides))
    return photograph(rng, pixels), annotations


# Files ------------------------------------------------------------------------------------------


def describe(settings: Settings) -> dict:
    """Return the info entry of a data set's json files."""
    return {"description": "Fovea scenes", "version": VERSION, "settings": asdict(settings)}


def read_info(path: Path) -> dict | None:
    """Return the info entry of a json file, None where there is none."""
    try:
        return json.loads(path.read_text())["info"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_json(path: Path, content: dict) -> None:
    """Write a json file that exists in full or not at all."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(content, separators=(",", ":")))
    part.replace(path)


def instances(out: Path, split: str) -> Path:
    """Return the place of a split's annotations."""
    return out / "annotations" / f"instances_{split}.json"


def is_finished(out: Path, settings: Settings) -> bool:
    """Tell whether a folder holds the whole set, and refuse one that holds anything else."""
    info = describe(settings)
    if all(read_info(instances(out, split)) == info for split in SPLITS):
        return True
    empty = not out.exists() or (out.is_dir() and not any(out.iterdir()))
    if not empty and read_info(out / MARKER) != info:
        raise FileExistsError(f"{out} holds something other than these scenes: name another folder")
    return False


def render(settings: Settings, out: Path, split: str, index: int) -> tuple[dict, list[dict]]:
    """Save one picture and return its COCO image entry with its annotations."""
    image_id = index + 1 + (settings.train if split == "val" else 0)
    name = f"{image_id:012d}.jpg"
    picture, annotations = draw_scene(settings, split, index)
    picture.save(out / split / name, quality=95)
    image = {"id": image_id, "file_name": name, "width": picture.width, "height": picture.height}
    return image, annotations


def render_all(settings: Settings, out: Path, workers: int) -> Iterator[tuple[dict, list[dict]]]:
    """Render both splits, in order."""
    counts = asdict(settings)
    splits, indices = zip(*((s, i) for s in SPLITS for i in range(counts[s])), strict=True)
    task = functools.partial(render, settings, out)
    if workers == 1:
        yield from map(task, splits, indices)
        return
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"))
    # Workers inherit deafness to Ctrl-C, so that this process alone stops, and stops them.
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        results = pool.map(task, splits, indices, chunksize=4)
        signal.signal(signal.SIGINT, handler)
        yield from results
    finally:
        pool.shutdown(cancel_futures=True)


def write(settings: Settings, out: Path, workers: int) -> str:
    """Write the data set, its annotations last, and return a line about it."""
    info = describe(settings)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / MARKER, {"info": info})  # first, so that a broken run is known for ours
    for folder in ("annotations", *SPLITS):
        (out / folder).mkdir(exist_ok=True)
    total = settings.train + settings.val
    records = list(tqdm(render_all(settings, out, workers), total=total, disable=None))

    ids = itertools.count(1)
    categories = [
        {"id": number, "name": kind.name, "supercategory": kind.family}
        for number, kind in enumerate(CLASSES, start=1)
    ]
    parts = records[: settings.train], records[settings.train :]
    for split, part in zip(SPLITS, parts, strict=True):
        content = {
            "info": info,
            "images": [image for image, _ in part],
            "annotations": [
                {"id": next(ids), "image_id": image["id"]} | entry
                for image, entries in part
                for entry in entries
            ],
            "categories": categories,
        }
        write_json(instances(out, split), content)
    (out / MARKER).unlink()
    return summary(records)


def summary(records: list[tuple[dict, list[dict]]]) -> str:
    """Return a line with counts and percentiles of the objects' sizes."""
    sizes = [
        (entry["bbox"][2] * entry["bbox"][3] / image["width"] / image["height"]) ** 0.5
        for image, entries in records
        for entry in entries
        if not entry["iscrowd"]
    ]
    crowds = sum(len(entries) for _, entries in records) - len(sizes)
    low, median, high = np.percentile(sizes or [0], (10, 50, 90))
    return (
        f"{len(records)} pictures, {len(sizes)} objects, {crowds} crowds; size over picture: "
        f"10% under {low:.3f}, median {median:.3f}, 90% under {high:.3f}"
    )


def main() -> int:
    """Run from the command line and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write")
    parser.add_argument("--size", choices=SIZES, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--pictures-train", type=int, help="instead of the size's own number")
    parser.add_argument("--pictures-val", type=int, help="instead of the size's own number")
    args = parser.parse_args()
    size = SIZES[args.size]
    train = size.train if args.pictures_train is None else args.pictures_train
    val = size.val if args.pictures_val is None else args.pictures_val
    if min(train, val, args.workers) < 1 or args.seed < 0:
        parser.error("numbers of pictures and workers start at 1, seeds at 0")
    settings = replace(size, train=train, val=val, seed=args.seed)
    try:
        if is_finished(args.out, settings):
            print(f"{args.out} already holds these scenes")
        else:
            print(write(settings, args.out, args.workers))
    except FileExistsError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: the same command starts again", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
