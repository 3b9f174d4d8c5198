import itertools
import json
import math
import os

import made_up
import numpy as np
import pytest

from chipgen import dataset
from chipgen.__main__ import main
from chipgen.errors import Refusal
from chipgen.plan import ChipSettings
from chipgen.pyramid import Level
from chipgen.raw import picture_id_of
from chipgen.run import make


def reasons(annotations: dataset.Annotations) -> dict[object, str]:
    """Map what was rejected to its reason: annotation id, or file of a picture."""
    return {
        row["annotation_id"] if row["annotation_id"] is not None else row["file"]: row["reason"]
        for row in annotations.rejects.to_pylist()
    }


def read_one(tmp_path, annotations, images=None):
    """Read a COCO json of one 100x80 picture (id 7) and some annotations."""
    (tmp_path / "train").mkdir(exist_ok=True)
    (tmp_path / "train/a.jpg").touch()
    first = {"id": 7, "file_name": "a.jpg", "width": 100, "height": 80}
    content = {"images": [first, *(images or [])], "annotations": annotations}
    made_up.write_json(tmp_path, content)
    return dataset.read(str(tmp_path), ["train"])


def box(number, bbox, **more):
    return {"id": number, "image_id": 7, "category_id": 1, "bbox": bbox, **more}


def test_boxes_become_half_open_xyxy_sorted_by_picture_and_label_by_category_id(tmp_path):
    other = {"id": 2, "file_name": "b.jpg", "width": 10, "height": 10}
    entries = [box(5, [10, 20, 30.5, 40]), {**box(6, [1, 1, 2, 2]), "image_id": 2}]
    entries.append({**box(8, [0, 0, 4, 4]), "category_id": 3, "iscrowd": 1})
    found = read_one(tmp_path, entries, [other])
    assert found.classes == ("ant", "cat")
    assert found.picture_ids.tolist() == [2, 7]
    assert found.offsets.tolist() == [0, 1, 3]
    assert found.boxes.tolist() == [[1, 1, 3, 3], [10, 20, 40.5, 60], [0, 0, 4, 4]]
    assert found.labels.tolist() == [0, 0, 1]
    assert found.crowd.tolist() == [False, False, True]


