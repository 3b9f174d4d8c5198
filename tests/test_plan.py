import dataclasses
import math

import numpy as np
import pytest
import reference

from chipgen.plan import CHIPS, PAPER_LEVELS, ChipSettings, canvases_of, plan, wanted
from chipgen.pyramid import Level

SIDE = 64
# the pyramid of the paper in small, with a range that no level has (above 40) and an overlap
LEVELS = (
    Level((0.0, 12.0), factor=3.0),
    Level((6.0, 30.0), factor=1.667),
    Level((24.0, 40.0), long=64),
)
SNIPER = ChipSettings(levels=LEVELS, size=SIDE, stride=8)
SNIP = ChipSettings("snip", levels=LEVELS, crop=100)
WHOLE = ChipSettings("whole", levels=LEVELS)
OTHER_LEVELS = (
    Level((20.0, math.inf), long=100),
    Level((4.0, 10.0), short=90, long=140),
    Level((10.0, 20.0), factor=0.8),
)


@pytest.fixture(scope="module")
def annotations():
    return reference.random_annotations(seed=1, pictures=250)


def boxes_of(annotations, p):
    """Boxes of a picture that are no crowds."""
    span = slice(annotations.offsets[p], annotations.offsets[p + 1])
    return annotations.boxes[span][~annotations.crowd[span]]


def of_picture(rows, p):
    return [row for row in rows if row[0] == p]


def finest_of(canvases):
    return max(range(len(canvases)), key=lambda k: math.prod(canvases[k]))


def with_real_boxes(annotations):
    return [p for p in range(len(annotations.widths)) if len(boxes_of(annotations, p))]


@pytest.mark.parametrize("settings", [SNIPER, SNIP, WHOLE], ids=lambda s: s.strategy)
@pytest.mark.parametrize("variants", [1, 2])
def test_every_strategy_makes_the_same_table(annotations, settings, variants):
    variants = 1 if settings is WHOLE else variants
    table = plan(annotations, dataclasses.replace(settings, variants=variants))
    assert table.schema == CHIPS
    assert all(column.null_count == 0 for column in table.columns)
    columns = {name: table[name].to_numpy() for name in table.column_names}
    picture = columns["picture"]
    assert (np.diff(picture) >= 0).all()
    np.testing.assert_array_equal(columns["picture_id"], annotations.picture_ids[picture])
    assert set(columns["rounds"].tolist()) == {variants}
    assert set(columns["round"].tolist()) == set(range(variants))
    sizes = reference.picture_sizes(annotations)
    for row in table.to_pylist():
        canvas = reference.canvas_of(LEVELS[row["level"]], *sizes[row["picture"]])
        assert (row["canvas_width"], row["canvas_height"]) == canvas
        assert 0 <= row["x"] < row["x"] + row["width"] <= canvas[0]
        assert 0 <= row["y"] < row["y"] + row["height"] <= canvas[1]


@pytest.mark.parametrize("settings", [SNIPER, SNIP, WHOLE], ids=lambda s: s.strategy)
def test_only_pictures_with_a_box_that_is_no_crowd_have_chips(annotations, settings):
    expected = with_real_boxes(annotations)
    assert 0 < len(expected) < len(annotations.widths)
    assert annotations.crowd.any()
    assert sorted(set(plan(annotations, settings)["picture"].to_pylist())) == expected


@pytest.mark.parametrize("settings", [SNIPER, SNIP, WHOLE], ids=lambda s: s.strategy)
def test_every_box_that_is_no_crowd_is_inside_some_chip(annotations, settings):
    rows = reference.plan_rows(plan(annotations, settings))
    for p, size in enumerate(reference.picture_sizes(annotations)):
        there = of_picture(rows, p)
        for box in boxes_of(annotations, p):
            assert reference.covered(box, size, there, LEVELS)


@pytest.mark.parametrize("settings", [SNIPER, SNIP, WHOLE], ids=lambda s: s.strategy)
def test_no_pictures_give_an_empty_table(settings):
    table = plan(reference.make_annotations([], []), settings)
    assert table.schema == CHIPS
    assert table.num_rows == 0


