"""The reference decoder: where it stops, what it says, and that batches change nothing."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from edgeseq.models import Seq2Seq
from edgeseq.models.reference import (
    StopRule,
    pad_sources,
    reference_decode,
    stop_at,
    stop_by_choice,
    stop_by_confidence,
    stop_by_halting,
)
from edgeseq.modules import HaltingUnits
from edgeseq.modules.predictors import mean_memory
from edgeseq_runtime.tokenizer import BOS_ID, EOS_ID, PAD_ID
from small_models import DECODER_KERNEL_SIZES, PREDICTORS, VOCAB_SIZE, balance_predictors, linear_units, small_model

BLOCKS = len(DECODER_KERNEL_SIZES)


def make_talkative_model() -> Seq2Seq:
    """A model that listens to the source and to what came before, and seldom says EOS."""
    model = small_model(predictors=PREDICTORS, tied_embeddings=False)
    with torch.no_grad():
        model.decoder.exit_heads.weight(1)[EOS_ID] *= 0.6
        for name, parameter in model.decoder.blocks.named_parameters():
            if "out_projection.weight" in name or "output_projection.weight" in name:
                parameter.mul_(4)
    return balance_predictors(model)


MODEL = make_talkative_model()
SOURCES = [[5, 6, 7, 3], [9, 3], [11, 12, 13, 14, 15, 16, 3], [4, 4, 3], [20, 8, 3], [17, 5, 22, 3], [23, 10, 3]]
LIMITS = [12, 6, 30, 1, 12, 30, 30]


# --- A model that says what it is told


class ScriptedDecoder(nn.Module):
    """Exit states are the logits themselves: block n of row r says SCRIPT[r][n][t] at step t."""

    def __init__(self, script: Sequence[Sequence[Sequence[int]]]) -> None:
        super().__init__()
        self.script = script
        self.blocks = [None] * len(script[0])
        self.exit_heads = ScriptedHeads()

    def forward(
        self, tokens: Tensor, memory: Tensor, padding_mask: Tensor | None, depths: Tensor, blocks: int
    ) -> list[Tensor]:
        assert tokens.shape == depths.shape
        step = tokens.shape[1] - 1
        states = torch.zeros(blocks, len(tokens), tokens.shape[1], VOCAB_SIZE)
        for row, sentence in enumerate(memory[:, 0, 0].long().tolist()):
            for block in range(blocks):
                said = self.script[sentence][block]
                states[block, row, -1, said[min(step, len(said) - 1)]] = 1
                states[block, row, -1, PAD_ID] = states[block, row, -1, BOS_ID] = 9  # forbidden, however likely
        return list(states)


class ScriptedHeads(nn.Module):
    def forward(self, exit_state: Tensor, block: int) -> Tensor:
        return exit_state

    def weight(self, block: int) -> Tensor:
        return torch.eye(VOCAB_SIZE)


class ScriptedModel(nn.Module):
    def __init__(self, *script: Sequence[Sequence[int]]) -> None:
        super().__init__()
        self.anything = nn.Parameter(torch.zeros(1))
        self.decoder = ScriptedDecoder(script)

    def encoder(self, source: Tensor, padding_mask: Tensor | None) -> Tensor:
        return torch.arange(len(source)).view(-1, 1, 1).expand(*source.shape, 2).float()  # says which sentence it is


def decode_scripted(model: ScriptedModel, rule: StopRule, limits: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    return reference_decode(model, [[4, EOS_ID]] * len(limits), rule, limits)  # type: ignore[arg-type]


def test_a_row_ends_with_its_first_eos_while_others_go_on() -> None:
    model = ScriptedModel([[5, EOS_ID, 6]], [[7, 8, 9, EOS_ID]], [[EOS_ID]])
    assert decode_scripted(model, stop_at(1), [9, 9, 9]) == [
        ([5, EOS_ID], [1, 1]),
        ([7, 8, 9, EOS_ID], [1, 1, 1, 1]),
        ([EOS_ID], [1]),
    ]


def test_a_row_ends_at_its_own_limit_without_an_eos() -> None:
    model = ScriptedModel([[5]], [[6]], [[7, 7, EOS_ID]])
    assert decode_scripted(model, stop_at(1), [1, 4, 3]) == [
        ([5], [1]),
        ([6] * 4, [1] * 4),
        ([7, 7, EOS_ID], [1] * 3),  # reached with the last token it may have
    ]


def test_sentences_that_have_ended_cost_nothing() -> None:
    rows = []

    def choose(states: list[Tensor], mean: Tensor) -> Tensor:
        rows.append(len(mean))
        return torch.ones(len(mean), dtype=torch.long)

    decode_scripted(ScriptedModel([[EOS_ID]], [[5, 6, EOS_ID]], [[5, EOS_ID]]), StopRule(1, choose), [9, 9, 9])
    assert rows == [3, 2, 1]


def test_padding_and_bos_are_never_said() -> None:
    """Control in the script: both have the greatest logit of all in every step."""
    ((tokens, _),) = decode_scripted(ScriptedModel([[5, 6, EOS_ID]]), stop_at(1), [9])
    assert tokens == [5, 6, EOS_ID]


def test_each_token_is_said_by_the_block_at_which_it_stopped() -> None:
    model = ScriptedModel([[5], [6], [7]], [[8], [9], [10]])
    depths = iter([[1, 3], [2, 2], [3, 1]])
    rule = StopRule(3, lambda states, mean: torch.tensor(next(depths)))
    assert decode_scripted(model, rule, [3, 3]) == [([5, 6, 7], [1, 2, 3]), ([10, 9, 8], [3, 2, 1])]


# --- Stop rules


def test_a_fixed_depth_runs_no_block_above_it() -> None:
    rule = stop_at(2)
    assert rule.blocks == 2
    assert rule.choose([torch.zeros(3, 8)] * 2, torch.zeros(3, 8)).tolist() == [2, 2, 2]


def first_above(signals: Sequence[float], thresholds: Sequence[float]) -> int:
    for number, (signal, threshold) in enumerate(zip(signals, thresholds, strict=True), start=1):
        if signal > threshold:
            return number
    return len(signals) + 1


@torch.no_grad()
def states_and_means() -> tuple[list[Tensor], Tensor]:
    """Exit states of all blocks, each (160, D), of tokens that did not stop; and their sentences' means, (160, D)."""
    tokens = 4 + torch.arange(160).square().div(7, rounding_mode="floor").remainder(20).view(20, 8)
    memory = MODEL.encoder(tokens, None)
    states = MODEL.decoder(tokens.flip(1), memory, None)
    return [state.flatten(0, 1) for state in states], mean_memory(memory, None).repeat_interleave(8, dim=0)


