"""Cutting a graph in two, and what hangs together on a grid."""

import torch
from torch import Tensor


def normalised_cut(weight: Tensor) -> tuple[float, Tensor]:
    """λ₂ and v₂ of (D − W)·v = λ·D·v, where D holds the row sums of W: the relaxed normalised cut (Shi, Malik 2000, eq. 11).

    weight [nodes, nodes]: symmetric, no entry below 0, no row of zeros; at least two nodes. The vector [nodes] is float64 on
    the CPU, with vᵀDv = 1; its sign says nothing. Solved by scipy, in float64.
    """
    from scipy.linalg import eigh

    graph = weight.double().cpu()
    degree = graph.sum(1).diag()
    values, vectors = eigh((degree - graph).numpy(), degree.numpy(), subset_by_index=[1, 1])
    return float(values[0]), torch.from_numpy(vectors[:, 0].copy())


def component(mask: Tensor, seed: int) -> Tensor:
    """The places of a mask [rows, columns] that are reached from place `seed`, counted row by row, over common edges.

    All False when the seed is not in the mask. On the CPU.
    """
    from scipy.ndimage import label

    labels = torch.from_numpy(label(mask.cpu().numpy())[0])
    own = labels.flatten()[seed]
    return (labels == own) & (own > 0)


def bounds(mask: Tensor) -> Tensor:
    """The smallest box around a mask [rows, columns] that is not empty: (top, left, height, width) in places, Long."""
    rows, columns = (mask.any(side).nonzero().flatten() for side in (1, 0))
    return torch.stack([rows[0], columns[0], rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1])
