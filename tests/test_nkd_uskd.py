"""NKD and USKD: what the step is made of, on which samples, and that it does what the paper says of it."""

import copy
from importlib.util import find_spec

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset

from stillroom import arenas
from stillroom._compat import package
from stillroom.errors import Refused
from stillroom.models.small import cnn, mlp
from stillroom.parts.losses.logits import UNLABELLED, nkd_others, nkd_target, uskd_others, uskd_target
from stillroom.parts.places import intermediate, pooled
from stillroom.parts.taps import Tap
from stillroom.recipes.classification.nkd_uskd import NKD
from stillroom.run import Run


@pytest.fixture
def ground():
    torch.manual_seed(0)
    x, y = torch.rand(32, 1, 8, 8), torch.randint(0, 10, (32,))
    return mlp(hidden=16), cnn(width=4), TensorDataset(x, y)


def one_step(student, data, teacher=None, **fields):
    """The student after one step of plain SGD with rate 1 on the whole set."""
    fields = {"lr": 1.0, "decay": 0.0, "batch": len(data), "steps": 1, **fields}
    return NKD(**fields)(Run(), student=copy.deepcopy(student), data=data, **({"teacher": teacher} if teacher else {}))


def stepped(student, loss):
    """The same by hand."""
    student = copy.deepcopy(student)
    for p, g in zip(student.parameters(), torch.autograd.grad(loss(student), list(student.parameters()))):
        p.data -= g
    return student


def same(a, b):
    return all(torch.allclose(p, q, atol=1e-5) for p, q in zip(a.parameters(), b.parameters()))


def test_a_step_with_a_teacher_descends_ce_target_and_others(ground):
    student, teacher, data = ground
    x, y = data.tensors
    taught = teacher.eval()(x).detach()

    def loss(net):
        z = net(x)
        return F.cross_entropy(z, y) + nkd_target(z, taught, y) + 3.5 * nkd_others(z, taught, y, 3.0)

    assert same(one_step(student, data, teacher, gamma=3.5, temperature=3.0), stepped(student, loss))


def test_where_a_label_is_missing_the_teachers_guess_is_the_target_and_there_is_no_ce(ground):
    student, teacher, data = ground
    x, y = data.tensors
    some = torch.where(torch.arange(32) < 5, y, UNLABELLED)
    taught = teacher.eval()(x).detach()
    target = torch.cat([y[:5], taught[5:].argmax(1)])

    def loss(net):
        z = net(x)
        hard = F.cross_entropy(z[:5], y[:5], reduction="sum") / 32
        return hard + nkd_target(z, taught, target) + 1.5 * nkd_others(z, taught, target)

    assert same(one_step(student, TensorDataset(x, some), teacher), stepped(student, loss))


def test_without_a_teacher_a_step_descends_ce_own_target_zipf_and_leaves_out_the_unlabelled(ground):
    _, _, data = ground
    torch.manual_seed(1)
    student = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 10))
    x, y = data.tensors
    some = torch.where(torch.arange(32) < 24, y, UNLABELLED)
    kept = {}

    class Watched(Run):
        def keep(self, **things):
            kept.update(copy.deepcopy({k: v for k, v in things.items() if k == "weak"}))
            super().keep(**things)

    made = NKD(alpha=0.1, beta=0.2, mu=0.3, lr=1.0, decay=0.0, batch=24, steps=1, tap="2")(
        Watched(), student=copy.deepcopy(student), data=TensorDataset(x, some))

    def loss(net):
        early = net[:3](x[:24])
        z, w = net[3:](early), kept["weak"](early)
        return (F.cross_entropy(z, y[:24]) + 0.1 * uskd_target(z, y[:24]) + 0.2 * uskd_others(z, w, y[:24])
                + 0.3 * F.cross_entropy(w, y[:24], label_smoothing=0.1))

    assert same(made, stepped(student, loss))


