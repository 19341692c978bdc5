"""run the teacher once: its answers on disk, to be named later as --teacher store:FOLDER"""

from typing import Annotated, Any, Literal

import tyro

Folder = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER", help="where the store goes")]
Spec = Annotated[str, tyro.conf.arg(metavar="SPEC")]
Names = Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME …", help_behavior_hint="")]


def cache(
    folder: Folder, /, *, teacher: Spec, data: Spec, codec: str = "fp16", views: int = 1, augment: Names = (),
    mixup: float = 0.0, cutmix: float = 0.0, seed: int = 0, batch: int = 256, device: str = "auto", workers: int = 0,
    size: int = 0, channels: int = 0, pretrained: bool = False, skip_corrupt: bool = False,
    rank: int = 0, ranks: int = 1, engine: Literal["here", "ray"] = "here", quiet: bool = False,
) -> None:
    """Ask the teacher about every training sample once, in as many views as wanted, and keep what it says.

    Students then learn from the store at the price of the student alone, each view with the answer to that very view: order,
    workers and a resume change nothing. The folder knows its data and views; the test split is kept beside it, unaltered and in
    full, so that the teacher can be judged. The same command goes on where it was stopped. Nothing in it is pickled.

      stillroom cache answers --teacher run:runs/teacher --data digits
      stillroom compare kd nkd_uskd --teacher store:answers --student small:mlp --seeds 3

      stillroom cache eight --teacher run:runs/teacher --data folder:images --codec top10
                            --views 8 --augment crops flip --mixup 0.2 --workers 8
      stillroom run kd --teacher store:eight --student timm:resnet18

    Args:
        teacher: model that has been trained
        data: the training split is kept; its labels, if any, are not
        codec: fp32; fp16 or bf16, half of it; top10, top64, …: the likeliest, and how much is left for the others
        views: of each sample; a pass over the store meets all of them
        augment: crops flip jitter grey solarise blur erase, in this order, each with its numbers where wanted
            (crops?least=0.25); or file:PATH.py:callable, an image to an image
        mixup: of two samples, by a share from Beta(α, α); such a view has no label, it learns from the teacher alone
        cutmix: a box from another sample, its share from Beta(α, α); with both, half of the views each
        seed: of all views
        batch: samples that the teacher is asked about at a time
        device: auto, cpu, cuda, cuda:1, mps
        workers: processes that read and augment
        size: height and width of the images; 0: as they are
        channels: of the images; 0: as they are
        pretrained: published weights, where a name has them
        skip_corrupt: leave damaged images out instead of stopping
        rank: which of several writers of the same folder this is, from 0
        ranks: how many writers there are
        engine: here: this process is one of the writers; ray: Ray Data starts all of them on its cluster, or on this machine
            without one, and puts another in the place of one that dies
        quiet: no progress
    """
    from stillroom.store.making import make

    words: dict[str, Any] = {"teacher": teacher, "data": data, "views": views, "augment": list(augment), "mixup": mixup,
                             "cutmix": cutmix, "seed": seed, "size": size, "channels": channels, "pretrained": pretrained,
                             "skip_corrupt": skip_corrupt}
    made = make(folder, words, codec=codec, batch=batch, device=device, workers=workers, rank=rank, ranks=ranks,
                engine=engine, show=not quiet)
    print(said(made))


def said(made: dict[str, Any]) -> str:
    """What was made, and the command that uses it."""
    from stillroom.commands.plan import size, span

    rate = f", {made['asked'] / made['seconds']:,.0f} samples/s" if made["asked"] else ", all of it was there before"
    each = f" × {made['views']} views" if made["views"] > 1 else ""
    row = f"{made['row']:,.0f} bytes a view ({made['codec']}, {made['classes']:,} classes)"
    lines = [f"{made['words']}{each}, said by {made['teacher']}",
             f"{made['folder']}: {size(made['bytes'])}, {row}; {span(made['seconds'])}{rate}"]
    if made["unfinished"]:
        return "\n".join([*lines, f"writer {made['unfinished']} is done; the store is whole when all of them are"])
    return "\n".join([*lines, f"the test split beside it: {made['test']:,} samples in full",
                      f"next: stillroom run kd --teacher store:{made['folder']} --student {made['student']}"])
