import numpy as np
import pytest
import reference
from PIL import Image

from chipgen.codec import pack, unpack
from chipgen.resample import ONE, axis_weights, resample

PATTERNS = ("noise", "black and white", "checkers", "smooth")


def picture(rng, width, height, pattern="noise"):
    """(H, W, 3) uint8."""
    if pattern == "noise":
        return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    if pattern == "black and white":
        return rng.choice(np.array([0, 255], np.uint8), (height, width, 3))
    y, x = np.mgrid[:height, :width]
    if pattern == "checkers":
        return np.repeat(((x + y) % 2 * 255).astype(np.uint8)[..., None], 3, axis=2)
    return np.stack([x * 255 / width, y * 255 / height, (x + y) % 256], axis=2).astype(np.uint8)


def pillow(rgb, canvas, window):
    """The window of the whole picture resized by Pillow."""
    x, y, width, height = window
    resized = Image.fromarray(rgb).resize(canvas, Image.Resampling.BILINEAR)
    return np.asarray(resized)[y : y + height, x : x + width]


def random_window(rng, canvas, side=64):
    sizes = [int(rng.integers(1, min(side, length) + 1)) for length in canvas]
    corner = [int(rng.integers(0, canvas[k] - sizes[k] + 1)) for k in (0, 1)]
    return (*corner, *sizes)


def check_like_pillow(rgb, canvas, window):
    found = resample(pack(rgb), canvas, window)
    assert found.dtype == np.uint32
    assert found.shape == window[:1:-1]
    difference = unpack(found).astype(int) - pillow(rgb, canvas, window)
    assert np.abs(difference).max() <= 2


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize(("least", "most"), [(1, 8), (1 / 4, 1), (1 / 40, 1 / 4), (1 / 40, 8)])
def test_windows_are_those_of_pillow(pattern, least, most):
    rng = np.random.default_rng([PATTERNS.index(pattern), round(40 * least), round(most)])
    for trial in range(25):
        width, height = rng.integers(1, 300, 2).tolist()
        factors = np.exp(rng.uniform(np.log(least), np.log(most), 2))
        if trial % 2:
            factors[1] = factors[0]
        canvas = max(1, round(width * factors[0])), max(1, round(height * factors[1]))
        rgb = picture(rng, width, height, pattern)
        check_like_pillow(rgb, canvas, (0, 0, *canvas))
        check_like_pillow(rgb, canvas, random_window(rng, canvas))


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1), (2, 3), (1, 2)])
@pytest.mark.parametrize("canvas", [(1, 1), (1, 7), (7, 1), (40, 120), (3, 2)])
def test_thin_pictures_and_canvases_are_those_of_pillow(size, canvas):
    check_like_pillow(picture(np.random.default_rng(0), *size), canvas, (0, 0, *canvas))


@pytest.mark.parametrize("shrink", [1.5, 2, 3, 7.9, 16, 40])
def test_shrinking_is_that_of_pillow(shrink):
    rng = np.random.default_rng(0)
    rgb = picture(rng, 1200, 900)
    canvas = round(1200 / shrink), round(900 / shrink)
    check_like_pillow(rgb, canvas, (0, 0, *canvas))
    for _ in range(5):
        check_like_pillow(rgb, canvas, random_window(rng, canvas, 512))


@pytest.mark.parametrize("factor", [1.05, 1.667, 2, 3, 5.5])
def test_enlarging_is_bilinear_between_pixel_centres(factor):
    rng = np.random.default_rng(0)
    rgb = picture(rng, 33, 21)
    canvas = round(33 * factor), round(21 * factor)
    points = [
        (np.arange(length) + 0.5) * source / length - 0.5
        for length, source in zip(canvas, (33, 21), strict=True)
    ]
    expected = reference.sample_bilinear(rgb, *points)
    found = unpack(resample(pack(rgb), canvas, (0, 0, *canvas)))
    # half a level for the rounding of each of two passes, and a bit for 12-bit weights
    assert np.abs(found - expected).max() <= 1.1


@pytest.mark.parametrize("size", [(1, 1), (40, 30), (1, 9)])
def test_a_canvas_of_the_picture_s_size_is_the_picture(size):
    rng = np.random.default_rng(0)
    pixels = pack(picture(rng, *size))
    np.testing.assert_array_equal(resample(pixels, size, (0, 0, *size)), pixels)
    x, y, width, height = random_window(rng, size)
    found = resample(pixels, size, (x, y, width, height))
    np.testing.assert_array_equal(found, pixels[y : y + height, x : x + width])


