"""The format of a set of shards: plain WebDataset tars, an index, rejects and a manifest.

A set is a folder: 000/NAME-000000.tar ..., a thousand in a folder, index.parquet (where each sample
lies), rejects.parquet (what was not used, and why) and manifest.json, written last. A sample is
KEY.jpg followed by KEY.json; both can be had with one positioned read.
"""

import functools
import itertools
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Literal

import msgspec
import pyarrow as pa

from chipgen.errors import Refusal
from chipgen.sealed import unsealed
from chipgen.storage import Folder, digest_of
from chipgen.tables import open_table

FORMAT = 3
READABLE = (2, 3)  # in format 2 all shards lie in the folder itself
CONTENT = 2  # version of what is in a shard, wherever it lies
BLOCK = 512  # bytes: tar's unit
AGAIN = "delete {}, and write it again: python -m chipgen write"
FOLDER_SHARDS = 1000  # shards in one folder
MANIFEST, INDEX, REJECTS = "manifest.json", "index.parquet", "rejects.parquet"

INDEX_SCHEMA = pa.schema(
    {
        "key": pa.string(),
        "shard": pa.string(),
        "offset": pa.int64(),  # of the sample's first header in its shard
        "length": pa.int32(),  # of both members with headers and padding
        "crc32": pa.uint32(),  # of those bytes
        "picture_id": pa.int64(),
        "kind": pa.string(),
        "level": pa.int16(),
        "width": pa.int32(),  # of the window on the canvas, in canvas px
        "height": pa.int32(),
        "round": pa.int32(),  # an epoch uses the samples with epoch % rounds == round
        "rounds": pa.int32(),
    }
)


@dataclass(frozen=True)
class ShardSettings:
    """How chips are stored."""

    store: Literal["source", "canvas"] = "source"  # enlarged chips: picture's own pixels, or canvas
    quality: int = 95  # JPEG quality of stored chips
    chips_per_shard: int = 256
    shards_per_group: int = 2  # the chips of a picture are spread over so many shards
    max_megapixels: float = 500.0  # larger pictures are rejected before they are decoded

    def __post_init__(self):
        if not 1 <= self.quality <= 100:
            raise ValueError(f"quality = {self.quality} must be from 1 to 100")
        for name in ("chips_per_shard", "shards_per_group", "max_megapixels"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} = {getattr(self, name)} must be positive")


class Chip(msgspec.Struct, frozen=True):
    """What KEY.json holds. Chip coordinates are canvas pixels relative to the window's corner.

    A point (u, v) of the stored image lies at chip coordinates stored_scale * (u, v) +
    stored_offset; for a chip that is stored as canvas pixels that is the point itself.
    """

    picture_id: int
    split: str
    file: str
    picture_size: tuple[int, int]
    kind: str  # "positive" or "negative"
    level: int
    factor: tuple[float, float]  # canvas px per picture px along x and y
    canvas_size: tuple[int, int]
    window: tuple[int, int, int, int]  # x, y, width, height of the content on the canvas
    stored_size: tuple[int, int]
    stored_scale: tuple[float, float]
    stored_offset: tuple[float, float]
    valid_range: tuple[float, float | None]  # sqrt(area) in chip px, [low, high); null: no limit
    boxes: list[list[float]]  # xyxy in chip px, cut to the content; all that touch it
    labels: list[int]  # place in the manifest's classes
    valid: list[bool]  # size in the level's range, and not cut by the window
    crowd: list[bool]


class ShardEntry(msgspec.Struct, frozen=True):
    """A shard as the manifest lists it."""

    name: str
    bytes: int
    chips: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True):
    """What manifest.json holds."""

    format: int
    kind: str
    commit: str | None  # of the code that wrote the set
    recipe: dict[str, Any]
    recipe_hash: str
    content_hash: str  # of the plan and the settings: equal hashes mean equal shards
    classes: list[str]
    counts: dict[str, Any]
    shards: list[ShardEntry]
    index_sha256: str
    rejects_sha256: str


class Sample(msgspec.Struct, frozen=True):
    """A sample ready to be written: its key, its two members, and its row of the index."""

    key: str
    jpg: bytes
    json: bytes
    picture_id: int
    level: int
    width: int
    height: int
    round: int
    rounds: int


def key_of(split: str, picture_id: int, kind: str, level: int, x: int, y: int, turn: int) -> str:
    """Make a sample's key; WebDataset ends a key at its first dot, so it has none."""
    name = _plain(split)
    return f"{name}-{picture_id}-{kind[0]}{level}-{x}-{y}-{turn}"


@functools.cache
def _plain(split: str) -> str:
    return re.sub("[^0-9A-Za-z]", "_", split)[:32]  # a tar name has 100 bytes


