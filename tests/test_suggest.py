import dataclasses

import numpy as np
import pytest
import reference

from chipgen import run, stats
from chipgen import suggest as suggesting
from chipgen.plan import ChipSettings
from chipgen.pyramid import Level, canvas_sizes, in_range
from chipgen.recipe import load
from chipgen.suggest import FINEST, NETWORKS, fragment, suggest
from infer.focus import FocusSettings
from infer.settings import InferSettings
from train.assign import LabelSettings


def text_lines(rng):
    """Lines far longer than a chip at the level that their area asks for."""
    sides = np.stack([rng.uniform(500, 1500, 200), np.full(200, 25.0)], axis=1)
    return placed(rng, np.full((200, 2), 1600), sides)


def cars_and_a_few_ships(rng):
    """Boxes of 40 px, and 1.5 % of 600 px: fewer than the quantiles look at."""
    sides = np.full((1000, 2), 40.0)
    sides[rng.choice(1000, 15, replace=False)] = 600
    return placed(rng, np.full((1000, 2), 2000), sides)


def signs_and_three_walls(rng):
    sides = np.stack([rng.uniform(30, 50, 500)] * 2, axis=1)
    sides[:3] = 700
    return placed(rng, np.full((500, 2), 1000), sides)


def one_large_picture_among_icons(rng):
    pictures = np.full((50, 2), 100)
    pictures[0] = 2000
    sides = rng.uniform(10, 90, (50, 2))
    sides[0] = 1900, 300
    return placed(rng, pictures, sides)


def placed(rng, pictures, sides):
    """Put a box of each pair of sides anywhere into a picture of its own."""
    corners = rng.random(sides.shape) * (pictures - sides)
    boxes = np.concatenate([corners, corners + sides], axis=1).astype(np.float32)
    return reference.make_annotations(pictures, list(boxes[:, None]), [False] * len(boxes))


def longs_of(annotations):
    return np.maximum(annotations.widths, annotations.heights)


def drawn(seed):
    """Draw pictures and boxes of any size and shape, alike or mixed, some elongated."""
    rng = np.random.default_rng(seed)
    low, high = np.sort(np.exp(rng.uniform(np.log(20), np.log(40000), 2)))
    pictures = np.exp(rng.uniform(np.log(low), np.log(high), (60, 2))).astype(np.int64)
    largest = np.minimum(np.exp(rng.uniform(np.log(4), np.log(40000))), pictures)
    sides = np.exp(rng.uniform(np.log(3), np.log(largest)))
    sides[rng.integers(60)] *= 0.999
    full = rng.integers(60)
    sides[full] = pictures[full] if rng.random() < 0.5 else sides[full]
    return placed(rng, pictures, sides)


CASES = [
    text_lines,
    cars_and_a_few_ships,
    signs_and_three_walls,
    one_large_picture_among_icons,
]


def check_that_it_serves_all(annotations, chip):
    """See that each box is covered, and that each size counts somewhere."""
    levels = suggest(annotations, chip, stride=16).levels
    settings = ChipSettings(levels=levels, size=chip)
    planned, chips = run.make(annotations, settings)
    figures = stats.of_plan(planned, settings, {"positive": chips})
    assert planned.rejects.num_rows == 0
    assert figures["uncovered"] == 0
    canvases = canvas_sizes(levels, *np.array([[np.median(longs_of(annotations))]] * 2))[0, :, 0]
    assert (canvases[:-1] >= 1.09 * canvases[1:]).all()  # from fine to coarse, none twice
    assert in_range(levels, np.geomspace(0.1, 1e5, 500)).any(axis=1).all()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
@pytest.mark.parametrize("chip", [256, 512])
def test_what_is_proposed_holds_every_box(case, chip):
    check_that_it_serves_all(case(np.random.default_rng(0)), chip)


@pytest.mark.parametrize("seed", range(60))
def test_what_is_proposed_holds_every_box_of_random_sets(seed):
    check_that_it_serves_all(drawn(seed), chip=512)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("seed", range(5))
def test_focus_pixels_reach_to_where_the_ranges_of_coarser_levels_begin(tmp_path, seed, network):
    annotations = drawn(seed)
    (tmp_path / "recipe.toml").write_text(fragment(suggest(annotations, 512, 16), 512, network))
    sections = {"infer": InferSettings, "labels": LabelSettings}
    found = load(str(tmp_path / "recipe.toml"), sections)
    side = np.array([np.median(longs_of(annotations))])
    for level in found["infer"].levels[:-1]:
        begins = level.range[0] * level.factors(side, side)[0]
        assert begins <= found["labels"].focus_high * 1.05  # ranges are rounded
    assert found["labels"].focus_ignore > found["labels"].focus_high