@pytest.mark.parametrize("settings", [SNIPER, SNIP, WHOLE], ids=lambda s: s.strategy)
@pytest.mark.parametrize("crowds", [0, 3])
def test_pictures_without_boxes_but_crowds_give_no_positive_chip(settings, crowds):
    boxes = [(5, 5, 15, 15)] * crowds
    annotations = reference.make_annotations([(90, 70)], [boxes], [True] * crowds)
    table = plan(annotations, settings)
    assert table.schema == CHIPS
    assert table.num_rows == 0


@pytest.mark.parametrize("settings", [SNIPER, SNIP, WHOLE], ids=lambda s: s.strategy)
def test_crowds_ask_for_nothing(annotations, settings):
    rows = reference.plan_rows(plan(annotations, settings))
    real = [boxes_of(annotations, p) for p in range(len(annotations.widths))]
    without = reference.make_annotations(
        reference.picture_sizes(annotations), real, ids=annotations.picture_ids
    )
    assert reference.plan_rows(plan(without, settings)) == rows


@pytest.mark.parametrize("settings", [SNIPER, SNIP], ids=lambda s: s.strategy)
def test_the_same_data_give_the_same_plan(annotations, settings):
    settings = dataclasses.replace(settings, variants=2)
    assert plan(annotations, settings).equals(plan(annotations, settings))


@pytest.mark.parametrize("settings", [SNIPER, SNIP, WHOLE], ids=lambda s: s.strategy)
def test_a_picture_is_planned_the_same_alone_as_among_others(annotations, settings):
    settings = settings if settings is WHOLE else dataclasses.replace(settings, variants=2)
    table = plan(annotations, settings).drop_columns("picture")
    picture = np.array(plan(annotations, settings)["picture"])
    for p in range(0, 40):
        alone = plan(annotations.take(np.array([p])), settings).drop_columns("picture")
        assert alone.equals(table.take(np.flatnonzero(picture == p)))


@pytest.mark.parametrize("settings", [SNIPER, SNIP], ids=lambda s: s.strategy)
def test_variants_are_different_and_each_of_them_complete(annotations, settings):
    table = plan(annotations, dataclasses.replace(settings, variants=3))
    turn = table["round"].to_numpy()
    variants = [reference.plan_rows(table.take(np.flatnonzero(turn == v))) for v in range(3)]
    assert variants[0] == reference.plan_rows(plan(annotations, settings))
    for i in range(3):
        assert set(variants[i]) != set(variants[i - 1])
        for p, size in enumerate(reference.picture_sizes(annotations)):
            there = of_picture(variants[i], p)
            for box in boxes_of(annotations, p):
                assert reference.covered(box, size, there, LEVELS)


@pytest.mark.parametrize("settings", [SNIPER, SNIP], ids=lambda s: s.strategy)
def test_variants_depend_on_the_seed(annotations, settings):
    settings = dataclasses.replace(settings, variants=2)
    other = dataclasses.replace(settings, seed=settings.seed + 1)
    assert plan(annotations, settings) != plan(annotations, other)


@pytest.mark.parametrize("levels", [LEVELS, LEVELS[::-1], OTHER_LEVELS, LEVELS[1:2]])
@pytest.mark.parametrize("stride", [8, 24, 64])
def test_sniper_plan_is_that_of_the_reference(levels, stride):
    annotations = reference.random_annotations(stride, pictures=300)
    settings = ChipSettings(levels=levels, size=SIDE, stride=stride)
    found = reference.plan_rows(plan(annotations, settings))
    assert found == reference.plan_sniper(annotations, settings)
    assert len(found) > 100


def test_sniper_plan_of_pictures_as_large_as_those_of_coco_is_that_of_the_reference():
    annotations = reference.random_annotations(3, pictures=6, low=300, high=640, side=250)
    settings = ChipSettings()
    found = reference.plan_rows(plan(annotations, settings))
    assert found == reference.plan_sniper(annotations, settings)
    for p, size in enumerate(reference.picture_sizes(annotations)):
        for box in boxes_of(annotations, p):
            assert reference.covered(box, size, of_picture(found, p), PAPER_LEVELS)


