import contextlib
import io
import struct
import warnings
import zlib

import made_up
import numpy as np
import pytest
from PIL import Image, ImageFile

from chipgen import codec
from chipgen.errors import PictureError

WIDTH, HEIGHT = 60, 40
PICTURE = made_up.noise(WIDTH, HEIGHT)


def decode(data: bytes, size=(WIDTH, HEIGHT), limit=10**6) -> np.ndarray:
    return codec.unpack(codec.decode(data, size, limit)).astype(int)


def test_packing_keeps_every_channel():
    rgb = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    assert (codec.unpack(codec.pack(rgb)) == rgb).all()


def test_encoded_pixels_come_back():
    pixels = codec.pack(np.asarray(PICTURE))
    back = decode(codec.encode_jpeg(pixels, 95))
    assert np.abs(back - np.asarray(PICTURE)).mean() < 3
    window = pixels[3:33, 5:45]  # not contiguous
    assert decode(codec.encode_jpeg(window, 95), (40, 30)).shape == (30, 40, 3)


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        ("RGB", "JPEG"), ("L", "JPEG"), ("CMYK", "JPEG"), ("RGB", "PNG"), ("L", "PNG"),
        ("P", "PNG"), ("RGBA", "PNG"), ("LA", "PNG"), ("1", "PNG"), ("I;16", "PNG"), ("I", "TIFF"),
        ("RGB", "BMP"), ("RGB", "WEBP"), ("P", "GIF"), ("RGB", "TIFF"), ("CMYK", "TIFF"),
    ],
)  # fmt: skip
def test_every_mode_becomes_rgb(mode, kind):
    gray = np.asarray(PICTURE.convert("L"))
    if mode == "I;16":
        image = Image.fromarray(gray.astype(np.uint16) * 257)
    elif mode == "I":
        image = Image.fromarray(gray.astype(np.int32) * 257)
    else:
        image = PICTURE.convert(mode)
    gray_modes = ("L", "LA", "I;16", "I")
    expected = PICTURE.convert("L" if mode in gray_modes else mode)
    expected = np.asarray(expected.convert("RGB")).astype(int)
    found = decode(made_up.encoded(image, kind))
    assert found.shape == (HEIGHT, WIDTH, 3)
    if mode == "1":
        assert set(np.unique(found)) == {0, 255}
    else:
        assert np.abs(found - expected).mean() < 6


def test_pictures_of_floating_point_samples_are_not_taken_for_black_ones():
    data = made_up.encoded(Image.fromarray(np.full((HEIGHT, WIDTH), 0.8, np.float32)), "TIFF")
    with pytest.raises(PictureError, match="floating_point"):
        decode(data)


def test_palette_with_transparency_becomes_rgb():
    image = PICTURE.convert("P")
    data = made_up.encoded(image, "PNG", transparency=bytes(range(256)))
    assert (decode(data) == np.asarray(image.convert("RGB"))).all()


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_orientation_is_applied_when_that_makes_the_size_agree(orientation):
    exif = Image.Exif()
    exif[codec.ORIENTATION] = orientation
    upright = {5: 5, 6: 2, 7: 6, 8: 4}[orientation]  # what a camera held that way stores
    stored = PICTURE.transpose(Image.Transpose(upright))
    data = made_up.encoded(stored, exif=exif, quality=95)
    assert np.abs(decode(data) - np.asarray(PICTURE)).mean() < 3
    as_stored = decode(data, (HEIGHT, WIDTH))  # an annotator who ignored the tag is right, too
    assert np.abs(as_stored - np.asarray(stored)).mean() < 3


def oriented(stored: Image.Image, orientation: int, kind: str) -> bytes:
    exif = Image.Exif()
    exif[codec.ORIENTATION] = orientation
    options = {"JPEG": {"quality": 95}, "WEBP": {"lossless": True}}.get(kind, {})
    return made_up.encoded(stored, kind, exif=exif, **options)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("width", [WIDTH, HEIGHT])  # of the stored picture; one is a square
@pytest.mark.parametrize(
    ("orientation", "shown"),  # written from the table of EXIF
    [
        (1, lambda stored: stored),
        (2, lambda stored: stored[:, ::-1]),
        (3, lambda stored: stored[::-1, ::-1]),
        (4, lambda stored: stored[::-1]),
        (5, lambda stored: stored.transpose(1, 0, 2)),
        (6, lambda stored: stored[::-1].transpose(1, 0, 2)),
        (7, lambda stored: stored[::-1, ::-1].transpose(1, 0, 2)),
        (8, lambda stored: stored.transpose(1, 0, 2)[::-1]),
    ],
)
def test_without_a_size_every_orientation_is_applied_as_viewers_do(kind, width, orientation, shown):
    stored = made_up.noise(width, HEIGHT)
    expected = shown(np.asarray(stored).astype(int))
    found = decode(oriented(stored, orientation, kind), None)
    assert found.shape == expected.shape
    assert np.abs(found - expected).mean() < 3
    gray = decode(oriented(stored.convert("L"), orientation, kind), None)
    assert np.abs(gray - shown(np.asarray(stored.convert("L").convert("RGB")))).mean() < 3


