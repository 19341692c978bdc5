"""Common ground: data, split, teacher, student, budget and judge, on which methods compete on equal terms."""

from stillroom.arenas.cast import Cast
from stillroom.arenas.digits import digits

__all__ = ["Cast", "digits"]
