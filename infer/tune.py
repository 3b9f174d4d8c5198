"""Searches valid ranges and FocusChips' threshold, dilation and size (section 4.4.5 of AutoFocus).

And before that, how large the finest level is: where objects have a few px, a network often finds
more of them when they are larger than its chips made them.

Each level runs over whole pictures; what it found and where it would look closer is kept. What
a setting would give is then worked out without the network: the windows that the kept maps ask for,
and of what was found, that which lies in them. A chip's own run differs by what its border cuts
from the network's view, so the chosen setting is run for real in the end.
"""

import dataclasses
import itertools
import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw

from chipgen.boxes import sizes
from chipgen.progress import progress
from infer import stack
from infer.cascade import AUTOFOCUS, UNSEEN, Flight, fly, focused, suppressed
from infer.detections import Detections
from infer.detector import Detector
from infer.focus import FocusSettings
from infer.measure import Test, measure, precision
from infer.pictures import decoded
from infer.proposals import sources_of
from infer.settings import InferSettings

THRESHOLDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
DILATIONS = (1, 3, 5)
STRETCH = (0.7, 0.85, 1.0, 1.2, 1.45)  # of the ends of valid ranges
ROUNDED = 1e-2  # canvas px by which float32 may carry a box over its picture's edge
FRONT = 8  # settings of a finer level that coarser ones are tried with
log = logging.getLogger("infer")


@dataclass(frozen=True)
class Seen:
    """What every level, run over a whole picture, said of it."""

    picture_id: int
    flights: list[Flight]  # by level, without pixels


@dataclass(frozen=True)
class Point:
    """A setting, and what it gives."""

    settings: InferSettings
    precision: float  # AP, or VOC's AP50
    pixels: float  # side of the equivalent square


def look(detector: Detector, test: Test) -> list[Seen]:
    """Run each level alone over all pictures."""
    seen = []
    sources = list(sources_of(test.annotations))
    limit = detector.settings.max_megapixels * 1e6
    for one in progress(decoded(sources, limit), total=len(sources), unit=" pictures", desc="tune"):
        if one.pixels is None:
            continue
        picture = [torch.as_tensor(one.pixels).to(detector.device)]
        flights = [
            dataclasses.replace(flight, pixels=flight.pixels.new_empty(0, 0, 3))
            for level in range(len(detector.settings.levels))
            for flight in fly(picture, detector.machine, detector.settings, level)
        ]
        seen.append(Seen(one.picture.picture_id, flights))
    return seen


def sized(
    detector: Detector, test: Test, factors: Sequence[float], within: float
) -> tuple[Detector, list[Seen]]:
    """Look with the finest level in several sizes, which are factors of its own.

    Gives the smallest that loses at most `within` of the full pyramid's precision.
    """
    tried = []
    for factor in sorted(factors):
        settings = dataclasses.replace(
            detector.settings,
            levels=(*detector.settings.levels[:-1], detector.settings.levels[-1].times(factor)),
        )
        seen = look(detector.with_settings(settings), test)
        point = evaluate(_everywhere(settings), test, seen, detector.machine.stride)
        log.info(
            "tune: with the finest level %s, the full pyramid has %.1f at %.0f pixels",
            settings.levels[-1], point.precision, point.pixels,
        )  # fmt: skip
        tried.append((point, seen))
    limit = max(point.precision for point, _ in tried) - within
    point, seen = next(one for one in tried if one[0].precision >= limit)
    return detector.with_settings(point.settings), seen


