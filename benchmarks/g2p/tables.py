"""Makes the tables of docs/g2p.md from what measure.py wrote: means over seeds, ± their standard deviation.

python benchmarks/g2p/tables.py OUT
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np

import grid

Result = Mapping[str, float]
"""What one policy gave: per, wer, average_depth."""

MISSING = "–"


@dataclass(frozen=True)
class Measured:
    """All documents of a decoder: name of the measurement → one per seed."""

    decoder: str
    documents: Mapping[str, Sequence[Mapping[str, list[Mapping[str, object]]]]]

    def results(self, name: str, key: str = "results") -> list[dict[str, Result]]:
        """Lists the results of a measurement by policy, one dictionary per seed."""
        return [
            {str(result["depth"]): _numbers(result) for result in document[key]}
            for document in self.documents.get(name, [])
        ]


def _numbers(result: Mapping[str, object]) -> dict[str, float]:
    return {key: float(value) for key, value in result.items() if isinstance(value, int | float)}


def load(out: Path, decoder: str) -> Measured:
    """Reads the results of a decoder."""
    documents: dict[str, list[Mapping[str, list[Mapping[str, object]]]]] = {}
    for path in sorted((out / "results" / decoder).glob("*/*.json")):
        documents.setdefault(path.stem, []).append(json.loads(path.read_text(encoding="utf-8")))
    return Measured(decoder, documents)


def spread(values: Iterable[float], digits: int = 1, sign: str = "") -> str:
    """Lays out a mean and, of several values, their standard deviation."""
    listed = list(values)
    if not listed:
        return MISSING
    mean = f"{statistics.fmean(listed):{sign}.{digits}f}"
    return f"{mean} ± {statistics.stdev(listed):.{digits}f}" if len(listed) > 1 else mean


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Lays out a table."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def above_line(result: Result, fixed: Mapping[str, Result]) -> float:
    """Computes how much lower a word error rate is than that of mixing the two fixed depths around its depth."""
    line = [fixed[depth]["wer"] for depth in grid.FIXED]
    return float(np.interp(result["average_depth"], range(1, len(line) + 1), line)) - result["wer"]


def trunk_table(measured: Measured, metric: str, digits: int) -> str:
    """Lays out the ways of training as table 1 of the paper does."""
    rows = []
    for name in grid.TRUNKS:
        seeds = measured.results(name)
        if seeds:
            columns = [[seed[depth][metric] for seed in seeds] for depth in ("uniform", *grid.FIXED)]
            columns.append([statistics.fmean(seed[depth][metric] for depth in grid.FIXED) for seed in seeds])
            rows.append([name.replace("_", " "), *(spread(column, digits) for column in columns)])
    return markdown(["training", "U", *grid.FIXED, "Avg"], rows)


def outcome(seeds: Sequence[Mapping[str, Result]], policy: str) -> str:
    """Lays out what a policy gave: average depth, word and phone error rate, in brackets how far above the line."""
    found = [(seed[policy], above_line(seed[policy], seed)) for seed in seeds if policy in seed]
    if not found:
        return MISSING
    depth, wer, per = (statistics.fmean(result[key] for result, _ in found) for key in ("average_depth", "wer", "per"))
    return f"{depth:.2f}: {wer:.1f}, {per:.1f} ({spread((gain for _, gain in found), sign='+')})"


def grid_table(measured: Measured) -> str:
    """Lays out every predictor and oracle at the paper's rule, over σ and λ."""
    seeds = measured.results("predictors")
    rules = {predictor.name: predictor.paper_rule for predictor in grid.predictors()}
    columns = [(sigma, penalty) for sigma in grid.SIGMAS for penalty in grid.PENALTIES]
    rows = []
    for family in grid.FAMILIES:
        for oracle in grid.ORACLES:
            names = [grid.predictor_name(family, oracle, sigma, penalty) for sigma, penalty in columns]
            rows.append([family, oracle, *(outcome(seeds, rules.get(name, "")) for name in names)])
    return markdown(["predictor", "oracle", *(f"σ {sigma}, λ {penalty}" for sigma, penalty in columns)], rows)


