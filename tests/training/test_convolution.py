"""Lightweight and dynamic convolution: against the equations written as loops, and step against sequence."""

import math
from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from edgeseq.modules import DynamicConv, LightweightConv
from edgeseq.modules.convolution import Normalization
from ramp import fill_with_ramp, greatest_difference, ramp

Operator = LightweightConv | DynamicConv
OPERATORS = (LightweightConv, DynamicConv)
NORMALIZATIONS: tuple[Normalization, ...] = ("softmax", "l2")
# Taps are normalised in float32, also in a float64 model.
TOLERANCE = 1e-6
# What a broken mechanism must at least be off by.
CLEARLY = 1e-3

both_operators = pytest.mark.parametrize("operator_class", OPERATORS)
both_normalizations = pytest.mark.parametrize("normalization", NORMALIZATIONS)


def make(
    operator_class: type[Operator],
    *,
    dim: int = 6,
    heads: int = 3,
    kernel_size: int = 4,
    causal: bool = True,
    weight_dropout: float = 0.0,
    normalization: Normalization = "softmax",
) -> Operator:
    operator = operator_class(dim, heads, kernel_size, causal, weight_dropout, normalization)
    return fill_with_ramp(operator.double())


# --- The equations as loops


def normalize(raw: Sequence[float], normalization: Normalization) -> list[float]:
    if normalization == "softmax":
        exponentials = [math.exp(value) for value in raw]
        return [value / sum(exponentials) for value in exponentials]
    norm = math.sqrt(sum(value**2 for value in raw))
    return [value / norm for value in raw]


def raw_taps_by_loops(operator: Operator, x: Tensor, head: int) -> list[float]:
    """Taps of a head for the input (D,) of one position: W of equation 4, or W x of equation 5."""
    if isinstance(operator, LightweightConv):
        return [float(value) for value in operator.weight[head].detach()]
    rows = operator.tap_projection.weight.detach().unflatten(0, (operator.heads, operator.kernel_size))[head]
    return [sum(float(w) * float(v) for w, v in zip(row, x, strict=True)) for row in rows]


def convolve_by_loops(
    operator: Operator,
    x: Tensor,
    *,
    left: int | None = None,
    head_of: Callable[[int], int] | None = None,
    newest_first: bool = False,
    taps_in_reach_only: bool = False,
) -> Tensor:
    """Equations 4 and 5, one product at a time; the options break one convention each."""
    kernel_size = operator.kernel_size
    if left is None:
        left = kernel_size - 1 if operator.causal else kernel_size // 2
    if head_of is None:
        width = operator.dim // operator.heads
        head_of = lambda channel: channel // width  # noqa: E731  # one line is clearer here
    result = torch.zeros_like(x)
    for row, sequence in enumerate(x):
        for position, at in enumerate(sequence):
            for channel in range(operator.dim):
                raw = raw_taps_by_loops(operator, at, head_of(channel))
                if taps_in_reach_only:
                    unread = max(left - position, 0)
                    taps = [0.0] * unread + normalize(raw[unread:], operator.normalization)
                else:
                    taps = normalize(raw, operator.normalization)
                for j, tap in enumerate(reversed(taps) if newest_first else taps):
                    source = position + j - left
                    if 0 <= source < len(sequence):
                        result[row, position, channel] += tap * sequence[source, channel]
    return result


@both_operators
@both_normalizations
@pytest.mark.parametrize(("causal", "kernel_size"), [(True, 1), (True, 4), (True, 5), (False, 1), (False, 5)])
@pytest.mark.parametrize("time", [1, 4, 7])
def test_forward_is_the_equation(
    operator_class: type[Operator], normalization: Normalization, causal: bool, kernel_size: int, time: int
) -> None:
    operator = make(operator_class, kernel_size=kernel_size, causal=causal, normalization=normalization)
    x = ramp(2, time, 6)
    assert greatest_difference(operator(x), convolve_by_loops(operator, x)) < TOLERANCE


@both_operators
@pytest.mark.parametrize("causal", [True, False])
def test_forward_follows_every_convention_of_the_equation(operator_class: type[Operator], causal: bool) -> None:
    """Control of the comparison above: it fails when heads, order of taps or padding are another."""
    operator = make(operator_class, kernel_size=5, causal=causal)
    x = ramp(2, 7, 6)
    result = operator(x)
    for broken in (
        convolve_by_loops(operator, x, head_of=lambda channel: channel % operator.heads),
        convolve_by_loops(operator, x, newest_first=True),
        convolve_by_loops(operator, x, left=0),
        convolve_by_loops(operator, x, left=2 if causal else 4),
        convolve_by_loops(operator, x, taps_in_reach_only=True),
    ):
        assert greatest_difference(result, broken) > CLEARLY


