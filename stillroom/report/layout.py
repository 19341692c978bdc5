"""The pages, put together from words, pictures and pieces."""

import json
from pathlib import Path
from typing import Any

from stillroom.errors import Refused
from stillroom.report import pictures, words
from stillroom.report.pieces import (
    Cell,
    Row,
    command,
    difference,
    figure,
    figures,
    note,
    page,
    pairs,
    percent,
    plain,
    setting,
    table,
    text,
    value,
)

MANY = 20          # classes that a strip shows in full
SHOWN = 200        # images of a made data set
SMALL = 500        # validation images below which a curve is rough


def comparison(result: dict[str, Any]) -> str:
    """The page of a comparison, from its result.json."""
    parts = {"Result": _result(result), "Cost": _cost(result), "Training": _training(result), "Classes": _classes(result),
             "Runs": _runs(result), "Settings": _settings(result), "Repeat it": _repeat(result)}
    links = sections = ""
    for name, part in parts.items():
        if part:
            at = name.lower().partition(" ")[0]
            links += f'<a href="#{at}">{name}</a>'
            sections += f'<section id="{at}"><h2>{name}</h2>{part}</section>'
    foot = (f"Made by stillroom {result['versions']['stillroom']} on {result['made']}. All numbers are in result.json, all runs "
            "in runs.csv, beside this page.")
    return page(words.headline(result), f"<header>{_head(result)}<nav>{links}</nav></header><main>{sections}</main>"
                                        f"<footer>{text(foot)}</footer>")


def run(folder: Path) -> str:
    """The page of one run: its scalars over time and its settings."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    file = folder / "run.json"
    facts = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    names = dict.fromkeys(k for line in lines for k in line if k not in ("loop", "step", "seconds"))
    high = {n: max(abs(line[n]) for line in lines if n in line) for n in names}
    groups: list[list[str]] = []
    for name in sorted(names, key=lambda n: -high[n]):          # scalars of one size share a picture
        if groups and high[groups[-1][0]] < 8 * high[name] and len(groups[-1]) < 5:
            groups[-1].append(name)
        else:
            groups.append([name])
    drawn = figures(*(figure(", ".join(g), "", pictures.history(lines, g, ", ".join(g))) for g in groups))
    updates = sum({line["loop"]: line["step"] + 1 for line in lines}.values())
    took = words.seconds(lines[-1]["seconds"] if lines else 0.0)
    head = (f'<p class="over"><b>stillroom</b> · a run · {text(facts.get("began", ""))}</p>'
            f"<h1>{text(facts.get('recipe', folder.name))}: {words.count(updates, 'update')} in {text(took)}</h1>")
    known = {**facts.get("fields", {}), **{k: v for k, v in facts.items() if not isinstance(v, dict | list)}}
    parts = {"Result": _reached(facts.get("result", {})), "Made": _made(folder), "Log": drawn, "Settings": pairs(known.items())}
    return page(f"stillroom run {folder.name}", f"<header>{head}</header><main>" + "".join(
        f'<section id="{name.lower()}"><h2>{name}</h2>{part}</section>' for name, part in parts.items() if part) + "</main>")


def _reached(result: dict[str, Any]) -> str:
    """What a run was judged to be: its accuracy or mIoU, or the proof of the recipe's own trial."""
    if "mIoU" in result:
        return note(f"{result['mIoU']:.2f} % mIoU of {result['samples']:,} test images")
    if "beats" not in result:
        return note(f"{result['accuracy']:.2f} % of {result['samples']:,} test samples right") if result else ""
    rows = {"what was made": result["ours"], f"{result['baseline']} (to be beaten)": result["beats"], **result["also"]}
    return table([("", "text"), (result["unit"], "desc" if result["better"] == "higher" else "")],
                 [Row([plain(who), value(words.number(number, 4), number)], "best" if at == 0 else "") for at, (who, number)
                  in enumerate(rows.items())], f"{result['better'].capitalize()} is better. The proof "
                 f"{'holds' if result['holds'] else 'does not hold'} with this seed.")


