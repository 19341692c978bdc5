"""how to cite it: BibTeX of the papers behind recipes"""

import re
import unicodedata

from stillroom import recipe
from stillroom.commands._names import Names
from stillroom.errors import Refused

JOURNALS = ("tmlr", "jmlr", "tpami", "pami", "ijcv", "tacl", "tnnls", "tip", "taslp", "neural networks", "nature", "transactions",
            "journal", "letters", "pattern recognition", "neurocomputing", "medical image analysis")


def cite(names: Names) -> None:
    """BibTeX of the papers behind recipes, from their cards."""
    if not names:
        raise Refused("which recipes?", "stillroom cite NAME …; stillroom list names them")
    print("\n\n".join(bibtex(recipe.card(name)) for name in dict.fromkeys(names)))


def bibtex(card: recipe.Card) -> str:
    """One entry: @article for a journal, @misc for a preprint, @inproceedings otherwise."""
    authors = [a.strip() for a in re.split(r",| and | & ", card.authors.replace("et al.", ",others")) if a.strip()]
    venue = card.venue.replace(card.year, "").strip(" ,") if card.year else card.venue
    preprint, journal = "arxiv" in venue.lower(), any(re.search(rf"\b{j}\b", venue.lower()) for j in JOURNALS)
    plain = unicodedata.normalize("NFKD", authors[0].split()[-1] + card.year).encode("ascii", "ignore").decode().lower()
    number = re.search(r"arxiv\.org/(?:abs|pdf)/([\w./-]+?)(?:v\d+)?(?:\.pdf)?$", card.link)
    rows = {"title": f"{{{card.title}}}", "author": " and ".join(authors)}
    rows |= {} if preprint else {"journal" if journal else "booktitle": venue}
    rows |= {"year": card.year} if card.year else {}
    rows |= {"eprint": number[1], "archivePrefix": "arXiv"} if number else {}
    rows |= {"url": card.link}
    kind = "misc" if preprint else "article" if journal else "inproceedings"
    body = ",\n".join(f"  {word:<13} = {{{text}}}" for word, text in rows.items())
    return f"@{kind}{{{re.sub('[^a-z0-9]', '', plain)}{card.name.replace('_', '')},\n{body}\n}}"