@pytest.mark.parametrize("canvas", [(40, 90), (80, 45), (33, 200), (7, 3), (5, 300)])
def test_an_axis_of_the_picture_s_size_is_that_of_pillow(canvas):
    rgb = picture(np.random.default_rng(0), 40, 45)
    check_like_pillow(rgb, canvas, (0, 0, *canvas))


@pytest.mark.parametrize("value", [0, 1, 127, 254, 255])
@pytest.mark.parametrize("canvas", [(1, 1), (3, 5), (40, 50), (97, 250)])
def test_an_even_colour_stays_as_it_is(value, canvas):
    # each channel in its own place, none running over into the next
    rgb = np.full((90, 120, 3), (value, 255 - value, value // 2), np.uint8)
    found = unpack(resample(pack(rgb), canvas, (0, 0, *canvas)))
    assert (found == rgb[0, 0]).all()


@pytest.mark.parametrize("factors", [(3.0, 3.0), (1.3, 1.3), (0.7, 0.7), (0.09, 0.11), (2.0, 0.3)])
@pytest.mark.parametrize("seed", range(5))
def test_pixels_do_not_depend_on_the_window(factors, seed):
    rng = np.random.default_rng(seed)
    width, height = rng.integers(100, 300, 2).tolist()
    pixels = pack(picture(rng, width, height))
    canvas = round(width * factors[0]), round(height * factors[1])
    whole = resample(pixels, canvas, (0, 0, *canvas))
    for _ in range(5):
        window = x, y, w, h = random_window(rng, canvas)
        outer = resample(pixels, canvas, window)
        np.testing.assert_array_equal(outer, whole[y : y + h, x : x + w])
        dx, dy, inner_w, inner_h = random_window(rng, (w, h))
        inner = resample(pixels, canvas, (x + dx, y + dy, inner_w, inner_h))
        np.testing.assert_array_equal(inner, outer[dy : dy + inner_h, dx : dx + inner_w])


def test_the_fourth_byte_of_a_pixel_does_not_matter():
    rng = np.random.default_rng(0)
    pixels = pack(picture(rng, 60, 50))
    odd = pixels | rng.integers(0, 256, pixels.shape, dtype=np.uint32) << np.uint32(24)
    for canvas in [(90, 80), (20, 30)]:
        window = (3, 4, 10, 11)
        found = [unpack(resample(p, canvas, window)) for p in (pixels, odd)]
        np.testing.assert_array_equal(*found)


def test_pixels_may_be_part_of_a_larger_picture():
    rng = np.random.default_rng(0)
    large = pack(picture(rng, 100, 80))
    part = large[10:60, 20:90]
    for canvas in [(140, 100), (35, 20)]:
        window = (5, 5, 20, 10)
        found = [resample(p, canvas, window) for p in (part, part.copy())]
        np.testing.assert_array_equal(*found)


def test_pixels_are_left_alone():
    pixels = pack(picture(np.random.default_rng(0), 60, 50))
    before = pixels.copy()
    for canvas in [(90, 80), (20, 30)]:
        resample(pixels, canvas, (0, 0, *canvas))[:] = 0
    np.testing.assert_array_equal(pixels, before)


@pytest.mark.parametrize(
    "window",
    [
        (-1, 0, 10, 10),
        (0, -1, 10, 10),
        (31, 0, 10, 10),
        (0, 21, 10, 10),
        (0, 0, 41, 10),
        (0, 0, 10, 31),
        (0, 0, 0, 10),
        (0, 0, 10, 0),
        (5, 5, -1, 10),
        (40, 30, 1, 1),
    ],
)
@pytest.mark.parametrize("size", [(40, 30), (20, 15), (80, 60)])
def test_windows_off_the_canvas_are_refused(window, size):
    pixels = np.zeros(size[::-1], np.uint32)
    with pytest.raises(ValueError, match="does not lie on the canvas"):
        resample(pixels, (40, 30), window)


@pytest.mark.parametrize(
    ("source", "target"),
    [(1, 1), (1, 9), (9, 1), (100, 250), (250, 100), (4000, 100), (7, 8), (8, 7)],
)
def test_weights_are_shares_of_one_within_the_axis(source, target):
    starts, weights = axis_weights(source, target, 0, target)
    assert (weights.astype(np.int64).sum(axis=1) == ONE).all()
    assert (weights <= ONE).all()
    for start, taps in zip(starts.tolist(), weights.tolist(), strict=True):
        assert start >= 0
        assert all(start + t < source for t, weight in enumerate(taps) if weight)
    assert (np.diff(starts) >= 0).all()
