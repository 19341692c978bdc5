"""What is left behind: result.json, runs.csv, winner/, report.html, and a table on the terminal."""

import csv
import os
import shutil
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from stillroom import recipe, report
from stillroom.comparison.files import read, write
from stillroom.comparison.plan import ALONE, FORMAT, Contestant, Plan, repeat
from stillroom.comparison.ranks import mean_std, rank
from stillroom.comparison.versions import versions

COLUMNS = ("contestant", "seed", "status", "accuracy", "ece", "loss", "agreement", "updates", "seconds", "initial", "error",
           "command")


def outcome(plan: Plan) -> dict[str, Any]:
    """Everything that is known, as one JSON-able tree: what the report shows, and all of it."""
    cells = []
    for contestant, seed in plan.cells:
        found = read(plan.folder(contestant, seed) / "result.json") or {"status": "missing"}
        cells.append({"contestant": contestant.name, "seed": seed, **found,
                      "command": repeat(plan, contestant, seed, found.get("fields", {}))})
    ranking = rank([_described(c) for c in plan.contestants], cells)
    teachers = [t for s in plan.seeds if (t := read(plan.out / "teacher" / f"seed{s}.json"))]
    about = teachers[0] if teachers else {}
    pooled = {k: np.sum([t[k] for t in teachers], 0).tolist() for k in about if k.startswith(("bins_", "classes_"))}
    return {
        "format": FORMAT, "made": time.strftime("%Y-%m-%d %H:%M"), "command": plan.command, "folder": str(plan.out),
        **{k: about.get(k) for k in ("words", "classes", "shape", "images")}, "resplit": not plan.settings["actors"]["data"],
        "teacher": {**{k: [t[k] for t in teachers] for k in ("accuracy", "ece")}, "cost": about.get("cost", {}), **pooled},
        "settings": {k: v for k, v in plan.settings.items() if k != "fields"}, "seeds": plan.seeds, "budget": list(plan.budget),
        "updates": plan.updates, "timed": plan.timed, "tuning": read(plan.out / "tuning.json") or {}, "cells": cells,
        "contestants": [c.name for c in plan.contestants], "ranking": ranking,
        "winner": ranking[0]["name"] if ranking[0]["complete"] and all(c["status"] != "missing" for c in cells) else "",
        "versions": versions(),
    }


def leave(plan: Plan, result: dict[str, Any]) -> None:
    """Write the files. `winner/` is a copy of the first seed's run of the contestant with the best mean."""
    write(plan.out / "result.json", result)
    with open(plan.out / "runs.csv", "w", newline="", encoding="utf-8") as stream:
        table = csv.DictWriter(stream, COLUMNS, extrasaction="ignore")
        table.writeheader()
        table.writerows(result["cells"])
    _crown(plan, result["winner"])
    if all(c["status"] != "missing" for c in result["cells"]):
        for file in (plan.out / "tuning").glob("*/checkpoint.pt"):
            file.unlink()
    report.page(plan.out)


def _crown(plan: Plan, name: str) -> None:
    """Let `winner/` hold the winner; one that is there already keeps what was exported into it."""
    new, old = plan.out / "winner.new", plan.out / "winner"
    best = next((plan.folder(c, plan.seeds[0]) for c in plan.contestants if c.name == name), None)
    if best and old.exists() and read(old / "result.json") == read(best / "result.json"):
        return
    shutil.rmtree(new, ignore_errors=True)
    if best:
        shutil.copytree(best, new)
    shutil.rmtree(old, ignore_errors=True)
    if best:
        os.replace(new, old)


def show(result: dict[str, Any]) -> None:
    """The table, what it says, and where to go from here."""
    from rich.console import Console
    from rich.table import Table

    from stillroom.report import words

    folder, console = Path(result["folder"]), Console()
    console = console if console.is_terminal else Console(width=120)
    plain = partial(console.print, markup=False, highlight=False, soft_wrap=True)
    table = Table(box=None, header_style="bold", padding=(0, 1, 0, 0))
    for column in ("", "accuracy, %", "to student alone", "to tuned KD", "ECE, %", "s/run"):
        table.add_column(column, justify="right" if column else "left", no_wrap=bool(column))
    for row in result["ranking"]:
        label = row["label"] + (f"  {row['failed']} of {row['runs']} failed" if row["failed"] else "")
        table.add_row(label, words.spread(row["accuracy"]), words.interval(row["vs_alone"]), words.interval(row["vs_tuned"]),
                      words.percent(row["ece"]["mean"]), words.number(row["seconds"]["mean"], 2),
                      style="bold" if row["name"] == result["winner"] else None)
    if result["teacher"]["accuracy"]:
        table.add_row("teacher", words.spread(mean_std(result["teacher"]["accuracy"])), style="dim")
    console.print(table)
    plain(f"\n{words.headline(result)}\n", style="bold")
    for cell in result["cells"]:
        if cell["status"] == "failed":
            plain(f"failed   {cell['contestant']}, seed {cell['seed']}: {cell['error']}", style="red")
    plain(f"report   {folder / 'report.html'}")
    if result["winner"]:
        plain(f"winner   {folder / 'winner'}    ship it: stillroom export {folder / 'winner'} --onnx")


def _described(c: Contestant) -> dict[str, Any]:
    """Who a contestant is, for the report."""
    fields = {f.name: {"default": f.default, "meaning": f.help} for f in c.described}
    if c.recipe == ALONE:
        label, title, link = "Student alone", "Cross-entropy with the labels and nothing else", ""
    else:
        card = recipe.card(c.recipe)
        label, title, link = "Tuned KD" if c.role == "tuned" else c.kind.__name__, card.title, card.link
    own = c.name.partition(":")[2].replace(",", ", ")
    return {"name": c.name, "label": label + (f" ({own})" if own else ""), "title": title, "link": link, "role": c.role,
            "recipe": c.recipe, "fields": fields, "changed": sorted(c.changed)}