def _made(folder: Path) -> str:
    """The images among the tensors that a run made, or those that its proof shows."""
    from stillroom import saved

    if (folder / "shown").exists():
        return figures(*(figure(name, "", pictures.gallery(images)) for name, images in saved.load(folder / "shown").items()))
    if not (folder / "made.json").exists():
        return ""
    from torch import Tensor

    try:
        made = saved.load(folder)
    except Refused:                      # a network of one's own among the things: it cannot be built, nor is it an image
        return ""
    for thing in made if isinstance(made, tuple | list) else [made]:
        if isinstance(thing, Tensor) and thing.ndim == 4 and thing.shape[1] in (1, 3) and thing.is_floating_point():
            shown = f", the first {SHOWN}" if len(thing) > SHOWN else ""
            return figures(figure(f"{words.count(len(thing), 'image')} of {thing.shape[2]} × {thing.shape[3]}{shown}", "",
                                  pictures.gallery(thing[:SHOWN].detach().float().cpu())))
    return ""


# --- sections of a comparison ----------------------------------------------------------------------------------------


def _head(result: dict[str, Any]) -> str:
    """The sentence, what the winner costs, and four numbers."""
    best = next((r for r in result["ranking"] if r["name"] == result["winner"]), None)
    over = f"comparison on {result['words'] or 'unknown data'} · {result['made']}"
    head = (f'<p class="over"><b>stillroom</b> · {text(over)}</p><h1>{text(words.headline(result))}</h1>'
            f'<p class="lead">{text(words.costs(result))}</p>')
    if not best:
        return head
    mine, teacher, gain = best["cost"], result["teacher"]["cost"], best["vs_alone"]
    cards = [(words.percent(best["accuracy"]["mean"]), "%",
              f"test images right: {best['label']}, mean of {words.count(len(result['seeds']), 'seed')}")]
    if gain:
        sure = "" if gain["low"] is None else f", 95 % interval {words.percent(gain['low'])} to {words.percent(gain['high'])}"
        cards.append((words.points(gain["difference"]), "", f"percentage points beside the student alone{sure}"))
    size, unit = words.bytes_(mine["bytes"]).split(" ")
    cards.append((size, unit,
                  f"on disk, {mine['parameters']:,} parameters; the teacher has {words.bytes_(teacher['bytes'])}"))
    cards.append((words.number(mine["p50_1"]), "ms", f"for one image; the teacher needs {words.number(teacher['p50_1'])} ms"))
    return head + '<div class="figures">' + "".join(
        f"<div><b>{number}<small> {unit}</small></b><span>{text(said)}</span></div>" for number, unit, said in cards) + "</div>"


def _result(result: dict[str, Any]) -> str:
    """The ranking, what it can show, and the differences drawn."""
    rows = []
    for row in result["ranking"]:
        badge = '<span class="badge">winner</span>' if row["name"] == result["winner"] else ""
        failed = f"<small>{row['failed']} of {words.count(row['runs'], 'run')} failed</small>" if row["failed"] else ""
        rows.append(Row([
            Cell(_who(result, row["name"]) + badge + failed, row["label"]),
            value(words.spread(row["accuracy"]), row["accuracy"]["mean"]), difference(row["vs_alone"]),
            difference(row["vs_tuned"]), percent(row["ece"]["mean"]), percent(row["agreement"]["mean"]),
            value(words.number(row["seconds"]["mean"]), row["seconds"]["mean"])], "best" if badge else ""))
    teacher = result["teacher"]
    if teacher["accuracy"]:
        mean, error = (pictures.mean_std(teacher[k]) for k in ("accuracy", "ece"))
        none = Cell(words.NONE)
        rows.append(Row([Cell("Teacher", "teacher"), value(words.spread(mean), mean["mean"]), none, none, percent(error["mean"]),
                         none, none], "reference"))
    columns = [("Contestant", "text"), ("Accuracy, %\nmean ± std", "desc"), ("To student alone,\npoints [95 %]", "desc"),
               ("To tuned KD,\npoints [95 %]", "desc"), ("Calibration\nerror, %", ""), ("Same answer as\nteacher, %", "desc"),
               ("Training\nper run, s", "")]
    fair = ("Every contestant had the same budget, batch, data and first weights. Accuracy is that of the last update, never of "
            "the best one.")
    failures = "".join(f"<li>{text(c['contestant'])}, seed {c['seed']}: {text(c['error'])}</li>"
                       for c in result["cells"] if c["status"] == "failed")
    flattering = ("The winner was found with the same test images that its number is from, so its lead over the next is a little "
                  "flattering.") if sum(r["done"] > 0 for r in result["ranking"]) > 2 else ""
    return (table(columns, rows, fair) + (f"<h3>Failed runs</h3><ul>{failures}</ul>" if failures else "")
            + note(text(f"{words.power(result)} {flattering}"))
            + figures(_forest(result, "alone", "Beside the student alone"), _forest(result, "tuned", "Beside plain KD, tuned")))


