"""What the numbers say, in words that need no statistics."""

import math
from typing import Any

MINUS, NONE = "−", "–"


def number(value: float | None, digits: int = 3) -> str:
    """Three figures that matter: 0.0213, 1.25, 97.4, 1,240."""
    if value is None or not math.isfinite(value):
        return NONE
    places = max(0, digits - 1 - (math.floor(math.log10(abs(value))) if value else 0))
    return f"{round(value, places):,.{min(places, 6)}f}".replace("-", MINUS)


def percent(value: float | None) -> str:
    """One decimal, as all accuracies here have."""
    return NONE if value is None else f"{value + 0.0:.1f}".replace("-0.0", "0.0").replace("-", MINUS)


def spread(value: dict[str, Any]) -> str:
    """mean ± standard deviation"""
    return percent(value["mean"]) + (f" ± {value['std']:.1f}" if value["std"] is not None else "")


def points(value: float | None, places: int = 1) -> str:
    """A difference with its sign: +0.4, −1.2, 0.0."""
    if value is None:
        return NONE
    text = f"{abs(value):.{places}f}"
    return text if float(text) == 0 else ("+" if value > 0 else MINUS) + text


def within(pair: dict[str, Any]) -> str:
    """A 95 % interval: [−0.2, 1.0]; empty where there is none."""
    return "" if pair["low"] is None else f"[{percent(pair['low'])}, {percent(pair['high'])}]"


def interval(pair: dict[str, Any] | None) -> str:
    """A difference with its 95 % interval: +0.4 [−0.2, 1.0]."""
    return NONE if pair is None else f"{points(pair['difference'])} {within(pair)}".strip()


def verdict(pair: dict[str, Any] | None) -> str:
    """What an interval says: "ahead", "behind", "within noise", "one seed", "equal", "same each seed"."""
    if pair is None:
        return ""
    if pair["low"] is None:
        return "one seed" if pair["n"] == 1 else "same each seed"
    if pair["low"] == pair["high"] == 0:
        return "equal"
    return "ahead" if pair["low"] > 0 else "behind" if pair["high"] < 0 else "within noise"


