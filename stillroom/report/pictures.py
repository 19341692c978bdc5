"""The pictures of the report: inline SVG whose text is text and whose colours follow the page."""

import base64
import io
import math
import re
from functools import wraps
from html import escape
from typing import Any

from stillroom.comparison.ranks import mean_std
from stillroom.report import words

WIDE, HIGH = 4.7, 3.2                         # inches; 72 units of the SVG each
FONT = 9.5
PAINT = {"ink": "#010101", "muted": "#020202", "line": "#030303", "paper": "#040404"}
HUES = 8                                      # colours of methods in page.css, --hue-1 …
MARKERS = {"alone": "o", "tuned": "s", "method": "^DvPXp<>"}
DASHES = {"alone": (1, 1.6), "tuned": (5, 2)}
CHIPS = {                                     # the markers once more, for HTML
    "o": "M6 2a4 4 0 1 0 0 8a4 4 0 1 0 0-8z", "s": "M2.2 2.2h7.6v7.6H2.2z", "^": "M6 1.4 10.8 10H1.2z", "v": "M6 10.6 1.2 2h9.6z",
    "<": "M1.4 6 10 1.2v9.6z", ">": "M10.6 6 2 1.2v9.6z", "D": "M6 .8 11.2 6 6 11.2.8 6z", "p": "m6 .9 5.2 3.8-2 6.1H2.8l-2-6.1z",
    "P": "M4.2 1h3.6v3.2H11v3.6H7.8V11H4.2V7.8H1V4.2h3.2z",
    "X": "m3.2.9 2.8 2.8L8.8.9l2.3 2.3L8.3 6l2.8 2.8-2.3 2.3L6 8.3l-2.8 2.8-2.3-2.3L3.7 6 .9 3.2z"}
STYLE = {"svg.fonttype": "none", "svg.hashsalt": "stillroom", "font.family": "sans-serif", "text.parse_math": False}
METHOD_DASHES = ((None, None), (7, 2, 1.5, 2), (3, 1.5))


