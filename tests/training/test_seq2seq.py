"""The decoder with tokens that stopped early, against a decoder that moves token by token."""

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from edgeseq.config import PredictorConfig, StackConfig
from edgeseq.models import Decoder, Seq2Seq
from edgeseq.models.seq2seq import scale_gradient, source_bias_of
from edgeseq.modules import DecoderBlock, HaltingUnits, SentenceDepth, TokenDepth
from pasts import past_of
from ramp import greatest_difference, ramp
from small_models import DECODER_KERNEL_SIZES, PREDICTORS, VOCAB_SIZE, linear_units, small_model

DIM, SOURCE, TIME = 8, 5, 9
BLOCKS = len(DECODER_KERNEL_SIZES)
TOLERANCE = 1e-6
CLEARLY = 1e-3

ATTENTION: dict[str, Any] = {
    "encoder": StackConfig(mixer="attention", windows=[0, 3], feed_forward_dim=12),
    "decoder": StackConfig(mixer="attention", windows=[3, 0, 1, 5], feed_forward_dim=12),
}
MODELS = {
    "pre-norm": small_model(norm="pre"),
    "post-norm": small_model(norm="post"),
    "attention, pre-norm": small_model(norm="pre", **ATTENTION),
    "attention, post-norm": small_model(norm="post", **ATTENTION),
}
PRE_NORM = ["pre-norm", "attention, pre-norm"]
every_model = pytest.mark.parametrize("name", MODELS)
TOKENS = torch.tensor([[2, *range(4, 3 + TIME)], [2, *range(14, 13 + TIME)]])
DEPTHS = torch.tensor([[4, 1, 1, 1, 1, 1, 4, 2, 3], [1, 1, 4, 3, 2, 1, 2, 4, 1]])
MEMORY = ramp(2, SOURCE, DIM, start=300)
PADDING = torch.arange(SOURCE) >= torch.tensor([[3], [SOURCE]])


@dataclasses.dataclass
class CopyRule:
    """The copy rule, token by token: a stopped token's last state stands in for it in the blocks above.

    The options break it.
    """

    copies_exit_state: bool = False
    skips_norm: bool = False
    leaves_zeros: bool = False

    def decode(self, decoder: Decoder, tokens: Tensor, memory: Tensor, padding: Tensor, depths: Tensor) -> Tensor:
        """Returns the exit state (B, T, D) of each token at its own depth."""
        rows = []
        for row in range(len(tokens)):
            bias = source_bias_of(padding[row : row + 1])
            assert bias is not None
            rows.append(self._decode_row(decoder, tokens[row], memory[row : row + 1], bias, depths[row].tolist()))
        return torch.stack(rows)

    def _decode_row(self, decoder: Decoder, tokens: Tensor, memory: Tensor, bias: Tensor, depths: list[int]) -> Tensor:
        columns: list[list[tuple[Tensor, ...]]] = [[] for _ in decoder.blocks]
        exits = []
        for position, (token, depth) in enumerate(zip(tokens, depths, strict=True)):
            x = decoder.embedding(token.view(1, 1), torch.tensor([position]))
            for number, block in enumerate(decoder.blocks, start=1):
                assert isinstance(block, DecoderBlock)
                own = columns[number - 1]
                if number <= depth:
                    past = past_of(block.mixer, own, x)
                    x, exit_state, column = block.step(x, past, *block.cross_attention.project(memory), bias)
                else:
                    copied = exit_state if self.copies_exit_state else x
                    column = block.mixer.columns(copied) if self.skips_norm else block.backfill(copied)
                    if self.leaves_zeros:
                        column = tuple(map(torch.zeros_like, column))
                own.append(column)
            exits.append(exit_state[0, 0])
        return torch.stack(exits)


def at_own_depth(states: list[Tensor], depths: Tensor) -> Tensor:
    """Picks from the exit states of all blocks each token's last one, (B, T, D)."""
    stacked = torch.stack(states)  # (N, B, T, D)
    return stacked.gather(0, (depths - 1)[None, :, :, None].expand(1, -1, -1, DIM))[0]


