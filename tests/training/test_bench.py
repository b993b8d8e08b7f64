"""`edgeseq bench`: the depths that are replayed, what is counted, and what the command says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from command_line import run_edgeseq
from edgeseq.bench.depths import TRACED_BLOCKS, Replayed, read_trace, scale_trace
from edgeseq.bench.processes import Measurement, time_in_processes
from edgeseq.bench.timing import Shape, decode_once, draw_sources, time_depths
from edgeseq_export.random_models import RandomModel, RandomSizes, write_random_model
from edgeseq_runtime.engine import Engine
from edgeseq_runtime.flops import decoder_flops
from edgeseq_runtime.policy import FixedDepth
from edgeseq_runtime.search import greedy
from edgeseq_runtime.tokenizer import EOS_ID
from tiny_bundle import write_tiny_bundle

SIZES = RandomSizes(dim=64, feed_forward_dim=64, vocab_size=50, encoder_blocks=1, decoder_blocks=4)
RANDOM = ("--random", "--dim", "64", "--ffn", "64", "--vocab", "50", "--blocks", "3", "--rounds", "1")


@pytest.fixture(scope="module")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> tuple[RandomModel, Engine]:
    folder = tmp_path_factory.mktemp("random")
    model = write_random_model(folder, SIZES, "float32")
    return model, Engine(folder, model.facts, device="cpu")


def test_the_trace_is_that_of_a_model_with_six_blocks() -> None:
    trace = read_trace()
    assert set(trace.tolist()) == set(range(1, TRACED_BLOCKS + 1))
    assert len(trace) > 5000


@given(share=st.floats(0.0, 1.0), blocks=st.integers(1, 12), rows=st.integers(1, 40))
def test_depths_have_the_average_asked_for(share: float, blocks: int, rows: int) -> None:
    average = 1 + share * (blocks - 1)
    depths = scale_trace(average, blocks, rows, 25)
    assert depths.shape == (rows, 25)
    assert depths.min() >= 1
    assert depths.max() <= blocks
    assert abs(depths.mean() - average) <= 2 * blocks / depths.size


def test_of_two_tokens_the_deeper_one_stays_the_deeper_one() -> None:
    trace = read_trace()[:800].reshape(32, 25)
    for average in (1.5, 2.4, 4.0):
        depths = scale_trace(average, 6, 32, 25)
        for lower in range(1, TRACED_BLOCKS):
            assert depths[trace == lower].max() <= depths[trace == lower + 1].min()


def test_every_token_stops_where_it_is_told(random_model: tuple[RandomModel, Engine]) -> None:
    """Time and again, though the units that are asked would have said something else."""
    model, engine = random_model
    shape = Shape(batch_size=3, source_length=6, target_length=9)
    depths = scale_trace(2.4, SIZES.decoder_blocks, shape.batch_size, shape.target_length)
    policy = Replayed("2.4", depths, model.halting_policy())
    sources = draw_sources(shape, SIZES.vocab_size, seed=1)
    alone = greedy(engine, sources, model.halting_policy(), [shape.target_length] * 3)
    assert [found.depths for found in alone] != depths.tolist()
    for _ in range(2):
        decode_once(engine, sources, policy, shape)()
        (timing,) = time_depths(engine, model.facts, [policy], shape, rounds=1)
        assert timing.average_depth == pytest.approx(depths.mean())
        expected = sum(decoder_flops(model.facts, 6, row, policy).total for row in depths.tolist())
        assert timing.mflop_per_token == pytest.approx(expected / depths.size / 1e6)


def test_no_sentence_ends_by_itself(random_model: tuple[RandomModel, Engine], monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the best piece is always EOS; and what is timed is what the figures are made of."""
    model, engine = random_model
    original = Engine.step
    steps = 0

    def eager_to_end(self: Engine, *arguments: object) -> object:
        nonlocal steps
        steps += 1
        step = original(self, *arguments)  # type: ignore[arg-type]
        step.logits[:, EOS_ID] = 1e3
        return step

    monkeypatch.setattr(Engine, "step", eager_to_end)
    shape = Shape(batch_size=2, source_length=5, target_length=7)
    (timing,) = time_depths(engine, model.facts, [FixedDepth("2", model.facts, 2)], shape, rounds=2)
    assert steps == 3 * 8 * shape.target_length
    assert timing.ms_per_sentence * 2 == pytest.approx(14 / timing.tokens_per_second * 1000)
    assert timing.ms_encoder + 7 * timing.ms_per_step == pytest.approx(timing.ms_per_sentence * 2, rel=0.5)


def test_sources_have_the_length_asked_for() -> None:
    sources = draw_sources(Shape(batch_size=5, source_length=9, target_length=1), 50, seed=1)
    assert [len(source) for source in sources] == [9] * 5
    assert all(source[-1] == EOS_ID and min(source[:-1]) > EOS_ID and max(source) < 50 for source in sources)


