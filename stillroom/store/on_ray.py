"""The same write on a cluster: Ray Data hands parts of a store to workers, and a part to another one when its worker dies."""

from pathlib import Path
from typing import Any

from torch.nn import Module

from stillroom._compat import package
from stillroom.parts.taps import Hidden, Stages, Tap
from stillroom.store import prints
from stillroom.store.writing import write

PARTS = 8       # for each worker: what a death costs is a part at most, less the shards of it that are whole


def write_on_ray(folder: str | Path, teacher: Module | Tap | Stages | Hidden, data: Any, *, writers: int = 2,
                 **options: Any) -> Path:
    """`store.write` by so many workers of a Ray cluster, a GPU each where `options["device"]` is "cuda".

    folder   is seen by all machines under this name
    options  `codec`, `batch`, `device`, `rows`, … as `store.write` takes them

    A worker that dies is replaced and its part begun again; shards that are whole stay. Uses the cluster that this process is
    connected to (`RAY_ADDRESS`), else the cores of this machine. Raises `Refused` without Ray.
    """
    package("ray")
    import ray
    import ray.data

    if not ray.is_initialized():
        ray.init(include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    folder, parts = Path(folder).resolve(), PARTS * writers
    model = teacher.model if isinstance(teacher, Tap | Stages | Hidden) else teacher
    options["mark"] = prints.of_teacher(model.cpu())
    given = ray.put((folder, teacher, data, parts, options))
    ray.data.from_items([{"part": part} for part in range(parts)], override_num_blocks=parts).map_batches(
        _Writer, fn_constructor_args=(given,), batch_size=1, compute=ray.data.ActorPoolStrategy(size=writers), num_cpus=1,
        num_gpus=1 if str(options.get("device", "cpu")).startswith("cuda") else 0).materialize()
    return write(folder, teacher, data, **options)          # nothing is left to do, or a shard that was lost with its worker


class _Writer:
    """One worker, with its own copy of the teacher."""

    def __init__(self, given: Any):
        import ray

        self.folder, self.teacher, self.data, self.parts, self.options = ray.get(given)

    def __call__(self, numbers: dict[str, Any]) -> dict[str, Any]:
        for rank in numbers["part"].tolist():
            write(self.folder, self.teacher, self.data, rank=rank, ranks=self.parts, **self.options)
        return numbers
