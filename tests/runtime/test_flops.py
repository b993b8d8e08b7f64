"""The FLOPs model against counts made operation by operation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeseq_runtime.flops import DecoderFlops, backfilled_columns, decoder_flops
from edgeseq_runtime.manifest import ModelFacts
from edgeseq_runtime.policy import (
    Confidence,
    DepthPolicy,
    FixedDepth,
    Halting,
    Multinomial,
    SequenceDepth,
    Thresholds,
)
from edgeseq_runtime.predictors import DepthClassifier, HaltingUnits
from tiny_bundle import tiny_facts

KERNELS = [3, 5, 1, 7]
DEPTHS = st.lists(st.integers(1, 4), min_size=1, max_size=40)

FACTS = tiny_facts()
FULL = FixedDepth("full", FACTS, 4)
UNITS = HaltingUnits(np.zeros((3, 16), dtype=np.float32), np.zeros(3, dtype=np.float32))
CLASSIFIER = DepthClassifier(np.zeros((4, 16), dtype=np.float32), np.zeros(4, dtype=np.float32))


def thresholds(*blocks: int) -> Thresholds:
    return Thresholds((0.5,) * len(blocks), blocks, every=len(blocks) == 3)


POLICIES: list[DepthPolicy] = [
    FULL,
    FixedDepth("2", FACTS, 2),
    Halting("halting", FACTS, UNITS, thresholds(1, 2, 3)),
    Halting("halting", FACTS, UNITS, thresholds(2)),
    Confidence(FACTS, thresholds(1, 2, 3)),
    Confidence(FACTS, thresholds(1, 3)),
    Multinomial("multinomial", FACTS, CLASSIFIER, None),
    SequenceDepth("sequence", FACTS, CLASSIFIER, 0.5),
]


def simulate_lazy_backfill(reaches: list[int], depths: list[int]) -> list[int]:
    """Independent of the formula: keep a set of computed columns per block, walk token by token."""
    counts = [0] * len(reaches)
    present: list[set[int]] = [set() for _ in reaches]
    for position, depth in enumerate(depths):
        for block in range(depth):
            for earlier in range(position):
                reachable = not reaches[block] or position - earlier < reaches[block]
                if reachable and earlier not in present[block]:
                    counts[block] += 1
                    present[block].add(earlier)
            present[block].add(position)
    return counts


@pytest.mark.parametrize("reaches", [KERNELS, [0, 4, 0, 0]], ids=str)
@given(depths=DEPTHS)
def test_backfill_counts_equal_a_simulation(reaches: list[int], depths: list[int]) -> None:
    assert backfilled_columns(reaches, depths) == simulate_lazy_backfill(reaches, depths)


def test_backfill_is_bounded_by_the_reach() -> None:
    """Ten shallow tokens, then a deep one: only K - 1 columns of each block are computed."""
    assert backfilled_columns(KERNELS, [1] * 10 + [4]) == [0, 4, 0, 6]
    assert backfilled_columns([0, 5, 0, 0], [1] * 10 + [4]) == [0, 4, 10, 10]
    assert backfilled_columns(KERNELS, [1] * 2 + [4]) == [0, 2, 0, 2]
    assert backfilled_columns(KERNELS, [4] * 11) == [0, 0, 0, 0]
    assert backfilled_columns(KERNELS, [1] * 11) == [0, 0, 0, 0]


def count_by_hand(  # noqa: C901  (one long walk is easier to check than several short ones)
    model: ModelFacts, source: int, depths: list[int], policy: DepthPolicy
) -> DecoderFlops:
    """Walk through a decode and add up each matrix product as 2 x rows x inner x columns."""
    d, f, heads = model.dim, model.feed_forward_dim, model.convolution_heads
    attention = model.mixer == "attention"
    column = 2 * d * d + 2 * d * d if attention else 2 * d * (2 * d if model.glu else d)
    kind, _, argument = policy.name.partition(":")
    asked = [int(block) for block in argument.partition("@")[2].split(",") if block] or [1, 2, 3]
    blocks = cross = decisions = head = 0
    entered: set[int] = set()
    if kind == "sequence":
        decisions += 2 * d * model.decoder_blocks
    for position, depth in enumerate(depths):
        classified = False  # whether the state at which the token stands went through an exit head
        for block in range(depth):
            reach = model.decoder_reaches[block]
            if block not in entered:
                entered.add(block)
                cross += 2 * (2 * source * d * d)
            blocks += column
            if attention:
                read = len([p for p in range(position + 1) if not reach or position - p < reach])
                blocks += 2 * d * d  # query
                blocks += 2 * read * d + 2 * read * d  # scores, mix
            else:
                if model.mixer == "dynamic":
                    blocks += 2 * d * heads * reach
                blocks += heads * 2 * reach * (d // heads)
            blocks += 2 * d * d  # output of either
            blocks += 2 * d * d + 2 * d * d  # query, output
            blocks += 2 * source * d + 2 * source * d  # scores, mix
            blocks += 2 * d * f + 2 * f * d
            decided = block + 1 in asked
            if kind == "halting" and decided:
                decisions += 2 * d
            if kind == "multinomial" and block == 0:
                decisions += 2 * d * model.decoder_blocks
            classified = kind == "confidence" and decided
            if classified:
                head += 2 * d * model.vocab_size
        if not classified:
            head += 2 * d * model.vocab_size
    backfill = column * sum(simulate_lazy_backfill(model.decoder_reaches, depths))
    return DecoderFlops(blocks, cross, backfill, decisions, head)


MIXERS: list[dict[str, object]] = [
    {"mixer": "lightweight", "glu": False},
    {"mixer": "lightweight", "glu": True},
    {"mixer": "dynamic", "glu": False},
    {"mixer": "dynamic", "glu": True},
    {"mixer": "attention", "glu": False},
    {"mixer": "attention", "glu": False, "decoder_reaches": [0, 5, 0, 0]},
]


@pytest.mark.parametrize("changes", MIXERS, ids=lambda changes: ", ".join(map(str, changes.values())))
@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.name)
@given(depths=DEPTHS, source=st.integers(1, 30))
def test_flops_equal_a_count_by_hand(
    depths: list[int], source: int, policy: DepthPolicy, changes: dict[str, object]
) -> None:
    model = tiny_facts(**changes)
    assert decoder_flops(model, source, depths, policy) == count_by_hand(model, source, depths, policy)


def test_control_policies_differ_in_what_they_cost() -> None:
    """One that was taken for another would be seen above."""
    costs = {decoder_flops(FACTS, 9, [1, 2, 2, 3, 4, 4], policy).total for policy in POLICIES}
    assert len(costs) == len(POLICIES) - 1  # fixed depths compute nothing of their own


def test_exit_heads_that_confidence_reads() -> None:
    """By hand: asked after blocks 1 and 3, a head is 2 · 16 · 60."""
    policy = Confidence(FACTS, thresholds(1, 3))
    for depth, heads in ((1, 1), (2, 2), (3, 2), (4, 3)):
        assert decoder_flops(FACTS, 1, [depth], policy).head == heads * 1920
        assert decoder_flops(FACTS, 1, [depth], FULL).head == 1920


def test_a_block_of_attention_costs_what_the_paper_counts() -> None:
    """Elbayad et al., appendix B, by hand: d 16, f 32, 60 pieces, 10 source positions; two tokens, one deep."""
    model = tiny_facts(mixer="attention", glu=False, decoder_reaches=[0, 0])
    # Keys, values, query and output 8 d^2 = 2048; query and output over the source 4 d^2 = 1024, scores and mix
    # 4 S d = 640; feed-forward 4 d f = 2048.
    visit = 2048 + 1024 + 640 + 2048
    # At position t the past costs 4 (t + 1) d: 64 at position 0, 128 at position 1.
    assert decoder_flops(model, 10, [1], FULL).blocks == visit + 64
    found = decoder_flops(model, 10, [1, 2], FULL)
    assert found == DecoderFlops(
        blocks=3 * visit + 64 + 128 + 128,
        cross=2 * 4 * 10 * 256,
        backfill=4 * 256,  # keys and values of position 0 in block 2
        decisions=0,
        head=2 * 2 * 60 * 16,
    )


def test_control_the_order_of_depths_matters() -> None:
    """A model that only knew the average depth would not see the difference."""
    deep_first = decoder_flops(FACTS, 10, [4, 4, 1, 1], FULL)
    deep_last = decoder_flops(FACTS, 10, [1, 1, 4, 4], FULL)
    assert deep_first.total < deep_last.total
    assert deep_first.backfill == 0


def test_sums_and_totals() -> None:
    one = DecoderFlops(blocks=1, cross=2, backfill=3, decisions=4, head=5)
    assert one.total == 15
    assert one + one == DecoderFlops(2, 4, 6, 8, 10)
    assert sum([one, one], DecoderFlops()).total == 30


@pytest.mark.parametrize("policy", POLICIES[:-1], ids=lambda policy: policy.name)
def test_no_tokens_cost_nothing(policy: DepthPolicy) -> None:
    assert decoder_flops(FACTS, 0, [], policy) == DecoderFlops()
