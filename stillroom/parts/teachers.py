"""Who teaches: frozen, following, past, random, several; kept outputs, and oracles that only answer."""

import copy
import os
from collections.abc import Iterable, Mapping, Sequence
from itertools import count, takewhile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Module

from stillroom.errors import Refused
from stillroom.parts.oracle import Endpoint as Endpoint
from stillroom.parts.oracle import Oracle as Oracle


class Teacher(Module):
    """A model in eval mode for good, without gradients: `train()` has no effect on it."""

    def __init__(self, model: Module):
        super().__init__()
        self.model = model.eval().requires_grad_(False)

    def train(self, mode: bool = True):
        return super().train(False)

    @torch.no_grad()
    def forward(self, *inputs, **named):
        return self.model(*inputs, **named)

    def scaled(self, *inputs) -> tuple:
        """The inputs as the model wants them."""
        return inputs


def held(model: Any) -> tuple[Any, str]:
    """The network that a teacher holds, or a teacher in a teacher, and the way there: "model." for each."""
    way = ""
    while isinstance(model, Teacher):
        model, way = model.model, way + "model."
    return model, way


class Frozen(Teacher):
    """The given model itself, frozen. `mean`, `std` (per channel): its own input scale, when inputs come in [0, 1]."""

    def __init__(self, model: Module, mean: Sequence[float] | None = None, std: Sequence[float] | None = None):
        super().__init__(model)
        self.mean = None if mean is None else nn.Buffer(torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.std = None if std is None else nn.Buffer(torch.tensor(std).view(-1, 1, 1), persistent=False)

    @torch.no_grad()
    def forward(self, *inputs, **named):
        return self.model(*self.scaled(*inputs), **named)

    def scaled(self, *inputs) -> tuple:
        """The inputs as the model wants them: the first on its own scale."""
        if self.mean is None and self.std is None:
            return inputs
        x = inputs[0] if self.mean is None else inputs[0] - self.mean
        return (x if self.std is None else x / self.std, *inputs[1:])


class Batched(Teacher):
    """A frozen copy of the model whose batch norms take the statistics of the batch at hand (an option of SSLD, Cui et al. 2021).
    The given model and its running statistics stay as they are."""

    def __init__(self, model: Module):
        super().__init__(copy.deepcopy(model))
        for module in self.model.modules():
            if isinstance(module, Cached):
                raise Refused("what a store holds was said with the teacher's own running statistics",
                              "use the live teacher for statistics of each batch")
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.track_running_stats, module.running_mean, module.running_var = False, None, None


class Ema(Teacher):
    """A copy of the student that follows it: θ ← m·θ + (1 − m)·θ_student (He et al. 2020, eq. 2). Buffers are copied."""

    def __init__(self, student: Module):
        super().__init__(copy.deepcopy(student))

    @torch.no_grad()
    def follow(self, student: Module, momentum: float) -> None:
        """One step towards the student; `momentum` in [0, 1], 1 stays where it is."""
        mine: list[Tensor] = list(self.model.parameters())
        yours: list[Tensor] = list(student.parameters())
        torch._foreach_lerp_(mine, yours, 1 - momentum)
        for old, new in zip(self.model.buffers(), student.buffers(), strict=True):
            old.copy_(new)


class Past(Teacher):
    """The student as it was at the last snapshot."""

    def __init__(self, student: Module):
        super().__init__(copy.deepcopy(student))

    @torch.no_grad()
    def snapshot(self, student: Module) -> None:
        """Become the student as it is now."""
        self.model.load_state_dict(student.state_dict())


class Random(Teacher):
    """A network whose weights were never trained: the given one, frozen as it was initialised."""


class Cached(Module):
    """A teacher's stored outputs in the place of the live one: `Cached(folder)(x)` gives logits [batch, …], and a tap on it what
    the tap read when the store was written. Of tokens it gives a `losses.tokens.Top` [batch, tokens, k] where K are stored.

    folder         what `store.write` or `stillroom cache` wrote
    teacher, data  where they are given: refused unless the store was written from them
    dense          log-probabilities [batch, tokens, vocabulary] in place of a `Top`; what is not listed shares its mass evenly
    temperature    of a `Top`, which is the comparison's: its tail is softened as if it were shared evenly

    Rows are found by the numbers that the engine puts on a batch (`x.sample_ids`). Every input is checked against what the
    teacher saw, so that a wrong row is refused. Raises `Refused`.
    """

    def __init__(self, folder: str | Path, teacher: Module | None = None, data=None, dense: bool = False,
                 temperature: float = 1.0):
        from stillroom.store import Rows

        super().__init__()
        self.rows, self.dense, self.temperature = Rows(folder), dense, temperature
        about = self.rows.about
        self.mark = nn.Buffer(torch.frombuffer(bytearray.fromhex(about["teacher"] + about["data"]), dtype=torch.uint8))
        self.classes: list[str] | None = about.get("origin", {}).get("classes")
        self.cost: dict = about.get("origin", {}).get("cost", {})      # of the live teacher, where it was asked
        self.belongs(teacher, data)

    def belongs(self, teacher: Module | None = None, data=None) -> None:
        """The store was written from these. Raises `Refused`."""
        from stillroom.store import prints

        about, folder = self.rows.about, self.rows.folder
        own = about.get("origin", {}).get("data", "")
        if teacher is not None and prints.of_teacher(teacher) != about["teacher"]:
            raise Refused(f"{folder} is the store of another teacher", "write one for it: stillroom cache ANOTHER_FOLDER …")
        if data is not None and prints.of_data(data) != about["data"]:
            raise Refused(f"{folder} is the store of another data set, or of other views of it",
                          (f"leave --data out to take its own, {own}; or " if own else "")
                          + "write one for these: stillroom cache ANOTHER_FOLDER …")

    @torch.no_grad()
    def told(self, data) -> Tensor:
        """What the teacher said of the test split, logits [samples, classes]: `stillroom cache` keeps it beside the store.
        Raises `Refused` for any other data."""
        from stillroom.store import Rows, prints

        test = self.rows.folder / "test"
        if not (test / "store.json").exists():
            raise Refused(f"{self.rows.folder} holds nothing on the test split: its teacher can teach, but not be judged",
                          "stillroom cache writes it; in Python store.write(folder / 'test', teacher, test)")
        rows = Rows(test)
        if rows.about["teacher"] != self.rows.about["teacher"] or rows.about["data"] != prints.of_data(data):
            raise Refused(f"{test} is not about these data, or of another teacher", "name the live teacher: --teacher SPEC")
        return rows[torch.arange(len(rows))].dense()

    def forward(self, *inputs, **named) -> Any:
        return self.read((), *inputs, **named)[0]

    @torch.compiler.disable
    @torch.no_grad()
    def read(self, features: Sequence[str], *inputs, **named) -> tuple[Any, list[Tensor]]:
        """Logits of a batch, and the features stored under these names."""
        from stillroom.store.answers import as_live
        from stillroom.store.reading import verify

        x = inputs[0] if inputs else named
        first = next(iter(x.values())) if isinstance(x, Mapping) else x
        index = getattr(first, "sample_ids", None)
        if index is None:
            raise Refused("a stored teacher is asked about inputs that the method made itself, such as crops or parts of a batch",
                          "use the live teacher, or put the views into the data: store.Views(data, augment, count)")
        said = self.rows[index]
        verify(x, said.checks, self.rows.folder)
        return as_live(said, self.rows.layout, features, x, first.device, self.dense, self.temperature)

    def held(self, *names: str) -> tuple[str, ...]:
        """These names, if features are stored under them all. Raises `Refused`."""
        held = self.rows.layout.names
        for name in names:
            if name not in held:
                raise Refused(f"{self.rows.folder} holds no feature {name!r}, but {', '.join(held) or 'logits alone'}",
                              "write a store of a tap that reads it, into another folder: store.write(folder, tap, data)")
        return names


class Ensemble(Module):
    """Several frozen models: the mean of their softened probabilities, as log-probabilities.

    models   each maps inputs to logits [batch, classes]
    weights  one per model; equal when left out
    """

    def __init__(self, models: Sequence[Module], weights: Sequence[float] | None = None):
        super().__init__()
        self.models = nn.ModuleList([Frozen(m) for m in models])
        w = torch.tensor(weights if weights is not None else [1.0] * len(models))
        self.weights = nn.Buffer(w / w.sum(), persistent=False)

    @torch.no_grad()
    def forward(self, x: Tensor, temperature: float = 1.0) -> Tensor:
        """log Σ_k w_k softmax(z_k / T), [batch, classes]. A softmax of it gives the mean probabilities back."""
        logs = torch.stack([(m(x) / temperature).log_softmax(-1) for m in self.models])
        return torch.logsumexp(logs + self.weights.log().view(-1, 1, 1), 0)


class Experts:
    """The ways that networks went while they learnt: of each its weights [weights] at the start and after every epoch.

    paths   of each expert its weights, in that order
    folder  where experts lie, one safetensors file each, and where further ones are written; they are mapped from there, and
            only what is asked for is read. Without it all of them stay in memory.
    Raises `Refused` for a file that holds no expert.
    """

    def __init__(self, paths: Iterable[Sequence[Tensor]] = (), folder: str | Path | None = None):
        self.folder = Path(folder) if folder else None
        self.paths = [_mapped(file) for file in takewhile(Path.exists, map(self._file, count()))] if self.folder else []
        for path in paths:
            self.put(len(self.paths), path)

    def put(self, number: int, path: Sequence[Tensor]) -> None:
        """Make `path` expert `number`, and the last. Its file is written whole or not at all."""
        if len(path) < 2:
            raise Refused("an expert needs its weights at two moments or more", "teach experts for an epoch at least")
        self.first(number)
        if self.folder:
            _write(self._file(number), path)
        self.paths[number:] = [_mapped(self._file(number)) if self.folder else list(path)]

    def first(self, number: int) -> "Experts":
        """These experts, if there are so many: those above are left out. Raises `Refused` when one is missing."""
        if len(self.paths) < number:
            raise Refused(f"{self._file(len(self.paths)) if self.folder else 'an expert'} is missing",
                          "put it back, or teach the experts anew in another folder")
        del self.paths[number:]
        return self

    def segment(self, span: int, before: int) -> tuple[Tensor, Tensor]:
        """Weights of a random expert at an epoch up to `before`, drawn evenly, and `span` epochs later (as far as it went)."""
        if not self.paths:
            raise Refused("there is no expert", "give the paths of some, or the folder where they lie")
        path = self.paths[int(torch.randint(len(self.paths), ()))]
        span = min(span, len(path) - 1)
        start = int(torch.randint(min(before, len(path) - 1 - span) + 1, ()))
        return path[start], path[start + span]

    def last(self) -> Tensor:
        """Weights of the first expert at its end."""
        return self.paths[0][-1]

    def _file(self, number: int) -> Path:
        assert self.folder is not None
        return self.folder / f"{number:05}.safetensors"


def _write(file: Path, path: Sequence[Tensor]) -> None:
    """To a new file, flushed to disk, then renamed: what a checkpoint counts as done is there."""
    from safetensors.torch import save_file

    file.parent.mkdir(parents=True, exist_ok=True)
    new = file.with_suffix(f".new{os.getpid()}")                 # several ranks may write the same
    save_file({"weights": torch.stack(list(path))}, new)         # [moments, weights]
    with open(new, "rb+") as written:
        os.fsync(written.fileno())
    os.replace(new, file)


def _mapped(file: Path) -> list[Tensor]:
    """What `_write` wrote, as tensors that lie in the file."""
    from safetensors import safe_open

    try:
        with safe_open(file, "pt") as found:
            return list(found.get_tensor("weights"))
    except Exception as error:
        raise Refused(f"{file} holds no expert ({type(error).__name__})", "write them with Experts(paths, folder)") from error
