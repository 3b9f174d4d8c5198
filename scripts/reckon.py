"""What data sets that are not at hand would take, reckoned from what one picture or chip costs."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from chipgen import shards, shuffle

MEMORY_LIMIT = 4e9  # bytes of a process, at its peak
BOXES = 7.3  # of a picture, on average
NEGATIVES = 2  # negative chips of a picture, in as many rounds
SETS = {"COCO": 118_287, "Objects365": 1_700_000, "OpenImages": 1_700_000, "1 billion": 10**9}
NODES = (8, 100, 1000)
MOST_SHARDS = 1_000_000  # above, chips_per_shard has to grow
PYTHON = 250e6  # bytes that a process has before it does anything


@dataclass(frozen=True)
class Rates:
    """What one picture or chip costs."""

    source: str  # where the costs of writing come from
    read: float  # core-s a picture: json to arrays
    plan: float  # core-s a picture: arrays to Parquet
    write: float  # core-s a picture: decoding, cutting, encoding
    chips: float  # positive chips a picture
    chip_bytes: float  # in a shard, with its json
    json_bytes: float  # a picture, without outlines
    plan_bytes: float  # a picture, in Parquet
    index_bytes: float  # a chip, in Parquet
    map_bytes: float  # a chip, in the file that the trainer maps
    held_bytes: float  # a picture in memory while it is put in order


def on_paper(one: Rates, cores: int, gpus: int) -> dict[str, Any]:
    """Print what each data set would take, and with how many nodes how long."""
    found = {name: of_set(count, one) for name, count in SETS.items()}
    print(
        f"writing: of {one.source}; pictures with {BOXES} boxes and {one.chips:.2f} positive chips"
    )
    print(f"{'':42}" + "".join(f"{name:>13}" for name in found))
    for key, (told, form) in LINES.items():
        print(f"{told:42}" + "".join(f"{form(row[key]):>13}" for row in found.values()))
    for nodes in NODES:
        hours = {name: row["write"] / 3600 / nodes / cores for name, row in found.items()}
        line = f"to write with {nodes:,} nodes of {cores} cores"
        print(f"{line:42}" + "".join(f"{duration(value):>13}" for value in hours.values()))
        for name, value in hours.items():
            found[name][f"write_hours_{nodes}_nodes"] = value
    line = f"a node's memory: {gpus} orders, 1 index"
    each = {name: gpus * row["order"] + row["map"] for name, row in found.items()}
    print(f"{line:42}" + "".join(f"{size(value):>13}" for value in each.values()))
    print(
        f"memory is the same for any number of nodes; !: over {size(MEMORY_LIMIT)} in one process"
    )
    return {"rates": dataclasses.asdict(one), "sets": found}


def of_set(pictures: int, one: Rates) -> dict[str, float]:
    """Work out what so many pictures take."""
    positive = pictures * one.chips
    chips = positive + pictures * NEGATIVES
    per_shard = 256
    while chips / per_shard > MOST_SHARDS:
        per_shard *= 2
    count = math.ceil(chips / per_shard)
    bucket = pictures / shuffle.BUCKETS * one.held_bytes
    # a bucket is read, joined, put in order and looked at: four times its size
    held = shuffle.HELD / (1 + BOXES) * one.held_bytes
    return {
        "pictures": pictures,
        "chips": chips,
        "read": pictures * one.read / 3600,
        "plan": pictures * one.plan / 3600,
        "write": pictures * one.write * chips / positive,
        "write_hours": pictures * one.write * chips / positive / 3600,
        "json": pictures * one.json_bytes,
        "plan_bytes": pictures * one.plan_bytes,
        "bytes": chips * one.chip_bytes,
        "per_shard": per_shard,
        "shards": count,
        "files": min(count, shards.FOLDER_SHARDS),
        "index": chips * one.index_bytes,
        "map": chips * one.map_bytes,
        "planner": PYTHON + 4 * max(bucket, min(held, pictures * one.held_bytes)),
        "negatives": PYTHON + 12 * pictures,  # ids in order, and the row of each
        "order": chips * (4 if chips <= 2**32 else 8),
        "manifest": 150 * count,
    }


def size(value: float) -> str:
    """Write bytes for a person."""
    for unit, bytes_of in (("PB", 1e15), ("TB", 1e12), ("GB", 1e9)):
        if value >= bytes_of:
            return f"{value / bytes_of:,.1f} {unit}"
    return f"{value / 1e6:,.0f} MB"


def duration(hours: float) -> str:
    """Write a time for a person."""
    for unit, length in (("h", 1.0), ("min", 1 / 60)):
        if hours >= 2 * length:
            return f"{hours / length:,.0f} {unit}"
    return f"{hours * 3600:.2g} s"


def number(value: float) -> str:
    """Write a count or hours for a person."""
    if value >= 1e7:
        return f"{value / 1e6:,.0f} M"
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.2g}"


def memory(value: float) -> str:
    """Write the memory of a process, marked where it is over the limit."""
    return ("! " if value > MEMORY_LIMIT else "") + size(value)


LINES = {
    "pictures": ("pictures", number),
    "chips": ("chips, two negatives a picture", number),
    "read": ("core-hours to read json", number),
    "plan": ("core-hours to plan", number),
    "write_hours": ("core-hours to write", number),
    "json": ("json without outlines", size),
    "plan_bytes": ("plan", size),
    "bytes": ("shards", size),
    "per_shard": ("chips of a shard", number),
    "shards": ("shards", number),
    "files": ("most shards in a folder", number),
    "manifest": ("manifests", size),
    "index": ("index", size),
    "map": ("index as it is mapped", size),
    "planner": ("memory of the planner", memory),
    "negatives": ("memory of choosing negatives", memory),
    "order": ("memory of an epoch's order", memory),
}
