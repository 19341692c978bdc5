"""The baseline of everything: the student alone, taught by labels. How teachers are made, too."""

from dataclasses import dataclass

from torch.nn import Module
from torch.utils.data import Dataset

from stillroom.parts import losses, optim
from stillroom.parts.pairs import by_label
from stillroom.parts.schedules import cosine
from stillroom.recipe import Recipe
from stillroom.run import Run


@dataclass(frozen=True, kw_only=True)
class Alone(Recipe):
    """Cross-entropy with the labels and nothing else; samples without a label are left out."""

    lr: float = 0.05          # of SGD with momentum 0.9, cosine to 0
    decay: float = 5e-4       # weight decay
    smoothing: float = 0.0    # of the labels
    batch: int = 64           # samples per step
    steps: int = 60_000       # updates

    def distill(self, run: Run, student: Module, data: Dataset) -> Module:
        data, _ = by_label(data)
        opt = optim.sgd(student, lr=cosine(self.lr), decay=self.decay)
        run.keep(student=student, opt=opt)
        for x, y in run.loop(data, batch=self.batch, steps=self.steps):
            run.update(opt, labels=losses.labels(student(x), y, self.smoothing))
        return student
