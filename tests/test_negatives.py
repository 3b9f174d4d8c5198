import math
import re

import numpy as np
import pyarrow as pa
import pytest
import reference

from chipgen.errors import Refusal
from chipgen.negatives import PROPOSALS, NegativeSettings, mine, sort
from chipgen.plan import CHIPS, ChipSettings, plan
from chipgen.pyramid import Level

LEVELS = (
    Level((0.0, 12.0), factor=3.0),
    Level((6.0, 30.0), factor=1.667),
    Level((24.0, math.inf), long=64),
)
CHIP = ChipSettings(levels=LEVELS, size=64, stride=8)
WHOLE = ChipSettings("whole", levels=LEVELS)
SNIP = ChipSettings("snip", levels=LEVELS, crop=100)


def make_proposals(ids, boxes, scores=None):
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    columns = {
        "picture_id": pa.array(np.array(ids, np.int64)),
        "level": pa.array(np.zeros(len(boxes), np.int16)),
        **{name: pa.array(boxes[:, k]) for k, name in enumerate(("x1", "y1", "x2", "y2"))},
        "score": pa.array(np.ones(len(boxes)) if scores is None else scores, pa.float32()),
    }
    return pa.table(columns)


def random_proposals(annotations, seed, most=60):
    """Proposals in heaps, in no order, with some that are broken or of unknown pictures."""
    rng = np.random.default_rng(seed)
    ids, boxes = [], []
    for picture_id, size in zip(
        annotations.picture_ids.tolist(), reference.picture_sizes(annotations), strict=True
    ):
        drawn = reference.random_boxes(rng, int(rng.integers(0, most)), *size, 40)
        broken = rng.random(drawn.shape) < 0.01
        drawn[broken] = rng.choice([np.nan, np.inf, -np.inf, 1e30, -1e30], broken.sum())
        boxes.append(drawn)
        ids += [picture_id] * len(drawn)
    boxes = np.concatenate(boxes)
    ids = np.where(rng.random(len(ids)) < 0.02, 10**12, ids)
    order = rng.permutation(len(ids))
    return make_proposals(ids[order], boxes[order], rng.random(len(ids)))


def tuples(proposals, min_score=0.0):
    """Proposals as the reference takes them."""
    kept = proposals.filter(pa.array(proposals["score"].to_numpy() >= min_score))
    return list(
        zip(*(kept[n].to_pylist() for n in ("picture_id", "x1", "y1", "x2", "y2")), strict=True)
    )


def reorder(table, seed):
    return table.take(np.random.default_rng(seed).permutation(table.num_rows))


@pytest.fixture(scope="module")
def annotations():
    return reference.random_annotations(seed=2, pictures=120)


@pytest.fixture(scope="module")
def positives(annotations):
    return plan(annotations, CHIP)


@pytest.fixture(scope="module")
def proposals(annotations):
    return random_proposals(annotations, seed=2)


@pytest.mark.parametrize("minimum", [1, 2, 3, 10])
@pytest.mark.parametrize("seed", [0, 1])
def test_pool_is_that_of_the_reference(minimum, seed):
    annotations = reference.random_annotations(seed, pictures=80)
    positives = plan(annotations, CHIP)
    proposals = random_proposals(annotations, seed)
    pool = mine(annotations, positives, proposals, CHIP, NegativeSettings(minimum))
    found = reference.plan_rows(pool)
    expected = reference.mine(
        annotations, reference.plan_rows(positives), tuples(proposals), CHIP, minimum
    )
    assert set(found) == expected
    assert len(found) == len(expected)
    assert len({row[:2] for row in expected}) > 100 / minimum  # pictures and levels


def test_proposals_below_the_minimal_score_are_not_looked_at(annotations, positives, proposals):
    found = mine(annotations, positives, proposals, CHIP, NegativeSettings(2, min_score=0.6))
    rows = reference.plan_rows(positives)
    few, all_of_them = (
        reference.mine(annotations, rows, tuples(proposals, score), CHIP, 2) for score in (0.6, 0)
    )
    assert set(reference.plan_rows(found)) == few
    assert few != all_of_them


