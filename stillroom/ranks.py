"""Several processes as one run: how they find each other, hold the same weights, average what they learn, and end together.

`torchrun` starts them. Models are never wrapped: PyTorch's own reducer (that of `DistributedDataParallel`) is laid over the
tensors of an optimiser and told of a backward by `Run.update`. Hooks on `forward`, as `replicate` has them, would miss a method
that calls `student.features(x)` or a part of the model, and its gradients would stay apart without a word.
"""

import atexit
import os
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import Module
from torch.nn.modules.batchnorm import _NormBase

from stillroom import shards
from stillroom.errors import Refused
from stillroom.parts.optim import Optimiser

T = TypeVar("T")
PATIENCE = timedelta(minutes=10)       # how long ranks wait for one of them before they give up
ENDED = ("/gloo/", "Connection closed by peer", "Connection reset by peer", "Timed out waiting", "collective operation timeout")


# --- who is there ----------------------------------------------------------------------------------------------------

def count() -> int:
    """How many ranks there are; 1 without torchrun."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number among the ranks."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def first() -> bool:
    """Whether this is the rank that writes, logs and shows."""
    return rank() == 0


def join() -> None:
    """Meet the other ranks, if torchrun started any; a group that the caller has made is taken as it is."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and "RANK" in os.environ and not dist.is_initialized():
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)
        atexit.register(lambda: dist.is_initialized() and dist.destroy_process_group())