@torch.no_grad()
@every_model
def test_copied_states_are_what_a_token_by_token_decoder_sees(name: str) -> None:
    assert set(DEPTHS.unique().tolist()) == set(range(1, BLOCKS + 1))
    decoder = MODELS[name].decoder
    states = decoder(TOKENS, MEMORY, PADDING, DEPTHS)
    naive = CopyRule().decode(decoder, TOKENS, MEMORY, PADDING, DEPTHS)
    assert greatest_difference(at_own_depth(states, DEPTHS), naive) < TOLERANCE


@torch.no_grad()
@pytest.mark.parametrize("name", PRE_NORM)
@given(depths=st.lists(st.integers(1, BLOCKS), min_size=1, max_size=TIME))
def test_copied_states_hold_for_any_depths(name: str, depths: list[int]) -> None:
    decoder = MODELS[name].decoder
    tokens, chosen = TOKENS[:1, : len(depths)], torch.tensor([depths])
    states = decoder(tokens, MEMORY[:1], PADDING[:1], chosen)
    naive = CopyRule().decode(decoder, tokens, MEMORY[:1], PADDING[:1], chosen)
    assert greatest_difference(at_own_depth(states, chosen), naive) < TOLERANCE


@torch.no_grad()
@pytest.mark.parametrize("name", PRE_NORM)
@pytest.mark.parametrize(
    "broken",
    [CopyRule(copies_exit_state=True), CopyRule(skips_norm=True), CopyRule(leaves_zeros=True)],
    ids=["exit state copied", "own norm forgotten", "nothing copied"],
)
def test_another_copy_rule_gives_other_states(broken: CopyRule, name: str) -> None:
    """Control of the two equalities above."""
    decoder = MODELS[name].decoder
    states = at_own_depth(decoder(TOKENS, MEMORY, PADDING, DEPTHS), DEPTHS)
    assert greatest_difference(states, broken.decode(decoder, TOKENS, MEMORY, PADDING, DEPTHS)) > CLEARLY


@torch.no_grad()
@every_model
def test_without_depths_every_token_goes_through_all_blocks(name: str) -> None:
    decoder = MODELS[name].decoder
    full = torch.full_like(DEPTHS, BLOCKS)
    for one, other in zip(decoder(TOKENS, MEMORY, PADDING), decoder(TOKENS, MEMORY, PADDING, full), strict=True):
        assert torch.equal(one, other)
    shallow = decoder(TOKENS, MEMORY, PADDING, DEPTHS)
    assert greatest_difference(at_own_depth(shallow, full), decoder(TOKENS, MEMORY, PADDING)[-1]) > CLEARLY


@torch.no_grad()
def test_fewer_blocks_give_the_first_exit_states() -> None:
    decoder = MODELS["pre-norm"].decoder
    everything = decoder(TOKENS, MEMORY, PADDING, DEPTHS)
    assert len(everything) == BLOCKS
    for blocks in range(1, BLOCKS):
        some = decoder(TOKENS, MEMORY, PADDING, DEPTHS, blocks)
        assert len(some) == blocks
        assert all(torch.equal(one, other) for one, other in zip(some, everything, strict=False))


@torch.no_grad()
@every_model
def test_padding_of_the_source_changes_nothing(name: str) -> None:
    model = MODELS[name]
    source = torch.tensor([[5, 6, 7, 3]])
    expected = model(source, None, TOKENS[:1])[-1]
    padded = torch.cat((source, torch.zeros(1, 3, dtype=torch.int64)), dim=1)
    assert greatest_difference(model(padded, padded == 0, TOKENS[:1])[-1], expected) < TOLERANCE
    assert greatest_difference(model(padded, None, TOKENS[:1])[-1], expected) > CLEARLY  # control: no mask


def test_a_source_bias_is_minus_infinity_at_padding_and_nothing_without() -> None:
    bias = source_bias_of(torch.tensor([[False, True], [False, False]]))
    assert bias is not None
    assert bias.tolist() == [[[[0, -float("inf")]]], [[[0, 0]]]]
    assert bias.dtype == torch.float32
    assert source_bias_of(None) is None


