"""A server that speaks OpenAI's protocol (chat or completions), by Python's own HTTP: one POST an answer, no further package."""

import json
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from types import MappingProxyType
from typing import Any, Literal
from urllib.error import HTTPError
from urllib.parse import urlsplit

from stillroom.errors import Refused
from stillroom.parts.oracle.answer import Answer, Failed, Step

Prompt = str | Sequence[Mapping[str, str]]      # a text, or messages {"role": …, "content": …}
LATER = (408, 409, 425, 429, 500, 502, 503, 504, 529)      # a status that may be another one when asked again
LARGEST = 2**26      # bytes of a reply
SECRET = 12          # letters from which a key is one: "EMPTY", as local servers are given, is a word like others
FRAME = 64           # tokens that a server may put around the messages


@dataclass(frozen=True)
class Endpoint:
    """Where a model answers, and how it is to answer. Raises `Refused` for what no server can take.

    The API key is read from the environment for each request, and is neither kept nor shown; where a server repeats it, it is
    crossed out. Redirects are not followed: they would carry it to another host.
    """

    url: str                     # up to the version: "https://host/v1"
    model: str                   # as the server calls it
    key: str = ""                # name of the environment variable that holds the API key; without it none is sent
    kind: Literal["chat", "completions"] = "chat"
    max_tokens: int = 512        # of an answer
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None      # of the sampling, where the server has one; draw n is asked with seed + n
    stop: tuple[str, ...] = ()   # texts that end an answer
    logprobs: int = 0            # likeliest tokens told at each position; the server has a limit, often 20 (chat) or 5
    timeout: float = 120.0       # seconds for one answer
    more: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))    # further entries of the request; None drops

    def __post_init__(self):
        address = urlsplit(self.url)
        if address.scheme not in ("http", "https") or not address.hostname or address.query or address.fragment:
            raise Refused("this is no address of an endpoint", "it reads http://HOST:PORT/v1 or https://HOST/v1, without ? and #")
        if "@" in address.netloc:
            raise Refused("the address of an endpoint holds a password", "put it into the environment, and name the variable")
        if self.key and not re.fullmatch(r"[A-Z_][A-Z0-9_]*", self.key):
            raise Refused("key is no name of an environment variable (and is not shown, in case it is the key itself)",
                          "put the key into the environment and give the variable's name, such as OPENAI_API_KEY")
        if not self.model:
            raise Refused("an endpoint needs the name of a model", "e.g. oracle:http://localhost:8000/v1#MODEL")
        if self.kind not in ("chat", "completions"):
            raise Refused(f"kind={self.kind!r}", "chat or completions")
        for name in ("max_tokens", "timeout"):
            if not getattr(self, name) > 0:
                raise Refused(f"{name}={getattr(self, name)}", "more than 0")
        if self.logprobs < 0 or self.temperature < 0:
            raise Refused(f"logprobs={self.logprobs}, temperature={self.temperature}", "0 or more")

    def question(self, prompt: Prompt, draw: int = 0) -> dict[str, Any]:
        """The request's body: model, prompt, sampling. Raises `Refused` for messages where a text is wanted."""
        if self.kind == "completions" and not isinstance(prompt, str):
            raise Refused("completions take a text, not messages", "kind='chat', or write the messages as one text")
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [dict(m) for m in prompt]
        body: dict[str, Any] = {"model": self.model, **({"messages": messages} if self.kind == "chat" else {"prompt": prompt}),
                                "max_tokens": self.max_tokens, "temperature": self.temperature, "top_p": self.top_p}
        if self.seed is not None:
            body["seed"] = self.seed + draw
        if self.stop:
            body["stop"] = list(self.stop)
        if self.logprobs:
            body |= {"logprobs": True, "top_logprobs": self.logprobs} if self.kind == "chat" else {"logprobs": self.logprobs}
        return {k: v for k, v in {**body, **self.more}.items() if v is not None}

    def most(self, question: Mapping[str, Any]) -> int:
        """Tokens that question and answer can have at most: no token of a text is less than a byte."""
        asked = question.get("messages") or [question["prompt"]]
        longest = question.get("max_completion_tokens") or question.get("max_tokens") or self.max_tokens
        return FRAME + sum(16 + len(json.dumps(m, ensure_ascii=False).encode()) for m in asked) + longest

    def __call__(self, question: Mapping[str, Any]) -> Answer:
        """Ask. Raises `Failed`, or `Refused` when the key is not there."""
        key = self._key()
        status, text, headers = self._post(json.dumps(question).encode(), key)
        text = text.replace(key, "…") if len(key) >= SECRET else text
        try:
            said = json.loads(text)
            wrong = said.get("error") if isinstance(said, dict) else None
        except ValueError:
            said, wrong = None, None
        if status == 200 and said is not None and not wrong:
            return _answer(said, self.kind)
        if status == 200:
            raise Failed("an error in place of an answer" if wrong else "a reply that is no JSON", again=True, billed=not wrong)
        about = wrong if isinstance(wrong, dict) else {"message": wrong}
        broke = about.get("code") == "insufficient_quota"
        why = f"status {status}"
        if status in (401, 403):
            remedy = f"the server does not take the key in ${self.key}" if key else "the server wants a key: key=NAME_OF_VARIABLE"
            raise Failed(why, remedy)                # what the server says of a key may show parts of it
        if status // 100 == 3:
            raise Failed(f"{why}, a redirect", "name the address to which it leads")
        if about.get("message"):
            why += f": {' '.join(str(about['message']).split())[:200]}"
        raise Failed(why, "ask for fewer logprobs" if "logprob" in why else "", again=status in LATER and not broke,
                     after=_after(headers.get("Retry-After")))

    def _key(self) -> str:
        if not self.key:
            return ""
        key = os.environ.get(self.key, "").strip()
        if not key or not key.isascii() or not key.isprintable():
            raise Refused(f"the environment variable {self.key} {'does not read like a key' if key else 'is not set'}",
                          f"export {self.key}=…")
        return key

    def _post(self, body: bytes, key: str) -> tuple[int, str, Mapping[str, str]]:
        from urllib.request import HTTPRedirectHandler, ProxyHandler, Request, build_opener

        class Stay(HTTPRedirectHandler):
            def redirect_request(self, *_):
                return None

        near = urlsplit(self.url).hostname in ("localhost", "127.0.0.1", "::1")
        headers = {"Content-Type": "application/json", "User-Agent": "stillroom"}
        if key:
            headers["Authorization"] = f"Bearer {key}"
        path = "chat/completions" if self.kind == "chat" else "completions"
        request = Request(f"{self.url.rstrip('/')}/{path}", data=body, headers=headers)
        until, parts, size = time.monotonic() + self.timeout, [], 0
        try:
            try:
                reply: Any = build_opener(Stay, *([ProxyHandler({})] if near else [])).open(request, timeout=self.timeout)
            except HTTPError as error:
                reply = error
            with reply:
                while (part := reply.read1(2**16)) and size <= LARGEST:
                    parts.append(part)
                    size += len(part)
                    if time.monotonic() > until:
                        raise TimeoutError
                return reply.status, b"".join(parts).decode("utf-8", "replace"), reply.headers
        except (OSError, HTTPException) as error:
            slow = isinstance(error, TimeoutError) or isinstance(getattr(error, "reason", None), TimeoutError)
            why = f"no answer within {self.timeout:g} s" if slow else f"no connection ({type(error).__name__})"
            refused = isinstance(getattr(error, "reason", None), ConnectionRefusedError)
            raise Failed(why, f"is there a server at {self.url}?" if refused else "", again=True, billed=not refused) from None


