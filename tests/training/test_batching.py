"""Batches: every pair once per epoch, within the token limit, in an order that the seed decides."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edgeseq.data.batching import collate, plan_epoch
from edgeseq.data.corpus import ParallelCorpus
from edgeseq_runtime.tokenizer import BOS_ID, EOS_ID, PAD_ID
from small_corpora import corpus_of

Lengths = list[tuple[int, int]]
some_lengths = st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), min_size=1, max_size=60)


def corpus_of_lengths(lengths: Sequence[tuple[int, int]]) -> ParallelCorpus:
    return corpus_of([([4] * (source - 1) + [EOS_ID], [5] * (target - 1) + [EOS_ID]) for source, target in lengths])


def varied_lengths(pairs: int) -> Lengths:
    """Lengths as in text: both sides of a pair alike, pairs from 2 to 30."""
    return [(2 + (7 * i) % 29, 2 + (7 * i + i % 4) % 29) for i in range(pairs)]


def as_lists(plan: Sequence[np.ndarray]) -> list[list[int]]:
    return [indices.tolist() for indices in plan]


@given(lengths=some_lengths, batch_tokens=st.integers(1, 64), seed=st.integers(0, 5), epoch=st.integers(0, 5))
def test_every_pair_comes_exactly_once_per_epoch(lengths: Lengths, batch_tokens: int, seed: int, epoch: int) -> None:
    plan = plan_epoch(corpus_of_lengths(lengths), batch_tokens, seed, epoch)
    assert all(len(indices) for indices in plan)
    assert sorted(np.concatenate(plan).tolist()) == list(range(len(lengths)))


@given(lengths=some_lengths, batch_tokens=st.integers(1, 64))
def test_no_batch_exceeds_the_token_limit_unless_a_pair_alone_does(lengths: Lengths, batch_tokens: int) -> None:
    corpus = corpus_of_lengths(lengths)
    for indices in plan_epoch(corpus, batch_tokens, seed=1, epoch=0):
        batch = collate(corpus, indices)
        positions = max(batch.source.numel(), batch.labels.numel())
        assert positions <= batch_tokens or len(indices) == 1


def test_batches_are_as_full_as_the_limit_allows() -> None:
    corpus = corpus_of_lengths([(5, 5)] * 20)
    assert sorted(len(indices) for indices in plan_epoch(corpus, 33, seed=1, epoch=0)) == [2, 6, 6, 6]


def test_the_order_follows_from_seed_and_epoch_alone() -> None:
    corpus = corpus_of_lengths(varied_lengths(300))
    plan = as_lists(plan_epoch(corpus, 120, seed=1, epoch=3))
    assert as_lists(plan_epoch(corpus, 120, seed=1, epoch=3)) == plan
    for seed, epoch in ((1, 4), (2, 3), (3, 1)):
        other = as_lists(plan_epoch(corpus, 120, seed, epoch))
        assert other != plan
        # Not only the order of batches: pairs of one length meet other pairs.
        assert {frozenset(indices) for indices in other} != {frozenset(indices) for indices in plan}


def test_every_epoch_has_as_many_batches() -> None:
    """The length of a phase in steps follows from the first epoch."""
    corpus = corpus_of_lengths(varied_lengths(300))
    assert len({len(plan_epoch(corpus, 120, seed, epoch)) for seed in range(3) for epoch in range(3)}) == 1


def padding_share(corpus: ParallelCorpus, plan: Sequence[Sequence[int] | np.ndarray]) -> float:
    batches = [collate(corpus, indices) for indices in plan]
    padded = sum(int((batch.source == PAD_ID).sum() + (batch.labels == PAD_ID).sum()) for batch in batches)
    return padded / sum(batch.source.numel() + batch.labels.numel() for batch in batches)


def test_almost_nothing_is_padding() -> None:
    corpus = corpus_of_lengths(varied_lengths(2000))
    plan = plan_epoch(corpus, 400, seed=1, epoch=0)
    assert padding_share(corpus, plan) < 0.05
    in_order = np.array_split(np.arange(2000), len(plan))  # control: batches of the same number, not sorted
    assert padding_share(corpus, in_order) > 0.3


def test_long_and_short_batches_alternate_at_random() -> None:
    corpus = corpus_of_lengths(varied_lengths(600))
    means = [corpus.target.lengths[indices].mean() for indices in plan_epoch(corpus, 200, seed=1, epoch=0)]
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.5
    assert abs(np.corrcoef(sorted(means), np.arange(len(means)))[0, 1]) > 0.9  # control: sorted batches


# --- Tensors


def test_the_decoder_reads_bos_and_pieces_and_predicts_pieces_and_eos() -> None:
    corpus = corpus_of([([7, 8, EOS_ID], [9, EOS_ID]), ([7, EOS_ID], [10, 11, 12, EOS_ID])])
    batch = collate(corpus, [1, 0])
    assert batch.source.tolist() == [[7, EOS_ID, PAD_ID], [7, 8, EOS_ID]]
    assert batch.labels.tolist() == [[10, 11, 12, EOS_ID], [9, EOS_ID, PAD_ID, PAD_ID]]
    assert batch.tokens.tolist() == [[BOS_ID, 10, 11, 12], [BOS_ID, 9, EOS_ID, PAD_ID]]
    assert batch.padding_mask is not None
    assert batch.padding_mask.tolist() == [[False, False, True], [False, False, False]]
    assert {tensor.dtype for tensor in (batch.source, batch.tokens, batch.labels)} == {torch.int64}


def test_no_mask_where_no_source_is_padded() -> None:
    corpus = corpus_of([([7, 8, EOS_ID], [9, EOS_ID]), ([7, 9, EOS_ID], [10, 11, 12, EOS_ID])])
    assert collate(corpus, [0, 1]).padding_mask is None


def test_a_plan_is_followed_in_order() -> None:
    corpus = corpus_of_lengths(varied_lengths(40))
    plan = plan_epoch(corpus, 60, seed=1, epoch=0)
    for indices in plan:
        batch = collate(corpus, indices)
        assert torch.equal(batch.source, collate(corpus, indices).source)
        assert (batch.source != PAD_ID).sum(dim=1).tolist() == corpus.source.lengths[indices].tolist()


@pytest.mark.parametrize("indices", [[0, 1], [0, 0]])
def test_a_batch_moves_as_a_whole(indices: list[int]) -> None:
    batch = collate(corpus_of_lengths([(2, 3), (4, 5)]), indices).to(torch.device("meta"))
    assert {tensor.device.type for tensor in (batch.source, batch.tokens, batch.labels)} == {"meta"}
    assert (batch.padding_mask is None) == (indices == [0, 0])
    assert batch.padding_mask is None or batch.padding_mask.device.type == "meta"