def sweep_table(measured: Measured) -> str:
    """Lays out predictors over their thresholds, confidence among them."""
    seeds = measured.results("predictors")
    rows = [
        [predictor.name, *_cells(seeds, predictor.name, grid.thresholds_of(predictor))]
        for predictor in grid.swept_predictors()
    ]
    rows.append(["confidence", *_cells(seeds, "confidence", grid.CONFIDENCES)])
    width = max(map(len, rows))
    return markdown(
        ["predictor", *["τ → depth: WER, PER"] * (width - 1)], ([*row, *[""] * (width - len(row))] for row in rows)
    )


def _cells(seeds: Sequence[Mapping[str, Result]], name: str, values: Iterable[float]) -> list[str]:
    return [f"{value:g} → {outcome(seeds, f'{name}:{value}')}" for value in values]


def joint_tables(measured: Measured) -> str:
    """Lays out what a joint second phase does to the trunk, and to stopping."""
    trunks = markdown(
        ["last quarter of the updates", *grid.FIXED],
        [
            [label, *(spread(seed[depth]["wer"] for seed in measured.results("joint", run)) for depth in grid.FIXED)]
            for label, run in (("decoder's loss alone", "trunk_alone"), ("with the predictor's loss", "joint"))
        ],
    )
    stopping = markdown(
        ["trunk", "predictor", *(f"τ {value:g}" for value in grid.THRESHOLDS)],
        [
            [
                trunk,
                predictor,
                *(outcome(measured.results("joint", run), f"{name}:{value}") for value in grid.THRESHOLDS),
            ]
            for trunk, run, predictor, name in (
                ("alone", "trunk_alone", "on the frozen trunk", "frozen"),
                ("alone", "trunk_alone", "along with the trunk, no gradient into it", "joint"),
                ("joint", "joint", "joint", "joint"),
                ("joint", "joint", "on the frozen trunk", "frozen"),
            )
        ],
    )
    return f"{trunks}\n{stopping}"


def forcing_table(measured: Measured) -> str:
    """Lays out average depths on the model's own tokens and on the reference's."""
    seeds = measured.results("forcing")
    rows = [
        [
            policy,
            spread((seed[policy]["free"] for seed in seeds), 2),
            spread((seed[policy]["forced"] for seed in seeds), 2),
            spread((seed[policy]["forced"] - seed[policy]["free"] for seed in seeds), 2, "+"),
        ]
        for policy in grid.forcing_policies()
    ]
    return markdown(["policy", "free-running", "teacher-forced", "difference"], rows)


TABLES: list[tuple[str, str, Callable[[Measured], str]]] = [
    ("Word error rate by exit", "aligned", lambda measured: trunk_table(measured, "wer", 1)),
    ("Phone error rate by exit", "aligned", lambda measured: trunk_table(measured, "per", 2)),
    ("Predictors and oracles at τ = 0.5, or the likeliest depth", "predictors", grid_table),
    ("Predictors over thresholds, σ 0, λ 0.1", "predictors", sweep_table),
    ("A joint second phase", "joint", joint_tables),
    ("Average depth, free-running and teacher-forced", "forcing", forcing_table),
]
"""Heading, the measurement without which there is no table, and what lays it out."""


@click.command(help=__doc__)
@click.argument("out", type=click.Path(path_type=Path, exists=True, file_okay=False))
def main(out: Path) -> None:
    """Prints all tables that there are results for; the module's description is the command's help."""
    for heading, needed, layout in TABLES:
        for decoder in grid.DECODERS:
            measured = load(out, decoder)
            if needed in measured.documents:
                seeds = len(measured.documents[needed])
                click.echo(f"### {heading}: {decoder} decoder, {seeds} seed{'s' if seeds > 1 else ''}\n")
                click.echo(layout(measured))


if __name__ == "__main__":
    main()
