"""which way is best for my models and data: equal budgets, seeds, one report"""

from typing import Annotated, Literal

import tyro

Spec = Annotated[str, tyro.conf.arg(metavar="SPEC", help_behavior_hint="")]
Text = Annotated[str, tyro.conf.arg(help_behavior_hint="")]


def compare(
    methods: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="NAME…", help_behavior_hint="")] = (), /, *,
    teacher: Spec = "", student: Spec = "", data: Spec = "", regime: Literal["few", "clean", "noisy", "weak"] = "few",
    seeds: int = 3, budget: str = "600", batch: int = 64, shared: Text = "", out: Text = "",
    only: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME/SEED…", help_behavior_hint="")] = (), retry: bool = False,
    device: str = "auto", precision: Literal["fp32", "bf16", "fp16"] = "fp32", accumulate: int = 1, workers: int = 0,
    save_every: float = 300.0, size: int = 0, channels: int = 0, pretrained: bool = False, skip_corrupt: bool = False,
) -> None:
    """Compare methods at equal budget, always beside the student alone and plain KD with its weight tuned.

    Writes report.html, result.json, runs.csv and winner/ into one folder. The same command again goes on where it was
    stopped; methods and seeds may be added.

    Args:
        methods: recipes, with other fields where wanted: kd nkd_uskd:gamma=1.0,temperature=1; alone:lr=0.01 sets the baseline's
        teacher: model, or store:FOLDER, which brings its data; without data: the one of the digits arena
        student: model; all contestants begin with the same weights
        data: training, validation and test images; without it, the handwritten digits
        regime: of the digits: fifty labels and the rest unlabelled, all labels, two in five wrong, or a weak teacher
        seeds: runs per contestant, 0 to N-1
        budget: updates per run (600), or time per run (300s, 10m, 2h)
        batch: samples per update, for every contestant
        shared: fields for every contestant that has them: lr=0.01,decay=0
        out: folder; named after data and budget when left out
        only: runs to do now, as kd/0; the others are left for another time or machine
        retry: run failed ones anew
        device: auto, cpu, cuda, cuda:1, mps
        precision: of the step; weights stay fp32
        accumulate: micro-batches per update
        workers: processes that load data
        save_every: seconds between checkpoints
        size: height and width of the images; 0: as they are
        channels: of the images; 0: as they are
        pretrained: begin from published weights where a name has them
        skip_corrupt: leave damaged images out instead of stopping
    """
    from stillroom.comparison import compare

    compare(*methods, teacher=teacher, student=student, data=data, regime=regime, seeds=seeds, budget=budget, batch=batch,
            shared=shared, out=out, only=only, retry=retry, device=device, precision=precision,
            accumulate=accumulate, workers=workers, save_every=save_every, size=size, channels=channels, pretrained=pretrained,
            skip_corrupt=skip_corrupt)
