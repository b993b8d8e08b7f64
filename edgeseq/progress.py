"""The progress line on stderr: live on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_LINE_INTERVAL_S = 30.0


class ProgressLine:
    """Says how far something is, and how long the rest will take."""

    def __init__(self, name: str, total: int, done: int) -> None:
        """Prepares the line.

        Args:
            name: what is going on.
            total: its length, in steps.
            done: steps done by earlier sessions.
        """
        self._console = Console(stderr=True, highlight=False)
        self._name = name
        self._total = total
        self._last_line = time.monotonic()
        self._start = (time.monotonic(), done)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._progress.add_task(name, total=total, completed=done, status="")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def advance(self, done: int, status: str) -> None:
        """Shows that so many steps are done, those of earlier sessions included."""
        self._progress.update(self._task, completed=done, status=status)
        now = time.monotonic()
        if not self._console.is_terminal and now - self._last_line > _LINE_INTERVAL_S:
            self._last_line = now
            start, first = self._start
            left = (now - start) / max(done - first, 1) * (self._total - done)
            self.say(f"{self._name} {done}/{self._total}  {status}  {left / 60:.0f} min left")

    def say(self, text: str) -> None:
        """Prints a line of its own."""
        self._console.print(text, markup=False, soft_wrap=True)
