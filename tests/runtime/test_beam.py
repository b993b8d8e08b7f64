"""Beam search against a naive one on every continuation there is, over scores that depend on the whole path."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from edgeseq.models.reference import NaiveHypothesis, naive_beam_search
from edgeseq_runtime import beam as beam_module
from edgeseq_runtime.arrays import FloatArray, IntArray
from edgeseq_runtime.beam import GREEDY, BeamOptions, beam_search
from edgeseq_runtime.errors import InputError
from edgeseq_runtime.policy import DepthPolicy, FixedDepth
from edgeseq_runtime.search import Hypothesis, greedy
from edgeseq_runtime.tokenizer import BOS_ID, EOS_ID, PAD_ID
from tiny_bundle import tiny_facts

VOCAB = 7
POLICY = FixedDepth("1", tiny_facts(), 1)


@dataclass
class Scored:
    logits: FloatArray
    depths: IntArray
    candidates: IntArray | None = None


def logits_after(source: int, path: Sequence[int]) -> FloatArray:
    """Random, but the same for the same source and path; eos is likelier the longer the path."""
    logits = np.random.default_rng([source, *path]).normal(size=VOCAB).astype(np.float32)
    logits[EOS_ID] += 0.3 * len(path) - 1
    return logits


def depth_after(path: Sequence[int]) -> int:
    return 1 + sum(path) % 3


class Paths:
    """A decoder whose state is each row's path."""

    full_depth = 3

    def encode(self, sources: Sequence[Sequence[int]], policy: DepthPolicy, *, alone: bool) -> list[list[int]]:
        assert policy is POLICY
        return [[source[0]] for source in sources]

    def adopt(self, state: list[list[int]], rows: IntArray, other: list[list[int]], other_rows: IntArray) -> None:
        for row, other_row in zip(rows.tolist(), other_rows.tolist(), strict=True):
            state[row] = list(other[other_row])

    def step(
        self,
        state: list[list[int]],
        tokens: IntArray,
        parents: IntArray | None = None,
        depths: IntArray | None = None,
    ) -> Scored:
        assert depths is None
        if parents is not None:
            state[:] = [list(state[parent]) for parent in parents.tolist()]
        for path, token in zip(state, tokens.tolist(), strict=True):
            path.append(token)
        logits = [logits_after(path[0], path[2:]) for path in state]
        return Scored(np.stack(logits), np.array([depth_after(path[2:]) for path in state]))

    def run_ahead(self, *arguments: object) -> None:
        """Every step is asked for."""

    def release(self, state: object) -> None:
        """Nothing is kept."""


CANDIDATES = np.array([PAD_ID, 1, BOS_ID, EOS_ID, 5, PAD_ID, PAD_ID])
"""Padding behind; see `edgeseq_runtime.shortlist`."""


class Masked(Paths):
    """Has no other piece than the candidates to choose from."""

    def step(self, *arguments: Any, **named: Any) -> Scored:
        step = super().step(*arguments, **named)
        step.logits[:, np.setdiff1d(np.arange(VOCAB), CANDIDATES)] = -np.inf
        return step


class Listed(Masked):
    """Gives their logits only."""

    def step(self, *arguments: Any, **named: Any) -> Scored:
        step = super().step(*arguments, **named)
        logits = step.logits[:, CANDIDATES]
        logits[:, -2:] = -np.inf
        return Scored(logits, step.depths, np.tile(CANDIDATES, (len(logits), 1)))


