"""What of a picture a chip holds: boxes, ranges and stored pixels."""

import math

import numpy as np
import pytest
import reference

from chipgen.codec import pack, unpack
from chipgen.cut import DECIMALS, THINNEST, chip_boxes, stored_pixels, valid_range
from chipgen.pyramid import Level


def random_chip(rng):
    """A picture, its canvas at a factor from 0.01 to 4, and a window (x, y, w, h) of it."""
    picture = rng.integers(1, 4000, 2)
    canvas = np.maximum(np.round(picture * np.exp(rng.uniform(math.log(0.01), math.log(4)))), 1)
    corner = [int(rng.integers(0, max(side - 512, 0) + 1)) for side in canvas]
    size = [int(min(512, side)) for side in canvas]
    return picture, canvas / picture, corner, size


def cut(boxes, scale, corner, size):
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    return chip_boxes(boxes, *map(float, scale), *corner, *size)


def test_from_chip_to_picture_to_chip_is_the_identity():
    rng = np.random.default_rng(0)
    for _ in range(300):
        _, scale, corner, size = random_chip(rng)
        ends = np.sort(rng.uniform(0, 1, (8, 2, 2)), axis=1) * size  # (8, low and high, xy)
        in_chip = np.concatenate([ends[:, 0], ends[:, 1]], axis=1)
        in_chip[0] = (0, 0, *size)
        in_picture = (in_chip + np.tile(corner, 2)) / np.tile(scale, 2)
        rows, found, inside = cut(in_picture, scale, corner, size)
        # one that is thinner than float32 tells apart at the chip's edge may be lost
        wide = (in_chip[:, 2:] - in_chip[:, :2] > 1e-3).all(axis=1)
        assert set(np.flatnonzero(wide)) <= set(rows.tolist())
        np.testing.assert_allclose(found, in_chip[rows], rtol=0, atol=1e-3)
        assert inside.all()


def test_from_picture_to_chip_to_picture_is_the_identity_as_stored():
    rng = np.random.default_rng(1)
    for _ in range(300):
        picture, scale, corner, size = random_chip(rng)
        boxes = np.sort(rng.uniform(0, 1, (20, 2, 2)), axis=1) * picture
        boxes = boxes.reshape(-1, 4).astype(np.float32)
        rows, found, _ = cut(boxes, scale, corner, size)
        back = (np.round(found, DECIMALS) + np.tile(corner, 2)) / np.tile(scale, 2)
        window = np.array([*corner, *np.add(corner, size)]) / np.tile(scale, 2)
        low, high = np.tile(window[:2], 2), np.tile(window[2:], 2)
        expected = np.clip(boxes[rows].astype(np.float64), low, high)
        np.testing.assert_allclose(back, expected, rtol=0, atol=1e-3)


def test_boxes_of_a_chip_are_those_of_loops():
    rng = np.random.default_rng(2)
    seen = set()
    for _ in range(100):
        picture, scale, corner, size = random_chip(rng)
        boxes = reference.random_boxes(rng, 30, *picture.tolist(), 512 / scale[0])
        rows, found, inside = cut(boxes, scale, corner, size)
        expected = []
        for i, box in enumerate(boxes.tolist()):
            x1, x2 = (v * float(scale[0]) - corner[0] for v in box[::2])
            y1, y2 = (v * float(scale[1]) - corner[1] for v in box[1::2])
            moved = max(x1, 0), max(y1, 0), min(x2, size[0]), min(y2, size[1])
            if min(moved[2] - moved[0], moved[3] - moved[1]) >= THINNEST:
                whole = min(x1, y1, size[0] - x2, size[1] - y2) >= -1
                expected.append((i, whole, moved))
                seen.add(whole)
        assert rows.tolist() == [row for row, _, _ in expected]
        assert inside.tolist() == [whole for _, whole, _ in expected]
        moved = np.reshape([moved for _, _, moved in expected], (-1, 4))
        np.testing.assert_allclose(found, moved, rtol=0, atol=1e-6)
    assert seen == {True, False}


def test_boxes_that_only_touch_a_chip_are_not_in_it():
    beside = [(0, 60, 50, 70), (150, 60, 160, 70), (60, 0, 70, 50), (60, 150, 70, 160)]
    corners = [(40, 40, 50, 50), (150, 150, 160, 160)]
    rows, found, inside = cut(beside + corners, (1, 1), (50, 50), (100, 100))
    assert (len(rows), len(found), len(inside)) == (0, 0, 0)
    within = [(x1 - 0.5, y1 - 0.5, x2 + 0.5, y2 + 0.5) for x1, y1, x2, y2 in beside + corners]
    rows, _, _ = cut(within, (1, 1), (50, 50), (100, 100))
    assert rows.tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("side", range(4))