def _answer(said: Any, kind: str) -> Answer:
    """From a reply of the protocol. Raises `Failed` when it is none."""
    try:
        choice = said["choices"][0]
        text = (choice["message"]["content"] if kind == "chat" else choice["text"]) or ""
        told = choice.get("logprobs") or {}
        if kind == "chat":
            steps = tuple(Step(t["token"], t["logprob"], tuple((u["token"], u["logprob"]) for u in t.get("top_logprobs") or ()))
                          for t in told.get("content") or ())
        else:
            tokens = told.get("tokens") or ()
            near = told.get("top_logprobs") or [{}] * len(tokens)
            steps = tuple(Step(t, p, tuple((n or {}).items())) for t, p, n in zip(tokens, told.get("token_logprobs") or (), near))
        if not isinstance(text, str):
            raise TypeError
        return Answer(text, choice.get("finish_reason") or "", int((said.get("usage") or {}).get("total_tokens") or 0), steps)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise Failed(f"a reply without an answer ({type(error).__name__})", again=True, billed=True) from None


def _after(told: str | None) -> float | None:
    """Seconds of a header Retry-After: a number, or a date."""
    if not told:
        return None
    try:
        return max(0.0, float(told))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(told).timestamp() - time.time())
    except (TypeError, ValueError):
        return None
