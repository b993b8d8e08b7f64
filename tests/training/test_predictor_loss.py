"""What a depth predictor learns of what the exits said, for every kind of predictor, oracle and target."""

import math
from typing import Literal

import pytest
import torch
from torch import Tensor

from edgeseq.models import Seq2Seq
from edgeseq.modules import HaltingUnits
from edgeseq.modules.predictors import mean_memory
from edgeseq.training.predictor_loss import ExitObservations, Oracle, PredictorLoss, observe_exits
from edgeseq_runtime.tokenizer import BOS_ID, EOS_ID, PAD_ID
from small_models import DECODER_KERNEL_SIZES, PREDICTORS, balance_predictors, small_model

BLOCKS = len(DECODER_KERNEL_SIZES)
ORACLES: tuple[Oracle, ...] = ("likelihood", "correctness", "agreement")
NAMES = [config.name for config in PREDICTORS]
PRICES = [1.0, 2.0, 3.0, 4.0]
DEAR = [1.0, 1.2, 3.5, 3.6]

# The second pair is shorter on both sides.
LABELS = torch.tensor([[5, 9, 11, EOS_ID], [13, EOS_ID, PAD_ID, PAD_ID]])
SOURCE = torch.tensor([[4, 8, 15, EOS_ID], [16, EOS_ID, PAD_ID, PAD_ID]])
TOKENS = torch.cat((torch.full((2, 1), BOS_ID), LABELS[:, :-1]), dim=1)
VALID = LABELS != PAD_ID


def make_model() -> Seq2Seq:
    return balance_predictors(small_model(predictors=PREDICTORS))


def observe(model: Seq2Seq) -> ExitObservations:
    memory = model.encoder(SOURCE, SOURCE == PAD_ID)
    states = model.decoder(TOKENS, memory, SOURCE == PAD_ID)
    return observe_exits(model, states, mean_memory(memory, SOURCE == PAD_ID), LABELS)


MODEL = make_model()
with torch.no_grad():
    OBSERVED = observe(MODEL)

Scores = dict[tuple[int, int], list[float]]
"""Sentence and position to what each block is worth."""


@torch.no_grad()
def scores_by_hand(oracle: Oracle) -> Scores:
    """What each block makes of each token, one token at a time."""
    states = MODEL(SOURCE, SOURCE == PAD_ID, TOKENS)
    scores: Scores = {}
    for row, column in VALID.nonzero().tolist():
        label = int(LABELS[row, column])
        logits = [MODEL.decoder.exit_heads(state[row, column], n) for n, state in enumerate(states, start=1)]
        choices = [int(one.argmax()) for one in logits]
        if oracle == "likelihood":
            scores[row, column] = [float(torch.log_softmax(one, dim=-1)[label]) for one in logits]
        else:
            wanted = label if oracle == "correctness" else choices[-1]
            scores[row, column] = [float(choice == wanted) for choice in choices]
    return scores


def smooth(scores: Scores, sigma: float) -> Scores:
    if not sigma:
        return scores
    return {
        (row, t): [
            sum(math.exp(-((t - other) ** 2) / sigma) * s[n] for (r, other), s in scores.items() if r == row)
            for n in range(BLOCKS)
        ]
        for row, t in scores
    }


def add_up(scores: Scores) -> Scores:
    """Of sentences, under their first position."""
    return {
        (row, 0): [sum(s[n] for (r, _), s in scores.items() if r == row) for n in range(BLOCKS)]
        for row in {row for row, _ in scores}
    }


def decisions(name: str, oracle: Oracle, sigma: float) -> Scores:
    """What the oracle weighs for each decision of a predictor."""
    scores = scores_by_hand(oracle)
    return add_up(scores) if name == "sentence" else smooth(scores, sigma)


def net_of(scores: list[float], penalty: float, prices: list[float]) -> list[float]:
    return [score - penalty * price for score, price in zip(scores, prices, strict=True)]


def log_q_of(name: str, row: int, column: int) -> Tensor:
    log_q = MODEL.predictor(name).log_distribution(OBSERVED.exit_states, OBSERVED.mean_memory)
    return log_q[row, column]


@torch.no_grad()
def test_observations_are_what_the_exits_say() -> None:
    for oracle in ORACLES:
        table = OBSERVED.scores(oracle)
        for (row, column), scores in scores_by_hand(oracle).items():
            assert table[row, column].tolist() == pytest.approx(scores, abs=1e-6)


