"""SSLD: no label is read, the pool is chosen by the teacher, nothing of what is judged comes in."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset, Subset, TensorDataset

from stillroom import arenas
from stillroom.batches import batches
from stillroom.errors import Refused
from stillroom.models.small import cnn, mlp
from stillroom.parts.losses.logits import UNLABELLED, js, soft_cross_entropy, symmetric_kl
from stillroom.parts.pool import images, near_duplicates, select, thumbnails, top_per_class
from stillroom.parts.teachers import Batched
from stillroom.recipes.classification.ssld import SSLD, trial
from stillroom.run import Run


@pytest.fixture
def ground():
    torch.manual_seed(0)
    return mlp(hidden=16), cnn(width=4), TensorDataset(torch.rand(40, 1, 8, 8), torch.randint(0, 10, (40,)))


def weights(made):
    return torch.cat([p.detach().flatten() for p in made.parameters()])


def short(**fields):
    return SSLD(**{"lr": 0.05, "lr_finetune": 0.0005, "batch": 16, "steps": 4, "steps_finetune": 3, **fields})


# --- labels -----------------------------------------------------------------------------------------------------------------

def test_random_labels_give_the_same_student_bit_for_bit(ground):
    student, teacher, data = ground
    x, _ = data.tensors
    made = [short()(Run(), student=copy.deepcopy(student), teacher=teacher, data=TensorDataset(x, y), pool=TensorDataset(1 - x))
            for y in (data.tensors[1], torch.randint(0, 10, (40,)), torch.full((40,), UNLABELLED))]
    assert torch.equal(weights(made[0]), weights(made[1])) and torch.equal(weights(made[0]), weights(made[2]))


def test_a_pool_may_give_images_alone(ground):
    student, teacher, data = ground

    class Bare(Dataset):
        def __len__(self):
            return 40

        def __getitem__(self, i):
            return 1 - data.tensors[0][i]

    same = TensorDataset(1 - data.tensors[0], data.tensors[1])
    made = [short()(Run(), student=copy.deepcopy(student), teacher=teacher, data=data, pool=pool) for pool in (same, Bare())]
    assert torch.equal(weights(made[0]), weights(made[1]))


# --- stages -----------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("name", "distance"), [("sym_kl", symmetric_kl), ("js", js), ("ce", soft_cross_entropy)])
def test_both_stages_descend_the_named_distance(ground, name, distance):
    student, teacher, data = ground
    x, more = data.tensors[0], torch.rand(24, 1, 8, 8)
    run = Run()
    method = SSLD(compares=name, batch=64, steps=1, lr=1.0, warmup=0.0, decay=0.0, steps_finetune=2, lr_finetune=0.5)
    made = method(run, student=copy.deepcopy(student), teacher=teacher, data=data, pool=TensorDataset(more))

    def descend(images, rate):
        loss = distance(student(images), teacher.eval()(images))
        for p, g in zip(student.parameters(), torch.autograd.grad(loss, list(student.parameters()))):
            p.data -= rate * g
        return loss.item()

    assert run.history[0]["distance"] == pytest.approx(descend(torch.cat([x, more]), 1.0), rel=1e-4)
    second = [line for line in run.history if line["loop"] == "finetune"]
    drawn = [batch[0] for batch in batches(images(data), 64, start=0, count=2, seed=(0, "finetune"))]
    assert second[0]["distance"] == pytest.approx(descend(drawn[0], 0.5), rel=1e-3)
    velocity = weights(student)                                          # the second step carries momentum 0.9 at half the rate
    assert second[1]["distance"] == pytest.approx(distance(student(drawn[1]), teacher(drawn[1])).item(), rel=1e-3)
    assert not torch.equal(weights(made), velocity)


def test_the_second_stage_sees_the_original_images_alone(ground):
    student, teacher, data = ground
    seen = {}

    class Watched(Run):
        def loop(self, data, **named):
            seen[named.get("name", "loop")] = data
            return super().loop(data, **named)

    pool = TensorDataset(torch.rand(30, 1, 8, 8), torch.zeros(30).long())
    short(per_class=1)(Watched(), student=student, teacher=teacher, data=data, pool=pool)
    assert len(seen["loop"]) == 40 + len(select(teacher.eval(), pool, 1)) and len(seen["finetune"]) == 40
    assert torch.equal(torch.stack([seen["finetune"][i][0] for i in range(40)]), data.tensors[0])


def test_an_unknown_word_is_refused(ground):
    student, teacher, data = ground
    for fields in ({"compares": "sym-kl"}, {"teacher_bn": "train"}):
        with pytest.raises(Refused, match="is none of"):
            short(**fields)(Run(), student=student, teacher=teacher, data=data)


# --- the teacher's batch norms ------------------------------------------------------------------------------------------

def test_batch_statistics_are_those_of_the_batch_and_leave_the_teacher_alone(ground):
    _, teacher, data = ground
    x = data.tensors[0]
    teacher(x)                                                           # running statistics of its own
    before = copy.deepcopy(teacher.state_dict())
    wanted = copy.deepcopy(teacher).train()(x).detach()
    batched = Batched(teacher)
    assert torch.allclose(batched(x), wanted, atol=1e-5) and torch.allclose(batched.train()(x), wanted, atol=1e-5)
    assert not torch.allclose(batched(x), teacher.eval()(x), atol=1e-3)
    assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())


def test_a_run_with_batch_statistics_leaves_the_teachers_own(ground):
    student, teacher, data = ground
    before = copy.deepcopy(teacher.state_dict())
    a = short(teacher_bn="batch")(Run(), student=copy.deepcopy(student), teacher=teacher, data=data)
    b = short()(Run(), student=copy.deepcopy(student), teacher=teacher, data=data)
    assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())
    assert not torch.equal(weights(a), weights(b))


# --- the pool ---------------------------------------------------------------------------------------------------------------

def test_top_per_class_of_a_matrix_made_by_hand():
    p = torch.tensor([[0.1, 0.2, 0.7], [0.6, 0.3, 0.1], [0.5, 0.4, 0.1], [0.8, 0.1, 0.1], [0.2, 0.3, 0.5], [0.3, 0.6, 0.1]])
    assert top_per_class(p, 1).tolist() == [0, 3, 5]                     # the largest of each column
    assert top_per_class(p, 2).tolist() == [0, 1, 2, 3, 4, 5]
    greedy = torch.tensor([[0.5, 0.5], [0.1, 0.2], [0.2, 0.1]])
    assert top_per_class(greedy, 1).tolist() == [0]                      # wanted by both classes, taken once
    assert top_per_class(greedy, 99).tolist() == [0, 1, 2]


class Reads(nn.Module):
    """A teacher whose logits stand in the first pixels."""

    def forward(self, x):
        return x.flatten(1)[:, :3]


def test_the_pool_is_chosen_by_the_teacher_without_near_duplicates_of_what_is_judged():
    torch.manual_seed(0)
    pool = torch.rand(9, 1, 4, 4)
    pool[2, 0, 0, 0], pool[5, 0, 0, 1], pool[7, 0, 0, 2] = 9, 9, 9
    pool[4, 0, 0, 0] = 8
    data = TensorDataset(pool, torch.zeros(9))
    assert select(Reads(), data, 1).indices == [2, 5, 7]
    judged = TensorDataset(pool[2:3] * 0.5 + 0.1 + 0.001 * torch.rand(1, 1, 4, 4), torch.zeros(1))     # darker, noisy
    chosen = select(Reads(), data, 1, avoid=judged)
    assert chosen.indices == [4, 5, 7], "the duplicate is out, the second best of its class is in"
    assert torch.equal(chosen[0][0], pool[4])
    assert len(select(Reads(), Subset(data, []), 1)) == 0


def test_near_duplicates_are_alike_whatever_their_brightness():
    torch.manual_seed(0)
    x = torch.rand(6, 20)
    twins = torch.stack([x[1] * 3 + 2, x[4] + 0.01 * torch.rand(20)])
    assert near_duplicates(x, twins, 0.98).tolist() == [False, True, False, False, True, False]
    assert not near_duplicates(x, torch.rand(50, 20), 0.98).any()
    assert near_duplicates(x, torch.zeros(0, 20)).tolist() == [False] * 6
    assert thumbnails(TensorDataset(torch.rand(3, 3, 64, 48))).shape == (3, 3 * 16 * 16)


def test_images_of_several_sets_lose_everything_else():
    a, b = TensorDataset(torch.rand(3, 2), torch.arange(3)), TensorDataset(torch.rand(2, 2), torch.rand(2), torch.rand(2))
    assert torch.equal(images(a, b).tensors[0], torch.cat([a.tensors[0], b.tensors[0]]))
    mixed = images(a, Subset(b, [1]))
    assert len(mixed) == 4 and len(mixed[3]) == 1 and torch.equal(mixed[3][0], b.tensors[0][1])


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_without_labels_it_gains_eight_points(seed):
    method, cast = trial(seed)
    assert cast.accuracy(method(Run(seed=seed), **cast.actors)) > cast.accuracy(cast.alone()) + 8


@pytest.mark.parametrize("seed", [0, 1])
def test_the_chosen_are_digits_where_three_in_four_of_the_pool_are_none(seed):
    cast = arenas.digits("few", seed)
    digits = cast.actors["data"].tensors[0]
    torch.manual_seed(seed)
    other = torch.stack([x.flatten()[torch.randperm(64)].view(1, 8, 8) for x in digits.repeat(3, 1, 1, 1)])      # pixels shuffled
    chosen = select(cast.actors["teacher"].eval(), TensorDataset(torch.cat([digits, other])), 30)
    assert 250 <= len(chosen) <= 300 and sum(i < len(digits) for i in chosen.indices) / len(chosen) > 0.85