def device(name: str) -> torch.device:
    """The device by that name; of several GPUs in a machine this rank's own. Raises `Refused`."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    there = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    try:
        found = torch.device(name)
    except RuntimeError as error:
        raise Refused(f"device {name!r} is unknown", "auto, cpu, cuda, cuda:1, mps") from error
    if found.type == "cuda" and found.index is None and count() > 1:
        found = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    if (found.index or 0) >= there.get(found.type, 1 + (found.index or 0)):
        raise Refused(f"device {name!r} is not on this machine", "use device=auto or cpu, or install the PyTorch build for it")
    if found.type == "cuda" and count() > 1:
        torch.cuda.set_device(found)
    return found


def once(do: Callable[[], T]) -> T:
    """What `do` gives on the first rank, on all of them; what it refuses there is refused on all."""
    if count() == 1:
        return do()
    said: list[Any] = [None, None]
    if first():
        try:
            said[0] = do()
        except Refused as refusal:
            said[1] = str(refusal)
    dist.broadcast_object_list(said, src=0)
    if said[1] is not None:
        raise Refused(said[1])
    return said[0]


def wait() -> None:
    """Until all ranks are here."""
    if count() > 1:
        dist.barrier()


def lost(error: BaseException | None) -> bool:
    """Whether an error says that another rank has gone or does not answer."""
    said = isinstance(error, RuntimeError) and any(word in str(error) for word in ENDED)
    return count() > 1 and (said or isinstance(error, dist.DistBackendError | dist.DistNetworkError))


# --- the same on all -------------------------------------------------------------------------------------------------

@torch.no_grad()
def equal_(tensors: Iterable[Tensor]) -> None:
    """Make tensors what they are on the first rank, in place. Raises `Refused` when their shapes differ."""
    if count() == 1:
        return
    found = list({id(t): t for t in tensors}.values())
    shapes: list[Any] = [None] * count()
    dist.all_gather_object(shapes, [tuple(t.shape) for t in found])
    if any(other != shapes[0] for other in shapes):
        raise Refused("the ranks hold models of different shapes", "build them from the same words and seed on every rank")
    for t in found:
        held = t.detach().contiguous()
        dist.broadcast(held, src=0)
        t.copy_(held)


def mean(x: Tensor) -> Tensor:
    """The mean over ranks; `x` itself on one."""
    if count() > 1:
        mean_([x := x.detach().clone()])
    return x


@torch.no_grad()
def mean_(tensors: Sequence[Tensor]) -> None:
    """Take the mean over ranks of each tensor, in place: in one flat buffer for each type of number."""
    kinds: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for t in tensors if count() > 1 else ():
        kinds.setdefault((t.dtype, t.device), []).append(t)
    for same in kinds.values():
        flat = torch.cat([t.reshape(-1) for t in same])
        dist.all_reduce(flat)
        flat /= count()
        parts = flat.split([t.numel() for t in same])
        torch._foreach_copy_(same, [part.view_as(t) for part, t in zip(parts, same, strict=True)])


def mean_of(scalars: dict[str, float]) -> dict[str, float]:
    """The mean of each scalar over the ranks that have it."""
    if count() == 1:
        return scalars
    said: list[Any] = [None] * count()
    dist.all_gather_object(said, scalars)
    names = dict.fromkeys(name for one in said for name in one)
    own = {name: [one[name] for one in said if name in one] for name in names}
    return {name: sum(values) / len(values) for name, values in own.items()}


def statistics(module: Module) -> tuple[list[Tensor], bool]:
    """Running means and variances of a module's batch norms, of which each rank sees other samples; whether they are read while
    others learn. As they are means, it is one and the same to average them after every step or once before they are read."""
    norms = [m for m in module.modules() if isinstance(m, _NormBase)]
    return [t for m in norms for t in (m.running_mean, m.running_var) if t is not None], not all(m.training for m in norms)


def any_of(wish: bool) -> bool:
    """Whether one of the ranks says yes."""
    if count() == 1:
        return wish
    said = torch.tensor(int(wish))
    dist.all_reduce(said, dist.ReduceOp.MAX)
    return bool(said)


class Consent:
    """Yes or no of all ranks, without waiting: asked at the end of a step, answered at the end of the next, once a second."""

    def __init__(self) -> None:
        self.asked: tuple[Any, Tensor] | None = None
        self.began, self.steps, self.rest = time.monotonic(), 0, 0       # since the last question; steps until the next

    def __call__(self, *wishes: bool) -> list[bool]:
        """At the end of every step: whether any rank wished it when it was asked; on one rank, whether it is wished now."""
        if count() == 1:
            return list(wishes)
        self.steps, self.rest = self.steps + 1, self.rest - 1
        if self.asked:
            return self.answer()
        if self.rest <= 0:
            took = int(1e6 * (time.monotonic() - self.began) / self.steps)               # microseconds a step
            flags = torch.tensor([*map(int, wishes), took])
            self.asked = dist.all_reduce(flags, dist.ReduceOp.MAX, async_op=True), flags
            self.began, self.steps = time.monotonic(), 0
        return [False] * len(wishes)

    def answer(self) -> list[bool]:
        """What was asked last, when all have said it."""
        if self.asked is None:
            return []
        (work, flags), self.asked = self.asked, None
        work.wait()
        *wished, took = flags.tolist()
        self.rest = 1_000_000 // max(took, 10_000)           # of the slowest, so that all ask at the same step
        return list(map(bool, wished))


# --- gradients -------------------------------------------------------------------------------------------------------

def backward(opt: Optimiser, loss: Tensor, last: bool) -> None:
    """Gradients of what `opt` owns and of nothing else; with the last part of a batch, averaged over the ranks."""
    if count() == 1:
        return loss.backward(inputs=opt.params)
    if any(map(shards.piece, opt.params)):
        loss.backward(inputs=shards.leaves(opt.params))
        return average(opt.params) if last else None
    if last:
        opt.averaged = opt.averaged or Averaged(opt.params)
        opt.averaged.expect(loss)
    loss.backward(inputs=opt.params)


class Averaged:
    """PyTorch's reducer over some leaves: their gradients are averaged over the ranks in buckets, while the backward runs."""

    def __init__(self, leaves: Sequence[Tensor]):
        never = torch.zeros(1, device=leaves[0].device, requires_grad=True)      # by any loss: torch would warn that all are used
        held, named = Module(), dict(zip(map(str, range(len(leaves) + 1)), [never, *leaves], strict=True))
        held._parameters.update(named)           # type: ignore[arg-type]     # bare tensors, too, which a module would not register
        warnings.filterwarnings("ignore", "Grad strides do not match")
        self.ddp = torch.nn.parallel.DistributedDataParallel(        # init_sync would write over weights that a graph has saved
            held, init_sync=False, find_unused_parameters=True, gradient_as_bucket_view=True)

    def expect(self, loss: Tensor) -> None:
        """The next backward is that of this loss: a leaf that it does not reach gets no gradient on this rank."""
        self.ddp.reducer.prepare_for_backward([loss])


@torch.no_grad()
def average(leaves: Sequence[Tensor]) -> None:
    """Average gradients that nothing has averaged yet, in one flat buffer: those of whole tensors, for pieces come averaged.
    A leaf without any counts as zero where another rank has some."""
    leaves = [p for p in leaves if not shards.piece(p)]
    if not leaves:
        return
    used = torch.tensor([float(p.grad is not None) for p in leaves])
    dist.all_reduce(used)
    reached = [p for p, ranks in zip(leaves, used.tolist(), strict=True) if ranks]
    for p in reached:
        p.grad = torch.zeros_like(p) if p.grad is None else p.grad
    mean_([p.grad for p in reached if p.grad is not None])
