"""PromptKD: its loss as released, what learns and what stays, that it reads no label; transformers' CLIP on both sides."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import TensorDataset

from stillroom import _compat, saved, zoo
from stillroom.arenas import captions as arena
from stillroom.errors import Refused
from stillroom.measure import base_to_novel
from stillroom.measure.classification import harmonic
from stillroom.models.small import mlp
from stillroom.models.towers import TextTower, TwoTowers, towers, two_towers
from stillroom.models.vit import ViT
from stillroom.parts.heads import ClassVectors
from stillroom.parts.losses.logits import UNLABELLED
from stillroom.recipes.vision_language.prompt_kd import PromptKD
from stillroom.run import Run

TEXTS = torch.tensor([[[1, 3, 4, c, 2]] for c in (5, 6, 7)])          # of three classes, a sentence each


class Watched(Run):
    """A run that shows what is kept, as it was before its first step and as it is."""

    def keep(self, **things):
        self.kept = {**getattr(self, "kept", {}), **things}
        super().keep(**things)
        self.before = {name: copy.deepcopy(thing) for name, thing in self.kept.items() if isinstance(thing, torch.nn.Module)}


def two(dim, seed):
    torch.manual_seed(seed)
    return TwoTowers(ViT(image=8, patch=4, channels=1, dim=dim, depth=3, heads=2, classes=dim),
                     TextTower(8, 5, dim, 2, 2, dim)).eval()


def clip(dim, seed, layers=3):
    transformers = _compat.package("transformers")
    torch.manual_seed(seed)
    side = {"hidden_size": 2 * dim, "intermediate_size": 24, "num_hidden_layers": layers, "num_attention_heads": 2}
    return transformers.CLIPModel(transformers.CLIPConfig(
        text_config={**side, "vocab_size": 8, "max_position_embeddings": 5, "eos_token_id": 2, "bos_token_id": 1},
        vision_config={**side, "image_size": 8, "patch_size": 4, "num_channels": 1}, projection_dim=dim)).eval()


def some_images(n=16):
    draw = torch.Generator().manual_seed(0)
    return TensorDataset(torch.rand(n, 1, 8, 8, generator=draw), torch.full((n,), UNLABELLED))


def play(student, teacher, run=None, data=None, **named):
    fields = {"count": 2, "batch": 8, "steps": 1, "steps_teacher": 3, "warmup": 0.0, "decay": 0.0}
    actors = {"texts": TEXTS, **{k: named.pop(k) for k in ("texts", "shots") if k in named}}
    method = PromptKD(**{**fields, **named})
    return method(run or Watched(), student=student, teacher=teacher, data=data or some_images(), **actors)


@pytest.mark.parametrize("kind", [two, clip])
def test_the_loss_is_the_releases(kind):
    """w·T²·KL, summed and divided by the number of logits, of scale·cosines; image by image, in float64."""
    student, teacher, run = kind(8, 0), kind(16, 1), Watched()
    play(copy.deepcopy(student), copy.deepcopy(teacher), run, batch=16, temperature=2.0, weight=30.0)
    net, far = run.before["student"].double().train(), towers(teacher.double())
    W = F.normalize(far.text(TEXTS[:, 0]), dim=-1).detach()
    x = some_images().tensors[0].double()
    u = net.body(x)
    h = u @ net.project[0].weight.T + net.project[0].bias
    h = (h - h.mean(0)) / (h.var(0, unbiased=False) + 1e-5).sqrt()
    q = F.relu(h) @ net.project[3].weight.T + net.project[3].bias
    loss, scale, far_scale = 0.0, towers(student).scale.double().exp(), far.scale.exp()
    for i in range(16):
        z_s = scale * (q[i] / q[i].norm()) @ W.T
        v = far.image(x[i : i + 1])[0]
        z_t = far_scale * (v / v.norm()) @ W.T
        p, r = (z_t / 2).softmax(0), (z_s / 2).softmax(0)
        loss = loss + 4 * sum(p[c] * (p[c] / r[c]).log() for c in range(3))
    assert run.history[0]["soft"] == pytest.approx(30 * loss.item() / (16 * 3), rel=1e-4)


@pytest.mark.parametrize("kind", [two, clip])
def test_tokens_and_projector_learn_and_all_else_stays(kind):
    student, teacher, run = kind(8, 0), kind(16, 1), Watched()
    state = {who: copy.deepcopy(net.state_dict()) for who, net in (("student", student), ("teacher", teacher))}
    made = play(student, teacher, run, steps=3)
    learnt = {name for name, p in made.named_parameters() if p.requires_grad}
    assert learnt == {"body.tokens", *(f"project.{i}.{w}" for i in (0, 1, 3) for w in ("weight", "bias"))}
    assert all(not torch.equal(p, run.before["student"].get_parameter(n)) for n, p in made.named_parameters() if n in learnt)
    for who, net in (("student", student), ("teacher", teacher)):
        assert all(torch.equal(state[who][k], v) for k, v in net.state_dict().items()), who
        assert all(p.grad is None for p in net.parameters()), who
    assert torch.equal(made.vectors, F.normalize(towers(teacher).text(TEXTS[:, 0]), dim=-1)), "class vectors stay the teacher's"
    assert made(some_images().tensors[0]).shape == (16, 3) and not made.training


def test_clip_without_tokens_is_the_frozen_clip_bit_for_bit():
    student, x = clip(8, 0), some_images().tensors[0]
    made = play(student, clip(16, 1), count=0, steps=2)
    assert torch.equal(made.body(x), student.get_image_features(pixel_values=x).pooler_output)
    with torch.no_grad():
        own = ClassVectors(towers(student).image, student.get_text_features(input_ids=TEXTS[:, 0]).pooler_output,
                           student.logit_scale.exp())
        said = student(input_ids=TEXTS[:, 0], pixel_values=x).logits_per_image
    assert torch.allclose(own(x), said, atol=1e-5), "and its zero-shot classifier is CLIP's own"


def test_the_text_tower_does_not_come_along():
    made = play(clip(8, 0), clip(16, 1))
    assert not any("text" in name or "embed_tokens" in name for name in made.state_dict())


def test_a_student_that_says_what_the_teacher_says_has_no_loss():
    teacher = two(8, 0)
    made = play(copy.deepcopy(teacher), teacher, count=0, steps=0)
    made.project = torch.nn.Identity()
    x = some_images().tensors[0]
    far = ClassVectors(teacher.image, teacher.text(TEXTS[:, 0]), teacher.scale.exp())
    assert torch.allclose(made(x), far(x), atol=1e-6)


def test_no_label_is_read():
    x = some_images().tensors[0]
    made = [play(two(8, 0), two(16, 1), Run(), data=TensorDataset(x, y), steps=3)
            for y in (torch.arange(16) % 3, torch.full((16,), UNLABELLED))]
    assert all(torch.equal(a, b) for a, b in zip(*(m.state_dict().values() for m in made), strict=True))


def test_the_teacher_is_tuned_first_where_labels_are_given():
    x = some_images().tensors[0]
    shots = TensorDataset(x, torch.tensor([0, 1, UNLABELLED, UNLABELLED] * 4))           # class 2 is never shown
    teacher, run = two(16, 1), Watched()
    made = play(two(8, 0), teacher, run, shots=shots, count_teacher=2, steps=2)
    read = run._things["teacher/read"]
    assert [line["loop"] for line in run.history] == ["teacher/loop"] * 3 + ["loop"] * 2
    assert not torch.allclose(made.vectors, F.normalize(teacher.text(TEXTS[:, 0]), dim=-1), atol=1e-4)
    assert torch.equal(made.vectors, F.normalize(read(TEXTS[:, 0]), dim=-1))
    run = Run(accumulate=2)
    with pytest.raises(Refused, match="accumulate"):
        play(two(8, 0), two(16, 1), run, shots=shots)
    assert not run.history, "refused before any work is lost"


def test_an_image_network_is_a_student_too_and_is_built_again(tmp_path):
    student = zoo.model("timm:vit_tiny_patch16_224?embed_dim=16&depth=2&num_heads=2", classes=7, channels=1, size=32)
    torch.manual_seed(1)
    teacher = TwoTowers(ViT(image=32, patch=16, channels=1, dim=8, depth=2, heads=2, classes=8), TextTower(8, 5, 8, 1, 2, 8))
    x = torch.rand(16, 1, 32, 32)
    made = play(student, teacher, data=TensorDataset(x, torch.zeros(16)), steps=2)
    assert made.body(x).shape == (16, 16), "its own last layer is gone"
    again = saved.load(saved.save(made, tmp_path, classes=["a", "b", "c"]))
    assert torch.equal(again(x), made(x)) and again(x).shape == (16, 3)


def test_one_sentence_a_class_needs_no_axis_of_its_own():
    made = [play(two(8, 0), two(16, 1), Run(), texts=texts) for texts in (TEXTS, TEXTS[:, 0])]
    assert all(torch.equal(a, b) for a, b in zip(*(m.state_dict().values() for m in made), strict=True))
    with pytest.raises(Refused, match="texts of shape"):
        play(two(8, 0), two(16, 1), Run(), texts=torch.rand(3, 5))


def test_what_is_no_two_tower_model_is_refused():
    assert not two_towers(mlp()) and two_towers(two(8, 0))
    with pytest.raises(Refused, match="no tower for images beside one for texts"):
        play(two(8, 0), mlp())


def test_the_harmonic_mean_and_the_two_sets_of_classes():
    assert harmonic(80, 70) == pytest.approx(74.6667, abs=1e-4) and harmonic(0, 0) == 0
    logits = torch.tensor([[3.0, 0, 9, 9], [0, 3, 9, 9], [3, 0, 9, 9], [9, 9, 3, 0], [9, 9, 3, 0]])
    data = TensorDataset(logits, torch.tensor([0, 1, 1, 2, 3]))
    shown, others, both = base_to_novel(torch.nn.Identity(), data, (0, 1))
    assert (shown, others) == pytest.approx((200 / 3, 50)) and both == pytest.approx(harmonic(200 / 3, 50))


def test_the_arena_keeps_its_images_apart():
    ground = arena.split(0)
    assert [len(part) for part in (ground.source, ground.train, ground.shots, ground.test)] == [700, 600, 80, 497]
    assert (ground.train.tensors[1] == UNLABELLED).all() and ground.shots.tensors[1].bincount().tolist() == [16] * 5
    x = torch.rand(3, 1, 8, 8)
    assert torch.allclose(arena.turned(x, 0.0), x, atol=1e-5)
    assert torch.allclose(arena.turned(x, 90.0), x.rot90(1, (2, 3)), atol=1e-5)
    assert arena.sentences().shape == (10, 4, 8)
