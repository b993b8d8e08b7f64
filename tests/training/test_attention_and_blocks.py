"""Attention and blocks: the chained step, backfill and copied states, each against the whole sequence."""

import math
from collections.abc import Callable, Sequence
from functools import partial

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
    SelfAttention,
    TokenMixer,
)
from edgeseq.modules.blocks import NormPlacement
from pasts import Column, past_of
from ramp import fill_with_ramp, greatest_difference, ramp

DIM, HEADS, SOURCE, TIME = 8, 2, 5, 7
TOLERANCE = 1e-6
CLEARLY = 1e-3

both_norms = pytest.mark.parametrize("norm", ["pre", "post"])


def make_unit(*, causal: bool, kernel_size: int = 4, glu: bool = False) -> ConvolutionUnit:
    return ConvolutionUnit(DynamicConv(DIM, 2, kernel_size, causal), glu)


def make_attention(window: int, *, causal: bool) -> SelfAttention:
    return SelfAttention(DIM, HEADS, window, causal)


SIZES = (1, 4, TIME, TIME + 3)
MIXERS: dict[str, Callable[[], TokenMixer]] = {
    **{f"K = {size}": partial(make_unit, causal=True, kernel_size=size) for size in SIZES},
    "K = 4, gated": partial(make_unit, causal=True, glu=True),
    **{f"W = {size}": partial(make_attention, size, causal=True) for size in SIZES},
    "all positions": partial(make_attention, 0, causal=True),
}
every_mixer = pytest.mark.parametrize("mixer", MIXERS)
one_of_each_kind = pytest.mark.parametrize("mixer", ["K = 4", "K = 4, gated", "W = 4", "all positions"])


def make_decoder_block(norm: NormPlacement, mixer: str = "K = 4") -> DecoderBlock:
    return fill_with_ramp(
        DecoderBlock(MIXERS[mixer](), CrossAttention(DIM, HEADS), FeedForward(DIM, 12), norm, dropout=0.0)
        .double()
        .eval()
    )


ENCODER_MIXERS: dict[str, Callable[[], TokenMixer]] = {
    "K = 5": partial(make_unit, causal=False, kernel_size=5),
    "W = 5": partial(make_attention, 5, causal=False),
    "all positions": partial(make_attention, 0, causal=False),
}


def make_encoder_block(norm: NormPlacement, mixer: str) -> EncoderBlock:
    return fill_with_ramp(EncoderBlock(ENCODER_MIXERS[mixer](), FeedForward(DIM, 12), norm, dropout=0.0).double())


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


# --- Self-attention


def mix_by_loops(attention: SelfAttention, x: Tensor, lengths: Sequence[int]) -> Tensor:
    """Each position and head in turn, over the positions within the window that the sentence has."""
    width = DIM // HEADS
    mixed = torch.zeros_like(x)
    for row, length in enumerate(lengths):
        for position in range(length):
            if attention.causal:
                read = range(max(0, position - attention.window + 1) if attention.window else 0, position + 1)
            else:
                side = attention.window // 2 if attention.window else length
                read = range(max(0, position - side), min(length, position + side + 1))
            for head in range(HEADS):
                channels = slice(head * width, (head + 1) * width)
                query = attention.query_projection(x[row, position])[channels]
                keys = [attention.key_projection(x[row, p])[channels] for p in read]
                values = [attention.value_projection(x[row, p])[channels] for p in read]
                exponentials = [math.exp(float(query @ key) / math.sqrt(width)) for key in keys]
                for exponential, value in zip(exponentials, values, strict=True):
                    mixed[row, position, channels] += exponential / sum(exponentials) * value
    return attention.output_projection(mixed)


