"""What each command of the command line does, given its parsed arguments."""

import argparse
import dataclasses
import hashlib
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from chipgen import dataset, making, pipeline, pool, shards
from chipgen import negatives as negatives_module
from chipgen import run as run_folder
from chipgen import show as drawing
from chipgen import stats as figures
from chipgen import suggest as suggesting
from chipgen.arguments import split_names
from chipgen.errors import PictureError, Refusal
from chipgen.progress import progress
from chipgen.recipe import digest
from chipgen.run import Plan, PlanRecord, Recipe
from chipgen.sealed import encode_json, sealed
from chipgen.storage import Folder, digest_of, open_folder
from chipgen.tables import Table, open_table, read_table

DEFAULT_RECIPE = "sniper"
SHEET = 24  # chips on a contact sheet
log = logging.getLogger(__name__)


def plan(args: argparse.Namespace) -> int:
    """Plan the positive chips of a data set, into a run folder or just for the figures."""
    recipe = run_folder.load_recipe(args.recipe or DEFAULT_RECIPE, args.overrides)
    if args.run is None:
        planned = _plan_of_data(args, recipe)
        _report(args, figures.of_plan(planned.annotations, recipe.chips, planned.chips))
        return 0
    run = open_folder(args.run)
    splits = split_names(args.split)
    version = f"{run_folder.FORMAT} {digest(recipe.chips)}"
    state = f"{version} {dataset.fingerprint(args.data, splits)}"
    inputs = hashlib.sha256(state.encode()).hexdigest()
    record = _record_before(run)
    if record is not None:
        if record.inputs == inputs:
            run_folder.require_whole(run, record)
            roots = list(dataset.picture_folders(args.data, splits))
            current = msgspec.structs.replace(
                record, recipe=_plain(recipe), roots=roots
            )  # neither changes what is planned
            if _plain(current) != _plain(record):
                run.write("plan/plan.json", sealed(current))
            log.info("plan: up to date (%s)", run)
            return 0
        if run.sub("shards").names():
            raise Refusal(
                f"{run}: holds the shards of another recipe or data; delete {run.sub('shards')}, "
                f"or choose another run folder"
            )
    log.info("reading %s (%s)", args.data, args.split)
    tally = figures.Tally(recipe.chips)

    def count(annotations: dataset.Annotations, chips: pa.Table) -> None:
        tally.add(annotations, {"positive": chips})

    parts = _usable(args.data, dataset.parts(args.data, splits))
    record = run_folder.save_plan(run, inputs, parts, recipe, count)
    _report(args, tally.figures(*_rejected(run, record)))
    return 0


def negatives(args: argparse.Namespace) -> int:
    """Choose the negative chips of a planned run."""
    run = open_folder(args.run)
    record = run_folder.read_record(run)
    recipe = _recipe_of_run(args, record)
    run_folder.require_whole(run, record)
    proposals, data = None, None
    where = args.proposals
    if where is None and run.exists(run_folder.PROPOSALS) and recipe.chips.mines:
        where = f"{run}/{run_folder.PROPOSALS}"
    if args.proposals is None and recipe.chips.mines:
        run_folder.require_whole_proposals(run)
    if where:
        try:
            data = digest_of(*_locate(where))
        except FileNotFoundError as error:
            raise Refusal(f"proposals {where}: no such file") from error
    inputs = run_folder.negative_inputs(record, recipe.negatives, data)
    before = run_folder.read_negative_record(run)
    if before is not None and before.inputs == inputs:
        log.info("negatives: up to date (%s)", run)
        return 0
    if where:
        ids = run_folder.Reader(run).picture_ids()
        proposals = negatives_module.ProposalReader(_open_proposals(*_locate(where)), ids)
    counts = {"chips": 0, "pictures": 0}

    def mined() -> Iterator[pa.Table]:
        most = proposals.pictures_at_once if proposals else None
        for first, annotations, of_part in run_folder.parts_of(run, record, most):
            last = first + len(annotations.picture_ids)
            chips = negatives_module.mine(
                annotations,
                of_part["positive"],
                proposals.of(first, last) if proposals else None,
                recipe.chips,
                recipe.negatives,
            )
            counts["chips"] += chips.num_rows
            counts["pictures"] += len(np.unique(chips["picture"].to_numpy()))
            yield run_folder.moved(chips, first)

    run_folder.save_negatives(run, inputs, mined())
    log.info("negatives: %d chips of %d pictures", counts["chips"], counts["pictures"])
    if proposals and (proposals.strangers or proposals.incomplete):
        log.info(
            "negatives: left out %d proposals of no picture of the plan, and %d with a null",
            proposals.strangers,
            proposals.incomplete,
        )
    return 0


def write(args: argparse.Namespace) -> int:
    """Cut the planned chips and write them to shards."""
    run = open_folder(args.run)
    record = run_folder.read_record(run)
    recipe = _recipe_of_run(args, record)
    run_folder.require_whole(run, record)
    kinds = [args.kind] if args.kind else ["positive"]
    if not args.kind and run_folder.read_negative_record(run) is not None:
        kinds.append("negative")
    for kind in kinds:
        _write_kind(args, pipeline.open_job(run, kind, record, recipe))
    return 0


