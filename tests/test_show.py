import numpy as np
import pytest
import reference

from chipgen import plan, show
from chipgen.codec import pack
from chipgen.pyramid import Level


def drawn(width, height, box, level):
    """Draw the plan of a black picture with one box."""
    picture = reference.make_annotations([(width, height)], [[box]])
    settings = plan.ChipSettings(levels=(level,), size=64, stride=16)
    chips = {"positive": plan.plan(picture, settings)}
    assert chips["positive"].num_rows == 1
    pixels = pack(np.zeros((height, width, 3), np.uint8))
    return np.asarray(show.draw_plan(picture, pixels, settings, chips))[show.CAPTION :]


@pytest.mark.parametrize("size", [(1, 3000), (3000, 1), (2600, 3), (3, 2600), (1, 1)])
def test_elongated_pictures_are_drawn(size):
    panel = drawn(*size, (0, 0, min(size[0], 50), min(size[1], 50)), Level(factor=0.5))
    assert panel.shape[:2] == tuple(max(1, round(n * show.PANEL / max(size))) for n in size[::-1])
    assert (panel == show.OUTLINES["positive"]).all(axis=2).any()


def test_windows_are_drawn_where_they_lie_along_either_axis():
    # the canvas is 64 x 1: its factor along y is not that along x
    panel = drawn(640, 6, (0, 0, 320, 6), Level(factor=0.1))
    outline = (panel == show.OUTLINES["positive"]).all(axis=2)
    assert outline[[0, -1]].all()
    assert outline[:, [0, -1]].all()
