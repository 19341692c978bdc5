"""G2SD: the checks of its card, both stages written out, and the transformers under it."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset

from stillroom import Run
from stillroom.errors import Refused
from stillroom.models.vit import MAE, TwoTokens, ViT, depths, normalised, patchify, positions, vit
from stillroom.parts import views
from stillroom.recipes.selfsup.g2sd import G2SD, whitened_smooth_l1


def encoder(dim=16, depth=2, seed=0, **named):
    torch.manual_seed(seed)
    return ViT(**{"image": 8, "patch": 2, "channels": 1, "dim": dim, "depth": depth, "heads": 2, **named})


def mae(dim=16, depth=2, blocks=3, seed=0):
    return MAE(encoder(dim, depth, seed), dim=dim, depth=blocks, heads=2)


def images(n=6, labelled=True):
    g = torch.Generator().manual_seed(0)
    y = torch.arange(n) % 3 if labelled else torch.full((n,), -100)
    return TensorDataset(torch.rand(n, 1, 8, 8, generator=g), y)


def noise(n=6, seed=0):
    return torch.rand(n, 16, generator=torch.Generator().manual_seed(seed))


X = images().tensors[0]


# --- the card's checks -----------------------------------------------------------------------------------------------

def test_a_copy_of_the_teacher_is_perfect_behind_the_same_mask_and_only_there():
    teacher, student = mae(), mae()
    seen, other = views.visible(noise(), 0.75), views.visible(noise(seed=1), 0.75)
    taught = teacher(X, seen, 2)

    def loss(which):
        state = student(X, which, 2)
        return whitened_smooth_l1(F.layer_norm(state, state.shape[-1:], eps=1e-6), taught)

    assert loss(seen).item() == 0.0 and loss(other).item() > 0.001


def test_blocks_of_the_teacher_beyond_the_one_that_is_read_do_not_matter():
    teacher, seen = mae(), views.visible(noise(), 0.75)
    before, whole = teacher(X, seen, 2), teacher(X, seen)
    for p in [*teacher.blocks[2:].parameters(), *teacher.norm.parameters(), *teacher.predict.parameters()]:
        nn.init.normal_(p)
    assert torch.equal(teacher(X, seen, 2), before) and not torch.allclose(teacher(X, seen), whole)


def small(**named):
    still = dict(area=1.0, flip=0.0, mixup=0.0, cutmix=0.0, erase=0.0)
    sizes = dict(layers=1, batch=6, batch_specific=6, lr=1e-2, lr_specific=1e-2, steps=3, steps_specific=3)
    return G2SD(**{**still, **sizes, **named})


class Judge(nn.Module):
    """An expert that is sure of a class by brightness."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(3.0))

    def forward(self, x):
        mean = x.mean((1, 2, 3)) - 0.5
        return self.scale * torch.stack([mean, -mean, mean * 0], 1)


def test_teacher_and_expert_learn_nothing():
    teacher, expert = mae(seed=1), Judge()
    before = [copy.deepcopy(net.state_dict()) for net in (teacher, expert)]
    small()(Run(), student=mae(), teacher=teacher, expert=expert, data=images())
    for net, state in zip((teacher, expert), before):
        assert all(p.grad is None and not p.requires_grad for p in net.parameters())
        assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())


class Recorded(Run):
    """What the recipe hands to update, beside the draws it made."""

    def update(self, opt, **terms):
        self.terms = [*getattr(self, "terms", []), {k: v.item() for k, v in terms.items()}]
        return super().update(opt, **terms)


