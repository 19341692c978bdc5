"""The judge of a distilled data set: what fresh networks learn from it alone; and real images to hold it against."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Module
from torch.utils.data import TensorDataset

from stillroom.batches import whole
from stillroom.measure.classification import accuracy
from stillroom.parts import optim, siamese
from stillroom.parts.flat import fresh
from stillroom.parts.schedules import steps as falling
from stillroom.run import Run


def teaches(pixels: Tensor, labels: Tensor, rate: float, *, model: Module, test, steps: int, nets: int = 1, augment: str = "",
            batch: int = 256, seed: int = 0) -> tuple[float, float]:
    """Test accuracy in percent, mean and deviation over `nets` networks that are drawn anew and taught by these images alone.

    pixels [images, channels, height, width]; labels [images] of classes or [images, classes] of probabilities. SGD at `rate`,
    a tenth of it from the middle on, momentum 0.9, decay 5e-4 (Cazenavette et al. 2022, as in the authors' evaluation).
    """
    scores, data = [], TensorDataset(pixels.detach().cpu(), labels.detach().cpu())
    for number in range(nets):
        torch.manual_seed(10_000 * seed + number)
        net = fresh(model)
        run, opt = Run(seed=seed + number), optim.sgd(net, lr=falling(rate, 0.5), decay=5e-4)
        run.keep(net=net, opt=opt)
        for x, y in run.loop(data, batch=min(batch, len(data)), steps=steps):
            run.update(opt, labels=F.cross_entropy(net(siamese.augment(x, siamese.draw(len(x), augment, x.device))), y))
        scores.append(accuracy(net, test))
    found = torch.tensor(scores)
    return found.mean().item(), found.std(correction=0).item()


def some_of_each(data, per_class: int) -> tuple[Tensor, Tensor]:
    """Real images of every class, drawn at random: pixels [images, channels, height, width] and classes [images]."""
    x, y = whole(data)
    order = torch.randperm(len(y))
    chosen = torch.cat([order[y[order] == c][:per_class] for c in y.unique()])
    return x[chosen].clone(), y[chosen].clone()
