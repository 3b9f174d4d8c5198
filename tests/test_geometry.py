import math

import numpy as np
import pytest
import reference

from chipgen import boxes as box_math
from chipgen.codec import pack, unpack
from chipgen.cut import DECIMALS, THINNEST, chip_boxes, stored_pixels, valid_range
from chipgen.plan import ChipSettings, canvases_of
from chipgen.pyramid import Level, canvas_scales, canvas_sizes, in_range

# x1, y1, x2, y2: touching, the same, nested, crossing, apart, without area, thin, at no picture
AWKWARD = np.array(
    [
        (0, 0, 10, 10),
        (10, 0, 20, 10),
        (10, 10, 20, 20),
        (0, 0, 10, 10),
        (2, 3, 5, 7),
        (-5, 4, 30, 6),
        (100, 100, 110, 120),
        (5, 5, 5, 5),
        (5, 0, 5, 10),
        (0, 0, 1000, 0.25),
        (-20, -20, -10, -10),
        (9.75, 9.5, 10.25, 10.5),
    ],
    np.float32,
)
NONE = np.zeros((0, 4), np.float32)


def some_boxes(count, seed=0):
    rng = np.random.default_rng(seed)
    if count == 0:
        return NONE
    return np.concatenate([AWKWARD, reference.random_boxes(rng, count, 200, 100, 60)])[-count:]


def area(box):
    return (float(box[2]) - float(box[0])) * (float(box[3]) - float(box[1]))


def shared_area(a, b):
    width = min(float(a[2]), float(b[2])) - max(float(a[0]), float(b[0]))
    height = min(float(a[3]), float(b[3])) - max(float(a[1]), float(b[1]))
    return width * height if width > 0 and height > 0 else 0.0


@pytest.mark.parametrize("n", [0, 1, 12, 50])
@pytest.mark.parametrize("m", [0, 1, 12, 40])
def test_overlaps_of_all_pairs_are_those_of_loops(n, m):
    a, b = some_boxes(n, seed=1), some_boxes(m, seed=2)
    shared = np.array([[shared_area(x, y) for y in b] for x in a]).reshape(n, m)
    iou, ioa = np.zeros((n, m)), np.zeros((n, m))
    for i, x in enumerate(a):
        for k, y in enumerate(b):
            union = area(x) + area(y) - shared[i, k]
            iou[i, k] = shared[i, k] / union if union > 0 else 0.0
            ioa[i, k] = shared[i, k] / area(x) if area(x) > 0 else 0.0
    np.testing.assert_allclose(box_math.intersections(a, b), shared, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(box_math.iou(a, b), iou, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(box_math.ioa(a, b), ioa, rtol=1e-9, atol=1e-12)


def test_overlaps_of_known_boxes():
    a, b = AWKWARD[:1], AWKWARD
    expected = [100, 0, 0, 100, 12, 20, 0, 0, 0, 2.5, 0, 0.125]
    assert box_math.intersections(a, b)[0].tolist() == expected
    assert box_math.iou(a, b)[0, [0, 1, 3, 4]].tolist() == [1, 0, 1, 0.12]
    assert box_math.ioa(b, a)[[4, 5, 7, 8], 0].tolist() == [1, 20 / 70, 0, 0]


def test_boxes_of_the_same_place_overlap_wholly_far_from_the_origin_too():
    far = np.array([(9000.5, 7000.25, 9001.5, 7001.25)], np.float32)
    assert box_math.iou(far, far).tolist() == [[1.0]]


@pytest.mark.parametrize("count", [0, 1, 50])
def test_areas_and_sizes_are_those_of_loops(count):
    boxes = some_boxes(count)
    np.testing.assert_allclose(box_math.areas(boxes), [area(b) for b in boxes], rtol=1e-12)
    np.testing.assert_allclose(
        box_math.sizes(boxes), [math.sqrt(area(b)) for b in boxes], rtol=1e-12
    )
    assert box_math.areas(boxes).dtype == np.float64


def test_size_of_a_box_at_the_end_of_a_range_is_exact():
    assert box_math.sizes(np.array([(1000, 1000, 1032, 1032)], np.float32)).tolist() == [32.0]


@pytest.mark.parametrize("count", [0, 1, 62])
def test_clip_scale_shift_and_flip_are_those_of_loops(count):
    boxes = some_boxes(count)
    clipped, scaled, shifted, flipped = [], [], [], []
    for x1, y1, x2, y2 in boxes.tolist():
        clipped.append(
            [min(max(v, 0), m) for v, m in zip((x1, y1, x2, y2), (150, 80, 150, 80), strict=True)]
        )
        scaled.append((x1 * 1.667, y1 * 0.5, x2 * 1.667, y2 * 0.5))
        shifted.append((x1 - 7.5, y1 + 3, x2 - 7.5, y2 + 3))
        flipped.append((150 - x2, y1, 150 - x1, y2))
    pairs = [
        (box_math.clip(boxes, 150, 80), clipped),
        (box_math.scale(boxes, 1.667, 0.5), scaled),
        (box_math.shift(boxes, -7.5, 3), shifted),
        (box_math.flip(boxes, 150), flipped),
    ]
    for found, expected in pairs:
        assert found.dtype == np.float32
        assert found.shape == (count, 4)
        np.testing.assert_allclose(found, np.reshape(expected, (-1, 4)), rtol=1e-6, atol=1e-4)


def test_box_arithmetic_leaves_its_input_alone():
    boxes = some_boxes(40)
    before = boxes.copy()
    for found in (
        box_math.clip(boxes, 500, 500),
        box_math.scale(boxes, 1, 1),
        box_math.shift(boxes, 0, 0),
        box_math.flip(boxes, 100),
    ):
        found[:] = -1
    np.testing.assert_array_equal(boxes, before)


@pytest.mark.parametrize("count", [0, 1, 60])
def test_flipping_twice_is_the_identity(count):
    boxes = some_boxes(count)
    twice = box_math.flip(box_math.flip(boxes, 321), 321)
    np.testing.assert_allclose(twice, boxes, atol=1e-4)
    quarters = np.round(boxes * 4) / 4  # exact in float32
    np.testing.assert_array_equal(box_math.flip(box_math.flip(quarters, 321), 321), quarters)
    assert (box_math.flip(boxes, 321)[:, 2:] >= box_math.flip(boxes, 321)[:, :2]).all()


def test_shifting_and_scaling_back_is_the_identity():
    boxes = some_boxes(60)
    back = box_math.shift(box_math.shift(boxes, 13, -9), -13, 9)
    np.testing.assert_allclose(back, boxes, atol=1e-4)
    back = box_math.scale(box_math.scale(boxes, 3, 0.6), 1 / 3, 1 / 0.6)
    np.testing.assert_allclose(back, boxes, rtol=1e-5)


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