def test_both_stages_are_those_of_the_paper_written_out():
    student, teacher, expert = mae(), mae(dim=24, seed=1), Judge()
    run = Recorded(seed=3)
    recipe = small(smoothing=0.1)
    actors = copy.deepcopy({"student": student, "teacher": teacher, "expert": expert})
    made = recipe(run, **actors, data=images())
    generic, specific = run.terms[:3], run.terms[3:]
    assert [set(t) for t in run.terms] == 3 * [{"generic"}] + 3 * [{"task", "copy"}]

    other = Run(seed=3)                                                     # the same draws, the formulas by hand
    with other:
        guess = nn.Sequential(nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 24))
        for x, _ in other.loop(images(), batch=6, steps=3, name="generic"):
            x = recipe.look(x)
            u = torch.rand(6, 16)
            if other.step == 0:
                seen = u.argsort(1)[:, :4].sort(1).values
                state = teacher(x, seen, 1)
                y = (state - state.mean(-1, keepdim=True)) / (state.var(-1, keepdim=True, unbiased=False) + 1e-6).sqrt()
                d = (guess(student(x, seen)) - y).abs()
                loss = torch.where(d < 2, d * d / 4, d - 1).mean()
                assert d.shape == (6, 17, 24), "class token and all patches, hidden or not"
    assert generic[0]["generic"] == pytest.approx(loss.item(), rel=1e-4)

    first = small(steps_specific=1)                                         # its one step has rate 0: the student as it began
    begun = Recorded(seed=3)
    net = first(begun, student=student, teacher=teacher, expert=expert, data=images()).eval()
    said, echoed = net.both(X)
    soft = 0.9 * F.one_hot(images().tensors[1], 3) + 0.1 / 3
    task = -(soft * said.log_softmax(-1)).sum(-1).mean()
    echo = F.nll_loss(echoed.log_softmax(-1), expert(X).argmax(-1))
    assert begun.terms[-1]["task"] == pytest.approx(task.item() / 2, rel=1e-4)
    assert begun.terms[-1]["copy"] == pytest.approx(echo.item() / 2, rel=1e-4)
    assert specific[0] == begun.terms[-1]
    torch.testing.assert_close(made(X), sum(made.both(X)) / 2)


def test_without_labels_the_expert_teaches_alone():
    run = Recorded()
    small()(run, student=mae(), teacher=mae(seed=1), expert=Judge(), data=images(labelled=False))
    assert all(t["task"] == 0.0 and t["copy"] > 0 for t in run.terms[3:])


def test_the_second_head_comes_to_say_what_the_expert_says_and_the_first_what_the_labels_say():
    """Labels and expert disagree on purpose: each head must follow its own master."""
    x = torch.cat([0.1 * X, 1 - 0.1 * X])                                   # six dark images, six bright ones
    y = torch.tensor([2] * 6 + [1] * 6)
    expert = Judge()
    net = small(steps=1, steps_specific=80, batch_specific=12, smoothing=0.0)(
        Run(), student=mae(), teacher=mae(seed=1), expert=expert, data=TensorDataset(x, y))
    labels, echo = net.both(x)
    assert torch.equal(expert(x).argmax(-1), torch.tensor([1] * 6 + [0] * 6))
    assert torch.equal(echo.argmax(-1), expert(x).argmax(-1)) and torch.equal(labels.argmax(-1), y)


def test_teacher_and_expert_see_what_the_student_sees():
    """With everything drawn at random: the crop, the mirror, the erased box and the mix reach both."""
    seen = {"expert": [], "student": []}
    expert, student = Judge(), mae()
    expert.register_forward_hook(lambda m, i, o: seen["expert"].append(i[0].clone()))
    both = TwoTokens.both

    def watched(self, x):
        seen["student"].append(x.clone())
        return both(self, x)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TwoTokens, "both", watched)
        G2SD(layers=1, batch=6, batch_specific=6, steps=1, steps_specific=8, erase=1.0)(
            Run(), student=student, teacher=mae(seed=1), expert=expert, data=images())
    pairs = list(zip(seen["expert"][1:], seen["student"], strict=True))     # the first call counts the classes
    assert len(pairs) == 8 and all(torch.equal(a, b) for a, b in pairs)
    assert all(not torch.equal(x, y) for x, y in zip(seen["student"], seen["student"][1:]))


def test_refusals():
    with pytest.raises(Refused, match="no masked autoencoder"):
        small()(Run(), student=encoder(), teacher=mae(), expert=Judge(), data=images())
    with pytest.raises(Refused, match="divides the image"):
        encoder(image=9)
    with pytest.raises(Refused, match="divide the width"):
        encoder(dim=18)


