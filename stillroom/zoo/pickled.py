"""Old data sets that come as pickles, read without running them: numbers, containers and nothing else."""

import io
import pickle
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stillroom.errors import Refused

LARGE = 2**28        # numbers in a matrix, at most: a gigabyte


def read(path: str | Path) -> Any:
    """What the file holds: containers of numbers and words, numpy arrays of numbers; a scipy CSR matrix as a dense tensor.

    No constructor that the file names is ever called: those of numpy, scipy and collections stand for harmless ones of ours, and
    a file that names any other is refused before it can act. Raises `Refused`.
    """
    try:
        blob = Path(path).read_bytes()
    except OSError as error:
        raise Refused(f"{path} cannot be read ({error.strerror})", "put the file back") from error
    try:
        return _opened(_Numbers(io.BytesIO(blob), encoding="latin1").load())
    except Refused as error:
        raise Refused(f"{path}: {error}") from error
    except Exception as error:                       # a damaged pickle fails in a hundred ways
        raise Refused(f"{path} is damaged ({type(error).__name__}: {error})", "fetch it again") from error


class _Array(np.ndarray):
    """An array of numbers that a pickle may fill: its state must be plain bytes of such numbers."""

    def __new__(cls, *_: Any) -> "_Array":
        return super().__new__(cls, 0, np.int8)

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, fortran, content = state
        if not isinstance(kind, _Kind) or not isinstance(content, bytes | str):
            raise Refused("it holds an array of something else than numbers")
        raw = content.encode("latin1") if isinstance(content, str) else content
        plain = np.frombuffer(raw, kind.dtype).reshape(shape, order="F" if fortran else "C")
        super().__setstate__((1, plain.shape, plain.dtype, False, plain.tobytes()))  # type: ignore[arg-type]


class _Kind:
    """Stands for numpy's dtype: kind and size of a number, and the order of its bytes."""

    def __init__(self, name: str, *_: Any):
        if not re.fullmatch(r"b1|[iu][1248]|f[248]", name):
            raise Refused(f"it holds an array of {name!r}, not of numbers")
        self.dtype = np.dtype(name)

    def __setstate__(self, state: Any) -> None:
        self.dtype = self.dtype.newbyteorder(">" if state[1] == ">" else "<")


class _Sparse:
    """Stands for scipy's CSR matrix: what it was made of, to be checked before anybody indexes with it."""

    def dense(self) -> Tensor:
        """[rows, columns]."""
        known = vars(self)
        (rows, columns), start = known["_shape"], torch.from_numpy(np.array(known["indptr"], dtype=np.int64))
        column, value = torch.from_numpy(np.array(known["indices"], dtype=np.int64)), torch.from_numpy(np.array(known["data"]))
        number = start.diff()
        if len(start) != rows + 1 or len(column) != len(value) or (number < 0).any() \
                or int(number.sum()) != len(value) or rows * columns > LARGE:
            raise Refused("it holds a sparse matrix whose parts do not fit")
        row = torch.arange(rows).repeat_interleave(number)
        return value.new_zeros(rows, columns).index_put_((row, column), value, accumulate=True)


class _Scalar:
    """Stands for a number of numpy's, and is a plain one."""

    def __new__(cls, kind: _Kind, content: bytes | str) -> Any:
        raw = content.encode("latin1") if isinstance(content, str) else content
        return np.frombuffer(raw, kind.dtype, count=1)[0].item()


class _Bytes:
    """Stands for the function by which old pickles write bytes."""

    def __new__(cls, text: str, _: str) -> Any:
        return text.encode("latin1")


class _Marker:
    """Stands for a class that is only named."""


STANDS = {("numpy", "ndarray"): _Marker, ("numpy", "dtype"): _Kind, ("_codecs", "encode"): _Bytes,
          ("collections", "defaultdict"): defaultdict,
          ("__builtin__", "list"): list, ("builtins", "list"): list, ("__builtin__", "set"): set, ("builtins", "set"): set,
          ("scipy.sparse.csr", "csr_matrix"): _Sparse, ("scipy.sparse._csr", "csr_matrix"): _Sparse,
          **{(f"numpy.{core}.multiarray", name): ours for core in ("core", "_core")
             for name, ours in (("_reconstruct", _Array), ("scalar", _Scalar))}}


class _Numbers(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in STANDS:
            raise Refused(f"it wants to call {module}.{name}, which no data set needs", "do not trust this file")
        return type(name, (STANDS[module, name],), {})       # a new one each time: a file may write on what it is given

    def persistent_load(self, pid: Any) -> Any:
        raise Refused(f"it points to something outside of itself, {pid!r}", "do not trust this file")


def _opened(thing: Any) -> Any:
    """Without any stand-in."""
    if isinstance(thing, _Sparse):
        return thing.dense()
    if isinstance(thing, _Array):
        return np.array(thing)
    if isinstance(thing, dict):
        return {_opened(k): _opened(v) for k, v in thing.items()}
    for plain in (list, tuple, set):
        if isinstance(thing, plain):
            return plain(map(_opened, thing))
    if isinstance(thing, bool | int | float | str | bytes | None):
        return thing
    raise Refused(f"it holds a {type(thing).__name__}")
