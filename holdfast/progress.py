"""How far a long piece of work has come: a bar on a terminal, a plain line each minute in a file."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Say = Callable[[str], None]


def say(text: str) -> None:
    """A line to standard error, flushed, so that it is in the log when it happens."""
    print(text, file=sys.stderr, flush=True)


class Bar:
    """Work towards a total, drawn on a terminal, said once a minute elsewhere.

    Args:
        title: what is done.
        total: of it, in units that take equally long.
        every_s: seconds between lines where there is no terminal.
    """

    def __init__(self, title: str, total: float, *, every_s: float = 60.0) -> None:
        self.title, self.total, self.every_s = title, total, every_s
        self.done, self._skipped, self._began, self._said = 0.0, 0.0, time.monotonic(), time.monotonic()
        self._console = Console(stderr=True)
        self._bar: Progress | None = None

    def __enter__(self) -> Bar:
        if self._console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
            self._bar = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=self._console)
            self._bar.start()
            self._task = self._bar.add_task(self.title, total=self.total)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    def say(self, text: str) -> None:
        """A line that does not disturb the bar."""
        if self._bar is not None:
            self._bar.console.print(text, highlight=False, markup=False)
        else:
            say(text)

    def alive(self, note: str) -> None:
        """Say once in a while, where there is no terminal, that the work goes on though nothing can be counted yet."""
        now = time.monotonic()
        if self._bar is None and now - self._said >= self.every_s:
            self._said = now
            say(f"{self.title}: {note}, at work for {spoken(now - self._began)}")

    def skip(self, by: float) -> None:
        """Count what was done before; it says nothing about the time that is left."""
        self._skipped += by
        self.advance(by)

    def advance(self, by: float = 1, *, note: str = "") -> None:
        """Count on, with a short note on the state."""
        self.done += by
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(self._task, advance=by, description=f"{self.title} {note}".strip())
        elif now - self._said >= self.every_s:
            self._said = now
            done = self.done - self._skipped
            left = f", about {spoken((now - self._began) / done * (self.total - self.done))} left" if done else ""
            say(f"{self.title}: {self.done / self.total:.0%} {note}{left}")


def spoken(seconds: float) -> str:
    """A duration in words: 40 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
