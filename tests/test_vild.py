"""ViLD: its losses and its ensemble by their identities, regions and masks against the naive, a detector of any tower."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stillroom import _compat
from stillroom.errors import Refused
from stillroom.measure.detection import Boxes
from stillroom.parts.boxes import crops, overlaps, pasted, roi_align, widened
from stillroom.parts.regions import apart, crop_embeddings, ensemble, name_embeddings, sampled

pytestmark = pytest.mark.skipif(_compat.find_spec("torchvision") is None, reason="torchvision is not installed")


def some(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def unit(*shape, seed=0):
    return F.normalize(some(*shape, seed=seed), dim=1)


# --- losses and ensemble ---------------------------------------------------------------------------------------------

def test_the_distance_of_unit_vectors_is_bounded():
    even = torch.ones(3, 512) / 512**0.5
    assert apart(even, -even).item() == pytest.approx(2 * 512**0.5, rel=1e-5) and apart(even, even) == 0
    one, other = unit(5, 512), unit(5, 512, seed=1)
    assert 0 < apart(one, other) < 2 * 512**0.5
    assert apart(one, other).item() == pytest.approx(sum((a - b).abs().sum().item() for a, b in zip(one, other)) / 5, rel=1e-5)
    assert apart(one[:0], other[:0]) == 0


def test_two_heads_speak_as_one_by_a_geometric_mean():
    text, image = some(4, 6).softmax(1), some(4, 6, seed=1).softmax(1)
    base = torch.tensor([True, True, True, False, False, True])
    assert torch.allclose(ensemble(text, image, base, 0.5), (text * image).sqrt())
    assert all(torch.allclose(ensemble(text, text, base, share), text) for share in (0.0, 1 / 3, 1.0))
    joined = ensemble(text, image, base)
    assert torch.allclose(joined[:, 0], (text[:, 0] ** 2 * image[:, 0]) ** (1 / 3))       # the released code's form
    assert torch.allclose(joined[:, 3], (text[:, 3] * image[:, 3] ** 2) ** (1 / 3))
    assert torch.equal(ensemble(text, image, base, 1.0), torch.where(base, text, image))


def net(heads=2, dim=8, mask=0):
    from stillroom.models.detector import Detector, OneMap

    torch.manual_seed(0)
    return Detector(OneMap((4, 8), 8), 8, dim, heads=heads, anchors=((10, 14),), side=3, hidden=16, keep=(40, 10), sample=16,
                    mask=mask)


def test_names_are_classified_by_cosines_and_only_the_background_learns():
    student, region, texts = net(), unit(5, 8), unit(3, 8, seed=1).requires_grad_(False)
    logits = student.named(region, texts, 0.01)
    background = student.background / student.background.norm()
    wanted = [[100 * (r @ t).item() for t in (background, *texts)] for r in region]
    assert torch.allclose(logits, torch.tensor(wanted), atol=1e-3)
    F.cross_entropy(logits, torch.tensor([0, 1, 2, 3, 0])).backward()
    assert student.background.grad.abs().sum() > 0 and texts.grad is None


def test_new_names_change_no_order_among_the_old_ones():
    from stillroom.models.detector import scores

    student, regions, texts = net(), [unit(6, 8), unit(6, 8, seed=2)], unit(7, 8, seed=1)
    for way in ("text", "image", "ensemble"):
        few = scores(student, regions, texts[:4], torch.ones(4, dtype=torch.bool), way, 0.1)
        more = scores(student, regions, texts, torch.arange(7) < 4, way, 0.1)
        assert torch.equal(few.argsort(1), more[:, :4].argsort(1)) and (more[:, :4] < few).all()


# --- regions ---------------------------------------------------------------------------------------------------------

def test_names_are_ensembled_over_templates():
    table = {f"{t} {n}": some(5, seed=10 * i + j) for i, t in enumerate(("a", "the")) for j, n in enumerate(("cat", "dog"))}
    ours = name_embeddings(lambda texts: torch.stack([table[t] for t in texts]), ("cat", "dog"), ("a {}", "the {}"))
    for one, name in zip(ours, ("cat", "dog"), strict=True):
        mean = sum(table[f"{t} {name}"] / table[f"{t} {name}"].norm() for t in ("a", "the"))
        assert torch.allclose(one, mean / mean.norm())


def test_a_crop_speaks_with_its_context():
    image = torch.rand(3, 20, 20, generator=torch.Generator().manual_seed(0))
    boxes = torch.tensor([[4.0, 4, 12, 10], [0, 0, 6, 6]])
    tower = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16, 5))
    with torch.no_grad():
        ours = crop_embeddings(tower, image, boxes, 4)
        for one, box in zip(ours, boxes, strict=True):
            near, far = (tower(crops(image, widened(box[None], f, (20, 20)), 4))[0] for f in (1.0, 1.5))
            both = near / near.norm() + far / far.norm()
            assert torch.allclose(one, both / both.norm(), atol=1e-6)
            assert not torch.allclose(one, near / near.norm(), atol=1e-3)


def test_regions_are_drawn_with_their_class_and_their_box():
    boxes, labels = torch.tensor([[0.0, 0, 10, 10], [30, 30, 40, 40]]), torch.tensor([4, 2])
    proposals = torch.tensor([[0.0, 0, 10, 8], [31, 30, 40, 40], [60, 60, 70, 70], [0, 0, 10, 4.5], [50, 0, 60, 9]])
    torch.manual_seed(0)
    regions, classes, which = sampled(proposals, boxes, labels, 7, 1.0)
    found = {tuple(r.tolist()): (c.item(), at.item()) for r, c, at in zip(regions, classes, which, strict=True)}
    assert found[(0, 0, 10, 8)] == (5, 0) and found[(31, 30, 40, 40)] == (3, 1) and found[(30, 30, 40, 40)] == (3, 1)
    assert found[(0, 0, 10, 4.5)] == (0, 0)                                     # too little of it
    assert found[(60, 60, 70, 70)] == (0, -1) and len(regions) == 7
    _, classes, _ = sampled(proposals, boxes, labels, 4, 0.25)
    assert len(classes) == 4 and (classes > 0).sum() == 1
    _, classes, which = sampled(proposals, boxes[:0], labels[:0], 4, 0.25)
    assert len(classes) == 4 and not classes.any() and (which == -1).all()


@pytest.mark.parametrize("scale, aligned", [(0.25, False), (0.5, True)])
def test_regions_are_aligned_point_by_point(scale, aligned):
    maps, boxes = some(2, 3, 6, 7), torch.tensor([[1.0, 2, 3, 12, 11], [0, 0, 0, 8, 8], [1, 5, 5, 9, 10]])

    def read(image, y, x):
        y, x = min(max(y, 0.0), 5.0), min(max(x, 0.0), 6.0)
        y0, x0 = int(y), int(x)
        y1, x1 = min(y0 + 1, 5), min(x0 + 1, 6)
        top = image[:, y0, x0] * (1 - x + x0) + image[:, y0, x1] * (x - x0)
        return top * (1 - y + y0) + (image[:, y1, x0] * (1 - x + x0) + image[:, y1, x1] * (x - x0)) * (y - y0)
    ours = roi_align(maps, boxes, (2, 3), scale, 2, aligned)
    for one, (i, *box) in zip(ours, boxes.tolist(), strict=True):
        left, top, right, bottom = (scale * b - 0.5 * aligned for b in box)
        tall, wide = ((bottom - top), (right - left)) if aligned else (max(bottom - top, 1.0), max(right - left, 1.0))
        for r in range(2):
            for c in range(3):
                points = [read(maps[int(i)], top + tall * (r + (a + 0.5) / 2) / 2, left + wide * (c + (b + 0.5) / 2) / 3)
                          for a in range(2) for b in range(2)]
                assert torch.allclose(one[:, r, c], sum(points) / 4, atol=1e-5)


@pytest.mark.parametrize("aligned", [False, True])
def test_regions_are_aligned_as_by_torchvision_with_as_many_points_as_pixels(aligned):
    from torchvision.ops.roi_align import _roi_align

    maps = some(2, 3, 20, 30)
    boxes = torch.tensor([[1.0, 2, 3, 29, 11], [0, 0.5, 0, 4.2, 18], [1, 5, 5, 5.6, 5.3], [1, 2, 2, 6, 9]])
    theirs = _roi_align.__wrapped__(maps, boxes, 1.0, 4, 3, -1, aligned)        # its own in Python, before it is compiled
    assert torch.allclose(roi_align(maps, boxes, (4, 3), aligned=aligned), theirs, atol=1e-5)
    assert roi_align(maps, boxes[:0], 3).shape == (0, 3, 3, 3)


# --- masks -----------------------------------------------------------------------------------------------------------

def test_the_loss_of_masks_is_that_of_torchvision(monkeypatch):
    """Its pixels have their middle at whole numbers, ours at one half: half a pixel lies between the boxes."""
    from torchvision.models.detection import roi_heads
    from torchvision.ops.roi_align import _roi_align

    monkeypatch.setattr(roi_heads, "roi_align", lambda x, b, size, scale: _roi_align.__wrapped__(x, b, scale, *size, -1, False))
    student, draw = net(1, mask=6), torch.Generator().manual_seed(0)
    x, truth, proposals = torch.rand(3, 3, 48, 48, generator=draw), [], []
    for n in (2, 1, 0):
        boxes = torch.tensor([[4.0, 4, 22, 30], [26, 10, 40, 40]])[:n]
        truth.append(Boxes(boxes, torch.arange(n), masks=torch.rand(n, 48, 48, generator=draw) > 0.5))
        near = boxes.repeat(3, 1) + 2 * torch.randn(3 * n, 4, generator=draw)
        proposals.append(torch.cat([near, torch.tensor([[1.0, 30, 12, 44]])]))
    maps = student.backbone(x)
    _, label, losses = student.place(maps, proposals, truth, (48, 48), 100, 1.0)
    found = [torch.cat([p, t.boxes]) for p, t in zip(proposals, truth, strict=True)]
    near = [overlaps(p, t.boxes) for p, t in zip(found, truth, strict=True)]
    on = [(o >= 0.5).any(1) for o in near]
    which = [o[some].argmax(1) if o.shape[1] else torch.zeros(0, dtype=torch.long) for o, some in zip(near, on, strict=True)]
    found = [p[some] for p, some in zip(found, on, strict=True)]
    assert (label > 0).sum() == sum(map(len, found)) > 6
    logits = student.outlines(maps, found, (48, 48))
    assert logits.shape == (sum(map(len, found)), 12, 12)
    one = [torch.zeros(len(t.boxes), dtype=torch.long) for t in truth]          # one class of masks
    theirs = roi_heads.maskrcnn_loss(logits[:, None], [p - 0.5 for p in found], [t.masks for t in truth], one, which)
    assert losses["masks"].item() == pytest.approx(theirs.item(), rel=1e-5)


def test_without_a_region_on_a_box_the_loss_of_masks_is_0():
    student, none = net(1, mask=6), Boxes(torch.zeros(0, 4), torch.zeros(0).long(), masks=torch.zeros(0, 32, 32).bool())
    maps = student.backbone(torch.rand(1, 3, 32, 32))
    _, label, losses = student.place(maps, [torch.tensor([[4.0, 4, 16, 16]])], [none], (32, 32), 8, 0.25)
    assert losses["masks"].item() == losses["moves"].item() == 0 and label.tolist() == [0]


# --- the recipe ------------------------------------------------------------------------------------------------------

def data(n=4, masks=False):
    draw = torch.Generator().manual_seed(0)
    boxes = torch.tensor([[4.0, 4, 16, 16], [18, 14, 30, 28]])
    labels = torch.tensor([0, 2])
    inside = torch.zeros(2, 32, 32, dtype=torch.bool)
    inside[0, 6:14, 6:14] = inside[1, 16:26, 20:28] = True
    known = Boxes(boxes, labels, masks=inside if masks else None)
    return [(torch.rand(3, 32, 32, generator=draw), known.only(torch.arange(1 + i % 2))) for i in range(n)]


def learn(way, tower=None, side=8, mask=0, masks=False, **fields):
    from stillroom.recipes.dense.vild import WAYS, ViLD
    from stillroom.run import Run

    torch.manual_seed(1)
    tower = tower or nn.Sequential(nn.Flatten(), nn.Linear(3 * side**2, 8))
    method = ViLD(**{"way": way, "side": side, "regions": 8, "lr": 0.01, "batch": 2, "steps_propose": 1, "steps": 2} | fields)
    run = Run()
    made = method(run, student=net(WAYS[way], mask=mask), tower=tower, texts=unit(3, 8), data=data(masks=masks))
    return made, run


@pytest.mark.parametrize("way, terms", [("text", {"names"}), ("image", {"image"}), ("both", {"names", "image"}),
                                        ("ensemble", {"names", "image"})])
def test_each_way_has_its_losses(way, terms):
    made, run = learn(way)
    assert {"names", "image"} & run.history[-1].keys() == terms
    assert {"loss_objectness", "loss_rpn_box_reg", "moves"} <= run.history[-1].keys()
    from stillroom.models.detector import scores

    found = made.detect(data()[0][0][None], lambda r: scores(made, r, unit(5, 8), torch.arange(5) < 3, way, 0.1))
    assert found[0].boxes.shape[1] == 4 and set(found[0].labels.tolist()) <= set(range(5)) and 0 < len(found[0].boxes) <= 100


def test_masks_are_learnt_where_there_are_some_and_found_where_there_is_a_head():
    for head, known in ((0, True), (6, False), (6, True)):
        made, run = learn("text", mask=head, masks=known, jitter=(1, 1), decay=0.0)
        assert ("masks" in run.history[-1]) == bool(head and known)
        found = made.detect(data()[0][0][None], lambda r: torch.ones(len(r[0]), 1))[0]
        assert found.masks.shape == (len(found.boxes), 32, 32) if head else found.masks is None
        if head:
            fresh = net(1, mask=head).masks.state_dict()
            assert all(torch.equal(v, fresh[k]) for k, v in made.masks.state_dict().items()) != known


def test_without_jitter_nothing_is_drawn_for_it_and_with_it_images_differ():
    plain, again, other = (learn("ensemble", jitter=j)[1].history[-1]["image"] for j in ((1, 1), (1.0, 1.0), (0.5, 2.0)))
    assert plain == again != other


def test_the_image_head_alone_learns_from_crops_in_an_ensemble():
    made, _ = learn("ensemble", image=0.0, decay=0.0)
    fresh = net(2)
    assert torch.equal(made.embeds[1].weight, fresh.embeds[1].weight)
    assert not torch.equal(made.embeds[0].weight, fresh.embeds[0].weight)


def test_images_without_boxes_serve_the_crops_alone():
    from stillroom.recipes.dense.vild import ViLD
    from stillroom.run import Run

    def losses(images, way="ensemble"):
        torch.manual_seed(1)
        run, tower = Run(), nn.Sequential(nn.Flatten(), nn.Linear(192, 8))
        method = ViLD(way=way, side=8, regions=8, proposals=4, lr=0.01, batch=2, steps_propose=1, steps=1, jitter=(1, 1))
        method(run, student=net(1 + (way == "ensemble")), tower=tower, texts=unit(3, 8), data=data(), images=images)
        return {name: value for name, value in run.history[-1].items() if name in ("names", "moves", "loss_objectness", "image")}
    others = [(1 - x, Boxes(t.boxes, t.labels + 90)) for x, t in data(3)]        # a class that nobody knows: it is not read
    assert losses(others)["image"] != losses(None)["image"]
    assert losses(others).keys() == losses(None).keys() and losses(others)["moves"] < 10


def test_the_image_head_speaks_without_the_background():
    """As in the released code: logits of the second branch have no background; the classes of the first are taken after it."""
    from stillroom.models.detector import scores

    student, regions, texts, base = net(), [unit(6, 8), unit(6, 8, seed=2)], unit(3, 8, seed=1), torch.tensor([True, True, False])
    text = student.named(regions[0], texts, 0.1).softmax(1)[:, 1:]
    image = (regions[1] @ texts.T / 0.1).softmax(1)
    third = torch.where(base, text, image)
    assert torch.allclose(scores(student, regions, texts, base, "ensemble", 0.1), (text * image * third) ** (1 / 3), atol=1e-6)
    assert torch.allclose(scores(student, regions[1:], texts, base, "image", 0.1), image, atol=1e-6)


def test_a_detector_with_the_wrong_heads_is_refused():
    from stillroom.recipes.dense.vild import ViLD
    from stillroom.run import Run

    for way, word in (("text", "1 heads"), ("words", "text")):
        with pytest.raises(Refused, match=word):
            ViLD(way=way, batch=2)(Run(), student=net(2), tower=nn.Identity(), texts=unit(3, 8), data=data())


@pytest.mark.skipif(_compat.find_spec("transformers") is None, reason="transformers is not installed")
def test_both_towers_of_a_clip_of_transformers_teach():
    kinds = _compat.package("transformers")
    torch.manual_seed(0)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    clip = kinds.CLIPModel(kinds.CLIPConfig(text_config={**small, "vocab_size": 50, "max_position_embeddings": 8},
                                            vision_config={**small, "image_size": 8, "patch_size": 4}, projection_dim=8)).eval()

    class Tower(nn.Module):
        def __init__(self):
            super().__init__()
            self.clip = clip

        def forward(self, x):
            out = self.clip.get_image_features(pixel_values=x)
            return out if isinstance(out, torch.Tensor) else out.pooler_output
    with torch.no_grad():
        assert Tower()(torch.rand(2, 3, 8, 8)).shape == (2, 8)
    before = copy.deepcopy(clip.state_dict())
    learn("ensemble", tower=Tower())
    assert all(torch.equal(v, before[k]) for k, v in clip.state_dict().items())


# --- the arena -------------------------------------------------------------------------------------------------------

def test_images_are_drawn_from_their_seed_with_tight_boxes():
    from stillroom.arenas.tinted import NAMES, NOVEL, drawn

    images, again = drawn(12, 1), drawn(12, 1)
    assert all(torch.equal(a[0], b[0]) and torch.equal(a[1].boxes, b[1].boxes) for a, b in zip(images, again, strict=True))
    assert {n // 4 for n in NOVEL} == {n % 4 for n in NOVEL} == {0, 1, 2, 3} and len(NAMES) == 16
    for image, truth in images:
        assert image.shape == (3, 64, 64) and 1 <= len(truth.boxes) == len(truth.labels) <= 4
        assert truth.boxes.min() >= 0 and truth.boxes.max() <= 64
        for x1, y1, x2, y2 in truth.boxes.tolist():
            inside = image[:, int(y1) + 2 : int(y2) - 2, int(x1) + 2 : int(x2) - 2]
            assert (inside.mean((1, 2)).max() - inside.mean((1, 2)).min()) > 0.1       # it has a colour, the ground has none


def test_masks_are_drawn_in_their_boxes_and_in_their_colour():
    from stillroom.arenas.tinted import COLOURS, drawn

    for image, truth in drawn(12, 2):
        assert truth.masks.shape == (len(truth.boxes), 64, 64) and truth.masks.sum(0).max() == 1        # no pixel of two
        for box, mask, label in zip(truth.boxes, truth.masks, truth.labels, strict=True):
            rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
            edges = torch.tensor([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
            assert (edges - box).abs().max() < 3                                # by one or two pixels where another covers it
            colour = torch.tensor(list(COLOURS.values())[label // 4])
            assert F.cosine_similarity(image[:, mask].mean(1), colour, dim=0) > 0.98


@pytest.mark.slow
def test_masks_of_shapes_are_better_than_their_boxes_filled():
    """One class, drawn shapes: COCO's average precision of masks, and of the same boxes as masks."""
    from stillroom.arenas.tinted import drawn, student
    from stillroom.measure.detection import mean_ap
    from stillroom.models.detector import scores
    from stillroom.recipes.dense.vild import ViLD
    from stillroom.run import Run

    train, test = ([(x, t._replace(labels=0 * t.labels)) for x, t in drawn(n, seed)] for n, seed in ((100, 0), (40, 1)))

    def ap(steps):
        torch.manual_seed(0)
        method = ViLD(way="text", temperature=0.1, jitter=(0.7, 1.4), regions=32, lr=0.1, clip=2.0, batch=4, steps_propose=0,
                      steps=steps)
        texts, truth = torch.eye(1, 32), [t for _, t in test]
        made = method(Run(), student=student(0, 1, mask=16), tower=nn.Identity(), texts=texts, data=train)
        found = made.detect(torch.stack([x for x, _ in test]),
                            lambda r: scores(made, r, texts, torch.ones(1, dtype=torch.bool), "both", 0.1), 0.4, 0.01)
        filled = [f._replace(masks=pasted(torch.ones(len(f.boxes), 8, 8), f.boxes, (64, 64)) > 0.5) for f in found]
        return mean_ap(found, truth, 1, of="masks"), mean_ap(filled, truth, 1, of="masks")
    assert ap(1)[0] < 1
    ours, boxes = ap(150)
    assert ours > 30 and ours > 1.4 * boxes


