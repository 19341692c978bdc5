"""One bar over all runs of a comparison, with time left; on a pipe, a line for every run that ends."""

import sys
import time
from typing import Any


class Bar:
    """Counts updates: `expect` all of them, `begin` a run, `tick` along it, `end` it; `skip` one that was done before."""

    def __init__(self, show: bool):
        from rich.console import Console

        self.console = Console(stderr=True)
        self.show, self.live = show, show and self.console.is_terminal
        self.bar: Any = None
        self.task: Any = None
        self.total = self.done = self.goal = self.skipped = 0
        self.began = time.monotonic()

    def __enter__(self) -> "Bar":
        if self.live:
            from rich import progress

            self.bar = progress.Progress(
                "[bold]{task.description}", progress.BarColumn(), progress.TaskProgressColumn(), progress.TimeElapsedColumn(),
                "left", progress.TimeRemainingColumn(), console=self.console, transient=True)
            self.bar.start()
            self.task = self.bar.add_task("looking at teacher, student and data", total=None)
        return self

    def __exit__(self, *_) -> None:
        if self.bar:
            self.bar.stop()

    def expect(self, updates: int) -> None:
        self.total = updates
        self._draw()

    def name(self, words: str) -> None:
        if self.bar:
            self.bar.update(self.task, description=words.replace("[", r"\["))

    def begin(self, updates: int) -> None:
        self.done, self.goal = self.goal, self.goal + updates

    def tick(self, updates: int) -> None:
        self.done = min(self.done + updates, self.goal)
        self._draw()

    def end(self) -> None:
        self.done = self.goal
        self._draw()

    def skip(self, updates: int) -> None:
        self.skipped += updates
        self.begin(updates)
        self.end()

    def tell(self, words: str) -> None:
        """What became of a run, where there is no bar to see it."""
        if self.show and not self.live:
            pace = (time.monotonic() - self.began) / max(1, self.goal - self.skipped)
            print(f"{words}  ({100 * self.goal // max(1, self.total)} % done, {pace * (self.total - self.goal):.0f} s left)",
                  file=sys.stderr, flush=True)

    def _draw(self) -> None:
        if self.bar:
            self.bar.update(self.task, total=self.total, completed=self.done)
