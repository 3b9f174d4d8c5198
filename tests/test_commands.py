import json
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import made_up
import numpy as np
import pytest
from PIL import Image

from chipgen import cut, shards
from chipgen.__main__ import main
from chipgen.arguments import GOES_ON, execute
from chipgen.plan import ChipSettings
from chipgen.recipe import load
from chipgen.storage import open_folder
from chipgen.tables import read_table
from infer.settings import InferSettings
from train.settings import load_recipe

COMMANDS = ("plan", "negatives", "write", "verify", "stats", "show", "suggest")


@pytest.fixture
def data(tmp_path):
    return made_up.coco(tmp_path / "data")


def test_chipgen_runs_without_torch(tmp_path, data):
    """Run everything in a process in which importing torch fails."""
    code = (
        "import sys\nsys.modules['torch'] = sys.modules['webdataset'] = None\n"
        "from chipgen.__main__ import main\n"
        f"run, data = {str(tmp_path / 'run')!r}, {str(data)!r}\n"
        "for command in (['plan', run, '--data', data], ['negatives', run],\n"
        "                ['write', run, '--workers', '1'], ['verify', run], ['stats', run],\n"
        "                ['suggest', '--data', data]):\n"
        "    assert main(command) == 0, command\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert f"example: python -m chipgen {command}" in " ".join(capsys.readouterr().out.split())


def test_stats_has_the_figures_that_other_programs_read(tmp_path, data, capsys):
    file = tmp_path / "stats.json"
    arguments = ["--data", str(data), "--split", "train", "--json", str(file)]
    assert main(["stats", *arguments]) == 0
    figures = json.loads(file.read_text())
    assert figures["pictures"] == 12
    assert figures["uncovered"] == 0
    assert figures["bytes"] is None
    assert figures.keys() >= {
        "boxes", "crowd", "positive_chips_per_picture", "negative_chips_per_picture",
        "pixels_vs_single_pass", "pixels_vs_pyramid",
    }  # fmt: skip
    assert "covered by no chip" in capsys.readouterr().out
    run = str(tmp_path / "run")
    assert main(["plan", run, "--data", str(data)]) == 0
    assert main(["negatives", run]) == 0
    assert main(["write", run, "--workers", "1"]) == 0
    assert main(["stats", run, "--json", str(file)]) == 0
    of_run = json.loads(file.read_text())
    tars = (tmp_path / "run/shards").rglob("*.tar")
    assert of_run["bytes"] == sum(path.stat().st_size for path in tars) > 0
    assert of_run["negative_chips_per_picture"] == pytest.approx(2 / 12)
    assert of_run["positive_chips_per_picture"] == figures["positive_chips_per_picture"]


def test_plan_and_show_work_straight_on_a_data_set(tmp_path, data, capsys):
    recipe = str(made_up.recipe(tmp_path / "r.toml"))
    assert main(["plan", "--data", str(data), "--recipe", recipe]) == 0
    assert main(["show", "--data", str(data), "--out", str(tmp_path / "png"), "--count", "3"]) == 0
    drawn = sorted((tmp_path / "png").iterdir())
    assert len(drawn) == 4  # three pictures, one contact sheet
    for path in drawn:
        with Image.open(path) as image:
            assert image.width > 300


def test_show_draws_what_a_run_stored(tmp_path, data):
    run, out = str(tmp_path / "run"), str(tmp_path / "png")
    assert main(["plan", run, "--data", str(data)]) == 0
    assert main(["negatives", run]) == 0
    assert main(["write", run, "--workers", "1"]) == 0
    assert main(["show", run, "--out", out, "--count", "1"]) == 0
    assert {"chips-positive.png", "chips-negative.png"} <= {p.name for p in Path(out).iterdir()}


def test_suggest_writes_a_recipe_that_plans_the_data_set(tmp_path, data, capsys):
    out = str(tmp_path / "own.toml")
    assert main(["suggest", "--data", str(data), "--size", "128", "--out", out]) == 0
    assert "takes" in capsys.readouterr().out
    file = tmp_path / "stats.json"
    assert main(["stats", "--data", str(data), "--recipe", out, "--json", str(file)]) == 0
    assert json.loads(file.read_text())["uncovered"] == 0
    for network in ("small", "resnet50"):
        name = str(tmp_path / f"{network}.toml")
        line = ["suggest", "--data", str(data), "--network", network, "--out", name]
        assert main(line) == 0
        assert load_recipe(name).model.backbone == network
        levels = load(name, {"infer": InferSettings})["infer"].levels
        assert levels[::-1] == load(name, {"chips": ChipSettings})["chips"].levels


def test_suggest_overwrites_neither_a_file_nor_a_url(tmp_path, data, capsys):
    recipe = tmp_path / "own.toml"
    recipe.write_text("# mine\n")
    for out in (str(recipe), recipe.as_uri()):
        assert main(["suggest", "--data", str(data), "--out", out]) == 1
        assert "exists already" in capsys.readouterr().err
        assert recipe.read_text() == "# mine\n"
    other = tmp_path / "other.toml"
    assert main(["suggest", "--data", str(data), "--out", other.as_uri()]) == 0
    assert "[chips]" in other.read_text()


def test_a_changed_recipe_or_data_set_plans_again(tmp_path, data, capsys):
    run, recipe = str(tmp_path / "run"), str(made_up.recipe(tmp_path / "r.toml"))
    arguments = ["plan", run, "--data", str(data), "--recipe", recipe]
    assert main(arguments) == 0
    assert "chips a picture" in capsys.readouterr().out
    assert main(arguments) == 0
    assert capsys.readouterr().out == ""
    assert main([*arguments, "--set", "shards.quality=80"]) == 0
    assert capsys.readouterr().out == ""  # the same plan, but the new setting is kept
    assert (
        json.loads((tmp_path / "run/plan/plan.json").read_text())["recipe"]["shards"]["quality"]
        == 80
    )
    assert main([*arguments, "--set", "chips.stride=8"]) == 0
    assert "chips a picture" in capsys.readouterr().out
    made_up.coco(data, seed=1)
    assert main([*arguments, "--set", "chips.stride=8"]) == 0
    assert "chips a picture" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["plan", "RUN", "--data", "NOWHERE"], "does not exist"),
        (["plan", "RUN", "--data", "DATA", "--split", "test"], "no split 'test'"),
        (["plan", "RUN", "--data", "DATA", "--recipe", "snipre"], "no such file"),
        (["plan", "RUN", "--data", "DATA", "--set", "chips.sise=3"], "did you mean 'size'"),
        (["plan", "RUN", "--data", "gopher://x/y"], "gopher"),
        (["negatives", "RUN"], "no plan in it"),
        (["write", "RUN"], "no plan in it"),
        (["verify", "RUN"], "no finished set"),
        (["stats"], "either a run folder or --data"),
        (["stats", "RUN"], "no plan in it"),
        (["show", "RUN", "--data", "DATA"], "either a run folder or --data"),
        (["suggest", "--data", "DATA", "--split", "nix"], "no split"),
        (["suggest", "--data", "DATA", "--split", " ,"], "names no split"),
    ],
)
def test_bad_input_gives_one_clear_line_and_a_non_zero_exit(
    tmp_path, data, capsys, arguments, told
):
    places = {"RUN": str(tmp_path / "run"), "DATA": str(data), "NOWHERE": str(tmp_path / "no")}
    assert main([places.get(one, one) for one in arguments]) == 1
    err = capsys.readouterr().err
    lines = [line for line in err.splitlines() if line.startswith("chipgen ")]
    assert len(lines) == 1
    assert told in lines[0]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("part", ["3/3", "a/b", "1", "-1/3", "/"])
