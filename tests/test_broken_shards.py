"""Shards that are damaged, gone or made to mislead: what the stream does about them."""

import dataclasses
import os
import re
import shutil
import zlib
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import test_stream
from test_shards import written
from test_stream import BATCH, SEED, chips_of, global_batches, loaded

from chipgen.errors import Refusal
from train import stream
from train.index import Index, find_sets, open_index
from train.order import Order
from train.stream import ChipReader

sets, index, expected = test_stream.sets, test_stream.index, test_stream.expected  # fixtures
pytestmark = test_stream.pytestmark


@pytest.fixture
def own(sets, tmp_path):
    """The sets again, to be broken."""
    return Path(shutil.copytree(sets, tmp_path / "shards"))


def path_of(index: Index, row: int) -> Path:
    return Path(index.sets[index.set_of[row]]) / index.shards[index.shard_of[row]]


def rewrite(index: Index, row: int, change) -> int:
    """Change the bytes of a sample in place; gives their crc32."""
    path, start = path_of(index, row), index.columns["offset"][row]
    data, end = path.read_bytes(), start + index.columns["length"][row]
    changed = change(data[start:end])
    assert changed != data[start:end]
    path.write_bytes(data[:start] + changed + data[end:])
    return zlib.crc32(changed)


def flipped(data: bytes) -> bytes:
    return data[:700] + bytes([data[700] ^ 1]) + data[701:]