def looks(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Colour, marker and dashes of every contestant, the same in all pictures. Baselines are grey, methods have hues."""
    found, at = {}, 0
    for row in sorted(result["ranking"], key=lambda r: result["contestants"].index(r["name"])):
        role = row["role"]
        if role == "method":
            hue, turn = at % HUES, at // HUES              # the ninth has the first one's colour, but another marker and dashes
            found[row["name"]] = {
                "css": f"--hue-{hue + 1}", "paint": f"#06{hue + 1:02x}06", "marker": MARKERS["method"][(hue + 3 * turn) % HUES],
                "dashes": METHOD_DASHES[turn % len(METHOD_DASHES)]}
            at += 1
        else:
            found[row["name"]] = {"css": f"--{role}", "paint": {"alone": "#070107", "tuned": "#070207"}[role],
                                  "marker": MARKERS[role], "dashes": DASHES[role]}
    return found


def chip(look: dict[str, Any]) -> str:
    """A contestant's marker as a small inline SVG, for tables and the legend."""
    return (f'<svg class="chip" viewBox="0 0 12 12" aria-hidden="true" style="fill:var({look["css"]})">'
            f'<path d="{CHIPS[look["marker"]]}"/></svg>')


def _styled(draw):
    """The function, drawing in this page's style; matplotlib's own stays as it is."""
    @wraps(draw)
    def styled(*given):
        import matplotlib

        with matplotlib.rc_context(STYLE):
            return draw(*given)
    return styled


@_styled
def forest(result: dict[str, Any], against: str) -> str:
    """Differences to a baseline (`alone` or `tuned`) with 95 % intervals, one row a contestant, a dot for every seed."""
    rows = [r for r in result["ranking"] if r[f"vs_{against}"] and r["role"] != "alone"]
    look, done = looks(result), {(c["contestant"], c["seed"]): c for c in result["cells"] if c["status"] == "done"}
    base = next(r["name"] for r in result["ranking"] if r["role"] == against)
    figure, axes = _figure(high=0.75 + 0.36 * max(3, len(rows)))
    said = []
    for y, row in enumerate(rows):
        pair, style = row[f"vs_{against}"], look[row["name"]]
        if pair["low"] is not None:
            axes.plot([pair["low"], pair["high"]], [y, y], color=style["paint"], lw=2.2, solid_capstyle="round", zorder=2)
        seeds = [done[row["name"], s]["accuracy"] - done[base, s]["accuracy"] for s in result["seeds"]
                 if (row["name"], s) in done and (base, s) in done]
        axes.plot(seeds, [y + 0.24] * len(seeds), "|", color=PAINT["muted"], ms=4, mew=0.9, zorder=2)
        axes.plot(pair["difference"], y, style["marker"], color=style["paint"], ms=_size(style), mec=PAINT["paper"], mew=0.6,
                  zorder=3)
        said.append(f"{row['label']} {words.interval(pair)} points")
    axes.axvline(0, color=PAINT["ink"], lw=0.9, zorder=1)
    axes.set_yticks(range(len(rows)), [_short(r["label"]) for r in rows])
    axes.set_ylim(len(rows) - 0.45, -0.55)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x", color=PAINT["line"], lw=0.6)
    low, high = axes.get_xlim()
    pad = 0.06 * (high - low)
    axes.set_xlim(min(low, -pad), max(high, pad))
    name = {"alone": "the student alone", "tuned": "plain KD with its weight tuned"}[against]
    axes.set_xlabel("percentage points of accuracy")
    return _svg(figure, f"forest-{against}", f"Difference in test accuracy to {name}", "; ".join(said))


@_styled
def pareto(result: dict[str, Any], key: str) -> str:
    """Test accuracy against what a model costs: `p50_1` (milliseconds) or `bytes`. The teacher is in."""
    unit = {"p50_1": "milliseconds for one image, median", "bytes": "kilobytes on disk"}[key]
    scale = {"p50_1": 1.0, "bytes": 1000.0}[key]
    look = looks(result)
    figure, axes = _figure()
    rows = [r for r in result["ranking"] if r["done"]]
    dots = [(r["cost"][key] / scale, r["accuracy"], look[r["name"]], r["label"]) for r in rows]
    accuracy = mean_std(result["teacher"]["accuracy"])
    dots.append((result["teacher"]["cost"][key] / scale, accuracy, {"paint": PAINT["ink"], "marker": "*"}, "teacher"))
    axes.set_xscale("log")
    xs = [x for x, *_ in dots]
    span = max(max(xs) / min(xs), 4.0)
    axes.set_xlim(min(xs) / span**0.16, max(xs) * span**0.14)
    lows = [a["mean"] - (a["std"] or 0) for _, a, *_ in dots]
    highs = [a["mean"] + (a["std"] or 0) for _, a, *_ in dots]
    pad = max(0.08 * (max(highs) - min(lows)), 0.5)
    axes.set_ylim(min(lows) - pad, min(100.5, max(highs) + pad))
    axes.set_xlabel(unit + " (logarithmic)")
    axes.set_ylabel("test images right, %")
    axes.grid(axis="y", color=PAINT["line"], lw=0.6)
    _plain_log(axes)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")                   # from here on a place on the page stays where it is
    front = _front([(x, a["mean"]) for x, a, *_ in dots])
    axes.step([x for x, _ in front], [y for _, y in front], where="post", color=PAINT["muted"], lw=0.9, zorder=1)
    places = _side_by_side(axes, [(x, a["mean"]) for x, a, *_ in dots])
    for (px, py), (_, a, style, _) in zip(places, dots, strict=True):
        if a["std"]:
            axes.plot([px, px], [py - a["std"], py + a["std"]], color=style["paint"], lw=1.1, zorder=2)
        axes.plot(px, py, style["marker"], color=style["paint"], ms=_size(style), mec=PAINT["paper"], mew=0.6, zorder=3)
    _labels(axes, places, [label for *_, label in dots])
    said = [f"{label} {words.spread(a)} % at {words.number(x)} {'ms' if key == 'p50_1' else 'kB'}" for x, a, _, label in dots]
    return _svg(figure, f"pareto-{key}", f"Test accuracy against {unit}", "; ".join(said))


@_styled
def curves(result: dict[str, Any]) -> str:
    """Validation accuracy along the runs: the mean over seeds, and from the lowest to the highest seed."""
    look = looks(result)
    figure, axes = _figure()
    said, floor = [], []
    for row in result["ranking"]:
        runs = [c["curve"] for c in result["cells"] if c["contestant"] == row["name"] and c["status"] == "done" and c["curve"]]
        steps = sorted(set.intersection(*({int(s) for s, _ in run} for run in runs))) if runs else []
        if not steps:
            continue
        values = [[dict((int(s), v) for s, v in run)[s] for run in runs] for s in steps]
        mean = [sum(v) / len(v) for v in values]
        style = look[row["name"]]
        if len(runs) > 1:
            axes.fill_between(steps, [min(v) for v in values], [max(v) for v in values], color=style["paint"], alpha=0.13, lw=0)
        axes.plot(steps, mean, color=style["paint"], lw=1.6, dashes=style["dashes"])
        floor += [min(v) for s, v in zip(steps, values, strict=True) if s > 0.25 * steps[-1]]
        said.append(f"{row['label']} ends at {words.percent(mean[-1])} %")
    if not said:
        return ""
    axes.set_ylim(max(0, min(floor) - 3), 100.8)
    axes.set_xlim(left=0)
    axes.set_xlabel("updates")
    axes.set_ylabel("validation images right, %")
    axes.grid(axis="y", color=PAINT["line"], lw=0.6)
    return _svg(figure, "curves", "Validation accuracy during training", "; ".join(said))


@_styled
def calibration(result: dict[str, Any]) -> str:
    """How often a student is right against how sure it says it is, all seeds together."""
    look = looks(result)
    figure, axes = _figure()
    axes.plot([0, 100], [0, 100], color=PAINT["muted"], lw=0.9, dashes=(1, 2))
    said = []
    shown = [(r["label"], look[r["name"]], [c for c in result["cells"] if c["contestant"] == r["name"] and c["status"] == "done"],
              r["ece"]["mean"]) for r in result["ranking"] if r["done"]]
    for label, style, cells, error in shown:
        n, sure, right = ([sum(bins) for bins in zip(*(c[f"bins_{k}"] for c in cells))] for k in ("count", "sure", "right"))
        kept = [i for i in range(len(n)) if n[i] >= max(1, 0.02 * sum(n))]
        axes.plot([100 * sure[i] / n[i] for i in kept], [100 * right[i] / n[i] for i in kept], color=style["paint"], lw=1.5,
                  marker=style["marker"], ms=4.5, mec=PAINT["paper"], mew=0.5, dashes=style["dashes"])
        said.append(f"{label}: calibration error {words.percent(error)} %")
    axes.set_xlim(0, 102)
    axes.set_ylim(0, 102)
    axes.set_xlabel("how sure it says it is, %")
    axes.set_ylabel("how often it is right, %")
    axes.grid(axis="y", color=PAINT["line"], lw=0.6)
    axes.annotate("too modest", (0.05, 0.93), xycoords="axes fraction", color=PAINT["muted"], va="top")
    axes.annotate("too sure", (0.96, 0.06), xycoords="axes fraction", color=PAINT["muted"], ha="right")
    return _svg(figure, "calibration", "Calibration: how often right against how sure", "; ".join(said))


@_styled
def history(lines: list[dict[str, Any]], names: list[str], title: str) -> str:
    """Scalars of one run's log along its updates; its loops one after the other."""
    figure, axes = _figure()
    said, places = [], []
    begun: dict[str, int] = {}
    ends: dict[str, int] = {}
    for line in lines:
        begun.setdefault(line["loop"], sum(ends.values()))
        ends[line["loop"]] = line["step"] + 1
        places.append(begun[line["loop"]] + line["step"] + 1)
    for at, name in enumerate(names):
        xy = [(x, line[name]) for x, line in zip(places, lines, strict=True) if math.isfinite(line.get(name, math.nan))]
        if xy:
            axes.plot(*zip(*xy), color=f"#06{at % HUES + 1:02x}06", lw=1.4, label=name)
            said.append(f"{name} ends at {words.number(xy[-1][1])}")
    axes.set_xlim(left=0)
    axes.set_xlabel("updates")
    axes.grid(axis="y", color=PAINT["line"], lw=0.6)
    axes.legend(frameon=False, labelcolor=PAINT["ink"], handlelength=1.4, fontsize=FONT)
    return _svg(figure, "log-" + re.sub(r"\W+", "-", title), title, "; ".join(said))


def gallery(images: Any, columns: int = 10) -> str:
    """Images [n, 1 or 3, height, width] side by side, each from its darkest to its brightest value, as a PNG in the page."""
    from PIL import Image

    n, channels, height, width = images.shape
    low, high = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
    cells = ((images - low) / (high - low).clamp(min=1e-12) * 255).byte().permute(0, 2, 3, 1).numpy()
    columns = min(n, columns)
    step = max(1, 48 // height)                               # a small image is enlarged, its pixels stay sharp
    sheet = Image.new("RGB", (columns * (width * step + 2), -(-n // columns) * (height * step + 2)), "white")
    for at, cell in enumerate(cells):
        one = Image.fromarray(cell if channels == 3 else cell[..., 0])
        sheet.paste(one.resize((width * step, height * step), Image.Resampling.NEAREST),
                    (at % columns * (width * step + 2), at // columns * (height * step + 2)))
    stream = io.BytesIO()
    sheet.save(stream, "PNG")
    coded = base64.b64encode(stream.getvalue()).decode()
    return f'<img class="gallery" alt="{n} images of {height} × {width}" src="data:image/png;base64,{coded}">'


# --- drawing ---------------------------------------------------------------------------------------------------------


def _figure(high: float = HIGH):
    """An empty figure in the page's manner: no frame, thin lines, colours that the page fills in."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDE, high), dpi=72, layout="constrained")      # a pixel is a unit of the SVG
    figure.patch.set_visible(False)
    axes = figure.add_subplot()
    axes.patch.set_visible(False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set(color=PAINT["line"], linewidth=0.8)
    axes.tick_params(which="both", color=PAINT["line"], labelcolor=PAINT["muted"], labelsize=FONT, width=0.8, length=3)
    axes.xaxis.label.set(color=PAINT["muted"], fontsize=FONT)
    axes.yaxis.label.set(color=PAINT["muted"], fontsize=FONT)
    return figure, axes


def _svg(figure, name: str, title: str, said: str) -> str:
    """The figure as an SVG element that scales, reads aloud, and takes colours and font from the page."""
    stream = io.StringIO()
    figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = stream.getvalue()
    text = re.sub(r"^.*?(?=<svg)", "", text, count=1, flags=re.S)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    text = re.sub(r'<svg [^>]*viewBox="([^"]*)"[^>]*>',
                  rf'<svg viewBox="\1" role="img" aria-labelledby="{name}-title {name}-said" class="picture">'
                  rf'<title id="{name}-title">{_safe(title)}</title><desc id="{name}-said">{_safe(said)}</desc>', text, count=1)
    text = re.sub(rf'\bid="(?!{re.escape(name)}-)([^"]+)"', rf'id="{name}-\1"', text)
    text = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", text)
    text = re.sub(r'xlink:href="#([^"]+)"', rf'href="#{name}-\1"', text)
    text = re.sub(r"font: ([\d.]+)px [^;\"]+", r"font-size: \1px", text)
    for word, colour in PAINT.items():
        text = text.replace(colour, f"var(--{word})")
    text = re.sub(r"#06(\w\w)06", lambda m: f"var(--hue-{int(m[1], 16)})", text)
    return text.replace("#070107", "var(--alone)").replace("#070207", "var(--tuned)").strip()


def _safe(text: str) -> str:
    return escape(text).replace("\\", "&#92;")


def _short(label: str, most: int = 24) -> str:
    return label if len(label) <= most else label[: most - 1] + "…"


def _size(style: dict[str, Any]) -> float:
    """Points across, so that all markers look equally large."""
    return {"*": 10, "P": 8.5, "X": 8.5, "D": 6.5, "s": 6.5}.get(style["marker"], 7.5)


def _front(dots: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Dots that no other is both cheaper and better than, from cheap to dear."""
    front: list[tuple[float, float]] = []
    for x, y in sorted(dots, key=lambda d: (d[0], -d[1])):
        if not front or y > front[-1][1]:
            front.append((x, y))
    return front


def _side_by_side(axes, dots: list[tuple[float, float]], apart: float = 8.0, near: float = 16.0) -> list[tuple[float, float]]:
    """Dots that would hide each other stand side by side, `apart` units, the best on the right, so that all are seen."""
    spots = axes.transData.transform(dots)
    groups: list[list[int]] = []
    for i in sorted(range(len(dots)), key=lambda i: -spots[i][1]):
        home = next((g for g in groups if abs(spots[i][0] - spots[g[0]][0]) < 3 and spots[g[-1]][1] - spots[i][1] < near), None)
        home.append(i) if home else groups.append([i])
    for group in groups:
        for place, i in enumerate(group):
            spots[i][0] += apart * ((len(group) - 1) / 2 - place)
    return [tuple(spot) for spot in axes.transData.inverted().transform(spots)]


def _labels(axes, places: list[tuple[float, float]], texts: list[str], gap: float = 12.5) -> None:
    """Names beside their dots, pushed apart where they would overlap, with a thin line back to the dot."""
    spots, box = axes.transData.transform(places), axes.get_window_extent()
    left = [spot[0] > box.x0 + 0.62 * box.width for spot in spots]
    for side in (False, True):
        mine = sorted((i for i in range(len(texts)) if left[i] == side), key=lambda i: -spots[i][1])
        if not mine:
            continue
        x = min(spots[i][0] for i in mine) - 16 if side else max(spots[i][0] for i in mine) + 16
        for i, y in zip(mine, apart([spots[i][1] for i in mine], gap, box.y0 + 6, box.y1 - 4), strict=True):
            axes.annotate(
                _short(texts[i]), places[i], (x - spots[i][0], y - spots[i][1]), textcoords="offset pixels", color=PAINT["ink"],
                fontsize=FONT, ha="right" if side else "left", va="center",
                bbox={"facecolor": PAINT["paper"], "edgecolor": "none", "pad": 0.6},
                arrowprops={"arrowstyle": "-", "color": PAINT["muted"], "lw": 0.5, "alpha": 0.6, "shrinkA": 1, "shrinkB": 5})


def apart(wanted: list[float], gap: float, low: float, high: float) -> list[float]:
    """Falling places as near as can be to the wanted ones (falling, too), `gap` from each other and within [low, high].

    Least squares under an order: neighbours that come too close share the mean of their places (pool adjacent violators).
    """
    pools: list[list[float]] = []                      # [sum, count]
    for at, place in enumerate(wanted):
        pools.append([place + at * gap, 1])
        while len(pools) > 1 and pools[-1][0] / pools[-1][1] > pools[-2][0] / pools[-2][1]:
            total, count = pools.pop()
            pools[-1][0] += total
            pools[-1][1] += count
    found = [total / count for total, count in pools for _ in range(int(count))]
    found = [min(place, high) - at * gap for at, place in enumerate(found)]
    short = low - found[-1] if found else 0
    return [place + max(0, short) for place in found]


def _plain_log(axes) -> None:
    """Ticks of a logarithmic axis as plain numbers: 0.02, 0.05, 0.1, 0.2."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    low, high = axes.get_xlim()
    subs = (1.0,) if high / low > 300 else (1.0, 3.0) if high / low > 40 else (1.0, 2.0, 5.0)
    axes.xaxis.set_major_locator(LogLocator(subs=subs))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.10g}"))
    axes.set_xlim(low, high)
