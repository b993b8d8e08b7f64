"""What several processor cores are good for: sentences per second of ways to use them, in turn.

Ways: one core; threads of onnxruntime within each session, which spin or do not, or in one pool for all sessions;
Python threads that share a Translator; and the processes of a TranslatorPool. Each way has a process of its own, and
takes its turn when it is told to.

    python benchmarks/processor_cores.py int8.bundle examples/tatoeba_en_de/test.en --cores 2
"""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path

import click
import onnxruntime

from edgeseq_runtime import Translator, TranslatorPool

WAYS = ("one core", "session threads", "the same, no spinning", "one pool for all", "Python threads", "processes")
SETTINGS = [(32, "full"), (32, "adaptive"), (1, "full"), (1, "adaptive")]
ALONE_SHARE = 5
"""How many times fewer sentences are decoded one by one."""


def use_session_threads(way: str, cores: int) -> None:
    """Gives all sessions to come threads, though the runtime asks for one."""
    usual = onnxruntime.SessionOptions

    class Options(usual):  # type: ignore[misc, valid-type]
        def __setattr__(self, name: str, value: object) -> None:
            if name == "intra_op_num_threads":
                if way == "one pool for all":
                    super().__setattr__("use_per_session_threads", False)
                    return
                value = cores
                if way == "the same, no spinning":
                    self.add_session_config_entry("session.intra_op.allow_spinning", "0")
            super().__setattr__(name, value)

    if way == "one pool for all":
        onnxruntime.set_default_logger_severity(3)  # or each session warns that it has no threads of its own
        onnxruntime.set_global_thread_pool_sizes(cores, 1)
    onnxruntime.SessionOptions = Options


def translate_all(way: str, bundle: Path, lines: list[str], cores: int) -> dict[tuple[int, str], Callable[[], object]]:
    """What each setting does when its turn comes."""
    if way in WAYS[1:4]:
        use_session_threads(way, cores)
    work: dict[tuple[int, str], Callable[[], object]] = {}
    for batch_size, depth in SETTINGS:
        text = lines if batch_size > 1 else lines[: len(lines) // ALONE_SHARE]
        if way == "processes":
            pool = TranslatorPool(bundle, processes=cores, depth=depth)
            work[batch_size, depth] = lambda p=pool, t=text, b=batch_size: list(p.translate_iter(t, batch_size=b))  # type: ignore[misc]
            continue
        translator = Translator(bundle, depth=depth)

        def part(share: list[str], translator: Translator = translator, batch_size: int = batch_size) -> object:
            return translator.translate(share, batch_size=batch_size)

        number = cores if way == "Python threads" else 1
        shares = [text[first::number] for first in range(number)]
        work[batch_size, depth] = lambda part=part, shares=shares: list(  # type: ignore[misc]
            ThreadPoolExecutor(len(shares)).map(part, shares)
        )
    return work


def serve(connection: Connection, way: str, bundle: Path, lines: list[str], cores: int) -> None:
    """Does the work of a setting whenever it is named, and says how long it took."""
    work = translate_all(way, bundle, lines, cores)
    while (setting := connection.recv()) is not None:
        started = time.perf_counter()
        work[setting]()
        connection.send(time.perf_counter() - started)


@click.command(help=__doc__)
@click.argument("bundle", type=click.Path(exists=True, path_type=Path))
@click.argument("text", type=click.Path(exists=True, path_type=Path))
@click.option("--cores", type=int, default=2, show_default=True)
@click.option("--sentences", type=int, default=1000, show_default=True)
@click.option("--rounds", type=int, default=3, show_default=True)
def main(bundle: Path, text: Path, cores: int, sentences: int, rounds: int) -> None:
    """Measures and prints the table; the module's description is the command's help."""
    lines = text.read_text(encoding="utf-8").split("\n")[:sentences]
    context = multiprocessing.get_context("spawn")
    connections = {}
    for way in WAYS:
        connections[way], theirs = context.Pipe()
        context.Process(target=serve, args=(theirs, way, bundle, lines, cores)).start()
    seconds: dict[tuple[str, tuple[int, str]], list[float]] = {}
    for number in range(rounds + 1):
        for setting in SETTINGS:
            for way, connection in connections.items():
                connection.send(setting)
                elapsed = connection.recv()
                if number:
                    seconds.setdefault((way, setting), []).append(elapsed)
    for connection in connections.values():
        connection.send(None)
    click.echo("| | " + " | ".join(f"batch {size}, {depth}" for size, depth in SETTINGS) + " |")
    click.echo("|---" * (1 + len(SETTINGS)) + "|")
    for way in WAYS:
        counts = [
            (len(lines) if setting[0] > 1 else len(lines) // ALONE_SHARE) / statistics.median(seconds[way, setting])
            for setting in SETTINGS
        ]
        click.echo(f"| {way} | " + " | ".join(f"{count:,.0f}" for count in counts) + " |")


if __name__ == "__main__":
    main()
