"""Attention and blocks: the chained step, backfill and copied states, each against the whole sequence."""

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from edgeseq.modules import (
    ConvolutionUnit,
    CrossAttention,
    DecoderBlock,
    DynamicConv,
    EncoderBlock,
    FeedForward,
    LightweightConv,
)
from edgeseq.modules.blocks import NormPlacement
from ramp import fill_with_ramp, greatest_difference, ramp

DIM, HEADS, SOURCE, TIME = 8, 2, 5, 7
TOLERANCE = 1e-6
CLEARLY = 1e-3

both_norms = pytest.mark.parametrize("norm", ["pre", "post"])
with_and_without_glu = pytest.mark.parametrize("glu", [False, True], ids=["plain", "glu"])


def make_unit(*, causal: bool, kernel_size: int = 4, glu: bool = False) -> ConvolutionUnit:
    return ConvolutionUnit(DynamicConv(DIM, 2, kernel_size, causal), glu)


def make_decoder_block(norm: NormPlacement, kernel_size: int = 4, *, glu: bool = False) -> DecoderBlock:
    unit = make_unit(causal=True, kernel_size=kernel_size, glu=glu)
    return fill_with_ramp(
        DecoderBlock(unit, CrossAttention(DIM, HEADS), FeedForward(DIM, 12), norm, dropout=0.0).double().eval()
    )


def make_bias(lengths: Sequence[int]) -> Tensor:
    padding = torch.arange(SOURCE) >= torch.tensor(lengths).unsqueeze(1)
    return torch.zeros(padding.shape).masked_fill(padding, -math.inf)[:, None, None, :]


# --- Encoder-decoder attention


def attend_by_loops(attention: CrossAttention, x: Tensor, memory: Tensor, lengths: Sequence[int]) -> Tensor:
    """Attention of each position, head and source position in turn, over the sentence's own length."""
    width = DIM // HEADS
    mixed = torch.zeros_like(x)
    for row, length in enumerate(lengths):
        for position in range(x.shape[1]):
            for head in range(HEADS):
                channels = slice(head * width, (head + 1) * width)
                query = attention.query_projection(x[row, position])[channels]
                keys = [attention.key_projection(memory[row, s])[channels] for s in range(length)]
                values = [attention.value_projection(memory[row, s])[channels] for s in range(length)]
                exponentials = [math.exp(float(query @ key) / math.sqrt(width)) for key in keys]
                for exponential, value in zip(exponentials, values, strict=True):
                    mixed[row, position, channels] += exponential / sum(exponentials) * value
    return attention.output_projection(mixed)


@torch.no_grad()
def test_attention_is_the_formula_and_its_bias_hides_padding() -> None:
    attention = fill_with_ramp(CrossAttention(DIM, HEADS).double())
    x, memory, lengths = ramp(2, TIME, DIM), ramp(2, SOURCE, DIM, start=300), (3, SOURCE)
    expected = attend_by_loops(attention, x, memory, lengths)
    projected = attention.project(memory)
    assert greatest_difference(attention(x, *projected, make_bias(lengths)), expected) < TOLERANCE
    assert greatest_difference(attention(x, *projected, None), expected) > CLEARLY  # control: padding is read


@torch.no_grad()
@given(time=st.integers(1, 5), length=st.integers(1, SOURCE))
def test_attention_steps_equal_the_sequence(time: int, length: int) -> None:
    attention = fill_with_ramp(CrossAttention(DIM, HEADS).double())
    x, bias = ramp(2, time, DIM), make_bias((length, SOURCE))
    key, value = attention.project(ramp(2, SOURCE, DIM, start=300))
    assert greatest_difference(attention.step(x, key, value, bias), attention(x, key, value, bias)) < TOLERANCE


@torch.no_grad()
def test_attention_steps_need_the_bias_and_their_own_row() -> None:
    """Control of the equality above."""
    attention = fill_with_ramp(CrossAttention(DIM, HEADS).double())
    x, bias = ramp(2, 3, DIM), make_bias((2, SOURCE))
    key, value = attention.project(ramp(2, SOURCE, DIM, start=300))
    expected = attention(x, key, value, bias)
    assert greatest_difference(attention.step(x, key, value, torch.zeros_like(bias)), expected) > CLEARLY
    assert greatest_difference(attention.step(x, key.flip(0), value, bias), expected) > CLEARLY


def test_attention_names_a_width_that_its_heads_do_not_divide() -> None:
    with pytest.raises(ValueError, match="dim 8 is not a multiple of heads 3; every head needs as many channels"):
        CrossAttention(8, 3)