@pytest.mark.parametrize(
    ("marks", "crowd"),
    [
        ([True, False], [True, False]),
        ([True, None, "x", []], [True, False, False, False]),
        ([1.0, 0, True, False], [True, False, True, False]),
    ],
)
def test_iscrowd_may_be_a_boolean(tmp_path, marks, crowd):
    entries = [box(n, [0, 0, 5, 5], iscrowd=mark) for n, mark in enumerate(marks)]
    assert read_one(tmp_path, entries).crowd.tolist() == crowd


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        (box(1, [0, 0, 0, 5]), "empty_box"),
        (box(1, [0, 0, 5, -1]), "empty_box"),
        (box(1, [100, 0, 5, 5]), "outside_picture"),
        (box(1, [-9, -9, 5, 5]), "outside_picture"),
        (box(1, [50, 50, 1e-9, 1e-9]), "outside_picture"),
        (box(1, [math.nan, 0, 5, 5]), "not_finite"),
        (box(1, [0, 0, math.inf, 5]), "not_finite"),
        (box(1, [0, 0, 5]), "malformed"),
        (box(1, [0, 0, "5", 5]), "malformed"),
        (box(1, [0, 0, None, 5]), "malformed"),
        (box(1, None), "malformed"),
        (box(1, {"x": 1}), "malformed"),
        (box(None, [0, 0, 5, 5]), "malformed"),
        (box([1], [0, 0, 5, 5]), "malformed"),
        ({"id": 1, "image_id": 7, "category_id": 1}, "malformed"),
        ({**box(1, [0, 0, 5, 5]), "category_id": 2}, "unknown_category"),
        ({**box(1, [0, 0, 5, 5]), "category_id": "x"}, "unknown_category"),
        ({**box(1, [0, 0, 5, 5]), "image_id": 99}, "no_such_picture"),
        ({**box(1, [0, 0, 5, 5]), "image_id": None}, "malformed"),
        ({**box(1, [0, 0, 5, 5]), "image_id": 1e300}, "malformed"),
        (box(2, [0, 0, 5, 5]), "duplicate_annotation_id"),
        (None, "malformed"),
        (3, "malformed"),
        ([], "malformed"),
    ],
)
def test_one_bad_annotation_is_rejected_and_the_others_stay(tmp_path, entry, reason):
    found = read_one(tmp_path, [box(2, [1, 1, 5, 5]), entry, box(3, [2, 2, 5, 5])])
    assert found.boxes.tolist() == [[1, 1, 6, 6], [2, 2, 7, 7]]
    assert list(reasons(found).values()) == [reason]
    assert found.listed == {"pictures": 1, "annotations": 3, "clipped": 0}


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        ({"id": 7, "file_name": "b.jpg", "width": 9, "height": 9}, "duplicate_picture_id"),
        ({"id": 8, "file_name": "../b.jpg", "width": 9, "height": 9}, "unsafe_name"),
        ({"id": 8, "file_name": "/etc/passwd", "width": 9, "height": 9}, "unsafe_name"),
        ({"id": 8, "file_name": "c\\..\\..\\b.jpg", "width": 9, "height": 9}, "unsafe_name"),
        ({"id": 8, "file_name": None, "width": 9, "height": 9}, "unsafe_name"),
        ({"id": 8, "file_name": "b.jpg", "width": 0, "height": 9}, "bad_size"),
        ({"id": 8, "file_name": "b.jpg", "width": 9.5, "height": 9}, "bad_size"),
        ({"id": 8, "file_name": "b.jpg", "width": "9", "height": 9}, "bad_size"),
        ({"id": 8, "file_name": "b.jpg", "width": 1e6, "height": 1e6}, "bad_size"),
        ({"id": 8, "file_name": "b.jpg", "width": 9, "height": 1.5e9}, "bad_size"),
        ({"id": 8, "file_name": "b.jpg", "width": 65536, "height": 32768}, "bad_size"),
        ({"id": 8, "file_name": "b.jpg", "width": 1e200, "height": 1e200}, "bad_size"),
        ({"id": 8, "file_name": "b.jpg", "width": -9, "height": -9}, "bad_size"),
        ({"id": 8, "file_name": "b.jpg"}, "bad_size"),
        ({"file_name": "b.jpg", "width": 9, "height": 9}, "malformed"),
        ("b.jpg", "malformed"),
    ],
)
def test_one_bad_picture_is_rejected_with_its_boxes(tmp_path, image, reason):
    theirs = {**box(2, [1, 1, 5, 5]), "image_id": 8}
    found = read_one(tmp_path, [box(1, [1, 1, 5, 5]), theirs], [image])
    assert found.picture_ids.tolist() == [7]
    told = reasons(found)
    is_8 = isinstance(image, dict) and image.get("id") == 8
    assert told.pop(2) == ("picture_rejected" if is_8 else "no_such_picture")
    assert list(told.values()) == [reason]


def test_a_picture_of_just_under_two_gigapixels_is_planned(tmp_path):
    image = {"id": 8, "file_name": "b.jpg", "width": 65535, "height": 32768}
    theirs = {**box(2, [1, 1, 5, 5]), "image_id": 8}
    found = read_one(tmp_path, [theirs], [image])
    assert found.picture_ids.tolist() == [7, 8]
    settings = ChipSettings(levels=(Level(factor=3.0),))
    assert make(found, settings)[1]["picture_id"].to_pylist() == [8]


def test_entries_without_an_id_leave_id_0_to_those_that_have_it(tmp_path):
    size = {"width": 100, "height": 80}
    nameless, zero = {"file_name": "x.jpg", **size}, {"id": 0, "file_name": "b.jpg", **size}
    entries = [box(None, [9, 9, 5, 5]), box(0, None), box(0, [1, 1, 5, 5])]
    entries += [{**box(n, [2, 2, side, 5]), "image_id": 0} for n, side in ((1, 5), (2, 0))]
    found = read_one(tmp_path, entries, [nameless, zero, nameless])
    assert found.picture_ids.tolist() == [0, 7]
    assert found.pictures["file"].to_pylist() == ["b.jpg", "a.jpg"]
    assert found.annotation_ids.tolist() == [1, 0]
    told = found.rejects.to_pylist()
    assert [row["reason"] for row in told] == [*["malformed"] * 4, "empty_box"]
    assert told[-1]["file"] == "b.jpg"
    alone = read_one(tmp_path, entries, [nameless])
    assert reasons(alone)[1] == "no_such_picture"


