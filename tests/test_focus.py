import dataclasses

import numpy as np
import pytest
import reference_infer as reference

from infer.focus import FocusSettings, apart, enclosed, filled


def windows(probabilities, threshold, dilation, smallest):
    """Algorithm 2, whose chips are measured in the map's own cells."""
    return apart(enclosed(probabilities, threshold, dilation), smallest, probabilities.shape)


def of_text(*rows):
    """A map with a FocusPixel at each #, and cells never looked at at each ?."""
    values = {"#": 0.9, ".": 0.1, "?": -1}
    return np.array([[values[cell] for cell in row] for row in rows], np.float32)


def same(probabilities, threshold, dilation, smallest):
    found = windows(probabilities, threshold, dilation, smallest)
    expected = reference.focus_windows(probabilities.tolist(), threshold, dilation, smallest)
    assert found.dtype == np.int64
    assert found.shape == (len(expected), 4)
    assert [tuple(window) for window in found.tolist()] == expected
    return len(expected)


def random_case(rng, longest, most_dilation, most_side):
    probabilities = reference.random_map(rng, *rng.integers(0, longest + 1, 2))
    smallest = tuple(int(k) for k in rng.integers(1, most_side + 1, 2))
    return probabilities, 0.5, int(rng.integers(1, most_dilation + 1)), smallest


@pytest.mark.parametrize("most_side", [1, 4, 25])
@pytest.mark.parametrize("most_dilation", [1, 2, 7])
def test_windows_are_those_of_the_reference(most_dilation, most_side):
    rng = np.random.default_rng([most_dilation, most_side])
    counts = [same(*random_case(rng, 18, most_dilation, most_side)) for _ in range(400)]
    assert {0, 1, 2} <= set(counts)


def test_windows_of_large_maps_are_those_of_the_reference():
    rng = np.random.default_rng(0)
    most = 0
    for _ in range(30):
        probabilities = reference.random_map(rng, *rng.integers(40, 90, 2))
        seeds = rng.random(probabilities.shape) < rng.choice([0.003, 0.01, 0.03])
        probabilities[seeds] = 1
        for dilation, side in [(1, 1), (2, 2), (3, 5)]:
            most = max(most, same(probabilities, 0.5, dilation, (side, side + 1)))
    assert most > 50


@pytest.mark.parametrize("threshold", [0, 0.05, 0.3, 1])
def test_windows_follow_the_threshold(threshold):
    rng = np.random.default_rng(1)
    for _ in range(100):
        probabilities = reference.random_map(rng, *rng.integers(1, 16, 2))
        same(np.round(probabilities), threshold, 2, (1, 1))
        same(probabilities, float(np.float32(threshold)), 1, (2, 3))


@pytest.mark.parametrize("shape", [(0, 0), (0, 7), (7, 0), (5, 7)])
def test_a_map_without_focus_pixels_has_no_window(shape):
    found = windows(np.full(shape, 0.2, np.float32), 0.5, 3, (4, 4))
    assert found.shape == (0, 4)
    assert found.dtype == np.int64


@pytest.mark.parametrize("dilation", [1, 2, 3, 100])
def test_threshold_zero_takes_in_the_whole_map(dilation):
    found = windows(np.zeros((6, 9), np.float32), 0, dilation, (2, 2))
    assert found.tolist() == [[0, 0, 9, 6]]


def test_cells_never_looked_at_are_no_focus_pixels_even_with_threshold_zero():
    unseen = of_text("????", "????")
    assert windows(unseen, 0, 3, (1, 1)).shape == (0, 4)
    unseen[1, 2] = 0
    assert windows(unseen, 0, 1, (1, 1)).tolist() == [[2, 1, 3, 2]]


def test_dilation_spreads_onto_cells_never_looked_at():
    found = windows(of_text("?????", "??#??", "?????", "?????"), 0.5, 3, (1, 1))
    assert found.tolist() == [[1, 0, 4, 3]]


def test_a_cell_that_just_reaches_the_threshold_is_a_focus_pixel():
    for threshold in (0.5, 0.7, 0.1, 1):
        exact = np.array([[0, threshold]], np.float32)
        assert windows(exact, threshold, 1, (1, 1)).tolist() == [[1, 0, 2, 1]]
        below = np.nextafter(exact, np.float32(0))
        assert windows(below, threshold, 1, (1, 1)).tolist() == []