# --- Norms and units


@both_norms
def test_blocks_norm_before_each_branch_or_after_each_sum(norm: NormPlacement) -> None:
    block = fill_with_ramp(
        EncoderBlock(make_unit(causal=False, kernel_size=3), FeedForward(DIM, 12), norm, dropout=0.0).double()
    )
    first, second = block.convolution_norm.norm, block.feed_forward_norm.norm
    x = ramp(2, TIME, DIM)
    if norm == "pre":
        middle = x + block.convolution_unit(first(x))
        expected = middle + block.feed_forward(second(middle))
    else:
        middle = first(x + block.convolution_unit(x))
        expected = second(middle + block.feed_forward(middle))
    assert greatest_difference(block(x, None), expected) < TOLERANCE


@both_norms
def test_an_encoder_block_reads_no_padding(norm: NormPlacement) -> None:
    block = fill_with_ramp(
        EncoderBlock(make_unit(causal=False, kernel_size=5), FeedForward(DIM, 12), norm, dropout=0.0).double()
    )
    x = ramp(2, TIME, DIM)
    padded = torch.cat((x, 100 * ramp(2, 3, DIM, start=900)), dim=1)
    mask = (torch.arange(TIME + 3) >= TIME).expand(2, -1)
    assert greatest_difference(block(padded, mask)[:, :TIME], block(x, None)) < TOLERANCE
    assert greatest_difference(block(padded, None)[:, :TIME], block(x, None)) > CLEARLY  # control


def test_a_gated_unit_gates_the_first_half_by_the_second() -> None:
    unit = fill_with_ramp(make_unit(causal=True, glu=True).double())
    x = ramp(2, TIME, DIM)
    projected = unit.in_projection(x)
    gate = 1 / (1 + torch.exp(-projected[..., DIM:]))
    assert greatest_difference(unit.columns(x), projected[..., :DIM] * gate) < TOLERANCE


@pytest.mark.parametrize("operator_class", [LightweightConv, DynamicConv])
def test_a_unit_convolves_between_its_projections(operator_class: type[LightweightConv | DynamicConv]) -> None:
    unit = fill_with_ramp(ConvolutionUnit(operator_class(DIM, 2, 3, False), glu=False).double())
    x, mask = ramp(2, TIME, DIM), torch.zeros(2, TIME, dtype=torch.bool)
    mask[0, 4:] = True
    expected = unit.out_projection(unit.convolution(unit.in_projection(x), mask))
    assert torch.equal(unit(x, mask), expected)


# --- Decoder block: steps


def chain(
    block: DecoderBlock,
    x: Tensor,
    cross: tuple[Tensor, Tensor],
    bias: Tensor,
    chunks: Sequence[int],
    columns_of: Callable[[Tensor, Tensor], Tensor] = lambda chunk, columns: columns,
) -> tuple[Tensor, Tensor]:
    """Feeds a sequence in chunks; `columns_of` says what goes into the history."""
    length = block.kernel_size - 1
    history = x.new_zeros(len(x), length, DIM)
    results = []
    for chunk in x.split(list(chunks), dim=1):
        next_x, exit_state, columns = block.step(chunk, history, *cross, bias)
        history = torch.cat((history, columns_of(chunk, columns)), dim=1)[:, chunk.shape[1] :]
        results.append((next_x, exit_state))
    return torch.cat([next_x for next_x, _ in results], dim=1), torch.cat([state for _, state in results], dim=1)


@torch.no_grad()
@both_norms
@with_and_without_glu
@pytest.mark.parametrize("kernel_size", [1, 4, TIME, TIME + 3])
@pytest.mark.parametrize("chunks", [[1] * TIME, [3, 3, 1], [2, 1, 4], [TIME]], ids=str)
def test_chained_steps_equal_the_sequence(norm: NormPlacement, glu: bool, kernel_size: int, chunks: list[int]) -> None:
    block = make_decoder_block(norm, kernel_size, glu=glu)
    x, bias = ramp(2, TIME, DIM), make_bias((3, SOURCE))
    cross = block.cross_attention.project(ramp(2, SOURCE, DIM, start=300))
    for stepped, whole in zip(chain(block, x, cross, bias, chunks), block(x, *cross, bias), strict=True):
        assert greatest_difference(stepped, whole) < TOLERANCE


