"""What a better replay must beat: cross-entropy over all classes, of new and remembered samples."""

from dataclasses import dataclass

import torch
from torch.nn import Module
from torch.utils.data import TensorDataset

from stillroom.batches import to_device, whole
from stillroom.parts import losses, optim, views
from stillroom.parts.heads import Proxies
from stillroom.parts.memory import Memory
from stillroom.recipe import Recipe
from stillroom.run import Run


@dataclass(frozen=True, kw_only=True)
class Replay(Recipe):
    """Experience replay (Chaudhry et al. 2019) with the classifier and the views of HPCR."""

    memory: int = 1000         # samples that are remembered; 0: none
    replay: int = 10           # of them in a step
    temperature: float = 0.09  # of cosines
    least: float = 0.2         # smallest share of an image in its changed view
    lr: float = 0.1            # of SGD without momentum
    batch: int = 10            # new samples per step
    steps: int = 500           # updates of a task, at most

    def distill(self, run: Run, student: Module, tasks: list[TensorDataset]) -> Module:
        x, y = to_device(whole(tasks[0], 2), run.device)
        student = Proxies(student, x, self.temperature)
        memory, opt = Memory(max(1, self.memory), x=x, y=y), optim.sgd(student, lr=self.lr, momentum=0.0)
        run.keep(student=student, memory=memory, opt=opt)
        for k, task in enumerate(tasks):
            updates = min(self.steps, len(task) // self.batch)
            for x, y in run.loop(task, batch=self.batch, steps=updates, name=f"task{k}", whole=True):
                then_x, then_y = memory.draw(self.replay if self.memory else 0)
                images, labels = torch.cat([x, then_x]), torch.cat([y, then_y])
                changed = views.crops(images, 1, (self.least, 1.0))[0]
                run.update(opt, labels=losses.labels(student(torch.cat([images, changed])), labels.repeat(2)))
                memory.add(x=x, y=y)
        return student