def test_a_bad_part_is_refused(part, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["write", "run", f"--part={part}"])
    assert stop.value.code == 2
    assert "expected I/N" in capsys.readouterr().err


@pytest.mark.parametrize("array", [0, 1, 2])
def test_ctrl_c_while_a_kernel_makes_its_arrays_comes_after_it(array, capsys):
    # a test run in the background is deaf to Ctrl-C
    deaf = signal.signal(signal.SIGINT, signal.default_int_handler)
    reached, made = 0, None

    def strike(frame, event, argument):
        nonlocal reached
        if frame.f_code.co_name == "_numba_unpickle":  # which kernels call for each array
            reached += 1
            if reached == array + 1:
                signal.raise_signal(signal.SIGINT)

    def run() -> int:
        nonlocal made
        before = sys.gettrace()
        sys.settrace(strike)
        try:
            made = cut.chip_boxes(np.zeros((1, 4)), 1.0, 1.0, 0, 0, 8, 8)
        finally:
            sys.settrace(before)
        time.sleep(10)  # which Ctrl-C ends at once
        return 0

    cut.chip_boxes(np.zeros((1, 4)), 1.0, 1.0, 0, 0, 8, 8)  # which may have to load it
    assert execute("cut", run) == 130
    assert reached == 3
    assert [len(array) for array in made] == [0, 0, 0]
    assert capsys.readouterr().err == "\ncut: stopped; " + GOES_ON + "\n"
    assert signal.signal(signal.SIGINT, deaf) is signal.default_int_handler


