"""Names of recipes as arguments."""

from typing import Annotated

import tyro

Name = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME", help="of a recipe; `stillroom list` names them all")]
Names = Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="NAME …", help="of recipes")]
Folder = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER", help="of a run")]
