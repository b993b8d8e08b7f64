"""Several processes that share the lines of a text, each with a Translator of its own.

Decoding is many short calls between which Python holds its lock, so threads of one process wait for
each other, and threads within a call wait for so little work that they are slower than one.
Processes do neither; each holds the bundle once.
"""

import multiprocessing
import signal
import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from types import TracebackType
from typing import Any, Self

from edgeseq_runtime.beam import BeamOptions
from edgeseq_runtime.bundle import Bundle, load_bundle
from edgeseq_runtime.errors import BundleError, EdgeseqRuntimeError, InputError, WorkerError, warn_caller
from edgeseq_runtime.lines import read_window, with_prefixes
from edgeseq_runtime.policy import DepthPolicy
from edgeseq_runtime.settings import check_whole_number
from edgeseq_runtime.translator import (
    WINDOW_BATCHES,
    Translation,
    Translator,
    check_settings,
    chosen_shortlist,
    default_depth,
)

_WINDOWS_AHEAD = 2
"""Windows of lines that are out at any time, so that a process that is done early has more to do."""

_JOIN_SECONDS = 5.0


@dataclass(frozen=True)
class _Answer:
    """What a process made of its share of the lines: translations or an error, and what it warned of."""

    call: int
    translations: list[Translation]
    warnings: list[Warning]
    error: Exception | None


class TranslatorPool:
    """A bundle, ready to translate on several processor cores. To be closed, or used in a ``with``.

    A script that makes one needs the guard ``if __name__ == "__main__":``, as all that use processes.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        processes: int,
        depth: str | int | None = None,
        device: str = "auto",
        shortlist: bool = False,
    ) -> None:
        """Check a bundle, and let each process load it.

        Args:
            model: The bundle's folder.
            processes: How many, at least 1: as many as there are cores to use.
            depth: As of :class:`Translator`.
            device: As of :class:`Translator`.
            shortlist: As of :class:`Translator`.

        Raises:
            BundleError: The bundle is missing, incomplete, changed, or of another format.
            PolicyError: The bundle does not have this depth policy.
            InputError: ``processes`` is out of range, or the bundle has no shortlist to use.
        """
        check_whole_number("processes", processes, 1)
        self._bundle = load_bundle(model)
        self._policy = self._bundle.policy(default_depth(self._bundle) if depth is None else depth)
        if shortlist:
            chosen_shortlist(self._bundle)  # or the processes would find out one by one
        context = multiprocessing.get_context("spawn")  # a fork takes over locks of whatever runs beside it
        self._call = 0  # the newest
        self._closed = False
        self._connections: list[Connection] = []
        self._processes = []
        for _ in range(processes):
            ours, theirs = context.Pipe()
            settings = (str(model), self._bundle.sha256, self._policy.name, device, shortlist)
            process = context.Process(target=_serve, args=(theirs, *settings), daemon=True)
            process.start()
            theirs.close()
            self._connections.append(ours)
            self._processes.append(process)

    @property
    def bundle(self) -> Bundle:
        """The bundle, checked when the pool was made."""
        return self._bundle

    @property
    def policy(self) -> DepthPolicy:
        """The depth policy of all calls."""
        return self._policy

    @property
    def process_ids(self) -> list[int]:
        """Of the processes, as the operating system numbers them."""
        return [process.pid for process in self._processes if process.pid is not None]

    def __enter__(self) -> Self:
        """Nothing more to do."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    def close(self) -> None:
        """End the processes, whatever they are doing."""
        self._closed = True
        for connection in self._connections:
            connection.close()
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.join(_JOIN_SECONDS)

    def translate_iter(
        self,
        lines: Iterable[str],
        *,
        batch_size: int = 32,
        max_length: int | None = None,
        scores: bool = False,
        beam: int | BeamOptions = 1,
        prefixes: Iterable[str] | None = None,
    ) -> Iterator[Translation]:
        """Translate any number of lines in bounded memory, in order.

        Results are those of :meth:`Translator.translate_iter`, whose arguments these are; the depth is
        the pool's. One call at a time: a new one ends those before. Up to 2 * WINDOW_BATCHES *
        batch_size lines are read ahead for each process. Ctrl-C while it waits closes the pool.

        Raises:
            InputError: Something other than str, when that is reached; or a setting out of range; or
                another call has begun; or the pool is closed.
            DeviceError: onnxruntime is not installed, the device cannot be used, or its 8-bit products
                are wrong.
            BundleError: The bundle has changed since the pool was made.
            WorkerError: A process has died.
        """
        if self._closed:
            raise InputError("this pool is closed: make another one")
        options = BeamOptions.of(beam)
        check_settings(batch_size, max_length, options)
        self._call += 1
        settings: dict[str, Any] = {
            "batch_size": batch_size,
            "max_length": max_length,
            "scores": scores,
            "beam": options,
        }
        size = WINDOW_BATCHES * batch_size * len(self._connections)
        return self._translate_windows(self._call, with_prefixes(lines, prefixes), size, settings)

    def _translate_windows(
        self, call: int, pairs: Iterator[tuple[str, str]], size: int, settings: dict[str, Any]
    ) -> Iterator[Translation]:
        out: deque[int] = deque()  # lines of the windows that are out
        failure: Exception | None = None
        more = True
        while more or out:
            if self._closed:
                raise InputError("this pool was closed before all results were taken: take them before it is closed")
            while more and len(out) < _WINDOWS_AHEAD:
                window, failure = read_window(pairs, size)
                more = len(window) == size
                if window:
                    self._hand_out(call, window, settings)
                    out.append(len(window))
            if out:
                yield from self._collect(call, out.popleft())
        if failure is not None:
            raise failure

    def _hand_out(self, call: int, window: list[tuple[str, str]], settings: dict[str, Any]) -> None:
        """Give each process every so-manieth line: shares alike in length."""
        number = len(self._connections)
        for first, connection in enumerate(self._connections):
            share = window[first::number]
            try:
                connection.send((call, [line for line, _ in share], [prefix for _, prefix in share], settings))
            except OSError as error:
                raise self._death(first) from error
            except BaseException:
                self.close()  # half a message may be on its way, and nothing can follow it
                raise

    def _collect(self, call: int, lines: int) -> Iterator[Translation]:
        if call != self._call:
            raise InputError("another call of this pool has begun: take all results of one before the next")
        answers = [self._receive(call, place) for place in range(len(self._connections))]
        for answer in answers:
            for warning in answer.warnings:
                warn_caller(warning)
        # Every process gives what it translated before an error: so do all of them together.
        results = [iter(answer.translations) for answer in answers]
        for index in range(lines):
            place = index % len(answers)
            result = next(results[place], None)
            if result is None:
                error = answers[place].error
                assert error is not None, "a share without an error is whole"
                raise error
            yield result

    def _receive(self, call: int, place: int) -> _Answer:
        while True:
            try:
                answer: _Answer = self._connections[place].recv()
            except (EOFError, OSError) as error:
                raise self._death(place) from error
            except BaseException:
                self.close()  # half a message may have been taken, and the rest of it makes no sense
                raise
            if answer.call == call:  # others are of calls whose results nobody took
                return answer

    def _death(self, place: int) -> WorkerError:
        process = self._processes[place]
        process.join(_JOIN_SECONDS)
        return WorkerError(
            f"process {process.pid}, one of {len(self._processes)} that translate, has died with exit code "
            f"{process.exitcode}: if memory was short, use fewer, or smaller batches"
        )