def _write_kind(args: argparse.Namespace, job: pipeline.Job) -> None:
    if pipeline.is_finished(job):
        log.info("%s chips: up to date (%s)", job.kind, job.folder)
        return
    if not args.finish:
        groups = pipeline.unfinished_groups(job)
        if args.part:
            part, parts = args.part
            groups = [group for group in groups if group % parts == part]
        if groups:
            making.require_pictures(job.run, job.record, job.recipe.shards.max_megapixels)
        total = int(job.groups[groups, 4].sum())
        with progress(
            total=total, unit=" pictures", desc=f"{job.kind} chips", disable=not groups
        ) as bar:
            pool.run(job, groups, args.workers, bar.update)
    if args.part and not args.finish:
        log.info("%s chips: part %d/%d is written; then: --finish", job.kind, *args.part)
        return
    manifest = pipeline.finish(job)
    counts = manifest.counts
    log.info(
        "%s chips: %d in %d shards, %.1f MB, of %d pictures; %d pictures rejected (%s)",
        job.kind,
        counts["chips"],
        len(manifest.shards),
        sum(shard.bytes for shard in manifest.shards) / 1e6,
        counts["pictures"]["used"],
        counts["pictures"]["rejected"],
        job.folder,
    )


def verify(args: argparse.Namespace) -> int:
    """Re-read shards; prints each fault and returns 1 if there is any."""
    folder = open_folder(args.run)
    sets = [folder] if folder.exists(shards.MANIFEST) else _sets(folder)
    if not sets:
        raise Refusal(f"{folder}: no finished set of shards in it (no {shards.MANIFEST})")
    faults = 0
    for one in sets:
        before = faults
        for fault in shards.verify(one):
            print(f"{one}: {fault}")
            faults += 1
        if faults > before:
            print(f"{one}: {shards.AGAIN.format(one)}")
        else:
            manifest = shards.read_manifest(one)
            chips = sum(shard.chips for shard in manifest.shards)
            print(f"{one}: {chips} chips in {len(manifest.shards)} shards, all as they should be")
    return 1 if faults else 0


def stats(args: argparse.Namespace) -> int:
    """Print the figures of a plan."""
    result = _figures_of_run_or_data(args)
    if args.run is not None:
        manifests = [shards.read_manifest(one) for one in _sets(open_folder(args.run))]
        result["shards"] = sum(len(m.shards) for m in manifests)
        result["bytes"] = sum(shard.bytes for m in manifests for shard in m.shards)
        result["written"] = {m.kind: m.counts for m in manifests}
    else:
        result["bytes"] = None  # nothing is written
    _report(args, result)
    return 0


def show(args: argparse.Namespace) -> int:
    """Draw pictures with their chips, and contact sheets of chips."""
    planned = _plan_of_run_or_data(args)
    out = open_folder(args.out)
    annotations, recipe = planned.annotations, planned.recipe
    folders = [open_folder(root) for root in annotations.roots]
    samples: dict[str, list] = {kind: [] for kind in planned.chips}
    drawn = 0
    for row, picture in enumerate(annotations.each()):
        entry = picture.entry
        chips = {kind: _of_picture(table, row) for kind, table in planned.chips.items()}
        try:
            folder = folders[entry["root"]]
            pixels = making.read_pixels(picture, folder, recipe.shards.max_megapixels)
        except PictureError as error:
            log.info("show: %s is left out: %s", entry["file"], error)
            continue
        drawing_of_plan = drawing.draw_plan(
            annotations.take(np.array([row])), pixels, recipe.chips, chips
        )
        out.write(
            f"picture-{entry['split']}-{entry['picture_id']}.png", drawing.png(drawing_of_plan)
        )
        for kind, table in chips.items():
            samples[kind] += [
                shards.read_back(making.make_sample(picture, pixels, chip, kind, recipe))
                for chip in table.to_pylist()
            ]
        drawn += 1
        if drawn == args.count:
            break
    if args.run is not None:  # what is on disk says more than what would be written
        for one in _sets(open_folder(args.run)):
            kind = shards.read_manifest(one).kind
            with open_table(one, shards.INDEX) as table:
                samples[kind] = list(shards.read_samples(one, table.read().slice(0, SHEET)))
    for kind, some in samples.items():
        if some:
            sheet = drawing.draw_chips(some[:SHEET], list(annotations.classes), recipe.chips.size)
            out.write(f"chips-{kind}.png", drawing.png(sheet))
    print(f"{out}: {drawn} pictures and {sum(map(bool, samples.values()))} contact sheets")
    return 0


def suggest(args: argparse.Namespace) -> int:
    """Propose levels and valid ranges for a data set."""
    annotations = dataset.read(args.data, split_names(args.split))
    suggestion = suggesting.suggest(annotations, args.size, args.stride)
    text = suggesting.fragment(suggestion, args.size, args.network)
    print(text, end="")
    if args.out:
        folder, name = _locate(args.out)
        if folder.exists(name):
            raise Refusal(f"{args.out}: exists already; choose another name or delete it")
        folder.write(name, text.encode())
    if args.json:
        _write_json(
            args.json,
            {
                "levels": [dataclasses.asdict(level) for level in suggestion.levels],
                "shares": suggestion.shares,
            },
        )
    return 0


