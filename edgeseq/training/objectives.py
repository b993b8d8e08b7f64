"""What a training phase minimises on one batch: aligned exits, halting units, or both.

An objective also says which parameters it trains; the trainer knows nothing else of phases.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor, nn

from edgeseq.data.batching import Batch
from edgeseq.models import Seq2Seq
from edgeseq.modules import HaltingUnits
from edgeseq.modules.exits import log_stop_distribution
from edgeseq.training.losses import classify_and_score, exit_loss, gain_loss, sample_exits
from edgeseq.training.oracles import oracle_depths, worth_stopping
from edgeseq_runtime.tokenizer import PAD_ID


class Objective(Protocol):
    """One phase's loss."""

    def parameters(self, model: Seq2Seq) -> Iterator[nn.Parameter]:
        """Yields what is trained."""
        ...

    def loss(self, model: Seq2Seq, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Computes the loss (mean per target token) and what to log of it."""
        ...


class AlignedExits:
    """Phase 1: every exit predicts, given true states of all blocks below (Elbayad et al., section 2.2.1)."""

    def __init__(self, weights: list[float], sampled: bool, label_smoothing: float) -> None:
        """Creates the objective.

        Args:
            weights: of exits 1 to N, summing to 1.
            sampled: take the last exit and one at random in each step instead of all.
            label_smoothing: in [0, 1).
        """
        self.weights = weights
        self.sampled = sampled
        self.label_smoothing = label_smoothing

    def parameters(self, model: Seq2Seq) -> Iterator[nn.Parameter]:
        """Yields all parameters but those of the halting units."""
        units = model.decoder.halting_units
        halting = set() if units is None else set(units.parameters())
        return (parameter for parameter in model.parameters() if parameter not in halting)

    def loss(self, model: Seq2Seq, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Computes Σ_n w_n · cross-entropy of exit n; logs the last exit's negative log-likelihood."""
        exit_states = model(batch.source, batch.padding_mask, batch.tokens)
        return self.loss_of_exits(model, batch, exit_states)

    def loss_of_exits(
        self, model: Seq2Seq, batch: Batch, exit_states: list[Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Computes the same, given the exit states of all blocks."""
        if self.sampled:
            chosen = sample_exits(self.weights, torch.default_generator)
        else:
            chosen = dict(enumerate(self.weights, start=1))
        valid = batch.labels != PAD_ID
        labels = batch.labels[valid]
        total = torch.zeros((), device=labels.device)
        likelihood = total
        for block, weight in chosen.items():
            classifier = model.decoder.exit_heads.weight(block)
            states = exit_states[block - 1][valid]
            loss, likelihood = classify_and_score(states, classifier, labels, self.label_smoothing)
            total = total + weight * loss
        return total, {"nll": likelihood}


class HaltingOnFrozenTrunk:
    """Phase 2: the halting units learn the oracle's depths; nothing else changes."""

    def __init__(self, oracle: str, target: str, sigma: float, depth_penalty: float) -> None:
        """Creates the objective.

        Args:
            oracle: `likelihood`, `correctness` or `agreement`.
            target: `depth`, the oracle's one depth, against the distribution of depths as in the paper; or `gain`,
                of each unit by itself, whether a later block is worth its price.
            sigma: width of the kernel over neighbouring tokens, 0 for none.
            depth_penalty: λ.
        """
        self.oracle = oracle
        self.target = target
        self.sigma = sigma
        self.depth_penalty = depth_penalty

    def parameters(self, model: Seq2Seq) -> Iterator[nn.Parameter]:
        """Yields those of the halting units."""
        return _halting_units(model).parameters()

    def loss(self, model: Seq2Seq, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Computes the exit loss; logs the mean depths of oracle and units."""
        was_training = model.training
        # Dropout would blur the very states and probabilities that the units see when translating.
        model.eval()
        with torch.no_grad():
            exit_states = model(batch.source, batch.padding_mask, batch.tokens)
        model.train(was_training)
        return self.loss_of_exits(model, batch, exit_states)

    def loss_of_exits(
        self, model: Seq2Seq, batch: Batch, exit_states: list[Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Computes the same, given the exit states of all blocks."""
        valid = batch.labels != PAD_ID
        with torch.no_grad():
            scores = self._scores(model, exit_states, batch.labels)
            depths = oracle_depths(scores, valid, self.sigma, self.depth_penalty)[valid]
        halting_logits = _halting_units(model)([state[valid].float() for state in exit_states])
        log_stop = log_stop_distribution(halting_logits)
        if self.target == "depth":
            loss = exit_loss(log_stop, depths)
        else:
            stop = worth_stopping(scores, valid, self.sigma, self.depth_penalty)[valid]
            loss = gain_loss(halting_logits, stop)
        blocks = torch.arange(1, len(exit_states) + 1, device=loss.device)
        return loss, {
            "exit_loss": loss.detach(),
            "oracle_depth": depths.float().mean(),
            "expected_depth": (log_stop.detach().exp() * blocks).sum(-1).mean(),
        }

    def _scores(self, model: Seq2Seq, exit_states: list[Tensor], labels: Tensor) -> Tensor:
        """Computes how good each exit is for each token, (B, T, N)."""
        scores, choices = [], []
        for block, state in enumerate(exit_states, start=1):
            logits = model.decoder.exit_heads(state, block)
            if self.oracle == "likelihood":
                picked = logits.gather(-1, labels.unsqueeze(-1)).squeeze(-1).float()
                scores.append(picked - logits.float().logsumexp(-1))
            else:
                choices.append(logits.argmax(-1))
        if self.oracle == "likelihood":
            return torch.stack(scores, dim=-1)
        wanted = labels if self.oracle == "correctness" else choices[-1]
        return (torch.stack(choices, dim=-1) == wanted.unsqueeze(-1)).float()


class JointHalting:
    """Phase 2 as in the paper: L = L_dec + α · L_exit, and everything is trained."""

    def __init__(self, aligned: AlignedExits, halting: HaltingOnFrozenTrunk, alpha: float) -> None:
        self.aligned = aligned
        self.halting = halting
        self.alpha = alpha

    def parameters(self, model: Seq2Seq) -> Iterator[nn.Parameter]:
        """Yields all parameters."""
        return model.parameters()

    def loss(self, model: Seq2Seq, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Computes the sum; there is no stop-gradient between the units and the trunk."""
        exit_states = model(batch.source, batch.padding_mask, batch.tokens)
        decoder_loss, decoder_log = self.aligned.loss_of_exits(model, batch, exit_states)
        halting_loss, halting_log = self.halting.loss_of_exits(model, batch, exit_states)
        return decoder_loss + self.alpha * halting_loss, decoder_log | halting_log


def _halting_units(model: Seq2Seq) -> HaltingUnits:
    units = model.decoder.halting_units
    assert units is not None, "a halting objective needs a model with halting units"
    return units
