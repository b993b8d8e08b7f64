"""FLOPs of a beam: what every open hypothesis costs, counted row by row and by the paths they stand for."""

from __future__ import annotations

from typing import Any

import pytest

from edgeseq.evaluation.beam_flops import FlopsMeter, beam_flops
from edgeseq.evaluation.policies import evaluate_policies
from edgeseq_runtime import Translator
from edgeseq_runtime.arrays import IntArray
from edgeseq_runtime.beam import BeamOptions, beam_search
from edgeseq_runtime.engine import Engine, Step
from edgeseq_runtime.flops import DecoderFlops, decoder_flops
from edgeseq_runtime.search import greedy
from edgeseq_runtime.state import DecoderState
from tiny_bundle import write_tiny_bundle

LINES = ["one two three four", "five", "six seven eight nine ten eleven", "", "twelve thirteen", "fourteen fifteen one"]
POLICIES = ["full", "2", "halting:0.5", "halting:0.5@2", "confidence:0.1", "multinomial", "by-sentence"]
LIMIT = 12


@pytest.fixture(scope="module", params=["dynamic", "attention"])
def translator(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Translator:
    changes: dict[str, Any] = {"mixer": "attention", "glu": False, "decoder_reaches": [0, 3, 0, 5]}
    folder = tmp_path_factory.mktemp("beam") / "tiny.bundle"
    write_tiny_bundle(folder, **(changes if request.param == "attention" else {}))
    return Translator(folder, device="cpu")


def sources_of(translator: Translator) -> list[list[int]]:
    return [ids for ids in map(translator.source_ids, LINES) if ids]


class _EachStep(FlopsMeter):
    """Counts greedy search, too: no step is taken unseen."""

    def run_ahead(self, *arguments: object) -> None:
        """Every step is asked for."""

    def release(self, state: object) -> None:
        """Nothing is kept."""


@pytest.mark.parametrize("depth", POLICIES)
@pytest.mark.parametrize("places", [1, 2, 5])
def test_of_greedy_search_both_counts_are_the_same(translator: Translator, depth: str, places: int) -> None:
    """Part by part, with rows that are given to other sentences and rows that are dropped."""
    sources, policy = sources_of(translator), translator.bundle.policy(depth)
    meter = _EachStep(translator.engine, translator.manifest.model)
    found = greedy(meter, sources, policy, [LIMIT] * len(sources), rows=places)
    expected = DecoderFlops()
    for source, hypothesis in zip(sources, found, strict=True):
        expected += decoder_flops(translator.manifest.model, len(source), hypothesis.depths, policy)
    assert meter.flops == expected


class _Paths(Engine):
    """An engine that keeps, of every row of a batch, the depths of the tokens it stands for."""

    def __init__(self, translator: Translator) -> None:
        super().__init__(translator.bundle.path, translator.manifest.model, device="cpu")
        self.rows: list[tuple[int, ...]] = []
        self.steps: list[tuple[tuple[int, ...], ...]] = []

    def step(
        self, state: DecoderState, tokens: IntArray, parents: IntArray | None = None, depths: IntArray | None = None
    ) -> Step:
        step = super().step(state, tokens, parents, depths)
        before = self.rows or [()] * state.rows
        kept = before if parents is None or not self.rows else [before[row] for row in parents.tolist()]
        self.rows = [(*path, depth) for path, depth in zip(kept, step.depths.tolist(), strict=True)]
        self.steps.append(tuple(self.rows))
        return step


@pytest.mark.parametrize("depth", ["full", "halting:0.5", "confidence:0.1", "multinomial"])
def test_of_a_beam_every_row_counts_with_the_depths_it_continues(translator: Translator, depth: str) -> None:
    """A row's last token costs what its whole path costs less what the path before it costs."""
    source, policy = sources_of(translator)[0], translator.bundle.policy(depth)
    model, beam = translator.manifest.model, BeamOptions(size=3)
    paths, meter = _Paths(translator), FlopsMeter(translator.engine, model)
    expected = beam_search(paths, [source], policy, [LIMIT], beam)
    assert beam_search(meter, [source], policy, [LIMIT], beam) == expected
    total = sum(
        (
            decoder_flops(model, len(source), path, policy).total
            - decoder_flops(model, len(source), path[:-1], policy).total
        )
        for rows in paths.steps
        for path in rows
    )
    assert len({path for rows in paths.steps for path in rows}) > len(paths.steps) or depth == "full"
    assert meter.flops.total == total


def test_the_batch_does_not_change_the_count(translator: Translator) -> None:
    policy, beam = translator.bundle.policy("halting:0.5"), BeamOptions(size=2)
    counts = {beam_flops(translator, LINES, policy, beam, size).total for size in (1, 2, 32)}
    assert len(counts) == 1
    assert counts != {beam_flops(translator, LINES[1:], policy, beam, 32).total}


def test_control_rows_that_keep_the_past_of_others_are_seen(
    translator: Translator, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources, policy = sources_of(translator), translator.bundle.policy("halting:0.5")
    meter = _EachStep(translator.engine, translator.manifest.model)
    monkeypatch.setattr("edgeseq.evaluation.beam_flops._Rows.begin_anew", lambda *_: None)
    found = greedy(meter, sources, policy, [LIMIT] * len(sources), rows=2)
    expected = sum(
        decoder_flops(translator.manifest.model, len(source), hypothesis.depths, policy).total
        for source, hypothesis in zip(sources, found, strict=True)
    )
    assert meter.flops.total != expected


def test_an_evaluation_counts_all_hypotheses(translator: Translator) -> None:
    """Of a beam of one that must not end at once, and of a beam of three."""
    references = ["one two", "five", "six", "", "twelve", "one"]
    (alone,) = evaluate_policies(translator, LINES, references, ["full"], 4)
    (beam,) = evaluate_policies(translator, LINES, references, ["full"], 4, BeamOptions(size=3))
    assert beam.flops.total > 2 * alone.flops.total
    assert "|beam:3|" in beam.signature
    assert "|beam:1|" in alone.signature


def test_nothing_to_translate_costs_nothing(translator: Translator) -> None:
    policy = translator.bundle.policy("full")
    assert beam_flops(translator, ["", " "], policy, BeamOptions(size=2), 4) == DecoderFlops()
