"""What a run says while it trains: a progress line, a CSV file and TensorBoard."""

from __future__ import annotations

import csv
from pathlib import Path
from types import TracebackType
from typing import Self

from torch.utils.tensorboard import SummaryWriter

from edgeseq.progress import ProgressLine
from edgeseq_runtime.atomic import write_file

_COLUMNS = ("phase", "step", "name", "value")


class Reporter:
    """Shows progress on stderr and keeps the metrics of a phase."""

    def __init__(self, run: Path, phase: str, total_steps: int, step: int) -> None:
        """Opens the outputs.

        Args:
            run: the run's folder; gets metrics.csv (phase, step, name, value) and tensorboard/PHASE/, both without what
                a crashed process wrote of later steps.
            phase: name of the phase.
            total_steps: its length.
            step: where it starts, after resuming.
        """
        self._phase = phase
        path = run / "metrics.csv"
        write_file(path, _rows_before(path, phase, step))
        self._file = path.open("a", newline="", encoding="utf-8")
        self._csv = csv.writer(self._file)
        # TensorBoard hides what its folder has of this step and later ones; the first is counted as 1.
        self._tensorboard = SummaryWriter(str(run / "tensorboard" / phase), purge_step=step + 1)
        self._progress = ProgressLine(phase, total_steps, step)

    def __enter__(self) -> Self:
        self._progress.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.__exit__(kind, error, trace)
        self._file.close()
        self._tensorboard.close()

    def advance(self, step: int, status: str) -> None:
        """Shows that a step is done."""
        self._progress.advance(step, status)

    def say(self, text: str) -> None:
        """Prints a line of its own."""
        self._progress.say(text)

    def record(self, step: int, metrics: dict[str, float]) -> None:
        """Writes metrics to the CSV file and to TensorBoard."""
        for name, value in metrics.items():
            self._csv.writerow((self._phase, step, name, f"{value:.6g}"))
            self._tensorboard.add_scalar(name, value, step)
        self._file.flush()


def _rows_before(path: Path, phase: str, step: int) -> bytes:
    """The file without what a phase wrote after the step from which it goes on: those steps come again."""
    if not path.exists():
        return ",".join(_COLUMNS).encode() + b"\r\n"
    lines = path.read_bytes().splitlines(keepends=True)
    whole = (line.split(b",") for line in lines if line.endswith(b"\n"))
    return b"".join(
        b",".join(row) for row in whole if row[0] != phase.encode() or not row[1].isdigit() or int(row[1]) <= step
    )
