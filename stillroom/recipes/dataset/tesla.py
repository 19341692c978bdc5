"""TESLA: Scaling Up Dataset Distillation to ImageNet-1K with Constant Memory

Cui, Wang, Si, Hsieh — ICML 2023 — https://arxiv.org/abs/2211.10586

    teacher   the weights that experts pass through while they learn the real data
    reads     weights, as one vector
    compares  where a student gets to on the synthetic data with where the expert got to, over how far it came
    views     drawn once for every inner step, the same when it is walked again
    data      labelled
    learns    the pixels of a few images a class, and the rate at which a student learns from them
    stages    experts; matching, in memory that does not grow with the inner steps
"""

import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Module
from torch.utils.data import Dataset

from stillroom.arenas.synthetic import VIEWS, synthetic
from stillroom.measure import Proof
from stillroom.measure.synthetic import some_of_each
from stillroom.parts import optim, siamese, whiten
from stillroom.parts.flat import flat_call, flatten, fresh
from stillroom.parts.teachers import Experts
from stillroom.recipe import Recipe
from stillroom.run import Run


@dataclass(frozen=True, kw_only=True)
class TESLA(Recipe):
    per_class: int = 10           # synthetic images a class
    inner: int = 30               # N, student steps on synthetic data
    span: int = 2                 # M, expert epochs to be matched by them
    before: int = 20              # latest expert epoch to start from
    inner_batch: int = 1000       # synthetic images in a student step, at most all
    inner_rate: float = 0.01      # first value of the student's learnt rate, β
    soft: bool = False            # labels by the expert at the end of the segment; helps from a hundred classes on
    augment: str = "color_crop_cutout_flip_scale_rotate"   # kinds of view, one of which is drawn at a time; "" for none
    zca: float = 0.0              # ε of ZCA whitening, 0.1 on CIFAR: all images are whitened, the made ones too; 0 for none
    lr: float = 100.0             # of the pixels, SGD with momentum 0.5
    lr_rate: float = 1e-5         # of the student's rate, SGD with momentum 0.5
    steps: int = 5000             # matched segments
    experts: int = 100            # networks taught on the real data
    epoch: int = 196              # updates between two snapshots of an expert
    lr_expert: float = 0.01       # of the experts, SGD without momentum
    batch_expert: int = 256       # real images in an expert's step
    steps_expert: int = 9800      # updates of an expert: 50 epochs

    def distill(self, run: Run, model: Module, data: Dataset, experts: Experts | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Returns pixels [images, channels, height, width], labels (classes, or [images, classes] if soft), and the rate."""
        data = whiten.whitened(data, self.zca) if self.zca else data
        experts = experts or self.teach(run, model, data)
        pixels, labels = map(run.place, some_of_each(data, self.per_class))
        rate = torch.tensor(self.inner_rate, device=run.device, requires_grad=True)
        opt = optim.sgd(pixels.requires_grad_(), lr=self.lr, momentum=0.5)
        opt_rate = optim.sgd(rate, lr=self.lr_rate, momentum=0.5)
        run.keep(pixels=pixels, rate=rate, opt=opt, opt_rate=opt_rate)

        for _ in run.loop(steps=self.steps):
            start, end = (w.to(run.device) for w in experts.segment(self.span, self.before))    # [weights]
            target = flat_call(model, end, pixels).softmax(-1).detach() if self.soft else labels     # [images, …]
            steps = [(draw, siamese.draw(len(draw), self.augment, run.device)) for draw in self.draws(len(pixels))]
            weights, total = start, torch.zeros_like(start)
            for draw, views in steps:                            # walk, keeping no graph
                total += (g := self.gradient(model, weights, pixels, target, draw, views))
                weights = weights - rate.detach() * g
            distance = (start - end).square().sum()
            pull, weights = 2 * rate.detach() * (rate.detach() * total - (start - end)) / distance, start
            for draw, views in steps:                            # walk the same way again, one graph at a time
                g = self.gradient(model, weights, pixels, target, draw, views, create_graph=True)
                (pull * g).sum().backward(inputs=[pixels])       # not a matrix product: those lose precision under autocast
                weights = weights - rate.detach() * g.detach()
            run.update(opt)                                      # on the gradients gathered above
            run.update(opt_rate, match=(start - rate * total - end).square().sum() / distance)
        labels = flat_call(model, experts.last().to(run.device), pixels).softmax(-1).detach() if self.soft else labels
        return pixels.detach(), labels, rate.detach()

    def teach(self, run: Run, model: Module, data: Dataset) -> Experts:
        """Experts on the real data, one after the other; of each the weights after every epoch, in a file if the run has any."""
        net, experts = copy.deepcopy(model), Experts(folder=run.folder and run.folder / "experts")
        path, opt = [], optim.sgd(net, lr=self.lr_expert, momentum=0.0)
        run.keep(expert=net, path=path, opt_expert=opt)
        for x, y in run.loop(data, batch=self.batch_expert, steps=self.experts * self.steps_expert, name="experts", whole=True):
            number, at = divmod(run.step, self.steps_expert)
            if at == 0:
                fresh(net)
            if at % self.epoch == 0:
                path.append(flatten(net).cpu())
            run.update(opt, labels=F.cross_entropy(net(siamese.augment(x, siamese.draw(len(x), self.augment, run.device))), y))
            if at + 1 == self.steps_expert:
                experts.put(number, [*path, flatten(net).cpu()])
                path.clear()                                     # the checkpoint does not hold what has its file
        return experts.first(self.experts)

    def gradient(self, model, weights, pixels, target, draw, views, create_graph=False) -> Tensor:
        """∇_weights of the inner loss on one draw of the synthetic images, [weights]."""
        weights = weights.detach().requires_grad_()
        loss = F.cross_entropy(flat_call(model, weights, siamese.augment(pixels[draw], views)), target[draw])
        return torch.autograd.grad(loss, weights, create_graph=create_graph)[0]

    def draws(self, images: int) -> list[Tensor]:
        """Images of each inner step, [images]: without replacement, until all had their turn."""
        passes = -(-self.inner * self.inner_batch // images)
        return [draw for _ in range(passes) for draw in torch.randperm(images).split(self.inner_batch)][: self.inner]


def trial(seed=0):
    """Handwritten digits, one image a class."""
    return TESLA(per_class=1, inner=10, before=4, augment=VIEWS, inner_rate=0.05, lr=20.0, lr_rate=1e-4, steps=100,
                 experts=6, epoch=5, lr_expert=0.1, steps_expert=40), synthetic(seed)


def proof(made, cast):
    """Networks that never saw the real images learn more from ten made ones than from ten real ones."""
    return Proof(cast.teaches(*made), beats=cast.drawn(), unit="accuracy", baseline="the best of five draws of ten real images",
                 also={"rate": made[2].item(), "all real images": cast.everything()})
