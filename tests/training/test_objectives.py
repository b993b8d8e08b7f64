"""Objectives: what each phase minimises, and what it leaves alone."""

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import edgeseq.training.objectives
from edgeseq.data.batching import Batch
from edgeseq.models import Seq2Seq
from edgeseq.modules.exits import log_stop_distribution
from edgeseq.training.losses import exit_weights
from edgeseq.training.objectives import AlignedExits, HaltingOnFrozenTrunk, JointHalting, Objective
from edgeseq.training.oracles import oracle_depths, worth_stopping
from edgeseq_runtime.tokenizer import BOS_ID, EOS_ID, PAD_ID
from small_models import DECODER_KERNEL_SIZES, balance_halting_units, small_model

BLOCKS = len(DECODER_KERNEL_SIZES)
SMOOTHING = 0.1
WEIGHTS = exit_weights("n", BLOCKS)
TOLERANCE = 1e-6

# The second pair is shorter on both sides.
LABELS = torch.tensor([[5, 9, 11, EOS_ID], [13, EOS_ID, PAD_ID, PAD_ID]])
SOURCE = torch.tensor([[4, 8, 15, EOS_ID], [16, EOS_ID, PAD_ID, PAD_ID]])
BATCH = Batch(
    source=SOURCE,
    padding_mask=SOURCE == PAD_ID,
    tokens=torch.cat((torch.full((2, 1), BOS_ID), LABELS[:, :-1]), dim=1),
    labels=LABELS,
)
VALID = LABELS != PAD_ID


def make_model(dropout: float = 0.0) -> Seq2Seq:
    return balance_halting_units(small_model(dropout=dropout))


def logits_of(model: Seq2Seq) -> list[Tensor]:
    """Of every exit, at real tokens, each (6, V)."""
    states = model(BATCH.source, BATCH.padding_mask, BATCH.tokens)
    return [model.decoder.exit_heads(state[VALID], block) for block, state in enumerate(states, start=1)]


def gradients(objective: Objective, model: Seq2Seq) -> dict[str, Tensor]:
    """By name; a parameter that the loss does not reach has none."""
    model.zero_grad()
    objective.loss(model, BATCH)[0].backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def names_of(model: Seq2Seq, parameters: Iterator[nn.Parameter]) -> set[str]:
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {names[parameter] for parameter in parameters}


UNITS = {"decoder.halting_units.weight", "decoder.halting_units.bias"}


# --- Aligned exits


@torch.no_grad()
def test_the_aligned_loss_is_the_weighted_cross_entropy_of_every_exit_over_real_tokens() -> None:
    model = make_model()
    loss, logged = AlignedExits(WEIGHTS, False, SMOOTHING).loss(model, BATCH)
    losses = [F.cross_entropy(logits, LABELS[VALID], label_smoothing=SMOOTHING) for logits in logits_of(model)]
    assert float(loss) == pytest.approx(sum(w * float(one) for w, one in zip(WEIGHTS, losses, strict=True)), abs=1e-6)
    assert float(loss) != pytest.approx(sum(map(float, losses)) / BLOCKS, abs=1e-3)  # control: other weights
    assert float(logged["nll"]) == pytest.approx(float(F.cross_entropy(logits_of(model)[-1], LABELS[VALID])), abs=1e-6)


@torch.no_grad()
def test_what_stands_at_padding_does_not_count() -> None:
    model, objective = make_model(), AlignedExits(WEIGHTS, False, SMOOTHING)
    tokens, source = BATCH.tokens.clone(), BATCH.source.clone()
    tokens[1, 2:] = 17  # behind the sentence
    source[1, 2:] = 18  # masked
    changed = Batch(source, BATCH.padding_mask, tokens, BATCH.labels)
    expected = float(objective.loss(model, BATCH)[0])
    assert float(objective.loss(model, changed)[0]) == pytest.approx(expected, abs=TOLERANCE)
    unmasked = Batch(source, None, tokens, BATCH.labels)  # control
    assert float(objective.loss(model, unmasked)[0]) != pytest.approx(expected, abs=1e-4)