@torch.no_grad()
@pytest.mark.parametrize(
    ("causal", "window"),
    [(True, 0), (True, 1), (True, 2), (True, TIME), (True, 50), (False, 0), (False, 1), (False, 3), (False, 51)],
)
def test_self_attention_is_the_formula(causal: bool, window: int) -> None:
    attention = fill_with_ramp(make_attention(window, causal=causal).double())
    x, lengths = ramp(2, TIME, DIM), (4, TIME)
    padding = torch.arange(TIME) >= torch.tensor(lengths).unsqueeze(1)
    found, expected = attention(x, padding), mix_by_loops(attention, x, lengths)
    assert greatest_difference(found[~padding], expected[~padding]) < TOLERANCE
    assert found.isfinite().all()  # at padding too, where other blocks would read it with weight 0
    # Control: another window, and padding that is read, which no causal position before it does.
    attention.window = 3 if window != 3 else 0
    assert greatest_difference(attention(x, padding)[~padding], expected[~padding]) > CLEARLY
    attention.window = window
    unpadded = greatest_difference(attention(x, None)[~padding], expected[~padding])
    assert unpadded < TOLERANCE if causal or window == 1 else unpadded > CLEARLY


@torch.no_grad()
@given(
    window=st.integers(0, 9),
    chunks=st.lists(st.integers(1, 3), min_size=1, max_size=6),
    missing=st.integers(0, 4),
)
def test_self_attention_steps_equal_the_sequence(window: int, chunks: list[int], missing: int) -> None:
    """Also where the past begins with what is no position, whatever lies there."""
    attention = fill_with_ramp(make_attention(window, causal=True).double())
    x = ramp(2, sum(chunks), DIM)
    expected = attention(x)
    junk, no_position = ramp(2, missing, DIM, start=700), torch.full((2, missing), -math.inf)
    columns: list[Column] = []
    results = []
    for chunk in x.split(chunks, dim=1):
        keys, values, bias = past_of(attention, columns, chunk)
        past = torch.cat((junk, keys), 1), torch.cat((junk, values), 1), torch.cat((no_position, bias), 1)
        result, column = attention.step(chunk, past)
        columns.append(column)
        results.append(result)
    assert greatest_difference(torch.cat(results, dim=1), expected) < TOLERANCE


@torch.no_grad()
def test_self_attention_steps_need_their_bias_and_the_whole_past() -> None:
    """Control of the equality above."""
    attention = fill_with_ramp(make_attention(4, causal=True).double())
    x = ramp(2, TIME, DIM)
    expected = attention(x)[:, -1:]
    past = attention.columns(x[:, -4:-1])
    exact = past[0], past[1], torch.zeros(2, 3)
    assert greatest_difference(attention.step(x[:, -1:], exact)[0], expected) < TOLERANCE
    for wrong in (
        (past[0], past[1], torch.tensor([[-math.inf, 0, 0]]).expand(2, -1)),  # one position left out
        (past[0][:, 1:], past[1][:, 1:], torch.zeros(2, 2)),  # the same
        (past[0], past[0], torch.zeros(2, 3)),  # keys for values
        (past[0], past[1].flip(1), torch.zeros(2, 3)),  # another order of one of them
    ):
        assert greatest_difference(attention.step(x[:, -1:], wrong)[0], expected) > CLEARLY


