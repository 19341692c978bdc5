"""PromptSRC: its four terms written out, its Gaussian mean of tokens, what it may not touch."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import TensorDataset

from stillroom.errors import Refused
from stillroom.models.towers import TextTower, TwoTowers
from stillroom.models.vit import ViT
from stillroom.recipes.vision_language.prompt_src import PromptSRC, entering
from stillroom.run import Run

TEXTS = torch.tensor([[[1, 3, 4, c, 2], [1, 4, 3, c, 2]] for c in (5, 6, 7, 8)])     # of four classes, two sentences each


class Watched(Run):
    """A run that shows what is kept, and the tokens after every update."""

    def keep(self, **things):
        self.kept, self.path = things, []
        super().keep(**things)
        self.before = {name: copy.deepcopy(things[name]) for name in ("see", "read")}

    def update(self, opt, **terms):
        moved = super().update(opt, **terms)
        self.path.append((self.kept["see"].tokens.detach().clone(), self.kept["read"].tokens.detach().clone()))
        return moved


@pytest.fixture
def ground():
    torch.manual_seed(0)
    pair = TwoTowers(ViT(image=8, patch=4, channels=1, dim=8, depth=3, heads=2, classes=8), TextTower(9, 5, 8, 2, 2, 8)).eval()
    return pair, TensorDataset(torch.rand(12, 1, 8, 8), torch.tensor([1, 3] * 6))    # classes 0 and 2 are never shown


def play(ground, run, **fields):
    pair, data = ground
    fields = {"count": 2, "batch": 12, "steps": 1, "warmup": 0.0, "lr": 0.05, "decay": 0.0, **fields}
    return PromptSRC(**fields)(run, student=pair, data=data, texts=TEXTS)


def test_the_terms_are_the_papers(ground):
    pair, run = ground[0], Watched()
    play((copy.deepcopy(pair), ground[1]), run, image=3.0, text=5.0, scores=7.0)
    pair, (x, y) = pair.double(), ground[1].tensors
    see, read = (run.before[name].double() for name in ("see", "read"))
    first, scale = TEXTS[[1, 3], 0], pair.scale.exp()
    u, u_0 = (F.normalize(net(x.double()), dim=-1) for net in (see, pair.image))
    w = F.normalize(read(first), dim=-1)
    w_0 = F.normalize((pair.text(first) + pair.text(TEXTS[[1, 3], 1])) / 2, dim=-1)
    z, z_0 = scale * u @ w.T, scale * u_0 @ w_0.T
    labels = -sum(z[i].softmax(0)[int(y[i] == 3)].log() for i in range(12)) / 12
    scores = sum((q * (q / p).log()).sum() for q, p in zip(z_0.softmax(1), z.softmax(1), strict=True)) / z.numel()
    found = run.history[0]
    assert found["labels"] == pytest.approx(labels.item(), rel=1e-4)
    assert found["image"] == pytest.approx(3 * (u - u_0).abs().mean().item(), rel=1e-4)
    assert found["text"] == pytest.approx(5 * (w - w_0).abs().mean().item(), rel=1e-4)
    assert found["scores"] == pytest.approx(7 * scores.item(), rel=1e-3)


def test_the_tokens_are_the_gaussian_mean_of_their_moments(ground):
    """The release's weights: the density of N(15, 1) at epochs 1 to 20, over their sum; here ten moments of two updates."""
    run = Watched()
    made = play(ground, run, steps=20, moments=10, peak=0.7, spread=0.1)
    density = [math.exp(-((n - 7) ** 2) / 2) / math.sqrt(2 * math.pi) for n in range(1, 11)]
    for place, tokens in enumerate((made.image.tokens, made.text.tokens)):
        naive = sum(d / sum(density) * run.path[2 * n + 1][place] for n, d in enumerate(density))
        assert torch.allclose(tokens, naive, atol=1e-6) and not torch.allclose(tokens, run.path[-1][place], atol=1e-6)


def test_one_moment_is_the_end_and_shares_are_finite_from_the_start(ground):
    run = Watched()
    made = play(ground, run, steps=6, moments=1)
    assert torch.equal(made.image.tokens, run.path[-1][0])
    shares = [entering(n, 20, 0.75, 0.05) for n in range(1, 21)]
    assert shares[0] == 1 and all(0 < share <= 1 for share in shares)


def test_only_tokens_learn(ground):
    pair, state, run = ground[0], copy.deepcopy(ground[0].state_dict()), Watched()
    made = play(ground, run, steps=3)
    assert {n for n, p in made.named_parameters() if p.requires_grad} == {"image.tokens", "text.tokens", "scale"}
    assert all(torch.equal(state[k], v) for k, v in pair.state_dict().items())
    for name in ("see", "read"):
        assert not torch.equal(run.before[name].tokens, run.kept[name].tokens)
    assert made(ground[1].tensors[0], TEXTS[:, 0]).shape == (12, 4), "classes that were not shown have a vector, too"


def test_labels_without_a_text_are_refused(ground):
    pair, (x, y) = ground[0], ground[1].tensors
    with pytest.raises(Refused, match="labels of class 4, and 4 classes have texts"):
        play((pair, TensorDataset(x, y + 1)), Run())
