"""Training of depth predictors on a frozen trunk, from cached exit states, all of them in one pass."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch
from torch import nn

from edgeseq.modules import DepthPredictor
from edgeseq.training.exit_cache import ExitCache
from edgeseq.training.predictor_loss import PredictorLoss
from edgeseq.training.schedules import rate_factor

_LOGGER = logging.getLogger(__name__)


def fit_predictors(
    cache: ExitCache,
    predictors: Mapping[str, tuple[DepthPredictor, PredictorLoss]],
    epochs: int,
    learning_rate: float,
    seed: int,
) -> None:
    """Trains predictors, in place.

    They share nothing but the order of the batches: each ends as it would if it were alone.

    Args:
        cache: what the exits said.
        predictors: name → predictor, on the CPU, and its loss.
        epochs: passes over the cache.
        learning_rate: at the start; falls along a half cosine to zero.
        seed: of the order of the batches.
    """
    parameters: list[nn.Parameter] = [
        parameter for predictor, _ in predictors.values() for parameter in predictor.parameters()
    ]
    optimizer = torch.optim.Adam(parameters, lr=learning_rate)
    generator = torch.Generator().manual_seed(seed)
    steps = epochs * len(cache)
    step = 0
    for epoch in range(1, epochs + 1):
        sums: dict[str, torch.Tensor] = {}
        for index in torch.randperm(len(cache), generator=generator).tolist():
            observed = cache[index]
            optimizer.param_groups[0]["lr"] = learning_rate * rate_factor(step, steps, 0, "cosine")
            for name, (predictor, loss_of) in predictors.items():
                loss, logged = loss_of(predictor, observed)
                loss.backward()
                values = torch.stack((logged["exit_loss"], logged["oracle_depth"], logged["expected_depth"]))
                sums[name] = sums.get(name, torch.zeros(3)) + values
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            step += 1
        if epoch == epochs:
            for name, total in sums.items():
                loss_value, oracle, expected = (total / len(cache)).tolist()
                _LOGGER.info(
                    "predictor %s: loss %.3f, mean depth %.2f of the oracle, %.2f expected",
                    name,
                    loss_value,
                    oracle,
                    expected,
                )
