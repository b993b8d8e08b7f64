"""What a run says while it trains: a progress line, a CSV file and TensorBoard."""

from __future__ import annotations

import csv
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter

_LINE_INTERVAL_S = 30.0


class Reporter:
    """Shows progress on stderr: a live line on a terminal, a plain line now and then elsewhere."""

    def __init__(self, run: Path, phase: str, total_steps: int, step: int) -> None:
        """Opens the outputs.

        Args:
            run: the run's folder; gets metrics.csv (phase, step, name, value) and tensorboard/.
            phase: name of the phase.
            total_steps: its length.
            step: where it starts, after resuming.
        """
        self.console = Console(stderr=True, highlight=False)
        self._phase = phase
        self._total_steps = total_steps
        self._last_line = time.monotonic()
        self._start = (time.monotonic(), step)
        path = run / "metrics.csv"
        fresh = not path.exists()
        self._file = path.open("a", newline="", encoding="utf-8")
        self._csv = csv.writer(self._file)
        if fresh:
            self._csv.writerow(("phase", "step", "name", "value"))
        self._tensorboard = SummaryWriter(str(run / "tensorboard"), purge_step=step)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self._task = self._progress.add_task(phase, total=total_steps, completed=step, status="")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()
        self._file.close()
        self._tensorboard.close()

    def advance(self, step: int, status: str) -> None:
        """Shows that a step is done."""
        self._progress.update(self._task, completed=step, status=status)
        now = time.monotonic()
        if not self.console.is_terminal and now - self._last_line > _LINE_INTERVAL_S:
            self._last_line = now
            start, first = self._start
            left = (now - start) / max(step - first, 1) * (self._total_steps - step)
            self.say(f"{self._phase} {step}/{self._total_steps}  {status}  {left / 60:.0f} min left")

    def say(self, text: str) -> None:
        """Prints a line of its own."""
        self.console.print(text, markup=False, soft_wrap=True)

    def record(self, step: int, metrics: dict[str, float]) -> None:
        """Writes metrics to the CSV file and to TensorBoard."""
        for name, value in metrics.items():
            self._csv.writerow((self._phase, step, name, f"{value:.6g}"))
            self._tensorboard.add_scalar(f"{self._phase}/{name}", value, step)
        self._file.flush()
