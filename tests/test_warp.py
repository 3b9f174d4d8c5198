import math
from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

import train.warp
from chipgen.codec import pack, unpack
from chipgen.cut import stored_pixels
from chipgen.resample import resample
from train.stream import Batch
from train.warp import AS_IT_IS, MEAN, STD, AugmentSettings, collage, shrunk, warp

pytestmark = pytest.mark.usefixtures("way")

PLAIN = AS_IT_IS
FLIPPING = AugmentSettings(shift=0)
STRONG = AugmentSettings(shift=0, brightness=0.6, contrast=0.6, colour=0.9)
STAYS, TURNS = 0.9, 0.1  # first draw of a chip that is not flipped, and of one that is
DARK, BRIGHT = 20, 230


@pytest.fixture(params=["taps", "products"])
def way(request, monkeypatch):
    """Draw as the CPU does, and as other devices do."""
    if request.param == "products":
        monkeypatch.setattr(train.warp, "_by_taps", train.warp._by_products)
    return request.param


@dataclass
class Chip:
    """What a shard says of a chip: pixels (H, W, 3) uint8, sizes as (width, height)."""

    pixels: np.ndarray
    window: tuple[int, int]
    boxes: tuple[tuple[float, ...], ...] = ()
    draws: tuple[float, ...] = (STAYS, 0.5, 0.5, 0.5, 0.0)
    shift: tuple[float, float] = (0.0, 0.0)  # its last draws
    scale: tuple[float, float] = (1.0, 1.0)
    offset: tuple[float, float] = (0.0, 0.0)
    range: tuple[float, float] = (8.0, 60.0)


def batch_of(chips, padded=4):
    """Make a batch; what pads the pixels is noise, and nobody may see it."""
    height, width = np.max([chip.pixels.shape[:2] for chip in chips], axis=0)
    pixels = np.random.default_rng(0).integers(0, 256, (len(chips), height, width, 3), np.uint8)
    boxes = np.zeros((len(chips), padded, 4), np.float32)
    labels = np.full((len(chips), padded), -1)
    for i, chip in enumerate(chips):
        pixels[i, : chip.pixels.shape[0], : chip.pixels.shape[1]] = chip.pixels
        for g, box in enumerate(chip.boxes):
            boxes[i, g], labels[i, g] = box, 10 * i + g

    def column(values):
        return torch.tensor(values, dtype=torch.float32)

    return Batch(
        rows=torch.arange(len(chips)),
        pixels=torch.from_numpy(pixels),
        stored=column([chip.pixels.shape[1::-1] for chip in chips]),
        scale=column([chip.scale for chip in chips]),
        offset=column([chip.offset for chip in chips]),
        window=column([chip.window for chip in chips]),
        boxes=torch.from_numpy(boxes),
        labels=torch.from_numpy(labels),
        valid=torch.from_numpy(labels % 2 == 0),
        crowd=torch.from_numpy(labels % 5 == 0),
        cut=torch.from_numpy(labels % 3 == 0),
        ranges=column([chip.range for chip in chips]),
        draws=column([chip.draws + chip.shift for chip in chips]),
        sizes=tuple(chip.pixels.shape[1::-1] for chip in chips),
    )


def levels(canvases):
    """Canvases (b, 3, h, w) as grey levels (b, h, w, 3)."""
    grey = canvases.float().permute(0, 2, 3, 1) * torch.tensor(STD) + torch.tensor(MEAN)
    return grey.numpy()


