"""Command line of the trainer: parse, build, run, report."""

import argparse
import contextlib
import dataclasses
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from chipgen import shards
from chipgen.arguments import add_overrides, execute
from chipgen.errors import Refusal
from chipgen.pipeline import commit
from chipgen.recipe import load_table
from chipgen.storage import LocalFolder

log = logging.getLogger("train")

REQUEUE = 75  # exit code: stopped by a signal with a checkpoint written; run it again


def main(arguments: Sequence[str] | None = None) -> int:
    """Train; returns the exit code."""
    args = _parser().parse_args(arguments)
    go_on = "go on from the last checkpoint with --resume"
    return execute("train", lambda: run(args), go_on)


def run(args: argparse.Namespace) -> int:
    """Train as the arguments say."""
    import torch  # it takes seconds, and --help needs none of it

    try:
        return trained(args)
    except torch.OutOfMemoryError as error:
        raise Refusal(
            f"the device has too little memory ({error}); let fewer chips pass at once with "
            f"train.pass_chips = 8, or 4, which leaves the batch as it is, or set "
            f"model.checkpointing = true; the run then goes on with --resume"
        ) from error
    except RuntimeError as error:  # torch raises no kind of its own, and from wherever it is
        if "DataLoader worker" not in str(error):
            raise
        raise Refusal(
            f"a loader worker died ({error}); where the machine's memory has run out, lower "
            f"train.workers; go on with --resume"
        ) from error


def trained(args: argparse.Namespace) -> int:
    """Train, and tell how it ended."""
    from train import checkpoint, loop
    from train.hold import Hold
    from train.index import find_sets, open_index
    from train.memory import keep_freed
    from train.processes import joined
    from train.settings import load_recipe

    if "://" in args.run:
        raise Refusal(f"{args.run}: give a local run folder, and --shards {args.run}/shards")
    keep_freed()
    recipe = load_recipe(args.recipe, args.overrides)
    mines = recipe.train.task == "rpn"  # it is from this training that negatives are mined
    sets = find_sets(args.shards or f"{args.run}/shards", negatives=not mines)
    index = open_index(sets)
    manifests = [shards.read_manifest(one) for one in sets]
    about: dict[str, Any] = {
        "recipe": _plain(recipe),
        "chips": manifests[0].recipe,
        "infer": load_table(args.recipe, args.overrides).get("infer", {}),  # to be handed on
        "shards": [manifest.content_hash for manifest in manifests],
        "indexes": [manifest.index_sha256 for manifest in manifests],
        "classes": list(index.classes),
        "commit": commit(),
    }
    folder = LocalFolder(Path(args.run) / ("rpn" if recipe.train.task == "rpn" else "train"))
    with joined() as processes:
        recipe.train.require_chips_for(processes.world)
        with contextlib.ExitStack() as stack:
            refusal = None
            if processes.rank == 0:
                try:
                    stack.enter_context(Hold(folder))
                except (Refusal, OSError) as error:
                    refusal = error
            if processes.any(refusal is not None):  # nobody reads before the folder is held
                if refusal:
                    raise refusal
                return 1
            state = checkpoint.load_same(folder.sub("checkpoints"), processes)
            if not _is_to_train(state, about, recipe.train.length, folder, args.resume):
                if processes.rank == 0:
                    log.info("up to date: %s, step %d", folder, state["step"])
                return 0
            late = [f"{at:g}" for at, _ in recipe.train.steps_down if at >= recipe.train.length]
            if late and processes.rank == 0:
                log.warning(
                    "train.drops: the rate does not fall at epoch %s, for there are only %d epochs",
                    ", ".join(late),
                    recipe.train.length,
                )
            if state and processes.rank == 0:
                log.info("going on from step %d, epoch %d", state["step"], state["place"][0])
            ended = loop.train(folder, index, recipe, about, processes, state)
    if ended == loop.STOPPED:
        log.info("stopped by a signal; a checkpoint is written (exit code %d: run again)", REQUEUE)
        return REQUEUE
    return 0


def _is_to_train(
    state: dict[str, Any] | None, about: dict[str, Any], length: int, folder: Any, resume: bool
) -> bool:
    """Say whether something is left to do; refuse a folder that holds something else."""
    from train import loop

    if state is None:
        return True
    differing = loop.same_run(state, about)
    if differing:
        raise Refusal(
            f"{folder}: holds a run that differs in {', '.join(differing)}; delete that folder, or "
            f"choose another run folder"
        )
    if state["done"] and state["place"][0] >= length:
        return False
    if not resume:
        raise Refusal(f"{folder}: holds a run; go on with --resume, or delete that folder")
    return True


def _plain(recipe: Any) -> dict[str, Any]:
    """Turn a recipe into what both TOML and a checkpoint can hold."""
    return msgspec.json.decode(msgspec.json.encode(dataclasses.asdict(recipe)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m train",
        description="Train a detector on the shards of a run folder.",
        epilog="example: torchrun --nproc-per-node 8 -m train runs/coco --recipe coco-r50 --resume",
    )
    parser.add_argument("run", help="run folder; RUN/train (or RUN/rpn) is written")
    parser.add_argument("--recipe", required=True, help="recipe file, or the name of a shipped one")
    parser.add_argument("--shards", help="folder or URL of the shards (default: RUN/shards)")
    add_overrides(parser)
    parser.add_argument(
        "--resume", action="store_true", help="go on from the last checkpoint, if there is one"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