@pytest.mark.parametrize(
    "options",
    [
        GREEDY,
        BeamOptions(size=3),
        BeamOptions(size=4, n_best=4, min_length=4),
        BeamOptions(size=2, no_repeat_ngram=1),
        BeamOptions(size=3, no_repeat_ngram=2),
    ],
    ids=str,
)
def test_columns_of_candidates_are_their_pieces(options: BeamOptions) -> None:
    """The same as with a column for every piece, of which others cannot be chosen."""

    def found(decoder: Paths) -> list[list[Hypothesis]]:
        sources = [[source] for source in SOURCES]
        if options == GREEDY:
            return [[best] for best in greedy(decoder, sources, POLICY, LIMITS, want_scores=True)]
        return beam_search(decoder, sources, POLICY, LIMITS, options, places=3)

    listed, masked = found(Listed()), found(Masked())
    assert [paths_of(hypotheses) for hypotheses in listed] == [paths_of(hypotheses) for hypotheses in masked]
    assert {token for of_one in listed for each in of_one for token in each.tokens} == {1, EOS_ID, 5}
    for one, other in zip(itertools.chain(*listed), itertools.chain(*masked), strict=True):
        assert one.score == pytest.approx(other.score, abs=1e-5)


def naive(source: int, limit: int, options: BeamOptions) -> list[NaiveHypothesis]:
    def score_next(paths: list[list[int]], used: list[list[int]]) -> tuple[list[list[float]], list[int]]:
        assert used == [[depth_after(path[:end]) for end in range(len(path))] for path in paths]
        logits = np.stack([logits_after(source, path) for path in paths]).astype(np.float64)
        scores = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
        return scores.tolist(), [depth_after(path) for path in paths]

    return naive_beam_search(score_next, limit, options)


def paths_of(hypotheses: Sequence[Hypothesis | NaiveHypothesis]) -> list[tuple[list[int], list[int]]]:
    return [(hypothesis.tokens, hypothesis.depths) for hypothesis in hypotheses]


def search(sources: Sequence[int], limits: Sequence[int], options: BeamOptions, places: int) -> list[list[Hypothesis]]:
    return beam_search(Paths(), [[source] for source in sources], POLICY, limits, options, places=places)