def test_a_box_partly_outside_is_clipped_and_counted(tmp_path):
    found = read_one(tmp_path, [box(1, [-5, 70, 20, 20])])
    assert found.boxes.tolist() == [[0, 70, 15, 80]]
    assert found.listed["clipped"] == 1


def test_annotations_without_any_ids_are_numbered(tmp_path):
    entries = [{"image_id": 7, "category_id": 1, "bbox": [0, 0, 5, 5]} for _ in range(3)]
    assert read_one(tmp_path, entries).annotation_ids.tolist() == [0, 1, 2]


def test_names_as_picture_ids_are_turned_into_numbers(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train/a.jpg").touch()
    image = {"id": "shelf_b", "file_name": "a.jpg", "width": 100, "height": 80}
    entry = {**box(1, [0, 0, 5, 5]), "image_id": "shelf_b"}
    made_up.write_json(tmp_path, {"images": [image], "annotations": [entry]})
    found = dataset.read(str(tmp_path), ["train"])
    assert len(found.boxes) == 1
    assert 0 < found.picture_ids[0] < 2**53


def test_different_names_give_different_ids():
    strings = ["".join(s) for n in range(1, 7) for s in itertools.product("017_", repeat=n)]
    strings += ["2007_000001", "2007000001", "200_7000001", "2007_00001", "02007000001", "\u0661"]
    ids = {picture_id_of(name) for name in strings}
    assert len(ids) == len(strings)
    assert all(0 <= one < 2**53 for one in ids)


def test_a_name_that_is_a_number_or_one_of_voc_is_that_number_and_others_are_hashed():
    names = ["0", "7", "123456789012345678", "2007_000001", "2012_004331"]
    assert [picture_id_of(name) for name in names] == [int(name) for name in names]
    assert picture_id_of("shelf_b") == 5401610246849045  # ids of earlier versions stay
    assert picture_id_of("1" * 19) < 2**53


def test_voc_pictures_with_like_digits_are_all_kept(tmp_path):
    made_up.voc(tmp_path)
    names = ["1_10", "11_0", "110", "7", "007"]
    for name in names:
        stored = (tmp_path / "Annotations/2007_000001.xml").read_text()
        (tmp_path / f"Annotations/{name}.xml").write_text(stored)
        (tmp_path / f"JPEGImages/{name}.jpg").touch()
    (tmp_path / "ImageSets/Main/train.txt").write_text("\n".join(names))
    found = dataset.read(str(tmp_path), ["train"])
    assert len(found.picture_ids) == len(names)
    assert not reasons(found)


def test_splits_are_joined_and_a_repeated_picture_id_is_rejected(tmp_path):
    made_up.coco(tmp_path, pictures=4)
    made_up.coco(tmp_path, pictures=3, split="val", first_id=4)
    found = dataset.read(str(tmp_path), ["train", "val"])
    assert found.picture_ids.tolist() == [1, 2, 3, 4, 5, 6]
    assert found.pictures["root"].to_pylist() == [0, 0, 0, 0, 1, 1]
    assert reasons(found)["000004.jpg"] == "duplicate_picture_id"
    total = len(found.boxes) + found.rejects["annotation_id"].drop_null().length()
    assert total == found.listed["annotations"]


def test_year_in_the_split_name_may_be_left_out(tmp_path):
    made_up.coco(tmp_path, split="train2017")
    assert len(dataset.read(str(tmp_path), ["train"]).picture_ids) == 12


def test_dataset_toml_names_the_parts(tmp_path):
    made_up.coco(tmp_path / "elsewhere")
    (tmp_path / "dataset.toml").write_text(
        'format = "coco"\n[splits.all]\n'
        'annotations = "elsewhere/annotations/instances_train.json"\n'
        f'pictures = "{tmp_path}/elsewhere/train"\n'
    )
    for where in (tmp_path, tmp_path / "dataset.toml"):
        assert len(dataset.read(str(where), ["all"]).picture_ids) == 12


def test_voc_boxes_count_from_one_and_difficult_is_crowd(tmp_path):
    found = dataset.read(str(made_up.voc(tmp_path)), ["train"])
    assert found.classes == ("cat", "dog")
    assert found.picture_ids.tolist() == [2007000001, 2007000003]
    assert found.pictures["file"].to_pylist() == ["2007_000001.jpg", "2007_000003.jpg"]
    assert found.boxes.tolist() == [[10, 20, 60, 80], [0, 0, 200, 150]]
    assert found.labels.tolist() == [1, 0]
    assert found.crowd.tolist() == [False, True]


def test_voc_difficult_may_be_a_word(tmp_path):
    path = made_up.voc(tmp_path) / "Annotations/2007_000001.xml"
    text = path.read_text().replace("<difficult>0", "<difficult>True")
    path.write_text(text.replace("<difficult>1", "<difficult>false"))
    assert dataset.read(str(tmp_path), ["train"]).crowd.tolist() == [True, False]


def test_voc_classes_agree_between_splits_that_show_different_ones(tmp_path):
    made_up.voc(tmp_path)
    assert dataset.read(str(tmp_path), ["val"]).classes == ("cat", "dog")
    assert len(dataset.read(str(tmp_path), ["train", "val"]).picture_ids) == 3


def test_every_line_of_a_voc_list_is_used_or_rejected(tmp_path):
    made_up.voc(tmp_path)
    one = (tmp_path / "Annotations/2007_000001.xml").read_text()
    for stem in ("photo (1)", "photo (2)", "photo 1", "shelf b"):
        (tmp_path / f"Annotations/{stem}.xml").write_text(one)
        (tmp_path / f"JPEGImages/{stem}.jpg").touch()
    used = ["photo (1)", "photo (2)", "photo 1", "shelf b  -1", "2007_000001  1", "2007_000002 0"]
    lines = [*used, "photo", "2007_000003 x", "photo 2 -1", "photo (1) 1", "photo"]
    (tmp_path / "ImageSets/Main/train.txt").write_text("\n".join(lines) + "\n\n")
    found = dataset.read(str(tmp_path), ["train"])
    assert sorted(found.pictures["file"].to_pylist()) == [
        "2007_000001.jpg", "2007_000002.jpg", "photo (1).jpg", "photo (2).jpg", "photo 1.jpg",
        "shelf b.jpg",
    ]  # fmt: skip
    told = [(r["file"], r["reason"], r["detail"]) for r in found.rejects.to_pylist()]
    assert told == [
        ("photo.jpg", "malformed", "no xml file"),
        ("2007_000003 x.jpg", "malformed", "no xml file"),
        ("photo 2.jpg", "malformed", "no xml file"),
        ("photo (1).jpg", "duplicate_picture_id", "200x150"),
        ("photo.jpg", "malformed", "no xml file"),
    ]
    assert found.listed == {"pictures": len(lines), "annotations": 11, "clipped": 0}
    assert len(found.boxes) == 11


def test_a_voc_list_may_begin_with_a_byte_order_mark(tmp_path):
    made_up.voc(tmp_path)
    (tmp_path / "ImageSets/Main/train.txt").write_text("2007_000001\n", encoding="utf-8-sig")
    assert dataset.read(str(tmp_path), ["train"]).pictures["file"].to_pylist() == [
        "2007_000001.jpg"
    ]


def test_a_name_that_is_no_utf_8_is_rejected_and_the_others_stay(tmp_path):
    made_up.voc(tmp_path)
    one = (tmp_path / "Annotations/2007_000001.xml").read_text()
    (tmp_path / "Annotations" / os.fsdecode(b"caf\xe9.xml")).write_text(one)
    toml = tmp_path / "dataset.toml"
    toml.write_text(
        'format = "voc"\n[splits.all]\nannotations = "Annotations"\npictures = "JPEGImages"\n'
    )
    found = dataset.read(str(toml), ["all"])
    assert len(found.pictures) == 3
    (row,) = found.rejects.to_pylist()
    assert (row["file"], row["reason"]) == (r"caf\xe9.jpg", "malformed")


def test_a_rejected_annotation_is_told_with_its_picture(tmp_path):
    (row,) = read_one(tmp_path, [box(1, [9, 9, 0, 0])]).rejects.to_pylist()
    assert (row["file"], row["reason"]) == ("a.jpg", "empty_box")


def test_broken_voc_files_are_rejected_one_by_one(tmp_path):
    made_up.voc(tmp_path)
    (tmp_path / "Annotations/2007_000003.xml").write_text("<annotation><size>")
    (tmp_path / "Annotations/nosize.xml").write_text("<annotation></annotation>")
    (tmp_path / "Annotations/odd.xml").write_text(
        "<annotation><size><width>9</width><height>9</height></size>"
        "<object><name>cat</name></object>"
        "<object><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>3</xmax><ymax>3</ymax></bndbox></object>"
        "<object><name>cat</name><bndbox><xmin>x</xmin><ymin>1</ymin><xmax>3</xmax>"
        "<ymax>3</ymax></bndbox></object></annotation>"
    )
    names = "2007_000001\n2007_000003\nnosize\nodd\ngone\n"
    (tmp_path / "ImageSets/Main/train.txt").write_text(names)
    found = dataset.read(str(tmp_path), ["train"])
    pictures = {r["file"]: r["reason"] for r in found.rejects.to_pylist() if not r["annotation_id"]}
    assert pictures["2007_000003.jpg"] == "malformed"
    assert pictures["nosize.jpg"] == "bad_size"
    assert pictures["gone.jpg"] == "malformed"
    kinds = [r["reason"] for r in found.rejects.to_pylist() if r["file"] == "odd.jpg"]
    assert sorted(kinds) == ["malformed", "malformed", "not_finite"]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "not json"),
        ("", "not json"),
        ("[1, 2]", "not COCO"),
        ('{"images": []}', "not COCO"),
        ('{"images": {}, "annotations": [], "categories": []}', "not COCO"),
        ('{"images": [], "annotations": [], "categories": []}', "categories"),
        ('{"images": [], "annotations": [], "categories": [{"id": 1, "name": 2}]}', "not COCO"),
    ],
)
def test_a_file_that_is_not_coco_is_refused(tmp_path, content, told):
    path = made_up.write_json(tmp_path, {})
    path.write_text(content)
    with pytest.raises(Refusal, match=told):
        dataset.read(str(tmp_path), ["train"])