@pytest.mark.parametrize("levels", [LEVELS, OTHER_LEVELS])
@pytest.mark.parametrize("strategy", ["sniper", "snip", "whole"])
def test_a_box_is_wanted_by_every_level_in_whose_range_it_is_and_where_it_fits(strategy, levels):
    annotations = reference.random_annotations(4, pictures=200)
    settings = ChipSettings(strategy, levels=levels, size=SIDE, stride=8, crop=100)
    found = wanted(annotations, canvases_of(annotations, levels), settings)
    outside_ranges = 0
    for p, picture in enumerate(reference.picture_sizes(annotations)):
        canvases = [reference.canvas_of(level, *picture) for level in levels]
        sides = [SIDE if strategy == "sniper" else max(canvas) for canvas in canvases]
        if strategy == "snip":
            sides[finest_of(canvases)] = 100
        for i in range(annotations.offsets[p], annotations.offsets[p + 1]):
            box = annotations.boxes[i].tolist()
            size = math.sqrt((box[2] - box[0]) * (box[3] - box[1]))
            fitting = [
                k
                for k, canvas in enumerate(canvases)
                if reference.fits(reference.on_canvas(box, picture, canvas), canvas, sides[k])
            ]
            expected = [k for k in fitting if levels[k].range[0] <= size < levels[k].range[1]]
            if fitting and not expected:
                outside_ranges += 1
                expected = [max(fitting, key=lambda k: math.prod(canvases[k]))]
            expected = [] if annotations.crowd[i] else expected
            assert np.flatnonzero(found[i]).tolist() == expected
    assert outside_ranges > 10


def test_a_range_holds_its_low_end_and_not_its_high_end():
    boxes = [(0, 0, 8, 8), (0, 0, 16, 4), (0, 0, 20, 20), (0, 0, 40, 10)]
    annotations = reference.make_annotations([(60, 60)], [boxes])
    levels = (Level((8.0, 20.0), factor=1.0), Level((20.0, 50.0), factor=0.5))
    settings = ChipSettings(levels=levels, size=SIDE, stride=8)
    found = wanted(annotations, canvases_of(annotations, levels), settings)
    assert found.tolist() == [[True, False], [True, False], [False, True], [False, True]]


def test_a_box_too_long_for_the_level_of_its_size_goes_to_the_finest_level_where_it_fits():
    strip = [(0, 10, 60, 11)]  # of size 7.7, which only the first level has
    annotations = reference.make_annotations([(150, 40)], [strip])
    levels = (LEVELS[0], LEVELS[2], Level((200.0, 300.0), factor=1.05), LEVELS[1])
    rows = plan(annotations, ChipSettings(levels=levels[:3], size=SIDE, stride=8))
    assert rows["level"].to_pylist() == [2]
    rows = plan(annotations, ChipSettings(levels=levels[:2], size=SIDE, stride=8))
    assert rows["level"].to_pylist() == [1]
    assert plan(annotations, ChipSettings(levels=levels[:1], size=SIDE, stride=8)).num_rows == 0


@pytest.mark.parametrize("size", [(1, 1000), (1000, 1)])
def test_the_finest_level_is_the_finest_of_a_thin_picture_too(size):
    # at either level the canvas is one pixel thin
    box = [(0, 0, min(size[0], 30), min(size[1], 30))]
    annotations = reference.make_annotations([size], [box])
    levels = Level((500.0, 900.0), factor=0.6), Level((500.0, 900.0), factor=1.4)
    for finest, order in [(1, levels), (0, levels[::-1])]:
        table = plan(annotations, ChipSettings(levels=order, size=SIDE, stride=8))
        assert table["level"].to_pylist() == [finest]


def test_snip_takes_whole_canvases_of_all_levels_but_the_finest(annotations):
    rows = reference.plan_rows(plan(annotations, SNIP))
    for p in with_real_boxes(annotations):
        size = reference.picture_sizes(annotations)[p]
        canvases = [reference.canvas_of(level, *size) for level in LEVELS]
        finest = finest_of(canvases)
        coarse = [row for row in of_picture(rows, p) if row[1] != finest]
        assert sorted(coarse) == [(p, k, 0, 0, *canvases[k]) for k in range(3) if k != finest]


