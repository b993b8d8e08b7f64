"""What a training phase minimises on one batch: the exits alone, or exits and a depth predictor together.

An objective also says which parameters it trains; the trainer knows nothing else of phases.

Dimensions: B sentences, T target positions, D channels, N decoder blocks, M sampled paths.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Protocol

import torch
from torch import Tensor, nn

from edgeseq.data.batching import Batch
from edgeseq.models import Seq2Seq
from edgeseq.modules.predictors import mean_memory
from edgeseq.training.losses import Teacher, classify_and_score, gradient_scales, sample_exits
from edgeseq.training.predictor_loss import PredictorLoss, observe_exits
from edgeseq_runtime.tokenizer import PAD_ID

Loss = tuple[Tensor, dict[str, Tensor]]
"""A loss (mean per target token), and what to log of it."""


class Objective(Protocol):
    """One phase's loss."""

    def parameters(self, model: Seq2Seq) -> Iterator[nn.Parameter]:
        """Yields what is trained."""
        ...

    def loss(self, model: Seq2Seq, batch: Batch) -> Loss:
        """Computes the loss of a batch."""
        ...


class DecoderObjective(Objective, Protocol):
    """A loss of the exits, which another objective may add to."""

    def decoder_loss(self, model: Seq2Seq, batch: Batch, memory: Tensor) -> tuple[Loss, Sequence[Tensor] | None]:
        """Computes the loss from the encoder's output (B, S, D).

        Returns:
            The loss, and the exit states (B, T, D) of all blocks where no token stopped, if it computed them.
        """
        ...


class AlignedExits:
    """Every exit predicts, given true states of all blocks below (Elbayad et al., section 2.2.1)."""

    def __init__(
        self,
        weights: list[float],
        sampled: bool,
        label_smoothing: float,
        gradient_scaling: float = 0.0,
        self_distillation: float = 0.0,
    ) -> None:
        """Creates the objective.

        Args:
            weights: of exits 1 to N, summing to 1; an exit whose weight is 0 costs nothing.
            sampled: take the last exit and one at random in each step instead of all.
            label_smoothing: in [0, 1).
            gradient_scaling: γ of appendix A; 0 leaves gradients as they are.
            self_distillation: share of the lower exits' targets that is the last exit's distribution, in [0, 1).
        """
        self.sampled = sampled
        self.label_smoothing = label_smoothing
        self.self_distillation = self_distillation
        self._up_scales = None
        self._weights = weights
        if gradient_scaling:
            scales, self._up_scales = gradient_scales(gradient_scaling, len(weights))
            self._weights = [weight * scale for weight, scale in zip(weights, scales, strict=True)]

    def parameters(self, model: Seq2Seq) -> Iterator[nn.Parameter]:
        """Yields all parameters but those of depth predictors."""
        return trunk_parameters(model)

    def loss(self, model: Seq2Seq, batch: Batch) -> Loss:
        """Computes Σ_n w_n · cross-entropy of exit n; logs the last exit's negative log-likelihood."""
        return self.decoder_loss(model, batch, model.encoder(batch.source, batch.padding_mask))[0]

    def decoder_loss(self, model: Seq2Seq, batch: Batch, memory: Tensor) -> tuple[Loss, Sequence[Tensor] | None]:
        """See `DecoderObjective`."""
        exit_states = model.decoder(batch.tokens, memory, batch.padding_mask, up_scales=self._up_scales)
        if self.sampled:
            chosen = sample_exits(self._weights, torch.default_generator)
        else:
            chosen = {block: weight for block, weight in enumerate(self._weights, start=1) if weight}
        valid = batch.labels != PAD_ID
        labels = batch.labels[valid]
        blocks = len(exit_states)
        teacher = None
        if self.self_distillation:
            last = exit_states[-1][valid].detach()
            teacher = Teacher(last, model.decoder.exit_heads.weight(blocks), self.self_distillation)
        total = torch.zeros((), device=labels.device)
        likelihood = total
        for block, weight in chosen.items():
            classifier = model.decoder.exit_heads.weight(block)
            loss, likelihood = classify_and_score(
                exit_states[block - 1][valid],
                classifier,
                labels,
                self.label_smoothing,
                teacher if block < blocks else None,
            )
            total = total + weight * loss
        return (total, {"nll": likelihood}), exit_states


