"""The detector and its command line, as users call them."""

import itertools
import json
import os
import re
import shutil

import inferring
import made_up
import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from chipgen.errors import Refusal
from chipgen.storage import LocalFolder
from infer import Detector, measure, parts
from infer.__main__ import main
from infer.commands import LINES, checked, drawing_of, read_checked
from infer.draw import draw_focus
from infer.pictures import Source, decoded

WIDE, TALL = (120, 80), (60, 100)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder with an untrained detector."""
    folder = tmp_path_factory.mktemp("run")
    focus = [{"threshold": 0.01, "dilation": 1, "smallest": 64}] * 2
    inferring.save(folder, inferring.plain(inferring.pyramid(focus=focus)))
    return folder


@pytest.fixture
def photos(tmp_path):
    """A folder of pictures, one of them in a folder of its own, and a file of another kind."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for name, size in (("a.jpg", WIDE), ("b.png", TALL), ("more/c.JPG", WIDE)):
        made_up.noise(*size, seed=len(name)).save(folder / name)
    (folder / "notes.txt").write_text("not a picture")
    return folder


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
    model = Detector.load(tmp_path / "averaged.pt").models[0]
    assert all((parameter == 0).all() for parameter in model.parameters())


def test_what_is_no_detector_is_refused_with_its_name(tmp_path, run):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.pt").write_text("hello")
    torch.save({"weights": torch.zeros(3)}, tmp_path / "other.pt")
    inferring.save(tmp_path / "rpn", {}, task="rpn")
    (rpn,) = (tmp_path / "rpn" / "rpn" / "checkpoints").glob("*.pt")
    for path, words in (
        (tmp_path / "nowhere", "no such"),
        (tmp_path / "empty", "no checkpoint"),
        (tmp_path / "text.pt", "not a checkpoint"),
        (tmp_path / "other.pt", "not a checkpoint"),
        (rpn, "proposals alone"),
    ):
        with pytest.raises(Refusal, match=words) as told:
            Detector.load(path)
        assert str(path) in str(told.value)
    with pytest.raises(Refusal, match="mode"):
        list(Detector.load(run)([], mode=3))


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


def detect(run, *arguments):
    return main(["detect", str(run), *map(str, arguments)])


def test_detect_takes_files_folders_and_patterns(run, photos, tmp_path):
    out = tmp_path / "found"
    pattern = f"{photos}/*.png"
    assert detect(run, photos / "more", photos / "a.jpg", pattern, photos, "--out", out) == 0
    pictures = json.loads((out / "pictures.json").read_text())
    names = [image["file_name"] for image in pictures["images"]]
    expected = [str(photos / name) for name in ("more/c.JPG", "a.jpg", "b.png")]
    assert names == expected
    assert [c["name"] for c in pictures["categories"]] == list(inferring.CLASSES)
    rows = json.loads((out / "detections.json").read_text())
    table = pq.read_table(out / "detections.parquet")
    assert len(rows) == table.num_rows > 0
    assert {row["image_id"] for row in rows} <= {1, 2, 3}
    (alone,) = Detector.load(run)(photos / "a.jpg")
    of_a = table.filter(np.array(table["file"].to_pylist()) == str(photos / "a.jpg"))
    np.testing.assert_allclose(of_a["x1"].to_numpy(), alone.boxes[:, 0], atol=1e-3)


def test_a_broken_picture_is_told_and_the_others_are_complete(run, photos, tmp_path, caplog):
    (photos / "b.png").write_bytes(b"\x89PNG broken")
    (photos / "more" / "c.JPG").write_bytes(b"")
    out = tmp_path / "found"
    with caplog.at_level("INFO"):
        assert detect(run, photos, "--out", out) == 0
    assert "b.png is left out" in caplog.text
    assert "c.JPG is left out" in caplog.text
    assert "2 of them broken" in caplog.text
    (image,) = json.loads((out / "pictures.json").read_text())["images"]
    assert image["file_name"] == str(photos / "a.jpg")


