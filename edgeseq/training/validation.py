"""Validation during training: loss at every depth, BLEU at some, by the reference decoder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from sacrebleu.metrics.bleu import BLEU

from edgeseq.data.batching import collate, plan_epoch
from edgeseq.data.corpus import ParallelCorpus
from edgeseq.models import Seq2Seq
from edgeseq.models.reference import StopRule, reference_decode, stop_at
from edgeseq_runtime.search import output_limit
from edgeseq_runtime.tokenizer import PAD_ID, Tokenizer

_BATCH_TOKENS = 4096
_BATCH_SENTENCES = 128


@torch.no_grad()
def loss_per_depth(model: Seq2Seq, corpus: ParallelCorpus, device: torch.device) -> list[float]:
    """Computes the negative log-likelihood per target token of each exit, in nats."""
    sums = torch.zeros(len(model.decoder.blocks), dtype=torch.float64)
    for indices in plan_epoch(corpus, _BATCH_TOKENS, seed=0, epoch=0):
        batch = collate(corpus, indices).to(device)
        valid = batch.labels != PAD_ID
        labels = batch.labels[valid]
        for block, state in enumerate(model(batch.source, batch.padding_mask, batch.tokens), start=1):
            logits = model.decoder.exit_heads(state[valid], block).float()
            sums[block - 1] += torch.nn.functional.cross_entropy(logits, labels, reduction="sum").cpu()
    return (sums / corpus.target_tokens).tolist()


def translate_ids(
    model: Seq2Seq, sources: Sequence[Sequence[int]], rule: StopRule
) -> Iterator[tuple[list[int], list[int]]]:
    """Yields tokens and depths of each source, in order."""
    by_length = sorted(range(len(sources)), key=lambda index: len(sources[index]))
    results: dict[int, tuple[list[int], list[int]]] = {}
    for start in range(0, len(by_length), _BATCH_SENTENCES):
        chosen = by_length[start : start + _BATCH_SENTENCES]
        batch = [sources[index] for index in chosen]
        limits = [output_limit(len(source)) for source in batch]
        results.update(zip(chosen, reference_decode(model, batch, rule, limits), strict=True))
    for index in range(len(sources)):
        yield results[index]


def bleu_per_depth(
    model: Seq2Seq, corpus: ParallelCorpus, tokenizer: Tokenizer, depths: Sequence[int], sentences: int
) -> dict[int, float]:
    """Translates the first sentences of a corpus at several depths and scores them against its decoded targets."""
    count = min(sentences, len(corpus))
    sources = [corpus.source[index].tolist() for index in range(count)]
    references = [tokenizer.decode(corpus.target[index].tolist()) for index in range(count)]
    scores = {}
    for depth in depths:
        outputs = [tokenizer.decode(tokens) for tokens, _ in translate_ids(model, sources, stop_at(depth))]
        scores[depth] = BLEU().corpus_score(outputs, [references]).score
    return scores