class MixedExits:
    """Tokens stop at random blocks, and later ones see their copied states above (Elbayad et al., section 2.2.2)."""

    def __init__(self, paths: int, label_smoothing: float) -> None:
        """Creates the objective.

        Args:
            paths: M: sequences of depths drawn for each batch, every depth equally likely.
            label_smoothing: in [0, 1).
        """
        self.paths = paths
        self.label_smoothing = label_smoothing

    def parameters(self, model: Seq2Seq) -> Iterator[nn.Parameter]:
        """Yields all parameters but those of depth predictors."""
        return trunk_parameters(model)

    def loss(self, model: Seq2Seq, batch: Batch) -> Loss:
        """Computes the mean over M paths of the cross-entropy along each; logs the negative log-likelihood."""
        return self.decoder_loss(model, batch, model.encoder(batch.source, batch.padding_mask))[0]

    def decoder_loss(self, model: Seq2Seq, batch: Batch, memory: Tensor) -> tuple[Loss, Sequence[Tensor] | None]:
        """See `DecoderObjective`; in no pass do all tokens go on to the last block."""
        blocks = len(model.decoder.blocks)
        valid = batch.labels != PAD_ID
        likelihood = total = torch.zeros((), device=memory.device)
        for _ in range(self.paths):
            depths = torch.randint(1, blocks + 1, batch.tokens.shape, device=memory.device)
            exit_states = model.decoder(batch.tokens, memory, batch.padding_mask, depths)
            for block, state in enumerate(exit_states, start=1):
                stopped = valid & (depths == block)
                share = stopped.sum() / valid.sum()
                if not share:
                    continue
                classifier = model.decoder.exit_heads.weight(block)
                loss, nll = classify_and_score(state[stopped], classifier, batch.labels[stopped], self.label_smoothing)
                total = total + share * loss / self.paths
                likelihood = likelihood + share * nll / self.paths
        return (total, {"nll": likelihood}), None


class JointObjective:
    """Phase 2 of the paper: L = L_dec + α · L_exit, and everything is trained."""

    def __init__(self, exits: DecoderObjective, predictor: str, predictor_loss: PredictorLoss, alpha: float) -> None:
        """Creates the objective.

        Args:
            exits: L_dec.
            predictor: name of the depth predictor.
            predictor_loss: L_exit.
            alpha: α.
        """
        self.exits = exits
        self.predictor = predictor
        self.predictor_loss = predictor_loss
        self.alpha = alpha

    def parameters(self, model: Seq2Seq) -> Iterator[nn.Parameter]:
        """Yields the trunk's parameters and the predictor's."""
        return chain(trunk_parameters(model), model.predictor(self.predictor).parameters())

    def loss(self, model: Seq2Seq, batch: Batch) -> Loss:
        """Computes the sum; there is no stop-gradient between the predictor and the trunk."""
        memory = model.encoder(batch.source, batch.padding_mask)
        (decoder_loss, decoder_log), exit_states = self.exits.decoder_loss(model, batch, memory)
        if exit_states is None:
            exit_states = model.decoder(batch.tokens, memory, batch.padding_mask)
        mean = mean_memory(memory, batch.padding_mask)
        observed = observe_exits(model, exit_states, mean, batch.labels)
        exit_loss, exit_log = self.predictor_loss(model.predictor(self.predictor), observed)
        return decoder_loss + self.alpha * exit_loss, decoder_log | exit_log


def trunk_parameters(model: Seq2Seq) -> Iterator[nn.Parameter]:
    """Yields all parameters but those of depth predictors."""
    predictors = set(model.predictors.parameters())
    return (parameter for parameter in model.parameters() if parameter not in predictors)