def _serve(connection: Connection, model: str, sha256: str, depth: str, device: str, shortlist: bool) -> None:
    """Translate what comes until the other end is closed."""
    # Ctrl-C reaches all processes of a terminal; the one that has the pool ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Were nobody to receive while an answer is sent, and both too long for a pipe, each end would wait for the other.
    tasks: SimpleQueue[Any] = SimpleQueue()
    Thread(target=_receive_tasks, args=(connection, tasks), daemon=True).start()
    translator: Translator | None = None
    while (task := tasks.get()) is not None:
        call, lines, prefixes, settings = task
        done: list[Translation] = []
        found: Exception | None = None
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                translator = translator or Translator(model, depth=depth, device=device, shortlist=shortlist)
                if translator.bundle.sha256 != sha256:
                    raise BundleError(f"{model} has changed since it was opened: open it again")
                done.extend(translator.translate_iter(lines, prefixes=prefixes, **settings))
            except EdgeseqRuntimeError as error:
                found = error
        warned = [entry.message for entry in caught if isinstance(entry.message, Warning)]
        try:
            connection.send(_Answer(call, done, warned, found))
        except OSError:  # the other end was killed
            return


def _receive_tasks(connection: Connection, tasks: "SimpleQueue[Any]") -> None:
    """Take in what comes at once; None when the other end is closed."""
    try:
        while True:
            tasks.put(connection.recv())
    except (EOFError, OSError):
        tasks.put(None)