def test_the_mean_over_sampled_exits_is_the_gradient_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model()
    expected = gradients(AlignedExits(WEIGHTS, False, SMOOTHING), model)
    sampled = []
    for drawn in range(1, BLOCKS):
        chosen = {drawn: WEIGHTS[drawn - 1] * (BLOCKS - 1), BLOCKS: WEIGHTS[-1]}
        monkeypatch.setattr(edgeseq.training.objectives, "sample_exits", lambda weights, generator, c=chosen: c)
        sampled.append(gradients(AlignedExits(WEIGHTS, True, SMOOTHING), model))
    for name in expected.keys() - UNITS:
        # The norm of an exit that was not drawn has no gradient.
        mean = sum((one[name] for one in sampled if name in one), torch.zeros(())) / len(sampled)
        assert torch.allclose(mean, expected[name], atol=1e-6), name
    name = "decoder.blocks.0.feed_forward.contract.weight"  # control: a single draw is another gradient
    assert not torch.allclose(sampled[0][name], expected[name], atol=1e-3)


def test_aligned_training_leaves_the_halting_units_alone() -> None:
    model, objective = make_model(), AlignedExits(WEIGHTS, False, SMOOTHING)
    everything = {name for name, _ in model.named_parameters()}
    assert names_of(model, objective.parameters(model)) == everything - UNITS
    assert gradients(objective, model).keys() == everything - UNITS


def test_aligned_training_needs_no_halting_units() -> None:
    model = small_model(halting="none")
    assert names_of(model, AlignedExits(WEIGHTS, False, 0.0).parameters(model)) == {
        name for name, _ in model.named_parameters()
    }


# --- Halting on a frozen trunk


def scores_by_hand(model: Seq2Seq, oracle: str) -> Tensor:
    """(2, 4, N): what each block makes of each token, one token at a time."""
    states = model(BATCH.source, BATCH.padding_mask, BATCH.tokens)
    scores = torch.zeros(2, 4, BLOCKS, dtype=torch.float64)
    for row, column in VALID.nonzero().tolist():
        label = int(LABELS[row, column])
        for block, state in enumerate(states, start=1):
            logits = model.decoder.exit_heads(state[row, column], block)
            if oracle == "likelihood":
                scores[row, column, block - 1] = torch.log_softmax(logits, dim=-1)[label]
            elif oracle == "correctness":
                scores[row, column, block - 1] = int(logits.argmax()) == label
            else:
                last = model.decoder.exit_heads(states[-1][row, column], BLOCKS)
                scores[row, column, block - 1] = int(logits.argmax()) == int(last.argmax())
    return scores


