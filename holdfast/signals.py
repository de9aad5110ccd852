"""Ctrl-C and SIGTERM: the first ends the piece of work in hand, the second ends at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType

from holdfast.errors import Interrupted


class Stopping:
    """A context in which the first signal is remembered and the second raises `KeyboardInterrupt`.

    Args:
        say: is told once, on the first signal.
        ends: what is still finished, for that sentence ("this batch").
    """

    def __init__(self, say: Callable[[str], None], *, ends: str) -> None:
        self._say, self._ends, self._asked = say, ends, False
        self._before: dict[int, object] = {}

    def __enter__(self) -> Stopping:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._on)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    @property
    def asked(self) -> bool:
        """Whether a signal came."""
        return self._asked

    def check(self, done: str, *, asked: bool = False) -> None:
        """Stop here if a signal came.

        Args:
            done: what is on disk, for the message: "312 of 480 cells done".
            asked: whether one came to another process of this run.

        Raises:
            Interrupted: a signal came since the context was entered.
        """
        if self._asked or asked:
            raise Interrupted(f"{done}.", next="Same command continues.")

    def _on(self, number: int, frame: FrameType | None) -> None:
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True
        self._say(f"stopping after {self._ends}; once more stops at once")