def test_a_proposal_without_a_score_is_not_looked_at():
    annotations = reference.make_annotations([(200, 200)], [[(0, 0, 5, 5)]])
    proposals = make_proposals([0], [(150, 150, 155, 155)], np.array([np.nan]))
    found = mine(annotations, plan(annotations, CHIP), proposals, CHIP, NegativeSettings(1))
    assert found.num_rows == 0


def test_only_the_first_variant_of_the_positives_keeps_proposals_out(annotations, proposals):
    variants = ChipSettings(levels=LEVELS, size=64, stride=8, variants=3)
    one, three = plan(annotations, CHIP), plan(annotations, variants)
    settings = NegativeSettings(2)
    found = mine(annotations, three, proposals, variants, settings)
    assert found.equals(mine(annotations, one, proposals, CHIP, settings))


def test_the_level_of_a_proposal_is_not_asked(annotations, positives, proposals):
    place = proposals.column_names.index("level")
    other = proposals.set_column(place, "level", pa.array([7] * proposals.num_rows))
    results = [
        mine(annotations, positives, p, CHIP, NegativeSettings()) for p in (proposals, other)
    ]
    assert results[0].equals(results[1])


@pytest.mark.parametrize("minimum", [1, 3])
def test_the_order_of_the_proposals_does_not_matter(annotations, positives, proposals, minimum):
    settings = NegativeSettings(minimum)
    first = mine(annotations, positives, proposals, CHIP, settings)
    for seed in range(3):
        again = mine(annotations, positives, reorder(proposals, seed), CHIP, settings)
        assert again.equals(first)


def test_the_order_of_proposals_between_the_grid_positions_does_not_matter():
    annotations = reference.make_annotations([(300, 300)], [[(200, 200, 205, 205)]])
    levels = (Level(factor=1.0),)
    chips = ChipSettings(levels=levels, size=64, stride=8)
    boxes = [(3, 3, 65, 65), (4, 3, 66, 65)]  # held from 1 to 3, and from 2 to 4
    first, second = (
        mine(
            annotations,
            plan(annotations, chips),
            make_proposals([0, 0], b),
            chips,
            NegativeSettings(1),
        )
        for b in (boxes, boxes[::-1])
    )
    assert first.num_rows == second.num_rows == 1
    assert first.equals(second)


def rounds_together_and_alone(annotations, positives, proposals):
    """For some pictures, the rows (round, level, x, y) mined with all others, and without."""
    names = ("round", "level", "x", "y")
    settings = NegativeSettings(1)
    together = mine(annotations, positives, proposals, CHIP, settings)
    for p in range(0, 120, 5):
        one = annotations.take(np.array([p]))
        of_one = proposals["picture_id"].to_numpy() == one.picture_ids[0]
        alone = mine(one, plan(one, CHIP), proposals.filter(pa.array(of_one)), CHIP, settings)
        rows = together.filter(pa.array(together["picture"].to_numpy() == p))
        yield tuple(
            list(zip(*(table[name].to_pylist() for name in names), strict=True))
            for table in (rows, alone)
        )


def test_a_picture_has_the_same_pool_alone_as_among_others(annotations, positives, proposals):
    for together, alone in rounds_together_and_alone(annotations, positives, proposals):
        assert sorted(row[1:] for row in together) == sorted(row[1:] for row in alone)


def test_a_picture_has_the_same_rounds_alone_as_among_others(annotations, positives, proposals):
    for together, alone in rounds_together_and_alone(annotations, positives, proposals):
        assert together == alone


def test_chunked_proposals_with_columns_of_their_own_are_the_same(
    annotations, positives, proposals
):
    parts = [proposals.slice(0, 100), proposals.slice(100, 0), proposals.slice(100)]
    names = [*proposals.column_names[::-1]]
    chunked = pa.concat_tables(parts).select(names).append_column("note", proposals["x1"])
    first = mine(annotations, positives, proposals, CHIP, NegativeSettings(2))
    assert mine(annotations, positives, chunked, CHIP, NegativeSettings(2)).equals(first)


