"""The errors a user should meet: what is wrong, and the remedy."""


class Refused(ValueError):
    """Bad input, found before any work is lost. The message says what is wrong and what to do."""

    def __init__(self, wrong: str, remedy: str = ""):
        super().__init__(f"{wrong}\n  → {remedy}" if remedy else wrong)


class Lost(RuntimeError):
    """Another rank has ended, or hangs. What was saved before is whole."""


def nearest(word: str, known) -> str:
    """`did you mean …` for an unknown word; empty when nothing is near."""
    from difflib import get_close_matches

    found = get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"did you mean {found[0]!r}?" if found else f"known: {', '.join(sorted(known))}"


def one_of(known, word: str):
    """What `word` stands for among the `known`, by name. Raises `Refused` with the nearest name."""
    if word not in known:
        raise Refused(f"{word!r} is none of {', '.join(known)}", nearest(word, known))
    return known[word]
