"""Common ground: data, split, teacher, student, budget and judge, on which methods compete on equal terms."""

from stillroom.arenas.cast import Cast
from stillroom.arenas.digits import digits
from stillroom.arenas.handwriting import handwriting
from stillroom.arenas.manual import manual
from stillroom.arenas.maze import maze
from stillroom.arenas.mixture import mixture

__all__ = ["Cast", "digits", "handwriting", "manual", "maze", "mixture"]
