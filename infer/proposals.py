"""What a briefly trained RPN takes for objects in all pictures of a plan: negatives hold that.

RUN/proposals/000/part-N.parquet, one for each PICTURES pictures in the plan's order, then
proposals.parquet, and last proposals.json, which says what they were made from. A part that is
there is not made again.
"""

import dataclasses
import hashlib
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import torch

from chipgen import run as run_folder
from chipgen.dataset import Annotations
from chipgen.errors import Refusal
from chipgen.negatives import PROPOSALS
from chipgen.progress import progress
from chipgen.run import PlanRecord
from chipgen.sealed import sealed, unsealed
from chipgen.storage import Folder, digest_of, open_folder
from chipgen.tables import create_table, open_table, read_table, table_bytes
from infer.cascade import Flight, Machine, fly
from infer.detector import AT_ONCE, model_of
from infer.focus import FocusSettings
from infer.network import Seen
from infer.pictures import Source, decoded, groups
from infer.settings import InferSettings
from train import checkpoint
from train.detector.model import Detector as Model
from train.nms import suppress
from train.precision import mixed, precision_of
from train.processes import agree_on_threads

PICTURES = 256  # of a part
FOLDER_PARTS = 1000  # parts in one folder
GROUP = 1 << 17  # rows of proposals.parquet that can be read by themselves
SCHEMA = pa.schema(
    [("picture_id", pa.int64()), ("level", pa.int16())]
    + [(name, pa.float32()) for name in PROPOSALS[2:]]
)
LEVEL_MOST = 300  # proposals of a picture at a level,
CHIP_MOST = 10  # or for each chip's area of its canvas, where a large picture has more of these
FOLDER, RECORD, TABLE = "proposals", "proposals.json", "proposals.parquet"
log = logging.getLogger("infer")


class Record(msgspec.Struct, frozen=True):
    """What proposals.json holds."""

    inputs: str  # hash of the plan and the network's settings
    checkpoint: str  # hash of the weights they were made with
    pictures: int
    rejected: dict[str, str]  # pictures that could not be read, and why
    proposals: int
    sha256: str = ""  # of the table


def inputs_of(record: PlanRecord, model: dict) -> str:
    """Hash what proposals follow from, short of the training's own chance: plan and [model]."""
    text = f"{record.content} {LEVEL_MOST} {CHIP_MOST}".encode()
    text += msgspec.json.encode(model, order="sorted")
    return hashlib.sha256(text).hexdigest()


def finished(run: Folder) -> Record | None:
    """Read what the finished proposals of a run were made from, if there are any."""
    folder = run.sub(FOLDER)
    if not folder.exists(RECORD) or not folder.exists(TABLE):
        return None
    try:
        return unsealed(folder.read(RECORD), Record)
    except ValueError as error:
        log.warning("proposals: made again; %s/%s is damaged (%s)", folder, RECORD, error)
        return None


def up_to_date(run: Folder, model: dict) -> bool:
    """Say whether a run has the proposals that its plan and [model] ask for, or needs none."""
    record = run_folder.read_record(run)
    if not takes_any(record):
        return True
    done = finished(run)
    if done is None or done.inputs != inputs_of(record, model):
        return False
    log.info("proposals: up to date (%s)", run.sub(FOLDER))
    return True


def takes_any(record: PlanRecord) -> bool:
    """Say whether the strategy of a plan mines negatives."""
    chips = run_folder.recipe_of(record).chips
    if not chips.mines:
        log.info("proposals: strategy %r takes none", chips.strategy)
    return chips.mines


