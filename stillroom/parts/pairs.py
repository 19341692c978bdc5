"""A labelled and an unlabelled sample at a time."""

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset, TensorDataset

from stillroom.batches import ids, targets
from stillroom.errors import Refused
from stillroom.parts.losses.logits import UNLABELLED


def by_label(data) -> tuple[TensorDataset, TensorDataset] | tuple[Subset, Subset]:
    """The samples of a data set of (x, y) that have a label, and those that have none. Reads `data.targets` where it exists; None
    says that answers are no classes but masks or boxes: then all samples count as labelled."""
    if getattr(data, "targets", ...) is None:
        return Subset(data, range(len(data))), Subset(data, ())
    if isinstance(data, TensorDataset):
        has = data.tensors[1] != UNLABELLED
        return _some(data, has), _some(data, ~has)
    has = targets(data) != UNLABELLED
    return Subset(data, has.nonzero().flatten().tolist()), Subset(data, (~has).nonzero().flatten().tolist())


def _some(data: TensorDataset, which: Tensor) -> TensorDataset:
    part = TensorDataset(*(t[which] for t in data.tensors))
    part.ids = ids(data)[which]                      # type: ignore[attr-defined]
    return part


def pairs(data) -> Dataset:
    """(x, y) of a labelled and x of an unlabelled sample: (x_l, y, x_u), as many as the larger of the two sets has.

    The smaller set is passed through over and over, so that each of its samples comes equally often; without an unlabelled
    sample the labelled ones take their place. Both inputs of a batch carry the numbers of their samples, for a stored teacher.
    Raises `Refused` when no sample has a label.
    """
    labelled, unlabelled = by_label(data)
    if not len(labelled):
        raise Refused("no sample of the data has a label", "label a few of each class, or use a method that needs none: kd, ssld")
    both = _Pairs(labelled, unlabelled if len(unlabelled) else labelled)
    if isinstance(data, TensorDataset):
        at = torch.arange(len(both))
        x, y = both.labelled[at % len(both.labelled)][:2]
        held = TensorDataset(x, y, both.unlabelled[at % len(both.unlabelled)][0])
        held.numbered = both.numbered                # type: ignore[attr-defined]
        return held
    return both


class _Pairs(Dataset):
    def __init__(self, labelled, unlabelled):
        self.labelled, self.unlabelled = labelled, unlabelled
        at = torch.arange(len(self))
        self.numbered = ids(labelled)[at % len(labelled)], None, ids(unlabelled)[at % len(unlabelled)]

    def __len__(self) -> int:
        return max(len(self.labelled), len(self.unlabelled))

    def __getitem__(self, i: int) -> tuple[Tensor, int, Tensor]:
        x, y = self.labelled[i % len(self.labelled)][:2]
        return x, y, self.unlabelled[i % len(self.unlabelled)][0]