@pytest.mark.parametrize("chip", [256, 512])
@pytest.mark.parametrize(("network", "threshold"), [("resnet50", 0.1), ("small", 0.03)])
def test_focus_chips_follow_network_and_chip(tmp_path, network, threshold, chip):
    annotations = cars_and_a_few_ships(np.random.default_rng(0))
    proposed = fragment(suggest(annotations, chip, 16), chip, network)
    (tmp_path / "recipe.toml").write_text(proposed)
    found = load(str(tmp_path / "recipe.toml"), {"infer": InferSettings})["infer"]
    assert len(found.focus) == len(found.levels) - 1 > 0
    assert set(found.focus) == {FocusSettings(threshold, 3, chip // 2)}


def test_inference_has_room_for_crowds_and_for_what_is_longer_than_tiles_overlap(tmp_path):
    rng = np.random.default_rng(0)
    many = placed(rng, np.full((90, 2), 4000), np.full((90, 2), 40.0))
    many = dataclasses.replace(many, offsets=np.array([0, 90]), pictures=many.pictures[:1])
    long = placed(rng, np.full((90, 2), 4000), np.tile([[40.0, 40.0], [30.0, 300.0]], (45, 1)))
    plain = placed(rng, np.full((90, 2), 640), np.tile([[40.0, 40.0], [30.0, 300.0]], (45, 1)))
    for annotations, changed in (
        (many, {"detections": 200, "proposals": 300}),
        (long, {"overlap": None}),
        (plain, {}),
    ):
        (tmp_path / "recipe.toml").write_text(fragment(suggest(annotations, 512, 16), 512, "small"))
        found = load(str(tmp_path / "recipe.toml"), {"infer": InferSettings})["infer"]
        for name in ("detections", "proposals", "overlap", "tile"):
            default = getattr(InferSettings(), name)
            assert getattr(suggesting, name.upper()) == default
            if changed.get(name, default) is not None:
                assert getattr(found, name) == changed.get(name, default)
    (tmp_path / "recipe.toml").write_text(fragment(suggest(long, 512, 16), 512, "small"))
    found = load(str(tmp_path / "recipe.toml"), {"infer": InferSettings})["infer"]
    sides = [
        300 * level.factors(np.array([4000]), np.array([4000]))[0]
        for level in found.levels
        if level.range[0] <= np.sqrt(30 * 300) < level.range[1]
    ]
    assert max(sides) <= found.overlap < max(sides) + 32


def test_no_level_is_proposed_that_no_box_needs():
    levels = suggest(cars_and_a_few_ships(np.random.default_rng(0)), chip=512, stride=16).levels
    assert [level.factor for level in levels] == [2.0, 0.4]


@pytest.mark.parametrize(
    ("picture", "side"),
    [((500, 375), 300), ((640, 480), 300), ((512, 512), 512)],
)
def test_pictures_of_large_objects_are_shrunk_no_further_than_to_a_chip(picture, side):
    pictures, sides = np.full((20, 2), picture), np.full((20, 2), float(side))
    levels = suggest(placed(np.random.default_rng(0), pictures, sides), chip=512, stride=16).levels
    assert levels[-1] == Level((levels[-1].range[0], np.inf), long=512)
    assert (canvas_sizes(levels, *pictures[:1].T).max(axis=2) >= 512).all()


def test_small_pictures_are_enlarged_no_further_than_others():
    sides = np.full((20, 2), 25.0)
    annotations = placed(np.random.default_rng(0), np.full((20, 2), 32), sides)
    levels = suggest(annotations, chip=512, stride=16).levels
    assert levels == (Level((0.0, np.inf), factor=FINEST),)


@pytest.mark.parametrize("side", [60.0, 79.0, 80.0, 80.1, 97.3])
def test_boxes_of_one_size_need_one_level(side):
    annotations = placed(np.random.default_rng(0), np.full((50, 2), 1600), np.full((50, 2), side))
    (level,) = suggest(annotations, chip=512, stride=16).levels
    assert level.factor == pytest.approx(80 / side, rel=0.01)
    assert level.range == (0.0, np.inf)
