"""Measures depth-adaptive decoders on g2p_cmudict: trains, exports and evaluates every cell of grid.py.

DATA is what examples/g2p_cmudict/prepare.py makes. Error rates are over its test words. Results go to
OUT/results/DECODER/SEED/NAME.json, a file per trunk or part, and tables.py makes the tables of them. What has its file
is skipped, what was interrupted goes on: the same command resumes. All of one seed comes before the next.

    python benchmarks/g2p/measure.py DATA OUT --seeds 1,2,3
    python benchmarks/g2p/tables.py OUT
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import click

import grid
from decoding import UniformDepths, decode, forced_depths
from edgeseq.cli import group as edgeseq_group
from edgeseq.data.text import read_lines
from edgeseq.evaluation.error_rates import read_words, score_error_rates
from edgeseq_runtime.atomic import write_file
from edgeseq_runtime.bundle import load_bundle
from edgeseq_runtime.engine import Engine

CONFIG = Path(__file__).resolve().parents[2] / "examples" / "g2p_cmudict" / "config.toml"
DATA_OPTIONS = {"--src": "train.src", "--tgt": "train.tgt", "--valid-src": "valid.src", "--valid-tgt": "valid.tgt"}
BATCH_SIZE = 64
JOINT_SHARE = 0.25  # of all updates, where there is a second phase


class CommaList(click.ParamType[list[str]]):
    """Values of a list, with commas between them."""

    name = "LIST"

    def __init__(self, known: Iterable[str] | None = None) -> None:
        self.known = known

    def convert(self, value: str | list[str], param: click.Parameter | None, ctx: click.Context | None) -> list[str]:
        """Splits, and refuses what is not known."""
        parts = value.split(",") if isinstance(value, str) else value
        for part in parts:
            if self.known is not None and part not in self.known:
                self.fail(f"{part!r} is not one of {', '.join(self.known)}", param, ctx)
        return parts


@dataclass(frozen=True)
class Cell:
    """One decoder and seed."""

    decoder: str
    seed: int
    data: Path
    out: Path
    epochs: float
    settings: Sequence[str]
    """Of the user, after those of the cell."""

    def run(self, name: str) -> Path:
        """Folder of a training run."""
        return self.out / "runs" / self.decoder / str(self.seed) / name

    def bundle(self, name: str) -> Path:
        """Folder of its bundle."""
        return self.run(name).with_name(f"{name}.bundle")

    def results(self, name: str) -> Path:
        """File of its measurements."""
        return self.out / "results" / self.decoder / str(self.seed) / f"{name}.json"

    def train(self, name: str, settings: Sequence[str]) -> None:
        """Trains or goes on with a run, and exports it."""
        own = [
            f"data.tokenizer={json.dumps(str(self.data / 'tokenizer.model'))}",
            f"training.seed={self.seed}",
            f"training.epochs={self.epochs}",
            *grid.DECODERS[self.decoder],
        ]
        overrides = [*own, *settings, *self.settings]
        files = [part for option, file in DATA_OPTIONS.items() for part in (option, str(self.data / file))]
        chosen = [part for override in overrides for part in ("--set", override)]
        edgeseq("train", str(CONFIG), "--out", str(self.run(name)), "--resume", *files, *chosen)
        from edgeseq.training.run import EXIT_CACHE_FOLDER  # not earlier: the command sets torch up before it loads

        edgeseq("export", str(self.run(name)), "--out", str(self.bundle(name)))
        shutil.rmtree(self.run(name) / EXIT_CACHE_FOLDER, ignore_errors=True)  # hundreds of megabytes, now useless

    def evaluate(self, name: str, policies: Sequence[str]) -> list[dict[str, object]]:
        """Evaluates a bundle under depth policies."""
        files = ["--src", str(self.data / "test.src"), "--refs", str(self.data / "test.refs.tsv")]
        depths = [part for policy in policies for part in ("--depth", policy)]
        options = ["--batch-size", str(BATCH_SIZE), "--device", "cpu"]
        printed = edgeseq("evaluate", "--model", str(self.bundle(name)), *files, *options, *depths)
        results: list[dict[str, object]] = json.loads(printed.splitlines()[-1])["results"]
        return results


def measure_trunk(cell: Cell, name: str) -> dict[str, object]:
    """Trains a trunk without predictors, and measures it at fixed depths and at depths drawn at random."""
    cell.train(name, [*grid.TRUNKS[name], "predictors=[]"])
    return {"results": [*cell.evaluate(name, grid.FIXED), evaluate_uniform(cell, name)]}


def evaluate_uniform(cell: Cell, name: str) -> dict[str, object]:
    """Measures a bundle at depths that are drawn uniformly for each token."""
    words, references = read_words(cell.data / "test.src", cell.data / "test.refs.tsv")
    bundle = load_bundle(cell.bundle(name))
    found = decode(bundle, UniformDepths(bundle, cell.seed), words, bundle.policy("full"))
    rates = score_error_rates([bundle.tokenizer.decode(hypothesis.tokens) for hypothesis in found], references)
    depths = [depth for hypothesis in found for depth in hypothesis.depths]
    return {
        "depth": "uniform",
        "per": rates.phone_error_rate,
        "wer": rates.word_error_rate,
        "average_depth": sum(depths) / len(depths),
    }


def measure_predictors(cell: Cell) -> dict[str, object]:
    """Trains all predictors on the finished aligned trunk, and measures them beside the fixed depths."""
    if not cell.run("predictors").exists():
        temporary = cell.run("predictors.unfinished")
        shutil.copytree(cell.run("aligned"), temporary, dirs_exist_ok=True)
        temporary.rename(cell.run("predictors"))
    cell.train("predictors", [*grid.TRUNKS["aligned"], grid.predictors_setting(grid.predictors())])
    return {"results": cell.evaluate("predictors", [*grid.FIXED, *grid.predictor_policies()])}


def measure_forcing(cell: Cell) -> dict[str, object]:
    """Measures the depth that policies choose on the model's own tokens and on those of the reference."""
    words, references = (list(read_lines(cell.data / f"test.{side}")) for side in ("src", "tgt"))
    bundle = load_bundle(cell.bundle("predictors"))
    engine = Engine(bundle.path, bundle.manifest.model, device="cpu")
    results = []
    for name in grid.forcing_policies():
        policy = bundle.policy(name)
        free = [depth for found in decode(bundle, engine, words, policy) for depth in found.depths]
        forced = forced_depths(bundle, engine, words, references, policy)
        results.append({"depth": name, "free": sum(free) / len(free), "forced": sum(forced) / len(forced)})
    return {"results": results}