@both_operators
def test_a_causal_convolution_does_not_read_ahead(operator_class: type[Operator]) -> None:
    x, changed = ramp(1, 6, 6), ramp(1, 6, 6)
    changed[:, 4:] += 1
    causal = make(operator_class, kernel_size=3, causal=True)
    assert torch.equal(causal(x)[:, :4], causal(changed)[:, :4])
    centred = make(operator_class, kernel_size=3, causal=False)
    assert greatest_difference(centred(x)[:, :4], centred(changed)[:, :4]) > CLEARLY


# --- Step against sequence


def chain(operator: Operator, x: Tensor, chunks: Sequence[int], *, keep: int | None = None) -> Tensor:
    """Feeds a sequence in chunks, (B, T, D) → (B, T, D); `keep` columns of history survive from chunk to chunk."""
    length = operator.kernel_size - 1
    history = x.new_zeros(x.shape[0], length, operator.dim)
    results = []
    for chunk in x.split(list(chunks), dim=1):
        results.append(operator.step(chunk, history))
        history = torch.cat((history, chunk), dim=1)[:, chunk.shape[1] :]
        if keep is not None:
            history[:, : length - keep] = 0
    return torch.cat(results, dim=1)


def chunks_of(size: int, time: int) -> list[int]:
    return [min(size, time - start) for start in range(0, time, size)]


@both_operators
@both_normalizations
@pytest.mark.parametrize("time", [2, 5, 9], ids=["T<K", "T=K", "T>K"])
@pytest.mark.parametrize("size", [1, 3])
def test_steps_equal_the_sequence(
    operator_class: type[Operator], normalization: Normalization, time: int, size: int
) -> None:
    operator = make(operator_class, kernel_size=5, normalization=normalization)
    x = ramp(3, time, 6)
    assert greatest_difference(chain(operator, x, chunks_of(size, time)), operator(x)) < TOLERANCE


@both_operators
@given(data=st.data(), kernel_size=st.integers(1, 7), heads=st.sampled_from([1, 2, 4]))
def test_steps_equal_the_sequence_in_any_chunks(
    operator_class: type[Operator], data: st.DataObject, kernel_size: int, heads: int
) -> None:
    operator = make(operator_class, dim=4, heads=heads, kernel_size=kernel_size)
    chunks = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=6))
    x = ramp(2, sum(chunks), 4)
    assert greatest_difference(chain(operator, x, chunks), operator(x)) < TOLERANCE


@both_operators
@pytest.mark.parametrize("size", [1, 3])
def test_steps_differ_from_the_sequence_without_the_oldest_column(operator_class: type[Operator], size: int) -> None:
    """Control: history must hold K - 1 columns, not K - 2."""
    operator = make(operator_class, kernel_size=5)
    x = ramp(3, 9, 6)
    assert greatest_difference(chain(operator, x, chunks_of(size, 9), keep=4), operator(x)) < TOLERANCE
    assert greatest_difference(chain(operator, x, chunks_of(size, 9), keep=3), operator(x)) > CLEARLY


@both_operators
def test_a_history_of_the_columns_there_are_is_not_a_padded_one(operator_class: type[Operator]) -> None:
    """Control: all K taps are normalised; a step over the T columns so far, with T taps, is something else."""
    operator = make(operator_class, kernel_size=5)
    x = ramp(1, 3, 6)
    padded = operator.step(x[:, 2:], torch.cat((x.new_zeros(1, 2, 6), x[:, :2]), dim=1))
    assert greatest_difference(padded, operator(x)[:, 2:]) < TOLERANCE
    last_taps_only = convolve_by_loops(operator, x, taps_in_reach_only=True)
    assert greatest_difference(padded, last_taps_only[:, 2:]) > CLEARLY
    with pytest.raises((IndexError, RuntimeError), match="out of"):  # K - 1 columns are needed, zeros included
        operator.step(x[:, 2:], x[:, :2])


# --- Padding


