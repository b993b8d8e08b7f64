"""Token embeddings: scaled vectors plus sines and cosines of the position."""

import math

import pytest
import torch

from edgeseq.modules import TokenEmbedding
from edgeseq.modules.embedding import sinusoid
from ramp import fill_with_ramp, greatest_difference

DIM = 8


@pytest.mark.parametrize("position", [0, 1, 5, 300])
def test_positions_are_sines_then_cosines_of_falling_frequency(position: int) -> None:
    angles = [position * 10000 ** (-i / (DIM / 2 - 1)) for i in range(DIM // 2)]
    expected = [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles]
    assert sinusoid(torch.tensor(position), DIM).tolist() == pytest.approx(expected, abs=1e-4)
    interleaved = [f(angle) for angle in angles for f in (math.sin, math.cos)]  # control: the other common order
    assert sinusoid(torch.tensor(position), DIM).tolist() != pytest.approx(interleaved, abs=1e-4)


def test_the_narrowest_sinusoid_is_finite() -> None:
    assert sinusoid(torch.tensor([3]), 2).tolist() == [[pytest.approx(math.sin(3)), pytest.approx(math.cos(3))]]


def test_tokens_are_scaled_before_their_position_is_added() -> None:
    embedding = fill_with_ramp(TokenEmbedding(12, DIM, padding_id=0))
    tokens = torch.tensor([[4, 7, 4]])
    expected = embedding.table.weight[tokens] * math.sqrt(DIM) + sinusoid(torch.arange(3), DIM)
    assert greatest_difference(embedding(tokens, torch.arange(3)), expected) < 1e-6


def test_positions_may_differ_by_row() -> None:
    """As in decoding, where each row is as far as it is."""
    embedding = fill_with_ramp(TokenEmbedding(12, DIM, padding_id=0))
    tokens = torch.tensor([[4, 7], [4, 7]])
    result = embedding(tokens, torch.tensor([[0, 1], [5, 6]]))
    assert torch.equal(result[:1], embedding(tokens[:1], torch.tensor([0, 1])))
    assert torch.equal(result[1:], embedding(tokens[1:], torch.tensor([5, 6])))
    assert not torch.equal(result[0], result[1])


def test_padding_has_no_vector() -> None:
    embedding = TokenEmbedding(12, DIM, padding_id=0)
    assert not embedding.table.weight[0].any()
    assert embedding.table.weight[1:].any(dim=1).all()


def test_an_odd_width_is_named() -> None:
    with pytest.raises(ValueError, match="dim 7 is odd; sines and cosines need half of the channels each"):
        TokenEmbedding(12, 7, padding_id=0)