def test_an_interrupted_detect_goes_on_where_it_stopped(run, photos, tmp_path, monkeypatch):
    whole, out = tmp_path / "whole", tmp_path / "found"
    assert detect(run, photos, "--out", whole) == 0
    taken = []
    inner = Detector.__call__

    def stopping(self, pictures, mode):
        for number, result in enumerate(inner(self, pictures, mode)):
            if number == 2:
                raise KeyboardInterrupt
            taken.append(result.picture)
            yield result

    monkeypatch.setattr(Detector, "__call__", stopping)
    assert detect(run, photos, "--out", out) == 130
    assert len(taken) == 2
    with (out / LINES).open("ab") as lines:
        lines.write(b'{"file": "cut o')
    monkeypatch.setattr(Detector, "__call__", inner)
    assert detect(run, photos, "--out", out) == 0
    for name in ("detections.json", "pictures.json", "detections.parquet", LINES):
        assert (out / name).read_bytes() == (whole / name).read_bytes()


def test_a_file_name_that_is_no_text_is_escaped(run, photos, tmp_path):
    (photos / "a.jpg").rename(photos / os.fsdecode(b"caf\xe9.jpg"))
    (photos / os.fsdecode(b"broken\xff.jpg")).touch()
    for _ in range(2):
        assert detect(run, photos, "--out", tmp_path, "--draw") == 0
        pictures = json.loads((tmp_path / "pictures.json").read_text())["images"]
        assert f"{photos}/caf\\xe9.jpg" in [one["file_name"] for one in pictures]
        assert len(pictures) == 3
        assert len((tmp_path / LINES).read_bytes().splitlines()) == 1 + 3  # each is done once
    table = pq.read_table(tmp_path / "detections.parquet")
    assert f"{photos}/caf\\xe9.jpg" in table["file"].to_pylist()
    assert [p for p in (tmp_path / "drawn").iterdir() if p.name.endswith("caf\\xe9.jpg.png")]


def test_a_picture_that_was_written_anew_is_done_again(run, photos, tmp_path):
    out, fresh, photo = tmp_path / "found", tmp_path / "fresh", photos / "a.jpg"
    assert detect(run, photos, "--out", out) == 0
    photo.write_bytes(made_up.encoded(made_up.noise(*WIDE, seed=77)))
    assert detect(run, photos, "--out", out) == 0
    assert len((out / LINES).read_bytes().splitlines()) == 1 + 3 + 1
    assert detect(run, photo, "--out", fresh) == 0
    found, alone = (pq.read_table(folder / "detections.parquet") for folder in (out, fresh))
    assert found.filter(pc.field("file") == str(photo)).equals(alone)
    assert {str(photo), str(photos / "b.png")} < set(found["file"].to_pylist())
    photo.write_bytes(b"broken")
    assert detect(run, photos, "--out", out) == 0
    names = [one["file_name"] for one in json.loads((out / "pictures.json").read_text())["images"]]
    assert len(names) == 2
    assert str(photo) not in names


def test_lines_of_before_there_were_versions_are_done_again(run, photos, tmp_path):
    assert detect(run, photos, "--out", tmp_path) == 0
    expected = (tmp_path / "detections.json").read_bytes()
    head, *lines = (read_checked(one) for one in (tmp_path / LINES).read_bytes().splitlines())
    for line in lines:
        del line["version"]
    old = b"".join(map(checked, [head, *lines]))
    (tmp_path / LINES).write_bytes(old)
    assert detect(run, photos, "--out", tmp_path) == 0
    assert (tmp_path / LINES).read_bytes()[: len(old)] == old
    assert len((tmp_path / LINES).read_bytes().splitlines()) == 1 + 3 + 3
    assert (tmp_path / "detections.json").read_bytes() == expected