@pytest.mark.parametrize("make", [lambda p: None, lambda p: p.mkdir(), lambda p: p.touch()])
def test_a_missing_or_empty_folder_or_a_file_is_refused(tmp_path, make):
    make(tmp_path / "x")
    with pytest.raises(Refusal, match=r"x: (does not exist|is empty)"):
        dataset.read(str(tmp_path / "x"), ["train"])


def test_an_unknown_layout_an_unknown_split_and_a_split_named_twice_are_refused(tmp_path):
    (tmp_path / "pictures").mkdir()
    with pytest.raises(Refusal, match=r"known are COCO .* VOC .* dataset.toml"):
        dataset.read(str(tmp_path), ["train"])
    made_up.coco(tmp_path / "good")
    with pytest.raises(Refusal, match="no split 'test'; there is train"):
        dataset.read(str(tmp_path / "good"), ["test"])
    with pytest.raises(Refusal, match="twice"):
        dataset.read(str(tmp_path / "good"), ["train", "train"])


def test_a_wrong_picture_folder_is_refused_and_one_missing_picture_is_not(tmp_path):
    made_up.coco(tmp_path)
    (tmp_path / "train/000001.jpg").unlink()
    assert len(dataset.read(str(tmp_path), ["train"]).picture_ids) == 12
    (tmp_path / "train").rename(tmp_path / "images-of-mine")
    with pytest.raises(Refusal, match="has none of 12 pictures"):
        dataset.read(str(tmp_path), ["train"])


