import dataclasses
import math

import numpy as np
import pytest
import reference_labels as reference
import torch
from torchvision.ops import roi_align

from train import anchors, assign, nms
from train.assign import LabelSettings
from train.detector import rpn
from train.detector.pool import pool_by_products
from train.nearest import nearest, nearest_by_parts
from train.warp import Targets

SIZE = 144, 96  # of the canvas: width, height
STRIDE = 24
ROWS, COLUMNS = SIZE[1] // STRIDE, SIZE[0] // STRIDE
GRID = anchors.grid(ROWS, COLUMNS, STRIDE, (20.0, 52.0), (0.5, 1.0, 2.0))
SETTINGS = LabelSettings()
EDGES = 0.0, 6.0, 18.0, 40.0, math.inf  # that random ranges begin and end at
# (canvases, most boxes of each): thousands of chips with a few boxes, and some with very many
CROWDS = [(1200, 12), (60, 40), (12, 200)]


class Case:
    """Random canvases with their boxes as lists, and as the padded arrays of a batch."""

    def __init__(self, seed, count, most, side=1):
        rng = np.random.default_rng(seed)
        fewest = most // 2 if most > 12 else 0
        self.boxes = [
            reference.random_boxes(rng, int(rng.integers(fewest, most + 1)), SIZE, GRID.numpy())
            for _ in range(count)
        ]
        ranges = np.sort(rng.choice(EDGES, (count, side * side, 2)), axis=2)
        self.ranges = ranges.tolist()
        self.cell = SIZE[1] / side, SIZE[0] / side
        padded = max(map(len, self.boxes)) + 3
        # padding holds what would count much if anyone looked at it
        boxes = np.tile(np.array([0, 0, *SIZE], np.float32), (count, padded, 1))
        labels = np.full((count, padded), -1)
        valid, crowd, cut = rng.random((3, count, padded)) < 0.5
        for i, of_canvas in enumerate(self.boxes):
            for g, box in enumerate(of_canvas):
                boxes[i, g], labels[i, g], valid[i, g], crowd[i, g], cut[i, g] = box
        self.targets = targets(boxes, labels, valid, crowd, cut, ranges, self.cell)
        rois = [reference.random_rois(rng, 20, SIZE, one, GRID.numpy()) for one in self.boxes]
        self.rois = torch.from_numpy(np.stack(rois))
        self.there = torch.from_numpy(rng.random((count, 20)) < 0.9)

    def alone(self, i):
        """The targets of one canvas, without padding unless it has no box."""
        part, count = self.targets.part(i, i + 1), max(len(self.boxes[i]), 1)
        padded = ("boxes", "labels", "valid", "crowd", "cut")
        return dataclasses.replace(part, **{k: getattr(part, k)[:, :count] for k in padded})


def targets(boxes, labels, valid, crowd, cut, ranges, cell=SIZE[::-1]):
    count = len(boxes)
    return Targets(
        boxes=torch.as_tensor(np.asarray(boxes, np.float32)),
        labels=torch.as_tensor(np.asarray(labels, np.int64)),
        valid=torch.as_tensor(np.asarray(valid, bool)),
        crowd=torch.as_tensor(np.asarray(crowd, bool)),
        cut=torch.as_tensor(np.asarray(cut, bool)),
        ranges=torch.as_tensor(np.asarray(ranges, np.float32)),
        content=torch.tensor([SIZE], dtype=torch.float32).repeat(count, 1),
        draws=torch.zeros(count),
        cell=cell,
    )


def of_one(boxes, valid=True, crowd=False, cut=False, ranges=(0, math.inf)):
    """Targets of one canvas whose boxes are all alike."""
    count = len(boxes)
    flags = ([[flag] * count] for flag in (valid, crowd, cut))
    return targets([boxes], [range(count)], *flags, [[ranges]])


def all_labels(of, rois, there):
    of_anchors = assign.rpn_labels(GRID, of, SETTINGS)
    of_rois = assign.roi_labels(rois, there, of, SETTINGS)
    return *of_anchors, *of_rois, assign.focus_labels(of, ROWS, COLUMNS, STRIDE, SETTINGS)


def check(found, verdicts, matched=None):
    """Compare labels, and boxes of objects, with verdicts, leaving out the few in doubt."""
    doubted = sum(verdict.doubt for verdict in verdicts)
    assert doubted <= 2 + len(verdicts) / 10_000
    wrong = [
        (i, label, verdict)
        for i, (label, verdict) in enumerate(zip(found.flatten().tolist(), verdicts, strict=True))
        if not verdict.doubt and min(label, 1) != verdict.label
    ]
    assert not wrong
    if matched is not None:
        pairs = zip(matched.flatten().tolist(), verdicts, strict=True)
        assert all(place in v.boxes for place, v in pairs if v.label == 1 and not v.doubt)