def test_another_model_or_mode_in_the_same_folder_is_refused(run, photos, tmp_path, capsys):
    out = tmp_path / "found"
    assert detect(run, photos, "--out", out) == 0
    assert detect(run, photos, "--out", out, "--mode", "pyramid") == 1
    assert "another mode" in capsys.readouterr().err
    assert detect(trained_on(run, out.parent), photos, "--out", out) == 1
    assert "another model" in capsys.readouterr().err
    assert detect(run, photos, "--out", out, "--set", "infer.sigma=0.4") == 1
    assert "another settings" in capsys.readouterr().err


def trained_on(run, folder):
    """The same run with other weights."""
    (file,) = (run / "train" / "checkpoints").glob("*.pt")
    state = torch.load(file, weights_only=True)
    state["model"]["rpn.conv.bias"] += 0.1
    torch.save(state, folder / "later.pt")
    return folder / "later.pt"


def test_a_folder_of_annotated_pictures_that_has_gone_is_refused(photos):
    missing = [Source(LocalFolder(photos), "nix.jpg"), str(photos / "nix/a.jpg")]
    assert all("missing_file" in one.error for one in decoded(missing, 10**6))
    with pytest.raises(Refusal, match=r"picture folder .*nix: not there, or empty"):
        list(decoded([Source(LocalFolder(photos / "nix"), "a.jpg")], 10**6))


def test_a_limit_of_pixels_may_be_infinite(run, photos, tmp_path):
    limit = ["--set", "infer.max_megapixels=inf"]
    assert detect(run, photos, "--out", tmp_path, "--draw", *limit) == 0
    assert len(json.loads((tmp_path / "pictures.json").read_text())["images"]) == 3


def test_drawings_are_not_taken_for_pictures_of_a_second_run(run, photos):
    Image.new("RGB", (1, 3000)).save(photos / "line.png")
    out = photos / "found"
    for _ in range(2):
        assert detect(run, photos, "--out", out, "--draw", "--min-score", "0.0") == 0
        assert len(json.loads((out / "pictures.json").read_text())["images"]) == 4


def test_wrong_arguments_are_told_in_one_line(run, photos, tmp_path, capsys):
    for arguments, words in (
        (["nowhere/*.jpg"], "nowhere/*.jpg: no such picture"),
        ([photos, "--set", "infer.sigmas=1"], "did you mean 'sigma'"),
        ([photos, "--set", "train.epochs=1"], r"only keys of [infer]"),
    ):
        assert detect(run, *arguments, "--out", tmp_path / "found") == 1
        told = capsys.readouterr().err
        assert words in told
        assert len(told.strip().splitlines()) == 1


def test_pictures_are_drawn_where_asked(run, photos, tmp_path):
    assert detect(run, photos, "--out", tmp_path, "--draw", "--min-score", "0.0") == 0
    drawn = sorted(p.name for p in (tmp_path / "drawn").iterdir())
    assert len(drawn) == 6
    with Image.open(tmp_path / "drawn" / drawn[0]) as image:
        assert image.size in [tuple(4 * side for side in size) for size in (WIDE, TALL)]
        assert np.array(image).std() > 0


@pytest.mark.parametrize(
    ("size", "drawn"),
    [((320, 240), (1280, 960)), ((700, 90), (1400, 180)), ((3, 5), (12, 20)),
     ((1601, 7), (1600, 7)), ((4000, 3000), (1600, 1200))],
)  # fmt: skip
def test_drawings_are_large_enough_to_read_and_no_larger(size, drawn):
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    assert draw_focus(pixels, np.zeros((2, 3), np.float32)).size == drawn


def test_drawings_of_pictures_from_any_place_are_seen(run, photos, tmp_path, monkeypatch):
    (photos / ".hidden.png").write_bytes((photos / "b.png").read_bytes())
    monkeypatch.chdir(photos / "more")
    assert detect(run, "../a.jpg", "../.hidden.png", "c.JPG", "--out", tmp_path, "--draw") == 0
    monkeypatch.chdir(photos)
    assert detect(run, ".hidden.png", "--out", tmp_path, "--draw") == 0
    drawn = [p.name for p in (tmp_path / "drawn").iterdir()]
    assert len(drawn) == 2 * 4
    assert not [name for name in drawn if name.startswith(".")]