# --- real cells ------------------------------------------------------------------------------------------------------

def test_quarters_with_a_novel_cell_are_left_out_and_boxes_move_with_the_rest():
    from stillroom.arenas.cells import SIZE, quarters

    image = torch.rand(3, 240, 320, generator=torch.Generator().manual_seed(0))
    boxes = torch.tensor([[20.0, 20, 60, 60], [130, 40, 170, 80], [200, 150, 300, 230], [150, 130, 170, 150], [10, 100, 50, 200]])
    base = torch.tensor([True, False, True])
    found = quarters([(image, Boxes(boxes, torch.tensor([0, 0, 1, 2, 2])))], 1, base)
    (x, upper), (y, lower) = found          # the left ones: a quarter of a cell is on the upper right, a novel one on the lower
    assert x.shape == y.shape == (3, *SIZE) and upper.labels.tolist() == [0, 0] and lower.labels.tolist() == [1, 1]
    assert torch.allclose(upper.boxes, 0.6 * torch.tensor([[20.0, 20, 60, 60], [130, 40, 160, 80]]))
    assert torch.allclose(lower.boxes, 0.6 * torch.tensor([[150.0, 10, 160, 30], [10, 0, 50, 80]]))
    assert torch.allclose(x.mean((1, 2)), image[:, :120, :160].mean((1, 2)), atol=0.01)


