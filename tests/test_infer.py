"""The detector as programs call it."""

import json
import re
import shutil

import inferring
import made_up
import numpy as np
import pytest
import torch
from PIL import Image

from chipgen.errors import Refusal
from infer import Detector

WIDE, TALL = (120, 80), (60, 100)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return inferring.run_of(tmp_path_factory.mktemp("run"))


def test_paths_arrays_and_tensors_of_a_picture_give_the_same(run, tmp_path):
    pixels = np.array(made_up.noise(*WIDE))
    Image.fromarray(pixels).save(tmp_path / "a.png")
    tensor = torch.from_numpy(pixels)
    pictures = [
        tmp_path / "a.png",
        str(tmp_path / "a.png"),
        pixels,
        tensor,
        tensor.permute(2, 0, 1),
    ]
    results = list(Detector.load(run)(pictures))
    for result in results:
        assert result.size == WIDE
        assert len(result.boxes) > 0
        np.testing.assert_array_equal(result.boxes, results[0].boxes)
        np.testing.assert_array_equal(result.scores, results[0].scores)
    assert [result.picture is given for result, given in zip(results, pictures, strict=True)]


def test_one_picture_needs_no_list_and_grey_ones_are_coloured(run):
    detector = Detector.load(run)
    grey = np.array(made_up.noise(*WIDE).convert("L"))
    (flat,) = detector(grey)
    (stacked,) = detector(np.stack([grey] * 3, axis=-1))
    np.testing.assert_array_equal(flat.boxes, stacked.boxes)


def test_mirrored_and_read_only_arrays_are_pictures_as_well(run):
    detector = Detector.load(run)
    pixels = np.array(made_up.noise(*WIDE))
    (plain,) = detector(pixels[:, ::-1].copy())
    fixed = pixels.copy()
    fixed.flags.writeable = False
    for odd in (pixels[:, ::-1], fixed[:, ::-1]):
        (result,) = detector(odd)
        np.testing.assert_array_equal(result.boxes, plain.boxes)
    assert next(iter(detector(fixed))).error is None


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
def test_an_array_may_hold_the_next_picture_when_the_next_one_is_asked_for(run, kind):
    detector = Detector.load(run)
    pictures = [np.array(made_up.noise(*WIDE, seed)) for seed in range(6)]
    buffer = np.zeros_like(pictures[0])

    def filled():
        for picture in pictures:
            buffer[:] = picture
            yield kind(buffer)

    for apart, together in zip(detector(pictures), detector(filled()), strict=True):
        np.testing.assert_array_equal(apart.boxes, together.boxes)


def test_what_is_no_picture_is_told_and_the_others_go_on(run):
    pixels = np.array(made_up.noise(*WIDE))
    first, none, last = Detector.load(run)([pixels, None, pixels])
    assert none.error == "None is no picture"
    np.testing.assert_array_equal(first.boxes, last.boxes)
    assert len(last.boxes)


@pytest.mark.parametrize(
    "pixels", [np.zeros((8, 8, 4), np.uint8), np.zeros((8, 8, 3)), np.zeros((0, 8, 3), np.uint8)]
)
def test_arrays_that_are_no_pictures_are_refused(run, pixels):
    with pytest.raises(Refusal, match="expected"):
        list(Detector.load(run)([pixels]))


def test_results_turn_into_rows_of_coco(run):
    detector = Detector.load(run)
    (result,) = detector(np.array(made_up.noise(*WIDE)))
    rows = result.detections(42).to_rows([7, 9])
    assert len(rows) == len(result.boxes)
    assert {row["image_id"] for row in rows} == {42}
    assert {row["category_id"] for row in rows} <= {7, 9}
    x1, y1, x2, y2 = result.boxes[0].tolist()
    np.testing.assert_allclose(rows[0]["bbox"], [x1, y1, x2 - x1, y2 - y1], atol=2e-3)
    assert json.dumps(rows)


def test_a_turned_photograph_is_turned_upright(run, tmp_path):
    image = made_up.noise(*WIDE)
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=exif)
    (result,) = Detector.load(run)(tmp_path / "turned.jpg")
    assert result.size == WIDE[::-1]


def test_a_run_folder_and_its_file_are_the_same_detector(run, tmp_path):
    (file,) = (run / "train" / "checkpoints").glob("*.pt")
    shutil.copy(file, tmp_path / "mine.pt")
    pixels = np.array(made_up.noise(*WIDE))
    (of_run,), (of_file,) = Detector.load(run)(pixels), Detector.load(tmp_path / "mine.pt")(pixels)
    np.testing.assert_array_equal(of_run.boxes, of_file.boxes)


def test_averaged_weights_are_used_where_there_are_some(tmp_path):
    file = inferring.save(tmp_path, inferring.plain(inferring.pyramid()))
    state = torch.load(file, weights_only=True)
    state["average"] = {k: v * 0 if v.is_floating_point() else v for k, v in state["model"].items()}
    torch.save(state, tmp_path / "averaged.pt")
    averaged = Detector.load(tmp_path / "averaged.pt")
    assert all((parameter == 0).all() for parameter in averaged.models[0].parameters())
    assert averaged.weights != Detector.load(file).weights  # results are kept under that name


def test_what_is_no_detector_is_refused_with_its_name(tmp_path, run):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.pt").write_text("hello")
    torch.save({"weights": torch.zeros(3)}, tmp_path / "other.pt")
    torch.save({"model": {}, "step": 3}, tmp_path / "foreign.pt")
    inferring.save(tmp_path / "rpn", {}, task="rpn")
    (rpn,) = (tmp_path / "rpn" / "rpn" / "checkpoints").glob("*.pt")
    for path, words in (
        (tmp_path / "nowhere", "no such"),
        (tmp_path / "empty", "no checkpoint"),
        (tmp_path / "text.pt", "not a checkpoint"),
        (tmp_path / "other.pt", "not a checkpoint"),
        (tmp_path / "foreign.pt", "no checkpoint of a detector"),
        (rpn, "proposals alone"),
    ):
        with pytest.raises(Refusal, match=words) as told:
            Detector.load(path)
        assert str(path) in str(told.value)
    with pytest.raises(Refusal, match="mode"):
        Detector.load(run)([], mode=3)  # before a result is asked for


@pytest.mark.parametrize("of_run", [True, False])
def test_a_checkpoint_whose_weights_are_not_those_that_were_written_is_refused(tmp_path, of_run):
    file = inferring.save(tmp_path, inferring.plain(inferring.pyramid()))
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1  # amid the weights, where the reader does not look for errors
    file.write_bytes(data)
    with pytest.raises(Refusal, match=rf"{re.escape(str(file))}: damaged .*--resume"):
        Detector.load(tmp_path if of_run else file)
    inferring.save(tmp_path, inferring.plain(inferring.pyramid()))
    assert Detector.load(tmp_path if of_run else file)
