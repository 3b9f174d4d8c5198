"""The mapped index: one file for all who read, made anew where it is not whole."""

import dataclasses
import multiprocessing
import pickle
import tempfile
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import msgspec
import numpy as np
import pytest
import test_order
from torch.utils.data import DataLoader, Dataset

from chipgen import shards
from chipgen.errors import Refusal
from chipgen.sealed import sealed
from chipgen.storage import digest_of
from chipgen.tables import read_table, table_bytes
from train import index as index_module
from train.index import Index, find_sets, open_index

finished, copied = test_order.finished, test_order.copied  # fixtures


def arrays_of(index: Index) -> list[np.ndarray]:
    keys = [np.frombuffer(buffer, np.uint8) for buffer in index.keys.buffers()[1:]]
    return [index.set_of, index.shard_of, *index.columns.values(), *keys]


def is_mapped(index: Index) -> bool:
    """Say whether every array lies in this process's mapping of the index's file."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    mapped = [line.split()[0].split("-") for line in lines if line.endswith(index.path)]
    spans = [(int(first, 16), int(last, 16)) for first, last in mapped]
    return all(
        any(first <= array.ctypes.data <= last - array.nbytes for first, last in spans)
        for array in arrays_of(index)
    )


def alike(one: Index, other: Index) -> bool:
    pairs = zip(arrays_of(one), arrays_of(other), strict=True)
    same = all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in pairs)
    about = ("sets", "classes", "chip_size", "shards")
    return same and all(getattr(one, name) == getattr(other, name) for name in about)


class _Asked(Dataset):
    """Says in a loader's worker whether its index is the mapped file."""

    def __init__(self, index: Index):
        self.index = index

    def __len__(self) -> int:
        return 2

    def __getitem__(self, _: int) -> bool:
        return is_mapped(self.index)


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_of_a_loader_look_at_the_one_file(copied, context):
    index = open_index(find_sets(str(copied)))
    assert is_mapped(index)
    loader = DataLoader(
        _Asked(index), batch_size=None, num_workers=2, multiprocessing_context=context
    )
    assert list(loader) == [True, True]


def test_only_the_name_of_the_file_goes_to_another_process(copied):
    index = open_index(find_sets(str(copied)))
    sent = pickle.dumps(index)
    assert len(sent) < 1000
    assert index.keys[0].as_py().encode() not in sent
    back = pickle.loads(sent)
    assert alike(back, index)
    assert is_mapped(back)


def test_a_part_of_an_index_is_sent_as_that_part(copied):
    index = open_index(find_sets(str(copied)))
    part = dataclasses.replace(index, set_of=index.set_of[:3])
    assert len(pickle.loads(pickle.dumps(part))) == 3


def test_the_file_is_made_once_however_many_come_at_a_time(copied, monkeypatch):
    write, written, start = index_module._write, [], threading.Barrier(6)

    def counted(*arguments) -> None:
        written.append(1)
        write(*arguments)

    def opened(_: int) -> Index:
        start.wait()
        return open_index(find_sets(str(copied)))

    monkeypatch.setattr(index_module, "_write", counted)
    with ThreadPoolExecutor(6) as pool:
        first, *others = pool.map(opened, range(6))
    assert len(written) == 1
    assert all(alike(first, other) for other in others)
    assert [path for path in copied.iterdir() if path.name.endswith(".tmp")] == []


def test_processes_that_come_at_a_time_have_the_same(copied):
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(3, mp_context=context) as pool:
        found = list(pool.map(open_index, [find_sets(str(copied))] * 3))
    assert all(alike(found[0], other) for other in found)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-1],
        lambda data: data[:10],
        lambda data: b"",
        lambda data: data + b"\0",
        lambda data: bytes(64) + data[64:],
        lambda data: data[:8] + b"\xff" + data[9:],
    ],
)
def test_a_file_that_is_not_whole_is_made_anew(copied, damage):
    index = open_index(find_sets(str(copied)))
    path = Path(index.path)
    whole = path.read_bytes()
    expected = [array.copy() for array in arrays_of(index)]
    path.unlink()  # its old content stays mapped
    path.write_bytes(damage(whole))
    again = open_index(find_sets(str(copied)))
    assert path.read_bytes() == whole
    assert all(np.array_equal(a, b) for a, b in zip(arrays_of(again), expected, strict=True))


def test_what_a_killed_process_left_is_written_over(copied):
    first = Path(open_index(find_sets(str(copied))).path)
    whole = first.read_bytes()
    first.rename(first.with_name(f".{first.name}.tmp"))
    with first.with_name(f".{first.name}.tmp").open("ab") as file:
        file.write(b"more than there will be")
    assert Path(open_index(find_sets(str(copied))).path).read_bytes() == whole


def test_the_rows_do_not_depend_on_how_many_are_laid_out_at_a_time(copied, monkeypatch):
    expected = open_index(find_sets(str(copied)))
    whole = Path(expected.path).read_bytes()
    Path(expected.path).unlink()
    monkeypatch.setattr(index_module, "ROWS", 7)
    assert Path(open_index(find_sets(str(copied))).path).read_bytes() == whole


def rewrite(folder, table):
    """Write another index for a set, as the set's own."""
    folder.write(shards.INDEX, table_bytes(table))
    manifest = shards.read_manifest(folder)
    own = digest_of(folder, shards.INDEX)
    folder.write(shards.MANIFEST, sealed(msgspec.structs.replace(manifest, index_sha256=own)))


def test_an_index_that_is_written_anew_is_not_mistaken_for_the_old_one(copied):
    sets = find_sets(str(copied))
    before = open_index(sets)
    table = read_table(sets[0], shards.INDEX)
    rewrite(sets[0], table.slice(1))
    assert len(open_index(sets)) == len(before) - 1


def test_where_the_folder_of_shards_cannot_be_written_the_file_is_a_temporary_one(
    copied, tmp_path, monkeypatch
):
    expected = open_index(find_sets(str(copied)))
    beside = Path(expected.path)
    beside.unlink()
    (copied / f".{beside.name}.tmp").mkdir()  # as good as a read-only folder, and so for root too
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    index = open_index(find_sets(str(copied)))
    assert Path(index.path).parent.parent == tmp_path
    assert Path(index.path).parent.stat().st_mode & 0o77 == 0
    assert alike(index, expected)
    Path(index.path).parent.chmod(0o777)  # others could have put a file there
    with pytest.raises(Refusal, match="no place for a mapped copy of its index"):
        open_index(find_sets(str(copied)))


def test_empty_fields_are_refused(copied):
    sets = find_sets(str(copied))
    table = read_table(sets[0], shards.INDEX)
    rows = table.to_pylist()
    rows[0]["offset"] = None
    rewrite(sets[0], type(table).from_pylist(rows, schema=table.schema))
    with pytest.raises(Refusal, match="has empty fields"):
        open_index(sets)


def test_sets_without_samples_make_an_empty_index(copied):
    sets = find_sets(str(copied))[:1]
    empty = shards.INDEX_SCHEMA.empty_table()
    rewrite(sets[0], empty)
    index = open_index(sets)
    assert len(index) == 0
    assert len(index.keys) == 0
