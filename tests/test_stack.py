import math

import numpy as np
import pytest
import reference_infer as reference

from infer.stack import inside, suppress

METHODS = "gaussian", "linear", "hard"


def same(boxes, scores, labels, *settings):
    places, kept = suppress(boxes, scores, labels, *settings)
    expected = reference.suppressed(boxes.tolist(), scores.tolist(), labels.tolist(), *settings)
    assert places.tolist() == [place for place, _ in expected]
    assert kept.dtype == np.float32
    np.testing.assert_allclose(kept, [score for _, score in expected], rtol=1e-6, atol=1e-44)
    return len(expected)


def row(*lefts, side=10.0):
    """Squares side by side, with these left edges."""
    return np.array([[x, 0, x + side, side] for x in lefts], np.float32).reshape(-1, 4)


def of_one_class(boxes, scores, method, overlap=0.5, sigma=0.55, min_score=0.0, most=100):
    scores = np.array(scores, np.float32)
    labels = np.zeros(len(scores), np.int64)
    places, kept = suppress(boxes, scores, labels, method, overlap, sigma, min_score, most)
    return places.tolist(), kept.tolist()


@pytest.mark.parametrize("border", [0, 1, 2.5])
def test_detections_kept_are_those_of_the_reference(border):
    rng = np.random.default_rng(int(border * 2))
    kinds = set()
    for _ in range(1000):
        canvas = rng.integers(1, 60, 2)
        corner = rng.integers(0, canvas) * (rng.random(2) < 0.7)
        # chips that end before, at and behind the canvas's own border
        end = np.where(rng.random(2) < 0.3, canvas, rng.integers(corner + 1, canvas + 10))
        low = rng.uniform(corner, end, (rng.integers(0, 30), 2))
        boxes = np.concatenate([low, rng.uniform(low, end)], axis=1)
        boxes = np.where(rng.random(boxes.shape) < 0.5, np.round(boxes * 2) / 2, boxes)
        boxes = boxes.astype(np.float32)
        window = *corner.tolist(), *(end - corner).tolist()
        found = inside(boxes, window, tuple(canvas.tolist()), border)
        assert found.dtype == np.bool_
        expected = [
            reference.is_kept(box, window, canvas.tolist(), border) for box in boxes.tolist()
        ]
        assert found.tolist() == expected
        kinds.update(expected)
    assert kinds == {True, False}


def test_a_chip_without_detections_keeps_none():
    found = inside(np.zeros((0, 4), np.float32), (0, 0, 5, 5), (9, 9), 1)
    assert found.shape == (0,)
    assert found.dtype == np.bool_


def test_each_inner_border_drops_what_comes_too_near():
    boxes = np.array(
        [
            [103, 120, 140, 160],
            [102, 120, 140, 160],
            [110, 101, 140, 160],
            [110, 120, 198, 160],
            [110, 120, 197.5, 160],
            [110, 120, 140, 199],
        ],
        np.float32,
    )
    found = inside(boxes, (100, 100, 100, 100), (1000, 1000), 2)
    assert found.tolist() == [True, False, False, False, True, False]
    # the same chip as the lower right corner of a picture, and as the whole of a padded one
    found = inside(boxes, (100, 100, 100, 100), (200, 200), 2)
    assert found.tolist() == [True, False, False, True, True, True]
    assert inside(boxes - 100, (0, 0, 100, 100), (90, 90), 2).all()


def test_at_one_border_of_the_picture_the_other_side_decides():
    boxes = np.array([[0, 30, 60, 60], [0, 30, 100, 60]], np.float32)
    assert inside(boxes, (0, 0, 100, 100), (300, 100), 0).tolist() == [True, False]


def test_between_two_borders_of_the_picture_everything_is_kept():
    boxes = np.array([[0, 30, 100, 60], [0, 0, 100, 60]], np.float32)
    assert inside(boxes, (0, 20, 100, 80), (100, 100), 0).tolist() == [True, False]


@pytest.mark.parametrize("method", METHODS)
def test_suppression_is_that_of_the_reference(method):
    rng = np.random.default_rng(METHODS.index(method))
    counts = set()
    for count in [0, 1, 2] * 20 + [int(n) for n in rng.integers(3, 40, 700)]:
        detections = reference.random_detections(rng, count, classes=int(rng.integers(1, 3)))
        overlap, sigma = rng.choice([0.0, 0.25, 0.3, 0.5, 1.0]), rng.choice([0.1, 0.55])
        min_score, most = rng.choice([0, 0.001, 0.125, 0.5]), rng.choice([1, 5, 1000])
        settings = float(overlap), float(sigma), float(min_score), int(most)
        counts.add(same(*detections, method, *settings))
    assert {0, 1, 2, 5, 20} <= counts


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("min_score", [0, 0.01])
def test_suppression_among_many_is_that_of_the_reference(method, min_score):
    rng = np.random.default_rng(7)
    for classes in (1, 5):
        boxes, scores, labels = reference.random_detections(rng, 500, classes)
        for scale in (1, 0.2):  # crowded, and with enough room that most overlap few
            corner, sides = boxes[:, :2], scale * (boxes[:, 2:] - boxes[:, :2])
            scaled = np.concatenate([corner, corner + sides], axis=1)
            assert same(scaled, scores, labels, method, 0.4, 0.55, min_score, 1000) > 10


@pytest.mark.parametrize("method", METHODS)
def test_no_detections_are_ordinary_input(method):
    empty = np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64)
    places, scores = suppress(*empty, method, 0.5, 0.55, 0.001, 100)
    assert (places.shape, scores.shape) == ((0,), (0,))
    assert (places.dtype, scores.dtype) == (np.int64, np.float32)


