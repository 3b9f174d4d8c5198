"""Slow versions of what chipgen does, written from the design and the papers with plain loops.

Nothing here is shared with the kernels: windows are tried one by one, boxes are looked at one by
one. The second half makes the random data that the tests feed to both.

Legend: P pictures, L levels, N boxes of all pictures, Q proposals, K the side of a chip. A box is
four numbers xyxy, a canvas or a picture is (width, height), a window or chip position is (x, y) on
the canvas, a row of a plan is (picture, level, x, y, width, height).
"""

import math

import numpy as np
import pyarrow as pa

from chipgen.dataset import PICTURES, Annotations, rejected

INSIDE = 1e-3  # canvas px by which a box may stick out of its chip
MASK = (1 << 64) - 1


# --- algorithm 1 -----------------------------------------------------------------------------


def holds(x, y, side, box):
    """Say whether the window at (x, y) holds a box of the canvas whole."""
    return (
        box[0] >= x - INSIDE
        and box[1] >= y - INSIDE
        and box[2] <= x + side + INSIDE
        and box[3] <= y + side + INSIDE
    )


def grid(length, side, stride, shift):
    """List the positions of chips along an axis: 0, the inner ones, and the far edge."""
    if length <= side:
        return [0]
    positions = [0]
    inner = shift if shift > 0 else stride
    while inner < length - side:
        positions.append(inner)
        inner += stride
    return [*positions, length - side]


def own_positions(low_edge, high_edge, length, side):
    """List all integer positions on the canvas, on the grid or not, that hold a span."""
    return [
        p
        for p in range(max(length - side, 0) + 1)
        if p - INSIDE <= low_edge and high_edge <= p + side + INSIDE
    ]


def fits(box, canvas, side):
    """Say whether any window at integer positions of the canvas holds a box."""
    return all(own_positions(box[k], box[k + 2], canvas[k], side) for k in (0, 1))


def pick(options, place):
    """Take the option at a fraction of the way from the first to the last."""
    return options[int((len(options) - 1) * place + 0.5)]


def cover_level(
    boxes, canvas, side, stride, shift=(0, 0), place=(0.5, 0.5), minimum=1, *, drop=True
):
    """Cover the boxes (n, 4) of one level of one picture; gives positions in order of choice."""
    xs, ys = (grid(canvas[k], side, stride, shift[k]) for k in (0, 1))
    cells = [(row, column) for row in range(len(ys)) for column in range(len(xs))]
    held = {
        (row, column): {i for i, box in enumerate(boxes) if holds(xs[column], ys[row], side, box)}
        for row, column in cells
    }
    on_grid = set().union(*held.values())

    chosen = []
    left = set(range(len(boxes))) if minimum == 1 else set(on_grid)
    for i, box in enumerate(boxes):
        if i in left and i not in on_grid:
            x, y = (
                pick(own_positions(box[k], box[k + 2], canvas[k], side), place[k]) for k in (0, 1)
            )
            chosen.append((x, y))
            left -= {j for j, other in enumerate(boxes) if holds(x, y, side, other)}

    while left:
        new = max((held[cell] & left for cell in cells), key=len)  # the first of the largest
        if len(new) < minimum:
            break
        same = [cell for cell in cells if new <= held[cell]]
        rows, columns = sorted({r for r, _ in same}), sorted({c for _, c in same})
        chosen.append((xs[pick(columns, place[0])], ys[pick(rows, place[1])]))
        left -= new
    return without_redundant(boxes, chosen, side) if minimum == 1 and drop else chosen


def without_redundant(boxes, chosen, side):
    """Drop, one after the other, each chip whose boxes are all held by other chips still there."""
    kept = list(chosen)
    for chip in chosen:
        others = list(kept)
        others.remove(chip)
        mine = [box for box in boxes if holds(*chip, side, box)]
        if all(any(holds(*other, side, box) for other in others) for box in mine):
            kept = others
    return kept


# --- plans -----------------------------------------------------------------------------------


def canvas_of(level, width, height):
    """Give the size of a picture at a level."""
    factor = level.factor
    if factor is None:
        factor = level.long / max(width, height)
        if level.short is not None:
            factor = min(factor, level.short / min(width, height))
    return tuple(max(1, math.floor(side * factor + 0.5)) for side in (width, height))


def on_canvas(box, picture, canvas):
    """Move a box from a picture to its canvas."""
    x, y = canvas[0] / picture[0], canvas[1] / picture[1]
    return float(box[0]) * x, float(box[1]) * y, float(box[2]) * x, float(box[3]) * y


def levels_that_want(box, picture, canvases, levels, side):
    """List the levels that have to cover a box that is no crowd."""
    size = math.sqrt((float(box[2]) - float(box[0])) * (float(box[3]) - float(box[1])))
    possible = [
        i
        for i, canvas in enumerate(canvases)
        if fits(on_canvas(box, picture, canvas), canvas, side)
    ]
    in_range = [i for i in possible if levels[i].range[0] <= size < levels[i].range[1]]
    if in_range or not possible:
        return in_range
    return [max(possible, key=lambda i: canvases[i][0] * canvases[i][1])]