def test_a_command_may_run_in_a_thread():
    ended = []
    thread = threading.Thread(target=lambda: ended.append(execute("cut", lambda: 0)))
    thread.start()
    thread.join()
    assert ended == [0]


def test_proposals_that_are_missing_or_no_parquet_are_refused(tmp_path, data, capsys):
    run = str(tmp_path / "run")
    assert main(["plan", run, "--data", str(data)]) == 0
    assert main(["negatives", run, "--proposals", str(tmp_path / "none.parquet")]) == 1
    assert "no such file" in capsys.readouterr().err
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 but no more")
    assert main(["negatives", run, "--proposals", str(tmp_path / "bad.parquet")]) == 1
    assert "not Parquet" in capsys.readouterr().err


def test_an_output_path_that_is_a_file_is_refused(tmp_path, data, capsys):
    (tmp_path / "run").write_text("precious")
    assert main(["plan", str(tmp_path / "run"), "--data", str(data)]) == 1
    assert "is a file and not a folder" in capsys.readouterr().err
    assert (tmp_path / "run").read_text() == "precious"


def test_a_full_disk_stops_with_one_line_and_a_later_run_completes(tmp_path, data):
    """Let no file grow beyond 20 kB, which the kernel refuses as a full disk refuses."""
    run = str(tmp_path / "run")
    assert main(["plan", run, "--data", str(data)]) == 0
    limited = subprocess.run(
        [sys.executable, "-m", "chipgen", "write", run, "--workers", "1"],
        capture_output=True, text=True, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)),
    )  # fmt: skip
    assert limited.returncode == 1
    assert "Traceback" not in limited.stderr
    assert "cannot write" in limited.stderr
    assert not [p for p in (tmp_path / "run/shards").rglob("*") if p.suffix in (".tar", ".tmp")]
    assert main(["write", run, "--workers", "1"]) == 0
    assert main(["verify", run]) == 0


def test_a_limit_of_pixels_may_be_infinite(tmp_path, data):
    run = str(tmp_path / "run")
    assert main(["plan", run, "--data", str(data), "--set", "shards.max_megapixels=inf"]) == 0
    assert main(["write", run, "--workers", "1"]) == 0
    manifest = shards.read_manifest(open_folder(f"{run}/shards/positive"))
    assert manifest.counts["pictures"]["rejected"] == 0


