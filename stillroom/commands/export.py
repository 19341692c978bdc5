"""the file to ship: the student as ONNX, checked against PyTorch, timed in onnxruntime"""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillroom.commands._names import Folder
from stillroom.commands.plan import size
from stillroom.errors import Refused

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

LARGEST = 2_000_000_000      # bytes: beyond, ONNX puts the weights into a second file


def export(folder: Folder, onnx: bool = False, tolerance: float = 1e-4, out: str = "", int8: bool = False,
           data: str = "") -> None:
    """Export the student of a run, alone, with any batch size; refused when it says something else than PyTorch.

    Args:
        onnx: as ONNX; the one format there is, so it may be left out
        tolerance: largest difference allowed, absolute and relative to the largest output
        out: the file; FOLDER/student.onnx when left out
        int8: also write a file with 8-bit weights (models made of linear layers only)
        data: check on these data instead of the run's own
    """
    from stillroom import job

    ready = job.finished(Path(folder), data=data)
    if ready.sample is None:
        raise Refused(f"{folder} does not say what its student takes", "name data that it takes: --data SPEC")
    if int8 and _convolves(ready.student):
        raise Refused("int8 makes convolutions slower on a CPU, not faster", "leave out --int8")
    file = Path(out) if out else Path(folder) / "student.onnx"
    found = to_onnx(ready.student, file, inputs(ready), tolerance=tolerance, sample=ready.sample)
    print(table(found))
    if int8:
        print(table(to_int8(ready.student, file, inputs(ready), sample=ready.sample)))


def to_onnx(model: "Module", file: Path, x: Any, *, tolerance: float = 1e-4, sample: Any = None) -> dict[str, Any]:
    """Write a model as ONNX with a free batch size, after comparing what it says of `x` with PyTorch, at several batch sizes.

    x       a batch of inputs [batch, …], or a dict of them by argument
    sample  what `measure.cost` takes, for the latencies; none without it

    Raises `Refused`, and leaves no new file, when the largest difference is above `tolerance`, absolute and relative to the
    largest output both; when a package is missing; or when the model cannot be traced.
    """
    import torch

    model = model.cpu().eval()
    if sum(t.numel() * t.element_size() for t in model.state_dict().values()) > LARGEST:
        raise Refused("the student is larger than one ONNX file can be (2 GB)", "export a smaller student")
    _packages()
    few = _take(x, 2)
    batch = {0: torch.export.Dim.DYNAMIC}
    names = list(few) if isinstance(few, dict) else ["x"]
    shapes = ({name: batch for name in few},) if isinstance(few, dict) else (batch,)
    file.parent.mkdir(parents=True, exist_ok=True)
    new = file.with_name(f"{file.stem}.new.onnx")
    try:
        with torch.no_grad(), _quiet():
            torch.onnx.export(model, (few, {}), str(new), input_names=names, output_names=["logits"], dynamic_shapes=shapes,
                              dynamo=True, external_data=False, verbose=False)
    except Exception as error:
        new.unlink(missing_ok=True)
        raise Refused(f"this {type(model).__name__} cannot be exported: {_gist(error)}",
                      "its forward must take one batch, and neither branch on values nor fix the batch size") from error
    _describe(new, model)
    absolute, relative = difference(model, new, x)
    if not (absolute <= tolerance or relative <= tolerance):        # NaN is refused, too
        new.unlink()
        raise Refused(f"the exported student says something else than PyTorch: largest error {absolute:.2g}, {relative:.2g} of "
                      f"the largest output, allowed {tolerance:g}; nothing is written",
                      f"if that is near enough: --tolerance {2 * min(absolute, relative):.0e}")
    os.replace(new, file)
    return {"file": str(file), "bytes": file.stat().st_size, "absolute": absolute, "relative": relative, "samples": _length(x),
            "tolerance": tolerance, **_times(model, file, sample)}


