"""The report: a real browser opens it without a network, sorts it, and prints it; what it says follows from the numbers."""

import copy
import json
import re
import shutil
import subprocess
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import TensorDataset

from stillroom import report, saved
from stillroom.arenas.alone import Alone
from stillroom.comparison import compare
from stillroom.errors import Refused
from stillroom.models.small import mlp
from stillroom.report import layout, pictures, words
from stillroom.run import Run

ARGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
        "--disable-component-update", "--disable-sync"]
NASTY = "<b>3</b> & \"three\" $x$"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A comparison with a failed contestant and a class whose name is not to be trusted; its result and its page."""
    from sklearn.datasets import load_digits

    raw = load_digits()
    x, y = torch.tensor(raw.images, dtype=torch.float32)[:, None] / 16, torch.tensor(raw.target)
    train = TensorDataset(x[:600], y[:600])
    train.classes = [NASTY if i == 3 else str(i) for i in range(10)]
    train.words = "digits <script>alert(1)</script>"
    torch.manual_seed(7)
    teacher = Alone(steps=150)(Run(), student=mlp(hidden=64), data=train)
    out = tmp_path_factory.mktemp("report") / "out"
    data = SimpleNamespace(train=train, valid=TensorDataset(x[600:800], y[600:800]), test=TensorDataset(x[800:], y[800:]))
    result = compare("kd", "nkd_uskd", "kd:lr=1e30", teacher=teacher, student=lambda: mlp(hidden=16), data=data, seeds=2,
                     budget=40, batch=32, out=out, show=False)
    return result, out / "report.html"


@pytest.fixture(scope="module")
def browser():
    """Debian's Chromium, driven by Playwright."""
    found = shutil.which("chromium")
    if not found:
        pytest.skip("no `chromium` on PATH: apt-get install chromium")
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with api.sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=found, args=ARGS)
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser, made):
    """The report, opened at 1280 pixels; complaints and requests are gathered on the way."""
    sheet = browser.new_page(viewport={"width": 1280, "height": 900})
    sheet.complaints, sheet.asked = [], []
    sheet.on("console", lambda m: sheet.complaints.append(m.text))
    sheet.on("pageerror", lambda e: sheet.complaints.append(str(e)))
    sheet.on("request", lambda r: sheet.asked.append(r.url))
    sheet.goto(made[1].as_uri())
    yield sheet
    sheet.close()


def test_it_opens_without_a_complaint_and_asks_nothing_of_the_network(page, made):
    page.wait_for_load_state("networkidle")
    assert page.complaints == []
    assert [url for url in page.asked if url != made[1].as_uri() and not url.startswith("data:")] == []
    assert page.title() == words.headline(made[0]) == page.inner_text("h1").replace("\xa0", " ")


def test_the_pictures_are_there_and_say_what_they_show(page):
    shown = page.locator("svg.picture")
    assert shown.count() == 6
    for i in range(6):
        box = shown.nth(i).bounding_box()
        assert box["width"] > 300 and box["height"] > 150
        assert shown.nth(i).get_attribute("role") == "img"
        title, said = shown.nth(i).get_attribute("aria-labelledby").split()
        assert page.locator(f"#{title}").text_content() and len(page.locator(f"#{said}").text_content()) > 20
    assert shown.locator("text").count() > 60                              # text is text, not outlines
    assert "Tuned KD" in shown.nth(2).text_content() and "teacher" in shown.nth(2).text_content()
    ids = page.eval_on_selector_all("[id]", "all => all.map(e => e.id)")
    assert len(ids) == len(set(ids))


def test_a_contestant_has_one_colour_in_table_and_pictures(page, made):
    colour = page.eval_on_selector("#runs tbody tr:first-child .chip", "e => getComputedStyle(e).fill")
    first = made[0]["ranking"][0]
    look = pictures.looks(made[0])[first["name"]]
    resolved = page.evaluate(f"getComputedStyle(document.documentElement).getPropertyValue('{look['css']}')").strip()
    assert colour == "rgb({}, {}, {})".format(*(int(resolved[i : i + 2], 16) for i in (1, 3, 5)))
    assert f"var({look['css']})" in page.locator("svg.picture").nth(2).evaluate("e => e.outerHTML")


def column(page, section, at):
    return [v.replace("\u2212", "-") for v in page.eval_on_selector_all(
        f"#{section} table.sortable tbody tr", f"rows => rows.map(r => r.cells[{at}].dataset.value)")]