def test_hard_suppression_removes_what_overlaps_by_more_than_the_limit():
    boxes = row(0, 2.5, 5, 30)  # IoU with the first: 0.6, 1/3, 0
    assert of_one_class(boxes, [0.5, 0.75, 0.25, 0.125], "hard") == ([1, 3], [0.75, 0.125])
    # exactly the limit isn't more than the limit
    assert of_one_class(boxes[::2], [0.5, 0.25], "hard", overlap=1 / 3)[0] == [0, 1]
    # what is removed removes nothing itself
    assert of_one_class(row(0, 4, 8), [0.9, 0.8, 0.7], "hard", overlap=0.4)[0] == [0, 2]


def test_linear_suppression_lowers_scores_above_the_limit_only():
    places, scores = of_one_class(row(0, 2.5, 5), [0.75, 0.5, 0.25], "linear")
    assert places == [0, 2, 1]  # the second falls behind the third, which lowers it once more
    assert scores == pytest.approx([0.75, 0.25, 0.5 * 0.4 * 0.4])


def test_gaussian_suppression_lowers_scores_by_the_square_of_the_overlap():
    boxes = row(0, 5, 20)
    places, scores = of_one_class(boxes, [1, 0.5, 0.25], "gaussian", sigma=0.5)
    assert places == [0, 1, 2]
    assert scores == pytest.approx([1, 0.5 * math.exp(-((1 / 3) ** 2) / 0.5), 0.25])


def test_what_falls_below_the_least_score_is_dropped_and_lowers_nothing():
    boxes, scores = row(0, 0, 10), [0.75, 0.5, 0.25]
    factor = math.exp(-1 / 0.55)
    found = of_one_class(boxes, scores, "gaussian", min_score=0.5 * factor * 0.999)
    assert found[0] == [0, 2, 1]
    found = of_one_class(boxes, scores, "gaussian", min_score=0.5 * factor * 1.001)
    assert found[0] == [0, 2]
    assert of_one_class(boxes, scores, "gaussian", min_score=0.8)[0] == []
    assert of_one_class(boxes, scores, "gaussian", min_score=0.75)[0] == [0]


def test_a_score_of_nothing_is_still_removed_by_hard_suppression():
    twins = row(0, 0, 0)
    assert of_one_class(twins, [0.5, 0, 0], "hard") == ([0], [0.5])
    assert of_one_class(twins, [0.5, 0, 0.25], "linear") == ([0, 1, 2], [0.5, 0, 0])


def test_a_score_that_is_not_a_number_is_out():
    assert of_one_class(row(0, 20), [math.nan, 0.5], "gaussian")[0] == [1]


def test_detections_of_different_classes_leave_each_other_alone():
    boxes, scores = row(0, 0, 0), np.array([0.5, 0.75, 0.25], np.float32)
    for method in METHODS:
        places, kept = suppress(boxes, scores, np.array([4, -1, 9]), method, 0.5, 0.55, 0, 2)
        assert places.tolist() == [1, 0]
        assert kept.tolist() == [0.75, 0.5]


def test_among_equals_the_first_comes_first():
    apart = row(*range(0, 200, 20))
    assert of_one_class(apart, [0.5] * 10, "gaussian", most=7)[0] == list(range(7))
    assert of_one_class(row(*[0] * 10), [0.5] * 10, "hard")[0] == [0]
    # the better of the first two is brought down to just the score of the other
    boxes, half = row(50, 0, 0), [0, 0, 5, 10]
    for place in (0, 1):
        others, scores = boxes[[1, 0, 2]] if place == 0 else boxes, [0.25, 0.25, 0.75]
        others[place], scores[place] = half, 0.5
        found = of_one_class(others, scores, "linear", overlap=0.4)
        assert found == ([2, 0, 1], [0.75, 0.25, 0.25])
        found = of_one_class(others, scores, "linear", overlap=0.4, most=2)
        assert found == ([2, 0], [0.75, 0.25])


def test_the_input_stays_as_it_was():
    rng = np.random.default_rng(0)
    detections = reference.random_detections(rng, 50, 2)
    before = [array.copy() for array in detections]
    for method in METHODS:
        suppress(*detections, method, 0.5, 0.55, 0.001, 100)
    for array, old in zip(detections, before, strict=True):
        np.testing.assert_array_equal(array, old)


def test_a_class_is_suppressed_among_others_as_it_would_be_alone():
    rng = np.random.default_rng(1)
    boxes, scores, labels = reference.random_detections(rng, 300, 5)
    settings = "gaussian", 0.5, 0.55, 0.001, 1000
    together = suppress(boxes, scores, labels, *settings)
    for label in np.unique(labels):
        mine = np.flatnonzero(labels == label)
        places, kept = suppress(boxes[mine], scores[mine], labels[mine], *settings)
        of_class = labels[together[0]] == label
        np.testing.assert_array_equal(mine[places], together[0][of_class])
        np.testing.assert_array_equal(kept, together[1][of_class])


def test_impossible_input_is_refused():
    good = row(0, 5), np.ones(2, np.float32), np.zeros(2, np.int64)
    with pytest.raises(ValueError, match="soft"):
        suppress(*good, "soft", 0.5, 0.55, 0, 10)
    for wrong in ((-0.1, 0.5, 0, 1), (0.5, 0, 0, 1), (0.5, 0.5, -1, 1), (0.5, 0.5, 0, -1)):
        with pytest.raises(ValueError, match="overlap"):
            suppress(*good, "hard", *wrong)
    with pytest.raises(ValueError, match="labels"):
        suppress(*good[:2], good[2][:1], "hard", 0.5, 0.55, 0, 10)
    with pytest.raises(ValueError, match="boxes"):
        inside(np.zeros((3, 5), np.float32), (0, 0, 5, 5), (9, 9), 1)
