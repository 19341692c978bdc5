"""Tab completes commands, recipes and flags: `source <(stillroom completion bash)`; zsh and fish likewise"""

import inspect
from collections.abc import Sequence
from importlib import import_module

from stillroom import recipe, settings
from stillroom.cli import commands
from stillroom.errors import Refused, nearest

BASH = """\
_stillroom() {
  local IFS=$'\\n'
  local words=$(stillroom completion words "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null)
  COMPREPLY=($(compgen -W "$words" -- "${COMP_WORDS[COMP_CWORD]}"))
}
complete -o default -F _stillroom stillroom
"""
SHELLS = {
    "bash": BASH,
    "zsh": "autoload -U +X bashcompinit && bashcompinit\n" + BASH,
    "fish": "complete -c stillroom -a '(stillroom completion words (commandline -opc)[2..] (commandline -ct) 2>/dev/null)'\n",
}
ABOUT = """\
usage: stillroom completion bash|zsh|fish

  bash   echo 'source <(stillroom completion bash)' >> ~/.bashrc
  zsh    echo 'source <(stillroom completion zsh)'  >> ~/.zshrc
  fish   stillroom completion fish > ~/.config/fish/completions/stillroom.fish
"""


def command(words: Sequence[str]) -> None:
    """`completion` from words: a shell's script, or, for that script, what may stand last after the words so far."""
    if not words or words[0] in ("-h", "--help"):
        print(ABOUT, end="")
    elif words[0] == "words":
        print("\n".join(possible(list(words[1:]))))
    elif words[0] in SHELLS:
        print(SHELLS[words[0]], end="")
    else:
        raise Refused(f"no completion for {words[0]!r}", nearest(words[0], SHELLS))


def possible(words: list[str]) -> list[str]:
    """What may stand where the last of the words is being written; empty where a file or a free value belongs."""
    if len(words) < 2:
        return list(commands())
    name, before = words[0], words[-2]
    if name not in commands():
        return []
    if name in ("run", "plan", "teach"):
        method = settings.ALONE if name == "teach" else words[1] if words[1] in recipe.names() else ""
        if len(words) == 2 and name != "teach" and not words[-1].startswith("-"):
            return recipe.names()
        if not method:
            return ["--resume", "--config"] if name == "run" else ["--config"]
        actors, fields = settings.signature(method)
        extra = import_module(f"stillroom.commands.{'plan' if name == 'plan' else 'run'}").EXTRA
        known = [*actors, *fields, *settings.options(method), *extra]
        chosen = next((f for f in known if before == _flag(f.name)), None)
        choices = [part for part in chosen.type.split("'")[1::2]] if chosen and "Literal" in chosen.type else []
        value = chosen is not None and not words[-1].startswith("-") and chosen.type != "bool"
        return choices if value else [_flag(f.name) for f in known]
    if name == "completion":
        return list(SHELLS)
    flags = _flags(name)
    if before in flags and not words[-1].startswith("-"):
        return []
    takes = {"show", "cite", "try", "prove", "compare"}
    return flags if words[-1].startswith("-") or name not in takes else recipe.names()


def _flags(name: str) -> list[str]:
    """Flags of a command, from its function's arguments."""
    module = import_module(f"stillroom.commands.{name}")
    source = getattr(module, "Flags", None) or getattr(module, name, None) or getattr(module, f"{name}_")
    return [_flag(p.name) for p in inspect.signature(source).parameters.values()
            if source.__name__ == "Flags" or "Positional" not in str(p.annotation)]


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
