"""What a model costs: parameters, bytes on disk, operations, milliseconds."""

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from stillroom.batches import to_device

BATCHES = (1, 32)


Sample = tuple[int, ...] | Mapping[str, Tensor]     # the shape of one sample, or one sample by argument for models of text


def cost(model: Module, shape: Sample, *, repeats: int = 50, seconds: float = 5.0) -> dict[str, Any]:
    """What the model costs on the device where it lies. `shape`: of one sample, without the batch; or a sample of named tensors.

    parameters  count, tied weights once
    bytes       on disk as safetensors
    flops       of one sample's forward, 2 per multiply-add; convolutions, matrix products and attention, nothing else
    p50_1 p95_1 p50_32 p95_32  milliseconds of a forward of 1 and of 32 samples, after a warm-up; at most `repeats`
                runs and about `seconds` for each batch size, never fewer than 5 runs
    threads     that the CPU was allowed
    device      "cpu", "cuda", "mps"
    """
    return {
        "parameters": parameters(model), "bytes": bytes_on_disk(model), "flops": flops(model, shape),
        **latency(model, shape, repeats=repeats, seconds=seconds),
        "threads": torch.get_num_threads(), "device": placed(model).type,
    }


def parameters(model: Module) -> int:
    """Number of parameters; a tied weight counts once."""
    return sum(p.numel() for p in model.parameters())


def bytes_on_disk(model: Module) -> int:
    """Size of the model's weights and buffers as one safetensors file."""
    from safetensors.torch import save_model

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.safetensors"
        save_model(model, str(file))
        return file.stat().st_size


def flops(model: Module, shape: Sample) -> int:
    """Operations of one sample's forward, 2 per multiply-add."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    plain = sdpa_kernel(SDPBackend.MATH)                 # fused attention is not counted everywhere
    with resting(model), plain, FlopCounterMode(display=False) as counter:
        model(to_device(samples(shape, 1), placed(model)))
    return counter.get_total_flops()


def latency(model: Module, shape: Sample, *, repeats: int = 50, seconds: float = 5.0) -> dict[str, float]:
    """`p50_B`, `p95_B`: milliseconds of one forward of B samples, for B = 1 and 32."""
    found = {}
    wait = {"cuda": torch.cuda.synchronize, "mps": torch.mps.synchronize}.get(placed(model).type)
    with resting(model):
        for batch in BATCHES:
            x = to_device(samples(shape, batch), placed(model))
            found.update(_percentiles(batch, _times(partial(model, x), repeats, seconds, wait)))
    return found


def onnx_latency(file: str | Path, shape: Sample, *, repeats: int = 50, seconds: float = 5.0) -> dict[str, float]:
    """The same of an ONNX file in onnxruntime, on the CPU, with as many threads as torch has."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 3
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    found = {}
    for batch in BATCHES:
        x = samples(shape, batch)
        inputs = {k: v.numpy() for k, v in x.items()} if isinstance(x, dict) else {session.get_inputs()[0].name: x.numpy()}
        found.update(_percentiles(batch, _times(partial(session.run, None, inputs), repeats, seconds)))
    return found


def _times(call: Callable[[], Any], repeats: int, seconds: float, wait: Callable[[], None] | None = None) -> list[float]:
    """Milliseconds of each call, after some that do not count: three, or one that is slow."""
    times: list[float] = []
    warm = 3
    while len(times) < repeats:
        began = time.perf_counter()
        call()
        if wait:
            wait()
        times.append(1000 * (time.perf_counter() - began))
        if warm:
            warm = 0 if times.pop() > 100 * seconds else warm - 1
        elif len(times) >= 5 and sum(times) > 1000 * seconds:
            break
    return times


def _percentiles(batch: int, times: list[float]) -> dict[str, float]:
    p50, p95 = torch.tensor(times, dtype=torch.float64).quantile(torch.tensor([0.5, 0.95], dtype=torch.float64)).tolist()
    return {f"p50_{batch}": p50, f"p95_{batch}": p95}


@contextmanager
def resting(model: Module) -> Iterator[None]:
    """Eval mode and no gradients inside; every module's own mode afterwards."""
    modes = [(m, m.training) for m in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for m, mode in modes:
            m.training = mode


def placed(model: Module) -> torch.device:
    """Where a model takes its inputs: where its weights or buffers lie, the CPU when it has none there."""
    return next((t.device for t in (*model.parameters(), *model.buffers()) if not t.is_meta), torch.device("cpu"))


def samples(shape: Sample, batch: int) -> Any:
    """A batch: drawn evenly from [0, 1], or the given sample over and over."""
    if isinstance(shape, Mapping):
        return {k: v.expand(batch, *v.shape).contiguous() for k, v in shape.items()}
    return torch.rand(batch, *shape, generator=torch.Generator().manual_seed(0))
