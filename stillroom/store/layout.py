"""What a store holds of each sample, and the bytes that say it.

    fixed     2 bytes of check, then the logits, then each feature: rows of one length
    tokens    2 bytes of check, 4 that count the tokens, then each feature, then the logits: rows that differ. At the end of their
              shard 8 bytes a row say where each ends

Of tokens only those that the attention mask shows are held, one row of a codec each.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from stillroom.errors import Refused
from stillroom.store import codecs
from stillroom.store.kept import Kept

CHECK = 2       # bytes before each row: 16 bits of its input
COUNT = 4       # bytes that count a sample's tokens


class Output(NamedTuple):
    """One output of the teacher. `tokens`: it has a row for each token, and else one for a sample."""
    codec: str
    shape: tuple[int, ...]      # of a row
    tokens: bool


class Layout(NamedTuple):
    """The outputs of a store: logits first, then features by name."""
    outputs: tuple[Output, ...]
    names: tuple[str, ...]      # of the features

    @property
    def tokens(self) -> bool:
        """Do the samples have tokens, so that their rows differ in length?"""
        return self.outputs[0].tokens

    @property
    def bytes(self) -> int:
        """Bytes of a row; 0 where they differ."""
        return 0 if self.tokens else CHECK + sum(codecs.size(output.codec, output.shape) for output in self.outputs)

    def checked(self) -> "Layout":
        """Itself. Raises `Refused` for a codec that does not suit its output."""
        for place, output in enumerate(self.outputs):
            lists, fixed = output.codec.startswith("top"), codecs.size(output.codec, output.shape)
            if lists and place:
                raise Refused(f"{output.codec} is for logits", "fp16 or int8 for features")
            if lists and len(output.shape) > 1:
                raise Refused(f"{output.codec} is for rows of logits, and these are {list(output.shape)}", "fp16 or int8")
            if not fixed and not output.tokens:
                raise Refused(f"{output.codec} is for the logits of tokens", f"{output.codec.split('@')[0]} for a classifier")
        return self

    def about(self) -> dict[str, Any]:
        """As store.json tells it."""
        logits, *features = ({**output._asdict(), "shape": list(output.shape)} for output in self.outputs)
        return {"logits": logits, "features": dict(zip(self.names, features, strict=True))}


def told(about: dict[str, Any]) -> Layout:
    """The layout that store.json tells."""
    outputs = [Output(o["codec"], tuple(o["shape"]), o["tokens"]) for o in (about["logits"], *about["features"].values())]
    return Layout(tuple(outputs), tuple(about["features"]))


def encode(layout: Layout, values: Sequence[Any], checks: np.ndarray, counts: Tensor | None) -> list[bytes]:
    """Samples as bytes, from what `decode` gives of them."""
    checks = checks.astype("<u2")
    if counts is None:
        parts = [codecs.find(o.codec).encode(v) for o, v in zip(layout.outputs, values, strict=True)]
        return [row.tobytes() for row in np.concatenate([checks.view(np.uint8).reshape(-1, CHECK), *parts], 1)]
    samples, stop = [], 0
    for i, count in enumerate(counts.tolist()):
        start, stop = stop, stop + count
        logits, *features = (codecs.find(o.codec).encode(v[slice(start, stop) if o.tokens else slice(i, i + 1)]).tobytes()
                             for o, v in zip(layout.outputs, values, strict=True))
        samples.append(b"".join([checks[i].tobytes(), count.to_bytes(COUNT, "little"), *features, logits]))
    return samples


def decode(layout: Layout, rows: Any) -> tuple[list[Any], np.ndarray, Tensor | None]:
    """Rows, uint8 [samples, bytes] or [bytes] each → outputs, a `Kept` of codecs that list ids, of what has tokens one token
    behind another; checks [samples]; numbers of tokens [samples], if there are any."""
    if isinstance(rows, np.ndarray):
        sizes = [codecs.size(o.codec, o.shape) for o in layout.outputs]
        check, *parts = np.split(rows, np.cumsum([CHECK, *sizes])[:-1], axis=1)
        values = [codecs.find(o.codec).decode(part, len(rows), o.shape) for o, part in zip(layout.outputs, parts, strict=True)]
        return values, check.copy().view("<u2")[:, 0], None
    checks = np.array([row[:CHECK].view("<u2")[0] for row in rows])
    counts = [int.from_bytes(row[CHECK : CHECK + COUNT].tobytes(), "little") for row in rows]
    apart = [_sample(layout, row[CHECK + COUNT :], count) for row, count in zip(rows, counts, strict=True)]
    return [_joined([sample[i] for sample in apart]) for i in range(len(layout.outputs))], checks, torch.tensor(counts)


def _sample(layout: Layout, raw: np.ndarray, count: int) -> list[Tensor | Kept]:
    logits, *features = layout.outputs
    found: list[Tensor | Kept] = []
    for o in features:
        rows = count if o.tokens else 1
        part, raw = np.split(raw, [rows * codecs.size(o.codec, o.shape)])
        found.append(codecs.find(o.codec).decode(part, rows, o.shape))
    return [codecs.find(logits.codec).decode(raw, count, logits.shape), *found]


def _joined(parts: list[Any]) -> Tensor | Kept:
    if not isinstance(parts[0], Kept):
        return torch.cat(parts)
    k, classes = max(part.ids.shape[1] for part in parts), parts[0].classes
    wide = [torch.nn.functional.pad(part.ids, (0, k - part.ids.shape[1]), value=classes) for part in parts]
    logp = [torch.nn.functional.pad(part.logp, (0, k - part.logp.shape[1]), value=-torch.inf) for part in parts]
    return Kept(torch.cat(wide), torch.cat(logp), torch.cat([part.rest for part in parts]), classes)