# --- The builder


def count(model: Seq2Seq) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_tied_tables_are_one_parameter() -> None:
    tied = small_model()
    assert tied.encoder.embedding is tied.decoder.embedding
    assert tied.decoder.exit_heads.weight(1) is tied.decoder.embedding.table.weight
    table = VOCAB_SIZE * DIM
    assert count(small_model(tied_embeddings=False)) == count(tied) + 2 * table
    assert count(small_model(head="untied")) == count(tied) + BLOCKS * table


def test_a_model_has_the_predictors_of_its_configuration() -> None:
    model = small_model(predictors=PREDICTORS)
    kinds = [(name, type(model.predictor(name)), len(linear_units(model, name).weight)) for name in model.predictors]
    assert kinds == [
        ("halting", HaltingUnits, BLOCKS - 1),
        ("shared", HaltingUnits, 1),
        ("multinomial", TokenDepth, BLOCKS),
        ("sentence", SentenceDepth, BLOCKS),
    ]
    rows = BLOCKS - 1 + 1 + BLOCKS + BLOCKS
    assert count(model) == count(small_model(predictors=())) + rows * (DIM + 1)


def test_a_predictor_may_have_the_name_of_a_modules_method() -> None:
    """Else a long training would end in an error when its predictors are put into the model."""
    names = ["train", "keys", "to"]
    model = small_model(predictors=[PredictorConfig(name=name) for name in names])
    model.predictors["half"] = model.predictor("train")
    assert list(model.predictors) == [*names, "half"]
    assert model.train().predictor("keys").training
    assert model.float().predictor("to").weight.dtype == torch.float32
    assert {"predictors.to.weight", "predictors.keys.bias"} <= {name for name, _ in model.named_parameters()}


# --- Scaled gradients


def test_a_scaled_gradient_leaves_the_value_alone() -> None:
    x = ramp(50, start=7).float().requires_grad_()
    y = scale_gradient(x, 0.3)
    assert torch.equal(y, x)
    (y**3).sum().backward()
    assert x.grad is not None
    assert torch.allclose(x.grad, 0.3 * 3 * x.detach() ** 2)
    assert torch.equal(0.3 * x + 0.7 * x.detach(), x) is False  # control: the printed formula rounds


@every_model
def test_scaling_what_comes_back_from_above_changes_no_state(name: str) -> None:
    decoder = MODELS[name].decoder
    scaled = decoder(TOKENS, MEMORY, PADDING, up_scales=[0.5, 2.0, 3.0])
    for state, expected in zip(scaled, decoder(TOKENS, MEMORY, PADDING), strict=True):
        assert torch.equal(state, expected)


def first_block_gradient(decoder: Decoder, exit_block: int, up_scales: list[float] | None) -> Tensor:
    """By the feed-forward weights of block 1, of something made of one exit."""
    weight = decoder.get_parameter("blocks.0.feed_forward.contract.weight")
    state = decoder(TOKENS, MEMORY, PADDING, up_scales=up_scales)[exit_block - 1]
    return torch.autograd.grad((state * ramp(*state.shape, start=5)).sum(), weight)[0]


@every_model
@pytest.mark.parametrize(("exit_block", "factor"), [(1, 1.0), (2, 0.5), (3, 0.5 * 2.0), (4, 0.5 * 2.0 * 3.0)])
def test_a_gradient_is_scaled_at_each_block_that_it_comes_down_through(
    name: str, exit_block: int, factor: float
) -> None:
    """An exit's own gradient is not; that of block n passes the factors of all blocks below it."""
    decoder = MODELS[name].decoder
    plain = first_block_gradient(decoder, exit_block, None)
    assert float(plain.abs().max()) > CLEARLY
    scaled = first_block_gradient(decoder, exit_block, [0.5, 2.0, 3.0])
    assert greatest_difference(scaled, factor * plain) < TOLERANCE
