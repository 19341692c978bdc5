"""BAI: its two mergers are the formula, its limits exact; what becomes of actors that begin so is measured in its arena.
`merged` has parts/test_merging.py, the curves have test_curves.py."""

import copy

import pytest
import torch
from torch import nn

from stillroom.errors import Refused
from stillroom.models.gpt import GPT
from stillroom.parts.merging import balanced, merged
from stillroom.recipes.language.balanced_actor_init import BalancedActorInit
from stillroom.run import Run


def family(make=lambda: GPT(9, dim=16, heads=2, length=8, eos=1)):
    torch.manual_seed(0)
    base = make()
    nets = {name: copy.deepcopy(base) for name in ("base", "instructed", "distilled")}
    with torch.no_grad():
        for name in ("instructed", "distilled"):
            for p in nets[name].parameters():
                p.add_(0.1 * torch.randn_like(p))
    return nets


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.parametrize("alpha, share", [(0.1, 0.5), (0.6, 0.3)])
def test_it_is_the_merger_of_three_by_its_task_vectors(alpha, share):
    nets = family()
    made = BalancedActorInit(alpha=alpha, share=share)(Run(), **nets)
    for name, p in made.named_parameters():
        m, i, d = (dict(nets[who].named_parameters())[name].double() for who in ("base", "instructed", "distilled"))
        assert torch.allclose(p.double(), m + (1 - alpha) * (share * (i - m) + (1 - share) * (d - m)), atol=1e-6)
    once = merged(tuple(nets.values()), balanced(alpha, share))
    assert all(torch.allclose(p, q, atol=1e-6) for p, q in zip(made.parameters(), once.parameters(), strict=True))


def test_limits_are_exact():
    nets = family()
    for alpha, share, name in ((1.0, 0.5, "base"), (0.0, 1.0, "instructed"), (0.0, 0.0, "distilled")):
        assert same(BalancedActorInit(alpha=alpha, share=share)(Run(), **nets), nets[name])
    one = nets["base"]
    assert same(BalancedActorInit()(Run(), base=one, instructed=copy.deepcopy(one), distilled=copy.deepcopy(one)), one)


def test_the_parents_stay_as_they_are_and_the_actor_can_learn():
    nets = family()
    before = copy.deepcopy(nets)
    made = BalancedActorInit()(Run(), **nets)
    for p in made.parameters():
        assert p.requires_grad
        p.data.zero_()
    assert all(same(before[name], nets[name]) for name in nets)


def test_networks_of_other_shapes_are_refused():
    nets = family() | {"distilled": GPT(10, dim=16, heads=2, length=8, eos=1)}
    with pytest.raises(Refused, match="one vocabulary"):
        BalancedActorInit()(Run(), **nets)
    with pytest.raises(Refused, match=r"alpha=1\.5"):
        BalancedActorInit(alpha=1.5)(Run(), **family(lambda: nn.Linear(2, 2)))


def test_answers_are_read_whole_or_not_at_all():
    from stillroom.arenas.answers import LENGTH, SIGNS, at_once, read, rewarded, working
    from stillroom.parts import verifiers

    assert working(47, 85) == "7+5=12,4+8+1=13:231." and len(working(47, 85)) == LENGTH - 1 and at_once(7, 8) == "510."
    ids = {words: [SIGNS.index(sign) for sign in words] for words in (working(47, 85), "231.", "231", "1=13:231.", ":.")}
    assert [read(row) for row in ids.values()] == ["132", "132", "", "132", ""]
    said = torch.tensor([[(row + [0] * LENGTH)[:LENGTH] for row in ids.values()]])
    paid = rewarded(verifiers.graded(read, verifiers.number), said, [132])
    assert torch.allclose(paid, torch.tensor([[0.8, 0.96, -0.03, 0.91, -0.02]]))


def test_a_name_is_read_behind_its_domain_or_alone():
    from stillroom.arenas import answers, intents
    from stillroom.zoo.shared import home

    try:
        home("clinc150")
    except Refused:
        pytest.skip("CLINC150 is not here")
    parts = answers.ground(3)
    for told in (parts.short, parts.long):
        assert parts.right(told[:, None], parts.gold).min() == 1
        assert parts.right(torch.where(told == intents.STOP, intents.PAD, told)[:, None], parts.gold).max() == 0     # no end
    assert (parts.long != intents.PAD).sum() > (parts.short != intents.PAD).sum() + 2 * len(parts.long) - 1