@pytest.mark.parametrize("compute_type", ["float32", "int8", "int8-weights", "int4"])
def test_random_weights_of_any_compute_type_are_timed(compute_type: str) -> None:
    outcome = run_edgeseq(
        "bench", *RANDOM, "--compute-type", compute_type, "--batch-size", "2", "--depth", "full", "--depth", "1.5"
    )
    assert outcome.code == 0, outcome.stderr
    full, average = (json.loads(line) for line in outcome.lines)
    assert (full["depth"], full["average_depth"], average["depth"]) == ("full", 3.0, "1.5")
    assert average["average_depth"] == pytest.approx(1.5, abs=0.1)
    assert full["mflop_per_token"] > average["mflop_per_token"]
    assert full["compute_type"] == compute_type
    for name in ("tokens_per_second", "ms_per_step", "ms_per_sentence", "ms_encoder"):
        assert full[name] > 0
    assert "FLOPs saved" in outcome.stderr


@pytest.mark.parametrize("compute_type", ["float32", "int8"])
def test_shortlists_are_timed_and_their_candidates_counted(compute_type: str) -> None:
    sizes = ("--random", "--dim", "32", "--ffn", "32", "--vocab", "2000", "--blocks", "2", "--rounds", "1")
    shape = ("--compute-type", compute_type, "--target-length", "3", "--source-length", "5")
    found = []
    for options in ((), ("--shortlist",)):
        outcome = run_edgeseq("bench", *sizes, *shape, *options)
        assert outcome.code == 0, outcome.stderr
        found.append(json.loads(outcome.lines[0]))
    whole, listed = found
    assert (whole["shortlist"], listed["shortlist"]) == (False, True)
    saved = 1e6 * (whole["mflop_per_token"] - listed["mflop_per_token"])
    # Every third piece, the special ones that are not among them, and those of the source.
    assert saved == pytest.approx(2 * 32 * (2000 - 667 - 2 - 3), abs=2 * 32 * 4)


def test_a_bundles_shortlist_is_timed(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "tiny.bundle", shortlist=True)
    outcome = run_edgeseq("bench", bundle, "--rounds", "1", "--target-length", "5", "--shortlist")
    assert outcome.code == 0, outcome.stderr
    assert json.loads(outcome.lines[0])["shortlist"]


def test_processes_measure_at_the_same_time(tmp_path: Path) -> None:
    """Each takes the time of its own decodes; together they make the tokens of all."""
    model = write_random_model(tmp_path, SIZES, "float32")
    shape = Shape(batch_size=2, source_length=5, target_length=7)
    policies = [FixedDepth(name, model.facts, int(name)) for name in ("1", "3")]
    measured = time_in_processes(Measurement(tmp_path, model.facts, "cpu", policies, shape, rounds=1), 3)
    assert measured.provider == "CPUExecutionProvider"
    assert [timing.depth for timing in measured.timings] == ["1", "3"]
    for timing in measured.timings:
        each = 1000 * shape.target_length / timing.ms_per_sentence
        assert timing.tokens_per_second > 2.99 * each  # 3, were the processes equally fast, and never less


def test_a_bundle_is_timed_under_its_own_policies(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "tiny.bundle")
    depths = [
        part for depth in ("full", "halting:0.5", "adaptive", "2.4", "confidence:0.1") for part in ("--depth", depth)
    ]
    outcome = run_edgeseq("bench", bundle, "--rounds", "1", "--target-length", "5", *depths)
    assert outcome.code == 0, outcome.stderr
    found = [json.loads(line) for line in outcome.lines]
    assert [record["depth"] for record in found] == ["full", "halting:0.5", "halting:0.5", "2.4", "confidence:0.1"]
    assert {record["compute_type"] for record in found} == {"float32"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (lambda _: (), "give either a BUNDLE, or --random"),
        (lambda bundle: (bundle, "--random"), "give either a BUNDLE, or --random"),
        (lambda _: (*RANDOM, "--depth", "halting:0.5"), "a model with random weights has full, 1 to 3, and averages"),
        (lambda _: (*RANDOM, "--depth", "4"), "a model with random weights has full, 1 to 3, and averages"),
        (lambda _: (*RANDOM, "--depth", "3.5"), "average 3.5: expected 1 to 3"),
        (lambda bundle: (bundle, "--depth", "deep"), "depth policy 'deep' is not known. This bundle has: full"),
        (lambda _: ("missing.bundle",), "missing.bundle"),
        (lambda bundle: (bundle, "--dim", "64"), "--dim is a size of a random model, and a bundle has its own"),
        (lambda _: ("--random", "--dim", "7"), "a width of 7 is odd, or cannot be cut into 1 heads"),
        (lambda _: ("--random", "--dim", "200"), "200 is odd, or cannot be cut into 3 heads: give an even one, and"),
        (lambda bundle: (bundle, "--shortlist"), "tiny.bundle has none: export the model again with --shortlist"),
    ],
)
def test_mistakes_are_told(arguments: Callable[[Path], tuple[str, ...]], message: str, tmp_path: Path) -> None:
    outcome = run_edgeseq("bench", *arguments(write_tiny_bundle(tmp_path / "tiny.bundle")))
    assert outcome.code in (1, 2)
    assert message in outcome.stderr
    assert outcome.lines == []
    assert np.char.count(outcome.stderr, "Traceback") == 0
