"""Pictures in, from wherever they come: decoded in threads, in order, a bounded number ahead."""

import functools
import itertools
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from chipgen import codec
from chipgen.errors import PictureError, Refusal
from chipgen.storage import Folder, LocalFolder, read_listed_picture, read_picture

MOST_THREADS = 8  # that decode, at most, and no more than cores
AHEAD = 2  # pictures more than threads are decoded before they are asked for,
AHEAD_PIXELS = 400_000_000  # or fewer, so that they have no more px
GROUP = 256  # pictures that fly together, so that batches fill up,
GROUP_PIXELS = {"cpu": 16_000_000, "cuda": 64_000_000}  # with at most so many px, or one alone


@dataclass(frozen=True)
class Source:
    """A picture file."""

    folder: Folder
    name: str
    size: tuple[int, int] | None = None  # width and height, where annotations tell
    picture_id: int | None = None

    def __str__(self) -> str:
        return f"{self.folder}/{self.name}"


Picture = Source | str | Path | np.ndarray | torch.Tensor


@dataclass(frozen=True)
class Decoded:
    """A picture's pixels, or why there are none."""

    picture: Any
    pixels: np.ndarray | torch.Tensor | None  # (H, W, 3) uint8
    error: str | None


class Room:
    """Room for pixels that are decoded before they are asked for.

    Pictures have numbers in their order. What is asked for gets room in any case, or nothing would
    go on where a later one has taken it.
    """

    def __init__(self, pixels: int):
        self.pixels = pixels
        self._held: dict[int, int] = {}
        self._asked = -1  # the number up to which all are asked for
        self._closed = False
        self._changed = threading.Condition()

    def take(self, number: int, pixels: int) -> None:
        """Wait until there is room for a picture, or until it is asked for."""

        def free() -> bool:
            fits = sum(self._held.values()) + pixels <= self.pixels
            return fits or number <= self._asked or self._closed

        with self._changed:
            self._held.pop(number, None)  # of a first try by another reader
            self._changed.wait_for(free)
            if self._closed:
                raise PictureError("not_asked_for")
            self._held[number] = pixels

    def ask(self, number: int) -> None:
        """Let pictures up to a number take what they need."""
        with self._changed:
            self._asked = number
            self._changed.notify_all()

    def close(self) -> None:
        """Turn away who waits: nobody asks any more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def leave(self, number: int) -> None:
        """Give back the room of a picture."""
        with self._changed:
            self._held.pop(number, None)
            self._changed.notify_all()


def decoded(pictures: Iterable[Picture], max_pixels: float) -> Iterator[Decoded]:
    """Decode pictures in threads; the order is kept, and a broken one is told, not raised.

    Arrays and tensors are copied as they are taken: who gives them may write the next one there.
    """
    waiting: deque[tuple[int, Future]] = deque()
    numbered = enumerate(pictures)
    room = Room(AHEAD_PIXELS)
    count = min(MOST_THREADS, os.cpu_count() or 1)
    most = 1  # until the first one tells how large they are: arrays are copied as they are taken
    with ThreadPoolExecutor(count, "decode") as threads:
        try:
            while True:
                for number, picture in itertools.islice(numbered, max(0, most - len(waiting))):
                    take = functools.partial(room.take, number)
                    work = threads.submit(_decode, picture, _own(picture), max_pixels, take)
                    waiting.append((number, work))
                if not waiting:
                    return
                number, work = waiting.popleft()
                room.ask(number)
                one = work.result()
                room.leave(number)
                most = min(count + AHEAD, max(1, AHEAD_PIXELS // max(1, _pixels_of(one))))
                yield one
        finally:
            for _, work in waiting:
                work.cancel()
            room.close()


def groups(pictures: Iterable[Decoded], device: torch.device) -> Iterator[list[Decoded]]:
    """Put pictures in groups that a device takes on at once, in order."""
    group, pixels = [], 0
    for one in pictures:
        size = _pixels_of(one)
        if group and (pixels + size > GROUP_PIXELS[device.type] or len(group) == GROUP):
            yield group
            group, pixels = [], 0
        group.append(one)
        pixels += size
    if group:
        yield group


def _pixels_of(one: Decoded) -> int:
    return 0 if one.pixels is None else one.pixels.shape[0] * one.pixels.shape[1]


def _own(picture: Picture) -> np.ndarray | torch.Tensor | None:
    """Copy pixels that are given as such; torch takes neither mirrored nor read-only ones."""
    if isinstance(picture, np.ndarray):
        return picture.copy()
    return picture.clone() if isinstance(picture, torch.Tensor) else None


def _decode(
    picture: Picture,
    own: np.ndarray | torch.Tensor | None,
    max_pixels: float,
    take: Callable[[int], None],
) -> Decoded:
    try:
        if own is not None:
            return Decoded(picture, _checked(own), None)
        if not isinstance(picture, Source | str | Path):  # None is what some readers give
            return Decoded(picture, None, f"{picture!r:.50} is no picture")
        if isinstance(picture, Source):
            data, size = read_listed_picture(picture.folder, picture.name), picture.size
        else:
            path = Path(picture)
            data, size = read_picture(LocalFolder(path.parent), path.name), None
        pixels = codec.unpack(codec.decode(data, size, max_pixels, take))
        return Decoded(picture, np.ascontiguousarray(pixels), None)
    except PictureError as error:
        return Decoded(picture, None, str(error))


def _checked(picture: np.ndarray | torch.Tensor) -> np.ndarray | torch.Tensor:
    """Take arrays (H, W, 3) or (H, W), and tensors (3, H, W) or (H, W, 3), all of uint8."""
    kind = picture.dtype
    if kind not in (np.uint8, torch.uint8):
        raise Refusal(f"picture of {kind}: expected uint8, from 0 to 255")
    if picture.ndim == 2:
        stacked = [picture] * 3
        tensor = isinstance(picture, torch.Tensor)
        picture = torch.stack(stacked, -1) if tensor else np.stack(stacked, -1)
    if isinstance(picture, torch.Tensor) and picture.shape[0] == 3 and picture.shape[-1] != 3:
        picture = picture.permute(1, 2, 0)
    if picture.ndim != 3 or picture.shape[2] != 3 or 0 in picture.shape:
        raise Refusal(
            f"picture of shape {tuple(picture.shape)}: expected (height, width, 3), or a tensor "
            f"(3, height, width)"
        )
    return picture
