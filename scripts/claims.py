"""Train the embedded scenes by each strategy and seed, and put the papers' claims to the test.

Each run has a folder of its own and goes on where it was stopped; a finished run is not repeated
while scenes and settings are the same, be it one of this folder or of another machine's table.
All have the same budget of training pixels as `sniper`, which trains twice as long as the recipe:
the less is left to learn, the less a comparison is one of budgets. But `snip` has three times as
much, for on COCO an epoch of it costs that (here, twice). And `equal-epochs` has less: it is
`sniper` without negatives and with nothing in their place, as where the paper compares recall.
"""

import argparse
import hashlib
import json
import signal
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec

from chipgen import recipe, storage
from infer.cascade import BEYOND
from infer.settings import InferSettings
from train.settings import load_recipe

RECIPE = "scenes-small"
FIGURES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "pixels", "pictures_per_s")
BACKGROUND, RECALL = "lost_to_background", "recall"  # of the best 300 proposals of a picture
EPOCHS, DROP = 24, 0.75  # of sniper; the share of the epochs after which the rate falls
LEVELS_SNIP = (
    "[{short=700,long=1000,range=[0,40]},{short=400,long=600,range=[16,75]},"
    "{short=240,long=400,range=[60,inf]}]"
)
SINGLE = "[{short=400,long=667}]"
# A whole picture or a crop of SNIP has about four times the pixels of a chip. So batches have a
# quarter as many, and each has four times as many anchors, candidates and RoIs.
LARGE = (
    "labels.anchors=192",
    "labels.anchors_positive=96",
    "model.candidates=2000",
    "model.proposals=256",
    "train.batch=2",
    "train.lr_batch=2",
)


@dataclass(frozen=True)
class Strategy:
    """What sets a way of training apart from `sniper`."""

    settings: tuple[str, ...] = ()  # overrides of the recipe
    negatives: str = "mined"  # | "none", or "empty": only of pictures without boxes
    budget: float | None = 1.0  # of sniper's training pixels; None: its epochs instead
    points: tuple[tuple[str, tuple[str, ...]], ...] = ()  # more settings for AutoFocus, by name


STRATEGIES = {
    "sniper": Strategy(
        # the recipe's FocusChips are for a training half as long; these were chosen on other scenes
        points=(
            (
                "autofocus",
                (
                    "infer.focus=[{threshold=0.0005,dilation=1,smallest=64},"
                    "{threshold=0.012,dilation=3,smallest=128}]",
                ),
            ),
            (
                "quarter",  # of the pyramid's pixels
                (
                    "infer.focus=[{threshold=0.012,dilation=1,smallest=48},"
                    "{threshold=0.08,dilation=3,smallest=128}]",
                ),
            ),
        ),
    ),
    "no-negatives": Strategy(negatives="none"),
    "equal-epochs": Strategy(negatives="none", budget=None),
    "two-levels": Strategy(
        (
            "chips.levels=[{factor=1.667,range=[0,75]},{long=256,range=[60,inf]}]",
            "infer.levels=[{short=240,long=256,range=[50,inf]},{short=400,long=640,range=[0,100]}]",
            "infer.focus=[{threshold=0.05,dilation=3,smallest=64}]",
        )
    ),
    "single": Strategy(
        (
            "chips.strategy=whole",
            f"chips.levels={SINGLE}",
            f"infer.levels={SINGLE}",
            "infer.focus=[]",
            *LARGE,
        ),
        negatives="empty",
    ),
    "snip": Strategy(
        ("chips.strategy=snip", f"chips.levels={LEVELS_SNIP}", "chips.crop=500", *LARGE),
        negatives="empty",
        budget=3.0,
    ),
}  # fmt: skip


