import contextlib
import io
import json

import made_up
import numpy as np
import pytest
import reference_evaluate as slow
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from chipgen import boxes as box_math
from chipgen import dataset
from chipgen.errors import Refusal
from infer import evaluate
from infer.areas import areas_of
from infer.detections import Detections

TWELVE = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR", "AR_s", "AR_m", "AR_l"]
PICTURE_IDS = (7, 1_000_003, 40, 2**40, 9, 52)  # neither contiguous nor in order


def detections(*rows: tuple) -> Detections:
    """Make detections of (picture id, label, xyxy, score) rows."""
    pictures, labels, boxes, scores = zip(*rows, strict=True) if rows else ([], [], [], [])
    return Detections(
        np.array(pictures, np.int64),
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(scores, np.float32),
        np.array(labels, np.int32),
    )


def data_set(folder, objects, pictures=PICTURE_IDS, split="train", size=600):
    """Write a COCO data set of (picture id, category id, xyxy, area or None, crowd) objects."""
    (folder / split).mkdir(parents=True)
    (folder / split / f"{pictures[0]}.jpg").touch()
    images = [{"id": i, "file_name": f"{i}.jpg", "width": size, "height": size} for i in pictures]
    entries = []
    for number, (picture, category, (x1, y1, x2, y2), area, crowd) in enumerate(objects, 1):
        entry = {"id": number, "image_id": picture, "category_id": category, "iscrowd": int(crowd)}
        entry["bbox"] = [x1, y1, x2 - x1, y2 - y1]
        entries.append(entry if area is None else {**entry, "area": area})
    made_up.write_json(folder, {"images": images, "annotations": entries}, split)
    return folder


def read(folder, splits=("train",)):
    """Read a data set and the areas that COCO counts by."""
    found = dataset.read(str(folder), list(splits))
    return found, areas_of(str(folder), list(splits), found)


def perfect(found: dataset.Annotations) -> Detections:
    """Detect every object that counts, and nothing else."""
    keep = ~found.crowd
    return Detections(
        found.picture_ids[found.picture_of_box][keep],
        found.boxes[keep],
        np.linspace(0.5, 1, keep.sum(), dtype=np.float32),
        found.labels[keep],
    )


def random_case(folder, seed, many=60):
    """Write random objects, and make detections near them and elsewhere, with tied scores.

    All numbers are eighths or hundredths, so that no rounding can tell two ways of working apart.
    """
    rng = np.random.default_rng(seed)
    objects = []
    for _ in range(many):
        corner, sides = rng.integers(0, 2400, 2) / 8, np.exp(rng.uniform(1, 5.6, 2)) // 0.125 / 8
        area = float(np.prod(sides) * rng.uniform(0.3, 1))
        box = [*corner.tolist(), *(corner + sides).tolist()]
        picture = int(rng.choice(PICTURE_IDS[:-1]))
        objects.append((picture, int(rng.choice([1, 3])), box, area, bool(rng.random() < 0.1)))
    rows = []
    for picture, category, box, _, _ in objects * 3:
        if rng.random() < 0.2:
            picture = int(rng.choice(PICTURE_IDS))
        spread = rng.choice([0.02, 0.2]) * (box[2] - box[0])
        moved = np.round((np.array(box) + rng.normal(0, spread, 4)) * 8) / 8
        moved[2:] = np.maximum(moved[2:], moved[:2] + 0.125)
        label = (category == 3) ^ (rng.random() < 0.1)
        rows.append((picture, int(label), moved.tolist(), rng.integers(1, 100) / 100))
    order = rng.permutation(len(rows))
    return data_set(folder, objects), detections(*[rows[i] for i in order])