def test_a_cell_that_is_not_a_number_is_no_focus_pixel():
    assert windows(np.full((3, 3), np.nan, np.float32), 0, 3, (1, 1)).shape == (0, 4)


@pytest.mark.parametrize(
    ("dilation", "expected"),
    [(1, [3, 3, 4, 4]), (2, [2, 2, 4, 4]), (3, [2, 2, 5, 5]), (4, [1, 1, 5, 5])],
)
def test_an_even_filter_reaches_further_up_and_left(dilation, expected):
    one = np.zeros((7, 7), np.float32)
    one[3, 3] = 1
    assert windows(one, 0.5, dilation, (1, 1)).tolist() == [expected]


def test_cells_that_share_a_corner_belong_together():
    assert windows(of_text("#..", ".#.", "..#"), 0.5, 1, (1, 1)).tolist() == [[0, 0, 3, 3]]
    assert windows(of_text("..#", ".#.", "#.."), 0.5, 1, (1, 1)).tolist() == [[0, 0, 3, 3]]


def test_branches_that_meet_further_down_are_one_component():
    comb = of_text("#.#.#", "#.#.#", "#####", ".....", "#...#")
    assert windows(comb, 0.5, 1, (1, 1)).tolist() == [
        [0, 0, 5, 3],
        [0, 4, 1, 5],
        [4, 4, 5, 5],
    ]


def test_dilation_joins_what_is_near_and_leaves_the_rest():
    row = of_text("#..#....#")
    assert windows(row, 0.5, 1, (1, 1)).tolist() == [[0, 0, 1, 1], [3, 0, 4, 1], [8, 0, 9, 1]]
    assert windows(row, 0.5, 3, (1, 1)).tolist() == [[0, 0, 5, 1], [7, 0, 9, 1]]


@pytest.mark.parametrize(
    ("x", "expected"),
    [(0, [0, 4]), (1, [0, 4]), (2, [1, 5]), (5, [4, 8]), (7, [6, 10]), (8, [6, 10]), (9, [6, 10])],
)
def test_small_windows_grow_about_their_centre_and_stay_inside(x, expected):
    one = np.zeros((1, 10), np.float32)
    one[0, x] = 1
    for probabilities, smallest, rows in [(one, (1, 4), False), (one.T, (4, 1), True)]:
        found = windows(probabilities, 0.5, 1, smallest)[0]
        assert found[rows::2].tolist() == expected


def test_a_map_smaller_than_the_smallest_window_is_taken_whole_along_that_axis():
    found = windows(of_text("......", ".....#", "......"), 0.5, 1, (8, 2))
    assert found.tolist() == [[4, 0, 6, 3]]


def test_windows_that_only_touch_stay_apart_and_those_that_overlap_become_one():
    apart = of_text(".#..#....")
    assert windows(apart, 0.5, 1, (1, 3)).tolist() == [[0, 0, 3, 1], [3, 0, 6, 1]]
    assert windows(apart, 0.5, 1, (1, 4)).tolist() == [[0, 0, 7, 1]]


def test_a_merged_window_swallows_what_it_then_overlaps():
    # the bar lies in the window of the L; only the window around both reaches the lone cell
    probabilities = of_text(
        "#.......",
        "#.#####.",
        "#.......",
        "####.#..",
        ".......#",
    )
    assert windows(probabilities[:, :5], 0.5, 1, (1, 1)).tolist() == [[0, 0, 5, 4]]
    assert windows(probabilities, 0.5, 1, (1, 1)).tolist() == [[0, 0, 7, 4], [7, 4, 8, 5]]
    probabilities[1] = 0
    probabilities[1, 0] = 1
    alone = [[0, 0, 4, 4], [5, 3, 6, 4], [7, 4, 8, 5]]
    assert windows(probabilities, 0.5, 1, (1, 1)).tolist() == alone


def test_a_window_inside_another_is_not_a_window_of_its_own():
    ring = of_text("#####", "#...#", "#.#.#", "#...#", "#####")
    assert windows(ring, 0.5, 1, (1, 1)).tolist() == [[0, 0, 5, 5]]


