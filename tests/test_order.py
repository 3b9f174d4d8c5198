import itertools
import json
import shutil

import numpy as np
import pyarrow as pa
import pytest
import reference_order
import test_pipeline
from test_shards import written

from chipgen import shards
from chipgen.__main__ import main
from chipgen.errors import Refusal
from chipgen.storage import LocalFolder, open_folder
from chipgen.tables import read_table
from train import order as order_module
from train.index import Index, find_sets, open_index
from train.order import CELL, Order, from_place, share


def made_up_index(count: int, chip_size: int | None = 96, rounds: int | np.ndarray = 1) -> Index:
    """An index without shards: windows of any size on three levels."""
    rng = np.random.default_rng(count)
    rounds = np.broadcast_to(np.asarray(rounds, np.int32), count)
    columns = {
        "level": rng.integers(0, 3, count).astype(np.int16),
        "width": rng.integers(1, 400, count).astype(np.int32),
        "height": rng.integers(1, 400, count).astype(np.int32),
        "round": (np.arange(count) % rounds).astype(np.int32),
        "rounds": rounds,
    }
    keys = pa.chunked_array([pa.array([f"key-{i}" for i in range(count)], pa.string())])
    places = np.zeros(count, np.int16)
    return Index(("made/up",), ("ant",), chip_size, keys, ["a.tar"], places, places, columns)


def rows_of(order: Order, epoch: int) -> list[list[int]]:
    return [planned.rows.tolist() for planned in order.epoch(epoch)]


def shapes_of(index: Index, rows: np.ndarray) -> set[tuple[int, bool]]:
    """Tell the levels and orientations of some rows."""
    columns = index.columns
    upright = columns["height"][rows] > columns["width"][rows]
    return set(zip(columns["level"][rows].tolist(), upright.tolist(), strict=True))


MIXED_ROUNDS = np.array([1] * 20 + [3] * 31)  # positives, and negatives in three rounds


@pytest.mark.parametrize("chip_size", [96, None])
def test_the_order_is_the_same_whoever_makes_it_and_whatever_was_asked_before(chip_size):
    one, other = (Order(made_up_index(300, chip_size), 8, seed=5) for _ in range(2))
    expected = {epoch: rows_of(one, epoch) for epoch in range(4)}
    for epoch in (3, 0, 2, 2, 1, 0):
        assert rows_of(other, epoch) == expected[epoch]


@pytest.mark.parametrize("chip_size", [96, None])
@pytest.mark.parametrize("rounds", [1, 3])
@pytest.mark.parametrize("part", [7, 100, order_module.PART])
def test_the_order_made_in_parts_is_that_of_the_plain_algorithm(
    monkeypatch, part, rounds, chip_size
):
    monkeypatch.setattr(order_module, "PART", part)
    index = made_up_index(1000, chip_size, rounds)
    for seed, batch in ((0, 1), (5, 8), (-1, 300)):
        order = Order(index, batch, seed)
        for epoch in range(4):
            expected = reference_order.epoch(index, batch, seed, epoch)
            found = [(p.rows.tolist(), p.canvas) for p in order.epoch(epoch)]
            assert found == [(rows.tolist(), canvas) for rows, canvas in expected]


@pytest.mark.parametrize("chip_size", [96, None])
def test_each_epoch_and_each_seed_has_an_order_of_its_own(chip_size):
    index = made_up_index(300, chip_size)
    orders = [rows_of(Order(index, 8, seed), e) for seed in (0, 1, -1, 2**40) for e in range(3)]
    distinct = {frozenset(batch) for order in orders for batch in order}
    assert len(distinct) == len(orders) * len(orders[0])  # no batch is made up the same twice
    for order in orders:
        flat = np.concatenate(order)
        assert abs(np.corrcoef(flat, np.arange(len(flat)))[0, 1]) < 0.2  # shuffled


@pytest.mark.parametrize("chip_size", [96, None])
@pytest.mark.parametrize(
    ("count", "batch"), [(1, 1), (7, 7), (7, 3), (13, 7), (100, 1), (100, 8), (1000, 128)]
)
def test_each_chip_of_an_epoch_comes_once_and_less_than_a_batch_is_left_out(
    count, batch, chip_size
):
    order = Order(made_up_index(count, chip_size), batch, seed=1)
    for epoch in range(3):
        batches = order.epoch(epoch)
        rows = np.concatenate([planned.rows for planned in batches])
        assert all(len(planned.rows) == batch for planned in batches)
        assert len(set(rows.tolist())) == len(rows)
        assert set(rows.tolist()) <= set(range(count))
        assert 0 <= count - len(rows) < batch
        assert [(p.epoch, p.number) for p in batches] == [(epoch, i) for i in range(len(batches))]
        assert order.length(epoch) == len(batches)