def test_observations_have_no_gradient_of_the_heads() -> None:
    observed = observe(MODEL)
    assert not observed.likelihood.requires_grad
    assert observed.exit_states[0].requires_grad  # the predictor's loss reaches the trunk, where it is trained


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("oracle", ORACLES)
@pytest.mark.parametrize(
    ("sigma", "penalty", "prices"), [(0.0, 0.0, PRICES), (0.0, 0.3, PRICES), (2.0, 0.05, PRICES), (0.0, 0.3, DEAR)]
)
def test_the_loss_is_that_of_the_oracles_depths(
    name: str, oracle: Oracle, sigma: float, penalty: float, prices: list[float]
) -> None:
    loss, logged = PredictorLoss(oracle, "depth", sigma, penalty, prices)(MODEL.predictor(name), OBSERVED)
    total = depths = expected_depths = 0.0
    weighed = decisions(name, oracle, sigma)
    for (row, column), scores in weighed.items():
        net = net_of(scores, penalty, prices)
        depth = net.index(max(net)) + 1  # the lowest of equals
        q = log_q_of(name, row, column).exp().tolist()
        total -= math.log(q[depth - 1])
        depths += depth
        expected_depths += sum(n * share for n, share in enumerate(q, start=1))
    assert float(loss) == pytest.approx(total / len(weighed), abs=1e-5)
    assert float(logged["exit_loss"]) == pytest.approx(total / len(weighed), abs=1e-5)
    assert float(logged["oracle_depth"]) == pytest.approx(depths / len(weighed))
    assert float(logged["expected_depth"]) == pytest.approx(expected_depths / len(weighed), abs=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", ["halting", "shared"])
@pytest.mark.parametrize("oracle", ORACLES)
@pytest.mark.parametrize(("sigma", "penalty", "prices"), [(0.0, 0.0, PRICES), (2.0, 0.05, PRICES), (0.0, 0.3, DEAR)])
def test_the_gain_loss_asks_every_unit_by_itself(
    name: str, oracle: Oracle, sigma: float, penalty: float, prices: list[float]
) -> None:
    units = MODEL.predictor(name)
    assert isinstance(units, HaltingUnits)
    loss, _ = PredictorLoss(oracle, "gain", sigma, penalty, prices)(units, OBSERVED)
    total, weighed = 0.0, decisions(name, oracle, sigma)
    for (row, column), scores in weighed.items():
        net = net_of(scores, penalty, prices)
        chances = torch.sigmoid(units([state[row, column] for state in OBSERVED.exit_states])).tolist()
        for n, chance in enumerate(chances):
            total -= math.log(chance if net[n] >= max(net[n + 1 :]) else 1 - chance)
    expected = total / len(weighed) / (BLOCKS - 1)
    assert float(loss) == pytest.approx(expected, abs=1e-5)
    # Control: the other target is another loss.
    other, _ = PredictorLoss(oracle, "depth", sigma, penalty, prices)(units, OBSERVED)
    assert float(other) != pytest.approx(expected, abs=1e-4)


def depths_of(oracle: Oracle, sigma: float, penalty: float, prices: list[float]) -> list[int]:
    nets = [net_of(scores, penalty, prices) for scores in decisions("halting", oracle, sigma).values()]
    return [net.index(max(net)) + 1 for net in nets]


def test_the_oracles_and_their_settings_ask_for_different_depths() -> None:
    """Control: without this the tests above could not tell them apart."""
    plain = {oracle: depths_of(oracle, 0.0, 0.0, PRICES) for oracle in ORACLES}
    assert len({tuple(depths) for depths in plain.values()}) == len(ORACLES)
    assert len(set(plain["likelihood"])) > 1
    settings = [(0.0, 0.0, PRICES), (0.0, 0.3, PRICES), (2.0, 0.05, PRICES), (0.0, 0.3, DEAR)]
    assert len({tuple(depths_of("likelihood", *each)) for each in settings}) > 2


def test_a_loss_teaches_its_own_predictor_alone() -> None:
    model = make_model()
    with torch.no_grad():
        observed = observe(model)
    PredictorLoss("likelihood", "depth", 0.0, 0.05, PRICES)(model.predictor("multinomial"), observed)[0].backward()
    reached = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert reached == {"predictors.multinomial.weight", "predictors.multinomial.bias"}


@torch.no_grad()
@pytest.mark.parametrize("target", ["depth", "gain"])
def test_what_stands_at_padding_does_not_count(target: Literal["depth", "gain"]) -> None:
    for name in NAMES if target == "depth" else ("halting", "shared"):
        loss_of = PredictorLoss("likelihood", target, 2.0, 0.05, PRICES)
        states = [state.clone() for state in OBSERVED.exit_states]
        likelihood, choices = OBSERVED.likelihood.clone(), OBSERVED.choices.clone()
        for table in (*states, choices):
            table[1, 2:] = 5
        likelihood[1, 2:] = torch.tensor([0.0, 9, 0, 0], dtype=likelihood.dtype)
        changed = ExitObservations(states, OBSERVED.mean_memory, likelihood, choices, LABELS)
        expected = float(loss_of(MODEL.predictor(name), OBSERVED)[0])
        assert float(loss_of(MODEL.predictor(name), changed)[0]) == pytest.approx(expected, abs=1e-6)
        counted = ExitObservations(states, OBSERVED.mean_memory, likelihood, choices, LABELS.clamp_min(5))  # control
        assert float(loss_of(MODEL.predictor(name), counted)[0]) != pytest.approx(expected, abs=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_sentences_of_one_token_are_learnt_too(name: str) -> None:
    """There the predictor of sentences and that of tokens have as many decisions."""
    first = ExitObservations(
        [state[:, :1] for state in OBSERVED.exit_states],
        OBSERVED.mean_memory,
        OBSERVED.likelihood[:, :1],
        OBSERVED.choices[:, :1],
        LABELS[:, :1],
    )
    loss, _ = PredictorLoss("likelihood", "depth", 2.0, 0.1, PRICES)(MODEL.predictor(name), first)
    expected = 0.0
    for row in (0, 1):
        net = net_of(scores_by_hand("likelihood")[row, 0], 0.1, PRICES)
        expected -= float(log_q_of(name, row, 0)[net.index(max(net))]) / 2
    assert float(loss) == pytest.approx(expected, abs=1e-5)