@torch.no_grad()
@both_norms
def test_chained_steps_differ_when_other_columns_go_into_the_history(norm: NormPlacement) -> None:
    """Control of the equality above."""
    block = make_decoder_block(norm)
    x, bias = ramp(2, TIME, DIM), make_bias((3, SOURCE))
    cross = block.cross_attention.project(ramp(2, SOURCE, DIM, start=300))
    whole, _ = block(x, *cross, bias)
    for wrong in (
        lambda chunk, columns: torch.zeros_like(columns),  # nothing is remembered
        lambda chunk, columns: chunk,  # the block's input instead of its projection
        lambda chunk, columns: block.convolution_norm.norm(columns),
    ):
        assert greatest_difference(chain(block, x, cross, bias, [1] * TIME, wrong)[0], whole) > CLEARLY


@torch.no_grad()
@both_norms
def test_the_exit_state_is_normed_and_the_next_state_is_not_in_pre_norm_models(norm: NormPlacement) -> None:
    block = make_decoder_block(norm)
    cross = block.cross_attention.project(ramp(2, SOURCE, DIM, start=300))
    next_x, exit_state = block(ramp(2, TIME, DIM), *cross, None)
    if norm == "pre":
        assert isinstance(block.exit_norm, nn.LayerNorm)
        assert greatest_difference(exit_state, block.exit_norm(next_x)) < TOLERANCE
        assert greatest_difference(exit_state, next_x) > CLEARLY
    else:
        assert torch.equal(exit_state, next_x)


@torch.no_grad()
@both_norms
def test_a_decoder_block_does_not_read_ahead(norm: NormPlacement) -> None:
    block = make_decoder_block(norm)
    cross = block.cross_attention.project(ramp(1, SOURCE, DIM, start=300))
    x, changed = ramp(1, TIME, DIM), ramp(1, TIME, DIM)
    changed[:, 4] += ramp(DIM, start=600)
    assert torch.equal(block(x, *cross, None)[0][:, :4], block(changed, *cross, None)[0][:, :4])
    assert greatest_difference(block(x, *cross, None)[0][:, 4:], block(changed, *cross, None)[0][:, 4:]) > CLEARLY


# --- Decoder block: backfill


@torch.no_grad()
@both_norms
@with_and_without_glu
def test_backfill_gives_the_columns_of_a_step_on_copied_states(norm: NormPlacement, glu: bool) -> None:
    block = make_decoder_block(norm, glu=glu)
    states = ramp(2, TIME, DIM)
    cross = block.cross_attention.project(ramp(2, SOURCE, DIM, start=300))
    history = torch.zeros(2, block.kernel_size - 1, DIM, dtype=torch.float64)
    *_, columns = block.step(states, history, *cross, make_bias((SOURCE, SOURCE)))
    assert greatest_difference(block.backfill(states), columns) < TOLERANCE
    assert greatest_difference(block.backfill(states.flatten(0, 1)), columns.flatten(0, 1)) < TOLERANCE


@torch.no_grad()
@both_norms
def test_backfill_goes_through_the_blocks_own_norm_in_pre_norm_models_only(norm: NormPlacement) -> None:
    """Control of the equality above: the projection alone gives the columns of post-norm models only."""
    block = make_decoder_block(norm)
    states = ramp(TIME, DIM)
    difference = greatest_difference(block.backfill(states), block.convolution_unit.columns(states))
    assert difference > CLEARLY if norm == "pre" else difference == 0


@torch.no_grad()
@both_norms
@pytest.mark.parametrize("stopped", [1, 2, 3, 5])
def test_a_deep_token_after_shallow_ones_reads_their_backfilled_columns(norm: NormPlacement, stopped: int) -> None:
    """The sequence on copied states equals a step whose history was backfilled, also beyond K - 1 shallow tokens."""
    block = make_decoder_block(norm, kernel_size=4)
    x, bias = ramp(2, stopped + 1, DIM), make_bias((3, SOURCE))
    cross = block.cross_attention.project(ramp(2, SOURCE, DIM, start=300))
    expected = block(x, *cross, bias)[0][:, -1:]
    empty = x.new_zeros(2, 3, DIM)
    history = torch.cat((empty, block.backfill(x[:, :-1])), dim=1)[:, -3:]
    assert greatest_difference(block.step(x[:, -1:], history, *cross, bias)[0], expected) < TOLERANCE
    assert greatest_difference(block.step(x[:, -1:], empty, *cross, bias)[0], expected) > CLEARLY  # not backfilled
    if norm == "pre":
        unnormed = torch.cat((empty, block.convolution_unit.columns(x[:, :-1])), dim=1)[:, -3:]
        assert greatest_difference(block.step(x[:, -1:], unnormed, *cross, bias)[0], expected) > CLEARLY
