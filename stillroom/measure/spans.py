"""The judge of extraction: pairs of a name and a string, found against true."""

from collections.abc import Mapping, Sequence

from stillroom.parts.spans import words

Found = Mapping[str, Sequence[str]]      # of one passage: strings by name


def span_f1(found: Sequence[Found], true: Sequence[Found], lenient: bool = False) -> float:
    """F1 of (name, string) pairs over all passages, in percent; 100 when nothing was to be found and nothing was.

    strict: name and string are the same, case aside; lenient: the string shares a word with a true one of that name.
    """
    hits = wanted = given = right = 0
    for ours, theirs in zip(found, true, strict=True):
        for name in ours.keys() | theirs.keys():
            mine = [_words(s) for s in dict.fromkeys(ours.get(name, ()))]
            truth = [_words(s) for s in dict.fromkeys(theirs.get(name, ()))]
            alike = (lambda a, b: bool(set(a) & set(b))) if lenient else (lambda a, b: a == b)
            hits += sum(any(alike(m, t) for t in truth) for m in mine)
            right += sum(any(alike(m, t) for m in mine) for t in truth)
            given, wanted = given + len(mine), wanted + len(truth)
    if not given and not wanted:
        return 100.0
    precision, recall = hits / max(given, 1), right / max(wanted, 1)
    return 100 * 2 * precision * recall / (precision + recall) if hits else 0.0


def _words(text: str) -> tuple[str, ...]:
    return tuple(text[a:b].casefold() for a, b in words(text))