@both_operators
@given(padding=st.integers(0, 8), time=st.integers(1, 6), kernel_size=st.integers(1, 6), masked=st.booleans())
def test_right_padding_changes_no_valid_position_of_a_causal_convolution(
    operator_class: type[Operator], padding: int, time: int, kernel_size: int, masked: bool
) -> None:
    operator = make(operator_class, kernel_size=kernel_size)
    x = ramp(2, time, 6)
    padded = torch.cat((x, 1000 * ramp(2, padding, 6, start=77)), dim=1)
    mask = (torch.arange(time + padding) >= time).expand(2, -1) if masked else None
    assert greatest_difference(operator(padded, mask)[:, :time], operator(x)) < TOLERANCE


@both_operators
@given(padding=st.integers(0, 8), time=st.integers(1, 6), kernel_size=st.sampled_from([1, 3, 5, 9]))
def test_the_mask_hides_padding_from_a_centred_convolution(
    operator_class: type[Operator], padding: int, time: int, kernel_size: int
) -> None:
    operator = make(operator_class, kernel_size=kernel_size, causal=False)
    x = ramp(2, time, 6)
    padded = torch.cat((x, 1000 * ramp(2, padding, 6, start=77)), dim=1)
    mask = (torch.arange(time + padding) >= time).expand(2, -1)
    assert greatest_difference(operator(padded, mask)[:, :time], operator(x)) < TOLERANCE


@both_operators
def test_without_the_mask_padding_is_read_by_a_centred_convolution(operator_class: type[Operator]) -> None:
    """Control of the property above."""
    operator = make(operator_class, kernel_size=3, causal=False)
    x = ramp(2, 4, 6)
    padded = torch.cat((x, ramp(2, 2, 6, start=77)), dim=1)
    assert greatest_difference(operator(padded)[:, :4], operator(x)) > CLEARLY


@both_operators
def test_rows_of_different_lengths_share_a_batch(operator_class: type[Operator]) -> None:
    operator = make(operator_class, kernel_size=5, causal=False)
    x = ramp(3, 6, 6)
    lengths = (2, 6, 4)
    mask = torch.arange(6) >= torch.tensor(lengths).unsqueeze(1)
    together = operator(x, mask)
    for row, length in enumerate(lengths):
        alone = operator(x[row : row + 1, :length])
        assert greatest_difference(together[row : row + 1, :length], alone) < TOLERANCE


# --- DropConnect


def taps_in_use(operator: LightweightConv, time: int) -> Iterator[tuple[int, Tensor]]:
    """Yields (tap, its value per channel (D,)) of a causal convolution at each position from K - 1 on."""
    used = torch.zeros(time, operator.dim, time, dtype=torch.float64)
    for source in range(time):
        # Ones at one position and zeros elsewhere: the output at t is the tap that t uses for that position.
        pulse = torch.zeros(1, time, operator.dim, dtype=torch.float64)
        pulse[:, source] = 1
        torch.manual_seed(0)  # the same taps are dropped for every pulse
        used[source] = operator(pulse)[0].detach().T
    for position in range(operator.kernel_size - 1, time):
        for j in range(operator.kernel_size):
            yield j, used[position + j - operator.kernel_size + 1, :, position]


def test_drop_connect_drops_whole_taps_of_a_head_and_scales_the_others() -> None:
    operator = make(LightweightConv, dim=8, heads=2, kernel_size=5, weight_dropout=0.5)
    assert isinstance(operator, LightweightConv)
    taps = torch.softmax(operator.weight.detach(), dim=-1)
    factors: dict[tuple[int, int], set[int]] = {(head, j): set() for head in range(2) for j in range(5)}
    for j, values in taps_in_use(operator, time=40):
        for head, of_head in enumerate(values.view(2, 4)):
            assert (of_head == of_head[0]).all(), "a tap is dropped for some channels of a head only"
            factor = float(of_head[0] / taps[head, j])
            assert factor == pytest.approx(round(factor), abs=TOLERANCE)
            factors[head, j].add(round(factor))
    # Every tap is dropped at some positions and doubled at the others.
    assert all(seen == {0, 2} for seen in factors.values())


def test_drop_connect_drops_taps_and_not_outputs() -> None:
    """Control: dropout on the output would break the equality within a head that the test above asserts."""
    operator = make(LightweightConv, dim=8, heads=2, kernel_size=9, causal=False)
    torch.manual_seed(0)
    values = torch.nn.functional.dropout(operator(torch.ones(1, 6, 8, dtype=torch.float64)), 0.5).view(6, 2, 4)
    assert not (values == values[..., :1]).all()


