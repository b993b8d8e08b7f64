"""The trainer: what it changes, when it stops, and that an interruption leaves no trace in the result."""

import csv
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import edgeseq.training.checkpoints
import edgeseq.training.trainer
import edgeseq.training.validation
from edgeseq.data.batching import Batch, collate, plan_epoch
from edgeseq.errors import CheckpointError, DivergenceError
from edgeseq.models import Seq2Seq
from edgeseq.training.checkpoints import Progress, list_checkpoints, load_checkpoint, model_tensors
from edgeseq.training.objectives import AlignedExits, Objective
from edgeseq.training.schedules import rate_factor
from edgeseq.training.trainer import Trainer
from edgeseq.training.validation import loss_per_depth
from edgeseq_runtime.atomic import write_file
from edgeseq_runtime.tokenizer import Tokenizer
from small_runs import Interrupting, make_objective, make_phase, make_trainer, steps_per_epoch

UNITS = {"predictors.halting.weight", "predictors.halting.bias"}
# The second decoder block has one tap, which softmax makes 1 whatever is learnt.
WITHOUT_EFFECT = {"decoder.blocks.1.convolution_unit.convolution.tap_projection.weight"}


@pytest.fixture(autouse=True)
def _short_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Validation translates a few tokens only."""
    monkeypatch.setattr(edgeseq.training.validation, "output_limit", lambda source_pieces: 4)


def tensors_of(trainer: Trainer) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model_tensors(trainer.model).items()}


def different(one: dict[str, Tensor], other: dict[str, Tensor]) -> set[str]:
    assert one.keys() == other.keys()
    return {name for name in one if not torch.equal(one[name], other[name])}


def metrics(run: Path, name: str) -> list[float]:
    with (run / "metrics.csv").open(encoding="utf-8") as file:
        return [float(row["value"]) for row in csv.DictReader(file) if row["name"] == name]


# --- Phases


@pytest.mark.parametrize("name", ["aligned", "mixed"])
def test_a_phase_of_exits_trains_everything_but_the_predictors(tmp_path: Path, tokenizer: Tokenizer, name: str) -> None:
    """What is not trained changes in no bit, weight decay and averaging notwithstanding."""
    trainer = make_trainer(tmp_path, tokenizer, weight_decay=0.1, average_checkpoints=2, valid_interval=3)
    with torch.no_grad():
        trainer.model.predictor("halting").get_parameter("weight").add_(0.3)
    before = tensors_of(trainer)
    trainer.run_phase(make_phase(name, 12, trainer), resume=False)
    assert different(before, tensors_of(trainer)) == before.keys() - UNITS


def test_joint_training_changes_everything(tmp_path: Path, tokenizer: Tokenizer) -> None:
    trainer = make_trainer(tmp_path, tokenizer)
    before = tensors_of(trainer)
    trainer.run_phase(make_phase("joint", 12, trainer), resume=False)
    assert different(before, tensors_of(trainer)) == before.keys() - WITHOUT_EFFECT


@pytest.mark.parametrize("name", ["aligned", "mixed"])
def test_phases_learn(tmp_path: Path, tokenizer: Tokenizer, name: str) -> None:
    torch.manual_seed(1)  # of the sampled exits and depths
    trainer = make_trainer(tmp_path, tokenizer, dropout=0.0)
    device = torch.device("cpu")
    before = loss_per_depth(trainer.model.eval(), trainer.valid_corpus, device)
    trainer.run_phase(make_phase(name, 40, trainer, learning_rate=0.03), resume=False)
    after = loss_per_depth(trainer.model.eval(), trainer.valid_corpus, device)
    assert all(late < 0.8 * early for early, late in zip(before, after, strict=True))
    batch = collate(trainer.valid_corpus, range(8))
    joint = make_objective("joint")
    before_joint = float(joint.loss(trainer.model, batch)[1]["exit_loss"])
    trainer.run_phase(make_phase("joint", 40, trainer, learning_rate=0.03), resume=False)
    assert float(joint.loss(trainer.model.eval(), batch)[1]["exit_loss"]) < 0.99 * before_joint


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_bfloat16_trains_and_validates_with_float32_weights(
    tmp_path: Path, tokenizer: Tokenizer, norm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(edgeseq.training.trainer, "_LOG_INTERVAL", 1)
    losses = {}
    for precision in ("bfloat16", "float32"):
        run = tmp_path / precision
        trainer = make_trainer(run, tokenizer, dropout=0.0, norm=norm, precision=precision, valid_depths=[1, 3])
        for name in ("aligned", "joint"):
            trainer.run_phase(make_phase(name, 3, trainer), resume=False)
        assert {tensor.dtype for tensor in tensors_of(trainer).values()} == {torch.float32}
        losses[precision] = metrics(run, "valid_nll_3")
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.05)
    assert losses["bfloat16"] != losses["float32"]  # control: products were rounded


# --- Exact resumption

RESUMED_STEPS, INTERRUPTED_AT = 11, 6


def uninterrupted(run: Path, tokenizer: Tokenizer, name: str, **changes: Any) -> Trainer:
    trainer = make_trainer(run, tokenizer, **changes)
    torch.manual_seed(1)
    trainer.run_phase(make_phase(name, RESUMED_STEPS, trainer), resume=False)
    return trainer


def interrupted(run: Path, tokenizer: Tokenizer, name: str, **changes: Any) -> None:
    trainer = make_trainer(run, tokenizer, **changes)
    torch.manual_seed(1)
    accumulation = trainer.config.accumulation
    objective = Interrupting(make_objective(name), at=INTERRUPTED_AT * accumulation)
    with pytest.raises(KeyboardInterrupt):
        trainer.run_phase(make_phase(name, RESUMED_STEPS, trainer, objective), resume=False)


def resumed(run: Path, tokenizer: Tokenizer, name: str, **changes: Any) -> Trainer:
    """Goes on with new objects whose weights and random state are others."""
    trainer = make_trainer(run, tokenizer, **changes)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.add_(1)
    torch.manual_seed(77)
    trainer.run_phase(make_phase(name, RESUMED_STEPS, trainer), resume=True)
    return trainer


@pytest.mark.parametrize(("name", "accumulation"), [("aligned", 1), ("aligned", 2), ("mixed", 1), ("joint", 1)])
def test_an_interrupted_phase_ends_in_the_same_bits(
    tmp_path: Path, tokenizer: Tokenizer, name: str, accumulation: int
) -> None:
    whole = uninterrupted(tmp_path / "whole", tokenizer, name, accumulation=accumulation)
    interrupted(tmp_path / "parts", tokenizer, name, accumulation=accumulation)
    parts = resumed(tmp_path / "parts", tokenizer, name, accumulation=accumulation)
    assert different(tensors_of(whole), tensors_of(parts)) == set()
    if accumulation == 2:  # the interruption fell into the second epoch, which has another order
        assert INTERRUPTED_AT * accumulation > steps_per_epoch(whole)


@pytest.mark.parametrize("forgotten", ["moments", "random state", "batch", "step"])
def test_every_part_of_a_checkpoint_is_needed_for_that(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, forgotten: str
) -> None:
    """Control of the test above."""

    def load_and_forget(path: Path, model: Seq2Seq, optimizer: torch.optim.Optimizer) -> Progress:
        random_state = torch.get_rng_state()
        progress = load_checkpoint(path, model, optimizer)
        if forgotten == "moments":
            optimizer.state.clear()
        elif forgotten == "random state":
            torch.set_rng_state(random_state)
        else:
            setattr(progress, forgotten, 0)
        return progress

    whole = uninterrupted(tmp_path / "whole", tokenizer, "aligned")
    interrupted(tmp_path / "parts", tokenizer, "aligned")
    monkeypatch.setattr(edgeseq.training.trainer, "load_checkpoint", load_and_forget)
    parts = resumed(tmp_path / "parts", tokenizer, "aligned")
    assert different(tensors_of(whole), tensors_of(parts))


def test_a_phase_resumed_after_a_crash_repeats_the_lost_steps_exactly(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed while it wrote a checkpoint, a run goes on from the one before."""
    whole = uninterrupted(tmp_path / "whole", tokenizer, "aligned", valid_interval=4)

    def fail(path: Path, data: bytes) -> None:
        if "aligned-00000008" in str(path) and path.name == "optimizer.safetensors":
            raise OSError(28, "No space left on device")
        write_file(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(edgeseq.training.checkpoints, "write_file", fail)
        with pytest.raises(OSError, match="the disk or quota is full"):
            uninterrupted(tmp_path / "parts", tokenizer, "aligned", valid_interval=4)
    assert checkpoints(tmp_path / "parts", "aligned") == ["aligned-00000004"]
    parts = resumed(tmp_path / "parts", tokenizer, "aligned", valid_interval=4)
    assert different(tensors_of(whole), tensors_of(parts)) == set()


def checkpoints(run: Path, name: str) -> list[str]:
    return [path.name for path in list_checkpoints(run / "checkpoints", name)]


class Untouchable:
    """An objective that must not be asked for a loss."""

    def parameters(self, model: Seq2Seq) -> Iterator[nn.Parameter]:
        return model.parameters()

    def loss(self, model: Seq2Seq, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        pytest.fail("a finished phase was trained on")


def test_a_finished_phase_is_not_trained_again(tmp_path: Path, tokenizer: Tokenizer) -> None:
    first = uninterrupted(tmp_path, tokenizer, "aligned", average_checkpoints=2, valid_interval=6)
    second = make_trainer(tmp_path, tokenizer, average_checkpoints=2, valid_interval=6)
    second.run_phase(make_phase("aligned", RESUMED_STEPS, second, Untouchable()), resume=True)
    assert different(tensors_of(first), tensors_of(second)) == set()


def test_resuming_from_another_models_checkpoint_names_it(tmp_path: Path, tokenizer: Tokenizer) -> None:
    interrupted(tmp_path, tokenizer, "aligned")
    trainer = make_trainer(tmp_path, tokenizer)
    trainer.model.predictors.clear()
    with pytest.raises(CheckpointError) as caught:
        trainer.run_phase(make_phase("aligned", RESUMED_STEPS, trainer), resume=True)
    path = tmp_path / "checkpoints" / "aligned-00000006-interrupted" / "model.safetensors"
    assert str(caught.value).startswith(f"{path} does not fit the model of this configuration: missing [], unknown [")


# --- Interruption


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_between_steps_leaves_a_checkpoint(
    tmp_path: Path, tokenizer: Tokenizer, number: int, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    trainer = make_trainer(tmp_path, tokenizer)
    objective = Interrupting(make_objective("aligned"), at=3, number=number)
    with pytest.raises(KeyboardInterrupt):
        trainer.run_phase(make_phase("aligned", 9, trainer, objective), resume=False)
    assert objective.calls == 3, "the step during which the signal came is finished, and no other begun"
    assert checkpoints(tmp_path, "aligned") == ["aligned-00000003-interrupted"]
    assert "stopped at step 3; a checkpoint is written, --resume continues" in capsys.readouterr().err
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_an_interruption_changes_neither_what_is_kept_nor_what_is_averaged(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    """Its checkpoint is gone with the next one."""
    settings: dict[str, Any] = {"valid_interval": 4, "average_checkpoints": 2, "keep_checkpoints": 2}
    torch.manual_seed(1)
    whole = make_trainer(tmp_path / "whole", tokenizer, **settings)
    whole.run_phase(make_phase("aligned", 12, whole), resume=False)
    torch.manual_seed(1)
    for resume, at in ((False, 6), (True, 1)):
        parts = make_trainer(tmp_path / "parts", tokenizer, **settings)
        objective = Interrupting(make_objective("aligned"), at=at, number=signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            parts.run_phase(make_phase("aligned", 12, parts, objective), resume=resume)
    assert checkpoints(tmp_path / "parts", "aligned") == ["aligned-00000004", "aligned-00000007-interrupted"]
    parts = make_trainer(tmp_path / "parts", tokenizer, **settings)
    parts.run_phase(make_phase("aligned", 12, parts), resume=True)
    assert checkpoints(tmp_path / "parts", "aligned") == ["aligned-00000008", "aligned-00000012"]
    assert different(tensors_of(whole), tensors_of(parts)) == set()


def test_what_a_killed_process_had_begun_to_write_is_removed(tmp_path: Path, tokenizer: Tokenizer) -> None:
    unfinished = tmp_path / "checkpoints" / ".aligned-00000004.0123456789ab.tmp"
    unfinished.mkdir(parents=True)
    (unfinished / "model.safetensors").write_bytes(b"half")
    trainer = make_trainer(tmp_path, tokenizer)
    trainer.run_phase(make_phase("aligned", 2, trainer), resume=True)
    assert not unfinished.exists()


def test_a_second_signal_does_not_wait_for_the_step(tmp_path: Path, tokenizer: Tokenizer) -> None:
    trainer = make_trainer(tmp_path, tokenizer)
    objective = Interrupting(make_objective("aligned"), at=3, times=2)
    with pytest.raises(KeyboardInterrupt):
        trainer.run_phase(make_phase("aligned", 9, trainer, objective), resume=False)
    assert checkpoints(tmp_path, "aligned") == []


def test_a_signal_in_the_last_step_does_not_let_the_next_phase_begin(tmp_path: Path, tokenizer: Tokenizer) -> None:
    trainer = make_trainer(tmp_path, tokenizer)
    objective = Interrupting(make_objective("aligned"), at=5)
    with pytest.raises(KeyboardInterrupt):
        trainer.run_phase(make_phase("aligned", 5, trainer, objective), resume=False)
    assert checkpoints(tmp_path, "aligned") == ["aligned-00000005"]
    again = make_trainer(tmp_path, tokenizer)
    again.run_phase(make_phase("aligned", 5, again, Untouchable()), resume=True)
    assert different(tensors_of(trainer), tensors_of(again)) == set()


# --- Steps


class Counting:
    """An objective that remembers the batches it saw."""

    def __init__(self, objective: Objective) -> None:
        self.objective = objective
        self.batches: list[Batch] = []

    def parameters(self, model: Seq2Seq) -> Iterator[nn.Parameter]:
        return self.objective.parameters(model)

    def loss(self, model: Seq2Seq, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        self.batches.append(batch)
        return self.objective.loss(model, batch)


@pytest.mark.parametrize(("epochs", "accumulation"), [(1, 1), (1.5, 1), (0.1, 1), (2, 3)])
def test_a_phase_is_as_long_as_its_epochs(
    tmp_path: Path, tokenizer: Tokenizer, epochs: float, accumulation: int
) -> None:
    trainer = make_trainer(tmp_path, tokenizer, accumulation=accumulation)
    objective = Counting(make_objective("joint"))
    trainer.run_phase(make_phase("joint", 1, trainer, objective, epochs=epochs), resume=False)
    per_epoch = steps_per_epoch(trainer)
    steps = max(1, round(epochs * per_epoch / accumulation))
    assert len(objective.batches) == steps * accumulation
    assert checkpoints(tmp_path, "joint") == [f"joint-{steps:08d}"]


def test_batches_come_in_the_order_of_each_epochs_plan(tmp_path: Path, tokenizer: Tokenizer) -> None:
    trainer = make_trainer(tmp_path, tokenizer, seed=3)
    objective = Counting(make_objective("joint"))
    trainer.run_phase(make_phase("joint", 1, trainer, objective, epochs=2), resume=False)
    corpus = trainer.train_corpus
    plans = [plan_epoch(corpus, trainer.config.batch_tokens, 3, epoch) for epoch in (0, 1)]
    expected = [collate(corpus, indices) for plan in plans for indices in plan]
    for batch, other in zip(objective.batches, expected, strict=True):
        assert torch.equal(batch.labels, other.labels)


def test_the_rate_follows_the_schedule(tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edgeseq.training.trainer, "_LOG_INTERVAL", 1)
    trainer = make_trainer(tmp_path, tokenizer)
    phase = make_phase("joint", 10, trainer, learning_rate=0.02, warmup_steps=4, schedule="inverse_sqrt")
    trainer.run_phase(phase, resume=False)
    expected = [0.02 * rate_factor(step, 10, 4, "inverse_sqrt") for step in range(10)]
    assert metrics(tmp_path, "learning_rate") == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("clip_norm", [0.05, 100.0])
def test_a_step_takes_the_clipped_mean_gradient_of_its_batches(
    tmp_path: Path, tokenizer: Tokenizer, clip_norm: float
) -> None:
    trainer = make_trainer(tmp_path, tokenizer, dropout=0.0, accumulation=3, clip_norm=clip_norm)
    before = tensors_of(trainer)
    every_exit = AlignedExits([1 / 3] * 3, False, 0.1)
    objective = Counting(every_exit)
    trainer.run_phase(make_phase("aligned", 1, trainer, objective), resume=False)
    assert len(objective.batches) == 3
    untrained = make_trainer(tmp_path, tokenizer, dropout=0.0).model
    assert not different(before, model_tensors(untrained))
    names = {parameter: name for name, parameter in untrained.named_parameters()}
    trained = list(every_exit.parameters(untrained))
    losses = [every_exit.loss(untrained, batch)[0] for batch in objective.batches]
    gradients = torch.autograd.grad(torch.stack(losses).mean(), trained)
    norm = float(torch.cat([gradient.flatten() for gradient in gradients]).norm())
    assert 0.05 < norm < 100, "one limit must matter here, the other must not"
    # After the first step, Adam's first moment is the gradient times 1 - β₁.
    moments = load_file(list_checkpoints(tmp_path / "checkpoints", "aligned")[0] / "optimizer.safetensors")
    for parameter, gradient in zip(trained, gradients, strict=True):
        moment = moments[f"{names[parameter]}:exp_avg"]
        assert torch.allclose(moment, 0.1 * gradient * min(1, clip_norm / norm), rtol=1e-3, atol=1e-7)


def test_training_has_dropout_and_validation_has_none(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes = []
    validate = loss_per_depth

    def watch(model: Seq2Seq, *arguments: Any) -> list[float]:
        modes.append(("validation", model.training))
        return validate(model, *arguments)

    class Watching(Counting):
        def loss(self, model: Seq2Seq, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
            modes.append(("training", model.training))
            return super().loss(model, batch)

    monkeypatch.setattr(edgeseq.training.trainer, "loss_per_depth", watch)
    trainer = make_trainer(tmp_path, tokenizer, valid_interval=1)
    trainer.run_phase(make_phase("aligned", 2, trainer, Watching(make_objective("aligned"))), resume=False)
    assert modes == [("training", True), ("validation", False)] * 2


def test_weights_decay_on_matrices_only(tmp_path: Path, tokenizer: Tokenizer) -> None:
    trainer = make_trainer(tmp_path, tokenizer, weight_decay=0.2)
    optimizer = trainer._build_optimizer(make_phase("joint", 1, trainer))
    matrices, vectors = optimizer.param_groups
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.2, 0.0)
    assert {parameter.dim() for parameter in matrices["params"]} == {2}
    assert {parameter.dim() for parameter in vectors["params"]} == {1}
    assert len(matrices["params"]) + len(vectors["params"]) == len(list(trainer.model.parameters()))


# --- Validation and checkpoints


def with_losses(monkeypatch: pytest.MonkeyPatch, *losses: float) -> None:
    """Makes validation find these losses at full depth, one after the other."""
    following = iter(losses)
    monkeypatch.setattr(edgeseq.training.trainer, "loss_per_depth", lambda *args: [9.0, next(following)])


def test_a_model_that_has_diverged_is_not_asked_to_translate(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would never say EOS."""
    with_losses(monkeypatch, float("nan"))
    monkeypatch.setattr(edgeseq.training.trainer, "bleu_per_depth", lambda *args: pytest.fail("it is asked"))
    trainer = make_trainer(tmp_path, tokenizer, valid_interval=1)
    with pytest.raises(DivergenceError, match="training has diverged: by step 1 of joint"):
        trainer.run_phase(make_phase("joint", 2, trainer), resume=False)
    assert list((tmp_path / "checkpoints").glob("*")) == []


@pytest.mark.parametrize(("patience", "steps"), [(0, 14), (1, 6), (2, 12), (3, 14)])
def test_training_stops_when_the_loss_stays_above_its_best(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, patience: int, steps: int
) -> None:
    with_losses(monkeypatch, 3.0, 2.0, 2.5, 1.9, 1.9, 2.0, 2.1)
    trainer = make_trainer(tmp_path, tokenizer, valid_interval=2, patience=patience)
    objective = Counting(make_objective("joint"))
    trainer.run_phase(make_phase("joint", 14, trainer, objective), resume=False)
    assert len(objective.batches) == steps


def test_patience_outlives_an_interruption(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_losses(monkeypatch, 3.0, 4.0, 5.0, 6.0, 7.0)
    trainer = make_trainer(tmp_path, tokenizer, valid_interval=2, patience=3)
    objective = Interrupting(make_objective("joint"), at=5)
    with pytest.raises(KeyboardInterrupt):
        trainer.run_phase(make_phase("joint", 20, trainer, objective), resume=False)
    trainer = make_trainer(tmp_path, tokenizer, valid_interval=2, patience=3)
    trainer.run_phase(make_phase("joint", 20, trainer), resume=True)
    assert checkpoints(tmp_path, "joint")[-1] == "joint-00000008"  # 3.0, then three that are not better


def test_the_newest_checkpoints_are_kept_and_the_last_ones_averaged(tmp_path: Path, tokenizer: Tokenizer) -> None:
    trainer = make_trainer(tmp_path, tokenizer, valid_interval=2, keep_checkpoints=3, average_checkpoints=2)
    trainer.run_phase(make_phase("aligned", 9, trainer), resume=False)
    assert checkpoints(tmp_path, "aligned") == ["aligned-00000006", "aligned-00000008", "aligned-00000009"]
    loaded = []
    for path in list_checkpoints(tmp_path / "checkpoints", "aligned")[-2:]:
        other = make_trainer(tmp_path, tokenizer)
        load_checkpoint(path, other.model, other._build_optimizer(make_phase("joint", 1, other)))
        loaded.append(tensors_of(other))
    for name, tensor in tensors_of(trainer).items():
        assert torch.allclose(tensor, (loaded[0][name] + loaded[1][name]) / 2, atol=1e-7)
    assert different(tensors_of(trainer), loaded[-1])  # control: not just the last one


def test_validation_is_recorded_for_every_depth(
    tmp_path: Path, tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = make_trainer(tmp_path, tokenizer, valid_interval=2, valid_depths=[])
    trainer.run_phase(make_phase("joint", 4, trainer), resume=False)
    for depth in (1, 2, 3):  # BLEU at the first, the middle and the last: here, all
        assert len(metrics(tmp_path, f"valid_nll_{depth}")) == 2
        assert len(metrics(tmp_path, f"valid_bleu_{depth}")) == 2
    said = capsys.readouterr().err
    assert "step 4, epoch 1: validation nll at depths 1-3: " in said
    assert list((tmp_path / "tensorboard").iterdir())


def test_progress_counts_tokens_epochs_and_time(tmp_path: Path, tokenizer: Tokenizer) -> None:
    trainer = make_trainer(tmp_path, tokenizer)
    per_epoch = steps_per_epoch(trainer)
    trainer.run_phase(make_phase("joint", per_epoch + 2, trainer), resume=False)
    (path,) = list_checkpoints(tmp_path / "checkpoints", "joint")
    progress = load_checkpoint(path, trainer.model, trainer._build_optimizer(make_phase("joint", 1, trainer)))
    assert (progress.step, progress.epoch, progress.batch) == (per_epoch + 2, 1, 2)
    assert progress.finished
    assert progress.tokens >= trainer.train_corpus.target_tokens
    assert progress.seconds > 0