@pytest.mark.parametrize("apart", [True, False])
def test_windows_fill_up_whole_steps_as_the_reference_does(apart):
    rng = np.random.default_rng(3)
    grew = blocked = 0
    for _ in range(400):
        rows, columns = (int(n) for n in rng.integers(1, 13, 2))
        if apart:
            found = windows(reference.random_map(rng, rows, columns), 0.5, 1, (1, 1))
        else:  # as rounding to whole cells can leave them
            low = rng.integers(0, (columns, rows), (int(rng.integers(0, 5)), 2))
            sides = rng.integers(1, 5, low.shape)
            found = np.concatenate([low, np.minimum(low + sides, (columns, rows))], axis=1)
        step = int(rng.integers(1, 6))
        grown = filled(found, step, (rows, columns))
        assert grown.tolist() == reference.filled(found.tolist(), step, rows, columns)
        sides = grown[:, 2:] - grown[:, :2]
        assert (sides <= -(-(found[:, 2:] - found[:, :2]) // step) * step).all()
        grew += (grown != found).any()
        blocked += (sides % step > 0).any()
    assert grew > 100
    assert blocked > 50


def test_a_window_fills_its_step_about_its_centre_and_leaves_others_their_cells():
    assert filled(np.array([[3, 0, 5, 1]]), 4, (1, 10)).tolist() == [[2, 0, 6, 1]]
    assert filled(np.array([[0, 0, 1, 1]]), 4, (1, 10)).tolist() == [[0, 0, 4, 1]]
    assert filled(np.array([[8, 0, 10, 1]]), 4, (1, 10)).tolist() == [[6, 0, 10, 1]]
    beside = np.array([[0, 0, 2, 1], [3, 0, 5, 1]])
    assert filled(beside, 4, (1, 10)).tolist() == [[0, 0, 3, 1], [3, 0, 7, 1]]
    assert filled(np.zeros((0, 4), np.int64), 4, (3, 3)).shape == (0, 4)


def test_windows_cover_all_focus_pixels_and_share_no_cell():
    rng = np.random.default_rng(2)
    for _ in range(200):
        probabilities, threshold, dilation, smallest = random_case(rng, 60, 3, 8)
        covered = np.zeros(probabilities.shape, int)
        for x1, y1, x2, y2 in windows(probabilities, threshold, dilation, smallest):
            covered[y1:y2, x1:x2] += 1
            assert y2 - y1 >= min(smallest[0], len(probabilities))
            assert x2 - x1 >= min(smallest[1], probabilities.shape[1])
        assert covered.max(initial=0) <= 1
        assert (covered[probabilities >= threshold] == 1).all()


def test_a_map_on_its_side_has_its_windows_on_their_side():
    rng = np.random.default_rng(3)
    for _ in range(300):
        probabilities, threshold, dilation, smallest = random_case(rng, 30, 4, 6)
        upright = windows(probabilities, threshold, dilation, smallest)
        turned = windows(probabilities.T, threshold, dilation, smallest[::-1])
        assert sorted(turned[:, [1, 0, 3, 2]].tolist()) == sorted(upright.tolist())


def test_a_mirrored_map_has_mirrored_windows_where_nothing_is_rounded():
    rng = np.random.default_rng(4)
    for _ in range(300):
        probabilities, threshold, _, _ = random_case(rng, 30, 1, 1)
        dilation = int(rng.choice([1, 3, 5]))
        found = windows(probabilities, threshold, dilation, (1, 1))
        mirrored = windows(probabilities[:, ::-1], threshold, dilation, (1, 1))
        found[:, [2, 0]] = probabilities.shape[1] - found[:, [0, 2]]
        assert sorted(mirrored.tolist()) == sorted(found.tolist())


def test_impossible_settings_are_refused():
    for change in ({"threshold": -0.1}, {"threshold": 1.1}, {"dilation": 0}, {"smallest": 0}):
        with pytest.raises(ValueError, match=next(iter(change))):
            dataclasses.replace(FocusSettings(), **change)
    flat = np.zeros((3, 3), np.float32)
    for wrong in ((flat[0], 0.5, 3, (1, 1)), (flat, -1, 3, (1, 1)), (flat, 0.5, 0, (1, 1))):
        with pytest.raises(ValueError, match=r"shape|threshold|dilation"):
            windows(*wrong)
    with pytest.raises(ValueError, match="smallest"):
        windows(flat, 0.5, 3, (1, 0))