def test_sorting_by_click_and_by_keyboard(page):
    head = page.locator("#runs th").nth(2)
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "descending"                 # accuracy: the best first
    values = column(page, "runs", 2)
    numbers = [float(v) for v in values if v]
    assert numbers == sorted(numbers, reverse=True) and len(set(numbers)) > 2
    assert values[-2:] == ["", ""]                                         # failed runs have none, and stay last
    head.locator("button").focus()
    page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "ascending"
    assert [float(v) for v in column(page, "runs", 2) if v] == sorted(numbers) and column(page, "runs", 2)[-2:] == ["", ""]
    page.locator("#result th").nth(0).locator("button").click()
    names = column(page, "result", 0)
    assert names == sorted(names, key=str.lower) and page.locator("#result [aria-sort]").count() == 1


def test_failures_and_user_text_are_shown_as_text(page, made):
    assert page.locator("#runs tr.failed").count() == 2
    assert "Diverged" in page.inner_text("#runs") and "2 of 2 runs failed" in page.inner_text("#result")
    assert NASTY in page.inner_text("#classes")
    assert "digits <script>alert(1)</script>" in page.inner_text("header")
    source = made[1].read_text()
    assert source.count("<script") == 1 and "<b>3</b>" not in source


def test_every_command_is_there(page, made):
    text = page.eval_on_selector_all("pre", "all => all.map(e => e.textContent)")
    assert made[0]["command"] in text
    assert f"stillroom export {made[0]['folder']}/winner --onnx" in text
    assert all(cell["command"] in text for cell in made[0]["cells"])