def shard_name(kind: str, number: int) -> str:
    """Name a shard; a folder holds FOLDER_SHARDS of them, for more are slow to list."""
    return f"{number // FOLDER_SHARDS:03d}/{kind}-{number:06d}.tar"


def find_shards(folder: Folder) -> list[str]:
    """List the tars of a set, by their names in it."""
    names = folder.names()
    inside = [name for name in names if re.fullmatch(r"\d{3,}", name)]
    found = [f"{name}/{one}" for name in inside for one in folder.sub(name).names()]
    return [name for name in names + found if name.endswith(".tar")]


def build_shard(samples: list[Sample]) -> tuple[list[bytes], list[tuple[int, int, int]]]:
    """Lay samples out as a tar; returns its parts, and (offset, length, crc32) of each sample.

    The parts are written and hashed as they are: joining them would copy every byte twice while
    holding the interpreter from those who make the next chips.
    """
    parts, places = [], []
    offset = 0
    for sample in samples:
        head = _header(f"{sample.key}.jpg", len(sample.jpg))
        json_head = _header(f"{sample.key}.json", len(sample.json))
        tail = _padding(len(sample.jpg)) + json_head + sample.json + _padding(len(sample.json))
        crc = zlib.crc32(tail, zlib.crc32(sample.jpg, zlib.crc32(head)))
        length = len(head) + len(sample.jpg) + len(tail)
        parts += (head, sample.jpg, tail)
        places.append((offset, length, crc))
        offset += length
    parts.append(bytes(2 * BLOCK))  # tar's end mark
    return parts, places


def split_sample(data: bytes) -> tuple[str, bytes, Chip]:
    """Take a sample's bytes apart: key, JPEG bytes, record. Raises ValueError on damage."""
    key, jpg, rest = _member(data, ".jpg")
    json_key, json, rest = _member(rest, ".json")
    if json_key != key or rest:
        raise ValueError(f"members of {key!r} and {json_key!r} do not make one sample")
    try:
        return key, jpg, msgspec.json.decode(json, type=Chip)
    except msgspec.DecodeError as error:
        raise ValueError(f"{key}.json: {error}") from error


def read_back(sample: Sample) -> tuple[str, bytes, Chip]:
    """Give a sample that is not written yet as `read_samples` would."""
    return sample.key, sample.jpg, msgspec.json.decode(sample.json, type=Chip)


def read_manifest(folder: Folder) -> Manifest:
    """Read a set's manifest."""
    try:
        data = folder.read(MANIFEST)
    except FileNotFoundError as error:
        raise Refusal(f"{folder}: no {MANIFEST}; not a finished set of shards") from error
    try:
        manifest = unsealed(data, Manifest)
    except ValueError as error:
        raise Refusal(f"{folder}/{MANIFEST}: damaged ({error}); {AGAIN.format(folder)}") from error
    if manifest.format not in READABLE:
        known = " and ".join(map(str, READABLE))
        raise Refusal(f"{folder}: format {manifest.format}, but this version reads {known}")
    return manifest


def require_index(folder: Folder, manifest: Manifest) -> None:
    """Refuse an index that is missing, or not, byte for byte, the manifest's."""
    if not folder.exists(INDEX):
        raise Refusal(f"{folder}/{INDEX}: missing; {AGAIN.format(folder)}")
    if digest_of(folder, INDEX) != manifest.index_sha256:
        raise Refusal(
            f"{folder}/{INDEX}: damaged, or of another set than {MANIFEST} (sha256); "
            f"{AGAIN.format(folder)}"
        )


def read_samples(folder: Folder, index: pa.Table) -> Iterator[tuple[str, bytes, Chip]]:
    """Read the samples of some rows of an index, one positioned read each."""
    for row in index.to_pylist():
        data = folder.read(row["shard"], row["offset"], row["length"])
        if zlib.crc32(data) != row["crc32"]:
            where = f"{folder}/{row['shard']} at byte {row['offset']}"
            raise Refusal(f"{where}: sample {row['key']} is damaged (crc32)")
        yield split_sample(data)


def verify(folder: Folder) -> Iterator[str]:
    """Re-read a set against its manifest and index; yields each fault with its place."""
    manifest = read_manifest(folder)
    names = {*folder.names(), *find_shards(folder)}
    listed = {shard.name for shard in manifest.shards}
    for name in sorted(n for n in names if n.endswith(".tar") and n not in listed):
        yield f"{name}: not in the manifest"
    for name, expected in ((INDEX, manifest.index_sha256), (REJECTS, manifest.rejects_sha256)):
        if name not in names:
            yield f"{name}: missing"
        elif digest_of(folder, name) != expected:
            yield f"{name}: sha256 is not the manifest's"
    rows, found = None, set()
    try:
        rows = _IndexRows(folder)
        found = set(rows.spans)
    except (OSError, Refusal) as error:
        yield f"{INDEX}: cannot be read ({error}); samples are not checked one by one"
    for name in sorted(found - listed):
        yield f"{INDEX}: names {name}, which is not in the manifest"
    for shard in manifest.shards:
        of_shard = None
        try:
            of_shard = rows.of(shard.name) if shard.name in found else None
        except (OSError, Refusal) as error:
            yield f"{INDEX}: cannot be read ({error}); {shard.name} is not checked by sample"
        yield from _verify_shard(folder, shard, of_shard, names)


