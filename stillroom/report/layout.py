"""The page, put together from the words and the pictures. All text that came from outside is escaped here."""

import json
import re
from collections.abc import Iterable, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from stillroom.report import pictures, words

SECTIONS = (("result", "Result"), ("cost", "Cost"), ("training", "Training"), ("classes", "Classes"), ("runs", "Runs"),
            ("settings", "Settings"), ("repeat", "Repeat it"))
MANY = 20          # classes that a strip shows in full


def comparison(result: dict[str, Any]) -> str:
    """The page of a comparison, from its result.json."""
    looks = pictures.looks(result)
    parts = {"result": _result(result, looks), "cost": _cost(result), "training": _training(result, looks), "classes": _classes(result, looks),
             "runs": _runs(result, looks), "settings": _settings(result, looks), "repeat": _repeat(result, looks)}
    links = "".join(f'<a href="#{at}">{name}</a>' for at, name in SECTIONS if parts[at])
    sections = "".join(f'<section id="{at}"><h2>{name}</h2>{parts[at]}</section>' for at, name in SECTIONS if parts[at])
    return _page(f"{words.headline(result)}", f"<header>{_head(result)}<nav>{links}</nav></header><main>{sections}</main>{_foot(result)}")


def run(folder: Path) -> str:
    """The page of one run: its scalars over time and its settings."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    file = folder / "run.json"
    facts = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    names = list(dict.fromkeys(k for line in lines for k in line if k not in ("loop", "step", "seconds")))
    high = {n: max(abs(line[n]) for line in lines if n in line) for n in names}
    groups: list[list[str]] = []
    for name in sorted(names, key=lambda n: -high[n]):          # scalars of one size share a picture
        near = groups and high[groups[-1][0]] < 8 * max(high[name], 1e-12) and len(groups[-1]) < 5
        groups[-1].append(name) if near else groups.append([name])
    drawn = "".join(_figure(", ".join(g), "", pictures.history(lines, g, ", ".join(g))) for g in groups)
    last = {line["loop"]: line["step"] + 1 for line in lines}
    head = (f'<p class="over"><b>stillroom</b> · a run · {_e(facts.get("began", ""))}</p><h1>{_e(facts.get("recipe", folder.name))}: '
            f'{words.count(sum(last.values()), "update")} in {words.seconds(lines[-1]["seconds"] if lines else 0)}</h1>')
    known = {**facts.get("fields", {}), **{k: v for k, v in facts.items() if not isinstance(v, dict)}}
    body = (f'<header>{head}</header><main><section id="log"><h2>Log</h2><div class="pictures">{drawn}</div></section>'
            f'<section id="settings"><h2>Settings</h2>{_pairs(known.items())}</section></main>')
    return _page(f"stillroom run {folder.name}", body)


# --- sections --------------------------------------------------------------------------------------------------------


def _head(result: dict[str, Any]) -> str:
    best = next((r for r in result["ranking"] if r["name"] == result["winner"]), None)
    over = f'<p class="over"><b>stillroom</b> · comparison on {_e(result["words"] or "unknown data")} · {_e(result["made"])}</p>'
    text = f'{over}<h1>{_e(words.headline(result))}</h1><p class="lead">{_e(words.costs(result))}</p>'
    if not best:
        return text
    mine, big, gain = best["cost"], result["teacher"]["cost"], best["vs_alone"]
    seeds = words.count(len(result["seeds"]), "seed")
    cards = [(f"{words.percent(best['accuracy']['mean'])}<small> %</small>", f"test images right: {best['label']}, mean of {seeds}")]
    if gain:
        within = "" if gain["low"] is None else f", 95 % interval {words.points(gain['low'])} to {words.points(gain['high'])}"
        cards.append((words.points(gain["difference"]), f"percentage points beside the student alone{within}"))
    cards.append((words.bytes_(mine["bytes"]).replace(" ", "<small> ") + "</small>",
                  f"on disk, {mine['parameters']:,} parameters; the teacher has {words.bytes_(big['bytes'])}"))
    cards.append((f"{words.number(mine['p50_1'])}<small> ms</small>", f"for one image; the teacher needs {words.number(big['p50_1'])} ms"))
    return text + '<div class="figures">' + "".join(f"<div><b>{big}</b><span>{_e(small)}</span></div>" for big, small in cards) + "</div>"


def _result(result: dict[str, Any], looks: dict[str, Any]) -> str:
    columns = [("Contestant", "text"), ("Accuracy, %\nmean ± std", "desc"), ("To student alone,\npoints [95 %]", "desc"),
               ("To tuned KD,\npoints [95 %]", "desc"), ("Calibration\nerror, %", ""), ("Same answer as\nteacher, %", "desc"), ("Training\nper run, s", "")]
    rows = []
    for row in result["ranking"]:
        badge = '<span class="badge">winner</span>' if row["name"] == result["winner"] else ""
        failed = f"<small>{row['failed']} of {words.count(row['runs'], 'run')} failed</small>" if row["failed"] else ""
        rows.append(("best" if badge else "", [
            (f"{_who(row, looks)}{badge}{failed}", row["label"]), _value(words.spread(row["accuracy"]), row["accuracy"]["mean"]),
            _difference(row["vs_alone"]), _difference(row["vs_tuned"]), _value(words.percent(row["ece"]["mean"]), row["ece"]["mean"]),
            _value(words.percent(row["agreement"]["mean"]), row["agreement"]["mean"]), _value(words.number(row["seconds"]["mean"]), row["seconds"]["mean"])]))
    teacher = result["teacher"]
    if teacher["accuracy"]:
        mean, error = pictures._mean_std(teacher["accuracy"]), pictures._mean_std(teacher["ece"])["mean"]
        rows.append(("reference", [("Teacher", "teacher"), _value(words.spread(mean), mean["mean"]), _value("", None), _value("", None),
                                   _value(words.percent(error), error), _value("", None), _value("", None)]))
    drawn = "".join(_figure(f"Beside {name}", "Mean difference and 95 % interval; small strokes are the seeds. Zero inside the interval: chance could have made it.",
                            pictures.forest(result, against))
                    for against, name in (("alone", "the student alone"), ("tuned", "plain KD, tuned"))
                    if any(r[f"vs_{against}"] and r["role"] != "alone" for r in result["ranking"]))
    note = ("The winner was found with the same test images that its number is from, so its lead over the next is a little flattering. "
            if sum(r["done"] > 0 for r in result["ranking"]) > 2 else "")
    failures = "".join(f"<li>{_e(c['contestant'])}, seed {c['seed']}: {_e(c['error'])}</li>" for c in result["cells"] if c["status"] == "failed")
    return (_table(columns, rows, "Every contestant had the same budget, batch, data and first weights. Accuracy is that of the last update, never of the best one.")
            + (f"<h3>Failed runs</h3><ul>{failures}</ul>" if failures else "")
            + f'<p class="note">{_e(words.power(result))} {note}</p><div class="pictures">{drawn}</div>')


def _cost(result: dict[str, Any]) -> str:
    if not any(r["done"] for r in result["ranking"]) or not result["teacher"]["cost"]:
        return ""
    say = "Up is better, left is cheaper. Nothing here is both cheaper and better than what lies on the line; strokes are ± one standard deviation."
    drawn = (_figure("Accuracy and speed", say, pictures.pareto(result, "p50_1"))
             + _figure("Accuracy and size", "The same against the size of the weights on disk.", pictures.pareto(result, "bytes")))
    columns = [("Network", "text"), ("Parameters", ""), ("On disk", ""), ("Operations\nper image", ""), ("One image, ms\nmedian (95th)", ""), ("32 images, ms\nmedian (95th)", "")]
    alike: dict[str, tuple[list[str], dict[str, Any]]] = {}
    for row in result["ranking"]:
        if row["done"]:
            alike.setdefault(json.dumps(row["cost"]), ([], row["cost"]))[0].append(row["label"])
    rows = [("", _costs("Student of " + ", ".join(names) if len(alike) > 1 else "Student", cost)) for names, cost in alike.values()]
    rows.append(("reference", _costs("Teacher", result["teacher"]["cost"])))
    where = result["teacher"]["cost"]
    return (f'<div class="pictures">{drawn}</div>' + _table(columns, rows, "", sortable=False)
            + f'<p class="note">Measured on {_e(where.get("device", "cpu"))} with {words.count(where.get("threads", 1), "thread")}; '
              'students that are built alike are measured once. An operation is one multiplication or addition.</p>')


def _costs(name: str, cost: dict[str, Any]) -> list[tuple[str, Any]]:
    return [(_e(name), name), _value(f"{cost['parameters']:,}", cost["parameters"]), _value(words.bytes_(cost["bytes"]), cost["bytes"]),
            _value(_thousands(cost["flops"]), cost["flops"]),
            *(_value(f"{words.number(cost[f'p50_{b}'])} ({words.number(cost[f'p95_{b}'])})", cost[f"p50_{b}"]) for b in (1, 32))]


def _thousands(n: float) -> str:
    for power, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if n >= power:
            return f"{words.number(n / power)} {unit}"
    return f"{n:.0f}"


def _training(result: dict[str, Any], looks: dict[str, Any]) -> str:
    if not any(r["done"] for r in result["ranking"]):
        return ""
    legend = "".join(f"<li>{_who(r, looks)}</li>" for r in result["ranking"] if r["done"])
    drawn = pictures.curves(result)
    drawn = (_figure("Learning curves", "Mean over seeds; the band runs from the lowest to the highest seed. The validation split is small, so the curves are rough.",
                     drawn) if drawn else "")
    drawn += _figure("Calibration", "On the dotted line a student that is 80 % sure is right 80 times of 100. All seeds together.", pictures.calibration(result))
    return f'<ul class="legend">{legend}</ul><div class="pictures">{drawn}</div>'


def _classes(result: dict[str, Any], looks: dict[str, Any]) -> str:
    """Change of every class's accuracy beside the student alone, in points, over the seeds that both have."""
    base = next((r for r in result["ranking"] if r["role"] == "alone"), None)
    done = {(c["contestant"], c["seed"]): c for c in result["cells"] if c["status"] == "done"}
    if not base or not base["done"] or len(result["ranking"]) < 2:
        return ""
    change: dict[str, list[float | None]] = {}
    for row in result["ranking"]:
        seeds = [s for s in result["seeds"] if (row["name"], s) in done and (base["name"], s) in done]
        if row is not base and seeds:
            mine, alone, count = ([sum(done[name, s][key][i] for s in seeds) for i in range(len(result["classes"]))]
                                  for name, key in ((row["name"], "classes_right"), (base["name"], "classes_right"), (base["name"], "classes_count")))
            change[row["name"]] = [100 * (a - b) / n if n else None for a, b, n in zip(mine, alone, count, strict=True)]
    if not change:
        return ""
    shown, said = list(range(len(result["classes"]))), ""
    if len(shown) > MANY:
        lead = next(iter(change.values()))
        order = sorted((i for i in shown if lead[i] is not None), key=lambda i: lead[i])
        shown = order[: MANY // 2] + order[-MANY // 2 :]
        said = f" Of {len(result['classes'])} classes those {MANY} that change most with the first row."
    most = max((abs(v) for row in change.values() for v in row if v), default=1.0)
    head = "".join(f'<th scope="col">{_e(result["classes"][i])}</th>' for i in shown)
    body = ""
    for row in result["ranking"]:
        if row["name"] in change:
            cells = "".join(_heat(change[row["name"]][i], most) for i in shown)
            body += f'<tr><th scope="row">{_who(row, looks)}</th>{cells}</tr>'
    return (f'<p class="note">Change of each class\'s accuracy beside the student alone, in percentage points, all seeds together: blue is gained, '
            f'orange is lost.{said}</p><div class="scroll" tabindex="0"><table class="strip sticky"><thead><tr><th scope="col">Class</th>{head}</tr></thead>'
            f"<tbody>{body}</tbody></table></div>")


def _heat(value: float | None, most: float) -> str:
    if value is None:
        return "<td>–</td>"
    kind = "gain" if value > 0 else "loss" if value < 0 else ""
    return f'<td class="{kind}" style="--heat:{65 * abs(value) / most:.0f}%">{words.points(value)}</td>'


def _runs(result: dict[str, Any], looks: dict[str, Any]) -> str:
    columns = [("Run", "text"), ("Seed", ""), ("Accuracy, %", "desc"), ("Calibration\nerror, %", ""), ("Same answer as\nteacher, %", "desc"), ("Updates", ""),
               ("Training, s", ""), ("First\nweights", ""), ("State", "text")]
    by = {r["name"]: r for r in result["ranking"]}
    rows = []
    for c in sorted(result["cells"], key=lambda c: ([r["name"] for r in result["ranking"]].index(c["contestant"]), c["seed"])):
        state = {"done": "done", "missing": "not run yet"}.get(c["status"], c.get("error", "failed"))
        rows.append(("" if c["status"] == "done" else "failed", [
            (_who(by[c["contestant"]], looks), by[c["contestant"]]["label"]), _value(str(c["seed"]), c["seed"]),
            *(_value(words.percent(c.get(k)), c.get(k)) for k in ("accuracy", "ece", "agreement")),
            _value(f"{c['updates']:,}" if "updates" in c else words.NONE, c.get("updates")), _value(words.number(c.get("seconds")), c.get("seconds")),
            _value(f"<code>{_e(c.get('initial', ''))}</code>", c.get("initial", "")), (_e(state), c["status"], "text why")]))
    return _table(columns, rows, "Runs of one seed begin with the same weights: the same eight letters.")


def _settings(result: dict[str, Any], looks: dict[str, Any]) -> str:
    unit, amount = result["budget"]
    budget = (f"{int(amount):,} updates for every run" if unit == "steps" else
              f"{words.seconds(amount)} of training for every run; a measured update decides how many fit, so that schedules stay whole")
    images, shape = result["images"] or {}, result["shape"] or []
    facts = [("Data", result["words"]), ("Images", "; ".join(filter(None, [
        f"{images.get('train', 0):,} to train with" + (f", {images['labelled']:,} of them with a label" if images.get("labelled") != images.get("train") else ""),
        f"{images.get('valid', 0):,} to choose with", f"{images.get('test', 0):,} to judge with"]))),
        ("An image", " × ".join(map(str, shape)) + f", {words.count(len(result['classes'] or []), 'class', 'classes')}"),
        ("Seeds", ", ".join(map(str, result["seeds"])) + ("; each draws its own split, labels, teacher, first weights and order" if result["resplit"]
                                                            else "; the split is the same, first weights and order differ")),
        ("Budget", budget), ("Batch", f"{result['settings']['batch']} images per update"),
        ("Teacher", _given(result, "teacher")), ("Student", _given(result, "student")),
        ("Precision", result["settings"]["precision"] + (f", gradients of {result['settings']['accumulate']} parts" if result["settings"]["accumulate"] > 1 else ""))]
    text = _pairs(facts) + _tuning(result)
    for name in result["contestants"]:
        row = next(r for r in result["ranking"] if r["name"] == name)
        ran = next((c["fields"] for c in result["cells"] if c["contestant"] == name and "fields" in c), {})
        rows = []
        for field, known in row["fields"].items():
            value = ran.get(field, known["default"])
            tuned = row["role"] == "tuned" and field in result["tuning"].get("chosen", {})
            why = ("tuned" if tuned else "the budget" if field.startswith("steps") else "equal for all" if field == "batch" else
                   "given" if field in row["changed"] else "")
            rows.append(("", [(f"<code>{_e(field)}</code>", field), (_e(_show(value)), None), (_e(_show(known["default"])), None), (_e(why), None, "text"),
                              (_e(known["meaning"]), None, "text wrap")]))
        link = f'<p class="note"><a href="{_e(row["link"])}" rel="noreferrer">{_e(row["title"])}</a></p>' if row["link"] else f'<p class="note">{_e(row["title"])}</p>'
        text += (f"<details><summary>{_who(row, looks)} <small>{_e(name)}</small></summary>{link}"
                 + _table([("Field", "text"), ("Value", ""), ("Paper", ""), ("Set by", "text"), ("Meaning", "text")], rows, "", sortable=False) + "</details>")
    return text


def _given(result: dict[str, Any], who: str) -> str:
    given = result["settings"]["actors"][who] or "the one of the digits arena"
    return given + (f", {words.spread(pictures._mean_std(result['teacher']['accuracy']))} % of test images right"
                    if who == "teacher" and result["teacher"]["accuracy"] else "")


def _tuning(result: dict[str, Any]) -> str:
    tuning = result["tuning"]
    if not tuning.get("trials"):
        return ""
    alphas, temperatures = (sorted({t[k] for t in tuning["trials"]}) for k in ("alpha", "temperature"))
    by = {(t["alpha"], t["temperature"]): t for t in tuning["trials"]}
    chosen = tuning["chosen"] or {}
    body = ""
    for a in alphas:
        cells = ""
        for t in temperatures:
            trial = by[a, t]
            mark = ' class="chosen"' if chosen == {"alpha": a, "temperature": t} else ""
            cells += f"<td{mark}>{words.percent(trial['accuracy']) if trial['status'] == 'done' else 'failed'}</td>"
        body += f'<tr><th scope="row" class="text">alpha {a:g}</th>{cells}</tr>'
    head = "".join(f'<th scope="col">temperature {t:g}</th>' for t in temperatures)
    what = f"Chosen: alpha {chosen['alpha']:g}, temperature {chosen['temperature']:g}." if chosen else "No trial reached its end."
    return (f"<h3>How plain KD was tuned</h3><p>Share of the teacher in the loss (alpha) and temperature, with the same budget as every run: "
            f"{words.count(len(tuning['trials']), 'trial')} on seed {tuning['seed']}, {words.seconds(tuning['seconds'])} of training in all. "
            f"The best on the validation images, in percent below, ran on all seeds; equals are told apart by the validation loss. {what}</p>"
            f'<div class="scroll"><table class="grid"><thead><tr><th></th>{head}</tr></thead><tbody>{body}</tbody></table></div><h3>Fields</h3>')


def _repeat(result: dict[str, Any], looks: dict[str, Any]) -> str:
    text = "<p>The whole comparison; in the same folder it goes on where it was stopped:</p>" + _command(result["command"])
    if result["winner"]:
        text += (f"<p>The winner to ship: its student of seed {result['seeds'][0]}, chosen by the mean over seeds and not for being the best one.</p>"
                 + _command(f"stillroom export {result['folder']}/winner --onnx"))
    singles = ""
    for name in result["contestants"]:
        row = next(r for r in result["ranking"] if r["name"] == name)
        commands = "".join(_command(c["command"]) for c in result["cells"] if c["contestant"] == name)
        singles += f"<details><summary>{_who(row, looks)} <small>each of its runs</small></summary>{commands}</details>"
    return text + f"<h3>One run again</h3>{singles}<h3>Made with</h3>{_pairs(result['versions'].items())}"


def _foot(result: dict[str, Any]) -> str:
    return (f"<footer>Made by stillroom {_e(result['versions']['stillroom'])} on {_e(result['made'])}. All numbers are in result.json, all runs in runs.csv, "
            "beside this page.</footer>")


# --- pieces ----------------------------------------------------------------------------------------------------------


def _e(text: Any) -> str:
    """Escaped; a number and its unit stay on one line."""
    return re.sub(r"(?<=\d) (?=(%|ms|s|kB|MB|GB|B|min)\b|%)", "\u00a0", escape(str(text)))


def _who(row: dict[str, Any], looks: dict[str, Any]) -> str:
    """A contestant's marker and label."""
    return f'<span class="who">{pictures.chip(looks[row["name"]])}<span>{_e(row["label"])}</span></span>'


def _show(value: Any) -> str:
    return f"{value:,}" if type(value) is int else f"{value:g}" if isinstance(value, float) else str(value) or "–"


def _value(shown: str, value: Any) -> tuple[str, Any]:
    return shown or words.NONE, "" if value is None else value


def _difference(pair: dict[str, Any] | None) -> tuple[str, Any]:
    if pair is None:
        return _value("", None)
    state = words.verdict(pair)
    return f"{words.interval(pair)}<small class=\"{state.replace(' ', '-')}\">{state}</small>", pair["difference"]


def _figure(title: str, text: str, drawn: str) -> str:
    return f"<figure><figcaption><b>{_e(title)}</b>{_e(text)}</figcaption>{drawn}</figure>"


def _pairs(pairs: Iterable[tuple[str, Any]]) -> str:
    return "<dl>" + "".join(f"<dt>{_e(k)}</dt><dd>{_e(_show(v))}</dd>" for k, v in pairs) + "</dl>"


def _command(line: str) -> str:
    return f'<div class="command"><pre>{_e(line)}</pre><button type="button">copy</button></div>'


def _table(columns: Sequence[tuple[str, str]], rows: Sequence[tuple[str, Sequence[tuple]]], caption: str, *, sortable: bool = True) -> str:
    """columns: (title, "text" | "desc" | ""); rows: (class, cells); a cell: (html, value to sort by[, class])."""
    head = ""
    for title, kind in columns:
        name = f'<button type="button">{_e(title)}</button>' if sortable else _e(title)
        head += f'<th scope="col"{" class=text" if kind == "text" else ""}{" data-first=descending" if kind == "desc" else ""}>{name}</th>'
    body = ""
    for mark, cells in rows:
        line = ""
        for at, (shown, value, *kind) in enumerate(cells):
            tag = "th" if at == 0 else "td"
            scope = ' scope="row" class="text"' if at == 0 else f' class="{kind[0]}"' if kind else ""
            line += f'<{tag}{scope} data-value="{_e("" if value is None else value)}">{shown}</{tag}>'
        body += f'<tr{f" class={mark}" if mark else ""}>{line}</tr>'
    note = f'<p class="note">{_e(caption)}</p>' if caption else ""
    return (f'{note}<div class="scroll" tabindex="0"><table class="sticky{" sortable" if sortable else ""}">'
            f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>")


def _page(title: str, body: str) -> str:
    here = resources.files("stillroom.report")
    text = {name: (here / f"page.{name}").read_text(encoding="utf-8") for name in ("html", "css", "js")}
    return Template(text["html"]).substitute(title=_e(title), style=text["css"], script=text["js"], body=body)
