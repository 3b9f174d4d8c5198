"""Plans in parts: the same files whatever the parts, and every entry accounted for."""

import gc
import json

import made_up
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import reference
from test_pipeline import made_up_proposals

from chipgen import dataset, run, shuffle
from chipgen.__main__ import main
from chipgen.errors import Refusal
from chipgen.negatives import ProposalReader
from chipgen.plan import ChipSettings
from chipgen.run import Recipe
from chipgen.storage import open_folder
from chipgen.tables import create_table, read_table, table_bytes


def tables(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "plan").iterdir())}


def plan(tmp_path, data, name: str) -> dict[str, bytes]:
    recipe = made_up.recipe(tmp_path / "recipe.toml")
    assert main(["plan", str(tmp_path / name), "--data", str(data), "--recipe", str(recipe)]) == 0
    return tables(tmp_path / name)


def in_files(data, count: int, edit=lambda contents: None):
    """Deal a COCO json out to several files that a dataset.toml names with a pattern."""
    whole = json.loads((data / "annotations/instances_train.json").read_text())
    contents = [{**whole, "images": [], "annotations": []} for _ in range(count)]
    file_of = {}
    for i, image in enumerate(whole["images"]):
        file_of[image["id"]] = contents[i * count // len(whole["images"])]
        file_of[image["id"]]["images"].append(image)
    for annotation in whole["annotations"]:
        file_of[annotation["image_id"]]["annotations"].append(annotation)
    edit(contents)
    (data / "parts").mkdir(exist_ok=True)
    for i, content in enumerate(contents):
        (data / f"parts/train-{i:03d}.json").write_text(json.dumps(content))
    toml = data / "dataset.toml"
    toml.write_text(
        '[splits.train]\nannotations = "parts/train-*.json"\npictures = "train"\n'.join(
            ['format = "coco"\n', ""]
        )
    )
    return toml


def tight(monkeypatch, held: int = 40, part: int = 3) -> None:
    """Let everything be cut into small parts, and go to disk at once."""
    monkeypatch.setattr(shuffle, "HELD", held)
    monkeypatch.setattr(shuffle, "PART", part)
    monkeypatch.setattr(run, "PART", part)


@pytest.mark.parametrize("files", [1, 2, 7])
@pytest.mark.parametrize(("held", "part"), [(10**6, 1), (10**6, 5), (0, 4), (25, 1000)])
def test_the_plan_is_the_same_however_it_is_cut(tmp_path, monkeypatch, files, held, part):
    data = made_up.coco(tmp_path / "data", 30)
    expected = plan(tmp_path, data, "whole")
    tight(monkeypatch, held, part)
    found = plan(tmp_path, in_files(data, files), "parts")
    records = [json.loads(one.pop("plan.json")) for one in (expected, found)]
    assert found == expected
    assert records[0]["content"] == records[1]["content"]
    assert records[0]["listed"] == records[1]["listed"]


def test_pictures_without_room_are_rejected_and_leave_no_gap(tmp_path, monkeypatch):
    sizes = [(90, 70)] * 9
    boxes = [[(0, 0, 88, 66)] if k % 3 == 0 else [(5, 5, 15, 15)] for k in range(9)]
    annotations = reference.make_annotations(sizes, boxes)
    settings = ChipSettings(size=32, stride=8, levels=(run.ChipSettings().levels[1],))
    recipe = Recipe(chips=settings)
    pieces = [annotations.take(np.arange(k, k + 3)) for k in (0, 3, 6)]
    for name, parts in (("whole", [annotations]), ("parts", pieces)):
        run.save_plan(open_folder(tmp_path / name), "x", parts, recipe)
        tight(monkeypatch, held=0, part=2)
    whole, found = tables(tmp_path / "whole"), tables(tmp_path / "parts")
    del whole["plan.json"], found["plan.json"]  # the parts each count what is listed
    assert found == whole
    planned = run.read_plan(open_folder(tmp_path / "parts"))
    assert planned.annotations.rejects["reason"].to_pylist().count("no_box_fits") == 3
    assert len(planned.annotations.picture_ids) == 6
    rows = planned.chips["positive"]
    ids = planned.annotations.picture_ids[rows["picture"].to_numpy()]
    assert ids.tolist() == rows["picture_id"].to_pylist()


@pytest.mark.parametrize("held", [0, 10**6])
def test_a_picture_that_is_in_two_files_is_taken_from_the_first(tmp_path, monkeypatch, held):
    data = made_up.coco(tmp_path / "data", 12)

    def edit(contents):
        again = dict(contents[0]["images"][1])
        contents[2]["images"].append({**again, "width": again["width"] + 1})
        boxes = [one for one in contents[0]["annotations"] if one["image_id"] == again["id"]]
        contents[2]["annotations"] += [{**one, "id": one["id"] + 5000} for one in boxes]
        edit.expected = again["id"], len(boxes), again["width"]

    toml = in_files(data, 3, edit)
    tight(monkeypatch, held)
    plan(tmp_path, toml, "run")
    picture_id, boxes, width = edit.expected
    planned = run.read_plan(open_folder(tmp_path / "run"))
    rejects = planned.annotations.rejects.to_pylist()
    assert [r["reason"] for r in rejects if r["picture_id"] == picture_id] == [
        "duplicate_picture_id",
        *["picture_rejected"] * boxes,
    ]
    row = planned.annotations.picture_ids.tolist().index(picture_id)
    assert len(planned.annotations.picture_ids) == 12
    assert planned.annotations.widths[row] == width
    assert planned.record.listed["pictures"] == 13
    read = dataset.read(str(toml), ["train"])
    assert read.rejects.to_pylist() == rejects
    assert sorted(read.picture_ids.tolist()) == sorted(planned.annotations.picture_ids.tolist())


def test_files_with_other_categories_are_refused_with_the_name_of_the_file(tmp_path):
    data = made_up.coco(tmp_path / "data", 6)
    toml = in_files(
        data, 3, lambda contents: contents[1].update(categories=[{"id": 1, "name": "x"}])
    )
    with pytest.raises(Refusal, match=r"parts/train-001\.json.* not those of train"):
        dataset.read(str(toml), ["train"])


def test_a_pattern_that_no_file_has_is_refused(tmp_path):
    toml = in_files(made_up.coco(tmp_path / "data", 6), 1)
    toml.write_text(toml.read_text().replace("train-*", "val-*"))
    with pytest.raises(Refusal, match=r"annotations parts/val-\*\.json: no such file"):
        dataset.read(str(toml), ["train"])


def test_any_changed_file_makes_the_plan_out_of_date(tmp_path):
    data = made_up.coco(tmp_path / "data", 6)
    toml = in_files(data, 3)
    before = dataset.fingerprint(str(toml), ["train"])
    path = data / "parts/train-002.json"
    path.write_text(path.read_text() + " ")
    assert dataset.fingerprint(str(toml), ["train"]) != before
    path.unlink()
    assert dataset.fingerprint(str(toml), ["train"]) != before


def test_pictures_that_only_a_later_file_has_are_enough(tmp_path):
    data = made_up.coco(tmp_path / "data", 6)
    for name in ("000001.jpg", "000002.jpg"):
        (data / "train" / name).unlink()
    assert len(dataset.read(str(in_files(data, 3)), ["train"]).picture_ids) == 6
    for path in (data / "train").iterdir():
        path.unlink()
    with pytest.raises(Refusal, match="has none of 6 pictures"):
        dataset.read(str(in_files(data, 3)), ["train"])


@pytest.mark.parametrize("group", [1, 7, 100])
def test_negatives_and_figures_are_the_same_however_they_are_cut(
    tmp_path, monkeypatch, capsys, group
):
    data = made_up.coco(tmp_path / "data", 30)
    proposals = tmp_path / "proposals.parquet"
    pq.write_table(made_up_proposals(data), proposals, row_group_size=group)
    plan(tmp_path, data, "run")

    def results() -> tuple[dict[str, bytes], str]:
        (tmp_path / "run/plan/negative.json").unlink(missing_ok=True)
        assert main(["negatives", str(tmp_path / "run"), "--proposals", str(proposals)]) == 0
        capsys.readouterr()
        assert main(["stats", str(tmp_path / "run")]) == 0
        return tables(tmp_path / "run"), capsys.readouterr().out

    expected = results()
    assert pq.read_metadata(tmp_path / "run/plan/negative.parquet").num_rows > 10
    for part in (1, 4, 29):
        tight(monkeypatch, part=part)
        assert results() == expected
    tight(monkeypatch, part=29)
    rows, taken = pq.read_metadata(proposals).num_rows, []
    monkeypatch.setattr("chipgen.negatives.AT_ONCE", rows // 3)
    inner = ProposalReader.of

    def counted(self, first, last):
        taken.append(inner(self, first, last).num_rows)
        return inner(self, first, last)

    monkeypatch.setattr(ProposalReader, "of", counted)
    assert results() == expected
    assert sum(taken) == rows
    assert len(taken) >= 3


def test_proposals_of_some_pictures_are_read_from_the_groups_that_have_them(tmp_path):
    ids = np.random.default_rng(0).permutation(50)
    table = pa.table(
        {name: np.zeros(100, np.float32) for name in ("x1", "y1", "x2", "y2", "score")}
    )
    table = table.append_column("level", [np.zeros(100, np.int16)])
    table = table.append_column("picture_id", [np.repeat(ids, 2)])  # in the order of the plan
    pq.write_table(table, tmp_path / "p.parquet", row_group_size=10)
    file = pq.ParquetFile(tmp_path / "p.parquet")
    reader, read = ProposalReader(file, ids), []
    file.read_row_group = lambda group, columns: (
        read.append(group),
        pq.ParquetFile.read_row_group(file, group, columns),
    )[1]
    assert reader.of(7, 12)["picture_id"].to_pylist() == np.repeat(ids[7:12], 2).tolist()
    assert read == [1, 2]


def test_proposals_that_are_left_out_are_counted(tmp_path, caplog):
    data, proposals = made_up.coco(tmp_path / "data", 10), tmp_path / "p.parquet"
    table = made_up_proposals(data)
    plan(tmp_path, data, "run")
    line = ["negatives", str(tmp_path / "run"), "--proposals", str(proposals)]
    pq.write_table(table, proposals)
    caplog.set_level("INFO")
    assert main(line) == 0
    assert "left out" not in caplog.text
    expected = tables(tmp_path / "run")["negative.parquet"]

    broken = [
        {"picture_id": None},
        {"picture_id": 10**15},
        {"picture_id": -1},
        {"x1": None},
        {"score": None},
        {"score": float("nan")},
    ]
    (row,) = table.slice(0, 1).to_pylist()
    odd = pa.Table.from_pylist([{**row, **one} for one in broken], table.schema)
    pq.write_table(pa.concat_tables([odd, table]), proposals, row_group_size=50)
    assert main(line) == 0
    assert "left out 3 proposals of no picture of the plan, and 2 with a null" in caplog.text
    assert tables(tmp_path / "run")["negative.parquet"] == expected


def test_ids_beside_a_null_keep_their_last_digits(tmp_path):
    ids = np.array([2**60, 2**60 + 1])
    table = pa.table({"picture_id": pa.array([2**60, 2**60 + 1, None], pa.int64())})
    for name in ("level", "x1", "y1", "x2", "y2", "score"):
        table = table.append_column(name, [np.zeros(3, np.float32)])
    pq.write_table(table, tmp_path / "p.parquet")
    reader = ProposalReader(pq.ParquetFile(tmp_path / "p.parquet"), ids)
    assert reader.of(1, 2)["picture_id"].to_pylist() == [2**60 + 1]
    assert reader.of(0, 1)["picture_id"].to_pylist() == [2**60]


@pytest.mark.parametrize("rows", [0, 1, 8191, 8192, 8193, 20000])
@pytest.mark.parametrize("portion", [1000, 8192, 9999])
def test_a_table_has_the_same_bytes_in_whatever_portions_it_comes(tmp_path, rows, portion):
    rng = np.random.default_rng(rows)
    table = pa.table({"x": rng.random(rows), "name": [f"name {i % 9}" for i in range(rows)]})
    table = table.cast(pa.schema({"x": pa.float64(), "name": pa.string()}))
    folder = open_folder(tmp_path)
    with create_table(folder, "t.parquet", table.schema) as sink:
        for start in range(0, rows, portion):
            sink.add(table.slice(start, portion))
    assert folder.read("t.parquet") == table_bytes(table)
    assert read_table(folder, "t.parquet").equals(table)


def test_a_table_that_failed_half_way_leaves_nothing(tmp_path):
    folder = open_folder(tmp_path)
    schema = pa.schema({"x": pa.int64()})
    with pytest.raises(pa.ArrowInvalid), create_table(folder, "t.parquet", schema) as sink:
        sink.add(pa.table({"x": ["no number"]}))
    assert folder.names() == []


@pytest.mark.parametrize("method", ["__init__", "write_table", "close"])
def test_ctrl_c_while_a_table_is_written_is_all_that_is_told(tmp_path, monkeypatch, method):
    """A writer that were cleared away after its file would complain, which pytest lets fail."""
    called = getattr(pq.ParquetWriter, method)

    def interrupted(writer, *args, **more):
        called(writer, *args, **more)
        monkeypatch.undo()
        raise KeyboardInterrupt

    folder, schema = open_folder(tmp_path), pa.schema({"x": pa.int64()})
    monkeypatch.setattr(pq.ParquetWriter, method, interrupted)
    with pytest.raises(KeyboardInterrupt), create_table(folder, "t.parquet", schema) as sink:
        sink.add(pa.table({"x": [1]}))
    gc.collect()
    assert folder.names() == []
