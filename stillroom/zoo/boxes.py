"""Images with boxes, as COCO says them in JSON: images, categories, and annotations with corner, width and height."""

import json
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageOps
from torch import Tensor

from stillroom.errors import Refused
from stillroom.measure.detection import Boxes
from stillroom.zoo import folders, images
from stillroom.zoo.built import first_line
from stillroom.zoo.sets import Answered, Given
from stillroom.zoo.specs import Spec, near, take

LEAST = 1.0          # pixel: a box that is narrower or lower says nothing
FORM = 'COCO\'s form: {"images": [{"id", "file_name", "width", "height"}], "annotations": [{"image_id", "category_id", ' \
       '"bbox": [x, y, width, height]}], "categories": [{"id", "name"}]}'
LAYOUT = "a folder holds one JSON file of boxes, and its images beside it or in images/; train/, valid/ and test/ inside may each"


def given(asked: Spec, size: Any, channels: Any, skip: bool, seed: int) -> Given:
    """`boxes:FILE.json?images=FOLDER`, or the splits of a folder; valid and test take their classes from train. Boxes of a crowd
    and those without area are left out, and counted. `?masks=yes`: with the polygons in them as masks. Raises `Refused`."""
    options = take(asked.options, {"images": "", "size": None, "masks": False}, asked)
    path, size = Path(asked.name).expanduser(), images.sides(options["size"], size, asked)
    if path.suffix.lower() == ".json":
        home = Path(str(options["images"])).expanduser() if options["images"] else _beside(path.parent)
        return {"all": partial(_read, path, home, None, size, channels, skip, options["masks"])}
    if options["images"]:
        raise Refused(f"{asked} takes no images=", f"it goes with a file: boxes:FILE.json?images=FOLDER; {LAYOUT}")
    root = folders.there(asked, f"name a JSON file of boxes, or a folder: {LAYOUT}")

    def read(folder: Path, classes: list[str] | None, size: Any, channels: Any) -> Answered:
        return _read(_one_file(folder), _beside(folder), classes, size, channels, skip, options["masks"])
    return folders.by_split(root, read, size, channels)


def _one_file(folder: Path) -> Path:
    found = sorted(folder.glob("*.json"))
    if len(found) != 1:
        raise Refused(f"{folder} holds {len(found) or 'no'} JSON file{'s' * (len(found) > 1)}", LAYOUT)
    return found[0]


def _beside(folder: Path) -> Path:
    return folder / "images" if (folder / "images").is_dir() else folder


def _read(file: Path, home: Path, classes: list[str] | None, size: Any, channels: Any, skip: bool, masks: bool) -> Answered:
    """The images that a file names, with the boxes on each. `classes`: those of the training data."""
    told = _told(file)
    names = [str(c["name"]) for c in sorted(told["categories"], key=lambda c: c["id"])]
    number = {c["id"]: (classes or names).index(str(c["name"])) for c in told["categories"]
              if classes is None or str(c["name"]) in classes}
    rows = {image["id"]: image for image in told["images"]}
    boxes: dict[Any, list[tuple[list[float], int, list[list[float]]]]] = {i: [] for i in rows}
    crowds = 0
    for box in told["annotations"]:
        if box.get("iscrowd"):
            crowds += 1
            continue
        if box["image_id"] not in rows:
            raise Refused(f"{file} has a box on the image {box['image_id']!r}, which it does not name", FORM)
        if box["category_id"] not in number:
            strange = next((str(c["name"]) for c in told["categories"] if c["id"] == box["category_id"]), None)
            who = "the training data have not" if strange else "it does not name"
            raise Refused(f"{file} has a box of the category {strange or box['category_id']!r}, which {who}",
                          near(str(strange), classes or names))
        outline = _outline(box.get("segmentation"), file) if masks else []
        boxes[box["image_id"]].append((_corners(box["bbox"], file), number[box["category_id"]], outline))
    files, held = [home / str(image["file_name"]) for image in rows.values()], list(boxes.values())
    missing = [f.name for f in files if not f.is_file()]
    if missing:
        raise Refused(f"{len(missing)} of {len(files)} images of {file} are not in {home}, such as {missing[0]}",
                      f"say where they lie: boxes:{file}?images=FOLDER")
    seen, good = images.whole([str(f) for f in files], sum(f.stat().st_size for f in files), skip, str(file),
                              lambda i: files[i].name)
    about = list(rows.values())
    for i in good:
        said = about[i].get("height", seen[i].size[0]), about[i].get("width", seen[i].size[1])
        if said != seen[i].size:
            raise Refused(f"{file} says {files[i].name} is {said[0]} × {said[1]}; it is {seen[i].size[0]} × {seen[i].size[1]}",
                          "its boxes would lie elsewhere: mend the file, or save a photograph upright")
    shape = images.settle([seen[i] for i in good], size, channels or 3, str(file))
    placed, kept = zip(*(_placed(held[i], seen[i].size, shape[1:]) for i in good), strict=True)
    lost = sum(len(held[i]) - len(found.labels) for i, found in zip(good, placed, strict=True))
    if not any(len(found.labels) for found in placed):
        raise Refused(f"{file} has no box with an area on any image", FORM)
    outlines = [(seen[i].size, [held[i][n][2] for n in some]) for i, some in zip(good, kept, strict=True)] if masks else None
    gone = ((lost, "boxes without area there"), (crowds, "of crowds"), (len(files) - len(good), "corrupt images"))
    left = ", ".join(f"{n:,} {what} left out" for n, what in gone if n)
    content = repr([(files[i].name, seen[i].digest, held[i]) for i in good])
    return Answered(partial(_sample, [str(files[i]) for i in good], placed, outlines, shape), len(good), classes or names,
                    file.name, shape, content, "images with boxes", left_out=left)


