"""Ask a teacher that only answers: once for each question, several at a time, patiently, and within its budget."""

import heapq
import json
import logging
import random
import threading
import time
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple

from stillroom.errors import Refused
from stillroom.parts.oracle.answer import Answer, Failed
from stillroom.parts.oracle.endpoint import Endpoint, Prompt
from stillroom.parts.oracle.memo import Memo
from stillroom.parts.oracle.pace import Pace

log = logging.getLogger("stillroom.oracle")


class Oracle:
    """A black-box teacher: `Oracle(ask, store)(prompts)` gives an `Answer` for each prompt.

    ask        an `Endpoint`; or a callable from a prompt (a text, or messages) to a text or an `Answer`, that may raise
               `ConnectionError` or `TimeoutError` to be asked again
    store      file that keeps what was said, by model, prompt and sampling: the same question is never asked twice, whoever was
               killed in between. In memory when left out
    name       of a callable, under which its answers are kept; an endpoint has its model's
    at_once    questions under way; 0: eight for an endpoint, one for a callable
    tries      of one question, after pauses of `pause`, twice that, four times that … seconds, or as long as the server says;
               none above `longest`
    requests, tokens                       that the store may cost in all, over every run, tries included (0: any number)
    requests_a_minute, tokens_a_minute     limits of the server (0: none)

    A budget is never exceeded: before each request the tokens that it can need at most are set aside, and what it did not
    need is given back. A request whose fate is not known, as after a kill, keeps all of it. A copy is the same oracle.
    Raises `Refused`: a question cannot be answered, or the budget is spent; what was said before is kept.
    """

    def __init__(self, ask: Endpoint | Callable[[Any], str | Answer], store: str | Path | None = None, *, name: str = "",
                 at_once: int = 0, tries: int = 8, pause: float = 1.0, longest: float = 300.0, requests: int = 0, tokens: int = 0,
                 requests_a_minute: int = 0, tokens_a_minute: int = 0):
        known = isinstance(ask, Endpoint)
        if not known and store is not None and not name:
            raise Refused("a callable has no name by which its answers could be found again", "Oracle(ask, store, name=…)")
        if not known and (tokens or tokens_a_minute):
            raise Refused("nobody knows how many tokens a callable will need", "limit its requests, or name an Endpoint")
        numbers = {"at_once": at_once, "requests": requests, "tokens": tokens, "requests_a_minute": requests_a_minute,
                   "tokens_a_minute": tokens_a_minute, "pause": pause, "longest": longest, "tries": tries}
        for word, number in numbers.items():
            if number < (word == "tries"):
                raise Refused(f"{word}={number}", "one try at least" if word == "tries" else "0 or more")
        self.ask, self.name = ask, name or (ask.model if isinstance(ask, Endpoint) else "callable")
        self.memo, self.pace = Memo(store), Pace(requests_a_minute, tokens_a_minute)
        self.at_once, self.most = at_once or (8 if known else 1), (requests, tokens)
        self.tries, self.pause, self.longest, self.a_minute = tries, pause, longest, tokens_a_minute
        self._luck, self._turn = random.Random(), threading.Lock()

    def __call__(self, prompts: Sequence[Prompt], draw: int = 0) -> list[Answer]:
        """The answers in the prompts' order. draw: a number; another one asks anew, for a further sample of the same answer."""
        if isinstance(prompts, str):
            raise Refused("an oracle takes a list of prompts", "oracle([prompt])")
        questions = [self._question(p, draw) for p in prompts]
        keys = [sha256(q.encode()).hexdigest() for q in questions]
        with self._turn, self.memo:
            said = self.memo.get(list(dict.fromkeys(keys)))
            missing = {k: q for k, q in zip(keys, questions, strict=True) if k not in said}
            if missing:
                said |= self._answers(missing)
        return [said[k] for k in keys]

    def spent(self) -> tuple[int, int]:
        """Requests and tokens so far, over every run with this store."""
        with self._turn, self.memo as memo:
            return memo.spent(self.name)

    def __repr__(self) -> str:
        return f"Oracle({self.ask if isinstance(self.ask, Endpoint) else self.name!r}, store={str(self.memo.file)!r})"

    def __copy__(self) -> "Oracle":
        return self

    def __deepcopy__(self, _) -> "Oracle":
        return self

    # --- one call ------------------------------------------------------------------------------------------------------

    def _question(self, prompt: Prompt, draw: int) -> str:
        """All that the answer depends on, as JSON of one form."""
        asked = self.ask.question(prompt, draw) if isinstance(self.ask, Endpoint) else {"prompt": prompt}
        kind = self.ask.kind if isinstance(self.ask, Endpoint) else "callable"
        return json.dumps({"teacher": self.name, "kind": kind, "draw": draw, "asked": asked}, sort_keys=True, ensure_ascii=False)

    def _answers(self, missing: dict[str, str]) -> dict[str, Answer]:
        """Ask all of these. This thread alone counts, waits and writes; the others wait for the teacher."""
        todo: SimpleQueue[_Try | None] = SimpleQueue()
        done: SimpleQueue[tuple[_Try, Answer | BaseException]] = SimpleQueue()
        due = [_Try(0.0, n, 0, key, asked, self._needs(asked)) for n, (key, asked) in enumerate(missing.items())]
        people = min(self.at_once, len(due))
        for _ in range(people):
            threading.Thread(target=self._work, args=(todo, done), daemon=True).start()      # a stop does not wait for an answer
        said: dict[str, Answer] = {}
        under_way = 0
        error: BaseException | None = None
        try:
            while under_way or (due and not error):
                while due and not error and under_way < people and self._wait(due) <= 0:
                    if not self.memo.spend(self.name, 1, due[0].needs, self.most):
                        if not under_way:
                            error = self._broke(len(said), len(missing))
                        break                            # what is under way may give tokens back
                    self.pace.charge(due[0].needs)
                    todo.put(heapq.heappop(due))
                    under_way += 1
                if not under_way:
                    time.sleep(self._wait(due))
                    continue
                free = due and not error and under_way < people
                try:
                    tried, result = done.get(timeout=self._wait(due) or None if free else None)
                except Empty:
                    continue
                under_way -= 1
                if isinstance(result, Answer):
                    said[tried.key] = result
                    self.memo.put(tried.key, tried.question, result)
                    self._give_back(tried.needs - result.used if result.used else 0)
                elif isinstance(result, Failed):
                    self._give_back(0 if result.billed else tried.needs)
                    again = self._again(tried, result)
                    error = error or (None if again else self._given_up(result, tried.number + 1, len(said), len(missing)))
                    if again:
                        heapq.heappush(due, again)
                else:
                    self._give_back(tried.needs)
                    error = error or result
        finally:
            for _ in range(people):
                todo.put(None)
        if error:
            raise error
        return said

    def _work(self, todo: "SimpleQueue[_Try | None]", done: "SimpleQueue[tuple[_Try, Answer | BaseException]]") -> None:
        while tried := todo.get():
            try:
                said: Any = self.ask(tried.asked)
                if not isinstance(said, str | Answer):
                    raise Refused(f"{self.name} gave a {type(said).__name__}", "return a text or an Answer")
                done.put((tried, Answer(said) if isinstance(said, str) else said))
            except (ConnectionError, TimeoutError) as error:
                done.put((tried, Failed(type(error).__name__, again=True)))
            except BaseException as error:
                done.put((tried, error))

    def _needs(self, question: str) -> int:
        """Tokens at most. Raises `Refused` when the limits can never allow so many."""
        if not isinstance(self.ask, Endpoint):
            return 0
        needs = self.ask.most(json.loads(question)["asked"])
        if self.a_minute and needs > self.a_minute:
            raise Refused(f"a question may need {needs} tokens, and {self.a_minute} a minute are allowed", "a smaller max_tokens")
        return needs

    def _wait(self, due: "list[_Try]") -> float:
        """Seconds until the next question may be asked."""
        return max(due[0].at - time.monotonic(), self.pace.left()) if due else 0.0

    def _give_back(self, tokens: int) -> None:
        if tokens:
            self.memo.spend(self.name, 0, -tokens)
            self.pace.give_back(tokens)

    def _again(self, tried: "_Try", failed: Failed) -> "_Try | None":
        """The next try, or None when there is none."""
        after = failed.after or 0.0
        if not failed.again or tried.number + 1 >= self.tries or after > self.longest:
            return None
        wait = after + min(self.longest, self.pause * 2**tried.number) * (0.5 + 0.5 * self._luck.random())
        if after:
            self.pace.hold(after)
        log.info("%s: %s; again in %.1f s", self.name, failed.why, wait)
        return tried._replace(at=time.monotonic() + wait, number=tried.number + 1)

    def _given_up(self, failed: Failed, tries: int, said: int, of: int) -> Refused:
        late = f", and asks us to wait {failed.after:.0f} s" if failed.again and (failed.after or 0) > self.longest else ""
        return Refused(f"{self.name} does not answer: {failed.why}{late} (tries: {tries}); {said} of {of} new answers are kept",
                       failed.remedy or "ask again later: what was answered is not asked again")

    def _broke(self, said: int, of: int) -> Refused:
        requests, tokens = self.memo.spent(self.name)
        limits = ", ".join(f"{spent} of {most} {what}" for spent, most, what in
                           zip((requests, tokens), self.most, ("requests", "tokens")) if most)
        return Refused(f"the budget of {self.name} does not reach: {limits} are spent or set aside; "
                       f"{said} of {of} new answers are kept",
                       "raise it, or ask fewer questions; what was answered is not asked again")


class _Try(NamedTuple):
    """A question, and when it may be asked; sorted by that."""

    at: float
    place: int
    number: int      # of earlier tries
    key: str
    question: str
    needs: int       # tokens set aside for it

    @property
    def asked(self) -> Any:
        asked = json.loads(self.question)
        return asked["asked"]["prompt"] if asked["kind"] == "callable" else asked["asked"]