def bytes_(count: float | None) -> str:
    """12.3 kB, 4.56 MB"""
    if not count:
        return NONE
    power = min(3, int(math.log10(count) // 3)) if count >= 1 else 0
    return f"{number(count / 1000**power)} {('B', 'kB', 'MB', 'GB')[power]}"


def short(n: float) -> str:
    """1.25 k, 4.74 M, 3.10 G"""
    power = min(4, int(math.log10(n) // 3)) if n >= 1000 else 0
    return f"{number(n / 1000**power)} {('', 'k', 'M', 'G', 'T')[power]}".strip() if power else f"{n:.0f}"


def seconds(value: float | None) -> str:
    """0.42 s, 12.3 s, 4 min 10 s, 2 h 5 min"""
    if value is None:
        return NONE
    if value < 100:
        return f"{number(value)} s"
    if value < 5400:
        return f"{int(value // 60)} min {int(value % 60)} s"
    return f"{int(value // 3600)} h {int(value % 3600 // 60)} min"


def times(ratio: float) -> str:
    """2.4 times, 13 times"""
    return f"{ratio:.1f} times" if ratio < 9.95 else f"{ratio:.0f} times"


def count(n: int, one: str, many: str = "") -> str:
    """1 seed, 3 seeds; small numbers in words are left to the reader."""
    return f"{n:,} {one if n == 1 else many or one + 's'}"


def headline(result: dict[str, Any]) -> str:
    """One sentence: who won, by how much, and whether chance could do it."""
    best = next((r for r in result["ranking"] if r["name"] == result["winner"]), None)
    if not best:
        left = sum(c["status"] == "missing" for c in result["cells"])
        return f"Not finished: {count(left, 'run')} still to do." if left else "No contestant finished all its runs."
    share, label, alone = f"{percent(best['accuracy']['mean'])} % of test images right", best["label"], best["vs_alone"]
    if best["role"] == "alone":
        return f"No gain here: nothing beats the student alone, {share}."
    if alone is None:
        return f"{label} is best: {share}."
    gain, state = f"{percent(alone['difference'])} points", verdict(alone)
    if state in ("one seed", "same each seed"):
        why = {"one seed": "one seed cannot say", "same each seed": "without spread over seeds nobody can say"}[state]
        return f"{label} leads with {share}, {gain} above the student alone; {why} whether that is chance."
    if state != "ahead":
        seeds = count(alone["n"], "seed")
        return f"No gain that {seeds} can show: {label} leads the student alone by {gain}, which is within noise."
    level = [r["label"] for r in result["ranking"] if r["complete"] and best["accuracy"]["mean"] - r["accuracy"]["mean"] < 1e-6]
    who = f"{label} is best" if len(level) == 1 else f"{', '.join(level[:-1])} and {level[-1]} share the lead"
    return f"{who}: {share}, {gain} above the student alone{_beside_tuned(best, len(level))}."


def _beside_tuned(best: dict[str, Any], level: int) -> str:
    """The end of the headline: what the best is beside plain KD with its weight tuned."""
    pair = best["vs_tuned"]
    if best["role"] == "tuned":
        return "; no other method does better than plain KD with its weight tuned" if level == 1 else ""
    if pair is None:
        return ""
    lead, kd = f"{percent(pair['difference'])} points", "plain KD with its weight tuned"
    whose = "its" if level == 1 else "the"
    return {"ahead": f" and {lead} above {kd}", "equal": f", exactly as {kd}",
            "within noise": f"; {whose} lead of {lead} on {kd} is within noise"}.get(
                verdict(pair), f"; {lead} above {kd}, without a spread that could tell chance")


def costs(result: dict[str, Any]) -> str:
    """What the winner costs beside its teacher, and what finding it cost."""
    best = next((r for r in result["ranking"] if r["name"] == result["winner"]), None)
    if not best:
        return ""
    mine, big = best["cost"], result["teacher"]["cost"]
    keeps = 100 * best["accuracy"]["mean"] / (sum(result["teacher"]["accuracy"]) / len(result["teacher"]["accuracy"]))
    size, speed = big["bytes"] / mine["bytes"], big["p50_1"] / mine["p50_1"]

    def against(ratio: float, better: str, worse: str) -> str:
        return f"{times(ratio)} {better}" if ratio >= 1.05 else f"{times(1 / ratio)} {worse}" if ratio <= 0.95 else f"no {better}"

    tuning = result["tuning"]
    spent = sum(c.get("seconds", 0) for c in result["cells"])
    text = (f"The student is {against(size, 'smaller', 'larger')} and {against(speed, 'faster', 'slower')} than its teacher "
            f"and keeps {percent(keeps)} % of the teacher's accuracy. One run of it trained for "
            f"{seconds(best['seconds']['mean'])}; all {count(len(result['cells']), 'run')} took {seconds(spent)}")
    if tuning.get("trials"):
        text += f", and tuning plain KD another {seconds(tuning['seconds'])} in {count(len(tuning['trials']), 'trial')}"
    return text + "."


def power(result: dict[str, Any]) -> str:
    """What so many seeds can and cannot show."""
    n = len(result["seeds"])
    if n == 1:
        return ("One seed was run. The differences stand there, but nothing can be said about chance: run at least three seeds, "
                "better five or more.")
    from scipy import stats

    pairs = [r["vs_alone"] for r in result["ranking"] if r["vs_alone"] and r["vs_alone"]["low"] is not None]
    widths = sorted((p["high"] - p["low"]) / 2 for p in pairs)
    rivals = sum(r["role"] != "alone" for r in result["ranking"])
    text = (f"The intervals are those of a paired t-test on {count(n, 'difference')}, one for each seed: an interval that "
            f"contains zero means that chance alone could have made the difference. {count(n, 'seed')} stretch an interval to "
            f"{stats.t.ppf(0.975, n - 1):.1f} standard errors to each side (many seeds: 2.0)")
    if widths:
        text += (f"; here gains over the student alone below about {percent(widths[len(widths) // 2])} points cannot be told "
                 "from chance")
    once = 100 * (1 - 0.95 ** rivals)
    return text + (f". With {count(rivals, 'contestant')} beside the student alone, at least one of so many 95 % intervals "
                   f"misses the truth in up to {once:.0f} of 100 comparisons like this.")
