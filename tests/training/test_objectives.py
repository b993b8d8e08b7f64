"""Objectives: what each phase minimises, and what it leaves alone."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import edgeseq.training.objectives
from edgeseq.data.batching import Batch
from edgeseq.models import Seq2Seq
from edgeseq.modules.predictors import mean_memory
from edgeseq.training.losses import exit_weights, gradient_scales
from edgeseq.training.objectives import AlignedExits, DecoderObjective, JointObjective, MixedExits, Objective
from edgeseq.training.predictor_loss import PredictorLoss, observe_exits
from edgeseq_runtime.tokenizer import BOS_ID, EOS_ID, PAD_ID
from small_models import DECODER_KERNEL_SIZES, PREDICTORS, balance_predictors, small_model

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
    return balance_predictors(small_model(predictors=PREDICTORS, dropout=dropout))


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


OF_PREDICTORS = {f"predictors.{config.name}.{kind}" for config in PREDICTORS for kind in ("weight", "bias")}


# --- Aligned exits


@torch.no_grad()
def test_the_aligned_loss_is_the_weighted_cross_entropy_of_every_exit_over_real_tokens() -> None:
    model = make_model()
    loss, logged = AlignedExits(WEIGHTS, False, SMOOTHING).loss(model, BATCH)
    losses = [F.cross_entropy(logits, LABELS[VALID], label_smoothing=SMOOTHING) for logits in logits_of(model)]
    assert float(loss) == pytest.approx(sum(w * float(one) for w, one in zip(WEIGHTS, losses, strict=True)), abs=1e-6)
    assert float(loss) != pytest.approx(sum(map(float, losses)) / BLOCKS, abs=1e-3)  # control: other weights
    assert float(logged["nll"]) == pytest.approx(float(F.cross_entropy(logits_of(model)[-1], LABELS[VALID])), abs=1e-6)


def test_exits_without_weight_are_not_trained() -> None:
    model = make_model()
    found = gradients(AlignedExits([0.0] * (BLOCKS - 1) + [1.0], False, SMOOTHING), model)
    norms = [f"decoder.blocks.{block}.exit_norm.weight" for block in range(BLOCKS)]
    assert [name in found for name in norms] == [False] * (BLOCKS - 1) + [True]


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
    for name in expected.keys() - OF_PREDICTORS:
        # The norm of an exit that was not drawn has no gradient.
        mean = sum((one[name] for one in sampled if name in one), torch.zeros(())) / len(sampled)
        assert torch.allclose(mean, expected[name], atol=1e-6), name
    name = "decoder.blocks.0.feed_forward.contract.weight"  # control: a single draw is another gradient
    assert not torch.allclose(sampled[0][name], expected[name], atol=1e-3)


@pytest.mark.parametrize(
    "objective", [AlignedExits(WEIGHTS, False, SMOOTHING), MixedExits(8, SMOOTHING)], ids=["aligned", "mixed"]
)
def test_training_of_exits_leaves_predictors_alone(objective: Objective) -> None:
    model = make_model()
    torch.manual_seed(1)
    everything = {name for name, _ in model.named_parameters()}
    assert names_of(model, objective.parameters(model)) == everything - OF_PREDICTORS
    assert gradients(objective, model).keys() == everything - OF_PREDICTORS


def test_training_of_exits_needs_no_predictors() -> None:
    model = small_model(predictors=())
    assert names_of(model, AlignedExits(WEIGHTS, False, 0.0).parameters(model)) == {
        name for name, _ in model.named_parameters()
    }


# --- Gradient scaling


def test_gradient_scaling_balances_what_a_block_gets_from_its_exit_and_from_above() -> None:
    """With γ = 0.5 and N = 4, γ_n = 1.5, 1, 0.5, 1. From the last exit down, the output of block 1 gets this.

    1.5 L1 + (1 L2 + (0.5 L3 + (1 L4) / γ_4) / γ_3) / γ_2 = 1.5 L1 + L2 + L3 + 2 L4,
    each L weighted by its exit's weight.
    """
    name = "decoder.blocks.0.feed_forward.contract.weight"
    model = make_model()
    own = []
    for block in range(BLOCKS):
        only = [0.0] * BLOCKS
        only[block] = WEIGHTS[block]
        own.append(gradients(AlignedExits(only, False, SMOOTHING), model)[name])
    scaled = gradients(AlignedExits(WEIGHTS, False, SMOOTHING, gradient_scaling=0.5), model)[name]
    assert torch.allclose(scaled, 1.5 * own[0] + own[1] + own[2] + 2 * own[3], atol=1e-6)
    assert not torch.allclose(scaled, sum(own, torch.zeros(())), atol=1e-4)  # control: plain gradients


def test_gradient_scaling_leaves_the_last_exit_alone() -> None:
    """Above block N there is nothing to balance: its own gradient is that of plain training."""
    name = "decoder.blocks.3.feed_forward.contract.weight"
    model = make_model()
    scaled, plain = (
        gradients(AlignedExits(WEIGHTS, False, SMOOTHING, gradient_scaling=gamma), model) for gamma in (0.5, 0.0)
    )
    assert torch.allclose(scaled[name], plain[name], atol=1e-7)
    below = "decoder.blocks.2.feed_forward.contract.weight"  # control
    assert not torch.allclose(scaled[below], plain[below], atol=1e-4)


@torch.no_grad()
def test_gradient_scaling_weighs_the_loss_by_its_scales() -> None:
    model = make_model()
    scales, _ = gradient_scales(0.5, BLOCKS)
    losses = [F.cross_entropy(logits, LABELS[VALID], label_smoothing=SMOOTHING) for logits in logits_of(model)]
    loss, logged = AlignedExits(WEIGHTS, False, SMOOTHING, gradient_scaling=0.5).loss(model, BATCH)
    expected = sum(w * s * float(one) for w, s, one in zip(WEIGHTS, scales, losses, strict=True))
    assert float(loss) == pytest.approx(expected, abs=1e-6)
    plain = AlignedExits(WEIGHTS, False, SMOOTHING).loss(model, BATCH)[1]
    assert torch.equal(logged["nll"], plain["nll"])


# --- Self-distillation


@torch.no_grad()
def test_the_lower_exits_also_learn_what_the_last_one_says() -> None:
    model, share = make_model(), 0.3
    loss, _ = AlignedExits(WEIGHTS, False, SMOOTHING, self_distillation=share).loss(model, BATCH)
    *below, last = logits_of(model)
    told = torch.softmax(last, dim=-1)
    expected = WEIGHTS[-1] * float(F.cross_entropy(last, LABELS[VALID], label_smoothing=SMOOTHING))
    for weight, logits in zip(WEIGHTS, below, strict=False):
        own = float(F.cross_entropy(logits, LABELS[VALID], label_smoothing=SMOOTHING))
        distilled = float(-(told * torch.log_softmax(logits, dim=-1)).sum(-1).mean())
        expected += weight * ((1 - share) * own + share * distilled)
    assert float(loss) == pytest.approx(expected, abs=1e-6)
    plain, _ = AlignedExits(WEIGHTS, False, SMOOTHING).loss(model, BATCH)
    assert float(plain) != pytest.approx(expected, abs=1e-4)  # control


def test_the_last_exit_learns_nothing_of_being_a_teacher() -> None:
    """Its states get no gradient as a teacher: what comes to block N is that of its own loss."""
    model = make_model()
    weights = [0.0] * BLOCKS
    weights[0] = 1.0
    taught = gradients(AlignedExits(weights, False, SMOOTHING, self_distillation=0.5), model)
    prefix = f"decoder.blocks.{BLOCKS - 1}."
    assert any(name.startswith(prefix) for name, _ in model.named_parameters())
    assert not any(gradient.any() for name, gradient in taught.items() if name.startswith(prefix))
    assert taught["decoder.blocks.0.feed_forward.contract.weight"].any()  # control


# --- Mixed exits


def walk_tokens(model: Seq2Seq, depths: list[list[int]], *, copies: bool = True) -> tuple[float, float]:
    """Smoothed and plain cross-entropy, token by token: each from its own block, later ones seeing it copied.

    Each token takes a pass of its own, whose inputs are those before it: nothing can leak from behind.
    """
    smoothed = plain = 0.0
    for row, column in VALID.nonzero().tolist():
        length = column + 1
        used = torch.tensor([depths[row][:length]]) if copies else None
        source, mask = SOURCE[row : row + 1], (SOURCE == PAD_ID)[row : row + 1]
        states = model.decoder(BATCH.tokens[row : row + 1, :length], model.encoder(source, mask), mask, used)
        depth = depths[row][column]
        logits = model.decoder.exit_heads(states[depth - 1][0, -1], depth)
        smoothed += float(F.cross_entropy(logits, LABELS[row, column], label_smoothing=SMOOTHING))
        plain += float(F.cross_entropy(logits, LABELS[row, column]))
    return smoothed / int(VALID.sum()), plain / int(VALID.sum())


DRAWN = [[[1, 4, 2, 3], [3, 1, 1, 1]], [[2, 2, 1, 4], [4, 2, 3, 3]]]
"""Depths of two paths; the last two of the second sentence stand at padding."""


def with_draws(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, tuple[int, ...]]]:
    """Lets the depths drawn be those above; gives what was asked for."""
    asked: list[tuple[int, int, tuple[int, ...]]] = []

    def randint(low: int, high: int, size: tuple[int, ...], device: torch.device) -> Tensor:
        asked.append((low, high, tuple(size)))
        return torch.tensor(DRAWN[(len(asked) - 1) % len(DRAWN)])

    monkeypatch.setattr(torch, "randint", randint)
    return asked


@torch.no_grad()
@pytest.mark.parametrize("head", ["tied", "untied"])
def test_mixed_exits_are_the_loop_over_tokens(head: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model(head=head)
    asked = with_draws(monkeypatch)
    loss, logged = MixedExits(len(DRAWN), SMOOTHING).loss(model, BATCH)
    assert asked == [(1, BLOCKS + 1, (2, 4))] * len(DRAWN)
    smoothed, plain = (sum(values) / len(DRAWN) for values in zip(*[walk_tokens(model, d) for d in DRAWN], strict=True))
    assert float(loss) == pytest.approx(smoothed, abs=1e-6)
    assert float(logged["nll"]) == pytest.approx(plain, abs=1e-6)
    # Controls: states that are not copied; one path; every exit with the same share.
    uncopied = sum(walk_tokens(model, depths, copies=False)[0] for depths in DRAWN) / len(DRAWN)
    assert float(loss) != pytest.approx(uncopied, abs=1e-4)
    assert float(loss) != pytest.approx(walk_tokens(model, DRAWN[0])[0], abs=1e-4)


def test_mixed_exits_draw_every_depth_alike() -> None:
    drawn: list[Tensor] = []
    model = make_model()
    forward = model.decoder.forward

    def watch(*arguments: Any) -> Any:
        drawn.append(arguments[3])
        return forward(*arguments)

    model.decoder.forward = watch  # type: ignore[method-assign, assignment]
    torch.manual_seed(0)
    with torch.no_grad():
        MixedExits(100, SMOOTHING).loss(model, BATCH)
    counts = torch.stack(drawn).flatten().bincount(minlength=BLOCKS + 1)
    assert counts[0] == 0
    assert (counts[1:] / counts.sum()).tolist() == pytest.approx([1 / BLOCKS] * BLOCKS, abs=0.06)


def test_mixed_exits_teach_every_exit_and_every_block() -> None:
    model, objective = make_model(), MixedExits(8, SMOOTHING)
    torch.manual_seed(1)
    found = gradients(objective, model)
    assert found.keys() == {name for name, _ in model.named_parameters()} - OF_PREDICTORS
    assert all(gradient.any() for name, gradient in found.items() if "contract" in name)


# --- Joint training

KINDS: list[tuple[str, PredictorLoss]] = [
    ("halting", PredictorLoss("likelihood", "depth", 0.0, 0.05, [1.0, 2.0, 3.0, 4.0])),
    ("shared", PredictorLoss("agreement", "gain", 0.0, 0.05, [1.0, 2.0, 3.0, 4.0])),
    ("multinomial", PredictorLoss("correctness", "depth", 2.0, 0.05, [1.0, 2.0, 3.0, 4.0])),
    ("sentence", PredictorLoss("likelihood", "depth", 0.0, 0.05, [1.0, 2.0, 3.0, 4.0])),
]
every_kind = pytest.mark.parametrize(("name", "predictor_loss"), KINDS, ids=[name for name, _ in KINDS])


def exit_loss_of(model: Seq2Seq, name: str, predictor_loss: PredictorLoss) -> Tensor:
    memory = model.encoder(BATCH.source, BATCH.padding_mask)
    states = model.decoder(BATCH.tokens, memory, BATCH.padding_mask)
    observed = observe_exits(model, states, mean_memory(memory, BATCH.padding_mask), BATCH.labels)
    return predictor_loss(model.predictor(name), observed)[0]


@torch.no_grad()
@every_kind
@pytest.mark.parametrize(
    "exits", [AlignedExits(WEIGHTS, False, SMOOTHING), MixedExits(2, SMOOTHING)], ids=["aligned", "mixed"]
)
def test_joint_training_adds_the_exit_loss_times_alpha(
    name: str, predictor_loss: PredictorLoss, exits: DecoderObjective
) -> None:
    """The predictor learns of states of tokens that did not stop, whatever the exits learn from."""
    model = make_model()
    torch.manual_seed(3)
    loss, logged = JointObjective(exits, name, predictor_loss, 0.3).loss(model, BATCH)
    torch.manual_seed(3)
    expected = float(exits.loss(model, BATCH)[0]) + 0.3 * float(exit_loss_of(model, name, predictor_loss))
    assert float(loss) == pytest.approx(expected, abs=1e-5)
    assert logged.keys() == {"nll", "exit_loss", "oracle_depth", "expected_depth"}


@every_kind
def test_in_joint_training_the_exit_loss_reaches_the_trunk(name: str, predictor_loss: PredictorLoss) -> None:
    """There is no stop-gradient: a multinomial predictor reaches block 1, one of sentences the encoder."""
    model = make_model()
    aligned = AlignedExits(WEIGHTS, False, SMOOTHING)
    joint = JointObjective(aligned, name, predictor_loss, 0.3)
    own = {f"predictors.{name}.weight", f"predictors.{name}.bias"}
    everything = {name for name, _ in model.named_parameters()}
    assert names_of(model, joint.parameters(model)) == everything - OF_PREDICTORS | own
    together = gradients(joint, model)
    assert together.keys() == everything - OF_PREDICTORS | own
    alone = gradients(aligned, model)
    model.zero_grad()
    exit_loss_of(model, name, predictor_loss).backward()
    trunk = {n: p.grad for n, p in model.named_parameters() if p.grad is not None and n not in OF_PREDICTORS}
    reached = "encoder.blocks.1.feed_forward.contract.weight"
    if name != "sentence":
        reached = "decoder.blocks.0.feed_forward.contract.weight"
    assert trunk[reached].any()
    for parameter, gradient in trunk.items():
        assert torch.allclose(together[parameter], alone[parameter] + 0.3 * gradient, atol=1e-6), parameter


def test_joint_training_has_dropout() -> None:
    model = make_model(dropout=0.5).train()
    joint = JointObjective(AlignedExits(WEIGHTS, False, 0.0), *KINDS[0], 0.1)
    losses = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        losses.append(float(joint.loss(model, BATCH)[1]["exit_loss"]))
    assert losses[0] == losses[1]
    assert losses[0] != losses[2]