FAULTS = {
    "crc32": lambda index, row: rewrite(index, row, flipped),
    r"crc32|cut off": lambda index, row: os.truncate(
        path_of(index, row), index.columns["offset"][row] + 700
    ),
    "No such file": lambda index, row: path_of(index, row).unlink(),
}


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("told", FAULTS)
def test_damage_stops_the_run_and_names_shard_and_sample(own, told, workers):
    index = open_index(find_sets(str(own)))
    order = np.concatenate([planned.rows for planned in Order(index, BATCH, SEED).epoch(0)])
    victim = order[3 * BATCH + 2]
    FAULTS[told](index, victim)
    bad = index.shard_of == index.shard_of[victim]
    if told == "crc32":
        bad = np.arange(len(index)) == victim
    elif "cut off" in told:
        bad &= index.columns["offset"] >= index.columns["offset"][victim]
    first = np.flatnonzero(bad[order])[0]  # place in the order
    batches = iter(loaded(index, workers=workers))
    assert [next(batches).planned.number for _ in range(first // BATCH)] == [*range(first // BATCH)]
    with pytest.raises(Refusal, match=told) as caught:
        next(batches)
    assert str(caught.value).startswith(f"{index.name(order[first])}: ")
    assert "chipgen verify" in str(caught.value)
    assert "Traceback" not in str(caught.value)


@pytest.mark.parametrize(("world", "workers"), [(1, 0), (1, 1), (1, 3), (3, 0), (3, 2)])
def test_broken_samples_are_replaced_by_the_next_whole_one_and_listed(own, index, world, workers):
    damaged = open_index(find_sets(str(own)))
    broken = {4, 5, len(index) - 1}  # neighbours, and the last: the first stands in for it
    for row in broken:
        rewrite(damaged, row, flipped)
    path_of(damaged, 30).unlink()
    broken |= set(np.flatnonzero(damaged.shard_of == damaged.shard_of[30]).tolist())
    batches = global_batches(damaged, world, workers, epochs=3, broken="replace")
    order, whole, listed = Order(index, BATCH, SEED), ChipReader(index, SEED, 0, 1, "stop"), 0
    for planned, (chips, told) in zip(
        (planned for epoch in range(3) for planned in order.epoch(epoch)), batches, strict=True
    ):
        rows, tried = [], []
        for row in planned.rows.tolist():
            while row in broken:
                tried.append(row)
                row = (row + 1) % len(index)
            rows.append(row)
        assert chips == chips_of(index, whole[dataclasses.replace(planned, rows=np.array(rows))])
        for reason, row in zip(told, tried, strict=True):
            assert reason.startswith(f"{damaged.name(row)}: ")
        listed += len(told)
    assert listed > 2 * len(broken)


def test_too_many_broken_samples_in_a_row_stop_the_run(own):
    index = open_index(find_sets(str(own)))
    for path in {path_of(index, row) for row in range(stream.TRIES)}:
        path.unlink()
    with pytest.raises(Refusal, match=f"{stream.TRIES} samples in a row are broken"):
        list(loaded(index, broken="replace"))


def test_what_stands_in_for_a_broken_sample_fits_the_canvas(tmp_path):
    index = open_index([written(tmp_path, strategy="whole")[1]])
    sides = np.stack([index.columns["height"], index.columns["width"]], axis=1)
    order = Order(index, 4, SEED).epoch(0)
    for planned, row in ((batch, row) for batch in order for row in batch.rows):
        sound = path_of(index, row).read_bytes()
        rewrite(index, row, flipped)
        found = ChipReader(index, SEED, 0, 1, "replace")[planned]
        path_of(index, row).write_bytes(sound)
        assert len(found.broken) == 1
        assert (sides[found.arrays["rows"]] <= found.planned.canvas).all()


@pytest.mark.parametrize("workers", [0, 2])
def test_an_index_of_another_shard_is_noticed(own, workers):
    index = open_index(find_sets(str(own)))
    for name in ("offset", "length", "crc32"):
        index.columns[name] = np.concatenate([index.columns[name][[1, 0]], index.columns[name][2:]])
    told = f"{index.keys[0]}: the index is of another shard: sample {index.keys[1]} is there"
    with pytest.raises(Refusal, match=told):
        list(loaded(index, workers=workers, batch=1, epochs=3))


def sized(height: int, width: int):
    """Let the header of a JPEG claim a size."""

    def change(data: bytes) -> bytes:
        place = data.index(b"\xff\xc0") + 5
        sides = height.to_bytes(2, "big") + width.to_bytes(2, "big")
        return data[:place] + sides + data[place + 4 :]

    return change


def ended(data: bytes) -> bytes:
    """Let the pixels of a JPEG end after a few bytes."""
    place = data.index(b"\xff\xda") + 20
    return data[:place] + b"\xff\xd9" + data[place + 2 :]


def put(pattern: bytes, replacement: bytes):
    """Replace the first place of a record, leaving its length."""
    return lambda data: re.sub(
        pattern, lambda match: match.expand(replacement).ljust(len(match[0])), data, count=1
    )


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("change", "told"),
    [
        (sized(50, 95), r"the JPEG has 95x50 pixels, its record \d+x\d+"),
        (sized(65500, 65500), "the JPEG has 65500x65500 pixels"),
        (put(rb'"stored_size":\[\d\d', rb'"stored_size":[7'), r"its record 7x\d+"),
        (lambda data: data.replace(b"\xff\xd8\xff", b"GIF", 1), "JPEG"),
        (ended, "JPEG"),
        (lambda data: data.replace(b'{"picture_id"', b'{"picture-id"', 1), "picture_id"),
        (lambda data: bytes(512) + data[512:], "no tar header"),
        (put(rb'"labels":\[\d,', rb'"labels":['), "label"),
        (put(rb'"boxes":\[\[[\d.]+,', rb'"boxes":[['), "box"),
        (put(rb'"labels":\[\d', rb'"labels":[9'), "label"),  # of two classes
    ],
)
def test_a_sample_that_contradicts_itself_is_refused(own, expected, change, told, workers):
    index = open_index(find_sets(str(own)))
    keys = index.keys.to_pylist()
    row = next(row for row, key in enumerate(keys) if len(expected[key][1].boxes) > 1)
    index.columns["crc32"] = index.columns["crc32"].copy()
    index.columns["crc32"][row] = rewrite(index, row, change)
    with pytest.raises(Refusal, match=told) as caught:
        list(loaded(index, workers=workers, epochs=2))
    assert str(caught.value).startswith(f"{index.name(row)}: ")


def test_a_chip_of_too_many_pixels_is_refused_before_it_is_decoded(index, monkeypatch):
    monkeypatch.setattr(stream, "MAX_PIXELS", 95)
    monkeypatch.setattr(simplejpeg, "decode_jpeg", None)
    with pytest.raises(Refusal, match="pixels, more than a chip may have"):
        list(loaded(index))
