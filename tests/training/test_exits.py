"""Exit heads: one classifier for all blocks, or one per block."""

import pytest
import torch
from torch import nn

from edgeseq.modules import ExitHeads
from ramp import fill_with_ramp, greatest_difference, ramp

DIM, VOCAB, BLOCKS = 6, 11, 4
TOLERANCE = 1e-6


def test_tied_heads_are_one_classifier_and_untied_ones_are_not() -> None:
    state = ramp(2, DIM)
    tied = fill_with_ramp(ExitHeads(DIM, VOCAB, BLOCKS, tied=True, embedding=None).double())
    untied = fill_with_ramp(ExitHeads(DIM, VOCAB, BLOCKS, tied=False, embedding=None).double())
    assert torch.equal(tied(state, 1), tied(state, BLOCKS))
    assert not torch.equal(untied(state, 1), untied(state, BLOCKS))
    for block in range(1, BLOCKS + 1):
        assert greatest_difference(untied(state, block), state @ untied.weights[block - 1].T) < TOLERANCE
        assert untied.weight(block) is untied.weights[block - 1]


def test_a_head_tied_to_the_embedding_has_its_weight_and_its_gradient() -> None:
    embedding = nn.Embedding(VOCAB, DIM)
    heads = ExitHeads(DIM, VOCAB, BLOCKS, tied=True, embedding=embedding)
    assert heads.weight(3) is embedding.weight
    heads(torch.ones(DIM), 3).sum().backward()
    assert embedding.weight.grad is not None


def test_untied_heads_cannot_share_the_embedding() -> None:
    with pytest.raises(ValueError, match="untied exit heads cannot share the embedding's weight; tie the heads or"):
        ExitHeads(DIM, VOCAB, BLOCKS, tied=False, embedding=nn.Embedding(VOCAB, DIM))
