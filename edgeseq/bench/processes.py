"""Measurements in processes of their own, several at once where processor cores are to share the sentences.

Also with one: Python's garbage collector walks over all that a command has loaded, torch above all, in the middle of a
decode. No user of a bundle would see that.
"""

from __future__ import annotations

import multiprocessing
import statistics
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing.synchronize import Barrier
from pathlib import Path

from edgeseq.bench.timing import Shape, Timing, time_depths
from edgeseq_runtime.engine import Engine
from edgeseq_runtime.manifest import ModelFacts
from edgeseq_runtime.policy import DepthPolicy
from edgeseq_runtime.shortlist import Shortlist


@dataclass(frozen=True)
class Measurement:
    """What each process does."""

    folder: Path
    """Of a bundle's graphs."""
    model: ModelFacts
    device: str
    policies: Sequence[DepthPolicy]
    shape: Shape
    """Of a batch; each process has one."""
    rounds: int
    shortlist: Shortlist | None = None
    """Chooses the pieces that tokens are chosen from."""


@dataclass(frozen=True)
class Measured:
    """What came of it."""

    provider: str
    timings: list[Timing]
    """One per policy: tokens per second of all processes together, else means over them."""


def time_in_processes(measurement: Measurement, processes: int) -> Measured:
    """Lets processes measure the same thing at the same time.

    Raises:
        EdgeseqRuntimeError: the graphs or the device cannot be used.
    """
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(processes)
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_share, initargs=(start,)) as pool:
        parts = list(pool.map(_measure, [measurement] * processes))
    timings = [_together([part.timings[place] for part in parts]) for place in range(len(measurement.policies))]
    return Measured(parts[0].provider, timings)


def _together(timings: Sequence[Timing]) -> Timing:
    return replace(
        timings[0],
        tokens_per_second=sum(timing.tokens_per_second for timing in timings),
        ms_per_step=statistics.mean(timing.ms_per_step for timing in timings),
        ms_per_sentence=statistics.mean(timing.ms_per_sentence for timing in timings),
        ms_encoder=statistics.mean(timing.ms_encoder for timing in timings),
    )


_start: Barrier | None = None


def _share(start: Barrier) -> None:
    """Tells a new process where all of them wait for each other."""
    global _start  # noqa: PLW0603 (a barrier can reach a process of a pool only while that is made)
    _start = start


def _measure(measurement: Measurement) -> Measured:
    try:
        engine = Engine(measurement.folder, measurement.model, measurement.device, measurement.shortlist)
    finally:
        assert _start is not None, "set when the process was made"
        _start.wait()
    return Measured(
        engine.provider,
        time_depths(engine, measurement.model, measurement.policies, measurement.shape, measurement.rounds),
    )