# --- the transformers ------------------------------------------------------------------------------------------------

def test_positions_are_those_of_the_authors():
    """get_2d_sincos_pos_embed(8, 3) of pengzhiliang/G2SD, util/pos_embed.py."""
    got = positions(8, 3, 3, 3)[0]
    for row, want in ((1, [0.8414709848, 0.0099998333, 0.5403023059, 0.9999500004, 0, 0, 1, 1]),
                      (5, [0.9092974268, 0.0199986667, -0.4161468365, 0.9998000067, 0.8414709848, 0.0099998333, 0.5403023059,
                           0.9999500004])):
        torch.testing.assert_close(got[row], torch.tensor(want), atol=1e-6, rtol=0)
    assert got.sum().item() == pytest.approx(35.42803433, rel=1e-5)


def test_positions_stretch_to_other_sizes():
    fine, coarse = positions(8, 6, 6, 3)[0].view(6, 6, 8), positions(8, 3, 3, 3)[0].view(3, 3, 8)
    at = (torch.arange(6) + 0.5) / 2 - 0.5                                   # places of the six in units of the three
    torch.testing.assert_close(fine[0, :, 0], at.sin())
    assert fine[0, 0, 0] < coarse[0, 0, 0] < fine[0, 1, 0]
    assert encoder().encode(torch.rand(2, 1, 4, 12)).shape == (2, 1 + 12, 16)


def test_patches_are_rows_of_the_image():
    x = torch.arange(2 * 3 * 4 * 6).view(2, 3, 4, 6).float()
    got = patchify(x, 2)
    for number, (r, c) in enumerate((r, c) for r in range(2) for c in range(3)):
        assert torch.equal(got[:, number], x[:, :, 2 * r:2 * r + 2, 2 * c:2 * c + 2].flatten(1))
    flat = normalised(got)
    torch.testing.assert_close(flat.mean(-1), torch.zeros(2, 6), atol=1e-5, rtol=0)
    torch.testing.assert_close(flat.std(-1), torch.ones(2, 6), atol=1e-4, rtol=0)
    assert not normalised(torch.ones(1, 1, 4)).any()


def test_published_sizes():
    """Parameters of DeiT-S/16 and ViT-B/16 with 1000 classes (timm 1.0) less their learnt positions, which are fixed here."""
    with torch.device("meta"):
        counts = [sum(p.numel() for p in vit(size, classes=1000).parameters()) for size in ("small", "base")]
    assert counts == [22_050_664 - 197 * 384, 86_567_656 - 197 * 768]


def test_attention_is_the_formula_written_out():
    block = encoder().blocks[0].double()
    x = torch.randn(2, 5, 16, dtype=torch.float64)
    y = block.norm1(x)
    q, k, v = block.qkv(y).split(16, -1)
    heads = []
    for h in (slice(0, 8), slice(8, 16)):
        heads.append((q[..., h] @ k[..., h].mT / math.sqrt(8)).softmax(-1) @ v[..., h])
    z = x + block.out(torch.cat(heads, -1))
    torch.testing.assert_close(block(x), z + block.mlp(block.norm2(z)))


def test_the_encoder_sees_visible_patches_only_and_each_at_its_place():
    net, seen = encoder(), views.visible(noise(), 0.75)
    changed = X.clone()
    hidden = views.mask(noise(), 0.75).view(6, 1, 4, 4).repeat_interleave(2, 2).repeat_interleave(2, 3)
    changed[hidden] = 0.123
    assert torch.equal(net.encode_visible(X, seen), net.encode_visible(changed, seen))
    assert not torch.allclose(net.encode(X), net.encode(changed))
    everything = torch.arange(16).expand(6, 16)
    torch.testing.assert_close(net.encode_visible(X, everything), net.encode(X))
    turned = seen.flip(1)                                                   # the order in which they are named does not matter
    torch.testing.assert_close(net.encode_visible(X, turned)[:, 1:].flip(1), net.encode_visible(X, seen)[:, 1:])