def test_drawings_of_different_pictures_have_different_names():
    letters = ["a", "_", "-", ".", "/"]
    names = {"".join(word) for n in range(1, 6) for word in itertools.product(letters, repeat=n)}
    names |= {f"{name}_focus" for name in names}
    drawings = {drawing_of(name) for name in names}
    assert len(drawings) == len(names)
    assert not drawings & {f"{drawing}_focus" for drawing in drawings}  # what else is drawn of each
    assert not [name for name in drawings if name.startswith(".") or "/" in name]


def test_a_drawing_of_a_deep_path_has_a_name_that_file_systems_take():
    deep = [f"{'ä/' * n}{end}" for n in (58, 59, 60, 300) for end in ("a.jpg", "b.jpg")]
    drawings = [drawing_of(name) for name in deep]
    assert len(set(drawings)) == len(deep)
    assert all(len(f"{name}_focus.png".encode()) <= 255 for name in drawings)
    assert drawings[0].replace("_-", "/") == deep[0]


@pytest.fixture(scope="module")
def annotated(tmp_path_factory):
    return made_up.coco(tmp_path_factory.mktemp("data"), 5, split="val")


def evaluated(run, data, *arguments):
    return main(["eval", str(run), "--data", str(data), *map(str, arguments)])


def test_eval_compares_modes_and_is_not_repeated(run, annotated, capsys, caplog):
    assert evaluated(run, annotated) == 0
    table = capsys.readouterr().out
    result = json.loads((run / "eval.json").read_text())
    modes = ["autofocus", "pyramid", "level0", "level1", "level2"]
    for mode in modes:
        assert mode in table
        keys = ("AP", "AP50", "AP75", "APs", "APm", "APl", "pixels", "pictures_per_s")
        assert all(key in result[mode] for key in keys)
    levels = [result[f"level{n}"]["pixels"] ** 2 for n in range(3)]
    assert result["pyramid"]["pixels"] ** 2 == pytest.approx(sum(levels))
    assert result["pyramid"]["shares"] == dict.fromkeys(result["pyramid"]["shares"], 1.0)
    assert result["autofocus"]["pixels"] <= result["pyramid"]["pixels"]
    assert 0 <= result["proposals"]["AR"] <= result["proposals"]["R50"] <= 100
    with caplog.at_level("INFO"):
        assert evaluated(run, annotated) == 0
    assert "up to date" in caplog.text
    assert capsys.readouterr().out == table


def test_eval_reads_splits_with_a_space_between(run, tmp_path):
    data = made_up.coco(tmp_path / "data", 2, split="val")
    made_up.coco(data, 3, split="test", first_id=11)
    out = tmp_path / "eval.json"
    spaced = "--split", "val, test", "--mode", "0", "--out", out
    assert evaluated(run, data, *spaced) == 0
    assert json.loads(out.read_text())["split"] == ["val", "test"]