STATES, MEANS = states_and_means()


def halting_signals() -> list[list[float]]:
    units = MODEL.predictor("halting")
    assert isinstance(units, HaltingUnits)
    return torch.sigmoid(units(STATES)).tolist()


def confidence_signals() -> list[list[float]]:
    heads = MODEL.decoder.exit_heads
    below = [torch.softmax(heads(state, n), dim=-1).amax(-1) for n, state in enumerate(STATES[:-1], start=1)]
    return torch.stack(below, dim=-1).tolist()


@torch.no_grad()
@pytest.mark.parametrize("kind", ["halting", "confidence"])
@pytest.mark.parametrize(
    "thresholds", [[0.0] * 3, [0.2] * 3, [0.3] * 3, [1.0] * 3, [0.35, 0.2, 0.25], [0.35, 1, 0.25]], ids=str
)
def test_a_token_stops_at_the_first_signal_above_its_threshold(kind: str, thresholds: list[float]) -> None:
    if kind == "halting":
        signals, rule = halting_signals(), stop_by_halting(MODEL, "halting", thresholds)
    else:
        signals, rule = confidence_signals(), stop_by_confidence(MODEL, thresholds)
    assert rule.blocks == BLOCKS
    depths = rule.choose(STATES, MEANS).tolist()
    assert depths == [first_above(row, thresholds) for row in signals]
    extreme = {0.0: {1}, 1.0: {BLOCKS}}.get(thresholds[0]) if len(set(thresholds)) == 1 else None
    assert set(depths) == extreme if extreme else len(set(depths)) > 1
    # Control: counting the signals below their thresholds is something else, unless all are extreme.
    counted = [1 + sum(s <= t for s, t in zip(row, thresholds, strict=True)) for row in signals]
    assert extreme or thresholds == [0.35, 1, 0.25] or depths != counted


def test_a_unit_exactly_at_the_threshold_goes_on() -> None:
    model = small_model()
    units = linear_units(model, "halting")
    torch.nn.init.zeros_(units.weight)
    torch.nn.init.zeros_(units.bias)
    states = [torch.ones(1, 8, dtype=torch.float64)] * BLOCKS
    mean = torch.zeros(1, 8, dtype=torch.float64)
    assert stop_by_halting(model, "halting", [0.5] * 3).choose(states, mean).tolist() == [BLOCKS]
    assert stop_by_halting(model, "halting", [0.5 - 1e-9] * 3).choose(states, mean).tolist() == [1]


def choose_by_loops(q: list[float], quantile: float | None) -> int:
    if quantile is None:
        return q.index(max(q)) + 1
    for depth in range(1, BLOCKS):
        if sum(q[:depth]) >= quantile and quantile < 1:
            return depth
    return BLOCKS