def test_the_decoder_puts_everything_in_its_place():
    net, seen = mae(), views.visible(noise(), 0.75)
    tokens = net.embed(net.encoder.encode_visible(X, seen))
    want = torch.zeros(6, 17, 16)
    place = positions(16, 4, 4, 4)[0]
    for i in range(6):
        want[i, 0] = tokens[i, 0]
        for p in range(16):
            at = (seen[i] == p).nonzero().flatten().tolist()
            want[i, 1 + p] = place[p] + (tokens[i, 1 + at[0]] if at else net.unseen[0, 0])
    torch.testing.assert_close(net(X, seen, 1), net.blocks[0](want))
    torch.testing.assert_close(net(X, seen), net.blocks[2](net.blocks[1](net.blocks[0](want))))


def test_the_loss_of_the_autoencoder_is_over_hidden_patches():
    net, seen, hidden = mae(), views.visible(noise(), 0.75), views.mask(noise(), 0.75)
    error = (net.pixels(X, seen) - normalised(patchify(X, 2))).square().mean(-1)
    torch.testing.assert_close(net.loss(X, seen), error[hidden].mean())


def test_two_tokens():
    net = TwoTokens(encoder(), 5).eval()
    a, b = net.both(X)
    torch.testing.assert_close(net(X), (a + b) / 2)
    tokens = net.encoder.encode(X, net.token)
    assert tokens.shape == (6, 1 + 16 + 1, 16)
    torch.testing.assert_close(a, net.labels(tokens[:, 0]))
    torch.testing.assert_close(b, net.teacher(tokens[:, -1]))
    assert net.labels.weight.std() < 1e-4 < net.token.std() < 0.05


def test_depths_fall_towards_the_input():
    net = encoder(depth=3)
    shares = depths(net, 0.5)
    assert shares[net.cls] == shares[net.embed.weight] == 0.5**4
    assert [shares[b.qkv.weight] for b in net.blocks] == [0.125, 0.25, 0.5]
    assert net.norm.weight not in set(shares), "the last norm learns at the full rate"


def test_stochastic_depth_keeps_the_mean_and_is_off_in_eval():
    net = encoder(depth=2, drop_path=0.5)
    x = torch.randn(4000, 1, 16)
    torch.manual_seed(0)
    kept = net.blocks[1]._dropped(x) / x
    assert set(kept.unique().round(decimals=3).tolist()) == {0.0, 2.0} and abs(kept.mean() - 1) < 0.1
    assert net.blocks[0].drop == 0 and torch.equal(net.eval().blocks[1]._dropped(x), x)


# --- the comparison of features ------------------------------------------------------------------------------------------

def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_whitened_smooth_l1_is_the_naive_sum():
    student, teacher = 3 * draw(2, 4, 6), 5 * draw(2, 4, 6, seed=1) + 2
    total = 0.0
    for s, t in zip(student.reshape(-1, 6).tolist(), teacher.reshape(-1, 6).tolist()):
        mean = sum(t) / 6
        deviation = math.sqrt(sum((v - mean) ** 2 for v in t) / 6 + 1e-6)
        for a, b in zip(s, t):
            d = abs(a - (b - mean) / deviation)
            total += d * d / 4 if d < 2 else d - 1
    assert whitened_smooth_l1(student, teacher).item() == pytest.approx(total / 48, rel=1e-10)


def test_the_scale_and_shift_of_the_teacher_do_not_matter_those_of_the_student_do():
    student, teacher = draw(2, 3, 8), draw(2, 3, 8, seed=1)
    loss = whitened_smooth_l1(student, teacher)
    torch.testing.assert_close(whitened_smooth_l1(student, 7 * teacher - 3), loss, atol=1e-5, rtol=0)
    assert abs(whitened_smooth_l1(2 * student, teacher) - loss) > 0.01
    normal = torch.nn.functional.layer_norm(teacher, (8,), eps=1e-6)
    assert whitened_smooth_l1(normal, teacher).item() == 0.0
