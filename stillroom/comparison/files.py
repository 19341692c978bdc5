"""Small JSON files that are either whole or not there."""

import json
import os
from pathlib import Path
from typing import Any

from stillroom.errors import Refused


def read(file: Path) -> dict[str, Any] | None:
    """A file's content; None when it is not there. Raises `Refused` when it is damaged."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise Refused(f"{file} is damaged", "delete it: what it told is made anew") from error


def write(file: Path, content: Any) -> None:
    """To a new file, flushed to disk, then renamed over the old one."""
    file.parent.mkdir(parents=True, exist_ok=True)
    new = file.with_name(file.name + ".new")
    with open(new, "w", encoding="utf-8") as stream:
        json.dump(content, stream, indent=1)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(new, file)
