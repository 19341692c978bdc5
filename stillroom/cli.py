"""The command `stillroom`: finds its commands by their files, and turns what a user got wrong into one sentence and a remedy."""

import ast
import errno
import os
import shutil
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from stillroom import __version__
from stillroom.errors import Lost, Refused, nearest

HERE = Path(__file__).parent / "commands"
ORDER = ("list", "show", "cite", "try", "run", "teach", "cache", "compare", "plan", "measure", "export", "prove", "completion")
EXAMPLES = """\
  stillroom try kd                        does it work? its own trial and proof, ten seconds
  stillroom run kd                        a whole run on handwritten digits, nothing to name, nothing to download
  stillroom teach --student timm:resnet50 --data folder:images --folder runs/teacher
  stillroom run kd --student timm:resnet18 --teacher run:runs/teacher --data folder:images --folder runs/small
  stillroom measure runs/small            what was kept, what it costs
  stillroom export runs/small --onnx      the file to ship, checked against PyTorch
"""
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)
FINE, BUG, REFUSED, DIVERGED, LOST, STOPPED = 0, 1, 2, 3, 4, 130
TOGETHER = ("run", "teach")      # commands that several ranks carry out as one


def main(words: Sequence[str] | None = None) -> int:
    """Run one command. Returns 0 when all is well, 1 when a proof does not hold, 2 for bad input, 3 when a run diverged,
    4 when another rank was lost, 130 when it was stopped."""
    words = list(sys.argv[1:] if words is None else words)
    try:
        return _run(words)
    except Refused as error:
        return _say(f"stillroom: {error}", REFUSED)
    except FloatingPointError as error:          # run.Diverged, without importing torch to name it
        return _say(f"stillroom: diverged: {error}", DIVERGED)
    except Lost as error:
        return _say(f"stillroom: {error}", LOST)
    except KeyboardInterrupt as stop:
        return _say(f"stillroom: stopped{f': {stop}' if str(stop) else ''}".replace("stopped: stopped", "stopped"), STOPPED)
    except BrokenPipeError:                      # `stillroom list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FINE
    except SystemExit as done:                   # the parser has said why
        return done.code if isinstance(done.code, int) else FINE if done.code is None else _say(str(done.code), REFUSED)
    except (MemoryError, OSError, RuntimeError) as error:
        remedy = _short(error)
        if not remedy:
            raise
        return _say(f"stillroom: {remedy}", REFUSED)


def commands() -> dict[str, str]:
    """Every command and its one line of help, from the files in commands/ without importing them."""
    names = sorted((p.stem for p in HERE.glob("*.py") if not p.stem.startswith("_")),
                   key=lambda n: (ORDER.index(n) if n in ORDER else len(ORDER), n))
    trees = {n: ast.parse((HERE / f"{n}.py").read_text(encoding="utf-8")) for n in names}
    return {n: (ast.get_docstring(tree) or "").partition("\n")[0] for n, tree in trees.items()}


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage())
        return FINE
    if words[0] in ("--version", "-V"):
        print(f"stillroom {__version__}")
        return FINE
    name, rest = words[0].replace("-", "_"), words[1:]
    if not (HERE / f"{name}.py").exists() or name.startswith("_"):
        raise Refused(f"there is no command {words[0]!r}", nearest(words[0], commands()))
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and name not in TOGETHER:
        raise Refused(f"{words[0]} is the work of one process", f"leave torchrun out; it starts {' and '.join(TOGETHER)}")
    module = import_module(f"stillroom.commands.{name}")
    if hasattr(module, "command"):
        result = module.command(rest)
    else:
        import tyro

        result = tyro.cli(getattr(module, name), args=rest, prog=f"stillroom {name}", config=(tyro.conf.FlagCreatePairsOff,))
    sys.stdout.flush()                           # so that a closed pipe is met here
    return result if type(result) is int else FINE


def usage() -> str:
    """What `stillroom --help` prints."""
    width = max(40, shutil.get_terminal_size((110, 20)).columns)
    table = "\n".join(f"  {name:<12}{line}"[:width] for name, line in commands().items())
    return (f"stillroom {__version__}: make a model small, and show that it is still good\n\n"
            f"usage: stillroom COMMAND …        stillroom COMMAND --help says more of each\n\n{table}\n\n"
            f"examples\n{EXAMPLES}\n"
            "models   timm:NAME  torchvision:NAME  hf:NAME_OR_FOLDER  file:PATH.py:function  run:FOLDER  small:mlp  small:cnn\n"
            "teachers the same, store:FOLDER, and where answers will do oracle:URL#MODEL  oracle:file:PATH.py:function\n"
            "data     digits  folder:PATH  hf:NAME_OR_FOLDER  npz:PATH  file:PATH.py:function\n"
            "exit     0 fine, 1 a proof does not hold, 2 bad input, 3 diverged, 4 a rank was lost, 130 stopped")


def _short(error: BaseException) -> str:
    """What to say when disk or memory ran out, by an error or by what lay behind it; empty for anything else."""
    behind: BaseException | None = error
    while behind is not None:
        if isinstance(behind, OSError) and behind.errno in DISK:
            return (f"cannot write{f' {behind.filename}' if behind.filename else ''}: {behind.strerror}\n"
                    "  → make room, or name another folder; what was saved before is whole: stillroom run --resume")
        behind = behind.__context__
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error):
        return (f"out of memory: {(str(error) or 'nothing is left').splitlines()[0]}\n"
                "  → a smaller --batch, or --accumulate 2 (the same update in halves), or --precision bf16")
    return ""


def _say(text: str, code: int) -> int:
    several = int(os.environ.get("WORLD_SIZE", 1)) > 1
    print(f"rank {os.environ['RANK']}: {text}" if several else text, file=sys.stderr, flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
