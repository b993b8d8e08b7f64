"""The FLOPs model against counts made operation by operation."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeseq_runtime.flops import DecoderFlops, backfilled_columns, decoder_flops
from edgeseq_runtime.manifest import ModelFacts
from tiny_bundle import tiny_facts

KERNELS = [3, 5, 1, 7]
DEPTHS = st.lists(st.integers(1, 4), min_size=1, max_size=40)


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


def count_by_hand(model: ModelFacts, source: int, depths: list[int], units: tuple[int, ...]) -> DecoderFlops:
    """Walk through a decode and add up each matrix product as 2 x rows x inner x columns."""
    d, f, heads = model.dim, model.feed_forward_dim, model.convolution_heads
    attention = model.mixer == "attention"
    column = 2 * d * d + 2 * d * d if attention else 2 * d * (2 * d if model.glu else d)
    blocks = cross = asked = head = 0
    entered: set[int] = set()
    for position, depth in enumerate(depths):
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
            if block + 1 in units:
                asked += 2 * d
        head += 2 * d * model.vocab_size
    backfill = column * sum(simulate_lazy_backfill(model.decoder_reaches, depths))
    return DecoderFlops(blocks, cross, backfill, asked, head)


MIXERS: list[dict[str, object]] = [
    {"mixer": "lightweight", "glu": False},
    {"mixer": "lightweight", "glu": True},
    {"mixer": "dynamic", "glu": False},
    {"mixer": "dynamic", "glu": True},
    {"mixer": "attention", "glu": False},
    {"mixer": "attention", "glu": False, "decoder_reaches": [0, 5, 0, 0]},
]


@pytest.mark.parametrize("changes", MIXERS, ids=lambda changes: ", ".join(map(str, changes.values())))
@pytest.mark.parametrize("asked", [(), (2,), (1, 2, 3)], ids=str)
@given(depths=DEPTHS, source=st.integers(1, 30))
def test_flops_equal_a_count_by_hand(
    depths: list[int], source: int, asked: tuple[int, ...], changes: dict[str, object]
) -> None:
    model = tiny_facts(**changes)
    counted = count_by_hand(model, source, depths, asked)
    assert decoder_flops(model, source, depths, asked=asked) == counted


def test_a_block_of_attention_costs_what_the_paper_counts() -> None:
    """Elbayad et al., appendix B, by hand: d 16, f 32, 60 pieces, 10 source positions; two tokens, one deep."""
    model = tiny_facts(mixer="attention", glu=False, decoder_reaches=[0, 0], halting="shared")
    # Keys, values, query and output 8 d^2 = 2048; query and output over the source 4 d^2 = 1024, scores and mix
    # 4 S d = 640; feed-forward 4 d f = 2048.
    visit = 2048 + 1024 + 640 + 2048
    # At position t the past costs 4 (t + 1) d: 64 at position 0, 128 at position 1.
    assert decoder_flops(model, 10, [1]).blocks == visit + 64
    found = decoder_flops(model, 10, [1, 2], asked=[1])
    assert found == DecoderFlops(
        blocks=3 * visit + 64 + 128 + 128,
        cross=2 * 4 * 10 * 256,
        backfill=4 * 256,  # keys and values of position 0 in block 2
        halting=2 * 2 * 16,
        head=2 * 2 * 60 * 16,
    )


def test_control_the_order_of_depths_matters() -> None:
    """A model that only knew the average depth would not see the difference."""
    model = tiny_facts()
    deep_first = decoder_flops(model, 10, [4, 4, 1, 1])
    deep_last = decoder_flops(model, 10, [1, 1, 4, 4])
    assert deep_first.total < deep_last.total
    assert deep_first.backfill == 0


def test_sums_and_totals() -> None:
    one = DecoderFlops(blocks=1, cross=2, backfill=3, halting=4, head=5)
    assert one.total == 15
    assert one + one == DecoderFlops(2, 4, 6, 8, 10)
    assert sum([one, one], DecoderFlops()).total == 30


def test_no_tokens_cost_nothing() -> None:
    assert decoder_flops(tiny_facts(), 0, [], asked=[1, 2, 3]) == DecoderFlops()
