import numpy as np
import pytest
import reference

from chipgen.cover import cover, fits, held

SIDE, STRIDE = 64, 8
CANVAS_SCALES = (1.0, 1.7, 0.4)  # canvas px per picture px of the levels of `Case`


class Case:
    """Random pictures at three levels, and their boxes; which level wants which is drawn, too."""

    def __init__(self, seed, pictures, side, most=10):
        rng = np.random.default_rng(seed)
        # from much smaller than a chip to some chips wide, in each axis for itself
        limits = np.array([side // 2, 3 * side])[rng.integers(2, size=(pictures, 2))]
        self.sizes = rng.integers(1, limits + 2)
        counts = rng.choice([0, 1, 2, most // 2, most], pictures)
        self.boxes = np.concatenate(
            [np.zeros((0, 4), np.float32)]
            + [
                reference.random_boxes(rng, count, *size, side)
                for count, size in zip(counts.tolist(), self.sizes.tolist(), strict=True)
            ]
        )
        self.offsets = np.cumsum([0, *counts]).astype(np.int64)
        factors = np.array(CANVAS_SCALES)[:, None]
        self.canvases = np.maximum(np.round(self.sizes[:, None] * factors).astype(np.int64), 1)
        self.scales = self.canvases / self.sizes[:, None]
        self.wants = rng.random((len(self.boxes), len(factors))) < 0.8
        for p, i in self.picture_and_box():
            for level in range(len(factors)):
                canvas = self.canvases[p, level].tolist()
                fitting = reference.fits(self.on_canvas(p, level, i), canvas, side)
                self.wants[i, level] &= fitting

    def picture_and_box(self):
        for p in range(len(self.sizes)):
            for i in range(self.offsets[p], self.offsets[p + 1]):
                yield p, i

    def on_canvas(self, p, level, i):
        sizes = self.sizes[p].tolist(), self.canvases[p, level].tolist()
        return reference.on_canvas(self.boxes[i], *sizes)

    def arrays(self):
        return self.boxes, self.offsets, self.wants, self.canvases, self.scales

    def cover(self, side, stride, **options):
        return cover(*self.arrays(), chip=side, stride=stride, **options)

    def wanted(self, p, level):
        """Boxes on the canvas that a level of a picture wants."""
        span = range(self.offsets[p], self.offsets[p + 1])
        return [self.on_canvas(p, level, i) for i in span if self.wants[i, level]]

    def expected(self, side, stride, shifts, places, minimum, **options):
        rows = []
        for p in range(len(self.sizes)):
            for level in range(len(CANVAS_SCALES)):
                boxes, canvas = self.wanted(p, level), self.canvases[p, level].tolist()
                if boxes:
                    place, shift = places[p].tolist(), shifts[p].tolist()
                    chosen = reference.cover_level(
                        boxes, canvas, side, stride, shift, place, minimum, **options
                    )
                    rows += [(p, level, x, y) for x, y in chosen]
        return rows


def cover_one(boxes, canvas, **options):
    """Cover boxes of one picture that is its own canvas; gives positions (C, 2) as a list."""
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    options = {"chip": SIDE, "stride": STRIDE} | options
    rows = cover(
        boxes,
        np.array([0, len(boxes)]),
        np.ones((len(boxes), 1), bool),
        np.array([[canvas]], np.int64),
        np.ones((1, 1, 2)),
        **options,
    )
    return [tuple(row[2:]) for row in rows.tolist()]


@pytest.mark.parametrize("minimum", [1, 2, 4])
@pytest.mark.parametrize(
    ("side", "stride"), [(64, 8), (64, 64), (64, 1), (50, 7), (17, 5), (2, 2), (1, 1)]
)
def test_chips_are_those_of_the_reference_in_the_same_order(side, stride, minimum):
    pictures = 100 if stride < 4 and side > 4 else 400
    case = Case([side, stride, minimum], pictures, side)
    rng = np.random.default_rng(side)
    shifts = rng.integers(0, stride, (pictures, 2)) * rng.integers(0, 2, (pictures, 2))
    places = rng.choice([0.0, 0.5, 1.0, rng.random()], (pictures, 2))
    found = case.cover(side, stride, shifts=shifts, places=places, minimum=minimum)
    expected = case.expected(side, stride, shifts, places, minimum)
    assert [tuple(row) for row in found.tolist()] == expected
    assert len(expected) > (0 if minimum > 1 else pictures)


def test_grid_starts_at_the_origin_and_the_middle_is_taken_unless_told_otherwise():
    case = Case(0, 80, SIDE)
    shifts, places = np.zeros((80, 2), np.int64), np.full((80, 2), 0.5)
    found = case.cover(SIDE, STRIDE)
    assert [tuple(row) for row in found.tolist()] == case.expected(SIDE, STRIDE, shifts, places, 1)


@pytest.mark.parametrize("stride", [8, 32, 64])
def test_every_wanted_box_is_inside_some_chip(stride):
    case = Case(stride, 300, SIDE, most=25)
    rng = np.random.default_rng(0)
    shifts, places = rng.integers(0, stride, (300, 2)), rng.random((300, 2))
    chips = case.cover(SIDE, stride, shifts=shifts, places=places)
    assert case.wants.sum() > 3000
    for p, i in case.picture_and_box():
        for level in np.flatnonzero(case.wants[i]):
            there = chips[(chips[:, 0] == p) & (chips[:, 1] == level), 2:]
            box = case.on_canvas(p, level, i)
            assert any(reference.holds(x, y, SIDE, box) for x, y in there.tolist())


def test_chips_lie_on_their_canvas_and_on_the_grid_unless_a_box_needs_its_own():
    case = Case(5, 300, SIDE)
    own = 0
    for p, level, x, y in case.cover(SIDE, STRIDE).tolist():
        width, height = case.canvases[p, level].tolist()
        assert 0 <= x <= max(width - SIDE, 0)
        assert 0 <= y <= max(height - SIDE, 0)
        xs, ys = (reference.grid(length, SIDE, STRIDE, 0) for length in (width, height))
        if x not in xs or y not in ys:
            own += 1
            assert any(
                not any(reference.holds(c, r, SIDE, box) for c in xs for r in ys)
                for box in case.wanted(p, level)
                if reference.holds(x, y, SIDE, box)
            )
    assert own > 10


def test_with_a_minimum_every_chip_holds_that_many_boxes_that_no_earlier_one_holds():
    case = Case(6, 200, SIDE, most=40)
    minimum, seen, last = 3, set(), None
    chips = case.cover(SIDE, STRIDE, minimum=minimum).tolist()
    for p, level, x, y in chips:
        if (p, level) != last:
            seen, last = set(), (p, level)
        inside = {i for i, b in enumerate(case.wanted(p, level)) if reference.holds(x, y, SIDE, b)}
        assert len(inside - seen) >= minimum
        seen |= inside
    assert len(chips) > 100


def test_no_pictures_give_no_chips():
    found = cover(
        np.zeros((0, 4), np.float32),
        np.zeros(1, np.int64),
        np.zeros((0, 3), bool),
        np.zeros((0, 3, 2), np.int64),
        np.zeros((0, 3, 2)),
        chip=SIDE,
        stride=STRIDE,
    )
    assert found.shape == (0, 4)


def test_pictures_without_boxes_give_no_chips():
    sizes = np.full((5, 2, 2), 100)
    nothing = np.zeros((0, 4), np.float32), np.zeros(6, np.int64), np.zeros((0, 2), bool)
    found = cover(*nothing, sizes, np.ones((5, 2, 2)), chip=SIDE, stride=STRIDE)
    assert found.shape == (0, 4)


def test_boxes_that_no_level_wants_give_no_chips():
    case = Case(7, 20, SIDE)
    case.wants[:] = False
    assert len(case.cover(SIDE, STRIDE)) == 0


def test_same_input_gives_the_same_chips():
    case = Case(8, 200, SIDE)
    before = [array.copy() for array in case.arrays()]
    first, second = case.cover(SIDE, STRIDE), case.cover(SIDE, STRIDE)
    np.testing.assert_array_equal(first, second)
    for array, copy in zip(case.arrays(), before, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_a_picture_is_covered_the_same_alone_as_among_others():
    case = Case(9, 60, SIDE)
    rng = np.random.default_rng(9)
    shifts, places = rng.integers(0, STRIDE, (60, 2)), rng.random((60, 2))
    together = case.cover(SIDE, STRIDE, shifts=shifts, places=places)
    for p in range(60):
        span = slice(case.offsets[p], case.offsets[p + 1])
        alone = cover(
            case.boxes[span],
            np.array([0, span.stop - span.start]),
            case.wants[span],
            case.canvases[p : p + 1],
            case.scales[p : p + 1],
            chip=SIDE,
            stride=STRIDE,
            shifts=shifts[p : p + 1],
            places=places[p : p + 1],
        )
        np.testing.assert_array_equal(alone[:, 1:], together[together[:, 0] == p, 1:])


def test_no_chip_is_left_that_the_others_make_redundant():
    case = Case(10, 300, SIDE, most=25)
    chips = case.cover(SIDE, STRIDE)
    for p in range(300):
        for level in range(len(CANVAS_SCALES)):
            there = chips[(chips[:, 0] == p) & (chips[:, 1] == level), 2:].tolist()
            boxes = case.wanted(p, level)
            assert len(reference.without_redundant(boxes, there, SIDE)) == len(there)
    shifts, places = np.zeros((300, 2), np.int64), np.full((300, 2), 0.5)
    assert len(chips) < len(case.expected(SIDE, STRIDE, shifts, places, 1, drop=False))


def test_first_chip_is_dropped_when_later_ones_hold_its_boxes():
    # the window in the middle holds four boxes, the outer ones three each, and both are needed
    left, right = [(0, 0, 10, 10)], [(90, 0, 100, 10)]
    left_or_middle = [(20, 0, 30, 10), (22, 2, 32, 12)]
    right_or_middle = [(62, 0, 70, 10), (63, 2, 72, 12)]
    boxes = left + left_or_middle + right_or_middle + right
    assert cover_one(boxes, (100, 64)) == [(0, 0), (36, 0)]
    assert len(cover_one(boxes[1:-1], (100, 64))) == 1


def test_a_chip_is_not_dropped_for_boxes_that_only_a_dropped_one_held():
    # the first box is held by the first two chips, the second by the last two; either makes the
    # first or the second chip redundant, but not both of them
    boxes = [(92, 61, 105, 75), (60, 34, 91, 51), (59, 5, 98, 32)]
    undropped = reference.cover_level(boxes, (151, 151), SIDE, 64, drop=False)
    assert undropped == [(64, 36), (44, 17), (47, 3)]
    assert cover_one(boxes, (151, 151), stride=64) == [(44, 17), (47, 3)]


def test_with_a_minimum_nothing_is_dropped():
    boxes = [(0, 0, 10, 10), (90, 0, 100, 10), (20, 0, 30, 10), (62, 0, 70, 10)]
    middle = [(21, 0, 31, 10), (22, 0, 32, 10), (63, 0, 71, 10), (64, 0, 72, 10)]
    outer = [(0, 1, 10, 11), (90, 1, 100, 11)]
    assert len(cover_one(boxes + middle + outer, (100, 64), minimum=2)) == 3
    assert len(cover_one(boxes + middle + outer, (100, 64), minimum=1)) == 2


def test_ties_go_to_the_topmost_row_and_then_to_the_leftmost_column():
    top_right, top_left, bottom = (250, 10, 260, 20), (20, 10, 30, 20), (130, 250, 140, 260)
    chips = cover_one([bottom, top_right, top_left], (300, 300), places=np.zeros((1, 2)))
    assert chips == [(0, 0), (200, 0), (80, 200)]


@pytest.mark.parametrize(("place", "x", "y"), [(0.0, 88, 40), (0.5, 112, 64), (1.0, 136, 88)])
def test_of_windows_that_hold_the_same_boxes_the_one_at_the_place_is_taken(place, x, y):
    assert cover_one([(139, 91, 146, 98)], (400, 300), places=np.full((1, 2), place)) == [(x, y)]


def test_a_box_between_the_grid_positions_gets_a_chip_of_its_own():
    box = (3, 3, 65, 65)  # held at 1, 2 and 3 only
    assert cover_one([box], (200, 200)) == [(2, 2)]
    assert cover_one([box], (200, 200), places=np.array([[0.0, 1.0]])) == [(1, 3)]
    assert cover_one([box], (200, 200), stride=2) == [(2, 2)]
    assert cover_one([box, (10, 10, 20, 20)], (200, 200)) == [(2, 2)]
    assert cover_one([box, box], (200, 200), minimum=2) == []


def test_a_box_as_large_as_a_chip_is_held_by_just_that_window():
    for x, y in [(0, 0), (5, 9), (136, 136), (8, 135)]:
        assert cover_one([(x, y, x + SIDE, y + SIDE)], (200, 200)) == [(x, y)]


@pytest.mark.parametrize("canvas", [(1, 1), (63, 64), (64, 64), (30, 500), (500, 30)])
def test_a_canvas_smaller_than_a_chip_has_one_position(canvas):
    width, height = canvas
    corners = [(0, 0, 1, 1), (width - 1, height - 1, width, height)]
    chips = cover_one(corners, canvas)
    assert len(chips) == (1 if max(canvas) <= SIDE else 2)
    for x, y in chips:
        assert x == 0 or width > SIDE
        assert y == 0 or height > SIDE


@pytest.mark.parametrize("length", [65, 71, 72, 73, 100])
def test_the_far_edge_of_the_canvas_is_reached_whatever_the_shift(length):
    boxes = [(length - SIDE, 0, length, 1), (0, 0, SIDE, 1)]
    for shift in range(STRIDE):
        chips = cover_one(boxes, (length, 10), shifts=np.array([[shift, 0]]))
        assert sorted(chips) == [(0, 0), (length - SIDE, 0)]


def test_arrays_that_do_not_belong_together_are_refused():
    case = Case(11, 5, SIDE)
    boxes, offsets, wants, canvases, scales = case.arrays()
    for wrong in (wants[:-1], wants[:, :2]):
        with pytest.raises(ValueError, match="do not fit the boxes"):
            cover(boxes, offsets, wrong, canvases, scales, chip=SIDE, stride=STRIDE)
    with pytest.raises(ValueError, match="do not fit the boxes"):
        cover(boxes, offsets, wants, canvases[:-1], scales, chip=SIDE, stride=STRIDE)


@pytest.mark.parametrize("side", [1, 17, 64])
def test_a_box_fits_where_some_window_at_whole_pixels_holds_it(side):
    case = Case(12 + side, 150, side, most=20)
    picture = np.repeat(np.arange(150), np.diff(case.offsets))
    seen = set()
    for level in range(len(CANVAS_SCALES)):
        canvases, scales = case.canvases[picture, level], case.scales[picture, level]
        found = fits(case.boxes, canvases, scales, side)
        expected = [
            reference.fits(case.on_canvas(p, level, i), case.canvases[p, level].tolist(), side)
            for p, i in case.picture_and_box()
        ]
        assert found.tolist() == expected
        seen |= set(expected)
        by_box = fits(case.boxes, canvases, scales, np.full((len(picture), 1), side))
        assert by_box.tolist() == expected
    assert seen == {True, False}


def test_the_whole_picture_fits_a_canvas_of_a_chip_whatever_the_rounding():
    sizes = np.random.default_rng(0).integers(1, 5000, (2000, 2))
    whole = np.concatenate([np.zeros_like(sizes), sizes], axis=1).astype(np.float32)
    canvases = np.maximum(np.round(sizes * (512 / sizes.max(axis=1, keepdims=True))), 1).astype(int)
    assert fits(whole, canvases, canvases / sizes, 512).all()
    assert not fits(whole, canvases, canvases / sizes, 511).any()


def test_no_boxes_fit_nowhere():
    pairs = np.zeros((0, 2), np.int64)
    assert fits(np.zeros((0, 4), np.float32), pairs, pairs.astype(float), SIDE).shape == (0,)


@pytest.mark.parametrize("chips_of_picture", [0, 1, 6])
def test_held_counts_the_windows_of_each_level_that_hold_a_box(chips_of_picture):
    case = Case(13, 80, SIDE)
    rng = np.random.default_rng(13)
    counts = rng.integers(0, chips_of_picture + 1, 80)
    starts = np.cumsum([0, *counts])
    corners = rng.integers(-20, 100, (starts[-1], 2)).astype(np.float64)
    windows = np.concatenate([corners, corners + rng.integers(1, 150, corners.shape)], axis=1)
    slack, levels = rng.uniform(0, 3, len(windows)), rng.integers(0, 3, len(windows))
    expected = np.zeros((len(case.boxes), 3), np.int64)
    for p, i in case.picture_and_box():
        x1, y1, x2, y2 = case.boxes[i].tolist()
        for c in range(starts[p], starts[p + 1]):
            low_x, low_y, high_x, high_y = windows[c].tolist()
            over = max(low_x - x1, low_y - y1, x2 - high_x, y2 - high_y)
            expected[i, levels[c]] += over <= slack[c]
    levels = levels.astype(np.int16)
    found = held(case.boxes, case.offsets, windows, slack, levels, starts, 3)
    np.testing.assert_array_equal(found, expected)
    assert (expected.sum() > 0) == (chips_of_picture > 0)
