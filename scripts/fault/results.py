"""What the stages of a run have led to, to be held against another run's."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from fault.stages import TRAININGS


def tree(folder: Path, *patterns: str) -> dict[str, str]:
    """Map every file below a folder to the hash of its bytes."""
    files = sorted(p for pattern in patterns or ("**/*",) for p in folder.glob(pattern))
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in files
        if p.is_file()
    }


def result(run: Path, stage: str) -> dict[str, Any]:
    """Gather what a stage of a run has led to, to be held against another run's."""
    if stage == "plan":
        names = ("pictures", "boxes", "rejects", "positive")
        return tree(run / "plan", "plan.json", *(f"{name}.parquet" for name in names))
    if stage in ("positive", "negative"):
        return tree(run / "shards" / stage)
    if stage in TRAININGS:
        return trained(run / TRAININGS[stage])
    if stage == "proposals":
        return tree(run / "proposals")
    if stage == "negatives":
        return tree(run / "plan", "negative.*")
    if stage == "detect":
        return tree(run / "found", "*.json", "*.parquet")
    path = run / "eval.json"
    return {"figures": still(json.loads(path.read_bytes()))} if path.exists() else {}


def trained(folder: Path) -> dict[str, Any]:
    """Give the batches of a training, by step, and the last weights."""
    import torch

    from chipgen.storage import LocalFolder
    from train import checkpoint, journal

    torch.set_num_threads(1)
    state = checkpoint.load_last(LocalFolder(folder / "checkpoints"))
    order = {
        str(entry["step"]): entry["order"] for _, entry in journal.entries(LocalFolder(folder))
    }
    if state is None:
        return {"order": order}
    digest = hashlib.sha256()
    for name, value in sorted(state["model"].items()):
        digest.update(
            name.encode() + value.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        )
    sums = {name: value.double().abs().sum().item() for name, value in state["model"].items()}
    return {
        "order": order,
        "done": state["done"],
        "step": state["step"],
        "weights": digest.hexdigest(),
        "sums": sums,
    }


def still(value: Any) -> Any:
    """Take out of figures what the clock and the place have a part in."""
    if isinstance(value, dict):
        moving = ("pictures_per_s", "seconds", "inputs", "model", "data", "device", "seal")
        return {k: still(v) for k, v in value.items() if k not in moving}
    return [still(one) for one in value] if isinstance(value, list) else value


def differing(
    ours: dict[str, Any],
    theirs: dict[str, Any],
    stage: str,
    log_cut: bool = False,
    processes: int = 1,
) -> list[str]:
    """List in which of a stage's results two runs differ.

    `log_cut`: entries of a training may be missing; `processes` of it: sums may be in other orders.
    """
    ours, theirs = dict(ours), dict(theirs)
    if stage in TRAININGS:
        if log_cut:  # its entries are what the fault took
            got = ours.pop("order", {})
            ours["order"] = theirs.get("order", {}) | got
        if processes > 1:
            ours.pop("weights", None), theirs.pop("weights", None)
            mine, sums = ours.pop("sums", {}), theirs.pop("sums", {})
            if mine.keys() != sums.keys() or not np.allclose(
                [*mine.values()], [sums[k] for k in mine], rtol=1e-6
            ):
                return ["weights"]
    return [key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key)]
