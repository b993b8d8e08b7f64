"""What depth buys in wall-clock: the share of decoding time saved beside the share of decoder FLOPs saved.

Decoding time is everything from the first token to the last: all graphs of the decoder, numpy, gathers and backfill,
search; the encoder is timed apart. Policies run in turn, so that a slow phase of the machine meets all of them;
medians of the rounds are printed, as a table in Markdown.

    python benchmarks/depth_in_time.py BUNDLE examples/tatoeba_en_de/test.en --depth 3 --depth adaptive
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import click

from edgeseq_runtime.bundle import Bundle, load_bundle
from edgeseq_runtime.engine import Engine
from edgeseq_runtime.flops import DecoderFlops, decoder_flops
from edgeseq_runtime.policy import DepthPolicy
from edgeseq_runtime.search import Hypothesis, greedy, output_limit
from edgeseq_runtime.state import DecoderState
from edgeseq_runtime.tokenizer import EOS_ID

COLUMNS = (
    "batch",
    "depth",
    "average depth",
    "decoder µs/token",
    "encoder µs/token",
    "tokens/s",
    "FLOPs saved",
    "time saved",
    "ratio",
)


TURN_BATCHES = 6  # a turn: long enough that its last, half-empty batch weighs little


class TimedEngine(Engine):
    """An engine that knows how long it has encoded."""

    encoder_seconds = 0.0

    def encode(self, sources: Sequence[Sequence[int]], policy: DepthPolicy, *, alone: bool = True) -> DecoderState:
        """Encodes, and adds up the time."""
        started = time.perf_counter()
        state = super().encode(sources, policy, alone=alone)
        self.encoder_seconds += time.perf_counter() - started
        return state


@dataclass
class Measurement:
    """Rounds of one policy; the counts are those of the newest."""

    decoder_seconds: list[float] = field(default_factory=list)
    encoder_seconds: list[float] = field(default_factory=list)
    tokens: int = 0
    depth_sum: int = 0
    flops: int = 0

    def begin_round(self) -> None:
        """Starts times and counts anew."""
        self.decoder_seconds.append(0.0)
        self.encoder_seconds.append(0.0)
        self.tokens = self.depth_sum = self.flops = 0


@click.command(help=__doc__)
@click.argument("path", metavar="BUNDLE", type=click.Path(path_type=Path))
@click.argument("text", type=click.Path(path_type=Path))
@click.option("--depth", "depths", multiple=True, required=True, help="Depth policy; repeat for several.")
@click.option("--batch-size", "batch_sizes", multiple=True, type=int, default=(1, 32), show_default=True)
@click.option("--sentences", type=int, default=500, show_default=True, help="Sentences from the start of TEXT.")
@click.option("--rounds", type=int, default=5, show_default=True, help="Times each policy runs.")
def main(
    path: Path,
    text: Path,
    depths: tuple[str, ...],
    batch_sizes: tuple[int, ...],
    sentences: int,
    rounds: int,
) -> None:
    """Measures and prints the table; the module's description is the command's help."""
    bundle = load_bundle(path)
    engine = TimedEngine(path, bundle.manifest.model, device="cpu")
    lines = text.read_text(encoding="utf-8").split("\n")[:sentences]
    sources = sorted(([*bundle.tokenizer.encode(line), EOS_ID] for line in lines if line), key=len, reverse=True)
    click.echo("| " + " | ".join(COLUMNS) + " |")
    click.echo("|---" * len(COLUMNS) + "|")
    for batch_size in batch_sizes:
        policies = {name: bundle.policy(name) for name in ("full", *depths)}
        measurements = {name: Measurement() for name in policies}
        for policy in policies.values():  # warm-up
            run(engine, sources[:batch_size], policy, batch_size)
        for _ in range(rounds):
            for measurement in measurements.values():
                measurement.begin_round()
            # In turn on every few batches: a machine's speed drifts within a round.
            for start in range(0, len(sources), TURN_BATCHES * batch_size):
                chunk = sources[start : start + TURN_BATCHES * batch_size]
                for name, policy in policies.items():
                    measure(bundle, engine, chunk, policy, batch_size, measurements[name])
        for name, policy in policies.items():
            click.echo(row(batch_size, policy.name, measurements[name], measurements["full"]))


def run(engine: Engine, sources: Sequence[list[int]], policy: DepthPolicy, batch_size: int) -> list[Hypothesis]:
    """Decodes all sources, as `Translator.translate` does."""
    limits = [output_limit(len(source)) for source in sources]
    return greedy(engine, sources, policy, limits, rows=batch_size)


def measure(
    bundle: Bundle,
    engine: TimedEngine,
    sources: Sequence[list[int]],
    policy: DepthPolicy,
    batch_size: int,
    measurement: Measurement,
) -> None:
    """Adds some sentences to the newest round."""
    engine.encoder_seconds = 0.0
    started = time.perf_counter()
    results = run(engine, sources, policy, batch_size)
    seconds = time.perf_counter() - started
    measurement.decoder_seconds[-1] += seconds - engine.encoder_seconds
    measurement.encoder_seconds[-1] += engine.encoder_seconds
    flops = DecoderFlops()
    for source, result in zip(sources, results, strict=True):
        flops += decoder_flops(bundle.manifest.model, len(source), result.depths, policy)
    measurement.tokens += sum(len(result.tokens) for result in results)
    measurement.depth_sum += sum(sum(result.depths) for result in results)
    measurement.flops += flops.total


def row(batch_size: int, name: str, measurement: Measurement, full: Measurement) -> str:
    """Lays out one policy. Time and FLOPs are per token, since outputs differ in length."""
    decoder, encoder = (
        statistics.median(seconds) / measurement.tokens
        for seconds in (measurement.decoder_seconds, measurement.encoder_seconds)
    )
    time_saved = 1 - decoder / (statistics.median(full.decoder_seconds) / full.tokens)
    flops_saved = 1 - (measurement.flops / measurement.tokens) / (full.flops / full.tokens)
    ratio = f"{time_saved / flops_saved:.2f}" if flops_saved > 0 else "–"
    return (
        f"| {batch_size} | {name} | {measurement.depth_sum / measurement.tokens:.2f} | {1e6 * decoder:.0f} "
        f"| {1e6 * encoder:.0f} | {1 / (decoder + encoder):,.0f} | {flops_saved:.1%} | {time_saved:.1%} | {ratio} |"
    )


if __name__ == "__main__":
    main()