def search(
    detector: Detector, test: Test, seen: list[Seen], smallest: Sequence[int]
) -> tuple[Point, list[Point]]:
    """Find ranges, then the front of speed and accuracy; gives the full pyramid's point as well."""
    stride = detector.machine.stride
    whole = _everywhere(detector.settings)

    def tried(candidates: Iterable[InferSettings], what: str) -> list[Point]:
        bar = progress(list(candidates), unit=" settings", desc=what)
        return [evaluate(settings, test, seen, stride) for settings in bar]

    best = whole
    for level in range(len(whole.levels) - 1):
        points = tried(_stretched(best, level), f"ranges of {whole.levels[level + 1]}")
        best = max(points, key=lambda point: point.precision).settings
    pyramid = evaluate(best, test, seen, stride)
    points = [pyramid]
    # from the finest level to coarser ones, as the paper does
    for level in reversed(range(len(whole.focus))):
        candidates = [
            _with_focus(point.settings, level, FocusSettings(*choice))
            for point in points
            for choice in itertools.product(THRESHOLDS, DILATIONS, smallest)
        ]
        points = front(tried(candidates, f"chips of {whole.levels[level + 1]}") + points)
        if level:
            points = thinned(points, FRONT)
    return pyramid, points


def evaluate(settings: InferSettings, test: Test, seen: list[Seen], stride: int) -> Point:
    """Work out what a setting gives."""
    found, pixels = [], np.zeros((len(seen), len(settings.levels)))
    for number, one in enumerate(seen):
        parts = []
        before = None
        for level, flight in enumerate(one.flights):
            windows = flight.whole(level)
            if before is not None:
                windows = focused(before, level, stride, settings)
            canvas = tuple(flight.canvases[level].tolist())
            boxes, scores, labels = flight.found()
            size = sizes(boxes)
            low, high = settings.levels[level].range
            wanted = (low <= size) & (size < high)
            on_canvas = boxes * np.tile(flight.scales[level], 2)
            inside = np.zeros(len(boxes), bool)
            looked_at = np.full_like(flight.maps[level], UNSEEN)
            for window in windows:
                x, y, width, height = window
                corner = on_canvas - np.array([x, y, x, y])
                ends = np.array([width, height]) + ROUNDED
                within = (corner >= -ROUNDED).all(1) & (corner[:, 2:] <= ends).all(1)
                inside |= within & stack.inside(on_canvas, window, canvas, settings.border)
                pixels[number, level] += width * height
                part = slice(y // stride, -(-(y + height) // stride))
                across = slice(x // stride, -(-(x + width) // stride))
                looked_at[part, across] = flight.maps[level][part, across]
            kept = wanted & inside
            parts.append((boxes[kept], scores[kept], labels[kept]))
            before = dataclasses.replace(flight, maps={level: looked_at})
        boxes, scores, labels = (np.concatenate(column) for column in zip(*parts, strict=True))
        boxes, scores, labels = suppressed(boxes, scores, labels, settings)
        ids = np.full(len(scores), one.picture_id, np.int64)
        found.append(Detections(ids, boxes, scores, labels))
    figures = precision(test, Detections.concatenate(found), settings.detections)
    value = figures["AP"] if "AP" in figures else figures["AP50"]
    return Point(settings, value or 0.0, float(np.sqrt(pixels.sum() / max(len(seen), 1))))


def front(points: Iterable[Point]) -> list[Point]:
    """Keep the points that no other one beats in both, from few pixels to many."""
    kept: list[Point] = []
    for point in sorted(points, key=lambda p: (p.pixels, -p.precision)):
        if not kept or point.precision > kept[-1].precision:
            kept.append(point)
    return kept


def thinned(points: list[Point], most: int) -> list[Point]:
    """Keep at most so many of a front, evenly, and the last one, which is the most precise."""
    return points[:: -max(1, -(-len(points) // most))][::-1]


def choose(points: list[Point], pyramid: Point, within: float) -> Point:
    """Take the fewest pixels that lose at most `within` against the full pyramid."""
    good = [p for p in points if p.precision >= pyramid.precision - within]
    return min(good, key=lambda p: p.pixels) if good else pyramid


def measured(detector: Detector, test: Test, point: Point) -> dict:
    """Run a setting for real."""
    return measure(detector.with_settings(point.settings), test, AUTOFOCUS)


def fragment(settings: InferSettings, note: str) -> str:
    """Write settings as the [infer] section of a recipe; what is as by default is left out."""
    lines = [f"# {note}", "[infer]"]
    default = InferSettings()
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if field.name == "levels":
            value = ",\n".join(f"  {{ {v.toml()} }}" for v in value)
            lines.append(f"levels = [\n{value},\n]")
        elif field.name == "focus":
            value = ",\n".join(
                f"  {{ threshold = {v.threshold:g}, dilation = {v.dilation}, "
                f"smallest = {v.smallest} }}"
                for v in value
            )
            lines.append(f"focus = [\n{value},\n]" if value else "focus = []")
        elif value != getattr(default, field.name):
            quoted = f'"{value}"' if isinstance(value, str) else str(value).lower()
            lines.append(f"{field.name} = {quoted}")
    return "\n".join([*lines, ""])


def draw_front(points: list[Point], pyramid: Point, chosen: Point) -> Image.Image:
    """Draw AP over pixels: the front, the full pyramid, and what was chosen."""
    width, height, edge = 720, 480, 60
    image = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(image)
    every = [*points, pyramid]
    low, high = min(p.precision for p in every) - 0.5, max(p.precision for p in every) + 0.5
    most = max(p.pixels for p in every) * 1.05

    def across(pixels: float) -> float:
        return edge + (width - 2 * edge) * pixels / most

    def up(precision: float) -> float:
        return height - edge - (height - 2 * edge) * (precision - low) / (high - low)

    def place(point: Point) -> tuple[float, float]:
        return across(point.pixels), up(point.precision)

    for value in round_numbers(low, high):
        draw.text((12, up(value) - 6), f"{value:g}", fill="black")
        draw.line([(edge, up(value)), (width - edge, up(value))], (230, 230, 230))
    for value in round_numbers(0, most):
        draw.text((across(value) - 10, height - edge + 6), f"{value:g}", fill="black")
    draw.line([(edge, edge), (edge, height - edge), (width - edge, height - edge)], "black")
    draw.text((width / 2 - 90, height - 26), "pixels of a picture, square root", fill="black")
    draw.text((edge, edge - 24), "average precision", fill="black")
    draw.line([place(p) for p in points], (0, 90, 200), 2)
    for point in points:
        x, y = place(point)
        draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=(0, 90, 200))
    for point, color, name in ((pyramid, "black", "full pyramid"), (chosen, "red", "chosen")):
        x, y = place(point)
        draw.ellipse((x - 5, y - 5, x + 5, y + 5), outline=color, width=2)
        draw.text((x - 70, y - 18), name, fill=color)
    return image


def round_numbers(low: float, high: float) -> list[float]:
    """List the multiples from `low` to `high` of 1, 2 or 5 times a power of ten: four to ten."""
    span = high - low
    tens = 10.0 ** math.floor(math.log10(span / 4))
    step = max((step for step in (2 * tens, 5 * tens) if 4 * step <= span), default=tens)
    return [n * step for n in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _stretched(settings: InferSettings, level: int) -> Iterator[InferSettings]:
    """Vary where a level's range begins and where that of the next finer one ends."""
    yield settings
    coarse, fine = settings.levels[level : level + 2]
    for begin, end in itertools.product(STRETCH, STRETCH):
        low, high = coarse.range[0] * begin, fine.range[1] * end
        if low > high or low >= coarse.range[1] or high <= fine.range[0]:
            continue  # a size between them would be found nowhere
        levels = list(settings.levels)
        levels[level] = dataclasses.replace(coarse, range=(_tidy(low), coarse.range[1]))
        levels[level + 1] = dataclasses.replace(fine, range=(fine.range[0], _tidy(high)))
        yield dataclasses.replace(settings, levels=tuple(levels))


def _everywhere(settings: InferSettings) -> InferSettings:
    """Look closer wherever there is something."""
    return dataclasses.replace(settings, focus=(FocusSettings(0.0, 1, 1),) * len(settings.focus))


def _with_focus(settings: InferSettings, level: int, choice: FocusSettings) -> InferSettings:
    changed = list(settings.focus)
    changed[level] = choice
    return dataclasses.replace(settings, focus=tuple(changed))


def _tidy(size: float) -> float:
    return float(f"{size:.3g}")