def test_uskd_does_not_split_a_batch_and_nkd_may(ground):
    student, teacher, data = ground
    with pytest.raises(Refused, match="accumulate"):
        NKD(steps=1, batch=8)(Run(accumulate=2), student=student, data=data)
    NKD(steps=1, batch=8)(Run(accumulate=2), student=student, teacher=teacher, data=data)


def test_the_weak_head_is_dropped_and_the_probe_leaves_the_batch_norms_alone(ground):
    _, _, data = ground
    student = cnn(width=4)
    names = list(student.state_dict())
    made = NKD(steps=3, batch=16)(Run(), student=student, data=data)
    assert list(made.state_dict()) == names and made[1].num_batches_tracked == 3      # its three steps and nothing else


def test_no_label_at_all_is_refused_without_a_teacher(ground):
    student, _, data = ground
    with pytest.raises(Refused, match="no sample has a label"):
        NKD(steps=1)(Run(), student=student, data=TensorDataset(data.tensors[0], torch.full((32,), UNLABELLED)))


def test_an_unknown_layer_is_refused(ground):
    student, _, data = ground
    with pytest.raises(Refused, match="no module called"):
        NKD(tap="layer9", steps=1)(Run(), student=student, data=data)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_under_wrong_labels_nkd_is_worth_two_points_and_near_plain_kd(seed):
    cast = arenas.digits("noisy", seed)
    ours = cast.accuracy(NKD(steps=600)(Run(seed=seed), **cast.actors))
    assert ours >= cast.accuracy(cast.alone()) + 2
    assert abs(ours - cast.accuracy(cast.kd())) < 1.5


@pytest.mark.slow
def test_uskd_does_no_harm_on_clean_labels_and_brings_the_others_closer_to_zipf():
    last = {}
    for beta in (1e-6, 0.1):
        cast, run = arenas.digits("clean", 0), Run()
        made = NKD(steps=600, beta=beta)(run, student=cast.actors["student"], data=cast.actors["data"])
        last[beta] = sum(line["others"] / beta for line in run.history[-20:]) / 20
    assert cast.accuracy(made) >= cast.accuracy(cast.alone()) - 1
    assert last[0.1] < last[1e-6] - 0.1


# --- the layer that the weak head reads ----------------------------------------------------------------------------------

@pytest.mark.skipif(find_spec("timm") is None, reason="timm is not installed: pip install 'stillroom[vision]'")
def test_the_weak_head_reads_the_last_stage_but_one():
    timm = package("timm")
    for name, width in [("resnet18", 256), ("resnet50", 1024), ("mobilenetv3_large_100", 112), ("convnext_atto", 160),
                        ("densenet121", 1024)]:
        net = timm.create_model(name)
        _, (early,) = Tap(net.eval(), intermediate(net, torch.rand(2, 3, 64, 64)))(torch.rand(2, 3, 64, 64))
        assert early.shape == (2, width, 4, 4), name
    assert intermediate(timm.create_model("swin_tiny_patch4_window7_224"), torch.rand(1, 3, 224, 224)) == "layers.2"
    vit = timm.create_model("vit_tiny_patch16_224", img_size=32)
    assert intermediate(vit, torch.rand(2, 3, 32, 32)) == "blocks.2"         # block 3 of 12, as in the authors' DeiT


def test_the_first_token_or_the_mean_of_the_map_stands_for_an_early_feature():
    assert torch.equal(pooled(torch.arange(12.0).view(1, 3, 2, 2)), torch.tensor([[1.5, 5.5, 9.5]]))
    assert torch.equal(pooled(torch.arange(6.0).view(1, 2, 3)), torch.tensor([[0.0, 1.0, 2.0]]))
    assert torch.equal(pooled(torch.arange(12.0).view(1, 2, 2, 3)), torch.tensor([[4.5, 5.5, 6.5]]))      # channels last
    assert torch.equal(pooled(torch.ones(2, 3)), torch.ones(2, 3))