def test_no_negative_chip_is_mined_where_positive_chips_hold_all_proposals(annotations, positives):
    boxes = annotations.boxes[~annotations.crowd]
    ids = annotations.picture_ids[annotations.picture_of_box[~annotations.crowd]]
    proposals = make_proposals(ids, boxes)
    with_them, without = (
        mine(annotations, positives, p, CHIP, NegativeSettings(1)) for p in (proposals, None)
    )
    assert with_them.equals(without)


def test_a_chip_needs_the_minimum_of_proposals():
    annotations = reference.make_annotations([(300, 300)], [[(0, 0, 5, 5)]])
    positives = plan(annotations, CHIP)
    heap = [(200 + i, 200, 205 + i, 205) for i in range(4)]  # only the first level wants them
    for minimum, count in [(1, 1), (4, 1), (5, 0)]:
        proposals = make_proposals([0] * 4, heap)
        pool = mine(annotations, positives, proposals, CHIP, NegativeSettings(minimum))
        assert pool["level"].to_pylist() == [0] * count
        for _, _, x, y, width, height in reference.plan_rows(pool):
            assert x <= 600 <= 624 <= x + width
            assert y <= 600 <= 615 <= y + height


def test_proposals_in_the_positive_chip_of_another_level_count():
    annotations = reference.make_annotations([(64, 64)], [[(0, 0, 50, 50)]])
    positives = plan(annotations, CHIP)
    assert positives["level"].to_pylist() == [2]
    proposals = make_proposals([0] * 3, [(i, i, i + 5, i + 5) for i in (30, 31, 32)])
    pool = mine(annotations, positives, proposals, CHIP, NegativeSettings(3))
    assert pool["level"].to_pylist() == [0]


@pytest.mark.parametrize("per_picture", [1, 2, 3, 100])
def test_pool_is_dealt_out_in_rounds(annotations, positives, proposals, per_picture):
    settings = NegativeSettings(1, per_picture)
    pool = mine(annotations, positives, proposals, CHIP, settings)
    assert pool.schema == CHIPS
    rows = reference.plan_rows(pool)
    assert len(set(rows)) == len(rows)
    assert [row[0] for row in rows] == sorted(row[0] for row in rows)
    several = 0
    for p in sorted({row[0] for row in rows}):
        of_picture = [row for row in pool.to_pylist() if row["picture"] == p]
        rounds = math.ceil(len(of_picture) / per_picture)
        assert {row["rounds"] for row in of_picture} == {rounds}
        turns = [row["round"] for row in of_picture]
        assert turns == sorted(turns)
        sizes = [turns.count(turn) for turn in range(rounds)]
        assert sum(sizes) == len(of_picture)
        assert sizes[:-1] == [per_picture] * (rounds - 1)
        assert 1 <= sizes[-1] <= per_picture
        several += rounds > 1
    assert (several > 20) == (per_picture < 100)


def test_rounds_hold_the_same_pool_whatever_their_size_and_the_seed(
    annotations, positives, proposals
):
    def pool(seed, per_picture):
        chips = ChipSettings(levels=LEVELS, size=64, stride=8, seed=seed)
        settings = NegativeSettings(1, per_picture)
        return mine(annotations, positives, proposals, chips, settings)

    first = pool(0, 1)
    assert first.equals(pool(0, 1))
    assert reference.plan_rows(first) == reference.plan_rows(pool(0, 2))
    other = pool(1, 1)
    assert reference.plan_rows(first) != reference.plan_rows(other)
    assert set(reference.plan_rows(first)) == set(reference.plan_rows(other))


def test_rounds_mix_the_levels_and_the_parts_of_a_picture(annotations, positives, proposals):
    rows = reference.plan_rows(mine(annotations, positives, proposals, CHIP, NegativeSettings(1)))
    pictures = {row[0] for row in rows}
    in_order = [p for p in pictures if (of := [r for r in rows if r[0] == p]) == sorted(of)]
    assert len(in_order) < len(pictures) / 2