@pytest.mark.parametrize(("over", "expected"), [(-1, True), (0, True), (1, True), (1.25, False)])
def test_a_box_cut_by_less_than_a_pixel_counts_as_whole(side, over, expected):
    box = [70.0, 70.0, 80.0, 80.0]
    box[side] = 50 - over if side < 2 else 150 + over
    rows, found, inside = cut([box], (1, 1), (50, 50), (100, 100))
    assert rows.tolist() == [0]
    assert inside.tolist() == [expected]
    assert found[0, side] == np.clip(box[side] - 50, 0, 100)


def test_a_chip_without_boxes_has_none():
    rows, found, inside = cut([], (3, 3), (0, 0), (512, 512))
    assert rows.shape == (0,)
    assert found.shape == (0, 4)
    assert inside.shape == (0,)


def test_valid_range_in_chip_pixels():
    assert valid_range(Level((32.0, 150.0), factor=2.0), (2.0, 2.0)) == (64.0, 300.0)
    assert valid_range(Level((120.0, math.inf), long=512), (0.5, 0.5)) == (60.0, None)
    # the area of a box, and not a side, is what a range speaks of
    assert valid_range(Level((10.0, 20.0), long=512), (1.0, 4.0)) == (20.0, 40.0)


def noise(rng, width, height):
    return pack(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def upsampled(stored, width, height):
    """The canvas that a device makes of stored pixels."""
    xs = [(i + 0.5 - stored.offset[0]) / stored.scale[0] - 0.5 for i in range(width)]
    ys = [(i + 0.5 - stored.offset[1]) / stored.scale[1] - 0.5 for i in range(height)]
    return reference.sample_bilinear(unpack(stored.pixels), xs, ys)


def some_windows(rng, canvas, side):
    """Windows (x, y, w, h): the four corners, and some in between."""
    width, height = min(side, canvas[0]), min(side, canvas[1])
    last_x, last_y = canvas[0] - width, canvas[1] - height
    corners = [(0, 0), (last_x, 0), (0, last_y), (last_x, last_y)]
    inner = [(int(rng.integers(last_x + 1)), int(rng.integers(last_y + 1))) for _ in range(4)]
    return [(x, y, width, height) for x, y in corners + inner]


@pytest.mark.parametrize("factor", [1.01, 1.05, 1.5, 1.667, 2.0, 2.37, 3.0, 7.3])
@pytest.mark.parametrize("size", [(97, 64), (40, 131), (1, 30), (30, 1), (2, 2)])
def test_source_pixels_make_the_same_canvas(factor, size):
    rng = np.random.default_rng(round(100 * factor) + size[0])
    pixels = noise(rng, *size)
    canvas = tuple(max(1, math.floor(side * factor + 0.5)) for side in size)
    for window in some_windows(rng, canvas, 48):
        stored = stored_pixels(pixels, canvas, window, "source")
        expected = stored_pixels(pixels, canvas, window, "canvas")
        assert expected.pixels.shape == window[:1:-1]
        assert (expected.scale, expected.offset) == ((1.0, 1.0), (0.0, 0.0))
        found = np.round(upsampled(stored, *window[2:]))
        assert np.abs(found - unpack(expected.pixels)).max() <= 1


@pytest.mark.parametrize("factor", [1.05, 1.667, 2.37, 3.0])
def test_source_pixels_are_the_window_and_little_more(factor):
    rng = np.random.default_rng(0)
    pixels = noise(rng, 400, 300)
    canvas = round(400 * factor), round(300 * factor)
    for window in some_windows(rng, canvas, 256):
        stored = stored_pixels(pixels, canvas, window, "source")
        scales = canvas[0] / 400, canvas[1] / 300
        assert stored.scale == scales
        starts = [round((window[k] + stored.offset[k]) / scales[k]) for k in (0, 1)]
        for k, length in enumerate(stored.pixels.shape[::-1]):
            assert starts[k] % 2 == 0  # chroma of 4:2:0 stays in step
            assert length <= window[k + 2] / scales[k] + 4
        y, x = slice(starts[1], None), slice(starts[0], None)
        there = pixels[y, x][: stored.pixels.shape[0], : stored.pixels.shape[1]]
        np.testing.assert_array_equal(stored.pixels, there)


@pytest.mark.parametrize("canvas", [(97, 64), (96, 64), (97, 65), (50, 33), (20, 13), (150, 64)])
def test_canvas_pixels_are_stored_unless_both_axes_are_enlarged(canvas):
    rng = np.random.default_rng(0)
    pixels = noise(rng, 97, 64)
    for window in some_windows(rng, canvas, 32):
        source, plain = (stored_pixels(pixels, canvas, window, s) for s in ("source", "canvas"))
        np.testing.assert_array_equal(source.pixels, plain.pixels)
        assert source.pixels.shape == window[:1:-1]
        assert (source.scale, source.offset) == ((1.0, 1.0), (0.0, 0.0))
