"""Through what: heads and adapters between a network and what it is compared with."""

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import Module

from stillroom.batches import whole
from stillroom.errors import Refused
from stillroom.parts.places import classifier


class TwoHeads(Module):
    """A classifier that answers to two masters: its feature, and two linear heads on it, one for the labels, one for a teacher.

    It reads as a classifier: its output is log[α·softmax(z_labels) + (1 − α)·softmax(z_teacher/β)], [batch, classes]
    (Kang et al. 2025, eq. 6), whose softmax is the mixture itself.

    model   ends in a linear layer; that layer is taken out of it, and both heads begin as copies of it
    x       any inputs of it, [batch, …]
    alpha   share of the labels' head, in [0, 1]
    beta    temperature of the teacher's head, above 0
    """

    def __init__(self, model: Module, x: Tensor, alpha: float = 0.5, beta: float = 0.5):
        super().__init__()
        self.body, self.labels = apart(model, x)
        self.teacher = copy.deepcopy(self.labels)
        self.mix = nn.Buffer(torch.tensor([alpha, beta]))
        if "origin" in vars(model):                    # built again from the same model
            self.origin = {"spec": "part:two_heads", "model": model.origin, "sample": list(x.shape[1:])}

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits for the labels and logits for the teacher, [batch, classes] each."""
        feature = self.body(x)
        return self.labels(feature), self.teacher(feature)

    def forward(self, x: Tensor) -> Tensor:
        return self.mixed(*self.heads(x), *self.mix)

    @staticmethod
    def mixed(labels: Tensor, teacher: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
        """log[α·softmax(labels) + (1 − α)·softmax(teacher/β)]; probabilities are mixed, not logits."""
        first, second = labels.float().log_softmax(-1), (teacher.float() / beta).log_softmax(-1)
        return torch.stack([first + alpha.log(), second + (1 - alpha).log()]).logsumexp(0)


@torch.no_grad()
def choose_mix(model: TwoHeads, valid, alphas: Sequence[float] = tuple(i / 20 for i in range(21)),
               betas: Sequence[float] = (0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 4.0)) -> tuple[float, float]:
    """Set (α, β) to the pair of the grid that is right most often on validation samples, and return it; ties go to the likelier.

    valid: data set of (x, y) with labels, neither trained nor tested on. The grid is that of Kang et al. 2025, few-shot.
    """
    x, y = (t.to(model.mix.device) for t in whole(valid))
    heads = model.eval().heads(x)

    def score(pair: tuple[float, float]) -> tuple[float, float]:
        logs = model.mixed(*heads, *torch.tensor(pair).to(model.mix))
        return (logs.argmax(-1) == y).float().mean().item(), logs.gather(1, y[:, None]).mean().item()

    best = max(((a, b) for b in betas for a in alphas), key=score)
    model.mix.copy_(torch.tensor(best))
    return best


class Subclasses(Module):
    """A classifier that tells `count` subclasses of every class apart, and reads as one of classes: its output is log p(class),
    p(class) = Σ over its subclasses of the softmax over all of them, [batch, classes].

    model   ends in a linear layer; a new one of classes · count outputs takes its place
    x       any inputs of it, [batch, …]
    """

    def __init__(self, model: Module, x: Tensor, count: int):
        super().__init__()
        self.body, last = apart(model, x)
        self.count = count
        self.head = nn.Linear(last.in_features, last.out_features * count, device=last.weight.device, dtype=last.weight.dtype)
        if "origin" in vars(model):                    # built again from the same model
            self.origin = {"spec": "part:subclasses", "model": model.origin, "sample": list(x.shape[1:]), "count": count}

    def each(self, x: Tensor) -> Tensor:
        """log-probability of every subclass, [batch, classes, count]; over both they sum to one."""
        return self.head(self.body(x)).float().log_softmax(-1).unflatten(-1, (-1, self.count))

    def forward(self, x: Tensor) -> Tensor:
        return self.each(x).logsumexp(-1)


class PrototypeHead(Module):
    """Features [..., dim] → scores of unit-length features against unit-length prototypes, [..., prototypes], each in [−1, 1].

    Three layers with GELU, dim → hidden → hidden → bottleneck, l2-normalised, then a linear layer without bias whose rows are
    normalised (Caron et al. 2021, appendix C: weight normalisation with its magnitude fixed at 1).
    """

    def __init__(self, dim: int, prototypes: int = 65_536, hidden: int = 2048, bottleneck: int = 256):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(),
                                 nn.Linear(hidden, bottleneck))
        self.prototypes = nn.Parameter(torch.empty(prototypes, bottleneck))
        for layer in self.mlp[::2]:
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
        nn.init.kaiming_uniform_(self.prototypes, a=5**0.5)

    def forward(self, x: Tensor, learn: bool = True) -> Tensor:
        """`learn=False`: no gradient reaches the prototypes."""
        prototypes = self.prototypes if learn else self.prototypes.detach()
        return F.linear(F.normalize(self.mlp(x), dim=-1), F.normalize(prototypes, dim=-1))


class Proxies(Module):
    """A classifier by direction: logits are cosines of its feature with a proxy of each class, over a temperature.

    model        ends in a linear layer; that layer is taken out of it, and its rows become the proxies; its bias is gone
    x            any inputs of it, [batch, …]
    temperature  τ, above 0
    """

    def __init__(self, model: Module, x: Tensor, temperature: float = 0.09):
        super().__init__()
        self.body, last = apart(model, x)
        self.proxies = nn.Parameter(last.weight.detach().clone())          # [classes, dim]
        self.temperature = temperature
        if "origin" in vars(model):                    # built again from the same model
            self.origin = {"spec": "part:proxies", "model": model.origin, "sample": list(x.shape[1:]), "temperature": temperature}

    def forward(self, x: Tensor) -> Tensor:
        return self.scores(self.body(x))

    def scores(self, feature: Tensor) -> Tensor:
        """Logits [batch, classes] of features [batch, dim]."""
        return F.linear(F.normalize(feature.to(self.proxies)), F.normalize(self.proxies)) / self.temperature


class ClassVectors(Module):
    """A classifier whose classes are directions that stay: logits are cosines of its feature with the vector of each class, times
    a factor (CLIP's zero-shot classifier, Radford et al. 2021, sec. 3.1).

    body      inputs [batch, …] → features [batch, dim]
    vectors   [classes, width], of any length above 0
    scale     the factor
    dim       of features that are to be projected: two layers lead from `dim` to `width`; 0: they have the width already
    """

    def __init__(self, body: Module, vectors: Tensor, scale: Tensor, dim: int = 0):
        super().__init__()
        classes, width = vectors.shape
        layers = (nn.Linear(dim, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, width)) if dim else ()
        self.body, self.project = body, nn.Sequential(*layers).to(vectors)
        self.vectors = nn.Buffer(F.normalize(vectors.detach(), dim=-1))
        self.scale = nn.Buffer(scale.detach().clone())
        if "origin" in vars(body):                     # built again from the same body
            self.origin = {"spec": "part:class_vectors", "model": body.origin, "shape": [classes, width], "dim": dim}

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * F.linear(F.normalize(self.project(self.body(x)), dim=-1), self.vectors)


def apart(model: Module, x: Tensor) -> tuple[Module, nn.Linear]:
    """The network without the linear layer that makes its logits, taken out of it for good, and that layer.

    x: any inputs of it, [batch, …]. Raises `Refused` when the network ends in something else.
    """
    name = classifier(model, x)
    last = model.get_submodule(name)
    assert isinstance(last, nn.Linear)
    if name:
        model.set_submodule(name, nn.Identity())
    return (model if name else nn.Identity()), last


def headless(model: Module, x: Tensor) -> tuple[Module, int]:
    """The network without the linear layer that makes its logits, taken out of it for good, and the width of its feature.

    x: any inputs of it, [batch, …]. A network that ends in something else, in features [batch, width], stays as it is.
    Raises `Refused` when that output is not one vector a sample.
    """
    try:
        name = classifier(model, x)
    except Refused:
        name = ""
    if name:
        width = model.get_submodule(name).in_features
        model.set_submodule(name, nn.Identity())
        return model, width
    modes = [(m, m.training) for m in model.modules()]
    with torch.no_grad():
        out = model.eval()(x)
    for m, mode in modes:
        m.training = mode
    if not isinstance(out, Tensor) or out.ndim != 2:
        raise Refused(f"{type(model).__name__} does not end in one vector a sample", "give a network images → [batch, width]")
    return model, out.shape[-1]
