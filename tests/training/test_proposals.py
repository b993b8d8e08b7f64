"""Proposals: what thresholds give is estimated from a decode at full depth, and the best are kept."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeseq.evaluation.proposals import (
    Bools,
    Proposal,
    Signals,
    best_per_segment,
    estimate_thresholds,
    propose_dial,
    propose_thresholds,
)

TOKENS, BLOCKS = 600, 4


def make_tokens(scale: tuple[float, ...] = (1.0, 1.0, 1.0)) -> tuple[Signals, Bools]:
    """Tokens that are hard or easy; signals that know it, each block's in a range of its own; exits that agree so."""
    generator = np.random.default_rng(5)
    ease = generator.random((TOKENS, 1))
    noise = 0.05 * generator.random((TOKENS, BLOCKS - 1))
    signals = ((0.95 * ease + noise) * np.array(scale)).astype(np.float32)
    agrees = np.ones((TOKENS, BLOCKS), dtype=np.bool_)
    agrees[:, :-1] = ease > np.array([0.7, 0.5, 0.3])
    return signals, agrees


def follow(signals: Signals, agrees: Bools, thresholds: list[float]) -> tuple[float, float]:
    """The same estimate, token by token."""
    depths = []
    for row in signals:
        stops = [block for block, (signal, limit) in enumerate(zip(row, thresholds, strict=True), 1) if signal > limit]
        depths.append(stops[0] if stops else BLOCKS)
    return float(np.mean(depths)), float(np.mean([agrees[token, depth - 1] for token, depth in enumerate(depths)]))


def parse(proposal: Proposal) -> list[float]:
    """Thresholds of all blocks, from the policy as it is spelled; those that are not asked never stop."""
    values, _, exits = proposal.policy.partition(":")[2].partition("@")
    numbers = [float(value) for value in values.split(",")]
    blocks = [int(block) for block in exits.split(",")] if exits else list(range(1, BLOCKS))
    if len(numbers) == 1:
        numbers *= len(blocks)
    by_block = dict(zip(blocks, numbers, strict=True))
    return [by_block.get(block, 1.0) for block in range(1, BLOCKS)]


def propose(scale: tuple[float, ...] = (1.0, 1.0, 1.0), draws: int = 2000, kept: int = 12) -> list[Proposal]:
    return propose_thresholds("halting", *make_tokens(scale), np.random.default_rng(1), draws, kept)


@given(st.lists(st.floats(0, 1, width=32), min_size=BLOCKS - 1, max_size=BLOCKS - 1))
def test_an_estimate_is_what_each_token_would_do(thresholds: list[float]) -> None:
    signals, agrees = make_tokens()
    signals, agrees = signals[:40], agrees[:40]
    depth, agreement = estimate_thresholds(signals, agrees, np.array([thresholds, [1.0] * 3]))
    assert (depth[0], agreement[0]) == pytest.approx(follow(signals, agrees, thresholds))
    assert (depth[1], agreement[1]) == (BLOCKS, 1)


def test_an_estimate_depends_on_the_blocks_order() -> None:
    """Control: thresholds of other blocks give something else."""
    signals, agrees = make_tokens()
    depth, agreement = estimate_thresholds(signals, agrees, np.array([[0.8, 0.6, 0.4], [0.4, 0.6, 0.8]]))
    assert abs(depth[0] - depth[1]) > 0.1
    assert abs(agreement[0] - agreement[1]) > 0.1


def test_proposals_are_spelled_as_they_were_estimated() -> None:
    signals, agrees = make_tokens()
    proposals = propose()
    assert len(proposals) > 6
    for proposal in proposals:
        assert (proposal.average_depth, proposal.agreement) == pytest.approx(follow(signals, agrees, parse(proposal)))
    kinds = "".join(proposal.policy for proposal in proposals)
    assert "@" in kinds, "no draw that leaves exits out was kept"
    assert "," in kinds.replace("@", ":").split(":")[1], "no draw with a threshold per block was kept"


def test_proposals_rise_in_depth_and_agreement() -> None:
    proposals = propose()
    assert (np.diff([proposal.average_depth for proposal in proposals]) > 0).all()
    assert (np.diff([proposal.agreement for proposal in proposals]) > 0).all()
    assert len(proposals) <= 12
    assert len({proposal.policy for proposal in proposals}) == len(proposals)


def test_where_signals_have_ranges_of_their_own_thresholds_per_block_are_found() -> None:
    """The best single threshold is far from what two different ones give; and draws follow the signals' ranges."""
    scale = (0.01, 0.1, 1.0)
    best = next(proposal for proposal in propose(scale) if proposal.average_depth > 2.4)
    signals, agrees = make_tokens(scale)
    single = np.repeat(np.linspace(0, 1, 1001)[:, None], 3, axis=1)
    depth, agreement = estimate_thresholds(signals, agrees, single)
    assert best.agreement > agreement[depth <= best.average_depth].max() + 0.05


def test_proposals_follow_from_the_generator() -> None:
    assert propose() == propose()
    assert propose(draws=2001) != propose()


def test_a_dial_goes_to_the_lowest_depth_that_reaches_it() -> None:
    generator = np.random.default_rng(2)
    distributions = generator.dirichlet(np.ones(BLOCKS), TOKENS).astype(np.float32)
    _, agrees = make_tokens()
    proposals = propose_dial("multinomial", distributions, agrees, generator, 300, 8)
    assert len(proposals) > 3
    for proposal in proposals:
        setting = np.float32(proposal.policy.removeprefix("multinomial:"))
        reached = np.cumsum(distributions, axis=1) >= setting
        reached[:, -1] = True
        depths = reached.argmax(axis=1)
        assert proposal.average_depth == pytest.approx((depths + 1).mean())
        assert proposal.agreement == pytest.approx(agrees[np.arange(TOKENS), depths].mean())


def test_a_dial_without_a_choice_has_no_settings() -> None:
    certain = np.zeros((TOKENS, BLOCKS), dtype=np.float32)
    certain[:, 0] = 1
    assert propose_dial("sequence", certain, make_tokens()[1], np.random.default_rng(0), 50, 8) == []


@given(st.lists(st.tuples(st.floats(1, 4), st.floats(0, 1)), min_size=1, max_size=30), st.integers(1, 6))
def test_each_segment_keeps_its_best(points: list[tuple[float, float]], segments: int) -> None:
    depth, agreement = (np.array([point[side] for point in points]) for side in (0, 1))
    kept = best_per_segment(depth, agreement, BLOCKS, segments)
    assert 1 <= len(kept) <= segments
    assert agreement[kept].max() == agreement.max()
    assert (np.diff(depth[kept]) > 0).all()
    assert (np.diff(agreement[kept]) > 0).all()
