"""Greedy search on a decoder whose every score is written by hand."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest

from edgeseq_runtime.policy import DepthPolicy, FixedDepth
from edgeseq_runtime.search import greedy, greedy_steps
from edgeseq_runtime.tokenizer import BOS_ID, EOS_ID, PAD_ID

VOCAB = 8
POLICY = FixedDepth(1, "1")


@dataclass
class Scored:
    logits: np.ndarray
    depths: np.ndarray


@dataclass
class Script:
    """Plays one list of tokens per sentence; the depth of a token is its own number.

    Attributes:
        lines: Best token at each step, by the sentence's only id.
        alive: Ids in the batch at each step.
        fed: Tokens fed at each step.
    """

    lines: dict[int, list[int]]
    alive: list[list[int]] = field(default_factory=list)
    fed: list[list[int]] = field(default_factory=list)

    def encode(self, sources: Sequence[Sequence[int]], policy: DepthPolicy) -> list[list[int]]:
        assert policy is POLICY
        return [[source[0], 0] for source in sources]

    def step(self, state: list[list[int]], tokens: np.ndarray, parents: np.ndarray | None = None) -> Scored:
        if parents is not None:
            state[:] = [state[parent] for parent in parents]
        self.alive.append([sentence for sentence, _ in state])
        self.fed.append(tokens.tolist())
        logits = np.zeros((len(state), VOCAB), dtype=np.float32)
        depths = []
        for row, place in enumerate(state):
            best = self.lines[place[0]][place[1]]
            place[1] += 1
            logits[row, best] = 2
            logits[row, [PAD_ID, BOS_ID]] = 5
            depths.append(best)
        return Scored(logits, np.array(depths))


def test_sentences_end_at_eos_or_at_their_limit() -> None:
    script = Script({10: [5, 6, EOS_ID], 11: [EOS_ID], 12: [4, 4, 4, 4, 4]})
    results = greedy(script, [[10], [11], [12]], POLICY, [9, 9, 4])
    assert [result.tokens for result in results] == [[5, 6, EOS_ID], [EOS_ID], [4, 4, 4, 4]]
    assert [result.depths for result in results] == [result.tokens for result in results]
    assert [result.score for result in results] == [None] * 3


def test_sentences_that_end_leave_the_batch() -> None:
    script = Script({10: [5, 6, EOS_ID], 11: [EOS_ID], 12: [4, 4, 4, 4, EOS_ID]})
    greedy(script, [[10], [11], [12]], POLICY, [9, 9, 9])
    assert script.alive == [[10, 11, 12], [10, 12], [10, 12], [12], [12]]
    assert script.fed == [[BOS_ID] * 3, [5, 4], [6, 4], [4], [4]]


def test_pad_and_bos_are_never_chosen() -> None:
    """The script scores them highest at every step."""
    (result,) = greedy(Script({10: [5, EOS_ID]}), [[10]], POLICY, [9])
    assert result.tokens == [5, EOS_ID]


def test_score_is_the_mean_log_probability() -> None:
    """Per step: one logit of 2, two of 5 (pad and bos, part of the model's distribution), five 0."""
    script = Script({10: [5, 6, EOS_ID], 11: [EOS_ID]})
    results = greedy(script, [[10], [11]], POLICY, [9, 9], want_scores=True)
    expected = 2 - math.log(math.exp(2) + 2 * math.exp(5) + 5)
    assert [result.score for result in results] == pytest.approx([expected, expected], abs=1e-6)


def test_steps_are_given_as_they_are_chosen() -> None:
    script = Script({10: [5, 6, EOS_ID], 11: [EOS_ID]})
    steps = greedy_steps(script, [[10], [11]], POLICY, [9, 9])
    first = next(steps)
    assert len(script.fed) == 1
    assert (first.sentences.tolist(), first.tokens.tolist()) == ([0, 1], [5, EOS_ID])
    assert [step.sentences.tolist() for step in steps] == [[0], [0]]


def test_first_of_equal_scores_is_taken() -> None:
    """So that a tie is broken the same way in every batch."""

    class Flat(Script):
        def step(self, *arguments: object) -> Scored:
            scored = super().step(*arguments)  # type: ignore[arg-type]
            scored.logits[:] = 0
            return scored

    (result,) = greedy(Flat({10: [5, 5]}), [[10]], POLICY, [2])
    assert result.tokens == [1, 1]
