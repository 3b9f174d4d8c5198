"""Shards in folders of some each, and sets of the format before, which had them in one."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import test_order

from chipgen import pipeline, shards
from chipgen import run as run_folder
from chipgen.__main__ import main
from chipgen.recipe import digest
from chipgen.storage import digest_of, open_folder
from chipgen.tables import read_table, table_bytes
from train.index import find_sets, open_index

finished, copied = test_order.finished, test_order.copied  # fixtures


@pytest.fixture
def few(monkeypatch):
    """Let a folder hold few shards."""
    monkeypatch.setattr(shards, "FOLDER_SHARDS", 2)
    return 2


def keys(folder) -> list[str]:
    return read_table(folder, shards.INDEX)["key"].to_pylist()


def test_no_folder_holds_more_than_its_number_and_all_is_found_again(finished, tmp_path, few):
    run = tmp_path / "run"
    shutil.copytree(finished.parent / "plan", run / "plan")
    assert main(["write", str(run), "--workers", "1", "--part", "0/1"]) == 0
    job_folders = list((run / "shards/positive/groups").iterdir())
    assert len(job_folders) > 1
    assert all(len(list(one.iterdir())) <= few for one in job_folders)
    assert main(["write", str(run), "--finish"]) == 0
    assert main(["verify", str(run)]) == 0
    for kind in ("positive", "negative"):
        homes = [path for path in (run / "shards" / kind).iterdir() if path.is_dir()]
        assert [path.name for path in sorted(homes)] == [f"{i:03d}" for i in range(len(homes))]
        assert len(homes) > 1
        assert all(len(list(home.iterdir())) <= few for home in homes)
        one, other = (open_folder(folder / kind) for folder in (finished, run / "shards"))
        assert keys(one) == keys(other)
        names = [entry.name for entry in shards.read_manifest(other).shards]
        assert sorted(shards.find_shards(other)) == names
    index = open_index(find_sets(str(run / "shards")))
    assert {name.partition("/")[0] for name in index.shards} >= {"000", "001"}


def test_a_shard_that_nobody_lists_is_swept_out_of_its_folder(finished, tmp_path, few):
    run = tmp_path / "run"
    shutil.copytree(finished.parent / "plan", run / "plan")
    stray = run / "shards/positive/002/positive-000999.tar"
    stray.parent.mkdir(parents=True)
    stray.write_bytes(b"left by a killed run")
    stray.with_name(".positive-000007.tar.tmp").write_bytes(b"half")
    assert main(["write", str(run), "--kind", "positive", "--workers", "1"]) == 0
    assert not stray.exists()
    assert not list((run / "shards").rglob("*.tmp"))
    assert not (run / "shards/positive/groups").exists()


def test_what_says_which_chips_a_set_holds_is_reckoned_as_in_the_format_before(finished):
    folder = open_folder(finished.parent)
    record = run_folder.read_record(folder)
    settings = digest(run_folder.recipe_of(record).shards)
    expected = hashlib.sha256(f"2-positive-{record.content}-{settings}".encode()).hexdigest()
    assert shards.read_manifest(folder.sub("shards/positive")).content_hash == expected


def test_a_set_of_the_format_before_is_read_and_counts_as_written(copied, finished, caplog):
    for kind in ("positive", "negative"):
        folder = open_folder(copied / kind)
        manifest = json.loads(folder.read(shards.MANIFEST))
        del manifest["seal"]  # there were none
        table = read_table(folder, shards.INDEX)
        flat = [Path(name).name for name in table["shard"].to_pylist()]
        table = table.set_column(1, "shard", [flat])
        folder.write(shards.INDEX, table_bytes(table))
        for entry in manifest["shards"]:
            path = copied / kind / entry["name"]
            path.rename(copied / kind / path.name)
            entry["name"] = path.name
        (copied / kind / "000").rmdir()
        manifest |= {"format": 2, "index_sha256": digest_of(folder, shards.INDEX)}
        folder.write(shards.MANIFEST, json.dumps(manifest).encode())
    run = copied.parent
    assert main(["verify", str(run)]) == 0
    assert len(open_index(find_sets(str(copied)))) == len(open_index(find_sets(str(finished))))
    shutil.copytree(finished.parent / "plan", run / "plan")
    caplog.set_level("INFO")
    assert main(["write", str(run)]) == 0
    assert caplog.text.count("up to date") == 2


@pytest.mark.parametrize("per_group", [1, 4, 10**6])
def test_names_of_groups_do_not_fill_a_folder(per_group):
    job = pipeline.Job(open_folder("x"), "positive", None, None, "ab" * 32, None)
    homes = {job.record_name(n).rpartition("/")[0] for n in range(0, 5 * per_group, per_group)}
    assert all(home.startswith("groups/") for home in homes)
    assert len(homes) == (5 if per_group >= 1000 else 1)
