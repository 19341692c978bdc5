"""What language models read and are graded by: prompts with answers, passages of text, sentences about classes, rules."""

import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stillroom._compat import package
from stillroom.errors import Refused
from stillroom.parts import private, verifiers
from stillroom.parts.losses.logits import UNLABELLED
from stillroom.zoo import arrays, weights
from stillroom.zoo.built import first_line
from stillroom.zoo.from_transformers import hub_file
from stillroom.zoo.sets import SPLITS, Answered, Arrays, Given, Lazy, Set
from stillroom.zoo.specs import Spec, parse, take

READ = ("prompts", "passages")       # data that a language model's tokenizer makes numbers of
RULES = {"exact": verifiers.exact, "number": verifiers.number}
LINE = '{"prompt": "…", "answer": "…"} a line'
CALLABLES = (*RULES, "matching", "patterns", "nothing")


# --- tokenizers --------------------------------------------------------------------------------------------------------

def speaker(actors: Mapping[str, str]) -> str:
    """Folder or name of the language model whose tokenizer is meant: the first that plays and comes with one; else of a two-tower
    model, of the teacher before others, whose text tower reads; else "". Raises `Refused` where another language model numbers
    its tokens differently."""
    from stillroom.checks import vocabulary

    def named(kind: str, specs: Iterable[str]) -> list[str]:
        found = [parse(part).name for spec in specs for part in spec.split(",") if part.startswith(f"{kind}:")]
        return [name for name in found if not (home := Path(name).expanduser()).is_dir() or list(home.glob("tokenizer*"))]

    first, *others = dict.fromkeys(named("lm", actors.values())) or [""]
    for other in others:
        vocabulary(tokenizer(first), tokenizer(other))
    towers = named("clip", [actors[name] for name in sorted(actors, key=lambda name: name != "teacher")])
    return first or next(iter(towers), "")


def told(spec: str, speaks: str) -> str:
    """A name of data that a tokenizer makes numbers of, with that of the model that plays where it names none."""
    asked = parse(spec)
    return f"{spec}{'&' if asked.options else '?'}tokenizer={speaks}" if (
        speaks and asked.kind in READ and "tokenizer" not in asked.options) else spec


def tokenizer(name: str) -> Any:
    """The tokenizer in a model's folder, or of a name of the hub; none of the code that came with it is run. Raises `Refused`."""
    folder = Path(name).expanduser()
    return _tokenizer(str(folder.resolve()) if folder.is_dir() else name)


@lru_cache(maxsize=4)
def _tokenizer(name: str) -> Any:
    transformers = package("transformers")
    try:
        return transformers.AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except Exception as error:
        raise Refused(f"the tokenizer {name} does not work: {first_line(error)}",
                      "name a folder that holds tokenizer.json") from error


def _of(asked: Spec | str, name: Any) -> Any:
    if not name:
        raise Refused(f"{asked} needs a tokenizer",
                      f"name a model that comes with one, lm:FOLDER, or the tokenizer's folder: {asked}?tokenizer=FOLDER")
    return tokenizer(str(name))


def padding(name: str) -> int:
    """The id that pads prompts, as `parts.text.special` reads it off the model in the same folder; else the tokenizer's own."""
    found = _about(name, "config.json") | _about(name, "generation_config.json")
    ends = found.get("eos_token_id")
    own = tokenizer(name)
    known = (found.get("pad_token_id"), ends[0] if isinstance(ends, list) else ends, own.pad_token_id, own.eos_token_id)
    return next((int(one) for one in known if one is not None), 0)


def _about(name: str, file: str) -> dict[str, Any]:
    """What a file of a model says, but for nulls; {} where there is none."""
    folder = Path(name).expanduser()
    at = folder / file if folder.is_dir() else hub_file(name, file, Spec("lm", name, {}), needed=False)
    return {k: v for k, v in weights.configuration(at).items() if v is not None} if at and Path(at).is_file() else {}


# --- data --------------------------------------------------------------------------------------------------------------

def prompts(asked: Spec, size: Any, channels: Any, skip: bool, seed: int) -> Given:
    """Samples (ids of a prompt, padded on the left, [width]; its right answer, a text) of a JSONL or CSV file with the columns
    `prompt` and `answer`, or of a folder with train, valid and test; `?chat=yes`: in the tokenizer's chat template. Raises
    `Refused`."""
    known = {"tokenizer": "", "length": 1024, "prompt": "prompt", "answer": "answer", "chat": False}
    options = take(asked.options, known, asked)
    _of(asked, options["tokenizer"])
    return _files(asked, (".jsonl", ".csv"), "a JSONL or CSV file of prompts and answers", partial(_prompts, asked, options))


