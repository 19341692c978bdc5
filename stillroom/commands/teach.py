"""make a teacher: train a network on labels alone, to be named later as --teacher run:FOLDER"""

from collections.abc import Sequence

from stillroom import settings
from stillroom.commands.run import EXTRA, begin
from stillroom.settings import ALONE

ABOUT = """\
Train a network on the labels alone: SGD, cosine to 0, no teacher. The folder is a run's, and its network plays on:
stillroom teach --student timm:resnet50 --data folder:images --folder runs/teacher
stillroom run kd --student timm:resnet18 --teacher run:runs/teacher --data folder:images"""


def command(words: Sequence[str]) -> None:
    """`teach` from words."""
    chosen, extra = settings.parse(ALONE, words, command="stillroom teach", about=ABOUT, extra=EXTRA)
    begin(chosen, folder=extra["folder"], quiet=extra["quiet"])
