"""The joint index of some sets of shards: one mapped file for all processes of a machine.

An index of 65 million samples takes 5 GB; read into each process and loader's worker it would take
that many times over. So whoever comes first lays its columns out in a file, and all map it: the
system keeps one copy, and of that only what is looked at. The file can be made anew at any time.

HEADER, then each of COLUMNS (N,) and the ends of keys (N + 1,) aligned to ALIGN, then keys and
names of shards one behind the other. It is known by the indexes that it was made of.
"""

import contextlib
import fcntl
import hashlib
import mmap
import os
import stat
import struct
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import numpy as np
import pyarrow as pa

from chipgen import shards
from chipgen.errors import Refusal
from chipgen.storage import Folder, LocalFolder, open_folder
from chipgen.tables import open_table

MAGIC = b"FoveaIx1"
HEADER = struct.Struct("<8sQQQ")  # magic, samples, bytes of their keys, bytes of shards' names
ALIGN = 64  # bytes
ROWS = 1 << 17  # samples laid out at a time
COLUMNS = {
    "offset": np.int64,
    "length": np.int32,
    "crc32": np.uint32,
    "level": np.int16,
    "width": np.int32,
    "height": np.int32,
    "round": np.int32,
    "rounds": np.int32,
}
PLACES = {"set_of": np.int16, "shard_of": np.int32}


@dataclass(frozen=True)
class Index:
    """The samples of some sets of shards."""

    sets: tuple[str, ...]  # folders or URLs
    classes: tuple[str, ...]
    chip_size: int | None  # px of every canvas; None: canvases are as large as their windows
    keys: pa.Array | pa.ChunkedArray  # (N,) string
    shards: list[str]
    set_of: np.ndarray  # (N,) place in sets
    shard_of: np.ndarray  # (N,) place in shards
    columns: dict[str, np.ndarray]  # (N,) each of COLUMNS
    # the file that the arrays are views of; not handed on to what is made of parts of them
    path: str | None = field(default=None, init=False)

    def __len__(self) -> int:
        return len(self.set_of)

    def __reduce__(self) -> Any:
        """Send the name of the file to another process and not what is in it."""
        if self.path is None:
            return super().__reduce__()
        return _mapped, (self.path, self.sets, self.classes, self.chip_size)

    def fits(self, row: int, canvas: tuple[int, int]) -> bool:
        """Say whether a sample's window fits a canvas (height, width)."""
        return self.columns["height"][row] <= canvas[0] and self.columns["width"][row] <= canvas[1]

    def name(self, row: int) -> str:
        """Say where a sample lies."""
        place = f"{self.sets[self.set_of[row]]}/{self.shards[self.shard_of[row]]}"
        return f"{place}: sample {self.keys[row]}"


def open_index(folders: list[Folder]) -> Index:
    """Map the joint index of sets of shards that belong together; lays it out at first."""
    manifests = [shards.read_manifest(folder) for folder in folders]
    first = manifests[0]
    for folder, manifest in zip(folders, manifests, strict=True):
        for what, mine, theirs in (
            ("classes", manifest.classes, first.classes),
            ("[chips] settings", manifest.recipe["chips"], first.recipe["chips"]),
        ):
            if mine != theirs:
                raise Refusal(f"{folder}: its {what} differ from those of {folders[0]}")
    state = hashlib.sha256(MAGIC)
    for folder, manifest in zip(folders, manifests, strict=True):
        if not folder.exists(shards.INDEX):
            shards.require_index(folder, manifest)
        state.update(f"{manifest.index_sha256} {folder.version(shards.INDEX)}\n".encode())
    chips = first.recipe["chips"]
    about = (
        tuple(str(folder) for folder in folders),
        tuple(first.classes),
        chips["size"] if chips["strategy"] == "sniper" else None,
    )
    paths = [home / f"index-{state.hexdigest()[:16]}.map" for home in _homes(folders[0])]
    for path in paths:
        if _is_whole(path):
            return _mapped(str(path), *about)
    for folder, manifest in zip(folders, manifests, strict=True):
        shards.require_index(folder, manifest)
    failed: list[str] = []
    for path in paths:
        try:
            _lay_out(path, folders)
        except OSError as error:  # read-only, full, or of somebody else
            failed.append(f"{path.parent}: {error.strerror or error}")
        else:
            return _mapped(str(path), *about)
    raise Refusal(
        f"{folders[0]}: no place for a mapped copy of its index ({'; '.join(failed)}); free some "
        f"space or set TMPDIR"
    )


def find_sets(shards_folder: str, negatives: bool = True) -> list[Folder]:
    """Find the sets of shards of a run: positive, and negative where that was begun."""
    folder: Any = open_folder(shards_folder)
    positive, negative = folder.sub("positive"), folder.sub("negative")
    if not positive.exists(shards.MANIFEST):
        raise Refusal(
            f"{folder}: no finished set of shards (no positive/{shards.MANIFEST}); make "
            f"one with: python -m chipgen write"
        )
    if not negatives or not negative.names():
        return [positive]
    if not negative.exists(shards.MANIFEST):  # trained without it, a run would be another
        raise Refusal(
            f"{negative}: not finished (no {shards.MANIFEST}); finish it with: python -m chipgen "
            f"write --kind negative, or delete it to train without negatives"
        )
    return [positive, negative]