SOURCES = list(range(40))
LIMITS = [1 + source % 9 for source in SOURCES]
OPTIONS = [
    BeamOptions(size=size, length_penalty=penalty, n_best=size, min_length=shortest, no_repeat_ngram=ngram)
    for size, penalty, shortest, ngram in itertools.product((1, 2, 5), (0.0, 1.0), (1, 4), (0, 2))
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_equals_the_naive_search(options: BeamOptions) -> None:
    results = search(SOURCES, LIMITS, options, places=len(SOURCES))
    for source, limit, result in zip(SOURCES, LIMITS, results, strict=True):
        expected = naive(source, limit, options)
        assert paths_of(result) == paths_of(expected)
        assert [h.score for h in result] == pytest.approx([h.score for h in expected], abs=1e-4)


@pytest.mark.parametrize("places", [1, 3, 16])
def test_a_sentence_does_not_see_its_batch_mates(places: int) -> None:
    options = BeamOptions(size=3, n_best=3)
    assert search(SOURCES, LIMITS, options, places) == search(SOURCES, LIMITS, options, len(SOURCES))


def test_what_is_tested_occurs() -> None:
    """Sentences end by eos and by their limit, and a wider beam finds what a narrow one misses."""
    narrow, wide = (search(SOURCES, LIMITS, BeamOptions(size=size), 8) for size in (1, 5))
    ended = [hypotheses[0].tokens[-1] == EOS_ID for hypotheses in wide]
    assert 5 < sum(ended) < 35
    better = [w[0].score > n[0].score + 1e-4 for n, w in zip(narrow, wide, strict=True) if n[0].score and w[0].score]
    assert sum(better) > 10
    assert any(PAD_ID in h.tokens or BOS_ID in h.tokens for h in itertools.chain(*wide)) is False


def test_a_beam_of_one_is_greedy_search() -> None:
    sources = [[source] for source in SOURCES]
    expected = greedy(Paths(), sources, POLICY, LIMITS, want_scores=True)
    found = [hypotheses[0] for hypotheses in search(SOURCES, LIMITS, BeamOptions(size=1), 7)]
    assert paths_of(found) == paths_of(expected)
    assert [h.token_scores for h in found] == [pytest.approx(h.token_scores) for h in expected]
    assert [h.score for h in found] == pytest.approx([h.score for h in expected])


def test_control_a_row_that_continues_the_wrong_one_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    original = beam_module._Beam.advance

    def advance(self: beam_module._Beam, best: Any, depths: Sequence[int]) -> list[int]:
        rows = original(self, best, depths)
        return rows if self.done else [0] * len(rows)

    monkeypatch.setattr(beam_module._Beam, "advance", advance)
    options = BeamOptions(size=4)
    results = search(SOURCES, LIMITS, options, places=8)
    assert [paths_of(r) for r in results] != [
        paths_of(naive(source, limit, options)) for source, limit in zip(SOURCES, LIMITS, strict=True)
    ]


class Level(Paths):
    """Finds all pieces equally likely."""

    def step(self, *arguments: Any, **named: Any) -> Scored:
        step = super().step(*arguments, **named)
        return Scored(np.zeros_like(step.logits), step.depths)


def test_of_equal_continuations_the_lower_hypothesis_and_token_win() -> None:
    """Pieces are pad 0, unk 1, bos 2, eos 3, and more. What ends is closed, what is closed first wins."""
    (found,) = beam_search(Level(), [[0]], POLICY, [3], BeamOptions(size=3, length_penalty=1, n_best=3))
    assert [hypothesis.tokens for hypothesis in found] == [[EOS_ID], [1, EOS_ID], [1, 1, EOS_ID]]
    (found,) = beam_search(Level(), [[0]], POLICY, [2], BeamOptions(size=3, n_best=3, min_length=3))
    assert [hypothesis.tokens for hypothesis in found] == [[1, 1], [1, 4], [1, 5]]


@pytest.mark.parametrize("size", [2, 5])
def test_where_all_that_is_likely_is_forbidden_the_next_is_found(size: int) -> None:
    """More pieces are forbidden than there are hypotheses, and they are the likeliest."""
    vocabulary = 40

    class Falling(Paths):
        def step(self, state: list[list[int]], *arguments: Any, **named: Any) -> Scored:
            depths = super().step(state, *arguments, **named).depths
            return Scored(np.tile(-np.arange(vocabulary, dtype=np.float32), (len(state), 1)), depths)

    options = BeamOptions(size=size, no_repeat_ngram=1, min_length=30)
    ((best,),) = beam_search(Falling(), [[0]], POLICY, [20], options)
    assert best.tokens == [1, *range(EOS_ID + 1, EOS_ID + 20)]


def test_runs_of_tokens() -> None:
    assert beam_module._repeating((4, 5, 4, 6, 4), 2) == [5, 6]
    assert beam_module._repeating((4, 5), 1) == [4, 5]
    assert beam_module._repeating((4, 5), 4) == []
    assert beam_module._repeating((4, 4), 0) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 0}, "beam setting size is 0, expected at least 1"),
        ({"size": 2, "n_best": 3}, "beam setting n_best is 3, expected 1 to the beam size, 2"),
        ({"min_length": 0}, "beam setting min_length is 0, expected at least 1"),
        ({"no_repeat_ngram": -1}, "beam setting no_repeat_ngram is -1, expected at least 0"),
        ({"size": 2.5}, "beam setting size is 2.5, expected a whole number, at least 1"),
        ({"size": "4"}, "beam setting size is '4', expected a whole number, at least 1"),
        ({"no_repeat_ngram": True}, "beam setting no_repeat_ngram is True, expected a whole number, at least 0"),
        ({"length_penalty": "1"}, "beam setting length_penalty is '1', expected a finite number from 0"),
        ({"length_penalty": -0.5}, "beam setting length_penalty is -0.5, expected a finite number from 0"),
        ({"length_penalty": float("nan")}, "beam setting length_penalty is nan, expected a finite number from 0"),
    ],
)
def test_settings_out_of_range(settings: dict[str, float], message: str) -> None:
    with pytest.raises(InputError) as caught:
        BeamOptions(**settings)  # type: ignore[arg-type]
    assert str(caught.value) == message


def test_settings_as_a_signature_shows_them() -> None:
    assert str(BeamOptions(size=1)) == "1"
    assert str(BeamOptions(size=6, length_penalty=0.6, n_best=2)) == "6,length_penalty=0.6,n_best=2"