@both_operators
def test_drop_connect_draws_anew_at_every_position(operator_class: type[Operator]) -> None:
    operator = make(operator_class, dim=4, heads=1, kernel_size=3, weight_dropout=0.5)
    x = ramp(1, 1, 4).expand(1, 64, 4).contiguous()  # the same window, hence the same taps, from position 2 on
    torch.manual_seed(0)
    dropped, whole = operator(x)[0, 2:], operator.eval()(x)[0, 2:]
    assert greatest_difference(whole, whole[:1].expand_as(whole)) < TOLERANCE
    assert len((dropped / whole).round(decimals=4).unique(dim=0)) > 4  # of eight subsets


@both_operators
def test_drop_connect_keeps_the_mean_and_is_off_in_evaluation(operator_class: type[Operator]) -> None:
    operator = make(operator_class, dim=4, heads=2, kernel_size=5, weight_dropout=0.25)
    x = ramp(1, 6, 4)
    torch.manual_seed(0)
    draws = torch.cat([operator(x) for _ in range(2000)])
    error = draws.std(dim=0) / math.sqrt(len(draws))
    operator.eval()
    assert ((draws.mean(dim=0) - operator(x)[0]).abs() < 5 * error + TOLERANCE).all()
    assert greatest_difference(operator(x), convolve_by_loops(operator, x)) < TOLERANCE
    unscaled = draws.mean(dim=0) * 0.75  # control: survivors that are not scaled up
    assert ((unscaled - operator(x)[0]).abs() > 5 * error + TOLERANCE).any()


# --- Gradients


@both_operators
@both_normalizations
@pytest.mark.parametrize("causal", [True, False])
def test_gradients_are_finite_differences(
    operator_class: type[Operator], normalization: Normalization, causal: bool
) -> None:
    operator = make(operator_class, dim=4, heads=2, kernel_size=3, causal=causal, normalization=normalization)
    x = ramp(1, 3, 4).requires_grad_()
    weight = next(operator.parameters())

    def convolve(x: Tensor, _: Tensor) -> Tensor:  # gradcheck moves the weight in place
        return operator(x)

    # The step is wide because taps are rounded to float32.
    assert torch.autograd.gradcheck(convolve, (x, weight), eps=1e-3, atol=1e-3)

    def cut(x: Tensor, _: Tensor) -> Tensor:
        return operator(x.detach()) + 0 * x.sum()

    with pytest.raises(RuntimeError, match="Jacobian mismatch"):
        torch.autograd.gradcheck(cut, (x, weight), eps=1e-3, atol=1e-3)


@both_operators
def test_gradients_of_a_step_are_those_of_the_sequence(operator_class: type[Operator]) -> None:
    operator = make(operator_class, kernel_size=4)
    x = ramp(2, 6, 6)
    weight = next(operator.parameters())
    (by_sequence,) = torch.autograd.grad(operator(x).square().sum(), weight)
    (by_steps,) = torch.autograd.grad(chain(operator, x, [1, 3, 2]).square().sum(), weight)
    assert greatest_difference(by_sequence, by_steps) < 1e-5


# --- Errors


@both_operators
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((6, 4, 3, True), "dim 6 is not a multiple of heads 4; every head needs as many channels"),
        ((6, 3, 0, True), "kernel_size 0 is not positive"),
        ((6, 3, 4, False), "kernel_size 4 is even; a non-causal convolution needs an odd one"),
        ((6, 3, 3, True, 1.0), r"weight_dropout 1.0 is not in \[0, 1\)"),
        ((6, 3, 3, True, -0.1), r"weight_dropout -0.1 is not in \[0, 1\)"),
        ((6, 3, 3, True, 0.0, "none"), "normalization 'none' is unknown; choose 'softmax' or 'l2'"),
    ],
)
def test_arguments_out_of_range_are_named(
    operator_class: Callable[..., Operator], arguments: tuple[object, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        operator_class(*arguments)


@both_operators
def test_a_centred_convolution_has_no_steps(operator_class: type[Operator]) -> None:
    operator = make(operator_class, kernel_size=3, causal=False)
    with pytest.raises(ValueError, match="step needs a causal convolution: the next positions are not known yet"):
        operator.step(ramp(1, 1, 6), ramp(1, 2, 6))
