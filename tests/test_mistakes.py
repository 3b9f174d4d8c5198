import functools

import made_up
import numpy as np
import pytest

from chipgen import dataset
from infer import evaluate, mistakes
from infer.detections import Detections

ANT, CAT = 0, 1


@pytest.fixture
def found(tmp_path):
    """Two ants, a cat, and a crowd of ants."""
    boxes = [
        (1, 10, 10, 40, 40, 0),
        (1, 100, 10, 40, 40, 0),
        (3, 10, 100, 40, 40, 0),
        (1, 100, 100, 80, 80, 1),
    ]
    made_up.write_json(
        tmp_path,
        {
            "images": [{"id": 7, "file_name": "a.jpg", "width": 200, "height": 200}],
            "categories": [{"id": 1, "name": "ant"}, {"id": 3, "name": "cat"}],
            "annotations": [
                {"id": n, "image_id": 7, "category_id": kind, "bbox": box, "iscrowd": crowd}
                for n, (kind, *box, crowd) in enumerate(boxes)
            ],
        },
    )
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "a.jpg").write_bytes(made_up.encoded(made_up.noise(200, 200)))
    return dataset.read(str(tmp_path), ["train"])


def detected(*rows):
    boxes, labels, scores = zip(*rows, strict=True)
    return Detections(
        np.full(len(rows), 7), np.array(boxes, np.float32), np.array(scores, np.float32),
        np.array(labels, np.int32),
    )  # fmt: skip


PERFECT = [
    ((10, 10, 50, 50), ANT, 0.9),
    ((100, 10, 140, 50), ANT, 0.8),
    ((10, 100, 50, 140), CAT, 0.9),
]
BACKGROUND = ((60, 60, 90, 90), ANT, 0.95)
OTHER = ((10, 10, 50, 50), CAT, 0.95)
BESIDE = ((28, 10, 68, 50), ANT, 0.95)  # 0.38 of an ant


def test_each_kind_of_mistake_is_told(found):
    near_another = ((28, 10, 68, 50), CAT, 0.9)
    in_crowd = ((110, 110, 130, 130), ANT, 0.9)
    beside_crowd = ((80, 80, 104, 104), ANT, 0.9)
    rows = [*PERFECT, PERFECT[0], BACKGROUND, OTHER, BESIDE, near_another, in_crowd, beside_crowd]
    kinds = mistakes.kinds_of(found, detected(*rows)).tolist()
    named = [mistakes.KINDS[kind] if kind >= 0 else "" for kind in kinds]
    assert named == [*[""] * 4, "background", "class", "place", "", "", "background"]


@pytest.mark.parametrize(
    ("wrong", "kind"), [(BACKGROUND, "background"), (OTHER, "class"), (BESIDE, "place")]
)
def test_what_is_lost_is_what_the_mistakes_cost(found, wrong, kind):
    areas = np.full(4, 1600.0)
    judge = functools.partial(evaluate.average_precision, found, areas, most=100)
    assert judge(detected(*PERFECT)) == pytest.approx(100)
    given = detected(*PERFECT, wrong)
    expected = dict.fromkeys(mistakes.KINDS, 0) | {kind: pytest.approx(100 - judge(given))}
    assert expected[kind] != pytest.approx(0, abs=5)
    assert mistakes.lost(found, given, judge) == expected


def test_nothing_is_lost_where_there_is_nothing_to_find(found):
    assert mistakes.lost(found, detected(BACKGROUND), lambda _: None) == dict.fromkeys(
        mistakes.KINDS
    )
