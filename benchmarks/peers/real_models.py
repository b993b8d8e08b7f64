r"""Real models on a test set: bundles of edgeseq, and Transformers of training runs of edgeseq in other systems.

Each contestant has a process of its own. All translate the same text in turn, round after round: the first --sentences
lines one by one, then all in batches. Quality is that of the largest batches. A sentence's time is its median over
rounds; loading ends with the first sentence; peak memory is that after the first round.

Afterwards --out holds table.md, results.json and, of greedy search on one thread, quality_latency.svg, and in models/
the rivals' forms of the runs, which are used again the next time.

    pip install -r benchmarks/peers/requirements.txt
    python benchmarks/peers/real_models.py --edgeseq int8.bundle full --edgeseq int8.bundle 3 \
        --rival ctranslate2-int8 runs/6-6 --rival ctranslate2-int8 runs/6-2 --rival onnxruntime-int8 runs/6-6 \
        --src test.en --ref test.de --out runs/fight
"""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # whoever may use more says so

# A contestant's process imports this file first, so what it needs is in the memory and before the time of all of them:
# nothing large.
import click

from contestants import RIVALS, Contestant, prepare_rival
from install_size import install_size, size_on_disk
from plot import draw, find_points
from results import Costs, Report, Result, Speed, save, tables
from workers import Answer, Worker

EXISTING = click.Path(exists=True, path_type=Path)


@dataclass(frozen=True)
class Plan:
    """What all contestants do."""

    sources: list[str]
    references: list[str]
    sentences: int
    batch_sizes: tuple[int, ...]
    beam_sizes: tuple[int, ...]
    rounds: int

    def lines(self, batch_size: int) -> list[str]:
        """What is translated in batches of a size."""
        return self.sources[: self.sentences] if batch_size == 1 else self.sources


def measure(contestants: Sequence[Contestant], threads: int, plan: Plan) -> tuple[list[Result], list[Costs]]:
    """Loads all contestants, and lets them translate in turn."""
    from edgeseq.evaluation.scores import score_corpus

    results: list[Result] = []
    costs: list[Costs] = []
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(Worker(each, threads, plan.sources[0])) for each in contestants]
        for beam_size in plan.beam_sizes:
            speeds: list[list[Speed]] = [[] for _ in workers]
            for batch_size in sorted(plan.batch_sizes):
                lines = plan.lines(batch_size)
                warm = [worker.translate(lines, batch_size, beam_size) for worker in workers]
                if not costs:
                    costs = [measure_costs(*pair, threads) for pair in zip(contestants, workers, strict=True)]
                answers: list[list[Answer]] = [[] for _ in workers]
                for _ in range(plan.rounds):
                    for found, worker in zip(answers, workers, strict=True):
                        found.append(worker.translate(lines, batch_size, beam_size))
                for each, found in zip(speeds, answers, strict=True):
                    each.append(measure_speed(found, lines, batch_size))
            for contestant, answer, each in zip(contestants, warm, speeds, strict=True):
                translations = [one.text for one in answer.translations]
                scores = score_corpus(translations, plan.references[: len(translations)])
                names = (contestant.system, contestant.model, contestant.depth)
                results.append(Result(*names, threads, beam_size, scores.bleu, scores.chrf, each))
    return results, costs


def measure_speed(answers: Sequence[Answer], lines: Sequence[str], batch_size: int) -> Speed:
    """Puts rounds together by their medians."""
    import numpy as np

    seconds = np.median([answer.seconds for answer in answers], axis=0)
    p50, p95 = map(float, np.percentile(1000 * seconds, [50, 95]))
    return Speed(
        batch_size,
        words_per_second=sum(len(line.split()) for line in lines) / float(seconds.sum()),
        tokens_per_second=sum(one.pieces for one in answers[-1].translations) / float(seconds.sum()),
        p50_ms=p50 if batch_size == 1 else None,
        p95_ms=p95 if batch_size == 1 else None,
    )


def measure_costs(contestant: Contestant, worker: Worker, threads: int) -> Costs:
    """Of a contestant that has translated for a while."""
    return Costs(
        contestant.system,
        contestant.model,
        contestant.depth,
        threads,
        load_ms=1000 * worker.load_seconds,
        memory_mib=worker.peak_memory(),
        disk_mib=size_on_disk(contestant.folder),
        install_mib=install_size(contestant.packages),
    )


def machine() -> str:
    """The processor, as the system calls it."""
    cpuinfo = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    name = cpuinfo.partition("model name")[2].partition(":")[2].partition("\n")[0].strip()
    return f"{name or platform.processor()}, {os.cpu_count()} cores, {platform.system()}"


def versions(contestants: Sequence[Contestant]) -> dict[str, str]:
    """Of the packages that translate."""
    names = sorted({package.partition("[")[0] for contestant in contestants for package in contestant.packages})
    return {"Python": platform.python_version(), **{name: metadata.version(name) for name in names}}


@click.command(help=__doc__)
@click.option("--edgeseq", "bundles", type=(EXISTING, str), multiple=True, metavar="BUNDLE DEPTH")
@click.option(
    "--rival",
    "rivals",
    type=(click.Choice(list(RIVALS)), EXISTING),
    multiple=True,
    metavar="SYSTEM RUN",
    help=f"SYSTEM is {', '.join(RIVALS)}.",
)
@click.option("--src", type=EXISTING, required=True)
@click.option("--ref", type=EXISTING, required=True)
@click.option("--threads", type=int, multiple=True, default=(1,), show_default=True)
@click.option("--batch-size", "batch_sizes", type=int, multiple=True, default=(1, 32), show_default=True)
@click.option("--beam-size", "beam_sizes", type=int, multiple=True, default=(1,), show_default=True)
@click.option("--sentences", type=int, default=300, show_default=True, help="Translated one by one.")
@click.option("--rounds", type=int, default=3, show_default=True, help="After one that does not count.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of all that is made.")
def main(
    bundles: tuple[tuple[Path, str], ...],
    rivals: tuple[tuple[str, Path], ...],
    src: Path,
    ref: Path,
    threads: tuple[int, ...],
    batch_sizes: tuple[int, ...],
    beam_sizes: tuple[int, ...],
    sentences: int,
    rounds: int,
    out: Path,
) -> None:
    """Measures; the module's description is the command's help."""
    from edgeseq.data.text import read_parallel
    from edgeseq.evaluation.scores import score_corpus

    sources, references = map(list, zip(*read_parallel(src, ref), strict=True))
    contestants = [Contestant("edgeseq", bundle.stem, depth, bundle) for bundle, depth in bundles]
    contestants += [prepare_rival(system, run, out / "models") for system, run in rivals]
    if not contestants:
        raise click.UsageError("nobody takes part: name --edgeseq BUNDLE DEPTH or --rival SYSTEM RUN")
    plan = Plan(sources, references, sentences, batch_sizes, beam_sizes, rounds)
    results: list[Result] = []
    costs: list[Costs] = []
    for number in threads:
        found = measure(contestants, number, plan)
        results += found[0]
        costs += found[1]
    signatures = score_corpus(sources, sources)
    report = Report(
        machine(), versions(contestants), signatures.bleu_signature, signatures.chrf_signature, results, costs
    )
    out.mkdir(parents=True, exist_ok=True)
    save(report, out / "results.json")
    (out / "table.md").write_text(tables(report), encoding="utf-8")
    click.echo(tables(report))
    if find_points(report):
        draw(report, out / "quality_latency.svg")


if __name__ == "__main__":
    main()