def test_eval_by_parts_gives_the_figures_of_one_machine(run, tmp_path, monkeypatch, capsys, caplog):
    data = made_up.coco(tmp_path / "data", 7, split="val")
    (data / "val" / "000002.jpg").write_bytes(b"\xff\xd8 broken")
    monkeypatch.setattr("infer.parts.PICTURES", 2)
    alone, together = tmp_path / "alone.json", tmp_path / "together" / "eval.json"
    assert evaluated(run, data, "--out", alone) == 0
    by_parts = run, data, "--out", together
    assert evaluated(*by_parts, "--part", "1/3") == 0
    assert evaluated(*by_parts, "--finish") == 1
    assert "3 of 4 parts are missing" in capsys.readouterr().err
    assert parts.begun(LocalFolder(tmp_path / "together/eval")) == ([0, 2, 3], 4)
    first = (tmp_path / "together/eval/part-000001.parquet").stat()
    for number in range(3):
        assert evaluated(*by_parts, "--part", f"{number}/3") == 0
    assert (tmp_path / "together/eval/part-000001.parquet").stat() == first  # not made again
    assert evaluated(*by_parts, "--finish") == 0
    expected, found = (json.loads(path.read_text()) for path in (alone, together))
    for mode in ("autofocus", "pyramid", "level0", "level1", "level2", "proposals"):
        for name, value in expected[mode].items():
            if name != "pictures_per_s":
                assert found[mode][name] == (
                    pytest.approx(value, abs=0.05) if isinstance(value, float) else value
                ), (mode, name)
    assert not list((tmp_path / "together").glob("eval/part-*"))
    with caplog.at_level("INFO"):
        assert evaluated(*by_parts, "--finish") == 0
    assert "up to date" in caplog.text


def test_parts_of_an_evaluation_with_other_settings_or_damaged_are_made_again(
    run, annotated, tmp_path, capsys
):
    arguments = run, annotated, "--out", tmp_path / "eval.json", "--mode", "0"
    part = tmp_path / "eval/part-000000.parquet"
    assert evaluated(*arguments, "--part", "0/1", "--set", "infer.border=7") == 0
    assert evaluated(*arguments, "--finish") == 1
    assert evaluated(*arguments, "--part", "0/1") == 0
    part.write_bytes(part.read_bytes()[:-20])
    assert evaluated(*arguments, "--finish") == 1
    assert "1 of 1 parts are missing" in capsys.readouterr().err
    assert evaluated(*arguments, "--part", "0/1") == 0
    assert evaluated(*arguments, "--finish") == 0


def test_parts_do_not_stay_beside_the_figures_that_are_written_or_up_to_date(
    run, annotated, tmp_path
):
    arguments = run, annotated, "--mode", "0", "--out", tmp_path / "eval.json"
    left = tmp_path / "eval/part-000000.parquet"
    assert evaluated(*arguments, "--part", "0/1") == 0
    part = left.read_bytes()
    assert evaluated(*arguments) == 0  # on one machine after all
    assert not left.exists()
    for data in (part, b"damaged"):  # as a --finish leaves it that is killed in its last moment
        left.write_bytes(data)
        assert evaluated(*arguments) == 0
        assert not left.exists()


@pytest.mark.parametrize("name", ["other.json", "other"])
def test_parts_of_another_file_of_figures_stay(run, annotated, tmp_path, name):
    arguments = run, annotated, "--mode", "0", "--out"
    assert evaluated(*arguments, tmp_path / name, "--part", "0/1") == 0
    assert evaluated(*arguments, tmp_path / "eval.json") == 0
    assert evaluated(*arguments, tmp_path / name, "--finish") == 0
    assert (tmp_path / name).is_file()


def test_eval_of_voc_gives_its_own_figures(tmp_path, capsys):
    data = made_up.voc(tmp_path / "voc")
    run = tmp_path / "run"
    inferring.save(run, inferring.plain(inferring.pyramid()), classes=("cat", "dog"))
    out = tmp_path / "eval.json"
    assert evaluated(run, data, "--split", "train", "--out", out, "--mode", "0") == 0
    assert set(json.loads(out.read_text())["level0"]) >= {"AP50", "AP70", "pixels"}
    assert "AP70" in capsys.readouterr().out


def test_eval_tells_of_pictures_that_can_not_be_read(run, tmp_path, capsys):
    data = made_up.coco(tmp_path / "data", 4, split="val")
    (data / "val" / "000002.jpg").write_bytes(b"\xff\xd8 broken")
    out = tmp_path / "eval.json"
    assert evaluated(run, data, "--out", out, "--mode", "0") == 0
    assert "1 pictures could not be read" in capsys.readouterr().out
    assert json.loads(out.read_text())["level0"]["pictures"] == 3