def measure_joint(cell: Cell) -> dict[str, object]:
    """Trains a last quarter of the updates with a predictor, with its gradient in the trunk and without."""
    phases = [
        f"training.epochs={(1 - JOINT_SHARE) * cell.epochs}",
        f"joint.epochs={JOINT_SHARE * cell.epochs}",
        grid.predictors_setting(grid.JOINT_PREDICTORS),
    ]
    document: dict[str, object] = {}
    for name, settings in grid.JOINT_RUNS.items():
        cell.train(name, [*phases, *settings])
        document[name] = cell.evaluate(name, grid.joint_policies())
    return document


def measurements(part: str) -> dict[str, Callable[[Cell], dict[str, object]]]:
    """Lists the measurements of a part by the names of their files."""
    whole = {"predictors": measure_predictors, "forcing": measure_forcing, "joint": measure_joint}
    if part in whole:
        return {part: whole[part]}
    return {trunk: partial(measure_trunk, name=trunk) for trunk in grid.PARTS[part]}


def edgeseq(*arguments: str) -> str:
    """Runs a command of edgeseq in this process, which has torch loaded already; gives what it prints."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        edgeseq_group.main(list(arguments), prog_name="edgeseq", standalone_mode=False)
    return output.getvalue()


@click.command(help=__doc__)
@click.argument("data", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--seeds", type=CommaList(), default="1,2,3", show_default=True)
@click.option("--decoders", type=CommaList(grid.DECODERS), default=",".join(grid.DECODERS), show_default=True)
@click.option("--parts", type=CommaList(grid.PARTS), default=",".join(grid.PARTS), show_default=True)
@click.option("--epochs", type=float, default=3.0, show_default=True, help="Of every trunk.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Override for all runs, as for train.")
def main(
    data: Path,
    out: Path,
    seeds: list[str],
    decoders: list[str],
    parts: list[str],
    epochs: float,
    settings: tuple[str, ...],
) -> None:
    """Measures what has no results yet; the module's description is the command's help."""
    for seed in map(int, seeds):
        for part in (part for part in grid.PARTS if part in parts):
            for decoder in decoders:
                cell = Cell(decoder, seed, data.resolve(), out.resolve(), epochs, settings)
                for name, measure in measurements(part).items():
                    if cell.results(name).exists():
                        continue
                    click.echo(f"{datetime.now(UTC):%H:%M} {decoder} decoder, seed {seed}: {name}", err=True)
                    started = time.monotonic()
                    document = {"decoder": decoder, "seed": seed, "epochs": epochs, "settings": settings}
                    document |= measure(cell)
                    document["seconds"] = time.monotonic() - started
                    cell.results(name).parent.mkdir(parents=True, exist_ok=True)
                    write_file(cell.results(name), (json.dumps(document, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