def _prompts(asked: Spec, options: dict[str, Any], file: Path) -> Answered:
    rows, speaks = _rows(file), tokenizer(str(options["tokenizer"]))
    asks, answers = ([str(v) for v in _column(rows, options[which], which, asked, file)] for which in ("prompt", "answer"))
    empty = next((n for n, ask in enumerate(asks, 1) if not ask.strip()), None)
    if empty:
        raise Refused(f"the prompt of row {empty} in {file} is empty", "give each row a prompt, or remove it")
    if options["chat"] and not speaks.chat_template:
        raise Refused(f"the tokenizer {options['tokenizer']} has no chat template", "leave chat=yes out")
    ids = [speaks(_turn(speaks, ask), add_special_tokens=False)["input_ids"] if options["chat"] else speaks(ask)["input_ids"]
           for ask in asks]
    width = max(map(len, ids))
    if width > options["length"]:
        long = sum(len(row) > options["length"] for row in ids)
        raise Refused(f"{long} prompts of {file} have more than {options['length']} tokens, the longest {width}",
                      f"shorten them, or allow it: length={width}")
    pad = padding(str(options["tokenizer"]))
    held = torch.tensor([[pad] * (width - len(row)) + row for row in ids])                    # [prompts, width]
    if (held[:, -1] == pad).any():
        raise Refused(f"a prompt of {file} ends in the token that pads", "let prompts end in a word or a sign")
    return Answered(partial(_prompt, held, answers), len(ids), [], file.name, (width,), repr((arrays.digest(held), answers)),
                    "prompts")


def _turn(speaks: Any, ask: str) -> str:
    """A question as a conversation begins, up to where the answer does."""
    return speaks.apply_chat_template([{"role": "user", "content": ask}], add_generation_prompt=True, tokenize=False)


def _prompt(ids: Tensor, answers: list[str], i: int) -> tuple[Tensor, str]:
    return ids[i], answers[i]


def passages(asked: Spec, size: Any, channels: Any, skip: bool, seed: int) -> Given:
    """Samples (ids [length], no label): a text file cut into blocks of so many tokens, or a folder with train.txt, valid.txt and
    test.txt. Behind the end of the text there is −100. Raises `Refused`."""
    options = take(asked.options, {"tokenizer": "", "length": 128}, asked)
    if options["length"] < 2:
        raise Refused(f"{asked}: length={options['length']}", "two tokens at least")
    _of(asked, options["tokenizer"])
    return _files(asked, (".txt",), "a text file", partial(_passages, options))


def _passages(options: dict[str, Any], file: Path) -> Arrays:
    speaks, length = tokenizer(str(options["tokenizer"])), options["length"]
    ids = torch.tensor(speaks(_text(file), verbose=False)["input_ids"], dtype=torch.long)
    if not len(ids):
        raise Refused(f"{file} is empty", "name a file of text")
    blocks = F.pad(ids, (0, -len(ids) % length), value=UNLABELLED).view(-1, length)
    return Arrays(blocks, torch.full((len(blocks),), UNLABELLED), [], file.name)


def texts(asked: Spec, size: Any, channels: Any, skip: bool, seed: int) -> Given:
    """Samples (text, no label): the lines of a text file, the column `text` of a JSONL or CSV file, or a folder with train, valid
    and test. Raises `Refused`."""
    options = take(asked.options, {"text": "text"}, asked)
    return _files(asked, (".txt", ".jsonl", ".csv"), "a file of texts", partial(_texts, asked, options))


def _texts(asked: Spec, options: dict[str, Any], file: Path) -> Lazy:
    held = ([line for line in _text(file).split("\n") if line.strip()] if file.suffix.lower() == ".txt"
            else [str(v) for v in _column(_rows(file), options["text"], "text", asked, file)])
    if not held:
        raise Refused(f"{file} is empty", "one text a line")
    return Lazy(held.__getitem__, torch.full((len(held),), UNLABELLED), [], file.name, (), repr(held), "texts")


def _files(asked: Spec, suffixes: Sequence[str], what: str, read: Callable[[Path], Set]) -> Given:
    """One file, or those of a folder by the splits that they are called after."""
    path = Path(asked.name).expanduser()
    if path.is_dir():
        parts: Given = {SPLITS[f.stem.lower()]: partial(read, f) for f in sorted(path.iterdir())
                        if f.suffix.lower() in suffixes and f.stem.lower() in SPLITS}
        if "train" not in parts:
            raise Refused(f"{path} holds no train{' or train'.join(suffixes)}",
                          f"name {what}, or a folder with train, valid, test")
        return parts
    if not path.is_file() or path.suffix.lower() not in suffixes:
        wrong = f"is no {' or '.join(suffixes)} file" if path.is_file() else "does not exist"
        raise Refused(f"{path} {wrong}", f"name {what}, or a folder with train, valid, test")
    return {"all": partial(read, path)}


def _rows(file: Path) -> list[dict[str, Any]]:
    if file.suffix.lower() == ".csv":
        rows = list(csv.DictReader(io.StringIO(_text(file))))
    else:
        rows = [_row(line, n, file) for n, line in enumerate(_text(file).split("\n"), 1) if line.strip()]
    if not rows:
        raise Refused(f"{file} has no row", "one prompt and its answer a row")
    return rows


def _row(line: str, number: int, file: Path) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise Refused(f"line {number} of {file} is no JSON: {first_line(error)}", LINE) from error
    if not isinstance(row, dict):
        raise Refused(f"line {number} of {file} is no object", LINE)
    return row


