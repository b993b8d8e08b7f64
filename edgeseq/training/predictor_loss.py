"""What a depth predictor learns of what the exits of all blocks said.

Dimensions: B sentences, T target positions, D channels, N decoder blocks, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from edgeseq.models import Seq2Seq
from edgeseq.modules import CertaintyUnits, DepthPredictor, HaltingUnits
from edgeseq.modules.predictors import certainty_of
from edgeseq.training.losses import exit_loss, gain_loss
from edgeseq.training.oracles import oracle_depths, smooth_over_positions, sum_over_sentence, worth_stopping
from edgeseq_runtime.tokenizer import PAD_ID

Oracle = Literal["likelihood", "correctness", "agreement"]


@dataclass(frozen=True)
class ExitObservations:
    """What the exits said of a batch; all that any predictor and any oracle need."""

    exit_states: Sequence[Tensor]
    """Of N blocks, each (B, T, D)."""
    mean_memory: Tensor
    """(B, D): the encoder's output averaged over each sentence."""
    likelihood: Tensor
    """(B, T, N): log-probability of the reference token at each exit."""
    choices: Tensor
    """Integers (B, T, N): the piece each exit finds likeliest."""
    labels: Tensor
    """Integers (B, T): the reference; PAD_ID where there is nothing to predict."""
    certainty: Tensor | None = None
    """(B, T, N, 2): how certain each exit is, see `certainty_of`; None where nobody asked."""

    def scores(self, oracle: Oracle) -> Tensor:
        """Computes how good each exit is for each token, (B, T, N); see `edgeseq.training.oracles`."""
        if oracle == "likelihood":
            return self.likelihood
        wanted = self.labels if oracle == "correctness" else self.choices[..., -1]
        return (self.choices == wanted.unsqueeze(-1)).float()


def observe_exits(
    model: Seq2Seq, exit_states: Sequence[Tensor], mean: Tensor, labels: Tensor, *, with_certainty: bool = False
) -> ExitObservations:
    """Classifies the exit states of all blocks, without gradient.

    Args:
        model: whose exit heads to use.
        exit_states: of N blocks, each (B, T, D).
        mean: the encoder's output averaged over each sentence, (B, D).
        labels: int64 (B, T).
        with_certainty: measure how certain each exit is, too.
    """
    likelihood, choices, certainty = [], [], []
    with torch.no_grad():
        for block, state in enumerate(exit_states, start=1):
            logits = model.decoder.exit_heads(state, block)
            picked = logits.gather(-1, labels.unsqueeze(-1)).squeeze(-1).float()
            likelihood.append(picked - logits.float().logsumexp(-1))
            choices.append(logits.argmax(-1))
            if with_certainty:
                certainty.append(certainty_of(logits))
    return ExitObservations(
        exit_states,
        mean,
        torch.stack(likelihood, dim=-1),
        torch.stack(choices, dim=-1),
        labels,
        torch.stack(certainty, dim=2) if with_certainty else None,
    )


class PredictorLoss:
    """The loss of one predictor against its oracle."""

    def __init__(
        self, oracle: Oracle, target: Literal["depth", "gain"], sigma: float, depth_penalty: float, prices: list[float]
    ) -> None:
        """Creates the loss.

        Args:
            oracle: what makes a depth good.
            target: `depth`, the oracle's one depth; or `gain`, of each halting unit by itself, whether a later block
                is worth its price.
            sigma: width of the kernel over neighbouring tokens, 0 for none; of no effect on sentences.
            depth_penalty: λ.
            prices: of depths 1 to N.
        """
        self.oracle = oracle
        self.target = target
        self.sigma = sigma
        self.costs = depth_penalty * torch.tensor(prices)

    def __call__(self, predictor: DepthPredictor, observed: ExitObservations) -> tuple[Tensor, dict[str, Tensor]]:
        """Computes the mean loss per decision; logs the mean depths of oracle and predictor."""
        dtype = next(predictor.parameters()).dtype  # a cache has half precision
        exit_states = [state.to(dtype) for state in observed.exit_states]
        log_q = predictor.log_distribution(exit_states, observed.mean_memory, observed.certainty)
        valid = observed.labels != PAD_ID
        scores, costs = observed.scores(self.oracle), self.costs.to(valid.device)
        if log_q.shape[1] == 1 and valid.shape[1] != 1:  # one depth for a sentence
            scores, valid = sum_over_sentence(scores, valid), valid[:, :1]
        else:
            scores = smooth_over_positions(scores, valid, self.sigma)
        depths = oracle_depths(scores, costs)[valid]
        log_q = log_q[valid]
        if self.target == "gain":
            assert isinstance(predictor, HaltingUnits | CertaintyUnits), "the configuration allows no other"
            logits = predictor(observed.certainty if isinstance(predictor, CertaintyUnits) else exit_states)
            loss = gain_loss(logits[valid], worth_stopping(scores, costs)[valid])
        else:
            loss = exit_loss(log_q, depths)
        blocks = torch.arange(1, log_q.shape[-1] + 1, device=loss.device)
        return loss, {
            "exit_loss": loss.detach(),
            "oracle_depth": depths.float().mean(),
            "expected_depth": (log_q.detach().exp() * blocks).sum(-1).mean(),
        }
