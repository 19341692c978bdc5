"""Judges: what was kept, what was lost, what it costs."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from stillroom.measure.classification import accuracy, agreement, answers, base_to_novel, calibration_error, predict
from stillroom.measure.cost import cost, onnx_latency

__all__ = ["Proof", "accuracy", "agreement", "answers", "base_to_novel", "calibration_error", "cost", "onnx_latency", "predict"]


@dataclass(frozen=True)
class Proof:
    """What must be true of what was made: our number, and the one it must beat."""

    ours: float
    beats: float
    unit: str
    better: Literal["higher", "lower"] = "higher"
    baseline: str = "the student alone"              # whose number `beats` is
    also: dict[str, float] = field(default_factory=dict)    # further numbers worth knowing
    shows: Callable[[], dict[str, Any]] | None = None       # makes images [n, 1 or 3, height, width] for the page, by name

    @property
    def holds(self) -> bool:
        """Strictly better than the baseline."""
        return self.ours > self.beats if self.better == "higher" else self.ours < self.beats
