"""what was kept and what it costs: accuracy, calibration, agreement, parameters, FLOPs, latency, size"""

import json as _json
from pathlib import Path
from typing import Any

from stillroom.commands._names import Folder
from stillroom.commands.plan import size
from stillroom.errors import Refused


def measure(folder: Folder, data: str = "", teacher: str = "", json: bool = False, repeats: int = 50) -> None:
    """Measure the student of a run beside its teacher, on the test split, which no training has seen.

    Args:
        data: judge on these data instead of the run's own
        teacher: compare with this model instead of the run's own
        json: as JSON
        repeats: runs per latency
    """
    from stillroom import job
    from stillroom.parts.teachers import Cached

    ready = job.finished(Path(folder), data=data, teacher=teacher)
    found: dict[str, Any] = {"folder": folder, "data": ready.words, "student": facts(ready.student, ready, repeats)}
    if ready.teacher is not None:
        try:
            found["teacher"] = facts(ready.teacher, ready, repeats)
        except Refused as error:                     # a store that holds nothing on these data
            found["teacher"], found["unknown"] = {}, str(error)
        if isinstance(ready.teacher, Cached):
            found["stored"] = str(ready.teacher.rows.folder)
        if all("said" in found[who] for who in ("student", "teacher")):
            same = found["student"]["said"] == found["teacher"]["said"]
            found["agreement"] = 100 * same.double().mean().item()
    for who in ("student", "teacher"):
        found.get(who, {}).pop("said", None)
    print(_json.dumps(found, indent=1, ensure_ascii=False) if json else table(found))


def facts(net: Any, ready: Any, repeats: int) -> dict[str, Any]:
    """Everything that is measured of one network; `said` are its classes, [samples]. Of a store: what was when it was written."""
    from stillroom import job
    from stillroom.measure import answers, calibration_error, cost
    from stillroom.measure.classification import right
    from stillroom.measure.cost import bytes_on_disk, parameters
    from stillroom.measure.segmentation import mean_iou, segmented
    from stillroom.parts.teachers import Cached

    found: dict[str, Any] = {}
    if job.classifies(net, ready.test):
        logits, y = answers(net, ready.test)
        same_classes(net, logits.shape[1], ready)
        found = {"accuracy": right(logits, y), "ece": calibration_error(logits, y), "samples": len(y), "said": logits.argmax(-1)}
    if job.segments(net, ready.test):
        found = {"mIoU": mean_iou(segmented(net, ready.test)), "samples": len(ready.test)}
    if isinstance(net, Cached):
        return found | net.cost
    if ready.sample is not None and job.takes(net, ready.sample):
        return found | cost(net, ready.sample, repeats=repeats)
    return {"parameters": parameters(net), "bytes": bytes_on_disk(net)}


def same_classes(net: Any, width: int, ready: Any) -> None:
    """The data count their classes as the network does. Raises `Refused`."""
    there, known = list(getattr(ready.test, "classes", None) or []), list(getattr(net, "classes", None) or [])
    if there and len(there) != width:
        raise Refused(f"the network tells {width} classes apart, the data {len(there)} ({ready.words})",
                      "judge it on data of its own classes")
    if there and known and there != known:
        i = next(i for i, pair in enumerate(zip(known, there)) if pair[0] != pair[1])
        raise Refused(f"class {i} is {known[i]!r} to the network and {there[i]!r} in the data", "put the classes in one order")


def table(found: dict[str, Any]) -> str:
    """What was measured, student beside teacher."""
    student, teacher = found["student"], found.get("teacher", {})
    rows = [("", "student", "teacher" if teacher else "", "")]

    def row(title: str, key: str, show, about: str = "") -> None:
        if key in student:
            rows.append((title, show(student[key]), show(teacher[key]) if key in teacher else "", about))

    row("accuracy", "accuracy", lambda v: f"{v:.2f} %", f"of {student.get('samples')} test samples")
    row("mIoU", "mIoU", lambda v: f"{v:.2f} %", f"of {student.get('samples')} test images")
    row("calibration error", "ece", lambda v: f"{v:.2f} %", "expected, 15 bins")
    if "agreement" in found:
        rows.append(("agreement", f"{found['agreement']:.2f} %", "", "says what the teacher says"))
    row("parameters", "parameters", lambda v: f"{v:,}")
    row("on disk", "bytes", size, "safetensors")
    row("FLOPs", "flops", lambda v: f"{v:.3g}", "one sample, 2 per multiply-add")
    where = f"{student.get('device')}, {student.get('threads')} thread{'s' * (student.get('threads') != 1)}"
    for batch in (1, 32):
        row(f"latency, batch {batch}", f"p50_{batch}", lambda v: f"{v:.3g} ms", f"median; {where}")
        row("", f"p95_{batch}", lambda v: f"{v:.3g} ms", "95th percentile")
    wide = [max(len(r[i]) for r in rows) for i in range(3)]
    lines = [f"  {r[0]:<{wide[0]}}  {r[1]:>{wide[1]}}  {r[2]:>{wide[2]}}  {r[3]}".rstrip() for r in rows]
    alone = [] if "flops" in student else ["  it takes other inputs than samples: its operations and its time are not known"]
    if "stored" in found:
        alone += [f"  the teacher's column comes from {found['stored']}: its times were taken when that was written"]
    if "unknown" in found:
        alone += [f"  {found['unknown']}"]
    return "\n".join([f"{found['folder']} on {found['data']}", *lines, *alone])
