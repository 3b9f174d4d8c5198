"""Arithmetic of boxes against loops."""

import math

import numpy as np
import pytest
import reference

from chipgen import boxes as box_math

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
