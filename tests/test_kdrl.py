"""KDRL: gradients of its estimators by enumeration, its limits, and one step written out."""

import copy

import pytest
import torch
from torch.utils.data import TensorDataset

from stillroom.errors import Refused
from stillroom.models.gpt import GPT
from stillroom.parts import grpo, optim, text, verifiers
from stillroom.recipes.language.kdrl import ESTIMATES, KDRL, TAUGHT
from stillroom.run import Run

SIZE, PAD, STOP = 7, 0, 1
FAST = dict(length=3, group=4, batch=4, lr=1e-3)
ALONE = dict(beta=0.0, fall=0.0, beta_least=0.0)


class Watched(Run):
    """A run that remembers terms and gradients of every update, and moves nothing."""

    def __init__(self, **named):
        super().__init__(**named)
        self.terms, self.slopes = [], []

    def update(self, opt, **terms):
        self.terms.append({k: v.item() for k, v in terms.items()})
        self.slopes.append(torch.autograd.grad(sum(terms.values()), opt.params, allow_unused=True))
        return True


def odd(said, gold):
    return (said[..., 0] % 2).float()


def cast(seed=0, reward=None, same=False):
    torch.manual_seed(seed)
    nets = [GPT(SIZE, dim=16, heads=2, length=8, eos=STOP, pad=PAD) for _ in range(2)]
    for net in nets:
        for p in net.parameters():
            if p.dim() > 1:
                p.data.normal_(std=0.4)
    prompts = torch.randint(2, SIZE, (16, 4))
    prompts[::3, 0] = PAD
    return {"student": nets[0], "teacher": copy.deepcopy(nets[0]) if same else nets[1],
            "data": TensorDataset(prompts, prompts[:, -1]), "reward": reward or odd}


def play(run=None, actors=None, **fields):
    run = run or Watched()
    KDRL(steps=1, **{**FAST, **fields})(run, **(actors or cast()))
    return run


def flat(slopes):
    return torch.cat([s.flatten() for s in slopes if s is not None])


def moved(net):
    """Its parameters in the optimiser's order."""
    return optim.adamw(net, lr=1.0).params


def rollout(actors):
    """What the recipe samples in its first step."""
    run, method = Run(), KDRL(steps=1, **FAST)
    for prompts, gold in run.loop(actors["data"], batch=method.batch, steps=1, whole=True):
        told = text.sample(actors["student"], prompts, method.length, count=method.group)
        return told, gold, actors["reward"](told.said.unflatten(0, (-1, method.group)), gold)


# --- estimators: five tokens, expectations by enumeration, float64 ------------------------------------------------------

def expected(name):
    """E over y ~ π of the gradient of the estimator at y, with the logits of π and π_T."""
    torch.manual_seed(0)
    own, other = (torch.randn(5, dtype=torch.float64, requires_grad=r) for r in (True, False))
    logp, taught = own.log_softmax(-1), other.log_softmax(-1)
    loss = (logp.detach().exp() * ESTIMATES[name](taught - logp)).sum()
    return torch.autograd.grad(loss, own)[0], own, taught


def test_k2_has_the_gradient_of_the_reverse_kl():
    found, own, taught = expected("k2")
    logp = own.log_softmax(-1)
    want, = torch.autograd.grad((logp.exp() * (logp - taught)).sum(), own)
    assert torch.allclose(found, want, atol=1e-12) and want.abs().max() > 0.05


def test_k3_has_the_gradient_of_the_forward_kl():
    found, own, taught = expected("k3")
    want, = torch.autograd.grad((taught.exp() * (taught - own.log_softmax(-1))).sum(), own)
    assert torch.allclose(found, want, atol=1e-12)
    assert torch.allclose(found, own.detach().softmax(-1) - taught.exp(), atol=1e-12)


def test_k1_has_none_in_the_mean():
    assert expected("k1")[0].abs().max() < 1e-12


def test_values_estimate_the_divergence():
    """k1 and k3 are unbiased; k2 is so where the two are near."""
    torch.manual_seed(1)
    own = torch.randn(5, dtype=torch.float64)
    logp, near = own.log_softmax(-1), (own + 0.01 * torch.randn(5, dtype=torch.float64)).log_softmax(-1)
    kl = (logp.exp() * (logp - near)).sum()
    for name, rel in (("k1", 1e-9), ("k3", 1e-9), ("k2", 0.05)):
        assert (logp.exp() * ESTIMATES[name](near - logp)).sum().item() == pytest.approx(kl.item(), rel=rel)