@pytest.mark.parametrize(("count", "most"), CROWDS)
def test_labels_of_anchors_are_those_of_the_reference(count, most):
    case = Case(most, count, most)
    labels, matched = assign.rpn_labels(GRID, case.targets, SETTINGS)
    grid = GRID.tolist()
    verdicts = [v for boxes in case.boxes for v in reference.rpn_labels(grid, boxes)]
    check(labels, verdicts, matched)
    assert {v.label for v in verdicts} == {-1, 0, 1}


@pytest.mark.parametrize(("count", "most"), CROWDS)
def test_anchors_are_compared_alike_on_the_cpu_and_on_other_devices(count, most):
    case = Case(most + 1, count, most)
    there = case.targets.labels >= 0
    crowd, valid = case.targets.crowd & there, case.targets.valid & there & ~case.targets.crowd
    kinds = valid, there & ~valid & ~crowd, crowd
    ours = nearest(GRID, case.targets.boxes, *kinds)
    whole = nearest_by_parts(GRID, case.targets.boxes, *kinds)
    for name, value in dataclasses.asdict(ours).items():
        torch.testing.assert_close(value, getattr(whole, name), rtol=1e-6, atol=0, msg=name)


@pytest.mark.parametrize("side", [1, 2, 3])
@pytest.mark.parametrize(("count", "most"), CROWDS)
def test_labels_of_rois_are_those_of_the_reference(count, most, side):
    case = Case([most, side], count if side == 1 else count // 4, most, side)
    labels, matched = assign.roi_labels(case.rois, case.there, case.targets, SETTINGS)
    verdicts = [
        verdict
        for rois, there, boxes, ranges in zip(
            case.rois.tolist(), case.there.tolist(), case.boxes, case.ranges, strict=True
        )
        for verdict in reference.roi_labels(rois, there, boxes, ranges, case.cell)
    ]
    check(labels, verdicts, matched)
    assert torch.equal(labels[labels > 0], case.targets.labels.gather(1, matched)[labels > 0] + 1)
    assert {v.label for v in verdicts} == {-1, 0, 1}


@pytest.mark.parametrize("stride", [24, 10])
@pytest.mark.parametrize(("count", "most"), CROWDS)
def test_focus_pixels_are_those_of_the_reference(count, most, stride):
    case = Case([most, stride], count, most)
    rows, columns = -(-SIZE[1] // stride), -(-SIZE[0] // stride)
    found = assign.focus_labels(case.targets, rows, columns, stride, SETTINGS)
    cells = [
        cell
        for boxes in case.boxes
        for row in reference.focus_labels(boxes, rows, columns, stride)
        for cell in row
    ]
    check(found, [reference.Verdict(label, set(), doubt) for label, doubt in cells])
    assert most > 12 or {label for label, _ in cells} == {-1, 0, 1}


@pytest.mark.parametrize(("low", "high", "of_touched"), [(1, 5, -1), (5.01, 63.9, 1)])
@pytest.mark.parametrize("shape", [1, 0.25, 4])
def test_focus_ranges_end_where_the_paper_says(low, high, of_touched, shape):
    sizes = {low: of_touched, high: of_touched, 64: -1, 90: -1, 90.1: 0}
    for size, expected in sizes.items():
        width, height = size / shape**0.5, size * shape**0.5
        box = [[8, 8, 8 + width, 8 + height]]
        found = assign.focus_labels(of_one(box), 16, 16, 16, SETTINGS)[0]
        right, bottom = math.ceil((8 + width) / 16), math.ceil((8 + height) / 16)
        assert (found[:bottom, :right] == expected).all()
        assert found.count_nonzero() == right * bottom * abs(expected)


@pytest.mark.parametrize(("size", "expected"), [(10, -1), (63, -1), (80, -1), (91, 0)])
def test_what_the_chip_has_cut_is_no_focus_pixel_unless_known_to_be_large(size, expected):
    found = assign.focus_labels(of_one([[0, 0, size, size]], cut=True), 16, 16, 16, SETTINGS)[0]
    cells = math.ceil(size / 16)
    assert (found[:cells, :cells] == expected).all()
    assert found.count_nonzero() == cells**2 * abs(expected)


def test_a_range_holds_its_low_end_and_not_its_high_one():
    sides = torch.tensor([7.9, 8, 8.1, 19.9, 20, 20.1])
    boxes = torch.cat([torch.zeros(6, 2), sides[:, None].repeat(1, 2)], 1)[None]
    found = assign.in_range(boxes, of_one([[0, 0, 1, 1]], ranges=(8, 20)))
    assert found.tolist() == [[False, True, True, True, False, False]]


def test_limits_of_overlap_fall_on_the_side_that_the_rules_say():
    place = [[0, 0, 10, 10]]
    thin = torch.tensor([[[0.0, 0, 10, 3], [0, 0, 10, 5], [0, 0, 10, 7], [0, 0, 10, 10]]])
    assert assign.rpn_labels(thin[0], of_one(place), SETTINGS)[0].tolist() == [[-1, -1, 1, 1]]
    assert assign.rpn_labels(thin[0], of_one(place, valid=False), SETTINGS)[0].tolist() == [
        [0, -1, -1, -1]  # not more than 0.3
    ]
    there = torch.ones(1, 4, dtype=torch.bool)
    assert assign.roi_labels(thin, there, of_one(place), SETTINGS)[0].tolist() == [[0, 1, 1, 1]]
    inside = torch.tensor([[[10.0 - k, 0, 20 - k, 10] for k in (3, 4, 5, 6)]])  # tenths
    crowd = of_one(place, crowd=True)
    assert assign.rpn_labels(inside[0], crowd, SETTINGS)[0].tolist() == [[0, -1, -1, -1]]
    assert assign.roi_labels(inside, there, crowd, SETTINGS)[0].tolist() == [[0, 0, 0, -1]]


def test_a_canvas_is_labelled_as_it_would_be_alone_and_without_padding():
    case = Case(7, 20, 80, side=2)
    together = all_labels(case.targets, case.rois, case.there)
    for i in range(len(case.boxes)):
        alone = all_labels(case.alone(i), case.rois[i : i + 1], case.there[i : i + 1])
        for labels, ours in zip(together, alone, strict=True):
            assert torch.equal(labels[i], ours[0])


def test_the_choice_of_anchors_keeps_its_limits_and_fills_up_with_background():
    rng = np.random.default_rng(0)
    settings = LabelSettings(anchors=16, anchors_positive=6)
    for count in (1, 5, 16, 17, 200):
        share = rng.random((100, 1)) ** 3
        kinds = rng.random((100, count))
        labels = torch.from_numpy(np.where(kinds < share, 1, rng.integers(-1, 1, kinds.shape)))
        draws = torch.from_numpy(rng.random(100, np.float32))
        places, taken = assign.sample(labels, draws, settings)
        for i in range(100):
            chosen = places[i][taken[i]].tolist()
            assert len(chosen) == len(set(chosen))
            positives = min(6, int((labels[i] == 1).sum()))
            background = min(16 - positives, int((labels[i] == 0).sum()))
            assert labels[i, chosen].tolist() == [1] * positives + [0] * background
            alone = assign.sample(labels[i : i + 1], draws[i : i + 1], settings)
            assert torch.equal(alone[0][0][alone[1][0]], places[i][taken[i]])


def test_the_choice_of_anchors_is_random_from_draw_to_draw():
    labels = torch.zeros(1, 300, dtype=torch.int64)
    labels[0, 100:140] = 1
    draws = torch.arange(0, 1, 1 / 512)
    settings = LabelSettings(anchors=60, anchors_positive=10)
    places, taken = assign.sample(labels.expand(512, -1), draws, settings)
    assert taken.sum() == 512 * 60
    often = torch.bincount(places[taken], minlength=300) / 512
    expected = torch.where(labels[0] == 1, 10 / 40, 50 / 260)
    assert (often > expected / 4).all()
    assert (often < expected * 2.5).all()


def test_anchors_lie_cell_by_cell_about_the_centres():
    found = anchors.grid(2, 3, 8, (16.0, 30.0), (0.5, 2.0)).tolist()
    wanted = [
        (8 * c + 4, 8 * r + 4, size, shape)
        for r in range(2)
        for c in range(3)
        for size in (16, 30)
        for shape in (0.5, 2)
    ]
    for (x1, y1, x2, y2), (x, y, size, shape) in zip(found, wanted, strict=True):
        assert ((x1 + x2) / 2, (y1 + y2) / 2) == pytest.approx((x, y), abs=1e-4)
        assert (x2 - x1) * (y2 - y1) == pytest.approx(size**2, rel=1e-5)
        assert (y2 - y1) / (x2 - x1) == pytest.approx(shape, rel=1e-5)


@pytest.mark.parametrize("weights", [(1.0, 1.0), (10.0, 5.0)])
def test_decoding_undoes_encoding(weights):
    rng = np.random.default_rng(0)
    corner, sides = rng.uniform(0, 400, (2, 500, 2)), np.exp(rng.uniform(0, 4, (2, 500, 2)))
    boxes, others = torch.from_numpy(np.concatenate([corner, corner + sides], 2)).float()
    there_and_back = anchors.decode(anchors.encode(boxes, others, weights), others, weights)
    torch.testing.assert_close(there_and_back, boxes, rtol=0, atol=2e-3)
    unmoved = anchors.decode(torch.zeros(500, 4), others, weights)
    torch.testing.assert_close(unmoved, others, rtol=0, atol=1e-4)
    huge = anchors.decode(torch.full((500, 4), 1e4), others, weights)
    grown = (huge - huge.roll(2, 1))[:, 2:] / (others - others.roll(2, 1))[:, 2:]
    torch.testing.assert_close(grown, torch.full((500, 2), 1000 / 16), rtol=1e-2, atol=0)


@pytest.mark.parametrize("threshold", [0.3, 0.7])
def test_suppression_is_greedy(threshold, monkeypatch):
    monkeypatch.setattr(nms, "PAIRS", 9000)  # one, two or all three canvases at once
    rng = np.random.default_rng(round(10 * threshold))
    doubted = 0
    for count in [0, 1, 2] + [int(n) for n in rng.integers(3, 90, 40)]:
        centres = rng.uniform(0, 60, (3, 1 + count // 12, 2))
        middle = np.take_along_axis(centres, rng.integers(centres.shape[1], size=(3, count, 1)), 1)
        corner = middle + rng.normal(0, 3, (3, count, 2))
        corners = corner, corner + rng.uniform(5, 30, (3, count, 2))
        boxes = torch.from_numpy(np.concatenate(corners, 2)).float()
        there = torch.from_numpy(rng.random((3, count)) < 0.9)
        most = max(count // 3, 1)
        found = [
            nms.suppress(boxes, there, threshold, count),
            nms.suppress_by_rounds(boxes, there, threshold),
            nms.suppress(boxes, there, threshold, most),
        ]
        for b in range(3):
            of_b = boxes[b].tolist(), there[b].tolist()
            kept, doubt = reference.suppressed(*of_b, threshold, slack=2e-6)
            doubted += doubt
            for staying, expected in zip(found, (kept, kept, kept[:most]), strict=True):
                assert doubt or staying[b].nonzero().flatten().tolist() == expected
    assert doubted <= 4


def test_a_chain_longer_than_the_rounds_loses_no_box():
    left = torch.arange(60.0) * 10
    boxes = torch.stack([left, left * 0, left + 100, left * 0 + 100], 1)[None]
    there = torch.ones(1, 60, dtype=torch.bool)
    greedy = nms.suppress(boxes, there, 0.7, 60)
    found = nms.suppress_by_rounds(boxes, there, 0.7)
    assert greedy[0].tolist() == [True, False] * 30
    assert torch.equal(found[:, : nms.ROUNDS], greedy[:, : nms.ROUNDS])
    assert (found >= greedy).all()


@pytest.mark.parametrize("count", [1, 7, 30, 45])
def test_the_first_kept_come_first_and_in_their_order(count):
    rng = np.random.default_rng(count)
    kept = torch.from_numpy(rng.random((8, 30)) < np.linspace(0, 1, 8)[:, None])
    boxes, values = (torch.from_numpy(rng.random((8, 30, *more)) + 1) for more in ((4,), ()))
    found, of_found, there = rpn.first(kept, count, boxes, values)
    assert found.shape == (8, count, 4)
    for b in range(8):
        wanted = kept[b].nonzero().flatten()[:count]
        assert there[b].tolist() == [k < len(wanted) for k in range(count)]
        assert torch.equal(found[b, : len(wanted)], boxes[b, wanted])
        assert torch.equal(of_found[b, : len(wanted)], values[b, wanted])
        assert not found[b, len(wanted) :].any()


@pytest.mark.parametrize("samples", [1, 2])
@pytest.mark.parametrize(("size", "stride", "map_size"), [(7, 16, (6, 9)), (3, 8, (12, 18))])
def test_pooling_by_products_is_roi_align_in_value_and_gradient(samples, size, stride, map_size):
    rng = np.random.default_rng(samples)
    rois = [reference.random_rois(rng, 40, SIZE, [], GRID.numpy()) for _ in range(3)]
    rois = torch.from_numpy(np.stack(rois))
    rois[:, 0], rois[:, 1] = 0, torch.tensor([0.0, 0, *SIZE])  # padding, and the whole canvas
    features = torch.from_numpy(rng.normal(size=(3, 5, *map_size))).requires_grad_()
    weights = torch.from_numpy(rng.normal(size=(120, size, size, 5)))
    flat = torch.cat([torch.arange(3.0).repeat_interleave(40)[:, None], rois.flatten(0, 1)], 1)
    theirs = roi_align(features, flat.double(), size, 1 / stride, samples, aligned=True)
    theirs = theirs.permute(0, 2, 3, 1)
    ours = pool_by_products(features, rois, size, samples, stride)
    torch.testing.assert_close(ours, theirs)
    gradients = [torch.autograd.grad((x * weights).sum(), features)[0] for x in (ours, theirs)]
    torch.testing.assert_close(*gradients)
