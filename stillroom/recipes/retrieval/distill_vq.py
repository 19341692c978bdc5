"""Distill-VQ: Learning Retrieval Oriented Vector Quantization By Distilling Knowledge from Dense Embeddings

Xiao, Liu, Han, Zhang, Lian, Gong, Chen, Yang, Sun, Shao, Deng, Zhang, Xie — SIGIR 2022 — https://arxiv.org/abs/2204.00185

    teacher   frozen embeddings of queries and documents
    reads     inner products of a query with documents
    compares  cross-entropy of two softmaxes over a list of documents: of the embeddings, of what the index knows of them
    data      labels optional: the number of a relevant document, or the one that the teacher ranks first stands for it
    weights   documents' codes 1; their lists as much as makes both losses equal in the first batch
    learns    codewords, straight through the hard choice; centroids of the lists; the query encoder, if one is given
    stages    rotation, centroids and codewords by k-means; distillation; all documents are encoded anew
    note      the rotation stays, as in the released code; the paper's softmax over distances has no factor `sharp`
"""

from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import Identity, Module
from torch.utils.data import Dataset, TensorDataset

from stillroom.arenas.abstracts import abstracts
from stillroom.batches import whole
from stillroom.errors import Refused
from stillroom.measure import Proof
from stillroom.models.index import Index
from stillroom.parts import optim
from stillroom.parts.losses.logits import UNLABELLED, soft_cross_entropy
from stillroom.parts.schedules import linear
from stillroom.parts.teachers import Frozen
from stillroom.recipe import Recipe
from stillroom.run import Run


@dataclass(frozen=True, kw_only=True)
class DistillVQ(Recipe):
    lists: int = 10_000       # inverted lists
    subspaces: int = 96       # M, pieces of a vector, each with a codebook; M · log2(codewords) / 8 bytes a document
    codewords: int = 256      # K, of each codebook
    top: int = 400            # documents that the teacher ranks first, from which a query's are drawn
    drawn: int = 2            # documents a query: a relevant one, then others from its top
    shared: bool = True       # a query is compared with the documents of all queries in the batch; or with its own alone
    temperature: float = 1.0  # T of both softmaxes over documents
    sharp: float = 1.0        # inverse temperature of the softmax over codewords; 50 for vectors of unit norm, 0: hard choice
    lr: float = 1e-4          # of the codewords, AdamW, linear to 0
    lr_lists: float = 1e-3    # of the centroids, plain SGD
    lr_encoder: float = 1e-5  # of the query encoder, AdamW, linear to 0
    warmup: float = 0.1       # share of the steps in which the learning rates rise
    batch: int = 128          # queries
    steps: int = 100_000      # updates

    def distill(self, run: Run, data: Dataset, documents: Tensor, encoder: Module | None = None) -> Index:
        """data: queries, embedded, or as the encoder takes them; documents [documents, dim], embedded by its twin."""
        teacher = Frozen(deepcopy(encoder) if encoder else Identity())
        queries, relevant = whole(data)[:2]
        top = min(self.top, len(documents))
        if self.drawn > top:
            raise Refused(f"{self.drawn} documents a query cannot be drawn from {top}", "lower drawn, or raise top")
        near = torch.cat([(teacher(run.place(part)) @ documents.T).topk(top).indices.cpu() for part in queries.split(256)])
        positive = torch.where(relevant == UNLABELLED, near[:, 0], relevant)
        data = TensorDataset(queries, positive, near)

        index, share = Index.of(documents, self.lists, self.subspaces, self.codewords), torch.zeros((), device=run.device)
        opt = optim.adamw(index.codebooks, lr=linear(self.lr, warmup=self.warmup), decay=0.0)
        opt_lists = optim.sgd(index.centroids, lr=self.lr_lists, momentum=0.0)
        run.keep(index=index, share=share, opt=opt, opt_lists=opt_lists)
        learners = [opt, opt_lists]
        if encoder:
            learners.append(optim.adamw(encoder, lr=linear(self.lr_encoder, warmup=self.warmup)))
            run.keep(encoder=encoder, opt_encoder=learners[-1])

        for x, first, near in run.loop(data, batch=self.batch, steps=self.steps, whole=True):
            luck = torch.rand(near.shape, device=run.device).masked_fill(near == first[:, None], 2)    # none twice
            drawn = torch.cat([first[:, None], near.gather(1, luck.argsort(1)[:, : self.drawn - 1])], 1)     # [batch, drawn]
            drawn = drawn.flatten()[None] if self.shared else drawn                     # or [1, batch · drawn]
            asked, dense = encoder(x) if encoder else x, documents[drawn]               # [batch, dim], [rows, documents, dim]
            centroid, known = (part.unflatten(0, drawn.shape) for part in index(dense.flatten(0, 1), self.sharp))
            taught = scores(teacher(x), dense) / self.temperature                       # [batch, documents]
            turned = asked @ index.rotation
            codes, lists, own = (soft_cross_entropy(scores(query, part) / self.temperature, taught)
                                 for query, part in ((turned, known), (turned, centroid), (asked, dense)))
            if run.step == 0:
                share.copy_((codes / lists).detach())
            loss = codes + share * lists + (own if encoder else 0)
            loss.backward(inputs=[p for opt in learners for p in opt.params])           # one pass for all that learn
            run.log(codes=codes.detach(), lists=lists.detach(), encoder=own.detach())
            for opt in learners:
                run.update(opt)

        index.store(documents)
        return index


def scores(queries: Tensor, documents: Tensor) -> Tensor:
    """Inner products [batch, documents] of queries [batch, dim] with documents [batch or 1, documents, dim]."""
    return (documents @ queries[..., None]).squeeze(-1)


def trial(seed=0):
    """Abstracts of aerodynamics in four bytes each; settings chosen on other queries, seeds 10 and 11."""
    return DistillVQ(lists=16, subspaces=4, top=100, drawn=16, shared=False, temperature=0.1, sharp=50.0, lr=1e-3, batch=32,
                     steps=300), abstracts(seed)


def proof(index, cast):
    """Of what the exact search finds first it finds more than the index that k-means makes of the same embeddings."""
    kmeans, hard = cast.other(steps=0), cast.other(sharp=0.0)
    also = {"codewords by the hard choice alone": cast.recall(hard)}
    for who, one in (("MRR@10 by the judgements", index), ("that of OPQ", kmeans), ("that of the exact search", cast.exact)):
        also[who] = cast.human(one)["MRR@10"]
    return Proof(cast.recall(index), beats=cast.recall(kmeans), unit="% of the exact search's first ten among its own",
                 baseline="OPQ by k-means, equal bytes", also=also)
