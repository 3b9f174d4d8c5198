"""Figures of a plan: chips, boxes covered, pixels against other ways of training, bytes.

Chips and pixels are those of one epoch: one variant of the positives, one round of negatives.
"""

from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa

from chipgen.dataset import Annotations
from chipgen.plan import ChipSettings, canvases_of, holders, wanted
from chipgen.pyramid import Level, canvas_sizes

SINGLE_PASS = Level(short=800, long=1333)


def of_plan(
    annotations: Annotations, settings: ChipSettings, chips: dict[str, pa.Table]
) -> dict[str, Any]:
    """Compute the figures of a plan; `chips` are its tables by kind."""
    tally = Tally(settings)
    tally.add(annotations, chips)
    return tally.figures(reject_counts(annotations.rejects), annotations.listed["clipped"])


class Tally:
    """Adds up the figures of a plan over its parts."""

    def __init__(self, settings: ChipSettings):
        self.settings = settings
        self._sums: Counter[Any] = Counter()
        self._kinds: list[str] = []

    def add(self, annotations: Annotations, chips: dict[str, pa.Table]) -> None:
        """Count some pictures and their chips, by kind."""
        self._kinds = list(chips)
        settings, sums = self.settings, self._sums
        canvases = canvases_of(annotations, settings.levels)
        epoch = {kind: _first_epoch(table) for kind, table in chips.items()}
        real = ~annotations.crowd
        held = holders(
            annotations,
            annotations.offsets,
            annotations.boxes,
            epoch["positive"],
            len(settings.levels),
        )
        wants = wanted(annotations, canvases, settings)
        single = canvas_sizes((SINGLE_PASS,), annotations.widths, annotations.heights)
        sums["pictures"] += len(annotations.picture_ids)
        sums["without boxes"] += pictures_without(annotations, real)
        sums["boxes"] += int(real.sum())
        sums["crowd"] += int(annotations.crowd.sum())
        sums["uncovered"] += int((real & (held == 0).all(axis=1)).sum())
        sums["pixels"] += sum(_pixels(table) for table in epoch.values())
        sums["single"] += int(single.prod(axis=2).sum())
        sums["pyramid"] += int(canvases.sizes.prod(axis=2).sum())
        for kind, table in epoch.items():
            sums[kind] += table.num_rows
            sums["pool", kind] += chips[kind].num_rows
        for i in range(len(settings.levels)):
            sums["wanted", i] += int(wants[:, i].sum())
            sums["covered", i] += int((wants[:, i] & (held[:, i] > 0)).sum())
            for kind, table in epoch.items():
                sums[kind, i] += _at_level(table, i)

    def figures(self, rejects: dict[str, int], clipped: int) -> dict[str, Any]:
        """Give the figures; rejects by reason, and the boxes cut to their pictures."""
        sums = self._sums
        pictures = max(sums["pictures"], 1)
        return {
            "pictures": sums["pictures"],
            "pictures_without_boxes": sums["without boxes"],
            "boxes": sums["boxes"],
            "crowd": sums["crowd"],
            "rejects": rejects,
            "clipped": clipped,
            "uncovered": sums["uncovered"],
            "levels": [
                {
                    "level": str(level),
                    "range": list(level.range),
                    "boxes_wanted": sums["wanted", i],
                    "boxes_covered": sums["covered", i],
                    **{
                        f"{kind}_chips_per_picture": sums[kind, i] / pictures
                        for kind in self._kinds
                    },
                }
                for i, level in enumerate(self.settings.levels)
            ],
            "positive_chips_per_picture": sums["positive"] / pictures,
            "negative_chips_per_picture": sums["negative"] / pictures,
            "negative_pool_per_picture": sums["pool", "negative"] / pictures,
            "pixels_vs_single_pass": sums["pixels"] / max(sums["single"], 1),
            "pixels_vs_pyramid": sums["pixels"] / max(sums["pyramid"], 1),
        }


def report(figures: dict[str, Any]) -> str:
    """Lay the figures out for a person."""
    lines = [
        f"pictures {figures['pictures']:,} ({figures['pictures_without_boxes']:,} without boxes)",
        f"boxes    {figures['boxes']:,} and {figures['crowd']:,} crowds; "
        f"{figures['uncovered']:,} covered by no chip; {figures['clipped']:,} cut to their picture",
        f"rejects  {_listing(figures['rejects'])}",
        "",
        f"{'level':<14}{'sizes':<14}{'boxes':>10}{'covered':>10}{'positive':>10}{'negative':>10}",
    ]
    for level in figures["levels"]:
        sizes = "[{:g}, {:g})".format(*level["range"])
        lines.append(
            f"{level['level']:<14}{sizes:<14}{level['boxes_wanted']:>10,}"
            f"{level['boxes_covered']:>10,}{level['positive_chips_per_picture']:>10.3f}"
            f"{level.get('negative_chips_per_picture', 0.0):>10.3f}"
        )
    lines += [
        f"{'chips a picture':<48}{figures['positive_chips_per_picture']:>10.3f}"
        f"{figures['negative_chips_per_picture']:>10.3f}",
        "",
        f"negatives in the pool {figures['negative_pool_per_picture']:.3f} a picture",
        f"pixels   {figures['pixels_vs_single_pass']:.3f} x one {SINGLE_PASS} pass, "
        f"{figures['pixels_vs_pyramid']:.3f} x the full pyramid",
    ]
    if figures.get("bytes"):
        lines.append(f"bytes    {figures['bytes']:,} in {figures['shards']:,} shards")
    return "\n".join(lines)


def reject_counts(rejects: pa.Table) -> dict[str, int]:
    """Count rejects by reason, pictures and annotations apart."""
    pictures = rejects["annotation_id"].is_null().to_numpy(zero_copy_only=False)
    kinds = np.where(pictures, "picture", "annotation").tolist()
    names, counts = np.unique(
        [f"{kind}: {r}" for kind, r in zip(kinds, rejects["reason"].to_pylist(), strict=True)],
        return_counts=True,
    )
    return dict(zip(names.tolist(), counts.tolist(), strict=True))


def pictures_without(annotations: Annotations, boxes: np.ndarray) -> int:
    """Count the pictures that have none of some boxes, given as (N,) bool."""
    counts = np.bincount(annotations.picture_of_box[boxes], minlength=len(annotations.picture_ids))
    return int((counts == 0).sum())


def _first_epoch(chips: pa.Table) -> pa.Table:
    return chips.filter(pa.array(chips["round"].to_numpy() == 0))


def _pixels(chips: pa.Table) -> int:
    return int((chips["width"].to_numpy().astype(np.int64) * chips["height"].to_numpy()).sum())


def _at_level(chips: pa.Table, level: int) -> int:
    return int((chips["level"].to_numpy() == level).sum())


def _listing(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in counts.items()) or "none"
