import gc
import io
import tarfile
import warnings

import made_up
import msgspec
import numpy as np
import pytest

from chipgen import codec, dataset, pipeline, pool, run, shards
from chipgen.errors import Refusal
from chipgen.storage import LocalFolder, open_folder
from chipgen.tables import read_table


def written(tmp_path, store="source", pictures=12, **chips):
    """Plan and write a made-up data set; gives the run folder and the positive set."""
    data = made_up.coco(tmp_path / "data", pictures)
    recipe = run.load_recipe(str(made_up.recipe(tmp_path / "r.toml", store, **chips)))
    folder = open_folder(tmp_path / "run")
    record = run.save_plan(folder, "test", dataset.parts(str(data), ["train"]), recipe)
    job = pipeline.open_job(folder, "positive", record, recipe)
    pool.run(job, pipeline.unfinished_groups(job), 1, lambda pictures: None)
    pipeline.finish(job)
    return folder, job.folder


def samples_of(folder: LocalFolder):
    return list(shards.read_samples(folder, read_table(folder, shards.INDEX)))


def make_sample(key: str, size: int) -> shards.Sample:
    return shards.Sample(key, b"j" * size, b"{}" * (size % 7), 1, 0, 8, 8, 0, 1)


@pytest.mark.parametrize("sizes", [[], [0], [1], [511, 512, 513], [5000, 0, 3]])
def test_a_shard_is_a_tar_that_tarfile_reads(sizes):
    samples = [make_sample(f"k-{i}", size) for i, size in enumerate(sizes)]
    parts, places = shards.build_shard(samples)
    with tarfile.open(fileobj=io.BytesIO(b"".join(parts))) as tar:
        found = {member.name: tar.extractfile(member).read() for member in tar}
    expected = {}
    for sample in samples:
        expected |= {f"{sample.key}.jpg": sample.jpg, f"{sample.key}.json": sample.json}
    assert found == expected
    assert [offset for offset, _, _ in places] == sorted({offset for offset, _, _ in places})


def test_headers_are_those_of_tarfile():
    info = tarfile.TarInfo("train-139-p0-64-32-0.jpg")
    info.size = 12345
    assert shards._header(info.name, info.size) == info.tobuf(tarfile.USTAR_FORMAT)


def test_a_key_has_no_dot_and_fits_a_tar_header():
    key = shards.key_of("tr.ain/é" * 20, -(2**63), "negative", 99, 10**6, 10**6, 10**6)
    assert "." not in key
    assert len(f"{key}.json".encode("ascii")) <= 100


def test_webdataset_reads_every_sample_of_every_shard(tmp_path):
    import webdataset

    _, folder = written(tmp_path)
    manifest = shards.read_manifest(folder)
    assert len(manifest.shards) > 3
    ours = {key: (jpg, chip) for key, jpg, chip in samples_of(folder)}
    urls = [str(folder.path / shard.name) for shard in manifest.shards]
    seen = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # it leaves closing to the collector
        pipe = webdataset.WebDataset(urls, shardshuffle=False, empty_check=False)
        for sample in pipe.decode("rgb8"):
            _, chip = ours[sample["__key__"]]
            width, height = chip.stored_size
            assert sample["jpg"].shape == (height, width, 3)
            assert msgspec.convert(sample["json"], shards.Chip) == chip
            seen += 1
        del pipe
        gc.collect()
    assert seen == len(ours) == sum(shard.chips for shard in manifest.shards)


@pytest.mark.parametrize("store", ["source", "canvas"])
def test_chip_boxes_lead_back_to_the_pictures_boxes(tmp_path, store):
    folder, positives = written(tmp_path, store)
    annotations = run.read_plan(folder).annotations
    by_id = {p.entry["picture_id"]: p for p in annotations.each()}
    whole = set()  # annotations that some chip holds uncut
    for _, _, chip in samples_of(positives):
        picture = by_id[chip.picture_id]
        width, height = chip.window[2:]
        corner = np.tile(chip.window[:2], 2)
        for box, label, valid, crowd in zip(
            chip.boxes, chip.labels, chip.valid, chip.crowd, strict=True
        ):
            assert 0 <= box[0] < box[2] <= width
            assert 0 <= box[1] < box[3] <= height
            back = (np.array(box) + corner) / np.tile(chip.factor, 2)
            distances = np.abs(picture.boxes - back).max(axis=1)
            n = int(distances.argmin())
            slack = 1.0 / min(chip.factor)  # what a valid box may be cut by
            assert distances[n] < (1e-3 + slack if valid else np.inf)
            if distances[n] < 1e-3:
                assert (picture.labels[n], picture.crowd[n]) == (label, crowd)
                whole.add(int(picture.annotation_ids[n]))
    assert whole >= set(annotations.annotation_ids[~annotations.crowd].tolist())


