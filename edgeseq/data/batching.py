"""Batches of similar length, shuffled reproducibly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgeseq.data.corpus import ParallelCorpus
from edgeseq_runtime.tokenizer import BOS_ID, PAD_ID


@dataclass(frozen=True)
class Batch:
    """Sentence pairs as tensors; B pairs, S source and T target positions."""

    source: Tensor
    """int64 (B, S), EOS last, right-padded."""
    padding_mask: Tensor | None
    """bool (B, S), True at padding; None where no source is padded."""
    tokens: Tensor
    """int64 (B, T): BOS and the target's pieces: what the decoder reads."""
    labels: Tensor
    """int64 (B, T): the target's pieces and EOS: what it predicts; PAD_ID where there is nothing to predict."""

    def to(self, device: torch.device) -> Batch:
        """Copies the batch to a device."""
        mask = None if self.padding_mask is None else self.padding_mask.to(device)
        return Batch(self.source.to(device), mask, self.tokens.to(device), self.labels.to(device))


def plan_epoch(corpus: ParallelCorpus, batch_tokens: int, seed: int, epoch: int) -> list[NDArray[np.int64]]:
    """Deals all pairs of a corpus into batches.

    Pairs are shuffled, then sorted by length (stably, so ties stay shuffled), cut into batches of at most
    batch_tokens positions on the longer side, and the batches are shuffled. Almost nothing is padding.

    Args:
        corpus: the pairs.
        batch_tokens: positions per side and batch; a longer pair stands alone.
        seed: of the run.
        epoch: 0 for the first; another one gives another order.

    Returns:
        The indices of each batch.
    """
    generator = np.random.default_rng((seed, epoch))
    order = generator.permutation(len(corpus))
    source_lengths, target_lengths = corpus.source.lengths[order], corpus.target.lengths[order]
    order = order[np.lexsort((source_lengths, target_lengths))]
    longer = np.maximum(corpus.source.lengths, corpus.target.lengths)[order]
    batches = []
    start = longest = 0
    for end, length in enumerate(longer):
        longest = max(longest, int(length))
        if longest * (end + 1 - start) > batch_tokens and end > start:
            batches.append(order[start:end])
            start, longest = end, int(length)
    batches.append(order[start:])
    generator.shuffle(batches)
    return batches


def collate(corpus: ParallelCorpus, indices: Sequence[int] | NDArray[np.int64]) -> Batch:
    """Builds the tensors of a batch."""
    source = _pad([corpus.source[int(i)] for i in indices])
    labels = _pad([corpus.target[int(i)] for i in indices])
    tokens = np.full_like(labels, PAD_ID)
    tokens[:, 0] = BOS_ID
    tokens[:, 1:] = labels[:, :-1]
    padding = source == PAD_ID
    return Batch(
        source=torch.from_numpy(source),
        padding_mask=torch.from_numpy(padding) if padding.any() else None,
        tokens=torch.from_numpy(tokens),
        labels=torch.from_numpy(labels),
    )


def _pad(rows: Sequence[NDArray[np.uint16]]) -> NDArray[np.int64]:
    padded = np.full((len(rows), max(map(len, rows))), PAD_ID, dtype=np.int64)
    for row, ids in zip(padded, rows, strict=True):
        row[: len(ids)] = ids
    return padded
