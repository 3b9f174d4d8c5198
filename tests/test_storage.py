import errno
import os
import shutil

import numpy as np
import pyarrow as pa
import pytest

from chipgen.errors import PictureError, Refusal
from chipgen.storage import LocalFolder, open_folder, read_listed_picture, writing
from chipgen.tables import open_table, read_table, table_bytes


def _inside_create(target):
    return LocalFolder(target.parent).create(target.name)


@pytest.fixture
def folder(tmp_path):
    made = LocalFolder(tmp_path)
    made.write("some.bin", b"some bytes")
    return made


def test_a_read_that_fails_on_an_open_file_names_it(folder, monkeypatch):
    def broken(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))  # as the kernel tells it: without a name

    monkeypatch.setattr(os, "pread", broken)
    with pytest.raises(OSError, match=r"some\.bin"):
        folder.read("some.bin")


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EROFS])
def test_a_write_that_fails_names_its_file_and_leaves_the_old_one(
    folder, monkeypatch, number, call
):
    def broken(*names):
        raise OSError(number, os.strerror(number), *(names if call == "replace" else ()))

    monkeypatch.setattr(os, call, broken)
    with pytest.raises((OSError, Refusal), match=rf"{folder}/some\.bin") as told:
        folder.write("some.bin", b"others")
    assert "->" not in str(told.value)
    monkeypatch.undo()
    assert folder.read("some.bin") == b"some bytes"
    assert folder.names() == ["some.bin"]


def test_a_flipped_bit_in_the_values_of_a_table_is_refused_with_the_file(tmp_path):
    values = np.random.default_rng(0).random(4000)
    data = table_bytes(pa.table({"x": values}))
    for place in np.random.default_rng(1).integers(1000, 20_000, 20).tolist():
        (tmp_path / "x.parquet").write_bytes(
            data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :]
        )
        with pytest.raises(Refusal, match=r"x\.parquet: damaged"):
            read_table(open_folder(tmp_path), "x.parquet")


def test_a_table_that_is_cut_off_is_refused_with_the_file(tmp_path):
    data = table_bytes(pa.table({"x": np.arange(100)}))
    for size in (0, 3, 100, len(data) - 1):
        (tmp_path / "x.parquet").write_bytes(data[:size])
        with pytest.raises(Refusal, match=r"x\.parquet: damaged"):
            read_table(open_folder(tmp_path), "x.parquet")


@pytest.mark.parametrize(
    "read",
    [
        lambda table: [table.read_row_group(group) for group in range(table.num_row_groups)],
        lambda table: table.read_row_groups([0, 1]),
        lambda table: list(table.iter_batches()),
    ],
    ids=["one group", "groups", "batches"],
)
def test_damage_met_while_another_file_is_written_is_told_of_the_damaged_one(folder, read):
    data = table_bytes(pa.table({"x": np.random.default_rng(0).random(10_000)}))
    place = len(data) // 2
    flipped = data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :]
    folder.write("x.parquet", flipped)
    table = open_table(folder, "x.parquet")
    with pytest.raises(Refusal, match=r"x\.parquet: damaged"), folder.create("other.bin"):
        read(table)


@pytest.mark.parametrize("attempt", [writing, _inside_create])
def test_an_error_without_a_number_is_not_one_of_writing(tmp_path, attempt):
    with pytest.raises(OSError, match=r"^said by a library$"), attempt(tmp_path / "some.bin"):
        raise OSError("said by a library")


def test_a_file_that_another_run_is_writing_is_refused_and_stays_that_runs(tmp_path, monkeypatch):
    sync = os.fsync
    seen = []

    def second_run(handle):
        if not seen:
            seen.append(handle)
            with pytest.raises(Refusal, match=r"some\.bin: another run is writing it"):
                LocalFolder(tmp_path).write("some.bin", b"theirs")
        sync(handle)

    monkeypatch.setattr(os, "fsync", second_run)
    LocalFolder(tmp_path).write("some.bin", b"ours")
    assert seen
    assert LocalFolder(tmp_path).read("some.bin") == b"ours"
    assert LocalFolder(tmp_path).names() == ["some.bin"]


def test_what_a_killed_run_left_half_written_is_taken_over(folder):
    (folder.path / ".some.bin.tmp").write_bytes(b"half of something longer")
    folder.write("some.bin", b"all of it")
    assert folder.read("some.bin") == b"all of it"
    assert folder.names() == ["some.bin"]


def test_nothing_has_a_name_that_is_longer_than_file_systems_take(folder):
    assert folder.exists("some.bin")
    assert not folder.exists("x" * 300)
    with pytest.raises(PictureError, match="missing_file"):
        read_listed_picture(folder, "x" * 300)


def test_a_missing_picture_is_rejected_and_a_missing_folder_of_pictures_is_refused(tmp_path):
    pictures = LocalFolder(tmp_path / "pictures")
    for make in (lambda: None, (tmp_path / "pictures").mkdir):
        make()
        with pytest.raises(Refusal, match=rf"picture folder {pictures}: not there, or empty"):
            read_listed_picture(pictures, "sub/a.jpg")
    (tmp_path / "pictures/b.jpg").touch()
    with pytest.raises(PictureError, match="missing_file"):
        read_listed_picture(pictures, "sub/a.jpg")


def test_a_folder_that_may_not_be_listed_still_loses_pictures_one_by_one(folder, monkeypatch):
    def forbidden(_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "scandir", forbidden)
    with pytest.raises(PictureError, match="missing_file"):
        read_listed_picture(folder, "a.jpg")


def test_where_neither_a_picture_nor_its_folder_may_be_read_no_picture_is_rejected(
    folder, monkeypatch
):
    def expired(*_):
        raise PermissionError("The provided token has expired.")

    monkeypatch.setattr(LocalFolder, "read", expired)
    with pytest.raises(PictureError, match="missing_file"):
        read_listed_picture(folder, "some.bin")
    monkeypatch.setattr(os, "scandir", expired)
    with pytest.raises(Refusal, match=r"token has expired.*renew the credentials"):
        read_listed_picture(folder, "some.bin")


def test_a_tree_that_another_run_removes_as_well_is_gone_without_an_error(folder, monkeypatch):
    for name in ("000/a", "000/b", "001/c"):
        folder.write(f"groups/{name}", b"")
    rmdir = os.rmdir
    others = iter(["groups/000", "groups/001"])

    def second_run(path, **where):
        rmdir(path, **where)
        for other in others:  # what is about to be removed next is gone meanwhile
            if (folder.path / other).exists():
                shutil.rmtree(folder.path / other)

    monkeypatch.setattr(os, "rmdir", second_run)
    folder.remove_tree("groups")
    assert folder.names() == ["some.bin"]
