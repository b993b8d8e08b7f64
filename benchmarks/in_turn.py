"""What benchmarks of random models share: options for their sizes, and decodes that take turns in one process."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import click

SIZES = (
    click.option("--dim", type=int, default=256, show_default=True),
    click.option("--ffn", type=int, default=1024, show_default=True),
    click.option("--vocab", type=int, default=8000, show_default=True),
    click.option("--blocks", type=int, default=6, show_default=True, help="Of each stack."),
)


def size_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds --dim, --ffn, --vocab and --blocks, in this order."""
    for option in reversed(SIZES):
        command = option(command)
    return command


def median_milliseconds(decodes: Sequence[Callable[[], float]], rounds: int, calls: int) -> list[float]:
    """Times decodes in turn, after a round that does not count.

    Args:
        decodes: each gives the seconds that it took.
        rounds: turns of each.
        calls: of a turn, whose median is the turn's time.

    Returns:
        For each the median of its turns.
    """
    found: list[list[float]] = [[] for _ in decodes]
    gc.disable()
    for _ in range(rounds + 1):
        for times, decode in zip(found, decodes, strict=True):
            times.append(1000 * statistics.median(decode() for _ in range(calls)))
    gc.enable()
    return [statistics.median(times[1:]) for times in found]
