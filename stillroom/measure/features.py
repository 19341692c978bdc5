"""Judges of features without a classifier: nearest neighbours and a linear probe."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Module

from stillroom.batches import whole
from stillroom.measure.classification import predict


def features(model: Module, data) -> tuple[Tensor, Tensor]:
    """What the model says of every sample, flat, [n, width], and the labels [n]."""
    x, y = whole(data)[:2]
    return predict(model, x).flatten(1), y


def knn(train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], k: int = 20, temperature: float = 0.07,
        batch: int = 1024) -> float:
    """Accuracy, in percent, of a weighted vote of the `k` nearest by cosine: each counts exp(cosine / temperature)
    (Wu et al. 2018, sec. 3.4; Caron et al. 2021, appendix).

    train, test: features [n, width] and labels [n]. `k` is at most the number of training samples.
    """
    (known, labels), (asked, truth) = train, test
    known, k, classes = F.normalize(known, dim=1), min(k, len(labels)), int(labels.max()) + 1
    said = []
    for part in F.normalize(asked, dim=1).split(batch):
        near, index = (part @ known.T).topk(k, 1)                                    # [part, k]
        weight = ((near - near[:, :1]) / temperature).exp()                          # to the nearest, lest it overflow
        votes = torch.zeros(len(part), classes).to(near).scatter_add_(1, labels[index], weight)
        said.append(votes.argmax(1))
    return 100 * (torch.cat(said) == truth).float().mean().item()


def linear_probe(train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], strength: float = 1.0) -> float:
    """Accuracy, in percent, of logistic regression on standardised features; `strength` is scikit-learn's C.

    train, test: features [n, width] and labels [n].
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probe = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=2000))
    probe.fit(train[0].numpy(), train[1].numpy())
    return 100 * probe.score(test[0].numpy(), test[1].numpy())
