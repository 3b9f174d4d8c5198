import dataclasses
import itertools
import math
from fractions import Fraction

import inferring
import made_up
import numpy as np
import pytest
import torch

from chipgen.pyramid import Level
from infer import cascade, crop
from infer.cascade import AUTOFOCUS, PYRAMID, Flight, Machine, fly, focused, tiles
from infer.crop import Region, draw
from infer.detector import Detector, landed
from infer.focus import FocusSettings
from infer.network import Network, Seen
from infer.settings import InferSettings
from train.warp import MEAN, STD

STRIDE = 16
BRIGHT = 255


def picture(width, height, seed=0):
    return np.array(made_up.noise(width, height, seed))


def detector(seeds=(0,), **changes):
    models = [inferring.model(seed) for seed in seeds]
    return Detector(models, inferring.CLASSES, inferring.pyramid(**changes), torch.device("cpu"))


def assert_alike(found, expected, tolerance=1e-3):
    """Of two whose scores are as good as equal, either may come first."""
    assert len(found.scores) == len(expected.scores)
    np.testing.assert_allclose(found.scores, expected.scores, atol=tolerance)
    apart = np.abs(found.boxes[:, None] - expected.boxes).max(axis=2)
    other = np.abs(found.scores[:, None] - expected.scores)
    same = (apart <= tolerance * 100) & (other <= tolerance)
    same &= found.labels[:, None] == expected.labels
    assert same.any(axis=0).all()
    assert same.any(axis=1).all()