def plan_sniper(annotations, settings):
    """Plan the positive chips of the first variant: rows of a plan, in order."""
    rows = []
    for p, picture in enumerate(picture_sizes(annotations)):
        canvases = [canvas_of(level, *picture) for level in settings.levels]
        wanted = [[] for _ in canvases]
        for i in range(annotations.offsets[p], annotations.offsets[p + 1]):
            box = annotations.boxes[i]
            if not annotations.crowd[i]:
                for level in levels_that_want(
                    box, picture, canvases, settings.levels, settings.size
                ):
                    wanted[level].append(on_canvas(box, picture, canvases[level]))
        for level, canvas in enumerate(canvases):
            if wanted[level]:
                chosen = cover_level(wanted[level], canvas, settings.size, settings.stride)
                rows += [(p, level, *content(x, y, canvas, settings.size)) for x, y in chosen]
    return rows


def content(x, y, canvas, side):
    """Give the part of a chip that lies on its canvas: x, y, width, height."""
    return x, y, min(side, canvas[0] - x), min(side, canvas[1] - y)


def mine(annotations, positives, proposals, settings, minimum):
    """Mine negative chips: the set of rows of a plan, rounds left aside.

    positives are rows of a plan, of the first variant; proposals are (picture_id, x1, y1, x2, y2).
    """
    found = set()
    for p, picture in enumerate(picture_sizes(annotations)):
        canvases = [canvas_of(level, *picture) for level in settings.levels]
        real = [
            not c for c in annotations.crowd[annotations.offsets[p] : annotations.offsets[p + 1]]
        ]
        if not any(real):
            level = min(range(len(canvases)), key=lambda i: canvases[i][0] * canvases[i][1])
            middle = (max(side - settings.size, 0) // 2 for side in canvases[level])
            found.add((p, level, *content(*middle, canvases[level], settings.size)))
        of_picture = [
            clipped(proposal[1:], picture)
            for proposal in proposals
            if proposal[0] == annotations.picture_ids[p]
        ]
        of_picture = [box for box in of_picture if box is not None]
        for level, canvas in enumerate(canvases):
            chips = [row[2:4] for row in positives if tuple(row[:2]) == (p, level)]
            low, high = settings.levels[level].range
            wanted = []
            for box in of_picture:
                size = math.sqrt((box[2] - box[0]) * (box[3] - box[1]))
                moved = on_canvas(box, picture, canvas)
                shown = any(holds(x, y, settings.size, moved) for x, y in chips)
                if low <= size < high and not shown and fits(moved, canvas, settings.size):
                    wanted.append(moved)
            chosen = cover_level(wanted, canvas, settings.size, settings.stride, minimum=minimum)
            found |= {(p, level, *content(x, y, canvas, settings.size)) for x, y in chosen}
    return found


def clipped(box, picture):
    """Cut a box to its picture, in float32 as tables of proposals are; None if nothing is left."""
    if any(math.isnan(edge) for edge in box):
        return None
    x1, x2 = (float(np.float32(min(max(edge, 0.0), picture[0]))) for edge in (box[0], box[2]))
    y1, y2 = (float(np.float32(min(max(edge, 0.0), picture[1]))) for edge in (box[1], box[3]))
    return (x1, y1, x2, y2) if x1 < x2 and y1 < y2 else None


def covered(box, picture, rows, levels):
    """Say whether some chip of a picture's rows of a plan holds a box of the picture whole."""
    for _, level, x, y, width, height in rows:
        moved = on_canvas(box, picture, canvas_of(levels[level], *picture))
        inside_x = x - INSIDE <= moved[0] and moved[2] <= x + width + INSIDE
        inside_y = y - INSIDE <= moved[1] and moved[3] <= y + height + INSIDE
        if inside_x and inside_y:
            return True
    return False


# --- pixels and numbers ----------------------------------------------------------------------


def sample_bilinear(rgb, xs, ys):
    """Interpolate pixels (H, W, 3) at the points xs x ys, in pixel centres; past the border, its
    pixels go on. Gives (len(ys), len(xs), 3) float64.
    """
    rows, columns = rgb.shape[:2]
    wide = rgb.astype(np.float64)
    lines = np.empty((len(ys), columns, 3))
    for i, y in enumerate(ys):
        top = math.floor(y)
        above, below = wide[min(max(top, 0), rows - 1)], wide[min(max(top + 1, 0), rows - 1)]
        lines[i] = above + (below - above) * (y - top)
    out = np.empty((len(ys), len(xs), 3))
    for i, x in enumerate(xs):
        first = math.floor(x)
        left = lines[:, min(max(first, 0), columns - 1)]
        right = lines[:, min(max(first + 1, 0), columns - 1)]
        out[:, i] = left + (right - left) * (x - first)
    return out


def split_mix(state):
    """Move SplitMix64 on by one step: the new state, and the 64 bits drawn."""
    state = (state + 0x9E3779B97F4A7C15) & MASK
    z = state
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return state, z ^ (z >> 31)


# --- random data -----------------------------------------------------------------------------


def random_boxes(rng, count, width, height, side):
    """Draw boxes (count, 4) float32 of every awkward kind for pictures of a size.

    `side` is what a chip's side amounts to in picture pixels.
    """
    boxes = []
    for _ in range(count):
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        w, h = rng.exponential(side / 4, 2)
        kind = rng.integers(10)
        if kind == 0:  # whole pixels
            x, y, w, h = round(x), round(y), round(w), round(h)
        elif kind == 1:  # as wide or high as a chip, or nearly
            w, h = side - rng.integers(2), rng.uniform(0, side)
            x = rng.uniform(0, max(width - w, 0))
        elif kind == 2:
            w, h = rng.uniform(0, side), side - rng.uniform(0, 3)
            y = rng.uniform(0, max(height - h, 0))
        elif kind == 3:  # elongated, often past a chip's length
            w, h = (rng.uniform(0, 2 * side), 1.0)[:: rng.choice([-1, 1])]
        elif kind == 4:  # without width, height, or both
            w, h = w * rng.integers(2), h * rng.integers(2)
        elif kind == 5:  # at the picture's borders
            x = rng.choice([0.0, max(width - w, 0.0)])
            y = rng.choice([y, 0.0, max(height - h, 0.0)])
            w, h = min(w, width - x), min(h, height - y)
        elif kind == 6 and boxes:  # touches another
            x, y = boxes[-1][2:]
        elif kind == 7 and boxes:  # is another
            x, y, w, h = *boxes[-1][:2], boxes[-1][2] - boxes[-1][0], boxes[-1][3] - boxes[-1][1]
        elif kind == 8:  # past the picture
            x, y = x - side / 2, y - side / 2
        boxes.append((x, y, x + w, y + h))
    return np.array(boxes, np.float32).reshape(-1, 4)


def make_annotations(sizes, boxes, crowd=None, ids=None):
    """Make Annotations of pictures' (width, height) and boxes, one array-like (n, 4) a picture."""
    sizes = np.array(sizes, np.int64).reshape(-1, 2)
    boxes = [np.array(b, np.float32).reshape(-1, 4) for b in boxes]
    lengths = [len(b) for b in boxes]
    total = sum(lengths)
    ids = list(range(len(sizes))) if ids is None else list(ids)
    columns = [
        ids,
        ["train"] * len(sizes),
        [0] * len(sizes),
        [f"{i}.jpg" for i in ids],
        sizes[:, 0],
        sizes[:, 1],
    ]
    return Annotations(
        pictures=pa.Table.from_arrays(
            [pa.array(c, f.type) for c, f in zip(columns, PICTURES, strict=True)], schema=PICTURES
        ),
        offsets=np.cumsum([0, *lengths]).astype(np.int64),
        boxes=np.concatenate([np.zeros((0, 4), np.float32), *boxes]),
        labels=np.zeros(total, np.int32),
        crowd=np.zeros(total, bool) if crowd is None else np.array(crowd, bool),
        annotation_ids=np.arange(total, dtype=np.int64),
        classes=("thing",),
        roots=("pictures",),
        rejects=rejected([]),
        listed={"pictures": len(sizes), "annotations": total, "clipped": 0},
    )


def random_annotations(seed, pictures, low=12, high=160, side=50):
    """Draw Annotations as `dataset.read` gives them: boxes cut to their picture, none empty.

    About a quarter of the pictures has no box, and a few have crowds only.
    """
    rng = np.random.default_rng(seed)
    sizes = rng.integers(low, high + 1, (pictures, 2))
    boxes, crowd = [], []
    for width, height in sizes.tolist():
        count = int(rng.choice([0, 1, rng.integers(2, 12), rng.integers(2, 12)]))
        drawn = random_boxes(rng, count, width, height, side)
        drawn = np.clip(drawn, 0, np.array([width, height] * 2, np.float32))
        drawn = drawn[(drawn[:, 2] > drawn[:, 0]) & (drawn[:, 3] > drawn[:, 1])]
        boxes.append(drawn)
        crowd += (rng.random(len(drawn)) < rng.choice([0.0, 0.2, 1.0], p=[0.5, 0.4, 0.1])).tolist()
    ids = rng.permutation(10 * pictures)[:pictures]  # in no order
    return make_annotations(sizes, boxes, crowd, ids)


def picture_sizes(annotations):
    """List the (width, height) of the pictures."""
    return list(zip(annotations.widths.tolist(), annotations.heights.tolist(), strict=True))


def plan_rows(table):
    """List the rows (picture, level, x, y, width, height) of a table of chips."""
    names = ("picture", "level", "x", "y", "width", "height")
    return list(zip(*(table[name].to_pylist() for name in names), strict=True))
