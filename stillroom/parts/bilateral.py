"""Smoothing a map until its edges are those of an image: the fast bilateral solver."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from stillroom.errors import Refused

YUV = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))     # of JPEG, BT.601


def solve(image: Tensor, target: Tensor, confidence: Tensor | None = None, spatial: float = 16.0, luma: float = 16.0,
          chroma: float = 8.0, smooth: float = 256.0, rounds: int = 25) -> Tensor:
    """The map x that minimises smooth/2 · Σ Ŵ_ij·(x_i − x_j)² + Σ c_i·(x_i − t_i)² over the pixels (Barron, Poole 2016, eq. 1),
    Ŵ bistochastic and large between pixels that are near each other and of like colour; [height, width], float64 on the CPU.

    image        [3, height, width], red, green, blue in [0, 1], or grey [1, height, width]
    target       t [height, width]
    confidence   c [height, width], not negative, somewhere positive; 1 everywhere when left out
    spatial, luma, chroma   how near: in pixels, and in 255ths of brightness and of either difference of colour
    rounds       of conjugate gradients, fewer when the residual falls to 1e-5 of the right side

    x is constant on a vertex of the grid of (down, right, luma, chroma, chroma): all pixels of one cell in these units. Raises
    `Refused` for other channels.
    """
    from scipy.sparse import diags_array
    from scipy.sparse.linalg import cg

    splat, blur = grid(image, spatial, luma, chroma)
    t = target.detach().double().cpu().numpy().ravel()
    c = np.ones_like(t) if confidence is None else confidence.detach().double().cpu().numpy().ravel()
    n, m = bistochastic(blur, splat.sum(1))
    weight, pulled = splat @ c, splat @ (c * t)
    system = smooth * (diags_array(m) - diags_array(n) @ blur @ diags_array(n)) + diags_array(weight)
    start = np.divide(pulled, weight, out=np.full_like(weight, pulled.sum() / weight.sum()), where=weight > 0)
    found, _ = cg(system, pulled, x0=start, M=diags_array(1 / system.diagonal().clip(1e-5)), maxiter=rounds)
    return torch.from_numpy(splat.T @ found).view(target.shape)


def grid(image: Tensor, spatial: float, luma: float, chroma: float) -> tuple[Any, Any]:
    """The bilateral grid of an image: which pixels a vertex gathers, sparse [vertices, pixels] of 0 and 1, and the blur between
    vertices, sparse [vertices, vertices], 10 on the diagonal and 1 between neighbours along one axis. For `solve`."""
    from scipy.sparse import coo_array, eye_array

    channels, height, width = image.shape
    if channels not in (1, 3):
        raise Refused(f"an image of {channels} channels has no brightness", "give it in red, green and blue, or in grey")
    colour = 255 * image.expand(3, -1, -1).detach().double().cpu().numpy()                             # [3, height, width]
    yuv = np.tensordot(np.array(YUV), colour, 1) + np.array([0.0, 128.0, 128.0])[:, None, None]
    at = np.stack([*np.mgrid[:height, :width] / spatial, yuv[0] / luma, *yuv[1:] / chroma]).reshape(5, -1)
    at = (at + 1e-4).astype(np.int64)                       # grey lies on an edge of cells: not on either side by rounding
    step = np.cumprod([1, *(at.max(1)[:-1] + 2)])           # two more than there are: a neighbour never wraps to the next line
    vertex, which = np.unique(step @ at, return_inverse=True)
    splat = coo_array((np.ones(which.size), (which, np.arange(which.size)))).tocsr()
    blur = 10 * eye_array(vertex.size, format="csr")
    for beside in step:
        place = np.searchsorted(vertex, vertex + beside).clip(max=vertex.size - 1)
        (here,) = (vertex[place] == vertex + beside).nonzero()
        link = coo_array((np.ones(here.size), (here, place[here])), shape=blur.shape).tocsr()
        blur = blur + link + link.T
    return splat, blur


def bistochastic(blur: Any, mass: np.ndarray, rounds: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """n and m [vertices] with n·(blur·n) = m, exactly, and m near the pixels of each vertex, `mass` (algorithm 1)."""
    n = np.ones_like(mass)
    for _ in range(rounds):
        n = np.sqrt(n * mass / (blur @ n))
    return n, n * (blur @ n)
