"""Shards -> batches on the host: positioned reads, decoding in workers, padded arrays.

b chips of this process, G boxes of a chip (padded to the most of the batch), H x W stored pixels
(padded). A worker gives whole batches, so only one array of pixels crosses between processes.
"""

import functools
import itertools
import math
import multiprocessing
import zlib
from collections.abc import Generator, Iterator
from dataclasses import dataclass, fields, replace
from typing import Literal

import numpy as np
import simplejpeg
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from chipgen import draws
from chipgen.errors import Refusal
from chipgen.shards import Chip, split_sample
from chipgen.storage import Folder, open_folder
from train.index import Index
from train.order import Order, Planned, from_place, share
from train.processes import outlive

BOXES = 8  # the padded number of boxes is a multiple: a bounded number of shapes
DRAWS = 1 << 26  # stream of draws: those of each chip in each epoch
DRAWN = 7  # numbers a chip: flip, brightness, contrast, colour, choice of anchors, shift (x, y)
TRIES = 16  # samples that are tried in place of a broken one
ALIKE = 1.3  # of the pixels of some chips, with padding: not worth taking them apart
AHEAD = 3  # batches that a worker makes before they are asked for
CUT = 0.01  # px: a box that ends so near to a chip's border goes on beyond it
MARGIN = 4  # px that a stored chip may be larger than its canvas
MAX_PIXELS = 1 << 26  # of a stored chip


