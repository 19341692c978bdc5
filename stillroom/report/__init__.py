"""One HTML page from a comparison or a run: no network, light and dark, on a phone and on paper."""

import json
import os
from pathlib import Path

from stillroom.errors import Refused


def page(folder: str | Path) -> Path:
    """Write `report.html` into the folder of a comparison or of a run; returns its path. Raises `Refused` for other folders."""
    from stillroom.report import layout

    folder = Path(folder)
    if (folder / "plan.json").exists() and (folder / "result.json").exists():
        text = layout.comparison(json.loads((folder / "result.json").read_text(encoding="utf-8")))
    elif (folder / "log.jsonl").exists():
        text = layout.run(folder)
    else:
        raise Refused(f"{folder} holds neither a comparison nor a run",
                      "name a folder that `stillroom compare` or `stillroom run` wrote")
    file, new = folder / "report.html", folder / "report.html.new"
    new.write_text(text, encoding="utf-8")
    os.replace(new, file)
    return file