# --- the step --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("estimate", ["k1", "k2", "k3"])
@pytest.mark.parametrize("taught", ["all", "response", "group"])
def test_a_step_is_the_formula_written_out(estimate, taught):
    actors = cast()
    for who in ("student", "teacher"):
        actors[who].double()
    told, _, grade = rollout(copy.deepcopy(actors))
    run = play(actors=copy.deepcopy(actors), estimate=estimate, taught=taught, beta=0.3)
    student, teacher = actors["student"], actors["teacher"]
    outcome, distil, count = 0.0, 0.0, 0
    for i in range(len(told.ids)):
        row, many, group = told.ids[i][told.there[i]], int(told.mask[i].sum()), grade[i // 4]
        logp, ref = (net(input_ids=row[None, :-1]).logits[0].log_softmax(-1)[-many:].gather(1, row[-many:, None])[:, 0]
                     for net in (student, teacher))
        gain = (group[i % 4] - group.mean()) / (group.std() + 1e-4)
        use = {"all": True, "response": group[i % 4] == 0, "group": (group == 0).all()}[taught]
        r = ref.detach() - logp
        outcome = outcome - gain * logp.sum()                                # ρ = 1: the gradient of ρ·A is A·∇log π
        distil = distil + 0.3 * bool(use) * {"k1": -r, "k2": r**2 / 2, "k3": r.exp() - r - 1}[estimate].sum()
        count += many
    want = flat(torch.autograd.grad((outcome + distil) / count, moved(student), allow_unused=True))
    assert run.terms[0]["distil"] == pytest.approx(distil.item() / count, abs=1e-9)
    assert torch.allclose(flat(run.slopes[0]), want, atol=1e-7) and want.abs().max() > 1e-3


def test_without_beta_it_is_grpo():
    actors = cast()
    told, _, grade = rollout(copy.deepcopy(actors))
    run = play(actors=copy.deepcopy(actors), **ALONE)
    logp = text.log_probs(actors["student"], told)
    loss = grpo.loss(logp, logp.detach(), grpo.advantage(grade).flatten(), told.mask)
    assert torch.equal(flat(run.slopes[0]), flat(torch.autograd.grad(loss, moved(actors["student"]))))
    assert "distil" not in run.terms[0]


def test_a_teacher_that_is_the_student_teaches_nothing():
    run = play(actors=cast(same=True), outcome=0.0, beta=1.0)
    assert abs(run.terms[0]["distil"]) < 1e-9 and flat(run.slopes[0]).abs().max() < 1e-5


def test_right_answers_are_left_alone_and_rewards_that_are_equal_say_nothing():
    right = play(actors=cast(reward=lambda said, gold: torch.ones(said.shape[:2])), taught="response", beta=1.0)
    assert flat(right.slopes[0]).abs().max() == 0
    wrong = play(actors=cast(reward=lambda said, gold: torch.zeros(said.shape[:2])), taught="response", beta=1.0)
    all_ = play(actors=cast(reward=lambda said, gold: torch.zeros(said.shape[:2])), outcome=0.0, beta=1.0)
    assert torch.equal(flat(wrong.slopes[0]), flat(all_.slopes[0])) and flat(all_.slopes[0]).abs().max() > 0


def test_masks_by_the_rewards():
    reward = torch.tensor([[1.0, 0, 0], [0, 0, 0]])
    assert TAUGHT["response"](reward).tolist() == [[0, 1, 1], [1, 1, 1]]
    assert TAUGHT["group"](reward).tolist() == [[0, 0, 0], [1, 1, 1]] and TAUGHT["all"](reward).all()


def test_beta_falls_by_a_constant_to_its_least_and_stays():
    run = Watched()
    KDRL(steps=6, beta=1.0, fall=0.3, beta_least=0.2, outcome=0.0, **FAST)(run, **cast())
    unit = Watched()
    KDRL(steps=6, beta=1.0, fall=0.0, beta_least=1.0, outcome=0.0, **FAST)(unit, **cast())
    found = [a["distil"] / b["distil"] for a, b in zip(run.terms, unit.terms)]
    assert found == pytest.approx([1.0, 0.7, 0.4, 0.2, 0.2, 0.2], rel=1e-5)


def test_in_the_reward_the_log_ratio_is_part_of_the_advantage():
    actors = cast()
    told, _, grade = rollout(copy.deepcopy(actors))
    run = play(actors=copy.deepcopy(actors), shaped=True, beta=0.5, std=False)
    logp, ref = (text.log_probs(actors[who], told) for who in ("student", "teacher"))
    shaped = grade + 0.5 * ((ref - logp) * told.mask).sum(1).div(told.mask.sum(1)).view_as(grade).detach()
    gain = (shaped - shaped.mean(1, keepdim=True)).flatten()
    want = torch.autograd.grad(-(gain[:, None] * logp).sum() / told.mask.sum(), moved(actors["student"]))
    assert torch.allclose(flat(run.slopes[0]), flat(want), atol=1e-5) and "distil" not in run.terms[0]


def test_further_updates_on_the_same_answers_are_clipped():
    """Of three updates the first has ratio one, so that its value is minus the mean advantage; old log-probabilities stay."""
    class Moved(Run):
        def update(self, opt, **terms):
            seen.append(terms["outcome"].item())
            return super().update(opt, **terms)

    seen, run = [], Moved()
    KDRL(steps=1, updates=3, **{**FAST, "lr": 0.005}, **ALONE)(run, **cast())
    told, _, grade = rollout(cast())
    first = -(grpo.advantage(grade).flatten()[:, None] * told.mask).sum() / told.mask.sum()
    assert len(seen) == 3 and seen[0] == pytest.approx(first.item(), abs=1e-6)
    assert seen[1] < seen[0] - 1e-3 and seen[2] != seen[1]


def test_the_teacher_is_never_moved():
    actors = cast()
    before = [p.clone() for p in actors["teacher"].parameters()]
    KDRL(steps=2, **FAST)(Run(), **actors)
    assert all(map(torch.equal, before, actors["teacher"].parameters()))


def test_unknown_words_and_parts_of_a_batch_are_refused():
    with pytest.raises(Refused, match="none of k1, k2, k3"):
        play(estimate="k4")
    with pytest.raises(Refused, match="did you mean 'group'"):
        play(taught="groups")
    with pytest.raises(Refused, match="accumulate"):
        KDRL(steps=1, **FAST)(Run(accumulate=2), **cast())


@pytest.mark.parametrize("family", ["GPT2", "Llama"])
def test_models_of_transformers_learn_by_it(family):
    from parts.test_text import foreign

    student, teacher = foreign(family), foreign(family)
    prompts = torch.randint(2, 13, (8, 4))
    prompts[::3, 0] = PAD
    reward = verifiers.graded(lambda ids: " ".join(map(str, ids)), verifiers.matching(r"(\d+)"))
    before = copy.deepcopy(student.state_dict())
    run = Run()
    data = TensorDataset(prompts, prompts[:, 1])
    made = KDRL(steps=2, **FAST)(run, student=student, teacher=teacher, data=data, reward=reward)
    assert any(not torch.equal(before[k], v) for k, v in made.state_dict().items()) and len(run.history) == 2


# --- the arena -------------------------------------------------------------------------------------------------------

def test_the_rule_reads_digits_from_the_last_and_wants_an_end():
    from stillroom.arenas.sums import ids, read

    assert read(ids("290.")) == "092" and read(ids("2901")) == "" and read(ids(".__")) == ""
    grade = verifiers.graded(read, verifiers.number)
    said = torch.tensor([[ids("290."), ids("29._"), ids("291."), ids("2900")]])
    assert grade(said, torch.tensor([92])).tolist() == [[1, 1, 0, 0]]


def test_queries_are_apart_and_a_name_is_read_whole_or_not_at_all():
    from stillroom.arenas import intents
    from stillroom.zoo.shared import home

    try:
        home("clinc150")
    except Refused:
        pytest.skip("CLINC150 is not here")
    parts = intents.ground(3)
    shown = {name: {tuple(row) for row in getattr(parts, name).prompts.tolist()} for name in ("taught", "train", "test")}
    assert [len(getattr(parts, name).gold) for name in shown] == [350, 2650, 900]
    assert len(shown["train"] & shown["taught"]) < 30                    # cut to twelve known words, some of them are alike
    told = parts.test.answers
    assert intents.right(told[:, None], parts.test.gold).min() == 1      # each answer is its own text
    assert intents.right(told.roll(1, 0)[:, None], parts.test.gold).mean() < 1
    assert intents.right(torch.where(told == intents.STOP, intents.PAD, told)[:, None], parts.test.gold).max() == 0   # no end