def main() -> None:
    """Make all runs that are missing, and the table of those that are there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="data/scenes-small", help="the embedded scenes")
    parser.add_argument("--out", type=Path, default=Path("runs/claims"), help="folder of the runs")
    parser.add_argument(
        "--seeds", type=seeds_of, default="0,1,2", help="of each strategy (default: 0,1,2)"
    )
    parser.add_argument(
        "--known", type=Path, help="claims.json of another machine: its runs are not repeated"
    )
    parser.add_argument("--only", help="strategies to run, with commas between (default: all)")
    args = parser.parse_args()
    names = args.only.split(",") if args.only else list(STRATEGIES)
    unknown = [name for name in names if name not in STRATEGIES]
    if unknown:
        raise SystemExit(f"claims: {unknown[0]}: not one of {', '.join(STRATEGIES)}")
    if not Path(args.data, "annotations").is_dir():
        raise SystemExit(f"claims: {args.data}: no scenes there; `make scenes` draws them")
    known = known_of(args.known, args.data) if args.known else []
    elsewhere = {(run["strategy"], run["seed"]) for run in known}
    for seed in args.seeds:
        for name in names:
            if (name, seed) not in elsewhere:
                run_one(name, seed, args.data, args.out)
            table = collect(args.out, args.data, known)
            path = args.out.with_name(f"{args.out.name}.json")
            path.write_text(json.dumps(table, indent=1) + "\n")
    print(report(table))


def seeds_of(text: str) -> list[int]:
    """Read seeds with commas between."""
    return [int(word) for word in text.split(",")]


def run_one(name: str, seed: int, data: str, out: Path) -> None:
    """Bring one run to its end: chips, training, evaluation."""
    strategy, run = STRATEGIES[name], out / f"{name}-{seed}"
    source = source_of(strategy, data)
    if is_finished(run, source):
        return
    settings = make_chips(name, seed, data, out)
    epochs = EPOCHS
    if name != "sniper" and strategy.budget is not None:
        make_chips("sniper", seed, data, out)
        wanted = EPOCHS * pixels(out / f"sniper-{seed}") * strategy.budget
        epochs = max(1, round(wanted / pixels(run)))
    schedule = [f"--set=train.epochs={epochs}", f"--set=train.drops=[[{DROP * epochs}, 0.1]]"]
    module("train", run, *settings, *schedule, f"--set=train.seed={seed}", "--resume")
    module("infer", "eval", run, "--data", data, "--mode=pyramid", *settings)
    for point, texts in strategy.points:
        at = "--recipe", RECIPE, *(f"--set={text}" for text in texts)
        out_of = "--out", run / f"eval-{point}.json"
        module("infer", "eval", run, "--data", data, "--mode=autofocus", *at, *out_of)
    (run / "claim.json").write_text(json.dumps({"source": source}) + "\n")


def make_chips(name: str, seed: int, data: str, out: Path) -> list[str]:
    """Cut the chips of a run; gives the settings that all its steps share."""
    strategy, run = STRATEGIES[name], out / f"{name}-{seed}"
    sets = [f"--set={text}" for text in (*strategy.settings, f"chips.seed={seed}")]
    settings = ["--recipe", RECIPE, *sets]
    module("chipgen", "plan", run, "--data", data, *settings)
    module("chipgen", "write", run, "--kind", "positive")
    if strategy.negatives == "mined":
        rpn = ["--set=train.task=rpn", f"--set=train.seed={seed}"]
        module("train", run, *settings, *rpn, "--resume")
        module("infer", "proposals", run)
    if strategy.negatives != "none":
        module("chipgen", "negatives", run)
        module("chipgen", "write", run, "--kind", "negative")
    return settings


def source_of(strategy: Strategy, data: str) -> str:
    """Hash what the figures of a strategy come from: scenes, recipe, and what sets it apart."""
    annotations = (f"annotations/instances_{split}.json" for split in ("train", "val"))
    scenes = storage.digest_of(storage.LocalFolder(data), *annotations)
    table = recipe.load_table(RECIPE, strategy.settings)
    # with what is so by default
    trained = asdict(load_recipe(RECIPE, strategy.settings))
    looked = recipe.load(RECIPE, {"infer": InferSettings}, strategy.settings)["infer"]
    parts = scenes, table, trained, asdict(looked), BEYOND, asdict(strategy), EPOCHS, DROP
    return hashlib.sha256(msgspec.json.encode(parts, order="sorted")).hexdigest()


def is_finished(run: Path, source: str) -> bool:
    """Tell whether the figures of a run are there, and of what is there to run it on."""
    path = run / "claim.json"
    return path.is_file() and json.loads(path.read_text())["source"] == source


def known_of(path: Path, data: str) -> list[dict[str, Any]]:
    """Read what another machine found, of the same scenes and settings."""
    if not path.is_file():
        raise SystemExit(f"claims: {path}: no such file")
    sources = {(name, source_of(strategy, data)) for name, strategy in STRATEGIES.items()}
    runs = json.loads(path.read_text())["runs"]
    return [run for run in runs if (run["strategy"], run.get("source")) in sources]


def pixels(run: Path) -> float:
    """Give the canvas px of one epoch of a run, in passes over its pictures at one scale."""
    figures = run / "chips.json"
    module("chipgen", "stats", run, "--json", figures, quiet=True)
    return json.loads(figures.read_text())["pixels_vs_single_pass"]


def module(*words: Any, quiet: bool = False) -> None:
    """Run a command of the project; its failure is the end."""
    line = [sys.executable, "-m", *map(str, words)]
    process = subprocess.Popen(line, stdout=subprocess.DEVNULL if quiet else None)
    before = signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    try:
        code = process.wait()
    except KeyboardInterrupt:
        process.wait()  # a training writes its checkpoint first
        raise SystemExit("\nclaims: stopped; the same command goes on from there") from None
    finally:
        signal.signal(signal.SIGTERM, before)
    if code:
        raise SystemExit(f"claims: {' '.join(line[2:])} ended with code {code}")


def collect(out: Path, data: str, known: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    """Gather the figures of all finished runs, and of those made elsewhere."""
    runs = []
    for name, strategy in STRATEGIES.items():
        source = source_of(strategy, data)
        finished = [path for path in out.glob(f"{name}-*") if is_finished(path, source)]
        rows = [row for path in finished for row in figures_of(path, name, source)]
        here = {row["seed"] for row in rows}
        rows += [row for row in known if row["strategy"] == name and row["seed"] not in here]
        runs += sorted(rows, key=lambda row: row["seed"])
    return {"recipe": RECIPE, "runs": runs, "means": means(runs)}


def figures_of(run: Path, name: str, source: str) -> list[dict[str, Any]]:
    """Read the figures of a finished run, a row for each way of inference."""
    files = {"pyramid": run / "eval.json"}
    files |= {point: run / f"eval-{point}.json" for point, _ in STRATEGIES[name].points}
    log = (run / "train" / "log.jsonl").read_text().splitlines()
    rows = []
    for mode, path in files.items():
        told = json.loads(path.read_text())
        found = told["pyramid" if mode == "pyramid" else "autofocus"]
        rows.append(
            {
                "strategy": name,
                "mode": mode,
                "seed": int(run.name.rsplit("-", 1)[1]),
                **{key: found[key] for key in FIGURES},
                BACKGROUND: found["lost"]["background"],
                RECALL: told["proposals"]["AR"] if mode == "pyramid" else None,
                "steps": json.loads(log[-1])["step"],
                "source": source,
            }
        )
    return rows


def means(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Average the seeds of each strategy and mode, with their standard deviation."""
    kinds = dict.fromkeys((run["strategy"], run["mode"]) for run in runs)
    table = []
    for name, mode in kinds:
        alike = [run for run in runs if (run["strategy"], run["mode"]) == (name, mode)]
        keys = [key for key in (*FIGURES, BACKGROUND, RECALL) if alike[0][key] is not None]
        table.append(
            {
                "strategy": name,
                "mode": mode,
                "seeds": len(alike),
                **{key: statistics.fmean(run[key] for run in alike) for key in keys},
                "AP_deviation": statistics.stdev(run["AP"] for run in alike)
                if len(alike) > 1
                else None,
            }
        )
    return table


def report(table: dict[str, Any]) -> str:
    """Lay the means out for people."""
    heads = (
        f"{'AP':>7}{'+-':>6}{'APs':>7}{'APm':>7}{'APl':>7}{'lost':>6}{'recall':>8}{'pixels':>8}"
        f"{'pict./s':>9}"
    )
    lines = [f"{'':24}seeds{heads}"]
    for row in table["means"]:
        spread = "-" if row["AP_deviation"] is None else f"{row['AP_deviation']:.1f}"
        figures = "".join(f"{row[key]:7.1f}" for key in ("APs", "APm", "APl"))
        recall = f"{row[RECALL]:.1f}" if RECALL in row else "-"
        lines.append(
            f"{row['strategy'] + ' ' + row['mode']:24}{row['seeds']:5}{row['AP']:7.1f}{spread:>6}"
            f"{figures}{row[BACKGROUND]:6.1f}{recall:>8}{row['pixels']:8.0f}"
            f"{row['pictures_per_s']:9.1f}"
        )
    lines.append("lost: AP that the false finds in the background cost; recall: of 300 proposals")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