def test_splits_with_different_categories_are_refused(tmp_path):
    made_up.coco(tmp_path)
    path = made_up.write_json(tmp_path, {"images": [], "annotations": []}, "val")
    path.write_text(
        json.dumps({**json.loads(path.read_text()), "categories": [{"id": 1, "name": "x"}]})
    )
    with pytest.raises(Refusal, match="classes of split val"):
        dataset.read(str(tmp_path), ["train", "val"])


def test_taking_pictures_takes_their_boxes(tmp_path):
    found = dataset.read(str(made_up.coco(tmp_path)), ["train"])
    some = found.take(np.array([4, 0, 7]))
    assert some.picture_ids.tolist() == [5, 1, 8]
    singles = list(found.each())
    for row, picture in zip((4, 0, 7), some.each(), strict=True):
        assert (picture.boxes == singles[row].boxes).all()
        assert picture.entry == singles[row].entry


def test_fingerprint_follows_the_annotations(tmp_path):
    made_up.coco(tmp_path)
    before = dataset.fingerprint(str(tmp_path), ["train"])
    assert before == dataset.fingerprint(str(tmp_path), ["train"])
    made_up.coco(tmp_path, seed=1)
    assert before != dataset.fingerprint(str(tmp_path), ["train"])


def two_splits(tmp_path, numbers, file="{}.jpg"):
    """Write splits of pictures with these ids and names, and a box of each."""
    (tmp_path / "annotations").mkdir()
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        images = []
        for n in numbers:
            name = file.format(n, split=split)
            (tmp_path / split / name).touch()
            images.append({"id": n, "file_name": name, "width": 100, "height": 80})
        boxes = [{**box(k, [1, 1, 5, 5]), "image_id": n} for n in numbers for k in (1, 2)]
        content = {"images": images, "annotations": boxes, "categories": made_up.CATEGORIES}
        (tmp_path / f"annotations/instances_{split}.json").write_text(json.dumps(content))
    return tmp_path