@pytest.mark.parametrize("chip_size", [96, None])
def test_no_chip_is_left_out_epoch_after_epoch(chip_size):
    index = made_up_index(31, chip_size)
    index.columns["level"][:] = np.arange(31) >= 28  # a level of few chips
    order = Order(index, 8, seed=1)
    seen = {row for epoch in range(30) for batch in rows_of(order, epoch) for row in batch}
    assert seen == set(range(31))


def test_a_negative_comes_in_the_epochs_of_its_round_and_in_no_other():
    order = Order(made_up_index(51, rounds=MIXED_ROUNDS), 1, seed=0)
    for epoch in range(7):
        rows = np.sort(np.concatenate(rows_of(order, epoch))).tolist()
        assert rows == [*range(20), *(r for r in range(20, 51) if r % 3 == epoch % 3)]


def test_length_is_that_of_the_epoch_also_where_epochs_differ():
    order = Order(made_up_index(51, rounds=MIXED_ROUNDS), 1, seed=0)
    assert [order.length(epoch) for epoch in range(6)] == [30, 30, 31] * 2
    assert [len(order.epoch(epoch)) for epoch in range(6)] == [30, 30, 31] * 2


def test_after_walks_through_every_batch_of_every_epoch():
    rounds = np.array([1] * 9 + [2, 1] * 4)  # rows 9, 11, 13, 15 come in odd epochs only
    order = Order(made_up_index(17, rounds=rounds), 2, seed=0)
    assert [order.length(epoch) for epoch in (0, 1)] == [6, 8]
    places = [(e, n) for e in range(4) for n in range(order.length(e))]
    place = (0, 0)
    for expected in places:
        assert place == expected
        epoch, number = place
        place = order.after(order.epoch(epoch)[number])
    assert place == (4, 0)


def test_from_any_place_exactly_the_rest_follows():
    index = made_up_index(30, rounds=np.array([1] * 20 + [3] * 10))
    whole = list(from_place(Order(index, 4, seed=2), 0, 0, epochs=3))
    told = [(p.epoch, p.number, p.rows.tolist(), p.canvas) for p in whole]
    for k, start in enumerate(whole):
        rest = from_place(Order(index, 4, seed=2), start.epoch, start.number, epochs=3)
        assert [(p.epoch, p.number, p.rows.tolist(), p.canvas) for p in rest] == told[k:]
    assert list(from_place(Order(index, 4, seed=2), 3, 0, epochs=3)) == []


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("batch", [1, 4, 6, 11])
def test_the_shares_of_all_processes_are_the_batch_in_its_order(batch, world):
    for planned in Order(made_up_index(40), batch, seed=3).epoch(0):
        shares = [share(planned, rank, world) for rank in range(world)]
        assert np.concatenate(shares).tolist() == planned.rows.tolist()
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_chips_of_one_size_have_the_canvas_of_that_size():
    index = made_up_index(100, chip_size=96)
    assert {planned.canvas for planned in Order(index, 8, seed=0).epoch(0)} == {(96, 96)}


@pytest.fixture(scope="module", params=["whole", "snip", "made up"])
def windows(request, tmp_path_factory):
    """An index of windows of any size."""
    if request.param == "made up":
        return made_up_index(1000, chip_size=None)
    options = {"strategy": request.param, "crop": 200}
    _, folder = written(tmp_path_factory.mktemp(request.param), pictures=20, **options)
    index = open_index([folder])
    assert index.chip_size is None
    return index


@pytest.mark.parametrize("batch", [2, 4, 7])
def test_batches_of_windows_have_one_level_and_orientation_but_for_the_rest(windows, batch):
    every = np.arange(len(windows))
    of_shape = {
        shape: sum(shapes_of(windows, every[i : i + 1]) == {shape} for i in every)
        for shape in shapes_of(windows, every)
    }
    batches = Order(windows, batch, seed=4).epoch(0)
    assert len(batches) == len(windows) // batch
    found = [shapes_of(windows, planned.rows) for planned in batches]
    for shape, count in of_shape.items():
        assert found.count({shape}) >= count // batch
    rest = sum(count % batch for count in of_shape.values())
    assert sum(len(shapes) > 1 for shapes in found) <= rest // batch