def test_a_chip_records_what_the_trainer_needs(tmp_path):
    folder, positives = written(tmp_path, store="canvas")
    recipe = run.recipe_of(run.read_record(folder))
    for _, jpg, chip in samples_of(positives):
        level = recipe.chips.levels[chip.level]
        scale = np.sqrt(np.prod(chip.factor))
        assert chip.kind == "positive"
        assert chip.valid_range[0] == pytest.approx(level.range[0] * scale)
        high = level.range[1] * scale
        assert chip.valid_range[1] == (None if np.isinf(high) else pytest.approx(high))
        assert chip.stored_size == chip.window[2:]
        pixels = codec.decode(jpg, chip.stored_size, 10**6)
        assert pixels.shape == chip.stored_size[::-1]
        sizes = [np.sqrt((b[2] - b[0]) * (b[3] - b[1])) for b in chip.boxes]
        for size, valid in zip(sizes, chip.valid, strict=True):
            assert not valid or chip.valid_range[0] * 0.99 <= size
            assert not valid or chip.valid_range[1] is None or size < chip.valid_range[1] * 1.01


def test_both_stores_give_the_same_canvas(tmp_path):
    from PIL import Image

    def canvases(store):
        _, folder = written(tmp_path / store, store)
        found = {}
        for key, jpg, chip in samples_of(folder):
            (sx, sy), (ox, oy) = chip.stored_scale, chip.stored_offset
            image = Image.open(io.BytesIO(jpg)).transform(
                chip.window[2:], Image.Transform.AFFINE,
                (1 / sx, 0, -ox / sx, 0, 1 / sy, -oy / sy), Image.Resampling.BILINEAR,
            )  # fmt: skip
            found[key] = np.asarray(image).astype(int)
        return found

    source, canvas = canvases("source"), canvases("canvas")
    assert source.keys() == canvas.keys()
    errors = [np.abs(source[key] - canvas[key])[2:-2, 2:-2].mean() for key in source]
    assert np.mean(errors) < 2


def test_chips_of_a_picture_do_not_lie_side_by_side(tmp_path):
    _, folder = written(tmp_path, pictures=40)
    index = read_table(folder, shards.INDEX)
    ids, names = index["picture_id"].to_pylist(), index["shard"].to_pylist()
    pairs = list(zip(ids, ids[1:], names, names[1:], strict=False))
    neighbours = sum(a == b for a, b, one, two in pairs if one == two)
    assert neighbours < 0.1 * len(pairs)


def test_variants_take_turns_by_epoch(tmp_path):
    _, folder = written(tmp_path, variants=3)
    index = read_table(folder, shards.INDEX)
    assert set(index["rounds"].to_pylist()) == {3}
    assert set(index["round"].to_pylist()) == {0, 1, 2}
    assert len(set(index["key"].to_pylist())) == index.num_rows


def test_a_sound_set_verifies(tmp_path):
    _, folder = written(tmp_path)
    assert list(shards.verify(folder)) == []


def damage_byte(path):
    data = bytearray(path.read_bytes())
    data[700] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("file", "damage", "told"),
    [
        ("000/positive-000001.tar", lambda p: p.unlink(), "000/positive-000001.tar: missing"),
        ("000/positive-000001.tar", damage_byte, "at byte 0: crc32"),
        ("000/positive-000001.tar", lambda p: p.write_bytes(p.read_bytes()[:5000]), "cut off"),
        ("000/positive-000001.tar", lambda p: p.write_bytes(b""), "0 bytes"),
        ("000/positive-999999.tar", lambda p: p.write_bytes(b"x"), "not in the manifest"),
        ("index.parquet", lambda p: p.unlink(), "index.parquet: missing"),
        ("index.parquet", lambda p: p.write_bytes(b"PAR1"), "index.parquet: sha256"),
        ("rejects.parquet", lambda p: p.write_bytes(b""), "rejects.parquet: sha256"),
    ],
)
def test_verify_says_what_is_wrong_where(tmp_path, file, damage, told):
    _, folder = written(tmp_path)
    damage(folder.path / file)
    assert any(told in fault for fault in shards.verify(folder))


@pytest.mark.parametrize("content", [None, b"{", b'{"format": 99}'])
def test_a_missing_or_foreign_manifest_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / shards.MANIFEST).write_bytes(content)
    with pytest.raises(Refusal, match=r"manifest\.json"):
        list(shards.verify(open_folder(tmp_path)))


def test_reading_a_damaged_sample_names_it(tmp_path):
    _, folder = written(tmp_path)
    index = read_table(folder, shards.INDEX)
    damage_byte(folder.path / index["shard"][0].as_py())
    with pytest.raises(Refusal, match=index["key"][0].as_py()):
        list(shards.read_samples(folder, index))
