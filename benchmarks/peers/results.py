"""What was measured, as a file and as tables in Markdown."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Speed:
    """Of one batch size."""

    batch_size: int
    words_per_second: float
    """Of the source, separated by spaces: the same words for all."""
    tokens_per_second: float
    """Pieces of the translations."""
    p50_ms: float | None
    """What half of the sentences take no longer than, and 19 in 20; only of batches of 1."""
    p95_ms: float | None


@dataclass(frozen=True)
class Result:
    """Of one contestant with one number of threads and one beam."""

    system: str
    model: str
    depth: str
    threads: int
    beam_size: int
    bleu: float
    chrf: float
    speeds: list[Speed]

    def speed(self, batch_size: int) -> Speed | None:
        """That of a batch size, where it was measured."""
        return next((speed for speed in self.speeds if speed.batch_size == batch_size), None)


@dataclass(frozen=True)
class Costs:
    """Of one contestant with one number of threads."""

    system: str
    model: str
    depth: str
    threads: int
    load_ms: float
    memory_mib: float
    disk_mib: float
    install_mib: float


@dataclass(frozen=True)
class Report:
    """All of a run of the benchmark."""

    machine: str
    versions: dict[str, str]
    bleu_signature: str
    chrf_signature: str
    results: list[Result]
    costs: list[Costs]


def save(report: Report, path: Path) -> None:
    """Writes JSON."""
    path.write_text(json.dumps(asdict(report), indent=1) + "\n", encoding="utf-8")


def read(path: Path) -> Report:
    """Reads what `save` has written."""
    fields = json.loads(path.read_text(encoding="utf-8"))
    results = [Result(**{**each, "speeds": [Speed(**one) for one in each["speeds"]]}) for each in fields["results"]]
    return Report(**{**fields, "results": results, "costs": [Costs(**each) for each in fields["costs"]]})


def tables(report: Report) -> str:
    """Quality and speed, then what each contestant costs, then what is needed to read them."""
    batch_sizes = sorted({speed.batch_size for result in report.results for speed in result.speeds})
    head = ["system", "model", "depth", "threads", "beam", "BLEU", "chrF"]
    for batch_size in batch_sizes:
        head += ["p50, ms", "p95, ms"] if batch_size == 1 else []
        head += [f"batch {batch_size}, words/s", f"batch {batch_size}, tokens/s"]
    speeds = [_row(head), _row(["---"] * len(head))]
    for result in report.results:
        cells = [result.system, result.model, result.depth, str(result.threads), str(result.beam_size)]
        cells += [f"{result.bleu:.2f}", f"{result.chrf:.2f}"]
        for speed in result.speeds:
            if speed.p50_ms is not None and speed.p95_ms is not None:
                cells += [f"{speed.p50_ms:.2f}", f"{speed.p95_ms:.2f}"]
            cells += [f"{speed.words_per_second:,.0f}", f"{speed.tokens_per_second:,.0f}"]
        speeds.append(_row(cells))
    head = ["system", "model", "depth", "threads", "load, ms", "peak memory, MiB", "on disk, MiB", "install, MiB"]
    costs = [_row(head), _row(["---"] * len(head))]
    for cost in report.costs:
        sizes = [f"{cost.load_ms:.0f}", f"{cost.memory_mib:.0f}", f"{cost.disk_mib:.1f}", f"{cost.install_mib:.0f}"]
        costs.append(_row([cost.system, cost.model, cost.depth, str(cost.threads), *sizes]))
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    notes = [
        f"{report.machine}; {versions}.",
        f"BLEU: `{report.bleu_signature}`; chrF: `{report.chrf_signature}`.",
    ]
    return "\n".join([*speeds, "", *costs, "", *notes, ""])


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
