"""Abstracts to be found: the Cranfield collection where it is on this machine, handwritten digits elsewhere."""

import gzip
import re
from functools import lru_cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import TensorDataset

from stillroom.arenas.cast import Cast, variant
from stillroom.errors import Refused
from stillroom.measure.retrieval import average_precision, mrr, recall
from stillroom.parts.losses.logits import UNLABELLED
from stillroom.zoo.minilm import minilm as sentence_encoder
from stillroom.zoo.shared import home

VALID = 75         # of the queries are for choosing, the others for the report
SIZE = 128         # numbers of an embedding by latent semantic analysis
Reader = Literal["lsa", "minilm", "digits"]


class Searched(Protocol):
    """What judges take: the `Index`, or another that is asked in the same way."""

    def search(self, queries: Tensor, k: int, nprobe: int) -> tuple[Tensor, Tensor]: ...


def abstracts(seed: int = 0, reader: Reader = "lsa") -> Cast:
    """Documents, queries to learn from, none with a label, and judges of an index on other queries.

    Of Cranfield, 1,400 abstracts are the documents and their sentences the queries to learn from; the collection's own queries
    judge. Where it is missing, 1,200 digits are the documents, 300 others the queries.
    reader: "lsa" latent semantic analysis; "minilm" a sentence encoder, if it is installed; "digits" pixels

    recall(index)    of the documents that the exact search finds first, ten each, the share among the index's first ten, percent
    human(index)     Recall@10, MRR@10, MAP by the collection's judgements; of digits, by class
    exact            the exact search, which judges take, too
    other(**fields)  what the recipe's trial makes with these fields changed

    Judges take `nprobe`, 4 when left out, and `valid=True` for the queries that settings are chosen on.
    """
    ground = _ground(reader, seed)
    data = TensorDataset(ground.train, torch.full((len(ground.train),), UNLABELLED))
    return Cast({"data": data, "documents": ground.documents.clone()}, data=ground.words,
                recall=partial(_recall, ground), human=partial(_human, ground),
                exact=SimpleNamespace(search=lambda queries, k, nprobe: (queries @ ground.documents.T).topk(k)),
                other=partial(variant, "distill_vq", seed))


@lru_cache(maxsize=8)
def _ground(reader: Reader, seed: int) -> SimpleNamespace:
    try:
        folder = home("cranfield") if reader != "digits" else None
    except Refused:
        folder = None
    documents, train, queries, relevant, words = _cranfield(folder, reader) if folder else _digits(seed)
    best = (queries @ documents.T).topk(10).indices.tolist()
    parts = {"valid": slice(VALID), "test": slice(VALID, None)}
    return SimpleNamespace(documents=documents, train=train, words=words,
                           asked={k: (queries[s], best[s], relevant[s]) for k, s in parts.items()})


def _recall(ground: SimpleNamespace, index: Searched, nprobe: int = 4, valid: bool = False) -> float:
    queries, best, _ = ground.asked["valid" if valid else "test"]
    return recall(index.search(queries, 10, nprobe)[1], best)


def _human(ground: SimpleNamespace, index: Searched, nprobe: int = 4, valid: bool = False) -> dict[str, float]:
    queries, _, relevant = ground.asked["valid" if valid else "test"]
    found = index.search(queries, len(ground.documents), nprobe)[1]
    return {"Recall@10": recall(found, relevant), "MRR@10": mrr(found, relevant), "MAP": average_precision(found, relevant)}


# --- real documents --------------------------------------------------------------------------------------------------

@lru_cache(maxsize=2)
def _cranfield(folder: Path, reader: Reader) -> tuple[Tensor, Tensor, Tensor, list[list[int]], str]:
    text, sentences, queries, relevant = cranfield(folder)
    documents, train, asked = minilm(text, sentences[::8], queries) if reader == "minilm" else lsa(text, sentences, queries)
    by = "a sentence encoder" if reader == "minilm" else "latent semantic analysis"
    return documents, train, asked, relevant, f"Cranfield's 1,400 abstracts by {by}"


def cranfield(folder: Path) -> tuple[list[str], list[str], list[str], list[list[int]]]:
    """Abstracts, two of them empty, their sentences, queries, and of each query the numbers of the relevant abstracts."""
    def read(name: str) -> str:
        with gzip.open(folder / name, "rt", encoding="utf-8") as file:
            return file.read()

    def sections(name: str) -> list[str]:
        return re.split(r"\n?\.I \d+\n", read(name))[1:]

    documents = sections("cran.all.1400.gz")
    texts = [d.partition("\n.W")[2].strip() for d in documents]
    sentences = [s for text in texts for s in text.split(" .") if len(s.split()) > 4]
    queries = [q.removeprefix(".W\n") for q in sections("cran.qry.gz")]
    relevant: list[list[int]] = [[] for _ in queries]
    for line in read("cranqrel.gz").splitlines():
        query, document, grade = map(int, line.split())
        if grade > 0:                                              # -1: not relevant
            relevant[query - 1].append(document - 1)
    return texts, sentences, queries, relevant


def lsa(documents: list[str], *others: list[str]) -> list[Tensor]:
    """Texts as directions [texts, SIZE] in the space of the documents' principal terms (Deerwester et al. 1990)."""
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import make_pipeline

    reader = make_pipeline(TfidfVectorizer(sublinear_tf=True, stop_words="english"), TruncatedSVD(SIZE, random_state=0))
    found = [reader.fit_transform(documents), *map(reader.transform, others)]
    return [F.normalize(torch.tensor(x, dtype=torch.float32), dim=1) for x in found]


@torch.no_grad()
def minilm(*texts: list[str]) -> list[Tensor]:
    """Texts as directions [texts, 384], by the sentence encoder all-MiniLM-L6-v2: means over its tokens, 128 at most.
    Raises `Refused` when the weights are missing, or are not those that were published."""
    words, net = sentence_encoder()
    out = []
    for given in texts:
        order = sorted(range(len(given)), key=lambda i: len(given[i]))     # alike in length, little padding
        said = torch.zeros(len(given), net.config.hidden_size)
        for start in range(0, len(given), 32):
            rows = order[start : start + 32]
            batch = words([given[i] for i in rows], padding=True, truncation=True, max_length=128, return_tensors="pt")
            with torch.autocast("cpu", torch.bfloat16):
                hidden = net(**batch).last_hidden_state.float()
            mask = batch["attention_mask"][..., None]
            said[rows] = (hidden * mask).sum(1) / mask.sum(1)
        out.append(F.normalize(said, dim=1))
    return out


@lru_cache(maxsize=4)
def _digits(seed: int) -> tuple[Tensor, Tensor, Tensor, list[list[int]], str]:
    from sklearn.datasets import load_digits

    raw = load_digits()
    order = torch.randperm(len(raw.data), generator=torch.Generator().manual_seed(seed))
    x, y = torch.tensor(raw.data, dtype=torch.float32)[order], torch.tensor(raw.target)[order]
    x = F.normalize(x - x[:1200].mean(0), dim=1)
    relevant = [(y[:1200] == c).nonzero().flatten().tolist() for c in y[1500:]]
    return x[:1200], x[1200:1500], x[1500:], relevant, "scikit-learn digits as documents and queries"