class Seer:
    """A network that finds what is bright, wherever it is drawn, and wants to see small ones again.

    One detection a connected bright rectangle, at its place on the canvas; a cell is worth a
    closer look where it holds something bright of at most `small` px.
    """

    def __init__(self, small=24.0, scores=None):
        self.small = small
        self.seen = []

    def __call__(self, canvases, content):
        self.seen.append((tuple(canvases.shape), content.tolist()))
        limit = (128 - np.array(MEAN).mean()) / np.array(STD).mean()
        bright = canvases.float().mean(1).numpy() > limit
        boxes, scores, focus = (
            [],
            [],
            np.zeros((len(bright), *(s // STRIDE for s in bright[0].shape))),
        )
        for i, one in enumerate(bright):
            found = rectangles(one)
            for x1, y1, x2, y2 in found:
                if math.sqrt((x2 - x1) * (y2 - y1)) <= self.small:
                    focus[i, y1 // STRIDE : -(-y2 // STRIDE), x1 // STRIDE : -(-x2 // STRIDE)] = 1.0
            boxes.append(found)
            scores.append([0.9] * len(found))
        most = max(map(len, boxes))
        padded = np.zeros((len(bright), most, 1, 4), np.float32)
        of = np.zeros((len(bright), most, 2), np.float32)
        for i, found in enumerate(boxes):
            padded[i, : len(found), 0] = np.reshape(found, (-1, 4))
            of[i, : len(found), 1] = scores[i]
        return Seen(torch.from_numpy(padded), torch.from_numpy(of), torch.from_numpy(focus))


def rectangles(bright):
    """Boxes of the connected bright parts of a mask, which are rectangles."""
    left = bright.copy()
    found = []
    while left.any():
        y, x = np.argwhere(left)[0]
        x2, y2 = x, y
        while x2 < left.shape[1] and left[y, x2]:
            x2 += 1
        while y2 < left.shape[0] and left[y2, x]:
            y2 += 1
        left[y:y2, x:x2] = False
        found.append((x, y, x2, y2))
    return found


def with_squares(width, height, *squares):
    pixels = np.zeros((height, width, 3), np.uint8)
    for x, y, side in squares:
        pixels[y : y + side, x : x + side] = BRIGHT
    return pixels


def seer_run(pixels, settings, mode=AUTOFOCUS, seer=None):
    machine = Machine(seer or Seer(), STRIDE, torch.float32, 0)
    (flight,) = fly([torch.from_numpy(pixels)], machine, settings, mode)
    return landed(flight, "made up", settings)


TWO = InferSettings(
    levels=(Level((20.0, math.inf), factor=0.5), Level((0.0, 20.0), factor=2.0)),
    focus=(FocusSettings(0.5, 3, 64),),
    precision="fp32",
)


def test_small_things_are_found_in_chips_and_large_ones_in_the_whole_picture():
    pixels = with_squares(640, 480, (40, 50, 10), (500, 380, 12), (200, 100, 120))
    result = seer_run(pixels, TWO)
    found = sorted(result.boxes.tolist())
    expected = [[40, 50, 50, 60], [200, 100, 320, 220], [500, 380, 512, 392]]
    np.testing.assert_allclose(found, expected, atol=1.0)
    assert result.labels.tolist() == [1, 1, 1]
    assert len(result.chips[1]) == 2
    assert result.processed[0] == 320 * 240
    assert result.processed[1] < 0.1 * result.canvases[1]


def test_without_anything_small_no_chip_is_looked_at():
    seer = Seer()
    result = seer_run(with_squares(640, 480, (200, 100, 120)), TWO, seer=seer)
    assert len(seer.seen) == 1
    assert result.processed == {0: 320 * 240, 1: 0}
    assert len(result.chips[1]) == 0
    assert len(result.boxes) == 1


def test_a_pyramid_of_one_level_has_its_range():
    pixels = with_squares(640, 480, (40, 50, 10), (200, 100, 120))
    one = dataclasses.replace(TWO, levels=(Level((20.0, math.inf), factor=1.0),), focus=())
    for mode, count in ((AUTOFOCUS, 1), (PYRAMID, 1), (0, 2)):
        assert len(seer_run(pixels, one, mode=mode).boxes) == count


def test_a_batch_that_is_too_large_for_memory_is_halved():
    made = middling()
    pictures = [torch.from_numpy(picture(w, h, 5)) for w, h in ((330, 280), (100, 330), (260, 256))]
    sizes = []

    def small(canvases, content):
        sizes.append(len(canvases))
        if len(canvases) > 2:
            raise torch.OutOfMemoryError("tried to allocate 2 GiB")
        return made.machine.look(canvases, content)

    machine = dataclasses.replace(made.machine, look=small, pixels=10**8)
    found = fly(pictures, machine, made.settings, AUTOFOCUS)
    assert max(sizes) > 2
    for flight, pixels in zip(found, pictures, strict=True):
        (alone,) = made(pixels)
        assert_alike(landed(flight, None, made.settings), alone)
    sizes.clear()
    machine = dataclasses.replace(machine, look=lambda *_: small(torch.zeros(3), None))
    with pytest.raises(torch.OutOfMemoryError):
        fly(pictures, machine, made.settings, AUTOFOCUS)


def test_a_level_alone_keeps_every_size():
    pixels = with_squares(640, 480, (40, 50, 10), (200, 100, 120))
    assert len(seer_run(pixels, TWO, mode=1).boxes) == 2
    assert seer_run(pixels, TWO, mode=1).processed == {1: 1280 * 960}


@pytest.mark.parametrize(
    ("smallest", "dilation", "side"),
    [(16, 1, 96), (100, 1, 112), (198, 1, 208), (16, 2, 144), (16, 3, 192)],
)
def test_chips_have_a_border_around_objects_that_fill_their_focus_pixels(smallest, dilation, side):
    settings = dataclasses.replace(
        TWO,
        levels=(Level((40.0, math.inf), factor=0.5), Level((0.0, 40.0), factor=2.0)),
        focus=(FocusSettings(0.5, dilation, smallest),),
        step=STRIDE,
    )
    for x in (96, 0):  # at the picture's edge as well
        result = seer_run(with_squares(640, 480, (x, 96, 32)), settings)
        np.testing.assert_allclose(result.boxes, [[x, 96, x + 32, 128]], atol=0.5)
        assert result.chips[1][0, 3] - result.chips[1][0, 1] == side / 2


def test_an_object_that_a_chip_cuts_is_not_found_there():
    # the long bar is wanted by its size at the fine level, but a chip around the dot cuts it
    pixels = with_squares(640, 480, (300, 200, 8))
    pixels[220:226, 0:330] = BRIGHT  # 330 x 6: sqrt(area) is 44
    settings = dataclasses.replace(
        TWO, levels=(Level((100.0, math.inf), factor=0.5), Level((0.0, 100.0), factor=2.0))
    )
    result = seer_run(pixels, settings, seer=Seer(small=10))
    np.testing.assert_allclose(result.boxes, [[300, 200, 308, 208]], atol=1.0)


@pytest.mark.parametrize("tile", [128, 256, 4096])
def test_tiles_find_everything_once(tile):
    rng = np.random.default_rng(3)
    places = list(itertools.product(range(10, 600, 60), range(10, 440, 60)))
    squares = [(x, y, int(rng.integers(6, 20))) for x, y in places]
    settings = dataclasses.replace(
        TWO,
        levels=(Level(factor=1.0),),
        focus=(),
        tile=tile,
        overlap=64,
        detections=1000,
        suppression="hard",
    )
    result = seer_run(with_squares(640, 480, *squares), settings, PYRAMID)
    expected = sorted([x, y, x + s, y + s] for x, y, s in squares)
    np.testing.assert_allclose(sorted(np.round(result.boxes).tolist()), expected, atol=1)


@pytest.mark.parametrize("length", [1, 100, 256, 257, 300, 511, 512, 513, 1000, 4000])
@pytest.mark.parametrize("overlap", [0, 32, 100, 128])
def test_tiles_cover_a_window_and_begin_on_cells(length, overlap):
    cut = tiles((48, 0, length, 40), 256, overlap, STRIDE)
    starts, ends = [x for x, *_ in cut], [x + w for x, _, w, _ in cut]
    assert min(starts) == 48
    assert max(ends) == 48 + length
    assert all(x % STRIDE == 0 for x in starts)
    assert all(y == 0 and h == 40 for _, y, _, h in cut)
    assert all(w < 256 + STRIDE for _, _, w, _ in cut)
    gaps = [end - start for end, start in zip(ends, starts[1:], strict=False)]
    assert all(gap > overlap - STRIDE for gap in gaps)
    assert len(cut) == len(set(cut))


def test_threshold_zero_gives_the_full_pyramid():
    everything = [{"threshold": 0.0, "dilation": 1, "smallest": 16}] * 2
    made = detector(focus=everything)
    for size in ((333, 250), (90, 61), (400, 301)):
        pixels = picture(*size)
        (found,) = made(pixels)
        (whole,) = made(pixels, PYRAMID)
        assert len(found.scores) > 10
        assert found.processed == whole.processed == whole.canvases
        assert_alike(found, whole, 0)


def middling(**changes):
    """A detector whose focus is above its threshold in some cells and below in others."""
    made = detector(**changes)
    (whole,) = made(picture(330, 280, 5), PYRAMID)
    focus = [
        {"threshold": float(np.quantile(whole.focus[level], 0.9)), "dilation": 1, "smallest": 48}
        for level in (0, 1)
    ]
    return detector(focus=focus, **changes)


@pytest.mark.parametrize("mode", [AUTOFOCUS, PYRAMID, 1])
def test_a_picture_alone_and_in_company_gives_the_same(mode):
    made = middling()
    pictures = [
        picture(w, h, 5) for w, h in ((330, 280), (100, 330), (330, 281), (48, 40), (260, 256))
    ]
    alone = [result for one in pictures for result in made(one, mode)]
    assert sum(len(result.scores) for result in alone) > 50
    machines = [dataclasses.replace(made.machine, pixels=pixels) for pixels in (0, 200_000, 10**8)]
    for machine, order in itertools.product(machines, ((0, 1, 2, 3, 4), (4, 2, 0, 3, 1))):
        flights = fly([torch.from_numpy(pictures[i]) for i in order], machine, made.settings, mode)
        for i, flight in zip(order, flights, strict=True):
            assert_alike(landed(flight, i, made.settings), alone[i])
            assert flight.processed == alone[i].processed


def test_chips_lie_in_chips_and_in_the_picture():
    (result,) = middling()(picture(330, 280, 5))
    assert 0 < result.processed[1] < result.canvases[1]
    assert 0 < result.processed[2] < result.canvases[2]
    for chips in result.chips.values():
        assert (chips >= 0).all()
        assert (chips <= np.array([330, 280, 330, 280]) + 1e-3).all()
    for x1, y1, x2, y2 in result.chips[2]:
        assert not (result.focus[1] >= 0).all()
        assert (x2 - x1) * 1.8 >= 48 - 1e-3
        assert (y2 - y1) * 1.8 >= 48 - 1e-3


def test_chips_enclose_their_focus_with_its_border_are_large_enough_and_never_overlap():
    rng = np.random.default_rng(5)
    for _ in range(400):
        width, height = rng.integers(40, 700, 2).tolist()
        dilation, smallest = rng.integers(1, 5), int(rng.integers(1, 300))
        settings = dataclasses.replace(
            TWO,
            levels=(Level(long=int(rng.integers(64, 400))), Level(factor=rng.uniform(0.5, 2.5))),
            focus=(FocusSettings(threshold=0.5, dilation=int(dilation), smallest=smallest),),
            border=float(rng.integers(0, 40)),
            step=int(rng.choice([16, 32, 64])),
        )
        flight = Flight.start(torch.zeros(height, width, 3, dtype=torch.uint8), settings)
        shape = [-(-side // STRIDE) for side in flight.canvases[0, ::-1]]
        flight.maps[0] = (rng.random(shape) < rng.choice([0.01, 0.1, 0.5])).astype(np.float32)
        canvas = flight.canvases[1]
        covered = np.zeros(canvas[::-1], int)
        for x, y, w, h in focused(flight, 1, STRIDE, settings):
            assert w >= min(smallest, canvas[0])
            assert h >= min(smallest, canvas[1])
            assert x + w <= canvas[0]
            assert y + h <= canvas[1]
            covered[y : y + h, x : x + w] += 1
        assert covered.max(initial=0) <= 1
        cell = STRIDE * flight.scales[1] / flight.scales[0]
        for row, column in np.argwhere(flight.maps[0]):
            low, high = cell * (column, row), cell * (column + 1, row + 1)
            x1, y1 = np.maximum(low - settings.border, 0).round().astype(int)
            x2, y2 = np.minimum(high + settings.border, canvas).round().astype(int)
            assert covered[y1:y2, x1:x2].all()


@pytest.mark.parametrize("smallest", [1, 60, 128])
def test_chips_have_no_cell_more_than_focus_border_and_smallest_side_need(smallest):
    """Cells of 28 px and of 28.0075, as a picture of 320 x 240 has at 2.9 times its size."""
    settings = dataclasses.replace(
        TWO,
        levels=(Level(short=400, long=640), Level(short=700, long=1000)),
        focus=(FocusSettings(threshold=0.5, dilation=1, smallest=smallest),),
        border=8.0,
        step=STRIDE,
    )
    flight = Flight.start(torch.zeros(240, 320, 3, dtype=torch.uint8), settings)
    (wide, high), canvas = flight.canvases.tolist()
    assert (wide, high, *canvas) == (533, 400, 933, 700)
    rows, columns = -(-high // STRIDE), -(-wide // STRIDE)
    least = -(-smallest // STRIDE)
    for row, column in itertools.product(range(rows), range(columns)):
        flight.maps[0] = np.zeros((rows, columns), np.float32)
        flight.maps[0][row, column] = 1.0
        (window,) = focused(flight, 1, STRIDE, settings)
        for axis, cell in ((0, Fraction(STRIDE * 933, 533)), (1, Fraction(28))):
            place = (column, row)[axis]
            first = max((round(place * cell) - 8) // STRIDE, 0)
            last = -(-min(round((place + 1) * cell) + 8, canvas[axis]) // STRIDE)
            cells = -(-window[2 + axis] // STRIDE)
            near_end = canvas[axis] - first * STRIDE < smallest  # the last cell is less than one
            assert cells <= max(last - first, least) + near_end
            assert window[axis] <= first * STRIDE
            assert window[axis] + window[2 + axis] >= min(last * STRIDE, canvas[axis])


def test_pictures_of_one_pixel_and_of_one_line_go_through():
    made = middling()
    for size in ((1, 1), (1, 500), (700, 1)):
        for mode in (AUTOFOCUS, PYRAMID, 0):
            (result,) = made(picture(*size), mode)
            assert result.size == size


def test_thousands_of_objects_go_through_and_are_capped():
    squares = [(x, y, 4) for x, y in itertools.product(range(4, 800, 10), range(4, 640, 10))]
    pixels = with_squares(800, 640, *squares)
    settings = dataclasses.replace(TWO, levels=(Level(factor=1.0),), focus=(), detections=6000)
    assert len(squares) > 5000
    assert len(seer_run(pixels, settings).boxes) == len(squares)
    capped = dataclasses.replace(settings, detections=50)
    assert len(seer_run(pixels, capped).boxes) == 50


@pytest.mark.parametrize("scale", [(0.13, 0.13), (0.5, 0.49), (1.0, 1.0), (1.8, 1.81)])
def test_bands_draw_what_is_drawn_at_once(scale, monkeypatch):
    pixels = torch.from_numpy(picture(640, 500))
    width, height = round(640 * scale[0]), round(500 * scale[1])
    whole = Region(0, (0, 0, width, height), (width / 640, height / 500))
    inner = Region(0, (16, 16, width // 2, height // 2), whole.scale)
    shape = -(-height // 64) * 64, -(-width // 64) * 64
    at_once = draw([pixels], [whole, inner], shape, torch.float32)
    monkeypatch.setattr(crop, "BAND", 640 * 32)
    banded = draw([pixels], [whole, inner], shape, torch.float32)
    torch.testing.assert_close(banded, at_once, rtol=0, atol=2e-5)


def test_a_window_shows_what_the_whole_canvas_shows_there():
    pixels = torch.from_numpy(picture(300, 200))
    for scale in (0.37, 1.0, 2.3):
        width, height = round(300 * scale), round(200 * scale)
        both = width / 300, height / 200
        whole = draw(
            [pixels], [Region(0, (0, 0, width, height), both)], (height, width), torch.float32
        )
        x, y, w, h = 16, 32, width - 40, height - 41
        part = draw([pixels], [Region(0, (x, y, w, h), both)], (h + 9, w + 3), torch.float32)
        torch.testing.assert_close(part[:, :, :h, :w], whole[:, :, y : y + h, x : x + w])
        assert not part[:, :, h:].any()
        assert not part[:, :, :, w:].any()


def test_mirrored_pictures_give_mirrored_detections_where_both_are_looked_at():
    network = Network([inferring.model(1)], inferring.pyramid(flip=True), torch.float32)
    canvases = torch.zeros(2, 3, 96, 128)
    content = torch.tensor([[96.0, 80.0], [112.0, 96.0]])
    for i, (w, h) in enumerate(content.int().tolist()):
        canvases[i, :, :h, :w] = torch.from_numpy(picture(w, h, 9) / 100.0 - 1).permute(2, 0, 1)
    turned = torch.zeros_like(canvases)
    for i, (w, h) in enumerate(content.int().tolist()):
        turned[i, :, :h, :w] = canvases[i, :, :h, :w].flip(2)
    seen, mirrored = network(canvases, content), network(turned, content)
    for i, w in enumerate(content[:, 0].tolist()):
        own, other = (sorted_boxes(one, i) for one in (seen, mirrored))
        other[:, [0, 2]] = w - other[:, [2, 0]]
        np.testing.assert_allclose(own, other, atol=0.01)
        columns = int(w) // STRIDE
        torch.testing.assert_close(
            seen.focus[i, :, :columns], mirrored.focus[i, :, :columns].flip(1), rtol=0, atol=1e-5
        )


def sorted_boxes(seen, i):
    order = seen.scores[i, :, 0].argsort(descending=True)
    return seen.boxes[i, order, 0].numpy().copy()


def test_an_ensemble_of_twins_finds_what_one_finds():
    pixels = picture(330, 280, 5)
    (one,) = detector()(pixels, PYRAMID)
    (twins,) = detector(seeds=(0, 0))(pixels, PYRAMID)
    assert len(one.scores) > 10
    # suppression may take either of two equal proposals: as many, and as good
    np.testing.assert_allclose(twins.scores[:10], one.scores[:10], atol=1e-4)
    (others,) = detector(seeds=(0, 3))(pixels, PYRAMID)
    assert not np.allclose(others.scores[:10], one.scores[:10], atol=1e-3)


def test_an_ensemble_averages_scores_of_shared_proposals():
    models = [inferring.model(seed) for seed in (0, 3)]
    network = Network(models, inferring.pyramid(), torch.float32)
    canvases, content = torch.randn(1, 3, 96, 96), torch.tensor([[96.0, 96.0]])
    maps = [model.backbone(canvases) for model in models]
    views = [(model, own, False) for model, own in zip(models, maps, strict=True)]
    rois, there = network._proposals(views, content, 16)
    judged = [model.judge(own, rois, there, content) for model, own, _ in views]
    seen = network(canvases, content)
    torch.testing.assert_close(seen.scores, (judged[0][1] + judged[1][1]) / 2)
    torch.testing.assert_close(seen.boxes, (judged[0][0] + judged[1][0]) / 2)


def test_shapes_are_few_and_belong_to_the_region_alone():
    machine = Machine(None, STRIDE, torch.float32, 300_000)
    rng = np.random.default_rng(0)
    regions = [
        Region(0, (0, 0, *rng.integers(1, 700, 2).tolist()), (1.0, 1.0), tuple(more))
        for more in (8 * rng.integers(0, 2, (500, 2))).tolist()
    ]
    batches = list(cascade.batches(regions, 64, machine))
    assert sorted(r.window for _, b in batches for r in b) == sorted(r.window for r in regions)
    for (height, width), batch in batches:
        assert height % 64 == width % 64 == 0
        assert len(batch) == 1 or len(batch) * height * width <= 300_000
        for region in batch:
            for side, least, more in zip(
                (width, height), region.window[2:], region.beyond, strict=True
            ):
                assert 0 <= side - least - more < 64
    assert len({shape for shape, _ in batches}) <= 11**2


@pytest.mark.parametrize("mode", [AUTOFOCUS, PYRAMID, 1])
@pytest.mark.parametrize("tile", [96, 4096])
def test_there_is_padding_beyond_a_pictures_right_and_lower_edge_alone(mode, tile):
    """Canvases of 512 x 384 and 1024 x 768 are whole steps, and would end with the picture."""
    settings = dataclasses.replace(
        TWO,
        levels=(Level(long=512), Level(long=1024)),
        focus=(FocusSettings(0.5, 1, 128),),
        tile=tile,
        overlap=32,
    )
    drawn, seer = [], Seer(small=80.0)
    pixels = with_squares(640, 480, (610, 450, 30), (610, 20, 30), (20, 450, 30), (300, 200, 30))

    def draw(pictures, regions, shape, dtype):
        drawn.extend((region.window, shape) for region in regions)
        return crop.draw(pictures, regions, shape, dtype)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cascade, "draw", draw)
        seer_run(pixels, settings, mode, seer)
    sizes = {(512, 384), (1024, 768)} if isinstance(mode, str) else {(1024, 768)}
    assert len(drawn) > len(sizes) or (tile, mode) in ((4096, PYRAMID), (4096, 1))
    for (x, y, width, height), shape in drawn:
        for start, side, padded, end in ((x, width, shape[1], 0), (y, height, shape[0], 1)):
            at_edge = any(start + side == size[end] for size in sizes)
            assert padded - side >= 8 * at_edge
            assert padded - side < 64 + 8 * at_edge
            if mode == AUTOFOCUS and tile == 4096 and x + y > 0:  # grown to whole steps with it
                assert padded - side == (STRIDE if at_edge else 0)
