"""What ACAM-KD makes of a detector, on blood cells: RetinaNets of torchvision, a wide one and a narrow one with the same pyramid.

    python benchmarks/detectors.py [--seeds 0 1 2] [--steps 150]

BCCD below STILLROOM_DATA at 128 × 96: red cells, white cells and platelets on 205 images to learn from and 72 to be judged by.
AP50 in percent, mean over the three classes, of the teacher, which learns four times as long, and of one student

    alone      taught by the boxes, by AdamW as the teacher: by SGD a RetinaNet does not get going from drawn weights
    longer     the same for as long as the teacher
    begun      by SGD, its pyramid and head begin with the teacher's weights
    plain      begun so, and taught by the teacher's maps, too: squared error, no masks
    acam_kd    begun so, with the masks

The rate is that of 0.02, 0.06 and 0.2, and α of 0.3 and 1, that did best on the validation images with seed 10.

Measured, seeds 0, 1, 2, about three CPU-minutes each:

    teacher    50.5  47.6  51.4
    alone       5.8   2.8   4.8
    longer     51.6  52.6  31.0
    begun      23.2  23.0  22.0
    plain      49.2  47.8  48.0
    acam_kd    47.7  48.0  47.7

The teacher's maps make the student what it is alone after four times the steps; the masks add nothing to plain squared error.
"""

import argparse
import copy
import io
import json
import zipfile
from dataclasses import replace
from statistics import mean, stdev

import numpy as np
import torch
from PIL import Image

from stillroom._compat import package
from stillroom.measure.detection import Boxes, mean_ap
from stillroom.models.detector import Pyramid
from stillroom.parts import optim
from stillroom.parts.schedules import linear
from stillroom.recipes.dense.acam_kd import ACAMKD
from stillroom.run import Run
from stillroom.zoo.shared import home

SIZE, KINDS = (128, 96), 3
ANCHORS = ((8, 12), (18, 26), (40, 56))              # sides on each map, in pixels
METHOD = ACAMKD(inherit=("backbone.fpn.layer_blocks", "head"), keys=64, square_mask=False, lr=0.02, clip=5.0, batch=4)
WAYS = {"begun": {"alpha": 0.0, "diversity": 0.0, "sees": "nothing"},
        "plain": {"diversity": 0.0, "sees": "nothing"}, "acam_kd": {}}


def cells(split):
    """Images [3, 96, 128] in [0, 1] and their boxes."""
    with zipfile.ZipFile(home("bccd") / "bccd_320x240.zip") as archive:
        rows = [row for row in json.loads(archive.read("annotations.json"))["images"] if row["split"] == split]
        return [(picture(archive.read(row["file"])), truth(torch.tensor(row["boxes"]))) for row in rows]


def picture(content):
    with Image.open(io.BytesIO(content)) as image:
        pixels = np.array(image.convert("RGB").resize(SIZE, Image.Resampling.BOX))
    return torch.from_numpy(pixels).permute(2, 0, 1).float() / 255


def truth(boxes):
    return Boxes(SIZE[0] / 320 * boxes[:, 1:], boxes[:, 0].long())


def detector(widths):
    package("torchvision")
    from torchvision.models.detection import RetinaNet
    from torchvision.models.detection.anchor_utils import AnchorGenerator

    anchors = AnchorGenerator(ANCHORS, ((1.0,),) * len(ANCHORS))
    return RetinaNet(Pyramid(widths, 32), KINDS, min_size=SIZE[1], max_size=SIZE[0], anchor_generator=anchors)


def ap50(net, data):
    with torch.no_grad():
        found = [Boxes(o["boxes"], o["labels"], o["scores"]) for x, _ in data for o in net.eval()(x[None])]
    return mean_ap(found, [t for _, t in data], KINDS, (0.5,))


def alone(net, seed, data, steps):
    run = Run(seed=seed)
    opt = optim.adamw(net, lr=linear(3e-3, warmup=0.1), decay=0.01, clip=5.0)
    run.keep(net=net, opt=opt)
    for x, y in run.loop(data, batch=4, steps=steps, whole=True):
        run.update(opt, **net(x, [on.known() for on in y]))
    return net


def drawn(seed, widths):
    torch.manual_seed(seed)
    return detector(widths)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--split", default="test", help="images to be judged by: val to choose settings by")
    asked = parser.parse_args()
    data, judged, found = cells("train"), cells(asked.split), {}
    for seed in asked.seeds:
        student, teacher = drawn(1000 + seed, (8, 16, 16, 16)), drawn(seed, (16, 32, 64, 64))
        nets = {"teacher": alone(teacher, seed, data, 4 * asked.steps)}
        for name, times in (("alone", 1), ("longer", 4)):
            nets[name] = alone(copy.deepcopy(student), seed, data, times * asked.steps)
        for way, fields in WAYS.items():
            actors = {"student": copy.deepcopy(student), "teacher": copy.deepcopy(teacher), "data": data}
            nets[way] = replace(METHOD, **fields, steps=asked.steps)(Run(seed=seed), **actors)
        for name, net in nets.items():
            found.setdefault(name, []).append(ap50(net, judged))
        print(f"seed {seed}", *(f"{name} {each[-1]:.1f}" for name, each in found.items()), sep="  ", flush=True)
    for name, each in found.items():
        print(f"{name:10} {mean(each):5.1f} ± {stdev(each) if len(each) > 1 else 0:.1f}")


if __name__ == "__main__":
    main()
