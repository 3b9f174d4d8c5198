"""Levels and their canvases."""

import dataclasses
import math

import numpy as np
import pytest
import reference

from chipgen.plan import ChipSettings, canvases_of
from chipgen.pyramid import Level, canvas_scales, canvas_sizes, in_range

LEVELS = (
    Level(factor=3.0),
    Level(factor=0.01),
    Level(long=512),
    Level(short=800, long=1280),
    Level(short=480, long=512),
)


def test_canvas_is_the_picture_times_the_factor_to_the_nearest_pixel_and_at_least_one():
    sizes = np.random.default_rng(0).integers(1, 3000, (500, 2))
    sizes = np.concatenate([sizes, [(1, 1), (1, 5000), (5000, 1), (512, 512), (640, 480)]])
    found = canvas_sizes(LEVELS, *sizes.T)
    assert found.shape == (len(sizes), len(LEVELS), 2)
    assert found.dtype == np.int64
    for (width, height), canvases in zip(sizes.tolist(), found.tolist(), strict=True):
        long, short = max(width, height), min(width, height)
        factors = [3, 0.01, 512 / long, min(800 / short, 1280 / long), min(480 / short, 512 / long)]
        for factor, canvas in zip(factors, canvases, strict=True):
            for side, length in zip((width, height), canvas, strict=True):
                assert length >= 1
                assert abs(length - side * factor) <= 0.5 + 1e-9 or length == 1
        assert max(canvases[2]) == 512
        assert max(canvases[3]) <= 1280
        assert min(canvases[3]) <= 800
        assert max(canvases[3]) == 1280 or min(canvases[3]) == 800


@pytest.mark.parametrize(
    ("picture", "canvas"),
    [
        ((640, 480), (1067, 800)),  # the short side decides
        ((480, 640), (800, 1067)),
        ((1000, 400), (1280, 512)),  # the long one
        ((768, 480), (1280, 800)),  # both
        ((1, 1), (800, 800)),
        ((5000, 1), (1280, 1)),  # never less than a pixel
    ],
)
def test_short_side_is_as_said_unless_the_long_one_gets_too_long(picture, canvas):
    level = Level(short=800, long=1280)
    found = canvas_sizes((level,), *np.array([picture]).T)
    assert tuple(found[0, 0].tolist()) == canvas


def test_a_level_times_a_factor_has_canvases_that_are_larger_by_it():
    sizes = np.array([[640, 480], [90, 500]])
    for level in LEVELS:
        larger = dataclasses.replace(level, range=(3.0, 9.0)).times(1.25)
        assert larger.range == (3.0, 9.0)
        assert larger.factors(*sizes.T) == pytest.approx(1.25 * level.factors(*sizes.T))
        assert level.times(1.0) == level


def test_no_pictures_have_no_canvases():
    nothing = np.zeros(0, np.int32)
    assert canvas_sizes(LEVELS, nothing, nothing).shape == (0, 5, 2)


def test_scales_bring_the_picture_s_edge_to_the_canvas_edge():
    widths, heights = np.random.default_rng(1).integers(1, 3000, (2, 200))
    canvases = canvas_sizes(LEVELS, widths, heights)
    scales = canvas_scales(canvases, widths, heights)
    assert scales.shape == canvases.shape
    np.testing.assert_allclose(scales[..., 0] * widths[:, None], canvases[..., 0], rtol=1e-12)
    np.testing.assert_allclose(scales[..., 1] * heights[:, None], canvases[..., 1], rtol=1e-12)


def test_ranges_hold_their_low_end_and_not_their_high_end():
    levels = (
        Level((0.0, 80.0), factor=1.0),
        Level((32.0, 150.0), long=9),
        Level((120.0, math.inf), long=9),
    )
    sizes = np.array([0, 31.999, 32, 79.999, 80, 119.999, 120, 149.999, 150, 1e9])
    expected = [
        [low <= s < high for low, high in ((0, 80), (32, 150), (120, math.inf))] for s in sizes
    ]
    assert in_range(levels, sizes).tolist() == expected
    assert in_range(levels, np.zeros(0)).shape == (0, 3)


def test_finest_and_coarsest_are_levels_of_a_picture():
    annotations = reference.make_annotations([(100, 100), (1000, 1000)], [[], []])
    canvases = canvases_of(annotations, (Level(long=512), Level(factor=3.0), Level(factor=0.1)))
    assert canvases.finest.tolist() == [0, 1]
    assert canvases.coarsest.tolist() == [2, 2]
    paper = canvases_of(annotations, ChipSettings().levels)
    assert paper.finest.tolist() == [2, 0]
    assert paper.coarsest.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "either"),
        ({"factor": 1.0, "long": 512}, "either"),
        ({"factor": 1.0, "short": 512}, "either"),
        ({"short": 800}, "needs a limit"),
        ({"factor": 0.0}, "positive"),
        ({"factor": math.inf}, "positive"),
        ({"factor": math.nan}, "positive"),
        ({"long": -1}, "positive"),
        ({"short": 0, "long": 5}, "positive"),
        ({"factor": 1.0, "range": (5.0, 5.0)}, "range"),
        ({"factor": 1.0, "range": (-1.0, 5.0)}, "range"),
        ({"factor": 1.0, "range": (0.0, math.nan)}, "range"),
    ],
)
def test_levels_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Level(**settings)