def test_table_names_pictures_canvases_and_the_content_of_each_chip(
    annotations, positives, proposals
):
    sizes = reference.picture_sizes(annotations)
    for row in mine(annotations, positives, proposals, CHIP, NegativeSettings(1)).to_pylist():
        canvas = reference.canvas_of(LEVELS[row["level"]], *sizes[row["picture"]])
        assert (row["canvas_width"], row["canvas_height"]) == canvas
        window = row["x"], row["y"], row["width"], row["height"]
        assert window == reference.content(*window[:2], canvas, 64)
        assert min(window[:2]) >= 0
        assert min(window[2:]) > 0
        assert row["picture_id"] == annotations.picture_ids[row["picture"]]


@pytest.mark.parametrize("crowds", [0, 2])
@pytest.mark.parametrize("size", [(300, 200), (40, 90), (3, 1000), (64, 64), (1, 1)])
def test_picture_without_boxes_yields_one_negative_chip(size, crowds):
    boxes = [(0, 0, 1, 1)] * crowds
    annotations = reference.make_annotations([size], [boxes], [True] * crowds, ids=[77])
    levels = Level((0.0, 80.0), factor=3.0), Level((32.0, 150.0), factor=0.5)
    chips = ChipSettings(levels=levels, size=64, stride=8)
    pool = mine(annotations, plan(annotations, chips), None, chips, NegativeSettings())
    [row] = pool.to_pylist()
    canvas = reference.canvas_of(levels[1], *size)
    assert (row["picture_id"], row["level"], row["round"], row["rounds"]) == (77, 1, 0, 1)
    assert (row["width"], row["height"]) == tuple(min(side, 64) for side in canvas)
    assert abs(2 * row["x"] + row["width"] - canvas[0]) <= 1
    assert abs(2 * row["y"] + row["height"] - canvas[1]) <= 1


def test_picture_without_boxes_yields_its_chip_once_when_it_is_mined_too():
    annotations = reference.make_annotations([(100, 64)], [[]])
    levels = (Level((0.0, 80.0), factor=1.0),)
    chips = ChipSettings(levels=levels, size=64, stride=9)
    proposals = make_proposals([0] * 2, [(47, 30, 53, 34), (45, 30, 55, 34)])
    pool = mine(annotations, plan(annotations, chips), proposals, chips, NegativeSettings(2))
    assert reference.plan_rows(pool) == [(0, 0, 18, 0, 64, 64)]


@pytest.mark.parametrize("chips", [SNIP, WHOLE], ids=lambda s: s.strategy)
def test_picture_without_boxes_yields_its_coarsest_canvas_where_canvases_are_whole(chips):
    annotations = reference.make_annotations([(90, 50), (80, 80)], [[], [(1, 1, 9, 9)]])
    pool = mine(annotations, plan(annotations, chips), None, chips, NegativeSettings())
    assert reference.plan_rows(pool) == [(0, 2, 0, 0, 64, 36)]


def test_without_proposals_only_pictures_without_boxes_are_negatives(annotations, positives):
    pool = mine(annotations, positives, None, CHIP, NegativeSettings())
    expected = reference.mine(annotations, reference.plan_rows(positives), [], CHIP, 1)
    assert set(reference.plan_rows(pool)) == expected
    assert len(expected) > 20
    nothing = make_proposals([], [])
    assert mine(annotations, positives, nothing, CHIP, NegativeSettings()).equals(pool)


def test_every_picture_is_positive_or_negative(annotations, positives):
    pool = mine(annotations, positives, None, CHIP, NegativeSettings())
    both = positives["picture"].to_pylist(), pool["picture"].to_pylist()
    assert set(both[0]).isdisjoint(both[1])
    assert set(both[0]) | set(both[1]) == set(range(len(annotations.widths)))


@pytest.mark.parametrize("proposals", [None, make_proposals([], [])])
def test_no_pictures_give_no_negatives(proposals):
    annotations = reference.make_annotations([], [])
    pool = mine(annotations, plan(annotations, CHIP), proposals, CHIP, NegativeSettings())
    assert pool.schema == CHIPS
    assert pool.num_rows == 0