def test_what_converters_on_windows_and_of_tables_write_is_read(tmp_path):
    (tmp_path / "train/sub").mkdir(parents=True)
    image = {"id": 8, "file_name": "sub\\b.jpg", "width": 9, "height": 9}
    for ids in (("2", "10"), (2.0, 10.0)):
        categories = [{"id": n, "name": f"of {n}"} for n in reversed(ids)]
        entries = [box(k, [1, 1, 5, 5], category_id=n) for k, n in enumerate(ids)]
        entries[1]["iscrowd"] = "1"
        (tmp_path / "train/a.jpg").touch()
        first = {"id": 7, "file_name": "a.jpg", "width": 100, "height": 80}
        content = {"images": [first, image], "annotations": entries, "categories": categories}
        made_up.write_json(tmp_path, content)
        found = dataset.read(str(tmp_path), ["train"])
        assert found.pictures["file"].to_pylist() == ["a.jpg", "sub/b.jpg"]
        assert found.classes == (f"of {ids[0]}", f"of {ids[1]}")
        assert found.labels.tolist() == [0, 1]
        assert found.crowd.tolist() == [False, True]


@pytest.mark.parametrize("number", [None, [1], 1.5])
def test_a_category_without_an_id_is_refused(tmp_path, number):
    (tmp_path / "train").mkdir()
    made_up.write_json(tmp_path, {"images": [], "annotations": [],
                                  "categories": [{"id": number, "name": "ant"}]})  # fmt: skip
    with pytest.raises(Refusal, match="have no id"):
        dataset.read(str(tmp_path), ["train"])


def test_annotation_ids_that_start_anew_in_each_picture_lose_no_box(tmp_path):
    found = dataset.read(str(two_splits(tmp_path, [4, 5])), ["train"])
    assert found.annotation_ids.tolist() == [1, 2, 1, 2]
    assert not found.rejects.num_rows


@pytest.mark.parametrize("file", ["{}.jpg", "{split}-{}.jpg"])
def test_splits_that_number_other_pictures_alike_are_refused(tmp_path, capsys, file):
    where = str(two_splits(tmp_path, [4, 5], file))
    assert len(dataset.read(where, ["val"]).picture_ids) == 2
    with pytest.raises(Refusal, match=r"2 picture ids stand for two pictures, such as 4 for"):
        dataset.read(where, ["train", "val"])
    recipe = str(made_up.recipe(tmp_path / "r.toml"))
    line = ["plan", str(tmp_path / "run"), "--data", where, "--recipe", recipe]
    assert main([*line, "--split", "train,val"]) == 1
    assert "must number its pictures differently" in capsys.readouterr().err
