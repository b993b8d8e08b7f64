"""Training runs of a few steps on sixty sentences."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgeseq.config import ScheduleConfig, StackConfig, TrainingConfig
from edgeseq.data.batching import Batch, plan_epoch
from edgeseq.data.corpus import ParallelCorpus
from edgeseq.models import Seq2Seq
from edgeseq.training.objectives import AlignedExits, JointObjective, MixedExits, Objective
from edgeseq.training.predictor_loss import PredictorLoss
from edgeseq.training.trainer import Phase, Trainer
from edgeseq_runtime.tokenizer import EOS_ID, Tokenizer
from small_corpora import SENTENCES, corpus_of
from small_models import small_model

BLOCKS = 3


def encode(tokenizer: Tokenizer, sentences: list[str]) -> ParallelCorpus:
    """Pairs of a sentence and the same with its words in reverse."""
    return corpus_of(
        [
            ([*tokenizer.encode(line), EOS_ID], [*tokenizer.encode(" ".join(line.split()[::-1])), EOS_ID])
            for line in sentences
        ]
    )


def make_trainer(
    run: Path, tokenizer: Tokenizer, *, dropout: float = 0.1, norm: str = "pre", **changes: Any
) -> Trainer:
    """A trainer with a fresh model of three decoder blocks; validation at the end only."""
    settings: dict[str, Any] = {
        "batch_tokens": 100,
        "precision": "float32",
        "valid_interval": 1000,
        "valid_sentences": 1,
        "valid_depths": [1],
    }
    model = small_model(
        tokenizer.vocab_size,
        dropout=dropout,
        weight_dropout=dropout,
        encoder=StackConfig(kernel_sizes=[3], convolution_heads=2, feed_forward_dim=8),
        decoder=StackConfig(kernel_sizes=[3, 1, 4], convolution_heads=2, feed_forward_dim=8),
        norm=norm,
    ).float()
    run.mkdir(exist_ok=True)
    return Trainer(
        run,
        model,
        tokenizer,
        encode(tokenizer, SENTENCES[:-8]),
        encode(tokenizer, SENTENCES[-8:]),
        TrainingConfig(**settings | changes),
        torch.device("cpu"),
    )


def make_phase(name: str, steps: int, trainer: Trainer, objective: Objective | None = None, **changes: Any) -> Phase:
    """A phase `aligned`, `mixed` or `joint` of so many optimiser steps."""
    epochs = steps * trainer.config.accumulation / steps_per_epoch(trainer)
    settings: dict[str, Any] = {
        "learning_rate": 0.01,
        "warmup_steps": 3,
        "epochs": epochs,
        "average_checkpoints": trainer.config.average_checkpoints,
    }
    return Phase(name, objective or make_objective(name), ScheduleConfig(**settings | changes))


def make_objective(name: str) -> Objective:
    """The objective of a phase by its name here."""
    aligned = AlignedExits([1 / BLOCKS] * BLOCKS, True, 0.1)
    predictor_loss = PredictorLoss("likelihood", "depth", 0.0, 0.05, [1.0, 2.0, 3.0])
    objectives: dict[str, Objective] = {
        "aligned": aligned,
        "mixed": MixedExits(2, 0.1),
        "joint": JointObjective(aligned, "halting", predictor_loss, 0.3),
    }
    return objectives[name]


def steps_per_epoch(trainer: Trainer) -> int:
    """Batches in one pass over the training pairs."""
    return len(plan_epoch(trainer.train_corpus, trainer.config.batch_tokens, trainer.config.seed, 0))


class Interrupting:
    """An objective during whose n-th loss Ctrl-C is pressed, once or several times."""

    def __init__(self, objective: Objective, at: int, times: int = 1, number: int = signal.SIGINT) -> None:
        self.objective = objective
        self.at = at
        self.times = times
        self.number = number
        self.calls = 0

    def parameters(self, model: Seq2Seq) -> Iterator[nn.Parameter]:
        return self.objective.parameters(model)

    def loss(self, model: Seq2Seq, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        self.calls += 1
        if self.calls == self.at:
            for _ in range(self.times):
                os.kill(os.getpid(), self.number)
        return self.objective.loss(model, batch)