class _IndexRows:
    """Reads an index shard by shard: of 65 million rows, no more than some groups at a time."""

    def __init__(self, folder: Folder):
        self._file = open_table(folder, INDEX)
        self._group = functools.lru_cache(2)(self._file.read_row_group)
        self.spans: dict[str, list[tuple[int, int, int]]] = {}  # group, first and end row in it
        for group in range(self._file.num_row_groups):
            table = self._file.read_row_group(group, columns=["shard"])
            place = 0
            for name, rows in itertools.groupby(table["shard"].to_pylist()):
                end = place + sum(1 for _ in rows)
                self.spans.setdefault(name, []).append((group, place, end))
                place = end

    def of(self, shard: str) -> list[dict]:
        """Give the rows of a shard."""
        parts = [self._group(g).slice(first, end - first) for g, first, end in self.spans[shard]]
        return [row for part in parts for row in part.to_pylist()]


def _verify_shard(
    folder: Folder, shard: ShardEntry, rows: list[dict] | None, names: set[str]
) -> Iterator[str]:
    if shard.name not in names:
        yield f"{shard.name}: missing"
        return
    data = folder.read(shard.name)
    if len(data) != shard.bytes:
        yield f"{shard.name}: {len(data)} bytes, the manifest says {shard.bytes}"
    if sha256(data).hexdigest() != shard.sha256:
        yield f"{shard.name}: sha256 is not the manifest's"
    if rows is None:
        return
    if len(rows) != shard.chips:
        yield f"{shard.name}: {len(rows)} samples in the index, {shard.chips} in the manifest"
    for row in rows:
        part = data[row["offset"] : row["offset"] + row["length"]]
        where = f"{shard.name}: sample {row['key']} at byte {row['offset']}"
        if len(part) < row["length"]:
            yield f"{where}: cut off"
            continue
        if zlib.crc32(part) != row["crc32"]:
            yield f"{where}: crc32 is not the index's"
        try:
            key, _, chip = split_sample(part)
        except ValueError as error:
            yield f"{where}: {error}"
            continue
        if (key, chip.level, chip.kind) != (row["key"], row["level"], row["kind"]):
            yield f"{where}: the sample is {key}, {chip.kind}, level {chip.level}"


def _header(name: str, size: int) -> bytes:
    """Write a ustar header as tarfile does, which is too slow for two headers a chip."""
    encoded, digits = name.encode("ascii"), b"%011o" % size
    block = bytearray(_BLANK)
    block[: len(encoded)] = encoded
    block[124:135] = digits
    block[148:154] = b"%06o" % (_BLANK_SUM + sum(encoded) + sum(digits))
    return bytes(block)


def _blank_header() -> bytes:
    """Lay out a header without name and size, its checksum as blanks."""
    owner_and_time = b"0000644\0%07o\0%07o\0%s%011o\0" % (0, 0, bytes(12), 0)
    head = bytes(100) + owner_and_time + b" " * 8 + b"0"
    return (head + bytes(100) + b"ustar\x0000").ljust(BLOCK, b"\0")


def _padding(size: int) -> bytes:
    return bytes(-size % BLOCK)


def _member(data: bytes, suffix: str) -> tuple[str, bytes, bytes]:
    """Take the first member off: key, body, what follows."""
    head = data[:BLOCK]
    try:  # as tarfile does, which takes ten times as long
        name, size = head[:100].rstrip(b"\0").decode("ascii"), _octal(head[124:136])
        stated, found = _octal(head[148:156]), sum(head) - sum(head[148:156]) + 8 * ord(" ")
    except ValueError as error:
        raise ValueError(f"no tar header: {error}") from error
    if len(head) < BLOCK or stated != found:
        raise ValueError("no tar header: its checksum is wrong")
    if not name.endswith(suffix):
        raise ValueError(f"member {name!r} where a {suffix} should be")
    end = BLOCK + size
    if end > len(data):
        raise ValueError(f"member {name!r} is cut off")
    return name[: -len(suffix)], data[BLOCK:end], data[end + -end % BLOCK :]


def _octal(field: bytes) -> int:
    return int(field.rstrip(b" \0") or b"0", 8)


_BLANK_SUM = sum(_blank_header())  # a checksum is taken with its own field as blanks
_BLANK = _blank_header()[:154] + b"\0" + _blank_header()[155:]
