"""Which policy `--depth adaptive` means."""

from __future__ import annotations

from edgeseq.evaluation.policies import PolicyResult
from edgeseq.evaluation.scores import CorpusScores
from edgeseq_export.operating_point import choose_policy
from edgeseq_runtime.flops import DecoderFlops


def result(depth: str, bleu: float, flops: int) -> PolicyResult:
    return PolicyResult(
        depth=depth,
        average_depth=2.0,
        depth_shares=[0.5, 0.5],
        flops=DecoderFlops(blocks=flops),
        sentences=1,
        tokens=10,
        seconds=1.0,
        signature="",
        scores=CorpusScores(bleu, 50.0, "", ""),
        line=None,
    )


FULL = result("full", 30.0, 1000)


def chosen(*adaptive: PolicyResult) -> str | None:
    found = choose_policy(FULL, adaptive)
    return None if found is None else found.depth


def test_it_is_the_cheapest_of_those_that_lose_little() -> None:
    policies = [result("a", 29.7, 700), result("b", 29.61, 600), result("c", 31.0, 800), result("d", 29.59, 100)]
    assert chosen(*policies) == "b"


def test_one_that_costs_as_much_as_full_depth_is_none() -> None:
    """Certainty asks an exit head at every block."""
    assert chosen(result("certainty:0.9", 30.0, 1100), result("certainty:0.8", 30.0, 1000)) is None
    assert chosen(result("certainty:0.9", 30.0, 1100), result("certainty:0.1", 29.7, 999)) == "certainty:0.1"


def test_where_all_lose_much_there_is_none() -> None:
    assert chosen(result("a", 29.0, 10)) is None
    assert chosen() is None
