"""Contestants in processes of their own: nothing that one has loaded costs another time or memory.

Loading is timed from when a process has been started, and has imported the script that it belongs to.
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import click

from contestants import Contestant
from translations import Translate, Translated


@dataclass(frozen=True)
class Answer:
    """What a contestant made of some lines."""

    translations: list[Translated]
    seconds: list[float]
    """Of each line, or of all together where they make batches."""


class Worker:
    """A contestant that waits for lines. To be used in a `with`."""

    def __init__(self, contestant: Contestant, threads: int, first_line: str) -> None:
        """Lets it load and translate one line.

        Args:
            contestant: is loaded in a new process.
            threads: that it may use.
            first_line: its translation is part of loading.

        Raises:
            click.ClickException: it cannot.
        """
        self._contestant = contestant
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, contestant, threads, first_line))
        self._process.start()
        theirs.close()
        self.load_seconds: float = self._receive()

    def __enter__(self) -> Self:
        """Nothing more to do."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends the process."""
        self._connection.close()
        self._process.join()

    def translate(self, lines: list[str], batch_size: int, beam_size: int) -> Answer:
        """Translates: line by line where the batch size is 1, else all lines in one call."""
        self.begin(lines, batch_size, beam_size)
        return self.finish()

    def begin(self, lines: list[str], batch_size: int, beam_size: int) -> None:
        """Lets it translate while something else is done."""
        self._connection.send((lines, batch_size, beam_size))

    def finish(self) -> Answer:
        """Waits for what was begun."""
        answer: Answer = self._receive()
        return answer

    def peak_memory(self) -> float:
        """So far, of the process and those it has started, in MiB; only Linux tells."""
        folder = Path(f"/proc/{self._process.pid}")
        children = [child for file in folder.glob("task/*/children") for child in file.read_text().split()]
        return sum(_peak_memory(f"/proc/{number}/status") for number in (self._process.pid, *children))

    def _receive(self) -> Any:
        try:
            return self._connection.recv()
        except EOFError as error:
            raise click.ClickException(f"{self._contestant} has failed; what it said stands above") from error


def _peak_memory(status: str) -> float:
    return int(Path(status).read_text(encoding="utf-8").partition("VmHWM:")[2].split()[0]) / 1024


def _serve(connection: Connection, contestant: Contestant, threads: int, first_line: str) -> None:
    started = time.perf_counter()
    translate = contestant.load(threads)
    translate([first_line], 1, 1)
    connection.send(time.perf_counter() - started)
    gc.freeze()  # the collector would walk over all that torch has loaded in the middle of a decode
    with contextlib.ExitStack() as stack:
        in_batches = translate
        while True:
            try:
                lines, batch_size, beam_size = connection.recv()
            except EOFError:
                return
            if batch_size > 1 and threads > 1 and not contestant.shares_batches and in_batches is translate:
                in_batches = _share([stack.enter_context(Worker(contestant, 1, first_line)) for _ in range(threads)])
            parts = [[line] for line in lines] if batch_size == 1 else [lines]
            connection.send(_timed(translate if batch_size == 1 else in_batches, parts, batch_size, beam_size))


def _share(workers: list[Worker]) -> Translate:
    """Several processes of one thread each take turns at the lines."""

    def translate(lines: list[str], batch_size: int, beam_size: int) -> list[Translated]:
        for number, worker in enumerate(workers):
            worker.begin(lines[number :: len(workers)], batch_size, beam_size)
        shares = [worker.finish().translations for worker in workers]
        return [shares[number % len(workers)][number // len(workers)] for number in range(len(lines))]

    return translate


def _timed(translate: Translate, parts: list[list[str]], batch_size: int, beam_size: int) -> Answer:
    translations, seconds = [], []
    for part in parts:
        started = time.perf_counter()
        translations += translate(part, batch_size, beam_size)
        seconds.append(time.perf_counter() - started)
    return Answer(translations, seconds)