def _forest(result: dict[str, Any], against: str, title: str) -> str:
    if not any(r[f"vs_{against}"] and r["role"] != "alone" for r in result["ranking"]):
        return ""
    said = "Mean difference and 95 % interval; small strokes are the seeds. Zero inside the interval: chance could have made it."
    return figure(title, said, pictures.forest(result, against))


def _cost(result: dict[str, Any]) -> str:
    """Accuracy against speed and size, and what every distinct network costs."""
    where = result["teacher"]["cost"]
    if not where or not any(r["done"] for r in result["ranking"]):
        return ""
    alike: dict[str, tuple[list[str], dict[str, Any]]] = {}
    for row in result["ranking"]:
        if row["done"]:
            alike.setdefault(json.dumps(row["cost"]), ([], row["cost"]))[0].append(row["label"])
    rows = [Row(_costs(f"Student of {', '.join(names)}" if len(alike) > 1 else "Student", cost))
            for names, cost in alike.values()]
    columns = [("Network", "text"), ("Parameters", ""), ("On disk", ""), ("Operations\nper image", ""),
               ("One image, ms\nmedian (95th)", ""), ("32 images, ms\nmedian (95th)", "")]
    how = (f"Measured on {where['device']} with {words.count(where['threads'], 'thread')}; students that are built alike are "
           "measured once. An operation is one multiplication or addition; median and 95th percentile of the times.")
    speed = ("Up is better, left is cheaper. Nothing here is both cheaper and better than what lies on the line; strokes are ± "
             "one standard deviation.")
    size = "The same against the size of the weights on disk."
    return (figures(figure("Accuracy and speed", speed, pictures.pareto(result, "p50_1")),
                    figure("Accuracy and size", size, pictures.pareto(result, "bytes")))
            + table(columns, [*rows, Row(_costs("Teacher", where), "reference")], sortable=False) + note(text(how)))


def _costs(name: str, cost: dict[str, Any]) -> list[Cell]:
    times = (f"{words.number(cost[f'p50_{b}'])} ({words.number(cost[f'p95_{b}'])})" for b in (1, 32))
    return [plain(name), plain(f"{cost['parameters']:,}"), plain(words.bytes_(cost["bytes"])), plain(words.short(cost["flops"])),
            *map(plain, times)]


def _training(result: dict[str, Any]) -> str:
    """Learning curves and calibration, with the legend of both."""
    shown = [r["name"] for r in result["ranking"] if r["done"]]
    if not shown:
        return ""
    legend = "".join(f"<li>{_who(result, name)}</li>" for name in shown)
    seeds = "Mean over seeds; the band runs from the lowest to the highest seed."
    if (result["images"] or {}).get("valid", 0) <= SMALL:
        seeds += " The validation split is small, so the curves are rough."
    sure = "On the dotted line a student that is 80 % sure is right 80 times of 100. All seeds together."
    return f'<ul class="legend">{legend}</ul>' + figures(
        figure("Learning curves", seeds, pictures.curves(result)), figure("Calibration", sure, pictures.calibration(result)))