def test_without_the_data_shapes_are_drawn(monkeypatch, tmp_path):
    from stillroom.arenas import cells

    monkeypatch.setenv("STILLROOM_DATA", str(tmp_path))
    cells._ground.cache_clear()
    cells.pictures.cache_clear()
    cast = cells.cells(0)
    assert not cast.real and "images" not in cast.actors and cast.crops() > 60           # of sixteen names


@pytest.mark.slow
def test_the_detector_learns_real_cells():
    """ViLD-text whose names stand at right angles is an ordinary detector; AP50 on images that it has not seen."""
    from stillroom.arenas.cells import pictures
    from stillroom.measure.detection import mean_ap
    from stillroom.models.detector import Detector, OneMap, scores
    from stillroom.recipes.dense.vild import ViLD
    from stillroom.run import Run

    try:
        train, test = (pictures(split)[0][:n] for split, n in (("train", 100), ("test", 40)))
    except Refused as error:
        pytest.skip(str(error))
    train, test = ([(F.interpolate(x[None], (96, 128), mode="bilinear", antialias=True)[0], t._replace(boxes=0.4 * t.boxes))
                    for x, t in part] for part in (train, test))
    texts, base = torch.eye(3, 8), torch.ones(3, dtype=torch.bool)

    def ap50(steps):
        torch.manual_seed(0)
        student = Detector(OneMap((8, 16, 32), 32), 32, 8, heads=1, anchors=((10, 20, 36),), side=4, hidden=64, keep=(200, 50),
                           sample=64)
        method = ViLD(way="text", temperature=0.1, jitter=(1, 1), regions=48, lr=0.2, clip=2.0, batch=4, steps=steps)
        made = method(Run(), student=student, tower=nn.Identity(), texts=texts, data=train)
        found = made.detect(torch.stack([x for x, _ in test]), lambda r: scores(made, r, texts, base, "text", 0.1), 0.4, 0.01)
        return mean_ap(found, [t for _, t in test], 3, (0.5,))
    assert ap50(1) < 5 and ap50(500) > 20
