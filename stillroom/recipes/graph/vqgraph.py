"""VQGraph: Rethinking Graph Representation Space for Bridging GNNs and MLPs

Yang, Tian, Xu, Liu, Hong, Qu, Zhang, Cui, Zhang, Leskovec — ICLR 2024 — https://arxiv.org/abs/2308.02117

    teacher   a GNN in two halves with a codebook between them, trained here first
    reads     logits; the likeness of a node's embedding, which holds its neighbourhood, to every code
    adapter   linear from the student's last feature to the space of the codes
    compares  KL of class distributions, KL of soft code assignments; with the labels, when lam is above 0
    data      some labelled nodes of one graph; the student reads features alone
    learns    student weights
    stages    teacher: halves, codebook and two decoders that rebuild embeddings and edges; then the student
    note      reconstruction: weights of the released commands; cosines on both sides, where the release takes the student's
              distances; edges against drawn pairs of nodes in place of the whole matrix
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import Module
from torch.utils.data import TensorDataset

from stillroom.arenas.citations import citations
from stillroom.measure import Proof
from stillroom.measure.cost import resting
from stillroom.parts import losses, optim
from stillroom.parts.codebook import usage
from stillroom.parts.losses.logits import UNLABELLED
from stillroom.parts.nodes import Nodes, adjacency_error, nodes
from stillroom.parts.places import last_map
from stillroom.parts.taps import Tap
from stillroom.recipe import Recipe
from stillroom.run import Run


@dataclass(frozen=True, kw_only=True)
class VQGraph(Recipe):
    commit: float = 0.25           # weight of the commitment to the codes
    node: float = 0.001            # weight of the rebuilt embeddings
    gamma: float = 1.0             # power of their error, γ
    edge: float = 0.03             # weight of the rebuilt edges
    lam: float = 0.0               # share of the labels beside the teacher's, λ
    alpha: float = 1.0             # weight of the code assignments, α; 0 is GLNN (Zhang et al. 2022)
    temperature: float = 4.0       # of the code assignments, τ
    lr: float = 0.01               # of Adam, both stages
    decay_teacher: float = 1e-3    # weight decay of the teacher
    decay: float = 5e-3            # weight decay of the student
    batch: int = 4096              # nodes per step of the student
    steps_teacher: int = 100       # updates of the teacher, on the whole graph; 0: it is trained already
    steps: int = 500               # updates of the student

    def distill(self, run: Run, student: Module, teacher: Module, data: Nodes) -> Module:
        """`teacher`: a `models.nodes.Tokenizer` around two halves of any GNN; `data` may be PyTorch Geometric's."""
        graph = nodes(data, labelled=self.steps_teacher > 0).to(run.device)
        x, edges = graph.x, graph.edges
        opt = optim.adam(teacher, lr=self.lr, decay=self.decay_teacher)
        run.keep(teacher=teacher, opt_teacher=opt)

        for step in run.loop(steps=self.steps_teacher, name="teacher"):
            h = teacher.embed(x, edges)                                              # [nodes, dim]
            if step == 0:
                teacher.book.begin(h)
            found = teacher.book(h)
            rebuilt = teacher.to_edges(found.value)
            logits = teacher.head(rebuilt, edges)                                    # [nodes, classes]
            moved = run.update(opt, labels=F.cross_entropy(logits, graph.targets, ignore_index=UNLABELLED),
                               commit=self.commit * found.commit,
                               node=self.node * scaled_error(h, teacher.to_nodes(found.value), self.gamma),
                               edge=self.edge * adjacency_error(rebuilt, edges, edges.shape[1]))
            if moved:
                teacher.book.follow(h, found.code)
            run.log(perplexity=usage(found.code, len(teacher.book.codes))[1])

        with resting(teacher), resting(student):
            h, logits = teacher.embed(x, edges), teacher(x, edges)
            tap = Tap(student, last_map(student, x[:2]))
            width = tap(x[:2])[1][0].shape[-1]
        to_codes = nn.Linear(width, h.shape[-1])
        opt = optim.adam(student, to_codes, lr=self.lr, decay=self.decay)
        run.keep(student=student, to_codes=to_codes, opt=opt)

        everything = TensorDataset(x, graph.targets, logits, h)
        for x, y, taught, own in run.loop(everything, batch=self.batch, steps=self.steps):
            guess, (feature,) = tap(x)
            tokens = losses.kl(teacher.book.scores(to_codes(feature)), teacher.book.scores(own), self.temperature)
            run.update(opt, labels=self.lam * losses.labels(guess, y), soft=(1 - self.lam) * losses.kl(guess, taught),
                       tokens=self.alpha * tokens)

        return student


def scaled_error(h: Tensor, rebuilt: Tensor, gamma: float) -> Tensor:
    """Mean over nodes of (1 − cos(h, rebuilt))^γ, embeddings [nodes, dim]."""
    return (1 - F.cosine_similarity(h, rebuilt, dim=-1)).clamp(min=0).pow(gamma).mean()


def trial(seed=0):
    """Cora, twenty labelled papers a class; a small codebook and a GCN of 64."""
    return VQGraph(temperature=0.1, batch=512, steps_teacher=60, steps=100), citations(seed)


def proof(student, cast):
    """Better than the same student taught by the labels alone. Beside it: GLNN of the same teacher, and of one without codes."""
    teacher, plain = cast.taught(), cast.plain()
    return Proof(cast.accuracy(student), beats=cast.accuracy(cast.alone()), unit="accuracy",
                 also={"GLNN": cast.accuracy(cast.other(alpha=0.0)), "teacher": teacher.accuracy,
                       "GLNN of a GCN without codes": cast.accuracy(plain.student), "that GCN": plain.accuracy,
                       "codes": teacher.codes, "codes in use": teacher.used, "their perplexity": teacher.perplexity})
