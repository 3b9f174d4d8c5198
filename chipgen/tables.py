"""Tables as Parquet: equal ones give equal bytes, and damage is refused with the file's name."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from chipgen.errors import Refusal
from chipgen.storage import Folder

ROW_GROUP = 1 << 13  # rows of a table that can be read by themselves


def table_bytes(table: pa.Table) -> bytes:
    """Write a table as Parquet; equal tables give equal bytes."""
    buffer = pa.BufferOutputStream()
    sink = TableSink(buffer, table.schema, ROW_GROUP)
    sink.add(table)
    sink.end()
    return buffer.getvalue().to_pybytes()


@contextlib.contextmanager
def create_table(
    folder: Folder, name: str, schema: pa.Schema, group: int = ROW_GROUP
) -> Iterator["TableSink"]:
    """Write a table as Parquet, rows as they come; it has its name once the block has ended well.

    Equal tables give equal bytes, those of `table_bytes`, in whatever portions they come.
    """
    with folder.create(name) as file:
        # opened once more by Arrow: a writer that an error leaves behind ends its file by itself,
        # and Ctrl-C finds no call from Arrow into Python in which to be lost
        target = pa.OSFile(str(file.name), "wb")
        sink = TableSink(target, schema, group)
        yield sink
        sink.end()
        target.close()


class TableSink:
    """Takes the rows of a table, and puts them out in groups of one size."""

    def __init__(self, file: pa.NativeFile, schema: pa.Schema, group: int):
        self.rows = 0
        self._group = group
        self._schema = schema
        self._writer = pq.ParquetWriter(file, schema, compression="zstd", write_page_checksum=True)
        self._waiting: list[pa.Table] = []  # less than a group
        self._count = 0  # of rows waiting

    def add(self, table: pa.Table) -> None:
        """Take some rows."""
        self._waiting.append(table.cast(self._schema))
        self._count += table.num_rows
        self.rows += table.num_rows
        if self._count < self._group:
            return
        whole = pa.concat_tables(self._waiting)
        full = self._count // self._group * self._group
        for start in range(0, full, self._group):
            self._put(whole.slice(start, self._group))
        self._waiting, self._count = [whole.slice(full)], self._count - full

    def end(self) -> None:
        """Put out what is waiting."""
        if self._count or not self.rows:
            self._put(pa.concat_tables([self._schema.empty_table(), *self._waiting]))
        self._writer.close()

    def _put(self, group: pa.Table) -> None:
        # in one piece: pages begin anew with each
        self._writer.write_table(group.combine_chunks(), row_group_size=self._group)


class Table(pq.ParquetFile):
    """A Parquet file; what is damaged in it is refused with its name, also single flipped bits."""

    def __init__(self, where: str, source: Path | BinaryIO):
        self.where = where
        with _intact(where):
            super().__init__(source, memory_map=True, page_checksum_verification=True)

    def read(self, *args: Any, **more: Any) -> pa.Table:
        """Read it whole, or some of its columns."""
        with _intact(self.where):
            return super().read(*args, **more)

    def read_row_groups(self, *args: Any, **more: Any) -> pa.Table:
        """Read some of its groups of rows."""
        with _intact(self.where):
            return super().read_row_groups(*args, **more)

    def read_row_group(self, *args: Any, **more: Any) -> pa.Table:
        """Read one of its groups of rows."""
        with _intact(self.where):
            return super().read_row_group(*args, **more)

    def iter_batches(self, *args: Any, **more: Any) -> Iterator[pa.RecordBatch]:
        """Read it some rows at a time."""
        with _intact(self.where):
            yield from super().iter_batches(*args, **more)


def open_table(folder: Folder, name: str) -> Table:
    """Open a Parquet file for reading, memory-mapped where it lies on disk."""
    return Table(f"{folder}/{name}", folder.source(name))


def read_table(folder: Folder, name: str, columns: list[str] | None = None) -> pa.Table:
    """Read a whole Parquet file, or some of its columns."""
    with open_table(folder, name) as file:
        return file.read(columns=columns)


def read_rows(file: Table, start: int, stop: int) -> pa.Table:
    """Read the rows [start, stop) of a table, touching only the row groups that hold them."""
    first = 0
    wanted, skipped = [], 0
    for group in range(file.num_row_groups):
        last = first + file.metadata.row_group(group).num_rows
        if last <= start:
            skipped = last
        elif first < stop:
            wanted.append(group)
        first = last
    return file.read_row_groups(wanted).slice(start - skipped, stop - start)


@contextlib.contextmanager
def _intact(where: str) -> Iterator[None]:
    """Turn what Arrow raises on a damaged file into a refusal that names it."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # no damage, but the system
            raise
        raise Refusal(
            f"{where}: damaged, or no Parquet ({error}); delete that file's folder, and run again "
            f"what makes it"
        ) from error
