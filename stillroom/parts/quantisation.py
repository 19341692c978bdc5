"""Vectors in a few bytes: product quantisation, the rotation that suits it, and a choice of codewords that passes gradients."""

import torch
from torch import Tensor

from stillroom.errors import Refused
from stillroom.parts.clusters import kmeans, nearest


def pieces(x: Tensor, count: int) -> Tensor:
    """Vectors [..., vectors, dim] cut into so many equal pieces, [..., count, vectors, dim / count]. Raises `Refused`."""
    if x.shape[-1] % count:
        raise Refused(f"vectors of {x.shape[-1]} numbers cannot be cut into {count} equal pieces",
                      f"a number of subspaces that divides {x.shape[-1]}")
    return x.unflatten(-1, (count, -1)).movedim(-2, -3)


def joined(parts: Tensor) -> Tensor:
    """What `pieces` undoes: [..., count, vectors, width] → [..., vectors, count · width]."""
    return parts.movedim(-3, -2).flatten(-2)


def encode(x: Tensor, codebooks: Tensor) -> Tensor:
    """The nearest codeword of each piece. x [vectors, dim], codebooks [subspaces, codewords, width] → [vectors, subspaces]."""
    return nearest(pieces(x, len(codebooks)), codebooks)[1].T


def decode(codes: Tensor, codebooks: Tensor) -> Tensor:
    """The codewords of these numbers, joined. codes [vectors, subspaces] → [vectors, dim]."""
    return torch.cat([book[own] for book, own in zip(codebooks, codes.T.long(), strict=True)], -1)


def chosen(x: Tensor, codebooks: Tensor, sharp: float = 1.0) -> Tensor:
    """What `decode(encode(x))` gives, bit for bit, with a gradient to vectors and codebooks: that of the hard choice, and
    straight through it that of a softmax over −sharp · squared distance (Xiao et al. 2022, differentiable PQ).

    x [vectors, dim], codebooks [subspaces, codewords, width] → [vectors, dim]. sharp: inverse temperature of the softmax; where
    distances are small, as between vectors of unit norm, 1 makes it even and the gradient noise. 0: the hard choice alone.
    """
    own = pieces(x, len(codebooks))                                                      # [subspaces, vectors, width]
    close = 2 * own @ codebooks.mT - codebooks.square().sum(-1)[:, None]                 # −distance² + ‖x‖²
    soft = (sharp * close).softmax(-1)                                                   # [subspaces, vectors, codewords]
    hard = codebooks.gather(1, close.argmax(-1)[..., None].expand(-1, -1, codebooks.shape[-1]))
    return joined(hard + (soft - soft.detach()) @ codebooks.detach())


@torch.no_grad()
def rotation(x: Tensor, subspaces: int, codewords: int, rounds: int = 10) -> Tensor:
    """R [dim, dim], orthogonal, after which product quantisation of xR loses little (Ge et al. 2013, OPQ without parameters).

    It begins with the principal axes, dealt out to the subspaces in turn; then codewords and R are improved by turns.
    x [vectors, dim]. Raises `Refused` where the dimension cannot be cut.
    """
    axes = torch.linalg.eigh((x - x.mean(0)).T @ (x - x.mean(0))).eigenvectors.flip(1)   # the widest first
    pieces(axes, subspaces)
    turned = torch.cat([axes[:, i::subspaces] for i in range(subspaces)], 1)
    books = kmeans(pieces(x @ turned, subspaces), codewords, 5)
    for _ in range(rounds):
        books = kmeans(pieces(x @ turned, subspaces), codewords, 1, books)
        u, _, v = torch.linalg.svd(x.T @ decode(encode(x @ turned, books), books))       # orthogonal Procrustes
        turned = u @ v
    return turned
