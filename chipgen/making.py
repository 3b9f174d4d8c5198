"""Pictures -> samples: each picture is decoded once, then cut into all of its chips."""

import itertools
import operator
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import numpy as np
import pyarrow as pa

from chipgen import codec, cut, draws, shards
from chipgen.dataset import REJECTS, Picture, reject_pictures
from chipgen.errors import PictureError, Refusal
from chipgen.run import PlanRecord, Reader, Recipe
from chipgen.shards import Chip, Sample
from chipgen.storage import Folder, open_folder, read_listed_picture
from chipgen.tables import open_table, read_rows

SAMPLE = 1000  # pictures, in the plan's random order, of which one must be readable
SPREAD = 1 << 22  # stream of draws: the order of a group's chips


@dataclass(frozen=True)
class Made:
    """A group before it is on disk."""

    samples: list[Sample]  # in the order of the shards
    rejects: pa.Table
    used: Counter[str]  # as in GroupRecord


class Maker:
    """Makes the samples of groups; holds the open tables of a plan."""

    def __init__(self, run: Folder, kind: str, record: PlanRecord, recipe: Recipe):
        self.kind, self.record, self.recipe = kind, record, recipe
        self.reader = Reader(run)
        self.chips = open_table(run.sub("plan"), f"{kind}.parquet")
        self.roots = [open_folder(root) for root in record.roots]

    def make(
        self, pictures: tuple[int, int], chips: tuple[int, int], on_pictures: Callable[[int], None]
    ) -> Made:
        """Make a group, given as ranges of rows in the plan's tables of pictures and chips."""
        first = pictures[0]
        annotations = self.reader.annotations(*pictures, self.record)
        rows = read_rows(self.chips, *chips).to_pylist()
        each = enumerate(annotations.each(), first)
        samples, rejects = [], []
        used: Counter[str] = Counter()
        for row, of_picture in itertools.groupby(rows, key=operator.itemgetter("picture")):
            picture = next(picture for place, picture in each if place == row)
            try:
                samples += self._samples(picture, list(of_picture), used)
            except PictureError as error:
                rejects.append(reject_pictures([picture], error.reason, error.detail))
            except Exception as error:
                error.add_note(f"while cutting picture {picture.entry['file']}")
                raise
            on_pictures(1)
        order = spread(samples, self.recipe.chips.seed)
        table = pa.concat_tables([REJECTS.empty_table(), *rejects])
        return Made([samples[i] for i in order], table, used)

    def _samples(self, picture: Picture, chips: list[dict], used: Counter[str]) -> list[Sample]:
        """Cut one picture, and add to what is used."""
        folder = self.roots[picture.entry["root"]]
        pixels = read_pixels(picture, folder, self.recipe.shards.max_megapixels)
        samples = [make_sample(picture, pixels, chip, self.kind, self.recipe) for chip in chips]
        used["pictures"] += 1
        used["annotations"] += len(picture.boxes)
        used["pixels"] += sum(chip["width"] * chip["height"] for chip in chips)
        return samples


def require_pictures(run: Folder, record: PlanRecord, max_megapixels: float) -> None:
    """Refuse a plan of whose pictures none can be read, as where a disk is not mounted.

    Each would be rejected, and the set finished without them.
    """
    reader = Reader(run)
    count = min(SAMPLE, reader.pictures.metadata.num_rows)
    folders = [open_folder(root) for root in record.roots]
    faults = []
    for picture in reader.annotations(0, count, record).each():
        folder = folders[picture.entry["root"]]
        try:
            read_pixels(picture, folder, max_megapixels)
            return
        except PictureError as error:
            faults.append(f"{folder}/{picture.entry['file']}: {error}")
    if faults:
        raise Refusal(
            f"pictures: of {count} that were tried, none can be read, such as {faults[0]}; mount "
            f"what holds them, or plan again with the new --data"
        )


def read_pixels(picture: Picture, folder: Folder, max_megapixels: float) -> np.ndarray:
    """Read and decode a picture; only a fault of its own raises PictureError."""
    row = picture.entry
    data = read_listed_picture(folder, row["file"])
    return codec.decode(data, (row["width"], row["height"]), max_megapixels * 1e6)


def make_sample(
    picture: Picture, pixels: np.ndarray, chip: dict[str, int], kind: str, recipe: Recipe
) -> Sample:
    """Cut one chip (a row of plan.CHIPS) out of a decoded picture."""
    row = picture.entry
    level = recipe.chips.levels[chip["level"]]
    canvas = chip["canvas_width"], chip["canvas_height"]
    window = chip["x"], chip["y"], chip["width"], chip["height"]
    factor = canvas[0] / row["width"], canvas[1] / row["height"]
    stored = cut.stored_pixels(pixels, canvas, window, recipe.shards.store)
    rows, boxes, inside = cut.chip_boxes(picture.boxes, *factor, *window)
    low, high = level.range
    wanted = (low <= picture.sizes[rows]) & (picture.sizes[rows] < high)
    crowd = picture.crowd[rows]
    record = Chip(
        picture_id=row["picture_id"],
        split=row["split"],
        file=row["file"],
        picture_size=(row["width"], row["height"]),
        kind=kind,
        level=chip["level"],
        factor=factor,
        canvas_size=canvas,
        window=window,
        stored_size=stored.pixels.shape[::-1],
        stored_scale=stored.scale,
        stored_offset=stored.offset,
        valid_range=cut.valid_range(level, factor),
        boxes=boxes.round(cut.DECIMALS).tolist(),
        labels=picture.labels[rows].tolist(),
        valid=(inside & wanted & ~crowd).tolist(),
        crowd=crowd.tolist(),
    )
    key = shards.key_of(
        row["split"], row["picture_id"], kind, chip["level"], *window[:2], chip["round"]
    )
    return Sample(
        key=key,
        jpg=codec.encode_jpeg(stored.pixels, recipe.shards.quality),
        json=msgspec.json.encode(record),
        picture_id=row["picture_id"],
        level=chip["level"],
        width=chip["width"],
        height=chip["height"],
        round=chip["round"],
        rounds=chip["rounds"],
    )


def spread(samples: list[Sample], seed: int) -> np.ndarray:
    """Order a group's samples so that those of one picture lie evenly apart, (C,) int64.

    The n chips of a picture take the places (k + u) / n of the group in random order, with one
    random u a picture: they are spread over all of the group's shards, and not side by side.
    """
    if not samples:
        return np.zeros(0, np.int64)
    pictures = np.array([s.picture_id for s in samples], dtype=np.int64)
    keys = np.array([zlib.crc32(s.key.encode()) for s in samples], dtype=np.int64)
    order = np.lexsort([draws.uniform(seed, keys, SPREAD), pictures])
    pictures = pictures[order]
    first = np.searchsorted(pictures, pictures)
    count = np.searchsorted(pictures, pictures, side="right") - first
    shift = draws.uniform(seed, pictures, SPREAD + 1)
    places = (np.arange(len(samples)) - first + shift) / count
    return order[np.argsort(places, kind="stable")]
