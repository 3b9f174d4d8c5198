"""Figures of a plan: chips, boxes covered, pixels against other ways of training, bytes.

Chips and pixels are those of one epoch: one variant of the positives, one round of negatives.
"""

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
    pictures = max(len(annotations.picture_ids), 1)
    canvases = canvases_of(annotations, settings.levels)
    epoch = {kind: _first_epoch(table) for kind, table in chips.items()}
    real = ~annotations.crowd
    positives = epoch["positive"]
    held = holders(
        annotations, annotations.offsets, annotations.boxes, positives, len(settings.levels)
    )
    wants = wanted(annotations, canvases, settings)
    pixels = sum(_pixels(table) for table in epoch.values())
    single = canvas_sizes((SINGLE_PASS,), annotations.widths, annotations.heights)
    negatives = chips.get("negative")
    return {
        "pictures": len(annotations.picture_ids),
        "pictures_without_boxes": int(pictures_without(annotations, real)),
        "boxes": int(real.sum()),
        "crowd": int(annotations.crowd.sum()),
        "rejects": reject_counts(annotations.rejects),
        "clipped": annotations.listed["clipped"],
        "uncovered": int((real & (held == 0).all(axis=1)).sum()),
        "levels": [
            {
                "level": str(level),
                "range": list(level.range),
                "boxes_wanted": int(wants[:, i].sum()),
                "boxes_covered": int((wants[:, i] & (held[:, i] > 0)).sum()),
                **{
                    f"{kind}_chips_per_picture": _at_level(table, i) / pictures
                    for kind, table in epoch.items()
                },
            }
            for i, level in enumerate(settings.levels)
        ],
        "positive_chips_per_picture": positives.num_rows / pictures,
        "negative_chips_per_picture": epoch["negative"].num_rows / pictures if negatives else 0.0,
        "negative_pool_per_picture": negatives.num_rows / pictures if negatives else 0.0,
        "pixels_vs_single_pass": pixels / max(int(single.prod(axis=2).sum()), 1),
        "pixels_vs_pyramid": pixels / max(int(canvases.sizes.prod(axis=2).sum()), 1),
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
