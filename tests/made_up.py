"""Small made-up data sets on disk: COCO or VOC, good or broken."""

import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

CATEGORIES = [{"id": 3, "name": "cat"}, {"id": 1, "name": "ant"}]


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    """Draw a smooth random picture."""
    rng = np.random.default_rng((seed, width, height))
    coarse = rng.integers(0, 256, (max(height // 16, 1), max(width // 16, 1), 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "JPEG", **options) -> bytes:
    """Encode a picture in memory."""
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


def coco(
    folder: Path, pictures: int = 12, seed: int = 0, split: str = "train", first_id: int = 1
) -> Path:
    """Write a COCO data set of noise with random boxes; every fifth picture has none."""
    rng = np.random.default_rng((seed, len(split)))
    images, annotations = [], []
    (folder / split).mkdir(parents=True, exist_ok=True)
    for picture_id in range(first_id, first_id + pictures):
        width, height = rng.integers(200, 420, 2).tolist()
        name = f"{picture_id:06d}.jpg"
        (folder / split / name).write_bytes(encoded(noise(width, height, picture_id), quality=90))
        images.append({"id": picture_id, "file_name": name, "width": width, "height": height})
        for _ in range(0 if picture_id % 5 == 0 else int(rng.integers(1, 9))):
            w, h = np.exp(rng.uniform(np.log(6), np.log([width, height]))).tolist()
            x, y = (rng.uniform(0, 1, 2) * [width - w, height - h]).tolist()
            annotations.append(
                {
                    "id": first_id * 1000 + len(annotations),
                    "image_id": picture_id,
                    "category_id": int(rng.choice([1, 3])),
                    "bbox": [x, y, w, h],
                    "area": w * h,
                    "iscrowd": int(rng.random() < 0.05),
                }
            )
    write_json(folder, {"images": images, "annotations": annotations}, split)
    return folder


def write_json(folder: Path, content: dict, split: str = "train") -> Path:
    """Write a COCO json where the COCO layout has it."""
    path = folder / "annotations" / f"instances_{split}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"categories": CATEGORIES, **content}))
    return path


def voc(folder: Path) -> Path:
    """Write a VOC data set of three pictures in two splits."""
    for part in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (folder / part).mkdir(parents=True)
    objects = {
        "2007_000001": [("dog", 11, 21, 60, 80, 0), ("cat", 1, 1, 200, 150, 1)],
        "2007_000002": [("cat", 5, 5, 20, 20, 0)],
        "2007_000003": [],
    }
    for stem, found in objects.items():
        (folder / f"JPEGImages/{stem}.jpg").write_bytes(encoded(noise(200, 150)))
        text = "".join(
            f"<object><name>{name}</name><difficult>{hard}</difficult><bndbox><xmin>{x1}</xmin>"
            f"<ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
            for name, x1, y1, x2, y2, hard in found
        )
        (folder / f"Annotations/{stem}.xml").write_text(
            f"<annotation><filename>wrong.png</filename><size><width>200</width>"
            f"<height>150</height><depth>3</depth></size>{text}</annotation>"
        )
    (folder / "ImageSets/Main/train.txt").write_text("2007_000001\n2007_000003\n")
    (folder / "ImageSets/Main/val.txt").write_text("2007_000002 1\n")
    return folder


def recipe(path: Path, store: str = "source", **chips: object) -> Path:
    """Write a recipe of small chips in small shards, so that little data makes many groups."""
    extra = "".join(f"{key} = {json.dumps(value)}\n" for key, value in chips.items())
    path.write_text(
        f"""
[chips]
size = 96
stride = 16
levels = [
  {{ factor = 2.0, range = [0, 40] }},
  {{ factor = 1.0, range = [24, 90] }},
  {{ long = 96, range = [70, inf] }},
]
{extra}
[negatives]
min_proposals = 2
[shards]
store = "{store}"
chips_per_shard = 6
shards_per_group = 2
"""
    )
    return path
