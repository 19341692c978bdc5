"""An index of documents: inverted lists, and product codes of what is left of each document when its list is known."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Module

from stillroom import _compat
from stillroom.errors import Refused
from stillroom.parts.clusters import kmeans, nearest
from stillroom.parts.quantisation import chosen, decode, encode, pieces, rotation

QUERIES = 64       # asked at a time


class Index(Module):
    """Documents [documents, dim] by inner product, in `bytes` each, and the number of a list (IVF-OPQ, Jégou et al. 2011).

    rotation   R [dim, dim], orthogonal; what follows is about rotated vectors
    centroids  [lists, dim]: a document lies in the list of the nearest
    codebooks  [subspaces, codewords, width], of documents less their centroid; codewords a power of two, 256 at most
    documents  to be stored

    Raises `Refused` where these do not fit together.
    """

    def __init__(self, rotation: Tensor, centroids: Tensor, codebooks: Tensor, documents: Tensor):
        super().__init__()
        words = codebooks.shape[1]
        if words & (words - 1) or words > 256:
            raise Refused(f"{words} codewords are no power of two up to 256", "16 (half a byte) or 256 (a byte)")
        self.rotation = nn.Buffer(rotation.clone())
        self.centroids, self.codebooks = nn.Parameter(centroids.clone()), nn.Parameter(codebooks.clone())
        self.lists = nn.Buffer(torch.zeros(len(documents), dtype=torch.long, device=documents.device))
        self.codes = nn.Buffer(torch.zeros(len(documents), len(codebooks), dtype=torch.uint8, device=documents.device))
        self.origin = {"spec": "part:index", "sizes": [list(x.shape) for x in (rotation, centroids, codebooks, documents)]}
        self.store(documents)

    @classmethod
    def of(cls, documents: Tensor, lists: int, subspaces: int, codewords: int) -> "Index":
        """What is common without queries: the rotation of OPQ, then centroids and codebooks by k-means."""
        turn = rotation(documents, subspaces, codewords)
        turned = documents @ turn
        centroids = kmeans(turned, lists)
        left = turned - centroids[nearest(turned, centroids)[1]]
        return cls(turn, centroids, kmeans(pieces(left, subspaces), codewords), documents)

    @property
    def bytes(self) -> int:
        """Of the code of a document."""
        subspaces, words, _ = self.codebooks.shape
        return -(-subspaces * (words.bit_length() - 1) // 8)

    @torch.no_grad()
    def store(self, documents: Tensor) -> None:
        """Documents [documents, dim] in the place of those that were stored, as many."""
        turned = documents @ self.rotation
        self.lists.copy_(nearest(turned, self.centroids)[1])
        self.codes.copy_(encode(turned - self.centroids[self.lists], self.codebooks))

    def forward(self, documents: Tensor, sharp: float = 1.0) -> tuple[Tensor, Tensor]:
        """Of each document, with gradients, the centroid of its list and what the index would know of it, both rotated,
        [documents, dim]; `sharp` as in `quantisation.chosen`."""
        turned = documents @ self.rotation
        centroid = self.centroids[nearest(turned, self.centroids.detach())[1]]
        return centroid, centroid + chosen(turned - centroid, self.codebooks, sharp)

    @torch.no_grad()
    def stored(self) -> Tensor:
        """What is known of the stored documents, in their own coordinates, [documents, dim]."""
        return (self.centroids[self.lists] + decode(self.codes, self.codebooks)) @ self.rotation.T

    @torch.no_grad()
    def search(self, queries: Tensor, k: int = 10, nprobe: int = 1) -> tuple[Tensor, Tensor]:
        """The k best documents of the `nprobe` lists whose centroids are best: scores and numbers, [queries, k].

        Where these lists hold fewer there is −∞ and −1. Scores are sums over a table of the query's inner products with all
        codewords (asymmetric distance computation). Memory grows with documents · QUERIES: see `to_faiss` for millions.
        """
        if queries.shape[0] > QUERIES:
            parts = [self.search(part, k, nprobe) for part in queries.split(QUERIES)]
            return torch.cat([s for s, _ in parts]), torch.cat([n for _, n in parts])
        asked = queries @ self.rotation
        coarse = asked @ self.centroids.T                                                # [queries, lists]
        probed = torch.zeros_like(coarse, dtype=torch.bool)
        probed.scatter_(1, coarse.topk(min(nprobe, len(self.centroids))).indices, True)
        table = pieces(asked, len(self.codebooks)) @ self.codebooks.mT                   # [subspaces, queries, codewords]
        scores = asked.new_full((len(asked), len(self.lists)), -torch.inf)
        for number in probed.any(0).nonzero().flatten().tolist():
            asks, holds = probed[:, number].nonzero().flatten(), (self.lists == number).nonzero().flatten()
            part = coarse[asks, number][:, None].expand(-1, len(holds)).clone()
            for own, code in zip(table, self.codes[holds].T.long(), strict=True):
                part += own[asks][:, code]
            scores[asks[:, None], holds] = part
        best, numbers = scores.topk(min(k, len(self.lists)))
        return best, numbers.masked_fill(best == -torch.inf, -1)

    @torch.no_grad()
    def to_faiss(self) -> Any:
        """The same index for faiss, an `IndexPreTransform` around an `IndexIVFPQ`, with the same codes in the same lists.

        Its lists, too, are probed by inner product; set `extract_index_ivf(index).nprobe`. Raises `Refused` without faiss.
        """
        faiss, (lists, dim) = _compat.package("faiss"), self.centroids.shape
        subspaces, words, _ = self.codebooks.shape
        bits = words.bit_length() - 1
        coarse = faiss.IndexFlatIP(dim)
        coarse.add(self.centroids.cpu().numpy())
        index = faiss.IndexIVFPQ(coarse, dim, lists, subspaces, bits, faiss.METRIC_INNER_PRODUCT)
        coarse.this.disown()
        index.own_fields = index.is_trained = True
        faiss.copy_array_to_vector(self.codebooks.cpu().numpy().ravel(), index.pq.centroids)
        packed = faiss.pack_bitstrings(self.codes.cpu().numpy().astype("int32"), bits)
        own = self.lists.cpu()
        for number in range(lists):
            ids = (own == number).nonzero().flatten().numpy()
            if len(ids):
                index.invlists.add_entries(number, len(ids), faiss.swig_ptr(ids), faiss.swig_ptr(packed[ids].copy()))
        index.ntotal = len(own)
        turn = faiss.LinearTransform(dim, dim)
        faiss.copy_array_to_vector(self.rotation.T.contiguous().cpu().numpy().ravel(), turn.A)
        turn.is_trained = turn.is_orthonormal = True
        whole = faiss.IndexPreTransform(turn, index)
        turn.this.disown()
        index.this.disown()
        whole.own_fields = True
        return whole