def test_too_little_memory_on_the_device_is_told_with_what_helps(
    run, photos, tmp_path, capsys, monkeypatch
):
    def full(*_):
        raise torch.OutOfMemoryError("tried to allocate 2 GiB")

    monkeypatch.setattr("infer.cascade.draw", full)
    assert detect(run, photos / "a.jpg", "--out", tmp_path) == 1
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert "tried to allocate 2 GiB" in told
    assert "infer.tile" in told


def test_eval_refuses_other_classes(run, tmp_path, capsys):
    data = made_up.coco(tmp_path / "data", 2, split="val")
    path = data / "annotations" / "instances_val.json"
    path.write_text(path.read_text().replace('"cat"', '"dog"'))
    assert evaluated(run, data) == 1
    assert "its classes are not those" in capsys.readouterr().err
    assert evaluated(run, data, "--follow") == 1
    assert "its classes are not those" in capsys.readouterr().err
    assert evaluated(run / "nowhere", data, "--follow") == 1
    assert "no such run folder" in capsys.readouterr().err


def test_eval_follows_a_training_into_its_log(annotated, tmp_path):
    table = inferring.plain(inferring.pyramid())
    inferring.save(tmp_path, table, step=3, done=False)
    inferring.save(tmp_path, table, step=6, done=True)
    log = tmp_path / "train" / "log.jsonl"
    log.write_text('{"step": 3, "loss": 1.0}\n')
    assert evaluated(tmp_path, annotated, "--follow", "--mode", "0") == 0
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    assert [entry["step"] for entry in entries] == [3, 3, 6]
    assert all(0 <= entry["level0"]["AP"] <= 100 for entry in entries[1:])
    assert list((tmp_path / "train" / "tensorboard").iterdir())
    assert evaluated(tmp_path, annotated, "--follow", "--mode", "0") == 0  # nothing is left to do
    assert len(log.read_text().splitlines()) == 3


def test_figures_of_another_mode_setting_or_data_set_do_not_stand_for_those_asked_for(
    annotated, tmp_path
):
    inferring.save(tmp_path / "run", inferring.plain(inferring.pyramid()))
    other = made_up.coco(tmp_path / "other", 4, split="val")
    made_up.coco(other, 3)
    asked = [
        (annotated, "--mode", "0"),
        (annotated, "--mode", "1"),
        (annotated, "--mode", "0", "--pictures", "2"),
        (annotated, "--mode", "0", "--set", "infer.border=7"),
        (other, "--mode", "0"),
        (other, "--mode", "0", "--split", "train"),
    ]
    for arguments in asked * 2:
        assert evaluated(tmp_path / "run", *arguments, "--follow") == 0
    lines = (tmp_path / "run" / "train" / "log.jsonl").read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    assert [entry["data"] for entry in entries] == [str(data) for data, *_ in asked]
    assert [entry["split"] for entry in entries] == [["val"]] * 5 + [["train"]]
    assert ["level1" in entry for entry in entries] == [False, True, *[False] * 4]


@pytest.mark.parametrize("data", [b"", b"\0", b'{"step": 7}', b'{"step": 7, "done": "\xff'])
def test_following_a_checkpoint_with_a_damaged_record_is_refused(annotated, tmp_path, capsys, data):
    record = inferring.save(tmp_path, inferring.plain(inferring.pyramid())).with_suffix(".json")
    record.write_bytes(data)
    assert evaluated(tmp_path, annotated, "--follow", "--mode", "0") == 1
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert str(record.parent) in told
    assert record.name in told
    assert "--resume" in told


def test_figures_lie_in_the_table(run, annotated):
    test = measure.open_test(str(annotated), ["val"], pictures=3)
    assert len(test.annotations.picture_ids) == 3
    found = measure.compare(Detector.load(run), test, [0])
    assert measure.table_of(found).splitlines()[1].startswith("level0")