def test_proposals_are_refused_where_there_are_no_pictures():
    annotations = reference.make_annotations([], [])
    proposals = make_proposals([1], [(0, 0, 5, 5)])
    with pytest.raises(Refusal, match="made from other data"):
        mine(annotations, plan(annotations, CHIP), proposals, CHIP, NegativeSettings())


@pytest.mark.parametrize("name", PROPOSALS)
def test_proposals_without_a_column_are_refused(annotations, positives, proposals, name):
    lacking = proposals.drop_columns(name)
    with pytest.raises(Refusal, match=f"no column {name};"):
        mine(annotations, positives, lacking, CHIP, NegativeSettings())


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("picture_id", pa.array(["1"])),
        ("picture_id", pa.array([True])),
        ("picture_id", pa.array([b"1"])),
        ("level", pa.array([None])),
        ("x1", pa.array([[1.0, 2.0, 3.0, 4.0]])),
        ("y2", pa.array([{"y": 1}])),
        ("score", pa.array(["0.5"])),
        ("score", pa.array(["0.5"]).dictionary_encode()),
    ],
)
def test_a_column_of_proposals_that_holds_no_numbers_is_refused(name, column):
    annotations = reference.make_annotations([(50, 40)], [[]], ids=[1])
    table = make_proposals([1], [(0, 0, 5, 5)])
    odd = table.set_column(table.column_names.index(name), name, column)
    with pytest.raises(Refusal, match=rf"column {name} is of {re.escape(str(column.type))};"):
        sort(annotations, odd, 0.0)


def test_a_column_of_proposals_that_is_there_twice_is_refused():
    annotations = reference.make_annotations([(50, 40)], [[]], ids=[1])
    table = make_proposals([1], [(0, 0, 5, 5)])
    twice = table.append_column("score", table["score"])
    with pytest.raises(Refusal, match="more than one column score"):
        sort(annotations, twice, 0.0)


@pytest.mark.parametrize("kind", [pa.int32(), pa.uint16(), pa.float64()])
def test_picture_ids_of_proposals_may_be_any_kind_of_number(kind):
    annotations = reference.make_annotations([(50, 40)], [[]], ids=[1])
    table = make_proposals([1], [(0, 0, 5, 5)])
    cast = table.set_column(0, "picture_id", table["picture_id"].cast(kind))
    assert sort(annotations, cast, 0.0).boxes.tolist() == [[0, 0, 5, 5]]


def test_proposals_of_other_pictures_are_refused(annotations, positives):
    strangers = make_proposals([10**6, -1], [(0, 0, 5, 5)] * 2)
    with pytest.raises(Refusal, match="made from other data"):
        mine(annotations, positives, strangers, CHIP, NegativeSettings())


@pytest.mark.parametrize("chips", [SNIP, WHOLE], ids=lambda s: s.strategy)
def test_proposals_are_refused_by_strategies_that_train_on_whole_canvases(annotations, chips):
    proposals = make_proposals(annotations.picture_ids[:1], [(0, 0, 5, 5)])
    with pytest.raises(Refusal, match=f"'{chips.strategy}'.*'sniper'"):
        mine(annotations, plan(annotations, chips), proposals, chips, NegativeSettings())


def test_sorted_proposals_lie_in_their_pictures_in_the_order_of_the_pictures():
    annotations = reference.make_annotations(
        [(50, 40), (30, 20), (9, 9)], [[], [], []], ids=[8, 3, 5]
    )
    boxes = [(-5, 10, 60, 20), (1, 1, 2, 2), (3, 3, 99, 99), (50, 0, 60, 10), (4, 4, 4, 9)]
    found = sort(annotations, make_proposals([8, 3, 3, 8, 8], boxes), 0.0)
    assert found.offsets.tolist() == [0, 1, 3, 3]
    assert found.boxes.tolist() == [[0, 10, 50, 20], [1, 1, 2, 2], [3, 3, 30, 20]]
    assert found.boxes.dtype == np.float32


@pytest.mark.parametrize("name", ["min_proposals", "per_picture"])
def test_settings_below_one_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} = 0 must be at least 1"):
        NegativeSettings(**{name: 0})