def _homes(folder: Folder) -> Iterator[Path]:
    """Give the folders where the file may lie: beside the sets, else among temporary files."""
    if isinstance(folder, LocalFolder):
        yield folder.path.absolute().parent
    own = Path(tempfile.gettempdir()) / f"fovea-{os.getuid()}"
    with contextlib.suppress(OSError):
        own.mkdir(mode=0o700, exist_ok=True)
        found = own.lstat()
        # in a folder of somebody else, the file could be somebody else's too
        if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o77:
            yield own


def _lay_out(path: Path, folders: list[Folder]) -> None:
    """Write the file, or wait until another process has.

    The lock is on the temporary file: it ends with the process that holds it, and what a killed one
    has left is written over by the next.
    """
    temporary = path.parent / f".{path.name}.tmp"
    with os.fdopen(os.open(temporary, os.O_RDWR | os.O_CREAT, 0o644), "r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:  # a file system without locks: to each a file of its own
            temporary = path.parent / f".{path.name}-{os.getpid()}.tmp"
            with temporary.open("wb") as own:
                _finish(own, temporary, path, folders)
            return
        if _is_whole(path):
            if os.fstat(file.fileno()).st_ino != path.stat().st_ino:
                temporary.unlink(missing_ok=True)
            return
        _finish(file, temporary, path, folders)


def _finish(file: BinaryIO, temporary: Path, path: Path, folders: list[Folder]) -> None:
    try:
        file.truncate(0)
        _write(file, folders)
        file.flush()
        os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _write(file: BinaryIO, folders: list[Folder]) -> None:
    """Lay the columns out, some rows at a time."""
    tables = [open_table(folder, shards.INDEX) for folder in folders]
    count = sum(table.metadata.num_rows for table in tables)
    starts, keys_at = _places(count)
    numbers: dict[str, int] = {}  # of shards, in the order in which they come
    row, key_bytes = 0, 0
    for place, (folder, table) in enumerate(zip(folders, tables, strict=True)):
        for batch in table.iter_batches(ROWS, columns=[*COLUMNS, "key", "shard"]):
            if any(column.null_count for column in batch.columns):
                raise Refusal(f"{folder}/{shards.INDEX}: has empty fields; write the shards again")
            of_batch: dict[str, np.ndarray] = {
                name: batch[name].to_numpy(zero_copy_only=False) for name in COLUMNS
            }
            names = batch["shard"].dictionary_encode()
            of_name = [numbers.setdefault(n, len(numbers)) for n in names.dictionary.to_pylist()]
            of_batch["shard_of"] = np.array(of_name, np.int32)[names.indices.to_numpy()]
            of_batch["set_of"] = np.full(len(batch), place)
            for name, kind in (COLUMNS | PLACES).items():
                file.seek(starts[name] + row * np.dtype(kind).itemsize)
                file.write(np.ascontiguousarray(of_batch[name], kind))
            keys = batch["key"].cast(pa.large_string())
            ends = np.frombuffer(keys.buffers()[1], np.int64)[keys.offset :][: len(batch) + 1]
            file.seek(starts["key_ends"] + (row + 1) * 8)
            file.write(ends[1:] - ends[0] + key_bytes)
            file.seek(keys_at + key_bytes)
            file.write(memoryview(keys.buffers()[2])[ends[0] : ends[-1]] if len(batch) else b"")
            row, key_bytes = row + len(batch), key_bytes + int(ends[-1] - ends[0])
    names_json = msgspec.json.encode(list(numbers))
    file.seek(keys_at + key_bytes)
    file.write(names_json)
    file.seek(0)
    file.write(HEADER.pack(MAGIC, count, key_bytes, len(names_json)))


def _places(count: int) -> tuple[dict[str, int], int]:
    """Give where in the file each column begins, and where the keys do."""
    starts, end = {}, HEADER.size
    for name, kind in (COLUMNS | PLACES | {"key_ends": np.int64}).items():
        starts[name] = -(-end // ALIGN) * ALIGN
        end = starts[name] + (count + (name == "key_ends")) * np.dtype(kind).itemsize
    return starts, end


def _is_whole(path: Path) -> bool:
    """Say whether the file is there, in its full size."""
    try:
        with path.open("rb") as file:
            head = file.read(HEADER.size)
            size = os.fstat(file.fileno()).st_size
    except FileNotFoundError:
        return False
    if len(head) < HEADER.size:
        return False
    magic, count, key_bytes, name_bytes = HEADER.unpack(head)
    return magic == MAGIC and size == _places(count)[1] + key_bytes + name_bytes


def _mapped(
    path: str, sets: tuple[str, ...], classes: tuple[str, ...], chip_size: int | None
) -> Index:
    """Map the file; every array is a view of it."""
    with Path(path).open("rb") as file:
        memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    _, count, key_bytes, name_bytes = HEADER.unpack(memory[: HEADER.size])
    starts, keys_at = _places(count)
    arrays = {
        name: np.frombuffer(memory, kind, count, starts[name])
        for name, kind in (COLUMNS | PLACES).items()
    }
    ends = np.frombuffer(memory, np.int64, count + 1, starts["key_ends"])
    text = np.frombuffer(memory, np.uint8, key_bytes, keys_at)
    names_at = keys_at + key_bytes
    index = Index(
        sets=sets,
        classes=classes,
        chip_size=chip_size,
        keys=pa.Array.from_buffers(
            pa.large_string(), count, [None, pa.py_buffer(ends), pa.py_buffer(text)]
        ),
        shards=msgspec.json.decode(memory[names_at : names_at + name_bytes], type=list[str]),
        set_of=arrays["set_of"],
        shard_of=arrays["shard_of"],
        columns={name: arrays[name] for name in COLUMNS},
    )
    object.__setattr__(index, "path", path)
    return index