def noise(rng, width, height):
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def marked(rng, width, height, smallest=12, **more):
    """Make a dark chip with one bright rectangle, and a box about it."""
    w, h = rng.integers(smallest // 2, [width // 4, height // 4]) * 2  # even: halves are whole
    x, y = rng.integers(0, [(width - w) // 2 + 1, (height - h) // 2 + 1]) * 2
    pixels = np.full((height, width, 3), DARK, np.uint8)
    pixels[y : y + h, x : x + w] = BRIGHT
    boxes = ((x, y, x + w, y + h),)
    return Chip(pixels, (width, height), boxes, (rng.random(), 0.5, 0.5, 0.5, rng.random()), **more)


def assert_bright_inside(canvas, box):
    """Check that a canvas (h, w, 3) is bright in a box and dark elsewhere, 1 px aside."""
    x1, y1, x2, y2 = (round(float(edge)) for edge in box)
    assert canvas[y1 + 1 : y2 - 1, x1 + 1 : x2 - 1].min() > 200
    outside = canvas.copy()
    outside[max(y1 - 1, 0) : y2 + 1, max(x1 - 1, 0) : x2 + 1] = 0
    assert outside.max() < 130  # padding is the mean colour


def enlarged(rng, factor, count=12, side=64, shrink=1):
    """Make chips stored at the picture's resolution, and what a shrunken canvas shows of each."""
    chips, wanted = [], []
    for _ in range(count):
        picture = pack(noise(rng, *rng.integers(30, 90, 2).tolist()))
        shown = [round(length * factor / shrink) for length in picture.shape[::-1]]
        size = [min(side // shrink, length) - int(rng.integers(3)) for length in shown]
        x, y = (int(rng.integers(0, shown[k] - size[k] + 1)) for k in (0, 1))
        canvas, window = ([shrink * n for n in numbers] for numbers in (shown, (x, y, *size)))
        stored = stored_pixels(picture, tuple(canvas), tuple(window), "source")
        whole = unpack(resample(picture, tuple(shown), (0, 0, *shown)))
        wanted.append(whole[y : y + size[1], x : x + size[0]])
        about = {"scale": stored.scale, "offset": stored.offset}
        chips.append(Chip(unpack(stored.pixels), tuple(window[2:]), **about))
    return chips, wanted


def test_a_chip_stored_as_canvas_is_drawn_as_it_is():
    rng = np.random.default_rng(0)
    chips = [Chip(noise(rng, 64, 48), (64, 48)) for _ in range(3)]
    canvases, targets = warp(batch_of(chips), (48, 64), PLAIN, torch.float32)
    assert canvases.shape == (3, 3, 48, 64)
    assert canvases.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_allclose(levels(canvases), [chip.pixels for chip in chips], atol=0.01)
    assert targets.cell == (48, 64)
    assert targets.content.tolist() == [[64, 48]] * 3
    assert targets.ranges.tolist() == [[[8, 60]]] * 3


@pytest.mark.parametrize("factor", [1.1, 1.667, 2, 3, 4.5])
@pytest.mark.parametrize("turn", [STAYS, TURNS])
def test_a_chip_stored_as_source_is_the_window_of_the_resized_picture(factor, turn):
    chips, wanted = enlarged(np.random.default_rng(round(factor * 10)), factor)
    assert any(chip.pixels.shape[1::-1] != chip.window for chip in chips)
    turned = [replace(chip, draws=(turn, 0.5, 0.5, 0.5, 0)) for chip in chips]
    canvases, _ = warp(batch_of(turned), (64, 64), FLIPPING, torch.float32)
    for found, expected in zip(levels(canvases), wanted, strict=True):
        shown = expected[:, ::-1] if turn == TURNS else expected
        np.testing.assert_allclose(found[: shown.shape[0], : shown.shape[1]], shown, atol=1.5)


def test_a_shrunken_chip_is_what_the_chip_generator_would_make_of_it():
    rng = np.random.default_rng(0)
    chips, wanted = enlarged(rng, 3.5, count=20, shrink=2)
    for width, height in [(32, 24), (20, 24), (32, 11), (6, 15)] * 4:
        chips.append(Chip(noise(rng, 2 * width, 2 * height), (2 * width, 2 * height)))
        window = 0, 0, width, height
        wanted.append(unpack(resample(pack(chips[-1].pixels), window[2:], window)))
    batches = [batch_of(chips[k : k + 9]) for k in (0, 9, 18, 27)]
    canvases, _ = shrunk(batches, (64, 64), PLAIN, 100, torch.float32)
    for found, expected in zip(levels(canvases), wanted, strict=True):
        height, width = expected.shape[:2]
        np.testing.assert_allclose(found[:height, :width], expected, atol=1.5)


def test_flips_mirror_pixels_and_boxes_alike():
    rng = np.random.default_rng(0)
    chips = [marked(rng, *rng.integers(50, 97, 2).tolist()) for _ in range(40)]
    canvases, targets = warp(batch_of(chips), (96, 96), FLIPPING, torch.float32)
    unturned, as_stored = warp(batch_of(chips), (96, 96), PLAIN, torch.float32)
    for i, chip in enumerate(chips):
        assert_bright_inside(levels(canvases)[i], targets.boxes[i, 0])
        (width, height), turned = chip.window, chip.draws[0] < 0.5
        found, plain = canvases[i, :, :height, :width], unturned[i, :, :height, :width]
        expected = plain.flip(2) if turned else plain
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
        x1, y1, x2, y2 = chip.boxes[0]
        place = [width - x2, y1, width - x1, y2] if turned else [x1, y1, x2, y2]
        assert targets.boxes[i, 0].tolist() == place
        assert as_stored.boxes[i, 0].tolist() == [x1, y1, x2, y2]
    assert 10 < sum(chip.draws[0] < 0.5 for chip in chips) < 30


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_is_drawn_right_of_and_below_the_content(dtype):
    rng = np.random.default_rng(0)
    chips, _ = enlarged(rng, 1.667)
    chips += [Chip(noise(rng, *size), size) for size in ((1, 64), (64, 1), (30, 41), (64, 64))]
    chips = [replace(chip, draws=tuple(rng.random(5))) for chip in chips]
    canvases, targets = warp(batch_of(chips), (64, 96), STRONG, dtype)
    assert canvases.dtype == dtype
    for canvas, chip, content in zip(canvases, chips, targets.content.tolist(), strict=True):
        assert content == list(chip.window)
        width, height = chip.window
        assert not canvas[:, height:].any()
        assert not canvas[:, :, width:].any()
        assert canvas[:, :height, :width].any()


@pytest.fixture(params=[1, 2, 3])
def groups(request):
    """Marked chips of several sizes for a 96 x 144 canvas, so many groups as it has cells."""
    rng = np.random.default_rng(request.param)

    def chip():
        size = (rng.integers([96, 72], [145, 97]) // 12 * 12).tolist()
        low, high = rng.uniform(0, [20, 90]).tolist()
        open_end = high if rng.random() < 0.7 else np.inf
        return marked(rng, *size, smallest=10 * request.param, range=(low, open_end))

    return [[chip() for _ in range(5)] for _ in range(request.param**2)]


def test_shrunken_chips_lie_side_by_side_with_boxes_and_ranges_shrunken_alike(groups):
    side = round(len(groups) ** 0.5)
    batches = [batch_of(group, padded=4 + k) for k, group in enumerate(groups)]
    canvases, targets = shrunk(batches, (96, 144), FLIPPING, 0, torch.float32)
    assert canvases.shape == (5 * side**2, 3, 96 // side, 144 // side)
    assert targets.cell == (96 // side, 144 // side)
    for i, chip in enumerate(chip for group in groups for chip in group):
        width, height = chip.window[0] / side, chip.window[1] / side
        x1, y1, x2, y2 = (edge / side for edge in chip.boxes[0])
        place = (width - x2, y1, width - x1, y2) if chip.draws[0] < 0.5 else (x1, y1, x2, y2)
        assert targets.boxes[i, 0].tolist() == pytest.approx(place, abs=1e-4)
        assert targets.ranges[i, 0].tolist() == pytest.approx([end / side for end in chip.range])
        assert targets.content[i].tolist() == pytest.approx([width, height])
        assert targets.labels[i].tolist() == [10 * (i % 5)] + [-1] * (2 + side**2)
        assert targets.draws[i].item() == pytest.approx(chip.draws[4])
        assert_bright_inside(levels(canvases[i : i + 1])[0], targets.boxes[i, 0])


def test_a_collage_holds_the_shrunken_chips_row_by_row(groups):
    side = round(len(groups) ** 0.5)
    height, width = 96 // side, 144 // side
    batches = [batch_of(group) for group in groups]
    canvases, targets = collage(batches, (96, 144), FLIPPING, 0, torch.float32)
    alone, of_alone = shrunk(batches, (96, 144), FLIPPING, 0, torch.float32)
    assert canvases.shape == (5, 3, 96, 144)
    assert targets.cell == (height, width)
    assert targets.content.tolist() == [[144, 96]] * 5
    assert torch.equal(targets.draws, of_alone.draws[:5])
    for k in range(side**2):
        y, x = k // side * height, k % side * width
        cells, boxes = slice(5 * k, 5 * k + 5), slice(4 * k, 4 * k + 4)  # of batch k
        part = canvases[:, :, y : y + height, x : x + width]
        torch.testing.assert_close(part, alone[cells])
        moved = of_alone.boxes[cells] + torch.tensor([x, y, x, y])
        torch.testing.assert_close(targets.boxes[:, boxes], moved)
        assert torch.equal(targets.labels[:, boxes], of_alone.labels[cells])
        assert torch.equal(targets.ranges[:, k], of_alone.ranges[cells, 0])


@pytest.mark.parametrize("form", [collage, shrunk])
def test_boxes_that_become_tiny_are_dropped_and_the_others_keep_what_they_are(form):
    boxes = ((0, 0, 20, 20), (0, 0, 19.9, 20), (8, 8, 48, 18), (30, 30, 60, 60))
    chips = [Chip(np.zeros((64, 64, 3), np.uint8), (64, 64), boxes) for _ in range(8)]
    batches = [batch_of(chips[2 * k : 2 * k + 2], padded=8) for k in range(4)]
    _, targets = form(batches, (64, 64), PLAIN, 100, torch.float32)
    of_two = batches[0].labels.clone()
    of_two[:, 1] = -1  # 99.5 px of area; the first and the third have 100
    flags = ((name, getattr(batches[0], name)) for name in ("valid", "crowd", "cut"))
    for name, one in (("labels", of_two), *flags):
        expected = one.repeat(1, 4) if form is collage else one.repeat(4, 1)
        assert torch.equal(getattr(targets, name), expected)


def test_a_collage_that_the_parts_do_not_divide_is_as_large_as_the_canvas():
    chips = [Chip(np.full((64, 64, 3), BRIGHT, np.uint8), (64, 64)) for _ in range(9)]
    batches = [batch_of([chip]) for chip in chips]
    canvases, targets = collage(batches, (64, 64), PLAIN, 100, torch.float32)
    assert canvases.shape == (1, 3, 64, 64)
    assert targets.content.tolist() == [[64, 64]]
    np.testing.assert_allclose(levels(canvases)[:, :63, :63], BRIGHT, atol=0.01)
    assert not canvases[:, :, 63:].any()
    assert not canvases[:, :, :, 63:].any()


@pytest.mark.parametrize("turn", [STAYS, TURNS])
@pytest.mark.parametrize(("most", "found"), [(6, 6), (60, 8)])  # an eighth of 64 px
def test_a_shifted_chip_is_the_whole_one_without_its_left_and_upper_edge(turn, most, found):
    rng = np.random.default_rng(0)
    chips, _ = enlarged(rng, 2.3, count=40)
    boxes = ((20, 20, 30, 30), (0, 20, 21, 40), (1, 20, 4, 40), (3, 3, 9, 9))
    chips = [replace(c, boxes=boxes, draws=(STAYS, *c.draws[1:])) for c in chips]
    moved = [
        replace(c, draws=(turn, *c.draws[1:]), shift=tuple(rng.random(2).tolist())) for c in chips
    ]
    whole, of_whole = warp(batch_of(chips), (64, 64), FLIPPING, torch.float32)
    shifted, of_shifted = warp(
        batch_of(moved), (64, 64), AugmentSettings(shift=most), torch.float32
    )
    seen, kept = set(), Counter()
    for i, chip in enumerate(moved):
        room = [min(most, side // 8) for side in chip.window]
        x, y = (int(draw * (free + 1)) for draw, free in zip(chip.shift, room, strict=True))
        seen.add((x, y))
        width, height = chip.window[0] - x, chip.window[1] - y
        assert of_shifted.content[i].tolist() == [width, height]
        part = whole[i, :, y : chip.window[1], x : chip.window[0]]
        drawn = shifted[i, :, :height, :width]
        assert (shifted[i] != 0).sum() == (drawn != 0).sum()
        torch.testing.assert_close(
            drawn, part.flip(2) if turn == TURNS else part, atol=1e-4, rtol=0
        )
        for g, box in enumerate(boxes):
            x1, y1, x2, y2 = (box[0] - x, box[1] - y, box[2] - x, box[3] - y)
            if x2 <= 0 or y2 <= 0:
                assert of_shifted.labels[i, g] == -1
                continue
            left, right = (max(x1, 0), x2) if turn == STAYS else (width - x2, width - max(x1, 0))
            assert of_shifted.boxes[i, g].tolist() == [left, max(y1, 0), right, y2]
            area = (box[2] - box[0]) * (box[3] - box[1])
            lost = (x2 - max(x1, 0)) * (y2 - max(y1, 0)) < 0.8 * area
            kept[g, bool(lost)] += 1
            assert of_shifted.valid[i, g] == (of_whole.valid[i, g] and not lost)
            assert of_shifted.cut[i, g] == (of_whole.cut[i, g] or lost)
            assert of_shifted.labels[i, g] == of_whole.labels[i, g]
    assert {0, found} <= {x for x, _ in seen} <= set(range(found + 1))
    assert {0, found} <= {y for _, y in seen} <= set(range(found + 1))
    assert kept[1, False] > 5
    assert kept[1, True] > 5


def test_a_negative_shift_is_refused():
    with pytest.raises(ValueError, match="shift = -1"):
        AugmentSettings(shift=-1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_colours_that_vary_by_nothing_are_those_stored(dtype):
    rng = np.random.default_rng(0)
    chips = [Chip(noise(rng, 32, 32), (32, 32)) for _ in range(3)]
    canvases, _ = warp(batch_of(chips), (32, 32), STRONG, dtype)  # all draws in the middle
    atol = 0.01 if dtype == torch.float32 else 2
    np.testing.assert_allclose(levels(canvases), [chip.pixels for chip in chips], atol=atol)


def test_colours_vary_as_the_draws_say_and_stay_in_range():
    rng = np.random.default_rng(0)
    pixels = noise(rng, 16, 16)
    draws = rng.random((30, 3))
    chips = [Chip(pixels, (16, 16), draws=(STAYS, *row, 0.0)) for row in draws.tolist()]
    canvases, _ = warp(batch_of(chips), (16, 16), STRONG, torch.float32)
    brightness, contrast, colour = (1 + (2 * draws - 1) * [0.6, 0.6, 0.9]).T[..., None, None, None]
    grey = (pixels @ np.array([0.299, 0.587, 0.114]))[..., None]
    wanted = grey + colour * (pixels - grey)
    wanted = brightness * (np.array(MEAN) + contrast * (wanted - np.array(MEAN)))
    np.testing.assert_allclose(levels(canvases), np.clip(wanted, 0, 255), atol=0.05)
    assert wanted.max() > 300


@pytest.mark.parametrize("settings", [FLIPPING, STRONG])
def test_a_chip_alone_is_drawn_as_among_larger_ones(settings):
    rng = np.random.default_rng(0)
    chips, _ = enlarged(rng, 2.3)
    chips += [Chip(noise(rng, *size), size) for size in ((1, 1), (20, 64), (64, 20), (64, 64))]
    chips = [replace(chip, draws=tuple(rng.random(5))) for chip in chips]
    together, _ = warp(batch_of(chips), (64, 64), settings, torch.float32)
    in_four = collage([batch_of(chips)] * 4, (64, 64), settings, 100, torch.float32)[0]
    for i, chip in enumerate(chips):
        alone, _ = warp(batch_of([chip]), (64, 64), settings, torch.float32)
        torch.testing.assert_close(alone[0], together[i], atol=1e-4, rtol=0)
        one_in_four = collage([batch_of([chip])] * 4, (64, 64), settings, 100, torch.float32)[0]
        torch.testing.assert_close(one_in_four[0], in_four[i], atol=1e-4, rtol=0)


@pytest.mark.parametrize("way", ["taps"], indirect=True)
def test_both_ways_draw_the_same(way):
    rng = np.random.default_rng(0)
    for _ in range(300):
        chips = []
        for _ in range(rng.integers(1, 4)):
            pixels = noise(rng, *rng.integers(1, 60, 2).tolist())
            scale = tuple(np.exp(rng.uniform(-1.8, 1.5, 2)).tolist())
            shown = [math.ceil(n * s) for n, s in zip(pixels.shape[1::-1], scale, strict=True)]
            window = tuple(int(rng.integers(1, min(n, 48) + 1)) for n in shown)
            offset = tuple(rng.uniform(-5, 1, 2).tolist())
            draws = tuple(rng.random(5))
            chips.append(Chip(pixels, window, (), draws, scale=scale, offset=offset))
        batch, canvas = batch_of(chips), (int(rng.integers(48, 70)), 48)
        settings = STRONG if rng.random() < 0.3 else FLIPPING
        ways = train.warp._by_taps, train.warp._by_products
        taps, products = (torch.full((len(chips), 3, *canvas), torch.nan) for _ in ways)
        zoom = float(rng.choice([1.0, 0.5]))
        ways[0](batch, taps, settings, zoom)
        ways[1](batch, products, settings, zoom)
        torch.testing.assert_close(taps, products, atol=2e-3, rtol=0)


@pytest.mark.parametrize("factor", [1.1, 1.667, 3])
@pytest.mark.parametrize("parts", [1, 4])
def test_half_precision_is_within_about_two_grey_levels_and_no_brighter(factor, parts):
    chips, _ = enlarged(np.random.default_rng(0), factor, count=40)
    batches = [batch_of(chips)] * parts
    exact, fast = (
        levels(collage(batches, (64, 64), FLIPPING, 100, dtype)[0])
        for dtype in (torch.float32, torch.bfloat16)
    )
    difference = np.abs(fast - exact)  # of pure noise: a picture has smaller steps
    assert np.quantile(difference, 0.9999) < 2
    assert difference.max() < 3
    assert abs(np.mean(fast - exact)) < 0.1