def own_evaluation(folder, rows, **params):
    """Let pycocotools read its files and compare them, the way its own demo does."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(folder / "annotations/instances_train.json"))
        (folder / "results.json").write_text(json.dumps(rows))
        run = COCOeval(truth, truth.loadRes(str(folder / "results.json")), "bbox")
        for name, value in params.items():
            setattr(run.params, name, value)
        run.evaluate()
        run.accumulate()
        run.summarize()
    return run


# --- detections as a table -------------------------------------------------------------------


def test_detections_become_rows_of_a_results_file():
    found = detections((7, 1, (1, 2, 4.00049, 6.5), 0.123456789), (2**40, 0, (0, 0, 1, 1), 1))
    assert found.to_rows([5, 90]) == [
        {"image_id": 7, "category_id": 90, "bbox": [1.0, 2.0, 3.0, 4.5], "score": 0.12346},
        {"image_id": 2**40, "category_id": 5, "bbox": [0.0, 0.0, 1.0, 1.0], "score": 1.0},
    ]
    assert json.loads(json.dumps(found.to_rows([5, 90]))) == found.to_rows([5, 90])
    assert found.boxes[0, 2] > 4  # the rows are a copy


@pytest.mark.parametrize("count", [0, 1, 3])
def test_detections_are_joined_in_order_and_keep_their_types(count):
    parts = [detections((i, i % 2, (0, 0, i + 1, 1), 0.5)) for i in range(count)]
    found = Detections.concatenate(iter(parts))
    assert found.picture_ids.tolist() == list(range(count))
    assert found.boxes.shape == (count, 4)
    kinds = [getattr(found, name).dtype for name in ("picture_ids", "boxes", "scores", "labels")]
    assert kinds == [np.int64, np.float32, np.float32, np.int32]


def test_detections_of_uneven_columns_are_refused():
    with pytest.raises(ValueError, match="shapes"):
        Detections(np.zeros(2, np.int64), np.zeros((2, 4)), np.zeros(1), np.zeros(2, np.int32))


# --- what the json says ----------------------------------------------------------------------


def test_areas_come_from_the_json_and_else_from_the_box(tmp_path):
    square = (0, 0, 40, 40)
    odd = (None, "x", -1, float("nan"), True)  # nan is what Python's own writer may leave there
    objects = [(7, 1, square, 900, False), *[(7, 1, square, area, False) for area in odd]]
    objects.append((9, 3, square, 0, True))
    found, areas = read(data_set(tmp_path, objects))
    assert areas.tolist() == [900, *[1600] * len(odd), 0]
    some = found.take(np.flatnonzero(found.picture_ids == 9))
    assert areas_of(str(tmp_path), ["train"], some).tolist() == [0]


def test_areas_of_splits_whose_annotation_ids_repeat_are_kept_apart(tmp_path):
    data_set(tmp_path, [(7, 1, (0, 0, 9, 9), 11, False)])
    data_set(tmp_path, [(8, 1, (0, 0, 9, 9), 22, False)], pictures=(8,), split="val2017")
    for splits, areas in ((["train", "val"], [11, 22]), (["val", "train"], [22, 11])):
        assert read(tmp_path, splits)[1].tolist() == areas


def test_areas_of_annotations_without_ids_or_with_a_repeated_one_or_malformed(tmp_path):
    path = data_set(tmp_path, [(7, 1, (0, 0, 9, 9), a, False) for a in (1, 2, 3)])
    path = path / "annotations/instances_train.json"
    content = json.loads(path.read_text())
    content["annotations"][1]["id"] = 1
    content["annotations"].insert(0, "odd")
    path.write_text(json.dumps(content))
    assert read(tmp_path)[1].tolist() == [1, 3]
    content["annotations"] = [
        {k: v for k, v in one.items() if k != "id"} for one in content["annotations"][1:]
    ]
    path.write_text(json.dumps(content))
    assert read(tmp_path)[1].tolist() == [1, 2, 3]


def in_files(folder, *contents):
    """Write the jsons of a split that a dataset.toml names with a pattern."""
    (folder / "train").mkdir(parents=True)
    (folder / "train" / "7.jpg").touch()
    for number, (pictures, entries) in enumerate(contents):
        images = [{"id": i, "file_name": f"{i}.jpg", "width": 60, "height": 60} for i in pictures]
        content = {"categories": made_up.CATEGORIES, "images": images, "annotations": entries}
        (folder / f"part-{number}.json").write_text(json.dumps(content))
    toml = folder / "dataset.toml"
    toml.write_text(
        'format = "coco"\n[splits.train]\nannotations = "part-*.json"\npictures = "train"\n'
    )
    return toml


def test_areas_of_several_files_whose_annotation_ids_repeat_are_kept_apart(tmp_path):
    def entry(number, picture, area):
        return {
            "id": number, "image_id": picture, "category_id": 1, "bbox": [0, 0, 9, 9], "area": area
        }  # fmt: skip

    toml = in_files(
        tmp_path,
        ([7, 9], [entry(1, 7, 11), entry(1, 9, 12), entry(2, 9, "odd")]),  # anew in each picture
        ([], []),
        # picture 7 again, which is taken from the first file
        ([8, 7], [entry(1, 8, 21), entry(2, 8, 22), entry(3, 8, 23), entry(4, 7, 24)]),
        ([6], [entry(1, 6, 31)]),
    )
    found, areas = read(toml)
    picture_ids = found.picture_ids[found.picture_of_box].tolist()
    assert sorted(zip(picture_ids, areas.tolist(), strict=True)) == [
        (6, 31), (7, 11), (8, 21), (8, 22), (8, 23), (9, 12), (9, 81)
    ]  # fmt: skip


def test_areas_of_a_picture_in_two_files_are_those_of_the_first(tmp_path):
    def entry(area):
        return {"id": 1, "image_id": 7, "category_id": 1, "bbox": [0, 0, 9, 9], "area": area}

    assert read(in_files(tmp_path, ([7], [entry(11)]), ([7], [entry(22)])))[1].tolist() == [11]


def test_areas_of_voc_are_those_of_the_boxes(tmp_path):
    found, areas = read(made_up.voc(tmp_path))
    assert areas.tolist() == box_math.areas(found.boxes).tolist() == [3000, 30000]


# --- COCO ------------------------------------------------------------------------------------


def test_the_objects_themselves_are_perfect_detections_in_coco_form(tmp_path):
    found, areas = read(made_up.coco(tmp_path))
    figures = evaluate.coco_figures(found, areas, perfect(found))
    for name in ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR", "AR_s", "AR_m", "AR_l"):
        assert figures[name] == pytest.approx(100), name
    assert figures["per_class"] == {"ant": pytest.approx(100), "cat": pytest.approx(100)}
    assert evaluate.voc_figures(found, perfect(found))["AP70"] == pytest.approx(100)


def test_the_objects_themselves_are_perfect_detections_in_voc_form(tmp_path):
    found, areas = read(made_up.voc(tmp_path), ["train", "val"])
    figures = evaluate.voc_figures(found, perfect(found))
    assert figures == {"AP50": 100, "AP70": 100, "per_class": {"cat": 100, "dog": 100}}
    assert evaluate.coco_figures(found, areas, perfect(found))["AP"] == pytest.approx(100)


@pytest.mark.parametrize("seed", range(4))
def test_figures_are_those_of_pycocotools_from_files(tmp_path, capsys, seed):
    folder, given = random_case(tmp_path, seed)
    found, areas = read(folder)
    figures = evaluate.coco_figures(found, areas, given)
    assert capsys.readouterr().out == ""
    rows = given.to_rows((1, 3))
    run = own_evaluation(folder, rows)
    assert [figures[name] for name in TWELVE] == pytest.approx((run.stats * 100).tolist())
    assert 5 < figures["AP"] < 95
    assert evaluate.average_precision(found, areas, given, 100) == pytest.approx(figures["AP"])
    for k, name in enumerate(("ant", "cat")):
        alone = own_evaluation(folder, rows, catIds=[(1, 3)[k]]).stats[0]
        assert figures["per_class"][name] == pytest.approx(alone * 100)


@pytest.mark.parametrize("most", [1, 3, 10, 300])
def test_the_limit_on_detections_may_be_any(tmp_path, most):
    folder, given = random_case(tmp_path, 5, many=150)
    found, areas = read(folder)
    figures = evaluate.coco_figures(found, areas, given, most)
    run = own_evaluation(folder, given.to_rows([1, 3]), maxDets=[1, 10, most])
    last = run.params.maxDets.index(most)
    assert figures["AP"] == pytest.approx(run.eval["precision"][..., 0, last].mean() * 100)
    assert figures["AR"] == pytest.approx(run.eval["recall"][..., 0, last].mean() * 100)


def test_more_than_a_hundred_objects_of_a_picture_need_a_higher_limit(tmp_path):
    corners = [(x, y) for x in range(0, 600, 40) for y in range(0, 400, 40)]  # 150
    objects = [(7, 1, (x, y, x + 30, y + 30), None, False) for x, y in corners]
    found, areas = read(data_set(tmp_path, objects))
    assert evaluate.coco_figures(found, areas, perfect(found))["AR"] == pytest.approx(100 * 2 / 3)
    assert evaluate.coco_figures(found, areas, perfect(found), 200)["AR"] == pytest.approx(100)


def test_the_area_of_the_json_decides_what_is_small(tmp_path):
    square = (0, 0, 100, 100)
    objects = [(7, 1, square, 1000, False), (9, 1, square, 5000, False), (40, 1, square, None, 0)]
    found, areas = read(data_set(tmp_path, objects))
    given = detections((9, 0, square, 0.9))
    figures = evaluate.coco_figures(found, areas, given)
    assert (figures["AR_s"], figures["AR_m"], figures["AR_l"]) == (0, pytest.approx(100), 0)
    by_box = evaluate.coco_figures(found, box_math.areas(found.boxes), given)
    assert (by_box["AR_s"], by_box["AR_m"]) == (None, None)
    assert by_box["AR_l"] == pytest.approx(100 / 3)


def test_a_crowd_neither_counts_nor_hurts(tmp_path):
    big, one = (0, 0, 300, 300), (400, 400, 500, 500)
    found, areas = read(data_set(tmp_path, [(7, 1, big, None, True), (7, 1, one, None, False)]))
    inside = [(7, 0, (x, 0, x + 50, 50), 0.95) for x in (0, 50, 100)]  # COCO: within the crowd
    on_it = [(7, 0, big, 0.95)] * 2
    right = (7, 0, one, 0.9)
    for rows in ([right], [*inside, right], [*on_it, right]):
        figures = evaluate.coco_figures(found, areas, detections(*rows))
        assert figures["AP"] == pytest.approx(100)
    # VOC has no such rule for a part of a crowd: the whole box must be met
    assert evaluate.voc_figures(found, detections(*on_it, right))["AP50"] == 100
    assert evaluate.voc_figures(found, detections(*inside, right))["AP50"] == 25
    assert evaluate.voc_figures(found, detections(*on_it))["AP50"] == 0


def test_a_second_detection_of_an_object_is_a_miss(tmp_path):
    square, other = (10, 10, 90, 90), (200, 200, 290, 290)
    objects = [(7, 1, square, None, False), (7, 1, other, None, False)]
    found, areas = read(data_set(tmp_path, objects))
    given = detections((7, 0, square, 0.9), (7, 0, square, 0.8), (7, 0, other, 0.7))
    assert evaluate.voc_figures(found, given)["AP50"] == pytest.approx(100 * (1 / 2 + 2 / 3 / 2))
    ap = (51 + 50 * 2 / 3) / 101  # of 101 recalls, 0 to .5 are had before the second one
    assert evaluate.coco_figures(found, areas, given)["AP"] == pytest.approx(100 * ap)


def test_no_detections_find_nothing(tmp_path):
    found, areas = read(made_up.coco(tmp_path))
    figures = evaluate.coco_figures(found, areas, detections())
    assert {figures[name] for name in TWELVE} == {0}
    assert figures["per_class"] == {"ant": 0, "cat": 0}
    voc = evaluate.voc_figures(found, detections())
    assert voc == {"AP50": 0, "AP70": 0, "per_class": {"ant": 0, "cat": 0}}
    recall = evaluate.proposal_recall(found, areas, detections(), 10)
    assert recall == dict.fromkeys(["AR", "AR_s", "AR_m", "AR_l", "R50"], 0)


@pytest.mark.parametrize("rows", [[], [(7, 0, (0, 0, 9, 9), 0.5), (9, 1, (0, 0, 99, 99), 0.5)]])
@pytest.mark.parametrize("crowds", [0, 2])
def test_without_objects_there_are_no_figures(tmp_path, rows, crowds):
    objects = [(7, 1, (0, 0, 50, 50), None, True)] * crowds
    found, areas = read(data_set(tmp_path, objects))
    nothing = {"ant": None, "cat": None}
    figures = evaluate.coco_figures(found, areas, detections(*rows))
    assert figures == {**dict.fromkeys(TWELVE), "per_class": nothing}
    voc = evaluate.voc_figures(found, detections(*rows))
    assert voc == {"AP50": None, "AP70": None, "per_class": nothing}
    assert set(evaluate.proposal_recall(found, areas, detections(*rows), 10).values()) == {None}


def test_without_pictures_there_are_no_figures(tmp_path):
    found, _ = read(data_set(tmp_path, [(7, 1, (0, 0, 50, 50), None, False)]))
    none = found.take(np.zeros(0, np.int64))
    assert evaluate.coco_figures(none, np.zeros(0), detections())["AP"] is None
    assert evaluate.voc_figures(none, detections())["AP50"] is None
    assert evaluate.proposal_recall(none, np.zeros(0), detections(), 10)["AR"] is None


def test_a_class_without_objects_is_left_out_of_the_mean(tmp_path):
    found, areas = read(data_set(tmp_path, [(7, 3, (0, 0, 50, 50), None, False)]))
    given = detections((7, 1, (0, 0, 50, 50), 0.5), (7, 0, (0, 0, 50, 50), 0.9))
    figures = evaluate.coco_figures(found, areas, given)
    assert (figures["AP"], figures["per_class"]["ant"]) == (pytest.approx(100), None)
    voc = evaluate.voc_figures(found, given)
    assert voc == {"AP50": 100, "AP70": 100, "per_class": {"ant": None, "cat": 100}}


def test_detections_of_other_data_are_refused(tmp_path):
    found, areas = read(data_set(tmp_path, [(7, 1, (0, 0, 50, 50), None, False)]))
    for picture in (0, 8, 2**41):
        given = detections((7, 0, (0, 0, 9, 9), 0.5), (picture, 0, (0, 0, 9, 9), 0.5))
        with pytest.raises(Refusal, match=rf"such as {picture}, are not among the 6"):
            evaluate.coco_figures(found, areas, given)
    for label in (-1, 2):
        with pytest.raises(Refusal, match=f"label is {label}, .* 2 classes"):
            evaluate.voc_figures(found, detections((7, label, (0, 0, 9, 9), 0.5)))


def test_areas_of_other_annotations_are_refused(tmp_path):
    found, areas = read(data_set(tmp_path, [(7, 1, (0, 0, 50, 50), None, False)]))
    with pytest.raises(ValueError, match=r"\(2,\) for 1 objects"):
        evaluate.coco_figures(found, np.tile(areas, 2), detections())


# --- VOC -------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("many", [1, 4, 60])
def test_voc_figures_are_those_of_the_slow_rule(tmp_path, seed, many):
    folder, given = random_case(tmp_path, seed, many)
    found, _ = read(folder)
    pictures = found.picture_ids[found.picture_of_box]
    objects = list(
        zip(pictures, found.labels, found.boxes.tolist(), found.crowd.tolist(), strict=True)
    )
    rows = list(
        zip(given.picture_ids, given.labels, given.boxes.tolist(), given.scores, strict=True)
    )
    figures = evaluate.voc_figures(found, given)
    for name, threshold in (("AP50", 0.5), ("AP70", 0.7)):
        aps = [slow.voc_ap(objects, rows, label, threshold) for label in (0, 1)]
        some = [100 * ap for ap in aps if ap is not None]
        assert figures[name] == (pytest.approx(np.mean(some)) if some else None)
        if name == "AP50":
            wanted = [None if ap is None else pytest.approx(100 * ap) for ap in aps]
            assert list(figures["per_class"].values()) == wanted


def test_a_voc_detection_is_held_against_its_closest_object_though_that_is_taken(tmp_path):
    near, far = (0, 0, 100, 100), (20, 0, 120, 100)  # their IoU is 2/3
    found, areas = read(data_set(tmp_path, [(7, 1, b, None, False) for b in (near, far)]))
    given = detections((7, 0, near, 0.9), (7, 0, near, 0.8))
    assert evaluate.voc_figures(found, given)["AP50"] == 50
    # COCO gives it the next one
    assert evaluate.coco_figures(found, areas, given)["AP50"] == pytest.approx(100)


# --- proposals -------------------------------------------------------------------------------


def test_recall_of_a_case_made_by_hand(tmp_path):
    small, medium, large = (0, 0, 20, 20), (100, 100, 150, 150), (200, 200, 400, 400)
    objects = [(7, 1, small, None, 0), (7, 3, medium, None, 0), (9, 1, large, None, 0)]
    objects.append((9, 1, (0, 0, 90, 90), None, True))
    found, areas = read(data_set(tmp_path, objects))
    given = detections(
        (7, 0, small, 0.3),
        (7, 0, (300, 300, 400, 400), 0.9),  # finds nothing
        (7, 55, (100, 100, 150, 136), 0.8),  # IoU 0.72: 5 of 10 thresholds; any label will do
        (9, 0, (200, 200, 400, 312), 0.1),  # IoU 0.56: 2 of 10
        (9, 0, (0, 0, 90, 90), 0.2),
    )
    recall = evaluate.proposal_recall(found, areas, given, 3)
    wanted = {"AR": 100 * (1 + 0.5 + 0.2) / 3, "AR_s": 100, "AR_m": 50, "AR_l": 20, "R50": 100}
    assert recall == pytest.approx(wanted)
    best = evaluate.proposal_recall(found, areas, given, 2)  # the small one's is the third
    assert best == pytest.approx(wanted | {"AR": 100 * 0.7 / 3, "AR_s": 0, "R50": 200 / 3})
    assert set(evaluate.proposal_recall(found, areas, given, 1).values()) == {0}


def test_sizes_of_recall_may_be_any(tmp_path):
    found, areas = read(data_set(tmp_path, [(7, 1, (0, 0, 20, 20), None, False)]))
    sizes = {"tiny": (0, 399), "not_tiny": (400, 1e10)}
    recall = evaluate.proposal_recall(found, areas, perfect(found), 1, sizes)
    assert recall == {"AR": 100, "AR_tiny": None, "AR_not_tiny": 100, "R50": 100}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("most", [1, 5, 40])
def test_recall_is_that_of_pycocotools_and_of_the_slow_rule(tmp_path, seed, most):
    folder, given = random_case(tmp_path, seed, many=100)
    found, areas = read(folder)
    recall = evaluate.proposal_recall(found, areas, given, most)
    # of one category, as pycocotools would sort tied proposals by theirs
    run = own_evaluation(folder, given.to_rows([1, 1]), useCats=0, maxDets=[1, 10, most])
    theirs = run.eval["recall"][:, 0, :, run.params.maxDets.index(most)] * 100  # (T, A)
    assert recall["R50"] == pytest.approx(theirs[0, 0])
    names = ("AR", "AR_s", "AR_m", "AR_l")
    assert [recall[name] for name in names] == pytest.approx(theirs.mean(axis=0).tolist())

    pictures = found.picture_ids[found.picture_of_box].tolist()
    objects = list(
        zip(pictures, found.boxes.tolist(), areas.tolist(), found.crowd.tolist(), strict=True)
    )
    rows = list(zip(given.picture_ids.tolist(), given.boxes.tolist(), given.scores, strict=True))
    for name, (low, high) in {"AR": evaluate.EVERY, "AR_m": evaluate.SIZES["m"]}.items():
        at = [slow.recall(objects, rows, t / 100, most, low, high) for t in range(50, 100, 5)]
        assert recall[name] == pytest.approx(100 * np.mean(at))