def make(run: Folder, part: tuple[int, int] | None, finish: bool) -> None:
    """Make the proposals of a run, or of its parts n with n % N == I, and put them together."""
    record = run_folder.read_record(run)
    if not takes_any(record):
        return
    folder = run.sub(FOLDER)
    state, weights = read_weights(run)
    model = state["recipe"]["model"]
    if up_to_date(run, model):
        return
    run_folder.require_whole(run, record)
    inputs = inputs_of(record, model)
    origin = origin_of(inputs, weights)
    reader = run_folder.Reader(run)
    count = reader.pictures.metadata.num_rows
    parts = range(-(-count // PICTURES))
    missing = [n for n in parts if not is_made(folder, n, origin)]
    if not finish:
        mine = [n for n in missing if part is None or n % part[1] == part[0]]
        if mine:
            recipe = run_folder.recipe_of(record)
            pyramid = training_pyramid(recipe)
            proposer = Proposer(model_of(state), pyramid, chip=recipe.chips.size)
            total = _pictures_in(mine, count)
            with progress(total=total, unit=" pictures", desc="proposals") as bar:
                for n in mine:
                    annotations = reader.annotations(*_rows(n, count), record)
                    table, rejected = proposer.table(annotations, lambda: bar.update(1))
                    about = {**origin, b"rejected": msgspec.json.encode(rejected)}
                    folder.write(part_name(n), table_bytes(table.replace_schema_metadata(about)))
        if part is not None:
            log.info("proposals: part %d/%d is made; then: --finish", *part)
            return
        missing = []
    if missing:
        raise Refusal(
            f"{folder}: {len(missing)} of {len(parts)} parts are missing, such as {missing[0]}; "
            f"make them with: python -m infer proposals {run}"
        )
    if up_to_date(run, model):  # another run was quicker
        _remove(folder, parts)
        return
    _put_together(folder, parts, inputs, weights, count)


def training_pyramid(recipe: run_folder.Recipe) -> InferSettings:
    """Give the levels that chips are cut from as a pyramid to look at whole."""
    levels = recipe.chips.levels
    return InferSettings(
        levels=levels,
        focus=(FocusSettings(),) * (len(levels) - 1),
        max_megapixels=recipe.shards.max_megapixels,
    )


class Proposer:
    """Lets a network propose in whole pictures, at all levels.

    A picture has `most_of` its canvas and the size of chips at each level.
    """

    def __init__(
        self,
        model: Model,
        settings: InferSettings,
        device: torch.device | None = None,
        chip: float = math.inf,
    ):
        agree_on_threads()
        self.device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = model.to(self.device, memory_format=torch.channels_last).eval()
        self.chip = chip
        self.settings = dataclasses.replace(settings, min_score=0.0)
        precision = precision_of(settings, self.device)
        self.machine = Machine(self._look, model.stride, precision, AT_ONCE[self.device.type])

    def table(
        self, annotations: Annotations, on_picture: Callable[[], None]
    ) -> tuple[pa.Table, dict[str, str]]:
        """Propose in all pictures: a table of negatives.PROPOSALS, and which can't be read, why."""
        columns: dict[str, list[np.ndarray]] = {name: [] for name in PROPOSALS}
        rejected = {}
        sources = sources_of(annotations)
        for group in groups(decoded(sources, self.settings.max_megapixels * 1e6), self.device):
            whole = [one for one in group if one.pixels is not None]
            rejected |= {str(one.picture): one.error for one in group if one.pixels is None}
            for one, levels in zip(whole, self([one.pixels for one in whole]), strict=True):
                for level, (boxes, scores) in enumerate(levels):
                    count, picture_id = len(boxes), one.picture.picture_id
                    columns["picture_id"].append(np.full(count, picture_id, np.int64))
                    columns["level"].append(np.full(count, level, np.int16))
                    for k, name in enumerate(("x1", "y1", "x2", "y2")):
                        columns[name].append(boxes[:, k])
                    columns["score"].append(scores)
            for _ in group:
                on_picture()
        kinds = {"picture_id": np.int64, "level": np.int16}
        table = {
            name: np.concatenate([np.zeros(0, kinds.get(name, np.float32)), *parts])
            for name, parts in columns.items()
        }
        return pa.table(table), rejected

    def __call__(
        self, pictures: Sequence[np.ndarray]
    ) -> Iterator[list[tuple[np.ndarray, np.ndarray]]]:
        """Propose in pictures: for each, by level, boxes (n, 4) in picture px and scores (n,)."""
        there = [torch.as_tensor(pixels).to(self.device) for pixels in pictures]
        levels = range(len(self.settings.levels))
        by_level = [fly(there, self.machine, self.settings, level) for level in levels]
        for flights in zip(*by_level, strict=True):
            yield [self._best(flight, level) for level, flight in enumerate(flights)]

    @torch.inference_mode()
    def _look(self, canvases: torch.Tensor, content: torch.Tensor) -> Seen:
        """Take what the RPN says of canvases for detections of one class."""
        with mixed(self.machine.dtype, self.device):
            maps = self.model.backbone(canvases)
            count = most_of(canvases.shape[:1:-1], self.chip)
            boxes, logits, there = self.model.propose(maps, content, count)
        scores = logits.float().sigmoid() * there
        focus = scores.new_zeros((len(canvases), *maps[0].shape[2:]))
        return Seen(boxes.float()[:, :, None], scores[..., None], focus)

    def _best(self, flight: Flight, level: int) -> tuple[np.ndarray, np.ndarray]:
        """Sort the proposals of a picture, without what neighbouring tiles both found."""
        most = most_of(flight.canvases[level], self.chip)
        boxes, scores, _ = flight.found()
        order = np.argsort(-scores, kind="stable")
        boxes, scores = boxes[order], scores[order]
        if len(flight.boxes) > 1:
            there = torch.ones((1, len(boxes)), dtype=torch.bool)
            overlap = self.model.settings.proposal_iou
            kept = suppress(torch.from_numpy(boxes)[None], there, overlap, most)[0].numpy()
            boxes, scores = boxes[kept], scores[kept]
        return boxes[:most], scores[:most]


def most_of(canvas: Sequence[int], chip: float) -> int:
    """Give the number of proposals for a canvas (width, height) that chips of a size are cut from.

    A chip has to hold some that no other holds to become a negative (`negatives.min_proposals`):
    with as many for a picture of any size, large pictures would give none.
    """
    return max(LEVEL_MOST, math.ceil(CHIP_MOST * (canvas[0] / chip) * (canvas[1] / chip)))


def sources_of(annotations: Annotations) -> Iterator[Source]:
    """Name the picture files of a data set."""
    folders = [open_folder(root) for root in annotations.roots]
    for entry in annotations.pictures.to_pylist():
        size = entry["width"], entry["height"]
        yield Source(folders[entry["root"]], entry["file"], size, entry["picture_id"])


def read_weights(run: Folder) -> tuple[dict[str, Any], str]:
    """Read the finished RPN of a run, and the hash of its file."""
    folder = run.sub("rpn/checkpoints")
    state = checkpoint.load_last(folder)
    if state is None or not state["done"]:
        raise Refusal(
            f"{run}: no finished RPN in {folder}; train one with: python -m train {run} --recipe "
            f"... --set train.task=rpn --resume"
        )
    return state, checkpoint.read_record(folder, state["step"]).sha256


def _put_together(folder: Folder, parts: range, inputs: str, weights: str, pictures: int) -> None:
    rejected: dict[str, str] = {}
    with create_table(folder, TABLE, SCHEMA, GROUP) as table:
        for n in parts:
            part = _read_part(folder, n)
            rejected |= msgspec.json.decode(part.schema.metadata[b"rejected"])
            table.add(part.replace_schema_metadata())
    digest = digest_of(folder, TABLE)
    record = Record(inputs, weights, pictures, rejected, table.rows, digest)
    folder.write(RECORD, sealed(record))
    _remove(folder, parts)
    log.info(
        "proposals: %d in %d pictures, %d pictures rejected (%s)",
        table.rows,
        pictures - len(rejected),
        len(rejected),
        folder,
    )


def _remove(folder: Folder, parts: range) -> None:
    for home in {part_name(n).partition("/")[0] for n in parts}:
        folder.remove_tree(home)


def _read_part(folder: Folder, n: int) -> pa.Table:
    try:
        table = read_table(folder, part_name(n))
    except Refusal as refusal:
        damage = refusal.__cause__ or refusal
    else:
        if tuple(table.column_names) == PROPOSALS and b"rejected" in (table.schema.metadata or {}):
            return table
        damage = f"columns {', '.join(table.column_names)}"
    raise Refusal(
        f"{folder}/{part_name(n)}: damaged ({damage}); delete it, and run the same command again"
    )


def origin_of(inputs: str, weights: str) -> dict[bytes, bytes]:
    """Give what a part says of what it was made from."""
    return {b"inputs": inputs.encode(), b"weights": weights.encode()}


def is_made(folder: Folder, n: int, origin: dict[bytes, bytes]) -> bool:
    """Say whether a part is there, and of this origin."""
    if not folder.exists(part_name(n)):
        return False
    try:
        with open_table(folder, part_name(n)) as file:
            metadata = file.schema_arrow.metadata or {}
    except Refusal:  # damaged
        return False
    return all(metadata.get(key) == value for key, value in origin.items())


def _rows(n: int, count: int) -> tuple[int, int]:
    return n * PICTURES, min((n + 1) * PICTURES, count)


def _pictures_in(parts: list[int], count: int) -> int:
    return sum(last - first for first, last in (_rows(n, count) for n in parts))


def part_name(n: int) -> str:
    """Name the file of a part."""
    return f"{n // FOLDER_PARTS:03d}/part-{n:06d}.parquet"