@pytest.mark.parametrize("crop", [64, 100, 1000])
def test_snip_crops_the_finest_level_to_the_boxes_that_it_wants(annotations, crop):
    settings = dataclasses.replace(SNIP, crop=crop)
    wants = wanted(annotations, canvases_of(annotations, LEVELS), settings)
    rows = reference.plan_rows(plan(annotations, settings))
    with_crops = without = 0
    for p, size in enumerate(reference.picture_sizes(annotations)):
        canvases = [reference.canvas_of(level, *size) for level in LEVELS]
        finest = finest_of(canvases)
        crops = [row[2:] for row in of_picture(rows, p) if row[1] == finest]
        span = range(annotations.offsets[p], annotations.offsets[p + 1])
        small = [
            reference.on_canvas(annotations.boxes[i], size, canvases[finest])
            for i in span
            if wants[i, finest]
        ]
        with_crops, without = with_crops + bool(small), without + (not small)
        left = set(range(len(small)))
        for x, y, width, height in crops:
            assert (width, height) == tuple(min(crop, side) for side in canvases[finest])
            new = {i for i in left if reference.holds(x, y, crop, small[i])}
            assert new  # a crop is there for a box that the ones before it have not
            left -= new
        assert not left
    assert min(with_crops, without) > 10


def test_snip_takes_a_box_in_range_that_is_larger_than_a_crop_at_another_level():
    strip = [(0, 10, 60, 11)]  # 180 px long at the finest level
    annotations = reference.make_annotations([(150, 40)], [strip])
    rows = reference.plan_rows(plan(annotations, SNIP))
    assert rows == [(0, 1, 0, 0, 250, 67), (0, 2, 0, 0, 64, 17)]


def test_snip_takes_the_crop_that_holds_most_boxes_first():
    heap = [(20 + i, 25, 25 + i, 30) for i in range(10)]
    boxes = [[(165, 160, 170, 170), *heap]] * 20  # no crop holds all of them
    annotations = reference.make_annotations([(200, 200)] * 20, boxes)
    levels = (Level((0.0, 80.0), factor=1.0),)
    rows = reference.plan_rows(plan(annotations, ChipSettings("snip", levels=levels, crop=100)))
    for p in range(20):
        (_, _, x, y, *_), *_ = of_picture(rows, p)
        assert all(reference.holds(x, y, 100, box) for box in heap)


def test_snip_crops_are_few():
    # section 6.2: 1.7 crops of 1000 px a picture of 1400 x 2000
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 1, (40, 7, 2)) * (600, 420)
    boxes = np.concatenate([corners, corners + rng.uniform(5, 60, corners.shape)], axis=2)
    boxes = np.minimum(boxes, (640, 448, 640, 448))
    annotations = reference.make_annotations([(640, 448)] * 40, list(boxes))
    levels = (Level((0.0, 80.0), short=1400, long=2000), Level((0.0, math.inf), long=512))
    table = plan(annotations, ChipSettings("snip", levels=levels))
    crops = np.bincount(table["picture"].to_numpy()[table["level"].to_numpy() == 0])
    assert crops.min() >= 1
    assert crops.max() <= 7
    assert crops.mean() < 4


def test_whole_takes_the_canvas_of_every_level(annotations):
    rows = reference.plan_rows(plan(annotations, WHOLE))
    sizes = reference.picture_sizes(annotations)
    assert rows == [
        (p, level, 0, 0, *reference.canvas_of(LEVELS[level], *sizes[p]))
        for p in with_real_boxes(annotations)
        for level in range(3)
    ]


@pytest.mark.parametrize("name", ["size", "stride", "crop", "variants"])
def test_settings_below_one_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} = 0 must be at least 1"):
        ChipSettings(**{name: 0})


def test_settings_that_contradict_each_other_are_refused():
    with pytest.raises(ValueError, match="levels is empty"):
        ChipSettings(levels=())
    with pytest.raises(ValueError, match="stride 65 is wider than a chip"):
        ChipSettings(size=64, stride=65)
    with pytest.raises(ValueError, match="variants = 1"):
        ChipSettings("whole", variants=2)