def _column(rows: list[dict[str, Any]], column: str, which: str, asked: Spec, file: Path) -> list[Any]:
    lacking = next((n for n, row in enumerate(rows, 1) if row.get(column) is None), None)
    if lacking:
        raise Refused(f"row {lacking} of {file} has no {column!r}; it has {', '.join(map(str, rows[lacking - 1])) or 'nothing'}",
                      f"name the column of the {which}s: {asked}?{which}=NAME")
    return [row[column] for row in rows]


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise Refused(f"{file} cannot be read: {first_line(error)}", "save it as text in UTF-8") from error


# --- callables ---------------------------------------------------------------------------------------------------------

def named(spec: str, speaks: str) -> Callable[..., Tensor]:
    """A reward by a rule of `parts.verifiers`: `exact`, `number`, `matching:REGULAR EXPRESSION` (its first group is the answer);
    or a detector of `parts.private`: `patterns`, which finds digits, addresses and the words of `?names=ann,bo`, or `nothing`.
    `?tokenizer=FOLDER` where no `lm:` plays. Raises `Refused`."""
    if spec.startswith("matching:"):
        pattern = spec.removeprefix("matching:")
        try:
            groups = re.compile(pattern).groups
        except re.error as error:
            raise Refused(f"{pattern!r} is no regular expression: {error}", "matching:<answer>(.*?)</answer>") from error
        if not groups:
            raise Refused(f"{pattern!r} has no group", "put the answer in brackets: matching:<answer>(.*?)</answer>")
        return verifiers.graded(_decode(_of("matching:…", speaks)), verifiers.matching(pattern))
    asked = parse(spec)
    if asked.kind not in CALLABLES or asked.name:
        raise Refused(f"{spec!r} names no callable", f"it reads file:PATH.py:callable, {', '.join(CALLABLES[:-1])} or nothing")
    if asked.kind == "nothing":
        return private.nothing
    options = take(asked.options, {"tokenizer": speaks} | ({"names": ""} if asked.kind == "patterns" else {}), asked)
    reader = _of(asked, options["tokenizer"])
    if asked.kind == "patterns":
        return private.Patterns(symbols(reader), names=[name for name in str(options["names"]).split(",") if name])
    return verifiers.graded(_decode(reader), RULES[asked.kind])


def _decode(reader: Any) -> Callable[[Sequence[int]], str]:
    return partial(reader.decode, skip_special_tokens=True)


def symbols(reader: Any) -> list[str]:
    """Of each id the characters that it stands for, so that those of a text, joined, are the text; nothing of special tokens."""
    special, joined = set(reader.all_special_ids), {}
    for i, token in enumerate(reader.convert_ids_to_tokens(range(len(reader)))):
        joined[i] = "" if token is None or i in special else token.replace("▁", " ").replace("Ġ", " ").replace("Ċ", "\n")
    return [joined[i] for i in range(len(joined))]


# --- sentences about classes -------------------------------------------------------------------------------------------

def sentences(asked: Spec, classes: Sequence[str] | None, speaks: str) -> Tensor:
    """Tokens of a sentence for each class and template, [classes, sentences, length], by the tokenizer of a two-tower model; with
    `?embedded=yes` what its text tower makes of them, the mean of unit vectors a class, [classes, width].

    `?template=a photo of a {}.|a drawing of a {}.`, `?classes=cat,dog` where the data do not name them, `sentences:FOLDER` where
    no `clip:` plays. Raises `Refused`."""
    options = take(asked.options, {"template": "a photo of a {}.", "classes": "", "embedded": False}, asked)
    names = [name.strip() for name in str(options["classes"]).split(",") if name.strip()] or list(classes or ())
    name = asked.name or speaks
    if not names:
        raise Refused(f"{asked} knows no classes: the data have none", f"name them: {asked}?classes=cat,dog")
    if not name:
        raise Refused(f"{asked} needs the tokenizer of a two-tower model",
                      "let a clip:FOLDER play, or name one: sentences:FOLDER")
    templates = str(options["template"]).split("|")
    if any(template.count("{}") != 1 for template in templates):
        raise Refused(f"the template {options['template']!r} has no one place for the class", "template=a photo of a {}.")
    said = [template.format(name.replace("_", " ")) for name in names for template in templates]
    reader = tokenizer(name)
    tokens = reader(said, padding=True, return_tensors="pt")["input_ids"]
    limit = _about(name, "config.json").get("text_config", {}).get("max_position_embeddings") or reader.model_max_length
    if tokens.shape[1] > limit:
        raise Refused(f"a sentence has {tokens.shape[1]} tokens, and {name} reads {limit}: {max(said, key=len)!r}",
                      "a shorter template, or shorter names of classes")
    if not options["embedded"]:
        return tokens.view(len(names), len(templates), -1)
    from stillroom.zoo.models import model

    tower: Any = model(f"clip:{name}").eval()
    with torch.no_grad():
        found = F.normalize(tower.text(tokens), dim=-1)
    return found.view(len(names), len(templates), -1).mean(1)
