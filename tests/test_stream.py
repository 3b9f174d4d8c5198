import dataclasses
import json
import pickle
import zlib
from collections import Counter, deque
from pathlib import Path

import made_up
import numpy as np
import pyarrow.parquet as pq
import pytest
import simplejpeg
import test_s3
import torch
from test_pipeline import made_up_proposals

from chipgen import shards
from chipgen.__main__ import main
from chipgen.errors import Refusal
from chipgen.tables import read_table
from train import stream
from train.index import Index, find_sets, open_index
from train.order import Order, Planned
from train.stream import ChipReader, Loaded, Stream

# said where there are fewer cores than workers, which changes nothing here
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
SEED, BATCH = 3, 7
BOX_COLUMNS = ("boxes", "labels", "valid", "crowd", "cut")
server = test_s3.bucket  # a fixture


def write(folder: Path, *overrides: str) -> str:
    """Write positives and negatives of a made-up data set; gives the folder of the sets."""
    data, recipe = made_up.coco(folder / "data", 10), made_up.recipe(folder / "r.toml")
    annotations = data / "annotations/instances_train.json"
    content = json.loads(annotations.read_text())
    small = {"image_id": 1, "category_id": 3, "area": 64, "iscrowd": 0}
    content["annotations"] += [  # a chip with many boxes
        {"id": 9000 + i, "bbox": [12 * i % 48, 12 * (i // 4), 8, 8], **small} for i in range(16)
    ]
    annotations.write_text(json.dumps(content))
    pq.write_table(made_up_proposals(data), folder / "proposals.parquet")
    run, proposals = str(folder / "run"), str(folder / "proposals.parquet")
    settings = [part for one in overrides for part in ("--set", one)]
    assert main(["plan", run, "--data", str(data), "--recipe", str(recipe), *settings]) == 0
    assert main(["negatives", run, "--proposals", proposals]) == 0
    assert main(["write", run, "--workers", "1"]) == 0
    return f"{run}/shards"


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    return write(tmp_path_factory.mktemp("sets"))


@pytest.fixture(scope="module")
def index(sets):
    return open_index(find_sets(sets))


@pytest.fixture(scope="module")
def expected(sets):
    """Pixels and record of each sample by its key, read another way."""
    found = {}
    for folder in find_sets(sets):
        for key, jpg, chip in shards.read_samples(folder, read_table(folder, shards.INDEX)):
            found[key] = simplejpeg.decode_jpeg(jpg, "RGB"), chip
    return found


def loaded(
    index, rank=0, world=1, workers=0, place=(0, 0), epochs=1, batch=BATCH, broken="stop", holds=0
):
    reader = ChipReader(index, SEED, rank, world, broken)
    order = Order(index, batch, SEED)
    return Stream(reader, order, place, epochs, workers, pin=False, holds=holds)


def chips_of(index: Index, batch: Loaded) -> list[tuple]:
    """Take a batch apart into all that is known of each chip, without padding."""
    tensors = batch.batch()
    chips = []
    for i, row in enumerate(tensors.rows.tolist()):
        width, height = (int(side) for side in tensors.stored[i])
        real = tensors.labels[i] >= 0
        pixels = tensors.pixels[i, :height, :width].numpy().tobytes()
        of_boxes = [getattr(tensors, n)[i, real] for n in BOX_COLUMNS]
        names = ("stored", "scale", "offset", "window", "ranges", "draws")
        small = [getattr(tensors, name)[i] for name in names]
        told = tuple(str(one.tolist()) for one in of_boxes + small)
        chips.append((row, index.keys[row].as_py(), zlib.crc32(pixels), *told))
    return chips


def global_batches(index: Index, world: int = 1, workers: int = 0, **options) -> list[list]:
    """Give the batches of all processes together, in step, as chips and what was broken."""
    streams = [loaded(index, rank, world, workers, **options) for rank in range(world)]
    batches = []
    for parts in zip(*streams, strict=True):
        assert len({(part.planned.epoch, part.planned.number) for part in parts}) == 1
        chips = [chip for part in parts for chip in chips_of(index, part)]
        batches.append((chips, [reason for part in parts for reason in part.broken]))
    return batches


@pytest.fixture(scope="module")
def undisturbed(index):
    """Three epochs, read by one process without workers."""
    return global_batches(index, epochs=3)


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_batches_are_the_same_for_any_number_of_processes_and_workers(
    index, undisturbed, world, workers
):
    order = Order(index, BATCH, SEED)
    rows = [[chip[0] for chip in chips] for chips, _ in undisturbed]
    assert rows == [p.rows.tolist() for epoch in range(3) for p in order.epoch(epoch)]
    assert global_batches(index, world, workers, epochs=3) == undisturbed


def test_an_epoch_has_each_chip_of_its_round_once_but_for_less_than_a_batch(index):
    keys, columns = index.keys.to_pylist(), index.columns
    assert columns["rounds"].max() > 1
    for epoch in range(3):
        batches = global_batches(index, workers=1, place=(epoch, 0), epochs=epoch + 1)
        seen = Counter(chip[1] for chips, _ in batches for chip in chips)
        due = {keys[row] for row in np.flatnonzero(epoch % columns["rounds"] == columns["round"])}
        assert set(seen.values()) == {1}
        assert seen.keys() <= due
        assert len(due) - len(seen) < BATCH


@pytest.mark.parametrize("workers", [0, 1])
def test_one_shard_serves_four_processes(tmp_path, workers):
    one = open_index(
        find_sets(write(tmp_path, "shards.chips_per_shard=1000", "shards.shards_per_group=1"))[:1]
    )
    assert len(one.shards) == 1
    batches = global_batches(one, world=4, workers=workers)
    assert len(batches) == len(one) // BATCH
    assert batches == global_batches(one)


@pytest.mark.parametrize(("workers", "holds"), [(0, 0), (1, 0), (1, 2)])
def test_a_process_without_a_chip_in_the_batch_gets_an_empty_one(index, workers, holds):
    batches = global_batches(index, world=4, batch=2)
    assert batches == global_batches(index, batch=2)
    empty = next(iter(loaded(index, 0, 4, workers, batch=2, holds=holds))).batch()
    assert all(len(getattr(empty, f.name)) == 0 for f in dataclasses.fields(empty))
    assert empty.boxes.shape[1:] == (stream.BOXES, 4)
    assert empty.draws.shape[1:] == (stream.DRAWN,)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_begun_at_any_place_yields_exactly_the_rest(index, undisturbed, workers):
    order = Order(index, BATCH, SEED)
    places = [(e, n) for e in range(3) for n in range(order.length(e))]
    assert len(places) == len(undisturbed)
    chosen = range(len(places)) if workers == 0 else (1, order.length(0), len(places) - 1)
    for k in chosen:
        options = {"workers": workers, "place": places[k], "epochs": 3}
        assert global_batches(index, 2, **options) == undisturbed[k:]
    assert global_batches(index, workers=workers, place=(3, 0), epochs=3) == []


def test_a_stream_with_workers_may_be_left_early(index, undisturbed):
    first = next(iter(loaded(index, workers=2)))
    assert chips_of(index, first) == undisturbed[0][0]


@pytest.mark.parametrize("holds", [1, 2, 5])
@pytest.mark.parametrize("workers", [0, 1, 3])
def test_batches_stay_as_they_are_while_they_are_held(index, undisturbed, workers, holds):
    held = deque(maxlen=holds)
    batches = loaded(index, workers=workers, epochs=3, holds=holds)
    for batch, (chips, _) in zip(batches, undisturbed, strict=True):
        held.append((batch, chips))
        assert all(chips_of(index, one) == expected for one, expected in held)


def test_too_little_shared_memory_is_told_with_what_helps(index, monkeypatch):
    def too_little(_tensor):
        raise RuntimeError("unable to resize file </torch_1> to the right size: File too large")

    monkeypatch.setattr(torch.Tensor, "share_memory_", too_little)
    with pytest.raises(Refusal, match=r"cannot share .* MB .*File too large.*lower train\.workers"):
        loaded(index, workers=1, holds=1)


def test_batches_larger_than_what_was_set_aside_for_them_are_whole(index, monkeypatch):
    monkeypatch.setattr(stream, "MARGIN", -20)
    expected = global_batches(index, batch=1)
    sizes = [part.pixels.numel() for part in loaded(index, batch=1)]
    assert min(sizes) <= 76 * 76 * 3 < max(sizes)  # 76: chips of 96 px, and the margin
    assert global_batches(index, workers=1, batch=1, holds=2) == expected


def is_cut(chip, g):
    """Say whether a box of a chip goes on beyond it: nothing does beyond the picture."""
    (x, y, width, height), (x1, y1, x2, y2) = chip.window, chip.boxes[g]
    before = (x1 == 0 and x > 0) or (y1 == 0 and y > 0)
    after = (x2 == width and x + width != chip.canvas_size[0]) or (
        y2 == height and y + height != chip.canvas_size[1]
    )
    return (before or after) and not chip.valid[g]


def test_pixels_and_boxes_are_those_of_the_sample(index, expected):
    seen = cut = 0
    for part in loaded(index, workers=1, epochs=2):
        batch = part.batch()
        assert batch.pixels.dtype == torch.uint8
        for i, row in enumerate(batch.rows.tolist()):
            pixels, chip = expected[index.keys[row].as_py()]
            height, width = pixels.shape[:2]
            n = len(chip.boxes)
            high = np.inf if chip.valid_range[1] is None else chip.valid_range[1]
            assert torch.equal(batch.pixels[i, :height, :width], torch.from_numpy(pixels))
            for found, wanted in (
                (batch.stored, chip.stored_size),
                (batch.scale, chip.stored_scale),
                (batch.offset, chip.stored_offset),
                (batch.window, chip.window[2:]),
                (batch.ranges, (chip.valid_range[0], high)),
                (batch.boxes[:, :n].flatten(1), np.ravel(chip.boxes)),
            ):
                assert found.dtype == torch.float32
                assert found[i].tolist() == np.array(wanted, np.float32).tolist()
            assert batch.labels[i, :n].tolist() == chip.labels
            assert batch.valid[i, :n].tolist() == chip.valid
            assert batch.crowd[i, :n].tolist() == chip.crowd
            assert batch.cut[i, :n].tolist() == [is_cut(chip, g) for g in range(n)]
            cut += int(batch.cut[i].sum())
            seen += 1
    assert seen > 60
    assert cut > 20
    ends = [chip.valid_range[1] for _, chip in expected.values()]
    assert None in ends
    assert any(ends)


def test_boxes_are_padded_to_a_multiple_with_no_label(index, expected):
    padded = set()
    for part in loaded(index):
        batch = part.batch()
        counts = [len(expected[index.keys[row].as_py()][1].boxes) for row in batch.rows.tolist()]
        room = max(-(-max(counts) // stream.BOXES), 1) * stream.BOXES
        assert batch.boxes.shape == (BATCH, room, 4)
        for i, n in enumerate(counts):
            assert (batch.labels[i, n:] == -1).all()
            assert not (batch.valid[i, n:] | batch.crowd[i, n:] | batch.cut[i, n:]).any()
            assert not batch.boxes[i, n:].any()
        padded.add(room)
    assert len(padded) > 1


def test_chips_without_boxes_are_ordinary(index, expected):
    keys = index.keys.to_pylist()
    rows = np.array([row for row, key in enumerate(keys) if not expected[key][1].boxes])
    assert len(rows) > 2
    batch = ChipReader(index, SEED, 0, 1, "stop")[Planned(0, 0, rows, (96, 96))].batch()
    assert batch.boxes.shape == (len(rows), stream.BOXES, 4)
    assert (batch.labels == -1).all()


def test_draws_depend_on_seed_chip_and_epoch_alone(index):
    rows, some = np.arange(40), np.arange(39, 20, -1)

    def drawn(rows, epoch, seed=SEED):
        reader = ChipReader(index, seed, 0, 1, "stop")
        return reader[Planned(epoch, epoch + 4, rows, (96, 96))].arrays["draws"]

    first = drawn(rows, 0)
    assert first.shape == (40, stream.DRAWN)
    assert ((first >= 0) & (first < 1)).all()
    assert (drawn(some, 0) == first[some]).all()
    every = np.concatenate([first, drawn(rows, 1), drawn(rows, 2), drawn(rows, 0, SEED + 1)])
    assert len(np.unique(every)) == every.size


def test_a_reader_that_has_read_can_be_handed_to_another_process(index):
    reader = ChipReader(index, SEED, 0, 1, "stop")
    jpg, _ = reader.read(0)
    assert pickle.loads(pickle.dumps(reader)).read(0)[0] == jpg


@pytest.fixture(scope="module")
def remote(sets, server):
    """The sets in a bucket; a connection kept from an earlier server is given up."""
    from s3fs import S3FileSystem

    S3FileSystem.clear_instance_cache()
    for path in Path(sets).rglob("*.*"):
        name = f"stream/{path.relative_to(sets)}"
        server.put_object(Bucket="fovea", Key=name, Body=path.read_bytes())
    yield "s3://fovea/stream"
    S3FileSystem.clear_instance_cache()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bucket_gives_the_batches_of_the_folder(remote, undisturbed, workers):
    index = open_index(find_sets(remote))
    assert index.sets == ("s3://fovea/stream/positive", "s3://fovea/stream/negative")
    assert global_batches(index, workers=workers, epochs=3) == undisturbed