@torch.no_grad()
@pytest.mark.parametrize("name", ["multinomial", "sentence"])
@pytest.mark.parametrize("quantile", [None, 0.0, 0.3, 0.7, 1.0])
def test_a_depth_is_chosen_from_the_distribution(name: str, quantile: float | None) -> None:
    predictor = linear_units(MODEL, name)
    read = STATES[0] if name == "multinomial" else MEANS
    q = torch.softmax(read @ predictor.weight.T + predictor.bias, dim=-1).tolist()
    rule = stop_by_choice(MODEL, name, quantile)
    assert rule.blocks == BLOCKS
    depths = rule.choose(STATES, MEANS).tolist()
    assert depths == [choose_by_loops(row, quantile) for row in q]
    assert set(depths) == {0.0: {1}, 1.0: {BLOCKS}}.get(-1.0 if quantile is None else quantile, {1, 2, 3, 4})
    # Control: the two read different things.
    other = stop_by_choice(MODEL, "sentence" if name == "multinomial" else "multinomial", quantile)
    assert quantile in (0.0, 1.0) or other.choose(STATES, MEANS).tolist() != depths


def test_thresholds_are_for_halting_units() -> None:
    with pytest.raises(TypeError, match="predictor 'multinomial' is TokenDepth, which has no thresholds"):
        stop_by_halting(MODEL, "multinomial", [0.5] * 3)


# --- A real model

RULES = {
    "1": stop_at(1),
    "full": stop_at(BLOCKS),
    "halting": stop_by_halting(MODEL, "halting", [0.5] * 3),
    "thresholds": stop_by_halting(MODEL, "halting", [0.45, 0.6, 0.5]),
    "shared": stop_by_halting(MODEL, "shared", [0.5] * 3),
    "confidence": stop_by_confidence(MODEL, [0.4, 0.3, 0.3]),
    "multinomial": stop_by_choice(MODEL, "multinomial"),
    "quantile": stop_by_choice(MODEL, "multinomial", 0.7),
    "sentence": stop_by_choice(MODEL, "sentence"),
}
every_rule = pytest.mark.parametrize("name", RULES)


@every_rule
def test_batched_equals_single(name: str) -> None:
    rule = RULES[name]
    together = reference_decode(MODEL, SOURCES, rule, LIMITS)
    alone = [reference_decode(MODEL, [source], rule, [limit])[0] for source, limit in zip(SOURCES, LIMITS, strict=True)]
    assert together == alone
    backwards = reference_decode(MODEL, SOURCES[::-1], rule, LIMITS[::-1])
    assert backwards[::-1] == alone
    # Control: the sentences differ, so that a mix-up of rows would show.
    assert len({tuple(tokens) for tokens, _ in alone}) >= len(SOURCES) - 1


def count_disagreements(source: list[int], tokens: list[int], depths: list[int], rule: StopRule, seen: Tensor) -> int:
    """Decodes by force, with the depths `seen` (1, T) below; counts tokens and depths that come out otherwise."""
    states = MODEL.decoder(
        torch.tensor([[BOS_ID, *tokens[:-1]]]), MODEL.encoder(torch.tensor([source]), None), None, seen
    )
    mean = mean_memory(MODEL.encoder(torch.tensor([source]), None), None)
    disagreements = 0
    for position, (token, depth) in enumerate(zip(tokens, depths, strict=True)):
        newest = [state[:, position] for state in states[: rule.blocks]]
        logits = MODEL.decoder.exit_heads(newest[depth - 1], depth)
        logits[:, [PAD_ID, BOS_ID]] = -torch.inf
        disagreements += (int(logits.argmax()), int(rule.choose(newest, mean))) != (token, depth)
    return disagreements


@torch.no_grad()
@every_rule
def test_what_was_said_follows_from_one_forward_over_all_of_it(name: str) -> None:
    rule = RULES[name]
    otherwise = 0
    for source, (tokens, depths) in zip(SOURCES, reference_decode(MODEL, SOURCES, rule, LIMITS), strict=True):
        assert count_disagreements(source, tokens, depths, rule, torch.tensor([depths])) == 0
        full = torch.full((1, len(depths)), BLOCKS)
        otherwise += count_disagreements(source, tokens, depths, rule, full)
    # Control: where depths are mixed, pretending that no token stopped gives other tokens, or other depths.
    if name in {"1", "full", "halting", "thresholds", "multinomial"}:
        assert bool(otherwise) == (name not in {"1", "full"})


@pytest.mark.parametrize("name", [name for name in RULES if name not in {"1", "full"}])
def test_the_rules_use_several_depths_here(name: str) -> None:
    """Without this the tests above would not say much."""
    used = {depth for _, depths in reference_decode(MODEL, SOURCES, RULES[name], LIMITS) for depth in depths}
    assert len(used) >= (2 if name == "sentence" else 3)


def test_sources_are_padded_on_the_right_and_masked() -> None:
    source, mask = pad_sources([[5, 6, 3], [7, 3]], torch.device("cpu"))
    assert source.tolist() == [[5, 6, 3], [7, 3, PAD_ID]]
    assert mask is not None
    assert mask.tolist() == [[False, False, False], [False, False, True]]
    assert pad_sources([[5, 3], [7, 3]], torch.device("cpu"))[1] is None