def _told(file: Path) -> dict[str, Any]:
    """What the file says, if it has COCO's form. Raises `Refused`."""
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Refused(f"{file} cannot be read: {first_line(error)}", f"name a JSON file of boxes, {FORM}") from error
    needs = {"images": ("id", "file_name"), "annotations": ("image_id", "category_id", "bbox"), "categories": ("id", "name")}
    for part, keys in needs.items():
        rows = told.get(part) if isinstance(told, dict) else None
        if not isinstance(rows, list) or (not rows and part != "annotations"):
            raise Refused(f"{file} has no {part}", FORM)
        for row in rows:
            lacking = next((k for k in keys if not isinstance(row, dict) or k not in row), None)
            if lacking and not (part == "annotations" and isinstance(row, dict) and row.get("iscrowd")):
                raise Refused(f"{file}: one of the {part} has no {lacking}", FORM)
    for part, key in (("images", "id"), ("categories", "id"), ("categories", "name")):
        twice = len(told[part]) - len({str(row[key]) for row in told[part]})
        if twice:
            raise Refused(f"{file}: {twice} of the {part} have the {key} of another one", "give each its own")
    return told


def _corners(box: Any, file: Path) -> list[float]:
    """x, y, width, height as x1, y1, x2, y2."""
    good = isinstance(box, list) and len(box) == 4 and all(isinstance(n, int | float) and math.isfinite(n) for n in box)
    if not good:
        raise Refused(f"{file} has the box {box!r}", "four numbers: [x, y, width, height], in pixels")
    x, y, width, height = box
    return [x, y, x + width, y + height]


def _outline(told: Any, file: Path) -> list[list[float]]:
    """Polygons [x1, y1, x2, y2, …] of one thing."""
    if not isinstance(told, list) or not told or any(not isinstance(p, list) or len(p) < 6 or len(p) % 2 for p in told):
        raise Refused(f"{file} has a box whose segmentation is no list of polygons", "[[x1, y1, x2, y2, x3, y3, …]], or masks=no")
    return told


def _placed(held: list[Any], was: tuple[int, int], now: tuple[int, ...]) -> tuple[Boxes, list[int]]:
    """Boxes on an image that was cut to the proportions of another size around its middle, and resized, and their numbers: those
    whose area is gone are not among them."""
    height, width = now
    scale = min(was[0] / height, was[1] / width)                                 # pixels of the file for one of the sample
    start = torch.tensor([(was[1] - width * scale) / 2, (was[0] - height * scale) / 2]).repeat(2)
    corners = (torch.tensor([box for box, *_ in held]).view(-1, 4) - start) / scale
    corners = torch.minimum(corners.clamp(min=0), torch.tensor([width, height] * 2))
    whole = ((corners[:, 2:] - corners[:, :2]) >= LEAST).all(1)
    labels = torch.tensor([label for _, label, _ in held], dtype=torch.long)
    return Boxes(corners[whole], labels[whole]), whole.nonzero().flatten().tolist()


def _sample(files: list[str], boxes: Sequence[Boxes], outlines: Sequence[Any] | None, shape: tuple[int, int, int],
            i: int) -> tuple[Tensor, Boxes]:
    x, found = images.decode(files[i], shape), boxes[i]
    if outlines is None:
        return x, found
    was, polygons = outlines[i]
    drawn = [torch.from_numpy(_drawn(some, was, shape[1:])) for some in polygons]
    return x, found._replace(masks=torch.stack(drawn) if drawn else torch.zeros(0, *shape[1:], dtype=torch.bool))


def _drawn(polygons: list[list[float]], was: tuple[int, int], now: tuple[int, ...]) -> np.ndarray:
    """Where one thing is, [height, width]: its polygons filled on the image as it was, then cut and resized as that."""
    canvas = Image.new("L", was[::-1])
    for polygon in polygons:
        ImageDraw.Draw(canvas).polygon(polygon, fill=1)
    return np.asarray(ImageOps.fit(canvas, (now[1], now[0]), Image.Resampling.NEAREST)) > 0