@torch.no_grad()
def test_the_order_of_the_past_is_of_no_consequence_to_attention_over_all() -> None:
    """So that the runtime may leave keys where they lie in a ring."""
    attention = fill_with_ramp(make_attention(0, causal=True).double())
    keys, values = attention.columns(ramp(2, 5, DIM))
    x, order = ramp(2, 1, DIM, start=90), torch.tensor([3, 0, 4, 1, 2])
    expected, _ = attention.step(x, (keys, values, torch.zeros(2, 5)))
    found, _ = attention.step(x, (keys[:, order], values[:, order], torch.zeros(2, 5)))
    assert greatest_difference(found, expected) < TOLERANCE


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((8, 3, 0, True), "dim 8 is not a multiple of heads 3; every head needs as many channels"),
        ((8, 2, -1, True), "window -1 is negative; 0 stands for all positions"),
        ((8, 2, 4, False), "window 4 is even; non-causal attention needs an odd one, or 0 for all"),
    ],
)
def test_self_attention_names_arguments_out_of_range(arguments: tuple[int, int, int, bool], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        SelfAttention(*arguments)


def test_attention_to_both_sides_takes_no_steps() -> None:
    x = ramp(1, 1, DIM, dtype=torch.float32)
    with pytest.raises(ValueError, match="step needs causal attention: the next positions are not known yet"):
        make_attention(3, causal=False).step(x, (x, x, x[..., 0]))


def test_attention_weights_are_dropped_in_training_only() -> None:
    attention = fill_with_ramp(SelfAttention(DIM, HEADS, 0, causal=True, dropout=0.5))
    x = ramp(2, TIME, DIM, dtype=torch.float32)
    expected = attention.eval()(x)
    assert torch.equal(attention(x), expected)
    assert greatest_difference(attention.train()(x), expected) > CLEARLY


# --- Norms and units


@both_norms
@pytest.mark.parametrize("mixer", ENCODER_MIXERS)
def test_blocks_norm_before_each_branch_or_after_each_sum(norm: NormPlacement, mixer: str) -> None:
    block = make_encoder_block(norm, mixer)
    first, second = block.mixer_norm.norm, block.feed_forward_norm.norm
    x = ramp(2, TIME, DIM)
    if norm == "pre":
        middle = x + block.mixer(first(x))
        expected = middle + block.feed_forward(second(middle))
    else:
        middle = first(x + block.mixer(x))
        expected = second(middle + block.feed_forward(middle))
    assert greatest_difference(block(x, None), expected) < TOLERANCE


@both_norms
@pytest.mark.parametrize("mixer", ENCODER_MIXERS)
def test_an_encoder_block_reads_no_padding(norm: NormPlacement, mixer: str) -> None:
    block = make_encoder_block(norm, mixer)
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
    (columns,) = unit.columns(x)
    assert greatest_difference(columns, projected[..., :DIM] * gate) < TOLERANCE


@pytest.mark.parametrize("operator_class", [LightweightConv, DynamicConv])
def test_a_unit_convolves_between_its_projections(operator_class: type[LightweightConv | DynamicConv]) -> None:
    unit = fill_with_ramp(ConvolutionUnit(operator_class(DIM, 2, 3, False), glu=False).double())
    x, mask = ramp(2, TIME, DIM), torch.zeros(2, TIME, dtype=torch.bool)
    mask[0, 4:] = True
    expected = unit.out_projection(unit.convolution(unit.in_projection(x), mask))
    assert torch.equal(unit(x, mask), expected)


@pytest.mark.parametrize(("mixer", "name"), [("K = 4", "convolution"), ("W = 4", "self_attention")])
def test_weights_of_a_block_carry_the_name_of_its_kind(mixer: str, name: str) -> None:
    """And those of another kind are refused, not loaded in part."""
    block = make_decoder_block("pre", mixer)
    assert any(key.startswith(name) for key in block.state_dict())
    assert f"{name}_norm.norm.weight" in block.state_dict()
    other = make_decoder_block("pre", "W = 4" if mixer == "K = 4" else "K = 4")
    with pytest.raises(RuntimeError, match="Missing key"):
        block.load_state_dict(other.state_dict())


# --- Decoder block: steps


def chain(
    block: DecoderBlock,
    x: Tensor,
    cross: tuple[Tensor, Tensor],
    bias: Tensor,
    chunks: Sequence[int],
    columns_of: Callable[[Tensor, Column], Column] = lambda chunk, columns: columns,
) -> tuple[Tensor, Tensor]:
    """Feeds a sequence in chunks; `columns_of` says what is remembered of each."""
    columns: list[Column] = []
    results = []
    for chunk in x.split(list(chunks), dim=1):
        next_x, exit_state, new = block.step(chunk, past_of(block.mixer, columns, chunk), *cross, bias)
        columns.append(columns_of(chunk, new))
        results.append((next_x, exit_state))
    return torch.cat([next_x for next_x, _ in results], dim=1), torch.cat([state for _, state in results], dim=1)


@torch.no_grad()
@both_norms
@every_mixer
@pytest.mark.parametrize("chunks", [[1] * TIME, [3, 3, 1], [2, 1, 4], [TIME]], ids=str)
def test_chained_steps_equal_the_sequence(norm: NormPlacement, mixer: str, chunks: list[int]) -> None:
    block = make_decoder_block(norm, mixer)
    x, bias = ramp(2, TIME, DIM), make_bias((3, SOURCE))
    cross = block.cross_attention.project(ramp(2, SOURCE, DIM, start=300))
    for stepped, whole in zip(chain(block, x, cross, bias, chunks), block(x, *cross, bias), strict=True):
        assert greatest_difference(stepped, whole) < TOLERANCE


@torch.no_grad()
@both_norms
@one_of_each_kind
def test_chained_steps_differ_when_other_columns_are_remembered(norm: NormPlacement, mixer: str) -> None:
    """Control of the equality above."""
    block = make_decoder_block(norm, mixer)
    x, bias = ramp(2, TIME, DIM), make_bias((3, SOURCE))
    cross = block.cross_attention.project(ramp(2, SOURCE, DIM, start=300))
    whole, _ = block(x, *cross, bias)
    changes: list[Callable[[Tensor, Column], Column]] = [
        lambda chunk, columns: tuple(map(torch.zeros_like, columns)),  # nothing is remembered
        lambda chunk, columns: tuple(chunk for _ in columns),  # the block's input instead of its projections
        lambda chunk, columns: tuple(map(block.mixer_norm.norm, columns)),
    ]
    for wrong in changes:
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
@one_of_each_kind
def test_a_decoder_block_does_not_read_ahead(norm: NormPlacement, mixer: str) -> None:
    block = make_decoder_block(norm, mixer)
    cross = block.cross_attention.project(ramp(1, SOURCE, DIM, start=300))
    x, changed = ramp(1, TIME, DIM), ramp(1, TIME, DIM)
    changed[:, 4] += ramp(DIM, start=600)
    assert torch.equal(block(x, *cross, None)[0][:, :4], block(changed, *cross, None)[0][:, :4])
    assert greatest_difference(block(x, *cross, None)[0][:, 4:], block(changed, *cross, None)[0][:, 4:]) > CLEARLY


# --- Decoder block: backfill


@torch.no_grad()
@both_norms
@one_of_each_kind
def test_backfill_gives_the_columns_of_a_step_on_copied_states(norm: NormPlacement, mixer: str) -> None:
    block = make_decoder_block(norm, mixer)
    states = ramp(2, TIME, DIM)
    cross = block.cross_attention.project(ramp(2, SOURCE, DIM, start=300))
    *_, columns = block.step(states, past_of(block.mixer, [], states), *cross, make_bias((SOURCE, SOURCE)))
    assert len(columns) == (2 if isinstance(block.mixer, SelfAttention) else 1)
    for filled, stepped in zip(block.backfill(states), columns, strict=True):
        assert greatest_difference(filled, stepped) < TOLERANCE
    for filled, stepped in zip(block.backfill(states.flatten(0, 1)), columns, strict=True):
        assert greatest_difference(filled, stepped.flatten(0, 1)) < TOLERANCE


@torch.no_grad()
@both_norms
@one_of_each_kind
def test_backfill_goes_through_the_blocks_own_norm_in_pre_norm_models_only(norm: NormPlacement, mixer: str) -> None:
    """Control of the equality above: the projections alone give the columns of post-norm models only."""
    block = make_decoder_block(norm, mixer)
    states = ramp(TIME, DIM)
    for filled, column in zip(block.backfill(states), block.mixer.columns(states), strict=True):
        difference = greatest_difference(filled, column)
        assert difference > CLEARLY if norm == "pre" else difference == 0


@torch.no_grad()
@both_norms
@one_of_each_kind
@pytest.mark.parametrize("stopped", [1, 2, 3, 5])
def test_a_deep_token_after_shallow_ones_reads_their_backfilled_columns(
    norm: NormPlacement, mixer: str, stopped: int
) -> None:
    """The sequence on copied states equals a step whose past was backfilled, also where it is longer than the reach."""
    block = make_decoder_block(norm, mixer)
    x, bias = ramp(2, stopped + 1, DIM), make_bias((3, SOURCE))
    cross = block.cross_attention.project(ramp(2, SOURCE, DIM, start=300))
    expected = block(x, *cross, bias)[0][:, -1:]

    def last(columns: list[Column]) -> Tensor:
        return block.step(x[:, -1:], past_of(block.mixer, columns, x), *cross, bias)[0]

    assert greatest_difference(last([block.backfill(x[:, :-1])]), expected) < TOLERANCE
    assert greatest_difference(last([]), expected) > CLEARLY  # not backfilled
    if norm == "pre":
        assert greatest_difference(last([block.mixer.columns(x[:, :-1])]), expected) > CLEARLY  # not normed
