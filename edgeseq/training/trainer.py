"""Runs one phase of training: batches, optimiser, schedule, validation, checkpoints, interruption."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import torch
from torch import Tensor, nn

from edgeseq.config import ScheduleConfig, TrainingConfig
from edgeseq.data.batching import Batch, collate, plan_epoch
from edgeseq.data.corpus import ParallelCorpus
from edgeseq.errors import DivergenceError
from edgeseq.models import Seq2Seq
from edgeseq.training.checkpoints import (
    CHECKPOINTS_FOLDER,
    Progress,
    average_checkpoints,
    list_checkpoints,
    load_checkpoint,
    regular_checkpoints,
    save_checkpoint,
)
from edgeseq.training.objectives import Objective
from edgeseq.training.precision import autocast, pick_precision
from edgeseq.training.reporting import Reporter
from edgeseq.training.schedules import rate_factor
from edgeseq.training.validation import bleu_per_depth, loss_per_depth
from edgeseq_runtime.atomic import recover
from edgeseq_runtime.tokenizer import PAD_ID, Tokenizer

_LOG_INTERVAL = 20


@dataclass(frozen=True)
class Phase:
    """One phase of training."""

    name: str
    objective: Objective
    schedule: ScheduleConfig


@dataclass
class _Interruption:
    requested: bool = False


class Trainer:
    """Trains a model in a run folder; what it was doing survives an interruption."""

    def __init__(
        self,
        run: Path,
        model: Seq2Seq,
        tokenizer: Tokenizer,
        train: ParallelCorpus,
        valid: ParallelCorpus,
        config: TrainingConfig,
        device: torch.device,
    ) -> None:
        """Prepares training.

        Args:
            run: the run's folder.
            model: on the device.
            tokenizer: to decode validation output.
            train: training pairs.
            valid: validation pairs.
            config: batches, precision, validation and checkpoints; the schedule comes with each phase.
            device: where to train.
        """
        self.run = run
        self.model = model
        self.tokenizer = tokenizer
        self.train_corpus = train
        self.valid_corpus = valid
        self.config = config
        self.device = device
        self.checkpoints = run / CHECKPOINTS_FOLDER
        self.precision = pick_precision(config.precision, device)

    def run_phase(self, phase: Phase, resume: bool) -> None:
        """Runs a phase to its end; the model then holds the mean of its last checkpoints.

        Args:
            phase: what to minimise, and for how long.
            resume: go on from the newest checkpoint of this phase, if there is one.

        Raises:
            KeyboardInterrupt: Ctrl-C or SIGTERM came; a checkpoint was written first.
            DivergenceError: the loss is not finite; no checkpoint is written then.
        """
        optimizer = self._build_optimizer(phase)
        progress = Progress(phase.name)
        recover(self.checkpoints)
        existing = list_checkpoints(self.checkpoints, phase.name)
        if resume and existing:
            progress = load_checkpoint(existing[-1], self.model, optimizer)
        steps_per_epoch = len(plan_epoch(self.train_corpus, self.config.batch_tokens, self.config.seed, 0))
        total_steps = max(1, round(phase.schedule.epochs * steps_per_epoch / self.config.accumulation))
        if not progress.finished:
            with Reporter(self.run, phase.name, total_steps, progress.step) as reporter:
                self._loop(phase, optimizer, progress, total_steps, reporter)
        newest = regular_checkpoints(self.checkpoints, phase.name)[-phase.schedule.average_checkpoints :]
        average_checkpoints(newest, self.model)

    def _loop(
        self, phase: Phase, optimizer: torch.optim.Optimizer, progress: Progress, total_steps: int, reporter: Reporter
    ) -> None:
        trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        batches = self._batches(progress)
        logged: dict[str, Tensor] = {}
        window = (time.monotonic(), progress.tokens)
        with _interruptible() as interruption:
            while not progress.finished:
                started = time.monotonic()
                self.model.train()
                for group in optimizer.param_groups:
                    group["lr"] = phase.schedule.learning_rate * rate_factor(
                        progress.step, total_steps, phase.schedule.warmup_steps, phase.schedule.schedule
                    )
                for _ in range(self.config.accumulation):
                    batch = next(batches)
                    with autocast(self.precision, self.device):
                        loss, logged = phase.objective.loss(self.model, batch)
                    (loss / self.config.accumulation).backward()
                norm = nn.utils.clip_grad_norm_(trained, self.config.clip_norm)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                progress.step += 1
                progress.seconds += time.monotonic() - started
                if progress.step % _LOG_INTERVAL == 0:
                    seconds, tokens = time.monotonic() - window[0], progress.tokens - window[1]
                    window = (time.monotonic(), progress.tokens)
                    metrics = {name: float(value) for name, value in logged.items()}
                    metrics |= {
                        "loss": float(loss.detach()),
                        "gradient_norm": float(norm),
                        "tokens_per_second": tokens / seconds,
                    }
                    metrics["learning_rate"] = optimizer.param_groups[0]["lr"]
                    self._check_finite(progress, metrics["loss"])
                    reporter.record(progress.step, metrics)
                    reporter.advance(progress.step, f"loss {metrics['loss']:.3f}  {tokens / seconds:,.0f} tok/s")
                ended = progress.step >= total_steps
                if ended or progress.step % self.config.valid_interval == 0:
                    self._validate(progress, reporter)
                    progress.finished = ended or (self.config.patience > 0 and progress.stale >= self.config.patience)
                    self._save(optimizer, progress)
                    window = (time.monotonic(), progress.tokens)
                if interruption.requested:
                    if not progress.finished:  # else it is saved already, and the next phase must not begin
                        self._check_finite(progress, float(norm))
                        self._save(optimizer, progress, interrupted=True)
                    reporter.say(f"stopped at step {progress.step}; a checkpoint is written, --resume continues")
                    raise KeyboardInterrupt

    def _batches(self, progress: Progress) -> Iterator[Batch]:
        """Yields batches for ever, from where the progress stands, and counts them there."""
        while True:
            plan = plan_epoch(self.train_corpus, self.config.batch_tokens, self.config.seed, progress.epoch)
            while progress.batch < len(plan):
                indices = plan[progress.batch]
                batch = collate(self.train_corpus, indices)
                progress.batch += 1
                progress.tokens += int((batch.labels != PAD_ID).sum())
                yield batch.to(self.device)
            progress.epoch, progress.batch = progress.epoch + 1, 0

    def _validate(self, progress: Progress, reporter: Reporter) -> None:
        self.model.eval()
        blocks = len(self.model.decoder.blocks)
        usual = {blocks} if self.config.exits == "last" else {1, (blocks + 1) // 2, blocks}  # others are not trained
        depths = self.config.valid_depths or sorted(usual)
        with autocast(self.precision, self.device):
            losses = loss_per_depth(self.model, self.valid_corpus, self.device)
            self._check_finite(progress, sum(losses))  # before translating: such a model never comes to an end
            scores = bleu_per_depth(self.model, self.valid_corpus, self.tokenizer, depths, self.config.valid_sentences)
        metrics = {f"valid_nll_{depth}": loss for depth, loss in enumerate(losses, start=1)}
        metrics |= {f"valid_bleu_{depth}": score for depth, score in scores.items()}
        reporter.record(progress.step, metrics)
        reporter.say(
            f"{progress.phase} step {progress.step}, epoch {progress.epoch + 1}: validation nll at depths 1-{blocks}: "
            + " ".join(f"{loss:.3f}" for loss in losses)
            + "  BLEU "
            + ", ".join(f"{score:.1f} at {depth}" for depth, score in scores.items())
        )
        if losses[-1] < progress.best_loss:
            progress.best_loss, progress.stale = losses[-1], 0
        else:
            progress.stale += 1

    def _check_finite(self, progress: Progress, measure: float) -> None:
        """Refuses to go on with weights that are lost, or to store them in the place of good ones."""
        if math.isfinite(measure):
            return
        existing = list_checkpoints(self.checkpoints, progress.phase)
        way_back = f"the newest good checkpoint is {existing[-1]}" if existing else "there is no checkpoint yet"
        raise DivergenceError(
            f"training has diverged: by step {progress.step} of {progress.phase} the loss is not a number any more; "
            f"{way_back}. Train again with a lower learning_rate or more warmup_steps, or with precision = 'float32'"
        )

    def _save(self, optimizer: torch.optim.Optimizer, progress: Progress, *, interrupted: bool = False) -> None:
        keep = self.config.keep_checkpoints
        save_checkpoint(self.checkpoints, self.model, optimizer, progress, keep, interrupted=interrupted)

    def _build_optimizer(self, phase: Phase) -> torch.optim.Optimizer:
        parameters = list(phase.objective.parameters(self.model))
        matrices = [parameter for parameter in parameters if parameter.dim() > 1]
        vectors = [parameter for parameter in parameters if parameter.dim() <= 1]
        groups = [
            {"params": matrices, "weight_decay": self.config.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=phase.schedule.learning_rate, betas=self.config.adam_betas, fused=True)


@contextmanager
def _interruptible() -> Iterator[_Interruption]:
    """Turns Ctrl-C and SIGTERM into a request that the loop meets between two steps."""
    interruption = _Interruption()

    def request(_number: int, _frame: FrameType | None) -> None:
        if interruption.requested:  # a second Ctrl-C does not wait
            raise KeyboardInterrupt
        interruption.requested = True

    previous = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interruption
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
