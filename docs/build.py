"""One page per recipe from its card, its source and its proof, and an index: `make docs`. Nothing here is typed by hand."""

from pathlib import Path

from stillroom import recipe, status
from stillroom.commands.cite import bibtex

HERE = Path(__file__).parent
STAMP = "<!-- made by docs/build.py from the recipe's file and its proof -->\n"


def pages() -> dict[Path, str]:
    """Every generated page by its path."""
    return {HERE / "README.md": index(), **{HERE / "recipes" / f"{name}.md": page(name) for name in recipe.names()}}


def index() -> str:
    cards = sorted(map(recipe.card, recipe.names()), key=lambda c: (c.family, c.name))
    rows = [(c.family, f"[{c.name}](recipes/{c.name}.md)", c.short, f"{c.title} ({c.year})", measured(c.name),
             status.status(c.name), str(len(c.path.read_text(encoding="utf-8").splitlines())), cost(c.name)) for c in cards]
    return (f"{STAMP}# Recipes\n\n*proven*: on real data, better than its baseline with every one of at least three seeds. "
            "*checked*: value tests and trial pass; the proof is shown, lost or not on real data. Status is computed from "
            "`proofs/`. *lines*: of the recipe's file. *CPU-s*: of trial and proof with all baselines, a seed.\n\n"
            + table(("family", "name", "short", "paper", "measured", "status", "lines", "CPU-s"), rows))


def page(name: str) -> str:
    card, found = recipe.card(name), status.proof(name)
    actors = [(f"`{f.name}`", f"`{f.type}`", "needed" if f.default is ... else "may be left out") for f in recipe.actors(name)]
    fields = [(f"`{f.name}`", f"`{f.default}`", f.help) for f in recipe.fields(name)]
    return "\n".join([
        f"{STAMP}# {card.short}: {card.title}\n\n{card.authors} — {card.venue} — <{card.link}>\n",
        table(("question", "answer"), list(card.rows.items())),
        "## Proof\n\n" + (proof(found) if found else "Not measured yet.\n"),
        f"## Use\n\n```\nstillroom try {name}\nstillroom run {name} --help\n```\n",
        table(("actor", "kind", ""), actors), table(("field", "default", "meaning"), fields),
        f"## Source, whole\n\n```python\n{card.path.read_text(encoding='utf-8')}```\n",
        f"## Cite\n\n```bibtex\n{bibtex(card)}\n```\n"])


def proof(found: dict) -> str:
    trial, claim = recipe.claim(found["recipe"])
    seeds = found["seeds"]
    every = [("**ours**", found["ours"], [s["ours"] for s in seeds]),
             (f"{found['baseline']} (to be beaten)", found["beats"], [s["beats"] for s in seeds]),
             *((who, spread, [s["also"][who] for s in seeds]) for who, spread in found["also"].items())]
    rows = [(who, f"{spread['mean']:.4g} ± {spread['std']:.2g}", *(f"{x:.4g}" for x in each)) for who, spread, each in every]
    real = "" if found["real"] else " (drawn by a formula)"
    return (f"{claim}\n\n{trial}\n\n"
            f"**{status.status(found['recipe'])}** · {found['data']}{real} · {found['unit']}, {found['better']} is better · "
            f"{cost(found['recipe'])} CPU-seconds a seed, all baselines included\n\n"
            + table(("", "mean ± std", *(f"seed {s['seed']}" for s in seeds)), rows))


def measured(name: str) -> str:
    found = status.proof(name)
    if not found:
        return "not yet"
    return f"{found['ours']['mean']:.4g} beside {found['beats']['mean']:.4g}: {found['baseline']} ({found['unit']})"


def cost(name: str) -> str:
    seeds = status.proof(name).get("seeds", [])
    return f"{sum(s['cpu_seconds'] for s in seeds) / len(seeds):.0f}" if seeds else "–"


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


if __name__ == "__main__":
    for path, text in pages().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    print(f"{len(pages())} pages in {HERE}")
