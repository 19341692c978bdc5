"""A store as one parquet file with plain columns, and back.

    sample, check       its number; 16 bits of its input
    logits              numbers [of a token], in the order of memory, where every one is stored
    ids, logp, tail     of a codec that lists ids: those ids, their log-probabilities, that of all others as one
    features.NAME       numbers [of a token]

What a sample has for each of its tokens is a list with one entry a token. The file's metadata say under "stillroom" what
store.json says, with the checksum of each shard. A store that is read back has the bytes of the first, whatever its codec.
"""

import json
from collections.abc import Iterator
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stillroom._compat import package
from stillroom.errors import Refused
from stillroom.store import layout
from stillroom.store.kept import Kept
from stillroom.store.layout import Layout, Output
from stillroom.store.reading import Rows, checksum, names, shards
from stillroom.store.writing import _alone, _begin, write_shard

GROUP = 256      # samples of a row group
ANEW = "write it anew: store.to_parquet(folder, file)"


def to_parquet(folder: str | Path, file: str | Path) -> Path:
    """Everything that a store holds, in one file. Raises `Refused` for a store that is not whole, and without pyarrow."""
    arrow = package("pyarrow")
    from pyarrow import parquet

    rows = Rows(folder)
    plan, out, writer = rows.layout, Path(file), None
    vouchers = [names(rows.folder, shard)[1] for shard in range(shards(rows.about))]
    text = json.dumps({"store": rows.about, "shards": [json.loads(voucher.read_text())["blake2b"] for voucher in vouchers]})
    metadata = {"stillroom": text, "blake2b": _digest(text)}
    new = out.with_name(out.name + ".new")
    for start in range(0, len(rows), GROUP):
        index = torch.arange(start, min(start + GROUP, len(rows)))
        values, checks, counts = layout.decode(plan, rows.raw(index.numpy()))
        columns = {"sample": arrow.array(index.numpy()), "check": arrow.array(checks.astype(np.uint16))}
        for name, output, value in zip(("logits", *plan.names), plan.outputs, values, strict=True):
            columns |= _columns(arrow, name if output is plan.outputs[0] else f"features.{name}", value,
                                counts.numpy() if counts is not None and output.tokens else None)
        table = arrow.table(columns).replace_schema_metadata(metadata)
        writer = writer or parquet.ParquetWriter(new, table.schema, write_page_checksum=True)
        writer.write_table(table)
    if writer is None:
        raise Refused(f"{folder} holds no sample", "write a store of some data first")
    writer.close()
    return new.replace(out)


def from_parquet(file: str | Path, folder: str | Path) -> Path:
    """The store that `to_parquet` wrote, in another folder. Raises `Refused` for a file that it did not write or that has changed
    since, and for a folder with another store."""
    package("pyarrow")
    from pyarrow import parquet

    try:
        opened = parquet.ParquetFile(file, page_checksum_verification=True)
        text, digest = (opened.schema_arrow.metadata[key].decode() for key in (b"stillroom", b"blake2b"))
    except Exception as error:                                   # whatever a bit can make of a header
        raise Refused(f"{file} holds no store ({type(error).__name__})", "write it with store.to_parquet") from error
    if digest != _digest(text):
        raise Refused(f"{file} is not as it was written", ANEW)
    told, folder = json.loads(text), Path(folder)
    about, plan = told["store"], layout.told(told["store"])
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder, 0):
        _begin(folder, {k: v for k, v in about.items() if k not in ("version", "origin")}, 0, about.get("origin"))
        samples = _samples(opened, plan, file)
        for shard, expected in enumerate(told["shards"]):
            write_shard(folder, shard, plan, [list(islice(samples, about["rows"]))])
            if checksum(names(folder, shard)[0]) != expected:
                names(folder, shard)[1].unlink()                                     # nothing vouches for it
                raise Refused(f"{file} is not as it was written: shard {shard}", ANEW)
    return folder


def _digest(text: str) -> str:
    return blake2b(text.encode(), digest_size=16).hexdigest()


def _columns(arrow: Any, name: str, value: Any, counts: np.ndarray | None) -> dict[str, Any]:
    """Columns of one output: numbers in lists, and these in lists of tokens where `counts` [samples] says how many."""
    def nested(numbers: np.ndarray, *lengths: np.ndarray | None) -> Any:
        column = arrow.array(numbers)
        for length in lengths:
            if length is not None:
                column = arrow.LargeListArray.from_arrays(arrow.array(np.append(0, np.cumsum(length))), column)
        return column

    if isinstance(value, Kept):
        used = (value.ids < value.classes).numpy()
        ids, logp = value.ids.numpy()[used].astype(np.int32), value.logp.numpy()[used]
        return {"ids": nested(ids, used.sum(1), counts), "logp": nested(logp, used.sum(1), counts),
                "tail": nested(value.rest.flatten().numpy(), counts)}
    flat = value.float().flatten(1).numpy()
    return {name: nested(flat.reshape(-1), np.full(len(flat), flat.shape[1]), counts)}


def _samples(opened: Any, plan: Layout, file: str | Path) -> Iterator[bytes]:
    """The rows of a store from those of the file."""
    try:
        for batch in opened.iter_batches(GROUP):
            columns = {name: batch.column(name) for name in batch.schema.names}
            outputs = [_value(columns, name if not place else f"features.{name}", output)
                       for place, (name, output) in enumerate(zip(("logits", *plan.names), plan.outputs, strict=True))]
            counts = next((torch.from_numpy(counts) for _, counts in outputs if counts is not None), None)
            yield from layout.encode(plan, [value for value, _ in outputs], columns["check"].to_numpy(), counts)
    except Exception as error:
        raise Refused(f"{file} is not as it was written ({type(error).__name__})", ANEW) from error


def _value(columns: dict[str, Any], name: str, output: Output) -> tuple[Any, np.ndarray | None]:
    """One output from its columns, and how many tokens each sample has."""
    def flat(name: str, levels: int) -> tuple[np.ndarray, list[np.ndarray]]:
        column, lengths = columns[name], []
        for _ in range(levels):
            lengths.append(np.diff(column.offsets.to_numpy()))
            column = column.flatten()
        return column.to_numpy(zero_copy_only=False), lengths

    if name in columns:
        numbers, (*counts, _) = flat(name, 1 + output.tokens)
        return torch.tensor(numbers).view(-1, *output.shape), counts[0] if counts else None
    (ids, (*counts, lengths)), (logp, _) = flat("ids", 1 + output.tokens), flat("logp", 1 + output.tokens)
    rest, _ = flat("tail", output.tokens)
    used = torch.arange(int(lengths.max(initial=1))) < torch.from_numpy(lengths)[:, None]     # [rows, k]
    kept = Kept(torch.full(used.shape, output.shape[-1]), torch.full(used.shape, -torch.inf), torch.tensor(rest)[:, None],
                output.shape[-1])
    kept.ids[used], kept.logp[used] = torch.tensor(ids).long(), torch.tensor(logp)
    return kept, counts[0] if counts else None