@dataclass(frozen=True)
class Batch:
    """Chips of one batch as they are stored; tensors on one device."""

    rows: torch.Tensor  # (b,) int64, places in the index
    pixels: torch.Tensor  # (b, H, W, 3) uint8
    stored: torch.Tensor  # (b, 2) float32, width and height of the stored pixels
    scale: torch.Tensor  # (b, 2): chip point = scale * stored point + offset
    offset: torch.Tensor  # (b, 2)
    window: torch.Tensor  # (b, 2), width and height of the content, in chip px
    boxes: torch.Tensor  # (b, G, 4) xyxy in chip px
    labels: torch.Tensor  # (b, G) int64; -1: padding
    valid: torch.Tensor  # (b, G) bool
    crowd: torch.Tensor  # (b, G) bool
    cut: torch.Tensor  # (b, G) bool: the chip's border, not the picture's, has cut it
    ranges: torch.Tensor  # (b, 2) valid range in chip px
    draws: torch.Tensor  # (b, DRAWN) in [0, 1)
    sizes: tuple[tuple[int, int], ...]  # what `stored` says, for the host to know without asking

    def to(self, device: torch.device) -> "Batch":
        """Move to a device; from pinned memory without waiting."""

        def moved(values: torch.Tensor | tuple) -> torch.Tensor | tuple:
            tensor = isinstance(values, torch.Tensor)
            return values.to(device, non_blocking=True) if tensor else values

        return Batch(**{f.name: moved(getattr(self, f.name)) for f in fields(self)})

    def alike(self, groups: int) -> Iterator[tuple[torch.Tensor, "Batch"]]:
        """Take it apart into chips of like size, without their padding: places (g,) and chips."""
        order = sorted(range(len(self.sizes)), key=lambda i: self.sizes[i])
        widths, heights = zip(*self.sizes, strict=True)
        pixels = sum(width * height for width, height in self.sizes)
        if max(widths) * max(heights) * len(order) <= ALIKE * pixels:
            groups = 1
        edges = [len(order) * g // groups for g in range(groups + 1)]
        for start, end in itertools.pairwise(edges):
            if start == end:
                continue
            chosen = order[start:end]
            # pinned, for the host would wait until the device has done what is in its queue
            home = self.rows.device
            places = torch.tensor(chosen, pin_memory=home.type == "cuda")
            places = places.to(home, non_blocking=True)
            width, height = (max(self.sizes[i][axis] for i in chosen) for axis in (0, 1))
            tight = replace(self, pixels=self.pixels[:, :height, :width])

            def taken(values: torch.Tensor | tuple, chosen=chosen, places=places):
                tensor = isinstance(values, torch.Tensor)
                return values[places] if tensor else tuple(values[i] for i in chosen)

            yield places, Batch(**{f.name: taken(getattr(tight, f.name)) for f in fields(tight)})


@dataclass(frozen=True)
class Loaded:
    """What a worker hands over: small arrays travel by value, the pixels by shared memory."""

    planned: Planned
    pixels: torch.Tensor | None  # None on the way from a worker that has memory of its own
    arrays: dict[str, np.ndarray]
    broken: list[str]  # samples that others stand in for
    # in place of pixels: worker, place, shape
    slot: tuple[int, int, tuple[int, int, int, int]] | None = None

    def batch(self) -> Batch:
        """Give it as tensors."""
        small = {name: torch.from_numpy(array) for name, array in self.arrays.items()}
        sizes = tuple(map(tuple, self.arrays["stored"].astype(int).tolist()))
        return Batch(pixels=self.pixels, **small, sizes=sizes)


class ChipReader(Dataset):
    """Reads the share of one process of planned batches."""

    def __init__(
        self, index: Index, seed: int, rank: int, world: int, on_broken: Literal["stop", "replace"]
    ):
        self.index, self.seed, self.rank, self.world = index, seed, rank, world
        self.on_broken = on_broken
        self.slots: torch.Tensor | None = None  # (workers, places, bytes) shared; see Stream
        self._turn = 0
        self._undecodable: dict[int, str] = {}
        self._scratch = np.empty(0, np.uint8)
        self._folders: list[Folder] | None = None

    def __getitem__(self, planned: Planned) -> Loaded | Refusal:
        """Read and decode; a refusal is handed over, for raised it would come with a traceback."""
        try:
            return self._load(planned)
        except Refusal as refusal:
            return refusal

    def read(self, row: int) -> tuple[bytes, Chip]:
        """Read one sample: its JPEG bytes and its record. Raises ValueError on damage."""
        if self._folders is None:  # opened by the process that reads: connections don't fork
            self._folders = [open_folder(where) for where in self.index.sets]
        index = self.index
        shard = index.shards[index.shard_of[row]]
        offset, length = int(index.columns["offset"][row]), int(index.columns["length"][row])
        data = self._folders[index.set_of[row]].read(shard, offset, length)
        if zlib.crc32(data) != index.columns["crc32"][row]:
            raise ValueError("its bytes are not those that were written (crc32)")
        key, jpg, chip = split_sample(data)
        if key != index.keys[row].as_py():
            raise ValueError(f"the index is of another shard: sample {key} is there")
        return jpg, chip

    def _load(self, planned: Planned) -> Loaded:
        while True:
            broken: list[str] = []
            ours = share(planned, self.rank, self.world).tolist()
            samples = [self._whole_sample(row, planned.canvas, broken) for row in ours]
            chips = [chip for *_, chip in samples]
            height = max((chip.stored_size[1] for chip in chips), default=1)
            width = max((chip.stored_size[0] for chip in chips), default=1)
            pixels, slot = self._memory((len(chips), height, width, 3))
            if self._decode_all(samples, pixels.numpy()):
                break  # else once more, without what turned out to be broken
        self._turn += 1
        rows = np.array([row for row, *_ in samples], np.int64)
        arrays = {"rows": rows, **self._drawn(rows, planned.epoch), **_geometry(chips)}
        return Loaded(planned, None if slot else pixels, arrays | _boxes(chips), broken, slot)

    def _decode_all(self, samples: list[tuple[int, bytes, Chip]], pixels: np.ndarray) -> bool:
        """Decode samples into (b, H, W, 3); False where one can't be, which is remembered."""
        for target, (row, jpg, chip) in zip(pixels, samples, strict=True):
            try:
                self._decode(jpg, chip, target)
            except ValueError as error:
                self._undecodable[row] = str(error)
                return False
        return True

    def _memory(self, shape: tuple[int, int, int, int]) -> tuple[torch.Tensor, tuple | None]:
        """Give memory for pixels: the next place of this worker's own, or fresh."""
        worker = get_worker_info()
        if self.slots is None or worker is None:
            return torch.empty(shape, dtype=torch.uint8), None
        places, size = self.slots.shape[1:]
        place, count = self._turn % places, math.prod(shape)
        if count > size:
            return torch.empty(shape, dtype=torch.uint8), None
        return self.slots[worker.id, place, :count].view(shape), (worker.id, place, shape)

    def _decode(self, jpg: bytes, chip: Chip, target: np.ndarray) -> None:
        """Decode into the upper left corner of (H, W, 3)."""
        width, height = chip.stored_size
        if width == target.shape[1]:  # rows without gaps
            simplejpeg.decode_jpeg(jpg, "RGB", buffer=target[:height])
            return
        if self._scratch.size < height * width * 3:
            self._scratch = np.empty(height * width * 3, np.uint8)
        target[:height, :width] = simplejpeg.decode_jpeg(jpg, "RGB", buffer=self._scratch)

    def _whole_sample(
        self, row: int, canvas: tuple[int, int], broken: list[str]
    ) -> tuple[int, bytes, Chip]:
        """Read a sample, or the next one in the index that is whole where that is allowed."""
        count = len(self.index)
        if not self.index.fits(row, canvas):
            raise Refusal(f"{self.index.name(row)}: larger than its canvas; a foreign index")
        near = (r % count for r in range(row, row + count) if self.index.fits(r % count, canvas))
        for tried, place in enumerate(itertools.islice(near, TRIES), 1):  # noqa: B007
            try:
                if place in self._undecodable:
                    raise ValueError(self._undecodable[place])
                jpg, chip = self.read(place)
                _check(jpg, chip, len(self.index.classes))
                return place, jpg, chip
            except (ValueError, OSError) as error:
                reason = f"{self.index.name(place)}: {error}"
            if self.on_broken == "stop":
                raise Refusal(
                    f"{reason}; check with: python -m chipgen verify, or go on without such "
                    f"samples with train.on_broken = 'replace'"
                )
            broken.append(reason)
        raise Refusal(f"{reason}; {tried} samples in a row are broken")

    def _drawn(self, rows: np.ndarray, epoch: int) -> dict[str, np.ndarray]:
        """Draw the random numbers of each chip in this epoch, whoever reads it."""
        streams = [DRAWS + epoch * DRAWN + k for k in range(DRAWN)]
        drawn = [draws.uniform(self.seed, rows, stream) for stream in streams]
        return {"draws": np.stack(drawn, axis=1).astype(np.float32)}


class Stream:
    """Batches of one process from a place in the order to the end of the last epoch.

    Fresh shared memory for each batch costs more than decoding into it. Where the consumer says how
    many batches it `holds` at a time, each worker has places of its own and goes round them: a
    batch is then good until so many others have been taken.
    """

    def __init__(
        self,
        reader: ChipReader,
        order: Order,
        place: tuple[int, int],
        epochs: int,
        workers: int,
        pin: bool,
        holds: int = 0,
    ):
        self.pin = pin
        index = reader.index
        if workers and holds and index.chip_size is not None:
            # a worker makes up to AHEAD batches, and another when one of them is taken
            chips = -(-order.batch // reader.world)
            size = chips * (index.chip_size + MARGIN) ** 2 * 3
            places = torch.empty((workers, AHEAD + holds, size), dtype=torch.uint8)
            try:
                reader.slots = places.share_memory_()
            except RuntimeError as error:  # a small /dev/shm, as containers have, or ulimit -f
                raise Refusal(
                    f"cannot share {places.nbytes / 1e6:.0f} MB with {workers} loader workers "
                    f"({error}); give /dev/shm more room, or lower train.workers or train.batch"
                ) from error
        self._slots = reader.slots
        self._over = multiprocessing.Value("b", False, lock=False)
        self._loader = DataLoader(
            reader,
            sampler=_Places(order, place, epochs),
            batch_size=None,  # a sample of the loader is a batch of ours
            num_workers=workers,
            prefetch_factor=AHEAD if workers else None,
            worker_init_fn=functools.partial(outlive, self._over),
        )

    def __iter__(self) -> Generator[Loaded, None, None]:
        """Yield batches; closing the generator ends the workers."""
        self._over.value = False
        batches = iter(self._loader)
        try:
            for loaded in batches:
                if isinstance(loaded, Refusal):
                    raise loaded
                pixels = loaded.pixels
                if loaded.slot is not None:
                    worker, place, shape = loaded.slot
                    pixels = self._slots[worker, place, : math.prod(shape)].view(shape)
                # pinned memory is the device's to fetch from while the worker writes anew
                yield replace(loaded, pixels=pixels.pin_memory() if self.pin else pixels, slot=None)
        finally:
            self._over.value = True  # before torch terminates a worker that hangs


class _Places:
    """The sampler: which batch the loader makes next."""

    def __init__(self, order: Order, place: tuple[int, int], epochs: int):
        self.order, self.place, self.epochs = order, place, epochs

    def __iter__(self) -> Iterator[Planned]:
        return from_place(self.order, *self.place, self.epochs)


def _check(jpg: bytes, chip: Chip, classes: int) -> None:
    """Refuse a sample whose parts don't belong together."""
    count = len(chip.boxes)
    if {len(chip.labels), len(chip.valid), len(chip.crowd)} != {count}:
        raise ValueError(f"{count} boxes, but not as many labels and flags")
    if any(len(box) != 4 for box in chip.boxes):
        raise ValueError("a box that has not four numbers")
    if any(not 0 <= label < classes for label in chip.labels):
        raise ValueError(f"a label that is none of the {classes} classes")
    width, height = chip.stored_size
    if width * height > MAX_PIXELS:
        raise ValueError(f"{width}x{height} pixels, more than a chip may have")
    found = simplejpeg.decode_jpeg_header(jpg)[:2]
    if found != (height, width):
        raise ValueError(f"the JPEG has {found[1]}x{found[0]} pixels, its record {width}x{height}")


def _geometry(chips: list[Chip]) -> dict[str, np.ndarray]:
    def column(values: list, width: int) -> np.ndarray:
        return np.array(values, np.float32).reshape(-1, width)

    limit = [
        (low, np.inf if high is None else high) for low, high in (c.valid_range for c in chips)
    ]
    return {
        "stored": column([c.stored_size for c in chips], 2),
        "scale": column([c.stored_scale for c in chips], 2),
        "offset": column([c.stored_offset for c in chips], 2),
        "window": column([c.window[2:] for c in chips], 2),
        "ranges": column(limit, 2),
    }


def _boxes(chips: list[Chip]) -> dict[str, np.ndarray]:
    """Pad the boxes of chips to one length, (b, G, ...)."""
    most = max((len(chip.boxes) for chip in chips), default=0)
    b, padded = len(chips), max(-(-most // BOXES), 1) * BOXES
    boxes = np.zeros((b, padded, 4), np.float32)
    labels = np.full((b, padded), -1, np.int64)
    valid, crowd, cut = np.zeros((3, b, padded), bool)
    for i, chip in enumerate(chips):
        count = len(chip.boxes)
        if count:
            boxes[i, :count] = chip.boxes
            labels[i, :count], valid[i, :count] = chip.labels, chip.valid
            crowd[i, :count] = chip.crowd
            cut[i, :count] = ~valid[i, :count] & _at_inner_border(boxes[i, :count], chip)
    return {"boxes": boxes, "labels": labels, "valid": valid, "crowd": crowd, "cut": cut}


def _at_inner_border(boxes: np.ndarray, chip: Chip) -> np.ndarray:
    """Say which boxes (n, 4) of a chip reach a border of it that is not the picture's."""
    x, y, width, height = chip.window
    inner = np.array(
        [x > 0, y > 0, x + width < chip.canvas_size[0], y + height < chip.canvas_size[1]]
    )
    outward = np.array([-1, -1, 1, 1])
    edges = np.array([0, 0, width, height])
    return (inner & ((boxes - edges) * outward > -CUT)).any(1)
