import functools
import json
import signal
import subprocess
import sys
from pathlib import Path

import make_scenes
import numpy as np
import pytest
from make_scenes import SIZES, draw_scene
from PIL import Image
from PIL.ImageFilter import MaxFilter
from scenes.composition import Area, Canvas, plan
from scenes.kinds import CLASSES, DECOYS, OUTLINES
from scenes.sprites import draw_object

SCRIPT = Path(make_scenes.__file__)
FEW = ("--size", "small", "--pictures-train", "6", "--pictures-val", "3")


@pytest.fixture(scope="module")
def drawn():
    return [draw_scene(SIZES["small"], "train", i) for i in range(220)]


def make(out, *options):
    command = [sys.executable, str(SCRIPT), str(out), *FEW, *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    out = tmp_path_factory.mktemp("scenes") / "one"
    result = make(out, "--workers", "1")
    assert (result.returncode, result.stderr) == (0, "")
    assert "9 pictures" in result.stdout
    return out


def test_boxes_lie_in_their_pictures(drawn):
    for picture, annotations in drawn:
        for annotation in annotations:
            x, y, width, height = annotation["bbox"]
            assert min(width, height) >= 1
            assert min(x, y) >= 0
            assert x + width <= picture.width
            assert y + height <= picture.height
            assert 0 < annotation["area"] <= width * height
            assert 1 <= annotation["category_id"] <= 8


def test_sizes_spread_as_in_coco(drawn):
    sizes = [
        np.sqrt(a["bbox"][2] * a["bbox"][3] / (picture.width * picture.height))
        for picture, annotations in drawn
        for a in annotations
        if not a["iscrowd"]
    ]
    np.testing.assert_allclose(np.percentile(sizes, (10, 50, 90)), (0.024, 0.10, 0.47), rtol=0.15)


def test_counts_spread_as_in_coco(drawn):
    counts = np.array([len(annotations) for _, annotations in drawn])
    crowds = sum(a["iscrowd"] for _, annotations in drawn for a in annotations)
    portraits = np.mean([picture.height > picture.width for picture, _ in drawn])
    assert 6 < counts.mean() < 8
    assert np.std(counts) > 4
    assert 0 < np.mean(counts == 0) < 0.08
    assert 0.003 < crowds / counts.sum() < 0.02
    assert 0.1 < portraits < 0.3


def test_every_class_is_drawn(drawn):
    counts = np.bincount([a["category_id"] for _, found in drawn for a in found], minlength=9)[1:]
    assert counts.min() > counts.mean() / 2


def test_a_picture_depends_on_seed_split_and_index_alone(drawn):
    settings = SIZES["small"]
    picture, annotations = draw_scene(settings, "train", 7)
    assert picture.tobytes() == drawn[7][0].tobytes()
    assert annotations == drawn[7][1]
    assert draw_scene(settings, "val", 7)[0].tobytes() != picture.tobytes()


def test_a_family_differs_only_in_its_mark():
    for family in OUTLINES:
        kinds = [k for k in CLASSES + DECOYS if k.family == family]
        first, *others = [draw_object(np.random.default_rng(3), k, 60) for k in kinds]
        touched = np.asarray(Image.fromarray(first.core).convert("L").filter(MaxFilter(3))) > 0
        for other in others:
            np.testing.assert_array_equal(first.alpha, other.alpha)
            differs = np.any(first.colour != other.colour, axis=-1)
            assert differs.any()
            assert not differs[~touched].any()


def test_small_decoys_stand_apart_and_outnumber_objects():
    whole = Area(160, 120, 160, 120)
    items = [item for k in range(300) for item in plan(np.random.default_rng(k), whole)]
    groups = {}
    for item in items:
        groups.setdefault(id(item.area), set()).add(item.kind)
    classes, decoys = set(CLASSES), set(DECOYS)
    assert groups.pop(id(whole)) <= classes
    assert all(kinds <= classes or kinds <= decoys for kinds in groups.values())
    looks = {(kind.family, kind.mark) for kind in classes}
    assert not any((kind.family, kind.mark) in looks for kind in decoys)
    small = [item.kind in classes for item in items if item.size < 24 and not item.crowd]
    assert 0.2 < np.mean(small) < 0.4


def test_nothing_is_hidden_by_more_than_agreed():
    rng = np.random.default_rng(0)
    canvas = Canvas(np.zeros((120, 160, 3), np.float32))
    disc = draw_object(rng, CLASSES[0], 40)
    assert canvas.place(disc, 80, 60) == 1
    before = canvas.pixels.copy(), canvas.owner.copy()
    assert canvas.place(disc, 82, 60) is None
    assert canvas.place(disc, 400, 60) is None
    np.testing.assert_array_equal(before[0], canvas.pixels)
    np.testing.assert_array_equal(before[1], canvas.owner)
    assert canvas.place(disc, 105, 60) == 2
    assert np.sum(canvas.owner[0] == 1) == canvas.seen[0, 1] >= 0.4 * canvas.drawn[0, 1]


def test_layout(made):
    ids, annotation_ids = [], []
    for split, count in (("train", 6), ("val", 3)):
        content = json.loads((made / "annotations" / f"instances_{split}.json").read_text())
        assert [c["id"] for c in content["categories"]] == list(range(1, 9))
        images = {image["id"]: image for image in content["images"]}
        assert len(images) == count == len(list((made / split).iterdir()))
        for image in images.values():
            with Image.open(made / split / image["file_name"]) as picture:
                assert picture.size == (image["width"], image["height"])
        assert {a["image_id"] for a in content["annotations"]} <= set(images)
        ids += images
        annotation_ids += [a["id"] for a in content["annotations"]]
    assert len(set(ids)) == 9
    assert len(set(annotation_ids)) == len(annotation_ids) > 0
    assert sorted(p.name for p in made.iterdir()) == ["annotations", "train", "val"]


def test_workers_leave_no_trace(made, tmp_path):
    assert make(tmp_path, "--workers", "2").returncode == 0
    assert contents(tmp_path) == contents(made)


def test_a_finished_set_is_left_alone(made):
    before = {path: path.stat().st_mtime_ns for path in made.rglob("*")}
    result = make(made)
    assert (result.returncode, result.stderr) == (0, "")
    assert "already holds" in result.stdout
    assert before == {path: path.stat().st_mtime_ns for path in made.rglob("*")}


def test_anything_else_is_refused(made, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for result in (make(made, "--seed", "1"), make(tmp_path), make(tmp_path / "notes.txt")):
        assert result.returncode == 1
        assert len(result.stderr.splitlines()) == 1
    assert list(contents(tmp_path)) == [Path("notes.txt")]


def test_an_interrupted_run_starts_again(made, tmp_path):
    many = [sys.executable, str(SCRIPT), str(tmp_path), *FEW[:2], "--workers", "2"]
    # a test run in the background is deaf to Ctrl-C and would hand that down
    hearing = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(many, stderr=subprocess.PIPE, text=True, preexec_fn=hearing) as run:
        while not any((tmp_path / "train").glob("*.jpg")):
            assert run.poll() is None
        run.send_signal(signal.SIGINT)
        _, errors = run.communicate(timeout=30)
    assert run.returncode == 130
    assert len(errors.splitlines()) == 1
    assert not any((tmp_path / "annotations").iterdir())

    marker = tmp_path / "unfinished.json"
    info = json.loads((made / "annotations" / "instances_val.json").read_text())["info"]
    assert make(tmp_path).returncode == 1  # begun with other settings
    marker.write_text(json.dumps({"info": info}))
    assert make(tmp_path).returncode == 0
    assert not marker.exists()


@pytest.mark.parametrize("option", ["--workers", "--pictures-val"])
def test_numbers_below_one_are_refused(tmp_path, option):
    result = make(tmp_path, option, "0")
    assert result.returncode == 2
    assert "start at 1" in result.stderr
