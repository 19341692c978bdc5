"""Answers on disk: one SQLite file that survives its writer being killed, and that others may read meanwhile."""

import sqlite3
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

from stillroom.errors import Refused
from stillroom.parts.oracle import answer
from stillroom.parts.oracle.answer import Answer

FORMAT = 1
OURS = 0x5374696C        # "Stil", in the file's header: it is a memo and no other database
TABLES = """
CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, question TEXT, answer TEXT, checksum TEXT);
CREATE TABLE IF NOT EXISTS spent (name TEXT PRIMARY KEY, requests INTEGER, tokens INTEGER);
"""


class Memo:
    """What was answered, by the digest of the question; and what each teacher has cost. Use it by `with`.

    file   where it lies; in memory when None. A network disk will not do: SQLite's log needs one machine's memory.
    Each answer is on the disk when `put` returns. An answer whose checksum is wrong counts as never given.
    """

    def __init__(self, file: str | Path | None = None):
        self.file = None if file is None else Path(file)
        self.held = _opened(":memory:") if file is None else None
        self.link: sqlite3.Connection | None = None

    def __enter__(self) -> "Memo":
        if self.file:
            self.file.parent.mkdir(parents=True, exist_ok=True)
        self.link = self.held or _opened(str(self.file))
        return self

    def __exit__(self, *_) -> None:
        if self.link and not self.held:
            self.link.close()
        self.link = None

    def get(self, keys: Sequence[str]) -> dict[str, Answer]:
        """Those of the answers that are there."""
        found = {}
        for at in range(0, len(keys), 500):
            some = keys[at : at + 500]
            marks = ",".join("?" * len(some))
            rows = self._do(f"SELECT key, question, answer, checksum FROM answers WHERE key IN ({marks})", some)
            found.update({key: answer.read(said) for key, asked, said, check in rows if check == _checksum(key, asked, said)})
        return found

    def put(self, key: str, question: str, said: Answer) -> None:
        """Keep an answer."""
        line = answer.write(said)
        self._do("INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?)", (key, question, line, _checksum(key, question, line)))

    def spend(self, name: str, requests: int, tokens: int, most: tuple[int, int] = (0, 0)) -> bool:
        """Count what a teacher costs, unless it would then have cost more than `most` requests or tokens (0: any number)."""
        self._do("INSERT OR IGNORE INTO spent VALUES (?, 0, 0)", (name,))
        return bool(self._do(
            "UPDATE spent SET requests = requests + ?, tokens = tokens + ? WHERE name = ? AND (? = 0 OR requests + ? <= ?) "
            "AND (? = 0 OR tokens + ? <= ?) RETURNING name",
            (requests, tokens, name, most[0], requests, most[0], most[1], tokens, most[1])))

    def spent(self, name: str) -> tuple[int, int]:
        """Requests and tokens that a teacher has cost since this memo began."""
        return next(iter(self._do("SELECT requests, tokens FROM spent WHERE name = ?", (name,))), (0, 0))

    def _do(self, order: str, values: Sequence = ()) -> list[tuple]:
        assert self.link, "a memo is used by `with`"
        return self.link.execute(order, values).fetchall()


def _opened(file: str) -> sqlite3.Connection:
    link = sqlite3.connect(file, timeout=60, isolation_level=None, check_same_thread=False)
    try:
        link.execute("PRAGMA journal_mode = WAL")
        link.execute("PRAGMA synchronous = FULL")
        found = link.execute("PRAGMA application_id").fetchone()[0], link.execute("PRAGMA user_version").fetchone()[0]
        empty = not link.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if empty:
            link.executescript(f"{TABLES} PRAGMA application_id = {OURS}; PRAGMA user_version = {FORMAT};")
        elif found != (OURS, FORMAT):
            raise Refused(f"{file} holds no answers in format {FORMAT}", "name another file for the store")
    except sqlite3.DatabaseError as error:
        link.close()
        raise Refused(f"{file} holds no answers ({error})", "name another file for the store") from error
    except Refused:
        link.close()
        raise
    return link


def _checksum(*parts: str) -> str:
    return sha256("\0".join(parts).encode()).hexdigest()[:32]