def _classes(result: dict[str, Any]) -> str:
    """A strip of colours: how much each class gained or lost beside the student alone."""
    change = _changes(result)
    if not change:
        return ""
    shown, cut = list(range(len(result["classes"]))), ""
    if len(shown) > MANY:
        lead = next(iter(change.values()))
        order = sorted((i for i in shown if lead[i] is not None), key=lambda i: lead[i] or 0.0)
        shown = order[: MANY // 2] + order[-MANY // 2 :]
        cut = f" Of {len(result['classes'])} classes those {MANY} that change most with the first contestant."
    most = max((abs(v) for row in change.values() for v in row if v), default=1.0)
    head = "".join(f'<th scope="col">{text(result["classes"][i])}</th>' for i in shown)
    body = "".join(f'<tr><th scope="row">{_who(result, name)}</th>{"".join(_heat(row[i], most) for i in shown)}</tr>'
                   for name, row in change.items())
    said = ("Change of each class's accuracy beside the student alone, in percentage points, all seeds together: blue is gained, "
            f"orange is lost.{cut}")
    return (f'{note(text(said))}<div class="scroll" tabindex="0"><table class="strip sticky"><thead><tr>'
            f'<th scope="col">Class</th>{head}</tr></thead><tbody>{body}</tbody></table></div>')


def _changes(result: dict[str, Any]) -> dict[str, list[float | None]]:
    """By contestant: change of every class's accuracy, in points, over the seeds that it and the student alone have done."""
    done = {(c["contestant"], c["seed"]): c for c in result["cells"] if c["status"] == "done"}
    base = next(r["name"] for r in result["ranking"] if r["role"] == "alone")
    change: dict[str, list[float | None]] = {}
    for row in result["ranking"]:
        seeds = [s for s in result["seeds"] if (row["name"], s) in done and (base, s) in done]
        if row["name"] != base and seeds:
            ours, theirs, count = ([sum(of) for of in zip(*(done[name, s][key] for s in seeds))] for name, key in (
                (row["name"], "classes_right"), (base, "classes_right"), (base, "classes_count")))
            change[row["name"]] = [100 * (a - b) / n if n else None for a, b, n in zip(ours, theirs, count, strict=True)]
    return change


def _heat(change: float | None, most: float) -> str:
    if change is None:
        return f"<td>{words.NONE}</td>"
    kind = "gain" if change > 0 else "loss" if change < 0 else ""
    return f'<td class="{kind}" style="--heat:{65 * abs(change) / most:.0f}%">{words.points(change)}</td>'


def _runs(result: dict[str, Any]) -> str:
    """Every run, those that failed as well."""
    order = [r["name"] for r in result["ranking"]]
    rows = []
    for c in sorted(result["cells"], key=lambda c: (order.index(c["contestant"]), c["seed"])):
        state = {"done": "done", "missing": "not run yet"}.get(c["status"], c.get("error", "failed"))
        rows.append(Row([
            Cell(_who(result, c["contestant"]), _row(result, c["contestant"])["label"]), plain(c["seed"]),
            *(percent(c.get(k)) for k in ("accuracy", "ece", "agreement")), value(f"{c.get('updates', 0):,}", c.get("updates")),
            value(words.number(c.get("seconds")), c.get("seconds")),
            Cell(f"<code>{text(c.get('initial', ''))}</code>", c.get("initial", "")), Cell(text(state), c["status"], "text why")],
            "" if c["status"] == "done" else "failed"))
    columns = [("Run", "text"), ("Seed", ""), ("Accuracy, %", "desc"), ("Calibration\nerror, %", ""),
               ("Same answer as\nteacher, %", "desc"), ("Updates", ""), ("Training, s", ""), ("First\nweights", ""),
               ("State", "text")]
    return table(columns, rows, "Runs of one seed begin with the same weights: the same eight letters.")


def _settings(result: dict[str, Any]) -> str:
    """What was compared, how plain KD was tuned, and the fields of every contestant."""
    (unit, amount), images, options = result["budget"], result["images"] or {}, result["settings"]
    budget = f"{int(amount):,} updates for every run" if unit == "steps" else (
        f"{words.seconds(amount)} of training for every run; a measured update decides how many fit, so schedules stay whole")
    some = f", {images['labelled']:,} of them with a label" if images.get("labelled") != images.get("train") else ""
    varies = ("each draws its own split, labels, teacher, first weights and order" if result["resplit"]
              else "the split is the same, first weights and order differ")
    shape = " × ".join(map(str, result["shape"] or []))
    teacher = result["teacher"]["accuracy"]
    right = f", {words.spread(pictures.mean_std(teacher))} % of test images right" if teacher else ""
    arena = "the one of the digits arena"
    facts = {
        "Data": result["words"] or words.NONE,
        "Images": f"{images.get('train', 0):,} to train with{some}; {images.get('valid', 0):,} to choose with; "
                  f"{images.get('test', 0):,} to judge with",
        "An image": f"{shape}, {words.count(len(result['classes'] or []), 'class', 'classes')}",
        "Seeds": f"{', '.join(map(str, result['seeds']))}; {varies}", "Budget": budget,
        "Batch": f"{options['batch']} images per update", "Teacher": (options["actors"]["teacher"] or arena) + right,
        "Student": options["actors"]["student"] or arena,
        "Precision": options["precision"]}
    fields = "".join(_fields(result, name) for name in result["contestants"])
    return f"{pairs(facts.items())}{_tuning(result)}<h3>Fields</h3>{fields}"


def _fields(result: dict[str, Any], name: str) -> str:
    """A contestant's fields: value, the paper's, who set it, meaning."""
    row = _row(result, name)
    ran: dict[str, Any] = next((c["fields"] for c in result["cells"] if c["contestant"] == name and "fields" in c), {})
    tuned = (result["tuning"].get("chosen") or {}) if row["role"] == "tuned" else {}
    rows = []
    for field, known in row["fields"].items():
        why = ("tuned" if field in tuned else "the budget" if field.startswith("steps") else "equal for all" if field == "batch"
               else "given" if field in row["changed"] else "")
        values = (Cell(text(setting(v))) for v in (ran.get(field, known["default"]), known["default"]))
        rows.append(Row([Cell(f"<code>{text(field)}</code>"), *values, Cell(why, "", "text"),
                         Cell(text(known["meaning"]), "", "text wrap")]))
    title = f'<a href="{text(row["link"])}" rel="noreferrer">{text(row["title"])}</a>' if row["link"] else text(row["title"])
    columns = [("Field", "text"), ("Value", ""), ("Paper", ""), ("Set by", "text"), ("Meaning", "text")]
    return (f"<details><summary>{_who(result, name)}<small>{text(name)}</small></summary>{note(title)}"
            f"{table(columns, rows, sortable=False)}</details>")


def _tuning(result: dict[str, Any]) -> str:
    """The grid of the tuned KD, with what tuning cost."""
    tuning = result["tuning"]
    if not tuning.get("trials"):
        return ""
    alphas, temperatures = (sorted({t[k] for t in tuning["trials"]}) for k in ("alpha", "temperature"))
    by = {(t["alpha"], t["temperature"]): t for t in tuning["trials"]}
    chosen = tuning["chosen"]
    body = ""
    for a in alphas:
        body += f'<tr><th scope="row" class="text">alpha {a:g}</th>'
        for t in temperatures:
            mark = ' class="chosen"' if chosen == {"alpha": a, "temperature": t} else ""
            body += f"<td{mark}>{words.percent(by[a, t]['accuracy']) if by[a, t]['status'] == 'done' else 'failed'}</td>"
        body += "</tr>"
    head = "".join(f'<th scope="col">temperature {t:g}</th>' for t in temperatures)
    what = f"Chosen: alpha {chosen['alpha']:g}, temperature {chosen['temperature']:g}." if chosen else "No trial reached its end."
    said = (f"Share of the teacher in the loss (alpha) and temperature, with the same budget as every run: "
            f"{words.count(len(tuning['trials']), 'trial')} on seed {tuning['seed']}, {words.seconds(tuning['seconds'])} of "
            "training in all, judged by the validation images, in percent below. Of what comes within one standard error of the "
            f"best ({words.percent(tuning['slack'])} points) the smallest validation loss ran on all seeds. {what}")
    return (f'<h3>How plain KD was tuned</h3><p>{text(said)}</p><div class="scroll"><table class="grid"><thead><tr><th></th>'
            f"{head}</tr></thead><tbody>{body}</tbody></table></div>")


def _repeat(result: dict[str, Any]) -> str:
    """The commands: all of it, the export, every single run; and the versions."""
    said = "<p>The whole comparison; in the same folder it goes on where it was stopped:</p>" + command(result["command"])
    if result["winner"]:
        ship = f"The winner to ship: its student of seed {result['seeds'][0]}, the first seed and not the best one."
        said += f"<p>{text(ship)}</p>" + command(f"stillroom export {result['folder']}/winner --onnx")
    singles = ""
    for name in result["contestants"]:
        commands = "".join(command(c["command"]) for c in result["cells"] if c["contestant"] == name)
        singles += f"<details><summary>{_who(result, name)}<small>each of its runs</small></summary>{commands}</details>"
    return f"{said}<h3>One run again</h3>{singles}<h3>Made with</h3>{pairs(result['versions'].items())}"


# --- contestants -----------------------------------------------------------------------------------------------------


def _row(result: dict[str, Any], name: str) -> dict[str, Any]:
    return next(r for r in result["ranking"] if r["name"] == name)


def _who(result: dict[str, Any], name: str) -> str:
    """A contestant's marker and label."""
    look, row = pictures.looks(result)[name], _row(result, name)
    return f'<span class="who">{pictures.chip(look)}<span>{text(row["label"])}</span></span>'