@pytest.mark.parametrize("batch", [1, 4])
def test_the_canvas_of_a_batch_holds_its_windows_and_is_no_larger_than_a_cell_more(windows, batch):
    for planned in Order(windows, batch, seed=4).epoch(1):
        for length, side in zip(planned.canvas, ("height", "width"), strict=True):
            largest = windows.columns[side][planned.rows].max()
            assert length % CELL == 0
            assert largest <= length < largest + CELL


def test_batches_of_different_shapes_take_turns():
    index = made_up_index(1000, chip_size=None)
    levels = [index.columns["level"][p.rows[0]] for p in Order(index, 4, seed=0).epoch(0)]
    changes = sum(a != b for a, b in itertools.pairwise(levels))
    assert changes > len(levels) / 3


def test_an_epoch_of_fewer_chips_than_a_batch_is_refused_and_says_what_to_change():
    order = Order(made_up_index(51, rounds=MIXED_ROUNDS), 31, seed=0)
    assert len(order.epoch(2)) == 1
    told = r"made/up: epoch 1 has 30 chips, fewer than one batch of 31; lower train\.batch"
    with pytest.raises(Refusal, match=told):
        order.epoch(1)
    with pytest.raises(Refusal, match="epoch 0 has 0 chips"):
        Order(made_up_index(0), 1, seed=0).epoch(0)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The shards of a run with negatives."""
    run = test_pipeline.planned(tmp_path_factory.mktemp("finished"), "run", pictures=10)
    assert main(["write", str(run), "--workers", "1"]) == 0
    return run / "shards"


@pytest.fixture
def copied(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "shards")
    return tmp_path / "shards"


def test_the_rows_of_a_joint_index_are_the_samples_of_all_sets(finished):
    sets = find_sets(str(finished))
    assert [one.path.name for one in sets] == ["positive", "negative"]
    index = open_index(sets)
    manifest = shards.read_manifest(sets[0])
    assert (index.classes, index.chip_size) == (tuple(manifest.classes), 96)
    row = 0
    for folder in sets:
        for expected in read_table(folder, shards.INDEX).to_pylist():
            assert index.sets[index.set_of[row]] == str(folder)
            assert index.shards[index.shard_of[row]] == expected["shard"]
            assert index.keys[row].as_py() == expected["key"]
            assert all(column[row] == expected[name] for name, column in index.columns.items())
            assert index.name(row) == f"{folder}/{expected['shard']}: sample {expected['key']}"
            row += 1
    assert row == len(index)
    assert index.columns["rounds"].max() > 1


def test_a_set_that_is_not_finished_is_refused_and_one_that_was_not_begun_is_not_missed(copied):
    (copied / "negative" / shards.MANIFEST).unlink()
    with pytest.raises(Refusal, match=r"negative: not finished .*write --kind negative"):
        find_sets(str(copied))
    assert [one.path.name for one in find_sets(str(copied), negatives=False)] == ["positive"]
    shutil.rmtree(copied / "negative")
    assert [one.path.name for one in find_sets(str(copied))] == ["positive"]
    (copied / "positive" / shards.MANIFEST).unlink()
    with pytest.raises(Refusal, match=r"shards: no finished set .*python -m chipgen write"):
        find_sets(str(copied))


@pytest.mark.parametrize("damage", ["gone", "flipped", "another set's"])
def test_an_index_that_is_not_the_manifests_is_refused(copied, damage):
    path = copied / "negative" / shards.INDEX
    data = path.read_bytes()
    path.unlink()
    if damage == "flipped":
        path.write_bytes(data[:2000] + bytes([data[2000] ^ 1]) + data[2001:])
    elif damage == "another set's":
        shutil.copy(copied / "positive" / shards.INDEX, path)
    with pytest.raises(Refusal, match=rf"{path}: (missing|damaged).*delete {path.parent}, and"):
        open_index(find_sets(str(copied)))


def change_manifest(folder: LocalFolder, change) -> None:
    manifest = json.loads(folder.read(shards.MANIFEST))
    change(manifest)
    manifest.pop("seal")
    folder.write(shards.MANIFEST, json.dumps(manifest).encode())


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda m: m["classes"].reverse(), "classes"),
        (lambda m: m["recipe"]["chips"].update(size=128), r"\[chips\] settings"),
        (lambda m: m["recipe"]["chips"]["levels"].pop(), r"\[chips\] settings"),
    ],
)
def test_sets_that_do_not_belong_together_are_refused(copied, change, told):
    change_manifest(open_folder(copied / "negative"), change)
    with pytest.raises(Refusal, match=rf"negative: its {told} differ from those of .*positive"):
        open_index(find_sets(str(copied)))