def test_a_data_set_without_one_usable_picture_is_refused(tmp_path, data, capsys):
    content = json.loads((data / "annotations/instances_train.json").read_text())
    for image in content["images"]:
        image["width"] = 0
    made_up.write_json(data, content)
    assert main(["plan", str(tmp_path / "run"), "--data", str(data)]) == 1
    err = capsys.readouterr().err
    assert "not one usable picture" in err
    assert "bad_size" in err


def broken_kinds(folder: Path) -> dict[str, str]:
    """Write 26 kinds of broken pictures; gives the reason expected for each file name."""
    good = made_up.noise(120, 90)
    jpeg, png = made_up.encoded(good), made_up.encoded(good, "PNG")
    files = {
        "truncated.jpg": (jpeg[: len(jpeg) // 2], "broken_picture"),
        "header-only.jpg": (jpeg[:200], "broken_picture"),
        "two-bytes.jpg": (jpeg[:2], "not_a_picture"),
        "no-end-mark.jpg": (jpeg[:-200], "broken_picture"),
        "empty.jpg": (b"", "empty_file"),
        "empty.png": (b"", "empty_file"),
        "text.jpg": (b"not a picture at all", "not_a_picture"),
        "html.jpg": (b"<!DOCTYPE html><html>404</html>", "not_a_picture"),
        "zeros.jpg": (bytes(5000), "not_a_picture"),
        "cut.png": (png[: len(png) // 2], "broken_picture"),
        "garbled.png": (png[:300] + b"\xff" * 99 + png[399:], "broken_picture"),
        "cut.gif": (made_up.encoded(good, "GIF")[:900], "broken_picture"),
        "cut.webp": (made_up.encoded(good, "WEBP")[:500], "broken_picture"),
        "cut.tif": (made_up.encoded(good, "TIFF")[:900], "broken_picture"),
        "cut.bmp": (made_up.encoded(good, "BMP")[:900], "broken_picture"),
        "bomb.png": (made_up.encoded(Image.new("1", (9000, 9000)), "PNG"), "too_many_pixels"),
        "bomb.jpg": (made_up.encoded(Image.new("L", (9000, 9000))), "too_many_pixels"),
        "wider.jpg": (made_up.encoded(made_up.noise(121, 90)), "size_mismatch"),
        "turned.jpg": (made_up.encoded(made_up.noise(90, 120)), "size_mismatch"),
        "wider.png": (made_up.encoded(made_up.noise(121, 90), "PNG"), "size_mismatch"),
        "gray-wrong.jpg": (made_up.encoded(made_up.noise(12, 9).convert("L")), "size_mismatch"),
    }
    for name, (content, _) in files.items():
        (folder / name).write_bytes(content)
    (folder / "folder.jpg").mkdir()
    (folder / "loop.jpg").symlink_to(folder / "loop.jpg")
    (folder / "dangling.jpg").symlink_to(folder / "nowhere")
    reasons = {name: reason for name, (_, reason) in files.items()}
    missing = dict.fromkeys(("folder.jpg", "loop.jpg", "dangling.jpg", "gone.jpg"), "missing_file")
    return {**reasons, **missing, "x" * 300 + ".jpg": "missing_file"}


def odd_but_good(folder: Path) -> list[str]:
    """Write pictures that look odd and must be used."""
    good = made_up.noise(120, 90)
    files = {
        "really-png.jpg": made_up.encoded(good, "PNG"),
        "gray.jpg": made_up.encoded(good.convert("L")),
        "cmyk.jpg": made_up.encoded(good.convert("CMYK")),
        "alpha.png": made_up.encoded(good.convert("RGBA"), "PNG"),
        "palette.png": made_up.encoded(good.convert("P"), "PNG"),
        "trailing.jpg": made_up.encoded(good) + b"junk",
        "progressive.jpg": made_up.encoded(good, progressive=True),
        "unicode-é漢.jpg": made_up.encoded(good),
    }
    (folder / "sub.dir").mkdir()
    for name, content in {**files, "sub.dir/in.sub.jpg": made_up.encoded(good)}.items():
        (folder / name).write_bytes(content)
    return [*files, "sub.dir/in.sub.jpg"]


def test_a_folder_of_everything_broken_goes_through_and_adds_up(tmp_path, capsys):
    pictures = tmp_path / "train"
    pictures.mkdir()
    broken, good = broken_kinds(pictures), odd_but_good(pictures)
    names = [*good, *broken]
    images = [{"id": i, "file_name": n, "width": 120, "height": 90} for i, n in enumerate(names, 1)]
    entries = [
        {"id": i, "image_id": i, "category_id": 1, "bbox": [5, 5, 30, 20]}
        for i in range(1, len(names) + 1)
    ]
    bad_images = [
        {"id": 900, "file_name": "../up.jpg", "width": 9, "height": 9},
        {"id": 901, "file_name": "/etc/passwd", "width": 9, "height": 9},
        {"id": 902, "file_name": "a\u0000b.jpg", "width": 9, "height": 9},
        {"id": 903, "file_name": "", "width": 9, "height": 9},
        {"id": 904, "file_name": good[0], "width": -1, "height": 9},
        {"id": 905, "file_name": good[0], "width": 1e99, "height": 9},
        {"id": 906, "file_name": good[0], "width": None, "height": 9},
        {"id": 1, "file_name": "again.jpg", "width": 9, "height": 9},
        {"file_name": "no-id.jpg", "width": 9, "height": 9},
        None,
        "text",
    ]
    boxes = (None, [], [1, 2, 3], [1, 2, 0, 4], [1, 2, 3, -4], [500, 5, 9, 9], ["a", 0, 1, 1],
             [float("nan"), 0, 9, 9], [0, float("inf"), 9, 9], [True, None, 9, 9])  # fmt: skip
    bad_entries = [
        {"id": 1000 + i, "image_id": 1, "category_id": 1, "bbox": box}
        for i, box in enumerate(boxes)
    ]
    bad_entries += [
        {"id": 2000, "image_id": 777, "category_id": 1, "bbox": [0, 0, 9, 9]},
        {"id": 2001, "image_id": 900, "category_id": 1, "bbox": [0, 0, 9, 9]},
        {"id": 2002, "image_id": 1, "category_id": 777, "bbox": [0, 0, 9, 9]},
        {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9]},
        {"id": 2003},
        None,
        7,
    ]
    content = {"images": images + bad_images, "annotations": entries + bad_entries}
    made_up.write_json(tmp_path, content)
    kinds = len(broken) + len(bad_images) + len(bad_entries)
    assert kinds >= 40

    run, recipe = str(tmp_path / "run"), str(made_up.recipe(tmp_path / "r.toml"))
    limit = ["--set", "shards.max_megapixels=50"]
    plan = ["plan", run, "--data", str(tmp_path), "--recipe", recipe, *limit]
    assert main(plan) == 0
    assert main(["negatives", run]) == 0
    assert main(["write", run, "--workers", "2"]) == 0
    assert main(["verify", run]) == 0

    folder = open_folder(run).sub("shards/positive")
    rejects = read_table(folder, shards.REJECTS).to_pylist()
    reasons = {r["file"]: r["reason"] for r in rejects if r["annotation_id"] is None}
    assert {name: reasons.get(name) for name in broken} == broken
    counts = shards.read_manifest(folder).counts
    assert counts["pictures"] == {
        "listed": len(content["images"]),
        "used": len(good),
        "without_chips": 0,
        "rejected": len(broken) + len(bad_images),
    }
    assert counts["annotations"] == {
        "listed": len(content["annotations"]),
        "used": len(good),
        "without_chips": 0,
        "rejected": len(broken) + len(bad_entries),
    }
    samples = list(shards.read_samples(folder, read_table(folder, shards.INDEX)))
    assert {chip.file for _, _, chip in samples} == set(good)
    stray = [r for r in rejects if r["reason"] not in set(broken.values())]
    assert all(r["reason"] and r["detail"] is not None for r in stray)
