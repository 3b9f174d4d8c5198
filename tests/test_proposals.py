import inferring
import made_up
import numpy as np
import pyarrow.parquet as pq
import pytest
import training

from chipgen import negatives
from chipgen.errors import Refusal
from chipgen.storage import open_folder
from infer import proposals
from infer.__main__ import main
from infer.proposals import CHIP_MOST, LEVEL_MOST, Proposer, most_of

PICTURES = 7


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A planned run with an untrained RPN, whose proposals are made in parts of two pictures."""
    folder = training.shards(tmp_path, PICTURES)
    inferring.save(folder, {}, task="rpn")
    monkeypatch.setattr(proposals, "PICTURES", 2)
    return folder


def table_of(run):
    return pq.read_table(run / "proposals" / "proposals.parquet")


def test_every_picture_is_proposed_in_at_every_level(run):
    assert main(["proposals", str(run)]) == 0
    table = table_of(run)
    assert table.column_names == list(negatives.PROPOSALS)
    pictures = pq.read_table(run / "plan" / "pictures.parquet").to_pylist()
    sizes = {row["picture_id"]: (row["width"], row["height"]) for row in pictures}
    rows = table.to_pylist()
    assert {(row["picture_id"], row["level"]) for row in rows} == {
        (picture, level) for picture in sizes for level in range(3)
    }
    for row in rows:
        width, height = sizes[row["picture_id"]]
        assert 0 <= row["x1"] < row["x2"] <= width + 0.01
        assert 0 <= row["y1"] < row["y2"] <= height + 0.01
        assert 0 < row["score"] < 1
    numbers = [row["picture_id"] * 10 + row["level"] for row in rows]
    for number, count in zip(*np.unique(numbers, return_counts=True), strict=True):
        canvas = np.array(sizes[number // 10]) * (2, 1, 1)[number % 10]  # the third is no larger
        assert count <= most_of(canvas, 96)
    assert sorted(p.name for p in (run / "proposals").iterdir()) == [
        "proposals.json",
        "proposals.parquet",
    ]


def test_parts_make_the_same_table_and_all_of_them_are_needed(run, capsys):
    assert main(["proposals", str(run)]) == 0
    whole = (run / "proposals" / "proposals.parquet").read_bytes()
    for file in (run / "proposals").iterdir():
        file.unlink()
    assert main(["proposals", str(run), "--part", "1/2"]) == 0
    assert main(["proposals", str(run), "--finish"]) == 1
    assert "2 of 4 parts are missing, such as 0" in capsys.readouterr().err
    assert main(["proposals", str(run), "--part", "0/2"]) == 0
    assert main(["proposals", str(run), "--finish"]) == 0
    assert (run / "proposals" / "proposals.parquet").read_bytes() == whole


def test_a_run_that_finds_the_proposals_finished_by_another_is_content(run, monkeypatch):
    assert main(["proposals", str(run)]) == 0
    expected = {path.name: path.read_bytes() for path in (run / "proposals").iterdir()}
    looks = iter([False])
    inner = proposals.up_to_date
    monkeypatch.setattr(proposals, "up_to_date", lambda *given: next(looks, True) and inner(*given))
    assert main(["proposals", str(run)]) == 0
    assert {path.name: path.read_bytes() for path in (run / "proposals").iterdir()} == expected


def test_an_interrupted_run_goes_on_with_the_parts_that_are_missing(run, monkeypatch):
    made = []
    inner = Proposer.table

    def stopping(self, annotations, on_picture):
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(annotations.picture_ids.tolist())
        return inner(self, annotations, on_picture)

    monkeypatch.setattr(Proposer, "table", stopping)
    assert main(["proposals", str(run)]) == 130
    made_before = made.copy()
    made.clear()
    assert main(["proposals", str(run)]) == 0
    assert len(made) == 2
    assert not {*map(tuple, made)} & {*map(tuple, made_before)}


def test_finished_proposals_are_made_again_only_for_another_plan_or_network(run, caplog):
    assert main(["proposals", str(run)]) == 0
    before = (run / "proposals" / "proposals.json").stat().st_mtime_ns
    with caplog.at_level("INFO"):
        assert main(["proposals", str(run)]) == 0
    assert "up to date" in caplog.text
    assert (run / "proposals" / "proposals.json").stat().st_mtime_ns == before
    folder, model = open_folder(run), inferring.plain(inferring.TINY)
    assert proposals.up_to_date(folder, model)
    assert not proposals.up_to_date(folder, {**model, "width": 16})
    name = str(training.recipe(run.parent))
    assert main(["proposals", str(run), "--check", "--recipe", name]) == 0
    assert main(["proposals", str(run), "--check", "--recipe", "coco-r50"]) == 3


def test_broken_pictures_are_told(run):
    (run.parent / "data" / "train" / "000003.jpg").write_bytes(b"broken")
    assert main(["proposals", str(run)]) == 0
    record = proposals.finished(open_folder(run))
    (name,) = record.rejected
    assert name.endswith("000003.jpg")
    assert 3 not in table_of(run)["picture_id"].to_pylist()


def test_without_an_rpn_the_remedy_is_told(tmp_path):
    folder = training.shards(tmp_path, 2)
    with pytest.raises(Refusal, match=r"train\.task=rpn"):
        proposals.make(open_folder(folder), None, False)
    inferring.save(folder, {}, task="rpn", done=False)
    with pytest.raises(Refusal, match="no finished RPN"):
        proposals.make(open_folder(folder), None, False)


def test_tiles_of_a_large_picture_propose_once():
    pixels = np.array(made_up.noise(300, 200))
    whole, tiled = (
        Proposer(inferring.model(classes=0), inferring.pyramid(tile=tile, overlap=32))
        for tile in (2048, 96)
    )
    (of_whole,), (of_tiles,) = whole([pixels]), tiled([pixels])
    for (boxes, scores), (parts, _) in zip(of_whole, of_tiles, strict=True):
        assert (np.diff(scores) <= 0).all()
        assert len(boxes) <= LEVEL_MOST
        assert len(parts) <= LEVEL_MOST
        assert (parts[:, 2:] > parts[:, :2]).all()


def test_a_picture_of_many_chips_has_more_proposals():
    pixels = np.array(made_up.noise(300, 200))
    model = inferring.model(classes=0, proposal_iou=0.99)
    few, many = (
        Proposer(model, inferring.pyramid(tile=160, overlap=32), chip=chip) for chip in (96, 24)
    )
    (of_few,), (of_many,) = few([pixels]), many([pixels])
    for factor, (some, _), (more, _) in zip((160 / 300, 1.0, 1.8), of_few, of_many, strict=True):
        areas = factor**2 * pixels[..., 0].size / 24**2
        assert len(some) <= LEVEL_MOST < len(more) or areas < LEVEL_MOST / CHIP_MOST
        assert len(more) <= max(LEVEL_MOST, CHIP_MOST * areas + 1)
        np.testing.assert_allclose(more[0], some[0], atol=1e-3)


def test_pictures_propose_the_same_alone_and_in_company():
    proposer = Proposer(inferring.model(classes=0), inferring.pyramid(tile=128, overlap=32))
    pictures = [np.array(made_up.noise(*size)) for size in ((300, 200), (64, 64), (200, 300))]
    together = list(proposer(pictures))
    assert list(proposer([])) == []
    for pixels, in_company in zip(pictures, together, strict=True):
        (alone,) = proposer([pixels])
        for level, other in zip(alone, in_company, strict=True):
            for values, others in zip(level, other, strict=True):
                np.testing.assert_allclose(values, others, atol=1e-3)
