"""The command that finds objects in files and folders, as users call it."""

import itertools
import json
import os
import signal

import inferring
import made_up
import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from chipgen.storage import LocalFolder
from infer import Detector
from infer.__main__ import main
from infer.commands import drawing_of
from infer.draw import draw_focus
from infer.lines import LINES, PARTS, checked, read_checked
from train.hold import LOCK, Hold

WIDE, TALL = (120, 80), (60, 100)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return inferring.run_of(tmp_path_factory.mktemp("run"))


@pytest.fixture
def photos(tmp_path):
    """A folder of pictures, one of them in a folder of its own, and a file of another kind."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for name, size in (("a.jpg", WIDE), ("b.png", TALL), ("more/c.JPG", WIDE)):
        made_up.noise(*size, seed=len(name)).save(folder / name)
    (folder / "notes.txt").write_text("not a picture")
    return folder


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


@pytest.mark.usefixtures("one_by_one")
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


@pytest.mark.usefixtures("one_by_one")
def test_parts_find_together_what_one_run_finds(run, photos, tmp_path, monkeypatch):
    whole, out = tmp_path / "whole", tmp_path / "found"
    assert detect(run, photos, "--out", whole, "--draw") == 0
    assert detect(run, photos / "a.jpg", "--out", out) == 0  # what is done is nobody's part
    looked = []
    inner = Detector.__call__

    def noting(self, pictures, mode):
        for result in inner(self, pictures, mode):
            looked.append(result.picture)
            yield result

    monkeypatch.setattr(Detector, "__call__", noting)
    assert detect(run, photos, "--out", out, "--draw", "--part", "1/2") == 0
    with (out / PARTS / "1-of-2" / LINES).open("ab") as lines:
        lines.write(b'{"file": "cut o')  # by a task that was killed
    assert detect(run, photos, "--out", out, "--draw", "--part", "0/2") == 0
    assert detect(run, photos, "--out", out, "--draw", "--part", "0/2") == 0
    assert sorted(looked) == [str(photos / "b.png"), str(photos / "more/c.JPG")]
    assert json.loads((out / "pictures.json").read_text())["images"][1:] == []
    assert detect(run, photos, "--out", out) == 0
    assert len(looked) == 2
    for name in ("detections.json", "pictures.json", "detections.parquet"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()
    assert len(list((out / "drawn").iterdir())) == 2 * 2
    assert not (out / PARTS).exists()


def test_parts_that_are_missing_are_made_with_the_others(run, photos, tmp_path):
    whole, out = tmp_path / "whole", tmp_path / "found"
    assert detect(run, photos, "--out", whole) == 0
    assert detect(run, photos, "--out", out, "--part", "2/3") == 0
    assert detect(run, photos, "--out", out) == 0
    assert (out / "detections.json").read_bytes() == (whole / "detections.json").read_bytes()


def test_a_part_that_is_still_at_it_is_waited_for(run, photos, tmp_path, capsys):
    assert detect(run, photos, "--out", tmp_path, "--part", "0/3") == 0
    with Hold(LocalFolder(tmp_path / PARTS / "0-of-3")):
        assert detect(run, photos, "--out", tmp_path) == 1
    assert "0-of-3: in use by the run" in capsys.readouterr().err
    assert len((tmp_path / PARTS / "0-of-3" / LINES).read_bytes().splitlines()) == 2


def test_a_line_that_another_run_is_about_to_write_is_left_to_it(run, photos, tmp_path):
    assert detect(run, photos / "a.jpg", "--out", tmp_path) == 0
    with (tmp_path / LINES).open("ab") as lines:
        lines.write(b'{"file": "cut o')
    before = (tmp_path / LINES).read_bytes()
    assert detect(run, photos, "--out", tmp_path, "--part", "0/1") == 0
    assert (tmp_path / LINES).read_bytes() == before


def test_a_part_that_was_killed_amid_a_line_goes_on(run, photos, tmp_path):
    part = tmp_path / PARTS / "0-of-1" / LINES
    assert detect(run, photos, "--out", tmp_path, "--part", "0/1") == 0
    head, first, *_ = part.read_bytes().splitlines(keepends=True)
    part.write_bytes(head + first + b'{"file": "cut o')
    assert detect(run, photos, "--out", tmp_path, "--part", "0/1") == 0
    lines = part.read_bytes().splitlines()
    assert len(lines) == 1 + 3
    assert all(map(read_checked, lines))


def test_what_parts_of_another_count_have_found_is_not_looked_for_again(run, photos, tmp_path):
    assert detect(run, photos, "--out", tmp_path, "--part", "1/3") == 0
    assert detect(run, photos, "--out", tmp_path, "--part", "0/1") == 0
    counts = {
        path.parent.name: len(path.read_bytes().splitlines()) - 1
        for path in (tmp_path / PARTS).glob(f"*/{LINES}")
    }
    assert counts == {"1-of-3": 1, "0-of-1": 2}


def test_a_part_of_broken_pictures_or_of_none_is_made(run, photos, tmp_path, caplog):
    (photos / "b.png").write_bytes(b"broken")
    assert detect(run, photos, "--out", tmp_path, "--part", "1/3") == 0
    assert "b.png is left out" in caplog.text
    assert detect(run, photos, "--out", tmp_path, "--part", "3/4") == 0
    assert detect(run, photos, "--out", tmp_path) == 0
    assert len(json.loads((tmp_path / "pictures.json").read_text())["images"]) == 2
    assert detect(run, photos / "b.png", "--out", tmp_path / "one") == 1


@pytest.mark.parametrize("deaf", [False, True])
def test_a_part_that_a_scheduler_ends_holds_nothing(
    run, photos, tmp_path, monkeypatch, request, deaf
):
    if deaf:  # to Ctrl-C, as a job in the background is
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))

    def ended(_self, _pictures, _mode):
        os.kill(os.getpid(), signal.SIGTERM)
        yield

    monkeypatch.setattr(Detector, "__call__", ended)
    assert detect(run, photos, "--out", tmp_path, "--part", "0/2") == 130
    assert [path.name for path in (tmp_path / PARTS / "0-of-2").iterdir()] == [LINES]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_parts_of_another_mode_are_refused(run, photos, tmp_path, capsys):
    assert detect(run, photos, "--out", tmp_path, "--part", "0/2", "--mode", "0") == 0
    assert detect(run, photos, "--out", tmp_path) == 1
    assert "another mode" in capsys.readouterr().err
    assert (tmp_path / PARTS / "0-of-2" / LINES).exists()


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


def test_a_limit_of_pixels_may_be_raised_and_infinite(run, photos, tmp_path):
    assert detect(run, photos, "--out", tmp_path, "--set", "infer.max_megapixels=0.007") == 0
    assert len(json.loads((tmp_path / "pictures.json").read_text())["images"]) == 1
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
    assert draw_focus(pixels, np.zeros((2, 3), np.float32), (48, 32), 16).size == drawn


def test_focus_is_drawn_where_it_is():
    """On a canvas of 40 px, the third cell of 16 px is but half there."""
    focus = np.array([[0, 1, 1], [1, 0, -1]], np.float32)
    drawn = np.asarray(draw_focus(np.full((320, 400, 3), 100, np.uint8), focus, (40, 32), 16))
    assert drawn.shape == (1280, 1600, 3)
    red = (drawn[..., 0] > 150).astype(int)
    assert red[:640, :640].max() == red[640:, 640:].max() == 0
    assert red[:640, 640:].min() == red[640:, :640].min() == 1
    assert (drawn[640:, 1280:] < 60).all()


def test_a_mistyped_mode_leaves_the_folder_as_it_was(run, photos, tmp_path, capsys):
    out = tmp_path / "found"
    assert detect(run, photos, "--out", out, "--mode", "pyramd") == 1
    assert "'pyramd' is none of" in capsys.readouterr().err
    assert detect(run, photos, "--out", out, "--mode", "pyramid") == 0


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


def test_two_at_once_do_not_write_in_one_folder(run, photos, tmp_path, capsys):
    out = tmp_path / "found"
    with Hold(LocalFolder(out)):
        assert detect(run, photos, "--out", out) == 1
        assert f"{out}: in use by the run with pid {os.getpid()}" in capsys.readouterr().err
        assert not (out / LINES).exists()
    assert detect(run, photos, "--out", out) == 0
    assert not (out / LOCK).exists()
