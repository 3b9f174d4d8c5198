"""Whole scenes: what a picture holds, where it stands, and what is seen of it."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageFilter

from scenes.kinds import CLASSES, DECOYS, OUTLINES, Kind, bar, turned
from scenes.sprites import Sprite, draw_object, draw_scrap, shard, slat
from scenes.surfaces import backdrop, log_uniform, ramp

# What a picture holds. Sizes are over the root of the picture's area.
SINGLES = 4  # mean count of objects that stand anywhere
SINGLE_SIZES = (0.085, 1.0)
SHELF_SIZES = (0.018, 0.095)
SHELVES = (0.57, 0.34, 0.09)  # chances of none, one and two
DECOY_SIZES = (0.03, 0.06)  # small, but legible: nobody could tell smaller ones from objects
DECOY_SHELVES = (0.25, 0.5, 0.25)  # as SHELVES
CROWD_SIZES = (0.015, 0.03)
CROWD = 0.07  # chance of a crowd
BARE = 0.04  # chance of nothing but decoys
PORTRAIT = 0.2  # chance of an upright picture

MIN_SEEN = 0.4  # least part of an object, and of the square round its mark, left in sight
MIN_PIXELS = 5.0  # drawn size below which not even the outline would survive
TRIES = 12  # placements tried for one object before it is dropped


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
    rng: Generator,
    x: float,
    y: float,
    unit: float,
    kinds: Sequence[Kind],
    sizes: tuple[float, float],
) -> list[Item]:
    """Plan tight rows of small things of two families."""
    count = min(2 + rng.geometric(0.18), 30)
    size = log_uniform(rng, *sizes) * unit
    rows = rng.integers(1, 3) + count // 10
    length = count * size * rng.uniform(0.5, 0.9) / rows
    area = Area(x, y, length, 0.4 * size * rows, rng.normal(0, 0.12))
    families = rng.choice(list(OUTLINES), 2, replace=False)
    kinds = [kind for kind in kinds if kind.family in families]
    drawn = size * np.exp(rng.normal(0, 0.2, count))
    return [Item(pick(rng, kinds), size, area) for size in drawn.tolist()]


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
    items = [Item(kind, log_uniform(rng, *SINGLE_SIZES) * unit, whole) for kind in kinds]

    shelf = functools.partial(plan_shelf, kinds=CLASSES, sizes=SHELF_SIZES)
    decoys = functools.partial(plan_shelf, kinds=DECOYS, sizes=DECOY_SIZES)
    planners = [shelf] * rng.choice(3, p=SHELVES) + [decoys] * rng.choice(3, p=DECOY_SHELVES)
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