@pytest.mark.parametrize("width", [360, 768])
def test_a_narrow_page_does_not_scroll_sideways(page, width):
    page.set_viewport_size({"width": width, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for i in range(6):
        box = page.locator("svg.picture").nth(i).bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= width
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_dark_follows_the_reader(page):
    light = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.emulate_media(color_scheme="dark")
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    total = [sum(map(int, re.findall(r"\d+", c)[:3])) for c in (light, dark)]
    assert total[0] > 600 and total[1] < 150


def test_on_paper_tables_and_folded_parts_are_there(page, tmp_path):
    file = tmp_path / "print.pdf"
    page.pdf(path=file, prefer_css_page_size=True)
    assert file.stat().st_size > 20_000
    if not shutil.which("pdftotext"):
        pytest.skip("no `pdftotext` on PATH: apt-get install poppler-utils")
    text = subprocess.run(["pdftotext", "-layout", file, "-"], capture_output=True, text=True, check=True).stdout
    assert "Student alone" in text and "Calibration" in text and "share of the teacher in the loss" in text
    assert text.count("--only") == 10


def test_nothing_comes_from_elsewhere(made):
    source = made[1].read_text()
    assert "default-src 'none'" in source
    assert re.findall(r'(?:src|href)="(?!#|data:)([^"]*)"', source) == re.findall(r'<a href="(https://arxiv[^"]*)" rel', source)
    assert "@import" not in source and "url(http" not in source
    assert made[1].stat().st_size < 400_000


# --- words -----------------------------------------------------------------------------------------------------------


def tale(result, order, **pairs):
    """The result with another ranking, and other differences of the first of it."""
    told = copy.deepcopy(result)
    by = {r["name"]: r for r in told["ranking"]}
    told["ranking"] = [by[n] for n in order] + [r for n, r in by.items() if n not in order]
    for place, row in enumerate(told["ranking"]):
        row["accuracy"]["mean"] = 97.0 - place
    told["winner"] = order[0]
    told["ranking"][0] |= pairs
    return told


def pair(difference, low, high, n=3):
    return {"n": n, "difference": difference, "low": low, "high": high, "p": None}


def test_the_headline_says_who_won_and_whether_it_is_beyond_noise(made):
    result = made[0]
    won = words.headline(tale(result, ["nkd_uskd"], vs_alone=pair(4.24, 2.0, 6.0), vs_tuned=pair(0.4, 0.1, 0.7)))
    assert won.startswith("NKD is best: ") and "4.2 points above the student alone and 0.4 points above plain KD" in won
    close = words.headline(tale(result, ["nkd_uskd"], vs_alone=pair(4.2, 2.0, 6.0), vs_tuned=pair(0.4, -0.1, 0.9)))
    assert "its lead of 0.4 points on plain KD with its weight tuned is within noise" in close
    tuned = words.headline(tale(result, ["kd_tuned"], vs_alone=pair(4.2, 2.0, 6.0), vs_tuned=None))
    assert "no other method does better than plain KD" in tuned
    noise = words.headline(tale(result, ["nkd_uskd"], vs_alone=pair(0.2, -1.0, 1.4)))
    assert noise == "No gain that 3 seeds can show: NKD leads the student alone by 0.2 points, which is within noise."
    assert words.headline(tale(result, ["alone"])).startswith("No gain here: nothing beats the student alone")
    once = words.headline(tale(result, ["nkd_uskd"], vs_alone=pair(4.2, None, None, n=1)))
    assert "one seed cannot say whether that is chance" in once
    flat = words.headline(tale(result, ["nkd_uskd"], vs_alone=pair(0.2, None, None)))
    assert "nobody can say whether that is chance" in flat
    level = tale(result, ["nkd_uskd", "kd"], vs_alone=pair(4.2, 2.0, 6.0), vs_tuned=pair(0.4, -0.1, 0.9))
    level["ranking"][1]["accuracy"] = level["ranking"][0]["accuracy"]
    assert words.headline(level).startswith("NKD and KD share the lead: ") and "; the lead of 0.4 points" in words.headline(level)
    tiny = words.headline(tale(result, ["nkd_uskd"], vs_alone=pair(4.2, 2.0, 6.0), vs_tuned=pair(0.03, -0.1, 0.1)))
    assert "its lead of 0.0 points" in tiny
    assert words.headline({**result, "winner": ""}) == "No contestant finished all its runs."


def test_costs_compare_the_winner_with_its_teacher(made):
    result = tale(made[0], ["kd"])
    best, big = result["ranking"][0], result["teacher"]
    best["cost"] |= {"bytes": 1000, "p50_1": 0.5}
    big["cost"] |= {"bytes": 4000, "p50_1": 0.25}
    best["accuracy"]["mean"], big["accuracy"] = 90.0, [95.0, 97.0]
    said = words.costs(result)
    assert "4.0 times smaller and 2.0 times slower than its teacher and keeps 93.8 %" in said
    assert f"{len(result['cells'])} runs" in said and "9 trials" in said


def test_what_seeds_can_show(made):
    assert "4.3 standard errors" in words.power({**made[0], "seeds": [0, 1, 2]})
    assert "12.7 standard errors" in words.power(made[0])
    assert "nothing can be said about chance" in words.power({**made[0], "seeds": [0]})
    assert "in up to 19 of 100" in words.power(made[0])                    # 1 − 0.95⁴, four contestants


@pytest.mark.parametrize("value, said", [
    (0.02134, "0.0213"), (1.2499, "1.25"), (97.44, "97.4"), (1240.4, "1,240"), (0, "0.00"), (-3.2, "−3.20"), (None, "–"),
    (float("nan"), "–")])
def test_three_figures_that_matter(value, said):
    assert words.number(value) == said


def test_units_and_signs():
    assert [words.bytes_(n) for n in (12, 9876, 45_600_000)] == ["12.0 B", "9.88 kB", "45.6 MB"]
    assert [words.seconds(t) for t in (0.42, 250, 7500)] == ["0.420 s", "4 min 10 s", "2 h 5 min"]
    assert [words.points(d) for d in (0.42, -1.26, 0.04, -0.04)] == ["+0.4", "−1.3", "0.0", "0.0"]
    assert words.interval(pair(0.4, -0.2, 1.0)) == "+0.4 [−0.2, 1.0]" and words.interval(None) == "–"
    pairs = (pair(1, 0.2, 2), pair(-1, -2, -0.1), pair(1, -1, 2), pair(0, 0, 0), pair(1, None, None, 1), None)
    assert [words.verdict(p) for p in pairs] == ["ahead", "behind", "within noise", "equal", "one seed", ""]


# --- drawing ---------------------------------------------------------------------------------------------------------


def test_labels_are_pushed_apart_as_little_as_can_be():
    assert pictures.apart([90, 50, 10], 10, 0, 100) == [90, 50, 10]
    assert pictures.apart([50, 50, 50], 10, 0, 100) == [60, 50, 40]
    assert pictures.apart([50, 49, 10], 10, 0, 100) == [54.5, 44.5, 10]
    assert pictures.apart([3, 2, 1], 10, 0, 100) == [20, 10, 0]
    assert pictures.apart([99, 99], 10, 0, 100) == [100, 90]


def test_the_front_holds_what_nothing_is_cheaper_and_better_than():
    assert pictures._front([(2, 90), (1, 80), (3, 85), (3, 95), (1, 70)]) == [(1, 80), (2, 90), (3, 95)]


def test_many_contestants_look_different(made):
    result = copy.deepcopy(made[0])
    row = next(r for r in result["ranking"] if r["role"] == "method")
    result["ranking"] += [{**row, "name": f"m{i}"} for i in range(6)]
    result["contestants"] += [f"m{i}" for i in range(6)]
    looks = pictures.looks(result)
    assert len({(v["css"], v["marker"]) for v in looks.values()}) == len(looks)


def test_two_hundred_classes_are_cut_to_those_that_change_most(made):
    result = copy.deepcopy(made[0])
    result["classes"] = [f"class {i}" for i in range(200)]
    for cell in result["cells"]:
        if cell["status"] == "done":
            cell["classes_count"] = [10.0] * 200
            cell["classes_right"] = [5.0 + (cell["contestant"] == "kd") * (i in (7, 77)) * 4 for i in range(200)]
    strip = re.search(r'<table class="strip.*?</table>', layout.comparison(result), re.S)[0]
    assert strip.count('scope="col"') == 1 + layout.MANY


def test_one_seed_and_no_finished_run_still_make_a_page(made):
    one = copy.deepcopy(made[0])
    one["seeds"], one["cells"] = [0], [c for c in one["cells"] if c["seed"] == 0]
    for row in one["ranking"]:
        for key in ("vs_alone", "vs_tuned"):
            row[key] = row[key] and {**row[key], "n": 1, "low": None, "high": None, "p": None}
    assert "one seed" in layout.comparison(one)
    none = copy.deepcopy(made[0])
    kept = ("contestant", "seed", "command")
    none |= {"winner": "", "cells": [{"status": "missing", **{k: c[k] for k in kept}} for c in none["cells"]], "tuning": {}}
    for row in none["ranking"]:
        row |= {"done": 0, "complete": False, "failed": 0, "vs_alone": None, "vs_tuned": None, "cost": {},
                **{k: {"mean": None, "std": None} for k in ("accuracy", "ece", "agreement", "seconds")}}
    assert "Not finished: 10 runs still to do." in layout.comparison(none)


# --- one run ---------------------------------------------------------------------------------------------------------


def test_a_single_run_has_a_page_too(browser, tmp_path):
    folder = tmp_path / "run"
    x, y = torch.rand(64, 1, 8, 8), torch.randint(10, (64,))
    run = Run(folder, watch={"accuracy": lambda kept: 50.0}, every=10)
    Alone(steps=30, batch=16)(run, student=mlp(), data=TensorDataset(x, y))
    (folder / "run.json").write_text(json.dumps({"recipe": "<i>kd</i>", "fields": {"lr": 0.05}}))
    sheet = browser.new_page()
    complaints = []
    sheet.on("console", lambda m: complaints.append(m.text))
    sheet.goto(report.page(folder).as_uri())
    assert sheet.locator("svg.picture").count() == 2 and complaints == []  # the loss and the accuracy are of two sizes
    assert sheet.inner_text("h1").startswith("<i>kd</i>: 30 updates") and "0.05" in sheet.inner_text("#settings")
    sheet.close()


def test_its_page_shows_the_proof_and_the_images_that_it_made(browser, tmp_path):
    (tmp_path / "log.jsonl").write_text(json.dumps({"loop": "loop", "step": 0, "seconds": 1.0, "match": 0.5}) + "\n")
    proof = {"ours": 84.8, "beats": 68.0, "unit": "accuracy", "better": "higher", "baseline": "<i>real images</i>",
             "also": {"all": 96.5}, "holds": True}
    (tmp_path / "run.json").write_text(json.dumps({"recipe": "tesla", "result": proof}))
    saved.save((torch.rand(30, 1, 8, 8), torch.arange(30)), tmp_path)
    sheet = browser.new_page()
    sheet.goto(report.page(tmp_path).as_uri())
    assert sheet.locator("#result tbody tr").count() == 3 and "<i>real images</i>" in sheet.inner_text("#result")
    assert sheet.evaluate("document.querySelector('img.gallery').naturalWidth") == 10 * (6 * 8 + 2)
    sheet.close()


def test_its_page_shows_the_images_of_its_proof_by_name(browser, tmp_path):
    (tmp_path / "log.jsonl").write_text(json.dumps({"loop": "loop", "step": 0, "seconds": 1.0, "rgb": 0.5}) + "\n")
    saved.save({"the <i>teacher</i>": torch.rand(3, 3, 8, 8), "the student": torch.rand(3, 3, 8, 8)}, tmp_path / "shown")
    sheet = browser.new_page()
    sheet.goto(report.page(tmp_path).as_uri())
    assert sheet.locator("img.gallery").count() == 2 and "the <i>teacher</i>" in sheet.inner_text("#made")
    sheet.close()


def test_a_folder_without_either_is_refused(tmp_path):
    with pytest.raises(Refused, match="neither a comparison nor a run"):
        report.page(tmp_path)
