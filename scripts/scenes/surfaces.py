"""Colours, patterns and light: arrays over the pixels of a picture or a patch."""

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw

LUMA = np.array([0.299, 0.587, 0.114])


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