@pytest.mark.parametrize("orientation", [2, 3, 4])
def test_with_a_size_that_agrees_pixels_stay_as_stored(orientation):
    found = decode(oriented(PICTURE, orientation, "JPEG"))
    assert np.abs(found - np.asarray(PICTURE)).mean() < 3
    square = made_up.noise(HEIGHT, HEIGHT)
    found = decode(oriented(square, orientation + 3, "JPEG"), (HEIGHT, HEIGHT))
    assert np.abs(found - np.asarray(square)).mean() < 3


@pytest.mark.parametrize("orientation", [6, 8])
def test_a_tiff_whose_tag_the_annotation_does_not_follow_is_rejected(orientation):
    data = oriented(PICTURE, orientation, "TIFF")
    turned = decode(data, (HEIGHT, WIDTH))
    np.testing.assert_array_equal(turned, decode(data, None))
    with pytest.raises(PictureError, match="annotation"):  # Pillow has turned it already
        decode(data, (WIDTH, HEIGHT))


def png_bomb(width: int, height: int) -> bytes:
    """Write a PNG that claims a size and holds next to nothing."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )


JPEG, PNG = made_up.encoded(PICTURE), made_up.encoded(PICTURE, "PNG")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty_file"),
        (b"hello, this is text", "not_a_picture"),
        (bytes(1000), "not_a_picture"),
        (JPEG[: len(JPEG) // 2], "broken_picture"),
        (JPEG[:100], "broken_picture"),
        (JPEG[:2], "not_a_picture"),
        (PNG[: len(PNG) // 2], "broken_picture"),
        (PNG[:200] + b"\xff" * 50 + PNG[250:], "broken_picture"),
        (made_up.encoded(made_up.noise(61, 40)), "size_mismatch"),
        (made_up.encoded(made_up.noise(40, 60)), "size_mismatch"),
        (made_up.encoded(made_up.noise(40, 60), "PNG"), "size_mismatch"),
        (png_bomb(100_000, 100_000), "too_many_pixels"),
        (made_up.encoded(Image.new("L", (2000, 2000))), "too_many_pixels"),
    ],
)
def test_a_broken_picture_is_rejected_with_its_reason(data, reason):
    with pytest.raises(PictureError) as error:
        decode(data)
    assert error.value.reason == reason


def test_a_size_mismatch_tells_both_sizes():
    with pytest.raises(PictureError, match="file 61x40, annotation 60x40"):
        decode(made_up.encoded(made_up.noise(61, 40)))


def test_a_wrong_extension_does_not_matter():
    assert decode(made_up.encoded(PICTURE, "PNG")).shape == (HEIGHT, WIDTH, 3)


def test_random_damage_never_escapes_as_anything_but_a_reject():
    rng = np.random.default_rng(0)
    kinds = [
        made_up.encoded(PICTURE, kind) for kind in ("JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP")
    ]
    decoded = 0
    for _ in range(600):
        data = bytearray(kinds[rng.integers(len(kinds))])
        for place in rng.integers(0, len(data), rng.integers(1, 20)):
            data[place] = rng.integers(256)
        if rng.random() < 0.5:
            data = data[: rng.integers(1, len(data))]
        with contextlib.suppress(PictureError):
            decode(bytes(data))
            decoded += 1
    assert 0 < decoded < 600


def switches() -> tuple:
    """Give what belongs to the whole process and is set while a picture is read."""
    return Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, list(warnings.filters)


def test_pictures_read_at_once_leave_the_process_as_it_was():
    before = switches()
    first, second = contextlib.ExitStack(), contextlib.ExitStack()
    first.enter_context(codec._reading(PNG))
    second.enter_context(codec._reading(PNG))
    first.close()
    assert Image.MAX_IMAGE_PIXELS is None
    second.close()
    assert switches() == before


def test_filters_of_warnings_that_others_swap_meanwhile_come_back_as_they_were():
    before = switches()
    reading = contextlib.ExitStack()
    reading.enter_context(codec._reading(PNG))
    with warnings.catch_warnings():
        reading.close()
    assert switches() == before
    with warnings.catch_warnings():
        reading.enter_context(codec._reading(PNG))
    reading.close()
    assert switches() == before


def test_warnings_of_pillow_alone_are_silent():
    data = made_up.encoded(PICTURE, exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0")
    assert decode(data, None).shape == (HEIGHT, WIDTH, 3)
    with pytest.warns(UserWarning, match="Corrupt EXIF"), Image.open(io.BytesIO(data)) as image:
        image.getexif()
    with codec._reading(PNG), pytest.raises(UserWarning, match="of others"):
        warnings.warn("of others", stacklevel=1)


def test_bytes_after_the_end_of_a_jpeg_do_no_harm():
    assert (decode(JPEG + b"trailing") == decode(JPEG)).all()
    assert isinstance(Image.open(io.BytesIO(JPEG)), Image.Image)