@torch.no_grad()
@pytest.mark.parametrize("oracle", ["likelihood", "correctness", "agreement"])
@pytest.mark.parametrize(("sigma", "penalty"), [(0.0, 0.0), (2.0, 0.05)])
def test_the_gain_loss_asks_every_unit_by_itself(oracle: str, sigma: float, penalty: float) -> None:
    model = make_model()
    loss, logged = HaltingOnFrozenTrunk(oracle, "gain", sigma, penalty).loss(model, BATCH)
    stop = worth_stopping(scores_by_hand(model, oracle), VALID, sigma, penalty)[VALID]
    states = model(BATCH.source, BATCH.padding_mask, BATCH.tokens)
    units = model.decoder.halting_units
    assert units is not None
    chances = torch.sigmoid(units([state[VALID] for state in states]))
    expected = float(-torch.where(stop, chances, 1 - chances).log().mean())
    assert float(loss) == pytest.approx(expected, abs=1e-5)
    assert float(logged["exit_loss"]) == pytest.approx(expected, abs=1e-5)
    # Control: the other target is another loss.
    other, _ = HaltingOnFrozenTrunk(oracle, "depth", sigma, penalty).loss(model, BATCH)
    assert float(other) != pytest.approx(expected, abs=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("oracle", ["likelihood", "correctness", "agreement"])
@pytest.mark.parametrize(("sigma", "penalty"), [(0.0, 0.0), (0.0, 0.3), (2.0, 0.05)])
def test_the_exit_loss_is_that_of_the_oracles_depths(oracle: str, sigma: float, penalty: float) -> None:
    model = make_model()
    loss, logged = HaltingOnFrozenTrunk(oracle, "depth", sigma, penalty).loss(model, BATCH)
    depths = oracle_depths(scores_by_hand(model, oracle), VALID, sigma, penalty)[VALID]
    states = model(BATCH.source, BATCH.padding_mask, BATCH.tokens)
    units = model.decoder.halting_units
    assert units is not None
    stop = log_stop_distribution(units([state[VALID] for state in states])).exp()
    expected = -sum(float(stop[token, depth - 1].log()) for token, depth in enumerate(depths)) / len(depths)
    assert float(loss) == pytest.approx(expected, abs=1e-5)
    assert float(logged["exit_loss"]) == pytest.approx(expected, abs=1e-5)
    assert float(logged["oracle_depth"]) == pytest.approx(float(depths.double().mean()))
    mean_depth = float((stop * torch.arange(1, BLOCKS + 1)).sum(dim=-1).mean())
    assert float(logged["expected_depth"]) == pytest.approx(mean_depth, abs=1e-5)


def test_the_oracles_ask_for_different_depths() -> None:
    """Control: without this the test above could not tell them apart."""
    model = make_model()
    with torch.no_grad():
        likelihood, correctness, agreement = (
            oracle_depths(scores_by_hand(model, oracle), VALID, 0.0, 0.0)[VALID]
            for oracle in ("likelihood", "correctness", "agreement")
        )
    assert not torch.equal(likelihood, correctness)
    assert not torch.equal(likelihood, agreement)
    assert not torch.equal(correctness, agreement)
    assert len(likelihood.unique()) > 1
    assert len(agreement.unique()) > 1


def test_on_a_frozen_trunk_only_the_units_learn() -> None:
    model, objective = make_model(), HaltingOnFrozenTrunk("likelihood", "depth", 0.0, 0.05)
    assert names_of(model, objective.parameters(model)) == UNITS
    assert gradients(objective, model).keys() == UNITS


def halting_losses(objective: Objective, model: Seq2Seq, **seeds: int) -> list[float]:
    losses = []
    for seed in seeds.values():
        torch.manual_seed(seed)
        losses.append(float(objective.loss(model, BATCH)[1]["exit_loss"]))
    return losses


def test_a_frozen_trunk_runs_without_dropout_and_keeps_its_mode() -> None:
    model = make_model(dropout=0.5).train()
    frozen = HaltingOnFrozenTrunk("likelihood", "depth", 0.0, 0.05)
    first, second = halting_losses(frozen, model, first=0, second=1)
    assert first == second
    assert model.training
    frozen.loss(model.eval(), BATCH)
    assert not model.training
    joint = JointHalting(AlignedExits(WEIGHTS, False, 0.0), frozen, 0.1)
    first, second = halting_losses(joint, model.train(), first=0, second=1)
    assert first != second  # control: joint training has dropout


# --- Joint training


@torch.no_grad()
def test_joint_training_adds_the_exit_loss_times_alpha() -> None:
    model = make_model()
    aligned, halting = AlignedExits(WEIGHTS, False, SMOOTHING), HaltingOnFrozenTrunk("likelihood", "depth", 0.0, 0.05)
    loss, logged = JointHalting(aligned, halting, 0.3).loss(model, BATCH)
    expected = float(aligned.loss(model, BATCH)[0]) + 0.3 * float(halting.loss(model, BATCH)[0])
    assert float(loss) == pytest.approx(expected, abs=1e-5)
    assert logged.keys() == {"nll", "exit_loss", "oracle_depth", "expected_depth"}


def test_in_joint_training_the_exit_loss_reaches_the_trunk() -> None:
    model = make_model()
    aligned, halting = AlignedExits(WEIGHTS, False, SMOOTHING), HaltingOnFrozenTrunk("likelihood", "depth", 0.0, 0.05)
    joint = JointHalting(aligned, halting, 0.3)
    assert names_of(model, joint.parameters(model)) == {name for name, _ in model.named_parameters()}
    together = gradients(joint, model)
    alone = gradients(aligned, model)
    trunk = "decoder.blocks.0.feed_forward.contract.weight"
    assert not torch.allclose(together[trunk], alone[trunk], atol=1e-6)
