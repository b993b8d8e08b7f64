"""Greedy search on a decoder whose every score is written by hand."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from edgeseq_runtime.policy import DepthPolicy, FixedDepth
from edgeseq_runtime.search import greedy, greedy_steps, output_limit
from edgeseq_runtime.tokenizer import BOS_ID, EOS_ID, PAD_ID
from tiny_bundle import tiny_facts

VOCAB = 8
POLICY = FixedDepth("1", tiny_facts(), 1)


@dataclass
class Scored:
    logits: np.ndarray
    depths: np.ndarray
    candidates: np.ndarray | None = None


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
    full_depth: int = VOCAB

    def encode(self, sources: Sequence[Sequence[int]], policy: DepthPolicy, *, alone: bool) -> list[list[int]]:
        assert policy is POLICY
        return [[source[0], 0] for source in sources]

    def adopt(self, state: list[list[int]], rows: np.ndarray, other: list[list[int]], other_rows: np.ndarray) -> None:
        for row, new in zip(rows, other_rows, strict=True):
            state[row] = list(other[new])

    def step(
        self,
        state: list[list[int]],
        tokens: np.ndarray,
        parents: np.ndarray | None = None,
        depths: np.ndarray | None = None,
    ) -> Scored:
        assert depths is None or (depths == VOCAB).all(), "only a prefix is fed at full depth"
        if parents is not None:
            state[:] = [state[parent] for parent in parents]
        self.alive.append([sentence for sentence, _ in state])
        self.fed.append(tokens.tolist())
        logits = np.zeros((len(state), VOCAB), dtype=np.float32)
        used = []
        for row, place in enumerate(state):
            best = self.lines[place[0]][place[1]]
            place[1] += 1
            logits[row, best] = 2
            logits[row, [PAD_ID, BOS_ID]] = 5
            used.append(best)
        return Scored(logits, np.array(used))

    def run_ahead(self, *arguments: object) -> None:
        """Every step is asked for."""

    def release(self, state: object) -> None:
        """Nothing is kept."""


class Runner(Script):
    """Decodes a sentence alone to its end, and remembers what it was asked."""

    def run_ahead(self, state: list[list[int]], token: int, most: int, never: Sequence[int]) -> Any:  # type: ignore[override]
        if len(state) > 1:
            return None
        sentence, place = state[0]
        self.fed.append([token, most])
        assert list(never) == [PAD_ID, BOS_ID]
        tokens = self.lines[sentence][place : place + min(most, 2)]  # fewer than asked for: it is asked again
        state[0][1] += len(tokens)
        return tokens, tokens


def test_a_sentence_alone_is_decoded_ahead() -> None:
    runner = Runner({10: [5, 6, 7, EOS_ID], 11: [4, 4, 4, 4]})
    results = greedy(runner, [[10], [11]], POLICY, [9, 3], rows=1)
    assert [result.tokens for result in results] == [[5, 6, 7, EOS_ID], [4, 4, 4]]
    assert [result.depths for result in results] == [result.tokens for result in results]
    assert runner.fed == [[BOS_ID, 9], [6, 7], [BOS_ID, 3], [4, 1]]
    assert runner.alive == [], "no step was asked for"


@pytest.mark.parametrize(("options", "steps"), [({"want_scores": True}, 4), ({"prefixes": [[6, 6]]}, 2)])
def test_what_needs_each_step_asks_for_each_step(options: dict[str, Any], steps: int) -> None:
    """Scores want all logits; a prefix has to be fed, and what follows it need not."""
    runner = Runner({10: [5, 6, 7, EOS_ID]})
    (found,) = greedy(runner, [[10]], POLICY, [9], **options)
    assert found.tokens == [5, 6, 7, EOS_ID][len(options.get("prefixes", [[]])[0]) :]
    assert len(runner.alive) == steps


def test_a_stream_gives_each_token_as_it_is_chosen() -> None:
    runner = Runner({10: [5, 6, EOS_ID]})
    steps = greedy_steps(runner, [[10]], POLICY, [9])
    assert next(steps).tokens.tolist() == [5]
    assert runner.fed == [[BOS_ID]]


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


LINES = {10: [5, 6, EOS_ID], 11: [EOS_ID], 12: [4, 4, EOS_ID], 13: [7, EOS_ID], 14: [6, EOS_ID]}


def test_rows_of_finished_sentences_go_to_the_next() -> None:
    script = Script(LINES)
    results = greedy(script, [[id_] for id_ in LINES], POLICY, [9] * 5, rows=2)
    assert [result.tokens for result in results] == list(LINES.values())
    assert script.alive == [[10, 11], [10, 12], [10, 12], [13, 12], [13, 14], [14]]
    assert script.fed[1:4] == [[5, BOS_ID], [6, 4], [BOS_ID, 4]]


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 9, None])
def test_the_number_of_rows_changes_no_result(rows: int | None) -> None:
    sources = [[id_] for id_ in LINES]
    results = greedy(Script(LINES), sources, POLICY, [2] * 5, rows=rows, want_scores=True)
    assert [result.tokens for result in results] == [line[:2] for line in LINES.values()]
    assert results == greedy(Script(LINES), sources, POLICY, [2] * 5, want_scores=True)


def test_sentences_are_encoded_a_batch_at_a_time() -> None:
    class Counting(Script):
        def encode(self, sources: Sequence[Sequence[int]], policy: DepthPolicy, *, alone: bool) -> list[list[int]]:
            sizes.append(len(sources))
            return super().encode(sources, policy, alone=alone)

    sizes: list[int] = []
    greedy(Counting(LINES), [[id_] for id_ in LINES], POLICY, [9] * 5, rows=2)
    assert sizes == [2, 2, 1]


def test_limit_counts_eos_and_is_at_least_ten() -> None:
    assert [output_limit(pieces) for pieces in (1, 2, 21)] == [10, 12, 50]


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
