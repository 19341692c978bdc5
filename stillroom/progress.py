"""A progress bar with time left; on a pipe, a line now and then."""

import time
from typing import Any


class Progress:
    def __init__(self, show: bool):
        self.bar: Any = None
        self.tasks: dict[str, Any] = {}
        self.told = 0.0
        self.began: dict[str, tuple[float, int, int]] = {}
        self.show, self.live = show, False
        if show:
            from rich.console import Console

            self.live = Console(stderr=True).is_terminal

    def begin(self, key: str, steps: int, done: int) -> None:
        self.began[key] = (time.monotonic(), done, steps)
        if self.live:
            if self.bar is None:
                from rich import progress
                from rich.console import Console

                self.bar = progress.Progress(
                    "[bold]{task.description}", progress.BarColumn(), progress.MofNCompleteColumn(), progress.TimeElapsedColumn(),
                    "left", progress.TimeRemainingColumn(), "{task.fields[values]}", console=Console(stderr=True))
                self.bar.start()
            self.tasks[key] = self.bar.add_task(key, total=steps, completed=done, values="")

    def advance(self, key: str, done: int, values: dict[str, float]) -> None:
        if not self.show:
            return
        words = "  ".join(f"{k} {v:.4g}" for k, v in values.items())
        if self.live:
            self.bar.update(self.tasks[key], completed=done, values=words)
        elif time.monotonic() - self.told > 20:
            import sys

            self.told = time.monotonic()
            began, first, steps = self.began[key]
            left = (self.told - began) / max(1, done - first) * (steps - done)
            print(f"{key}  {done}/{steps}  {left:.0f} s left  {words}", file=sys.stderr, flush=True)

    def end(self, key: str) -> None:
        if self.live and key in self.tasks:
            self.bar.stop_task(self.tasks[key])

    def close(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None
