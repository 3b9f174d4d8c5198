"""Bytes of picture files <-> pixels.

Pixels are (H, W) uint32, one RGBX pixel a word (R in the lowest byte): a pixel then loads and
stores at once, which is what makes resampling cheap; libjpeg-turbo reads and writes that order
as fast as plain RGB.
"""

import contextlib
import io
import re
import struct
import sys
import threading
import warnings
from collections.abc import Callable, Iterator

import numpy as np
import simplejpeg
from PIL import Image, ImageFile, UnidentifiedImageError

from chipgen.errors import PictureError

Check = Callable[[int, int], None]  # of a width and a height, before they are decoded
ORIENTATION = 0x0112  # the EXIF tag
TURNS = {  # from the stored pixels to those that a viewer shows
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SWAPPING = (5, 6, 7, 8)  # orientations whose turn swaps width and height
SILENT = ("ignore", None, Warning, re.compile(r"PIL\."), 0)  # as `warnings` keeps a filter

if sys.byteorder != "little":  # R in the lowest byte is the first byte only here
    raise ImportError("chipgen.codec packs pixels for little-endian processors")


def decode(
    data: bytes,
    size: tuple[int, int] | None,
    max_pixels: float,
    before: Callable[[int], object] = lambda pixels: None,
) -> np.ndarray:
    """Decode a picture whose annotation gives `size` (width, height); (H, W) uint32.

    `before` is told how many pixels it has, as soon as the head of the file is read.

    An EXIF orientation is applied when the size agrees only that way; where no size is known, it
    always is, so that the pixels are those that a viewer shows. Raises PictureError.
    """

    def check(width: int, height: int) -> None:
        if width * height > max_pixels:
            limit = f"{width}x{height} is over {max_pixels / 1e6:g} megapixels"
            raise PictureError("too_many_pixels", f"{limit} (max_megapixels of the recipe)")
        before(width * height)

    if not data:
        raise PictureError("empty_file")
    if data[:2] == b"\xff\xd8":
        pixels = _decode_jpeg(data, size, check)
        if pixels is not None:
            return pixels
    return _decode_other(data, size, check)


def encode_jpeg(pixels: np.ndarray, quality: int) -> bytes:
    """Encode (H, W) uint32 pixels as JPEG with 4:2:0 chroma."""
    rgbx = np.ascontiguousarray(pixels).view(np.uint8).reshape(*pixels.shape, 4)
    return simplejpeg.encode_jpeg(rgbx, quality, "RGBX", "420")


def pack(rgb: np.ndarray) -> np.ndarray:
    """Turn (H, W, 3) uint8 into (H, W) uint32 pixels."""
    rgbx = np.zeros((*rgb.shape[:2], 4), np.uint8)
    rgbx[..., :3] = rgb
    return rgbx.view(np.uint32)[..., 0]


def unpack(pixels: np.ndarray) -> np.ndarray:
    """Turn (H, W) uint32 pixels into (H, W, 3) uint8."""
    rgbx = np.ascontiguousarray(pixels).view(np.uint8).reshape(*pixels.shape, 4)
    return rgbx[..., :3]


def _decode_jpeg(data: bytes, size: tuple[int, int] | None, check: Check) -> np.ndarray | None:
    """Decode the fast way; None for what only Pillow can settle (CMYK, turned, slightly odd)."""
    try:
        height, width, colors, _ = simplejpeg.decode_jpeg_header(data)
        check(width, height)
        if size not in (None, (width, height)) or colors not in ("YCbCr", "Gray", "RGB"):
            return None
        if size is None and _is_turned(data):
            return None
        rgbx = simplejpeg.decode_jpeg(data, "RGBX")
    except ValueError:
        return None
    return rgbx.view(np.uint32)[..., 0]


def _is_turned(data: bytes) -> bool:
    with _reading(data) as image:
        return _orientation(image) in TURNS


def _decode_other(data: bytes, size: tuple[int, int] | None, check: Check) -> np.ndarray:
    with _reading(data) as image:
        check(*image.size)
        image.load()  # which turns a TIFF and drops its orientation
        turn = TURNS.get(_orientation(image)) if size is None else _turn_to(size, image)
        rgb = _to_rgb(image)
    if turn is not None:
        rgb = rgb.transpose(turn)
    return pack(np.asarray(rgb))


@contextlib.contextmanager
def _reading(data: bytes) -> Iterator[Image.Image]:
    """Open a picture with Pillow; what its readers raise becomes a PictureError."""
    with _LIMITS:
        try:
            with Image.open(io.BytesIO(data)) as image:
                yield image
        except UnidentifiedImageError as error:
            raise PictureError("not_a_picture", f"starts with {data[:8]!r}") from error
        except (OSError, SyntaxError, ValueError, IndexError, KeyError, TypeError, EOFError,
                MemoryError, OverflowError, struct.error) as error:  # fmt: skip
            # what Pillow's readers raise on broken files, each format in its own way
            raise PictureError("broken_picture", str(error)) from error


def _orientation(image: Image.Image) -> int | None:
    return image.getexif().get(ORIENTATION)


def _turn_to(size: tuple[int, int], image: Image.Image) -> Image.Transpose | None:
    """Find the turn that brings a picture to the annotated size, if any is needed."""
    if image.size == size:
        return None
    orientation = _orientation(image)
    if orientation not in SWAPPING or image.size[::-1] != size:
        sizes = f"file {image.width}x{image.height}, annotation {size[0]}x{size[1]}"
        raise PictureError("size_mismatch", sizes)
    return TURNS[orientation]


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert any mode; 16-bit samples keep their high byte, alpha is dropped."""
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "I":  # 32-bit container, in practice of 16-bit samples
        samples = np.asarray(image)
        high = samples >> 8 if samples.max(initial=0) > 255 else samples
        return Image.fromarray(np.clip(high, 0, 255).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise PictureError("floating_point", "of 32 bits a sample; store 8 or 16")
    if image.mode == "P":
        return image.convert("RGBA").convert("RGB")  # transparency of a palette may be bytes
    return image.convert("RGB")


class _PillowLimits:
    """Leaves the pixel limit to ours, which is known and told, and refuses truncated files.

    These switches are the whole process's: of pictures that are read in several threads at once,
    the first one sets them and the last one restores them.

    Pillow's modules are also made silent: they warn of odd metadata that we don't use. That is an
    entry in the list of filters. `warnings.catch_warnings` would swap the list, and another thread
    that does the same could leave the wrong one there for good.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._reading = 0

    def __enter__(self) -> None:
        with self._lock:
            if self._reading == 0:
                self._before = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES
                self._filters = warnings.filters
                Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = None, False
                self._filters.insert(0, SILENT)
            self._reading += 1

    def __exit__(self, *exception: object) -> None:
        with self._lock:
            self._reading -= 1
            if self._reading == 0:
                Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = self._before
                with contextlib.suppress(ValueError):  # somebody has emptied the list
                    self._filters.remove(SILENT)


_LIMITS = _PillowLimits()