def to_int8(model: "Module", file: Path, x: Any, *, sample: Any = None) -> dict[str, Any]:
    """Beside an exported file one with 8-bit weights and activations scaled as they come. Raises `Refused` for convolutions,
    which onnxruntime makes slower by it."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    if _convolves(model):
        raise Refused("int8 makes convolutions slower on a CPU, not faster", "leave out --int8")
    small = file.with_name(f"{file.stem}-int8.onnx")
    graph = onnx.load(file)
    del graph.graph.value_info[:]                # its shapes contradict those of the quantised graph
    with _quiet():
        quantize_dynamic(graph, small, weight_type=QuantType.QInt8)
    absolute, relative = difference(model, small, x)
    same = (_torch(model, x).argmax(-1) == _onnx(small, x).argmax(-1)).double().mean().item()
    return {"file": str(small), "bytes": small.stat().st_size, "absolute": absolute, "relative": relative, "samples": _length(x),
            "agreement": 100 * same, **_times(model, small, sample)}


def difference(model: "Module", file: Path, x: Any) -> tuple[float, float]:
    """Largest difference between what PyTorch and onnxruntime say, and its share of the largest output; over batches of 1, 3
    and all of `x`."""
    worst, largest = 0.0, 0.0
    for count in (1, 3, _length(x)):
        part = _take(x, count)
        ours, theirs = _torch(model, part), _onnx(file, part)
        if ours.shape != theirs.shape:
            file.unlink()
            raise Refused(f"the exported student gives {list(theirs.shape)} where PyTorch gives {list(ours.shape)}",
                          "its forward must not fix the batch size")
        gap = (ours - theirs).abs().max().item()
        worst, largest = gap if gap != gap else max(worst, gap), max(largest, ours.abs().max().item())
        if worst != worst:
            break
    return worst, worst / largest if largest else worst


def inputs(ready: Any, count: int = 64) -> Any:
    """Some test samples, or drawn ones where there are none."""
    from torch.utils.data import Subset

    from stillroom.batches import whole
    from stillroom.measure.cost import samples

    if ready.test is None or not len(ready.test):
        return samples(ready.sample, count)
    x = whole(Subset(ready.test, range(min(count, len(ready.test)))))[0]
    return dict(x) if isinstance(x, dict) else x


def table(found: dict[str, Any]) -> str:
    """What was exported, in words."""
    same = f"the same class for {found['agreement']:.1f} % of them; " if "agreement" in found else ""
    lines = [f"{found['file']}   {size(found['bytes'])}",
             f"  largest error      {found['absolute']:.2g}, {found['relative']:.2g} of the largest output; {same}"
             f"{found['samples']} samples, batches of 1, 3 and all"]
    where = f"cpu, {found.get('threads')} thread{'s' * (found.get('threads') != 1)}"
    for batch in (1, 32):
        if f"torch_{batch}" in found:
            before, after = found[f"torch_{batch}"], found[f"onnx_{batch}"]
            lines.append(f"  latency, batch {batch:<3} PyTorch {before:.3g} ms, onnxruntime {after:.3g} ms: "
                         f"{before / after:.2g} × as fast   median; {where}")
    return "\n".join(lines)


def _times(model: "Module", file: Path, sample: Any) -> dict[str, Any]:
    import torch

    from stillroom.measure.cost import latency, onnx_latency

    if sample is None:
        return {}
    ours, theirs = latency(model, sample, seconds=2.0), onnx_latency(file, sample, seconds=2.0)
    return {**{f"torch_{b}": ours[f"p50_{b}"] for b in (1, 32)}, **{f"onnx_{b}": theirs[f"p50_{b}"] for b in (1, 32)},
            "threads": torch.get_num_threads()}


def _torch(model: "Module", x: Any) -> "Tensor":
    import torch

    with torch.no_grad():
        return model(x).float()


def _onnx(file: Path, x: Any) -> "Tensor":
    import onnxruntime
    import torch

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    fed = {k: v.numpy() for k, v in x.items()} if isinstance(x, dict) else {session.get_inputs()[0].name: x.numpy()}
    return torch.from_numpy(session.run(None, fed)[0]).float()


def _describe(file: Path, model: Any) -> None:
    """Into the file: the names of the classes, what it takes, and who wrote it."""
    import onnx

    from stillroom import __version__

    graph = onnx.load(file)
    classes = getattr(model, "classes", None)
    onnx.helper.set_model_props(graph, {"stillroom": __version__, "input": "values in [0, 1]; it normalises them itself",
                                        **({"classes": json.dumps(classes, ensure_ascii=False)} if classes else {})})
    onnx.save(graph, file)


def _convolves(model: "Module") -> bool:
    from torch import nn

    return any(isinstance(m, nn.Conv1d | nn.Conv2d | nn.Conv3d) for m in model.modules())


def _packages() -> None:
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise Refused(f"{error.name} is not installed", "pip install 'stillroom[export]'") from error
    assert onnx and onnxruntime


def _quiet():
    """The exporter and the quantiser talk much on standard output and through warnings."""
    import contextlib
    import io
    import logging
    import warnings

    @contextlib.contextmanager
    def silence():
        level = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
                warnings.simplefilter("ignore")
                yield
        finally:
            logging.disable(level)

    return silence()


def _take(x: Any, count: int) -> Any:
    return {k: v[:count] for k, v in x.items()} if isinstance(x, dict) else x[:count]


def _length(x: Any) -> int:
    return len(next(iter(x.values()))) if isinstance(x, dict) else len(x)


def _gist(error: BaseException) -> str:
    """The first line of what began it."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else '…'}"[:300]