def _figures_of_run_or_data(args: argparse.Namespace) -> dict[str, Any]:
    """Compute the figures of a plan; that of a run folder is read in parts."""
    if args.run is None or args.data is not None or args.recipe or args.overrides:
        planned = _plan_of_run_or_data(args)
        return figures.of_plan(planned.annotations, planned.recipe.chips, planned.chips)
    run = open_folder(args.run)
    record = run_folder.read_record(run)
    tally = figures.Tally(run_folder.recipe_of(record).chips)
    for _, annotations, chips in run_folder.parts_of(run, record):
        tally.add(annotations, chips)
    return tally.figures(*_rejected(run, record))


def _plan_of_run_or_data(args: argparse.Namespace) -> Plan:
    """Give the plan of a run folder, or one made on the spot from --data."""
    if (args.run is None) == (args.data is None):
        raise Refusal("give either a run folder or --data")
    if args.run is not None:
        if args.recipe or args.overrides:
            raise Refusal("--recipe and --set go with --data; a run folder has its own recipe")
        return run_folder.read_plan(open_folder(args.run))
    return _plan_of_data(
        args, run_folder.load_recipe(args.recipe or DEFAULT_RECIPE, args.overrides)
    )


def _plan_of_data(args: argparse.Namespace, recipe: Recipe) -> Plan:
    log.info("reading %s (%s)", args.data, args.split)
    annotations = dataset.read(args.data, split_names(args.split))
    list(_usable(args.data, [annotations]))
    log.info("planning %d pictures", len(annotations.picture_ids))
    annotations, chips = run_folder.make(annotations, recipe.chips)
    return Plan(None, annotations, recipe, {"positive": chips})


def _record_before(run: Folder) -> PlanRecord | None:
    """Read what an earlier plan of a run was made from; a damaged record is no hindrance."""
    if not run.exists("plan/plan.json"):
        return None
    try:
        return run_folder.read_record(run)
    except Refusal as refusal:
        log.warning("plan: made again; %s", refusal)
        return None


def _usable(where: str, parts: Iterable[dataset.Annotations]) -> Iterator[dataset.Annotations]:
    """Hand parts on; refuses a data set that has not one picture in all of them."""
    pictures, rejected = 0, "it lists none"
    for part in parts:
        if not pictures and part.rejects.num_rows:
            first = part.rejects.slice(0, 1).to_pylist()[0]
            rejected = f"the first reject: {first['file']}: {first['reason']} {first['detail']}"
        pictures += len(part.picture_ids)
        yield part
    if not pictures:
        raise Refusal(f"data set {where}: not one usable picture ({rejected})")


def _rejected(run: Folder, record: PlanRecord) -> tuple[dict[str, int], int]:
    """Give what a plan has rejected, by reason, and how many boxes it has cut."""
    rejects = read_table(run.sub("plan"), "rejects.parquet", ["annotation_id", "reason"])
    return figures.reject_counts(rejects), record.listed["clipped"]


def _recipe_of_run(args: argparse.Namespace, record: PlanRecord) -> Recipe:
    """Give the recipe of a run, or the one asked for if it is of the same plan."""
    planned = run_folder.recipe_of(record)
    if not args.recipe and not args.overrides:
        return planned
    if not args.recipe:
        raise Refusal("--set needs --recipe here; a run folder has its own recipe")
    recipe = run_folder.load_recipe(args.recipe, args.overrides)
    if recipe.chips != planned.chips:
        raise Refusal(f"{args.run}: planned with other [chips] than {args.recipe}; plan again")
    return recipe


def _sets(run: Folder) -> list[Folder]:
    folders = [run.sub(f"shards/{kind}") for kind in ("positive", "negative")]
    return [folder for folder in folders if folder.exists(shards.MANIFEST)]


def _of_picture(chips: pa.Table, row: int) -> pa.Table:
    return chips.filter(pa.array(chips["picture"].to_numpy() == row))


def _locate(path: str) -> tuple[Folder, str]:
    parent, slash, name = path.rpartition("/")
    return open_folder(parent or ("/" if slash else ".")), name


def _open_proposals(folder: Folder, name: str) -> Table:
    try:
        return open_table(folder, name)
    except Refusal as refusal:
        cause = refusal.__cause__ or refusal
        raise Refusal(
            f"proposals {folder}/{name}: not Parquet, or damaged: {cause}; delete it, and make it "
            f"again: python -m infer proposals"
        ) from refusal


def _report(args: argparse.Namespace, result: dict[str, Any]) -> None:
    print(figures.report(result))
    if args.json:
        _write_json(args.json, result)


def _write_json(path: Path, value: Any) -> None:
    folder, name = _locate(str(path))
    folder.write(name, encode_json(value))


def _plain(value: Any) -> Any:
    """Turn settings into what json gives back."""
    return msgspec.json.decode(msgspec.json.encode(value))
