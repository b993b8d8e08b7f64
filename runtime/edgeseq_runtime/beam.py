"""Beam search over anything that can score the next token.

Each hypothesis goes to its own depth at each token. Like greedy search this talks to a small
protocol, keeps the batch full, and gives the same result whatever a sentence's batch mates.

How it decides, in full. A sentence has ``size`` open hypotheses. At each step, of all their
continuations the best 2 · ``size`` by summed log-probability are looked at, best first: those that
end (eos) among the first ``size`` are closed, and the first ``size`` that do not end are the next
open ones. A sentence is done when ``size`` hypotheses are closed, or at its greatest length, where
the open ones are closed as they are if fewer than ``size`` are closed. The result is the closed
hypothesis with the highest score: summed log-probability divided by length ** ``length_penalty``.
Equal continuations are taken by hypothesis, then by the token's own log-probability, then by its id;
of equal scores the one closed first wins.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from itertools import takewhile
from numbers import Integral, Real
from typing import NamedTuple

import numpy as np

from edgeseq_runtime.arrays import IntArray
from edgeseq_runtime.errors import InputError
from edgeseq_runtime.policy import DepthPolicy
from edgeseq_runtime.ranking import rank
from edgeseq_runtime.search import NEVER_CHOSEN, Decoder, Hypothesis, Scored, State, Waiting
from edgeseq_runtime.settings import check_whole_number
from edgeseq_runtime.tokenizer import BOS_ID, EOS_ID


@dataclass(frozen=True, slots=True)
class BeamOptions:
    """Settings of a beam search.

    Attributes:
        size: Open hypotheses per sentence, at least 1.
        length_penalty: Power of the length by which sums are divided; 0 compares sums, 1 means.
        n_best: Hypotheses to give per sentence, from 1 to ``size``.
        min_length: Fewest tokens, eos included.
        no_repeat_ngram: No hypothesis has the same run of so many tokens twice; 0 allows it.
    """

    size: int = 4
    length_penalty: float = 1.0
    n_best: int = 1
    min_length: int = 1
    no_repeat_ngram: int = 0

    @classmethod
    def of(cls, beam: "int | BeamOptions") -> "BeamOptions":
        """All settings, of what a call was given: them, or the size alone.

        Raises:
            InputError: It is neither, or the size is out of range.
        """
        if isinstance(beam, BeamOptions):
            return beam
        if isinstance(beam, bool) or not isinstance(beam, Integral):
            raise InputError(f"beam is {beam!r}, expected a number of hypotheses or BeamOptions")
        return cls(size=int(beam))

    def __str__(self) -> str:
        """The size, and each setting that is not the usual one: ``4,length_penalty=0.6``."""
        changed = [
            f",{item.name}={getattr(self, item.name)!r}"
            for item in fields(self)
            if item.name != "size" and getattr(self, item.name) != item.default
        ]
        return "".join((str(self.size), *changed))

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            InputError: A setting is out of range.
        """
        check_whole_number("beam setting size", self.size, 1)
        check_whole_number("beam setting n_best", self.n_best, 1)
        check_whole_number("beam setting min_length", self.min_length, 1)
        check_whole_number("beam setting no_repeat_ngram", self.no_repeat_ngram, 0)
        if self.n_best > self.size:
            raise InputError(f"beam setting n_best is {self.n_best}, expected 1 to the beam size, {self.size}")
        penalty = self.length_penalty
        if not isinstance(penalty, Real) or not 0 <= penalty < np.inf:
            raise InputError(f"beam setting length_penalty is {penalty!r}, expected a finite number from 0")


GREEDY = BeamOptions(size=1)
"""A beam that takes the best token at each step."""


def beam_search(
    decoder: Decoder[State],
    sources: Sequence[Sequence[int]],
    policy: DepthPolicy,
    max_lengths: Sequence[int],
    options: BeamOptions,
    *,
    prefixes: Sequence[Sequence[int]] | None = None,
    places: int | None = None,
) -> list[list[Hypothesis]]:
    """Translate sentences, keeping several hypotheses of each.

    Args:
        decoder: Scores the next tokens.
        sources: Ids of each sentence, eos included. Those of similar length belong together.
        policy: Decides depths, of each hypothesis by itself.
        max_lengths: Most tokens of each translation, eos included; at least 1.
        options: Settings.
        prefixes: Ids that each translation begins with, fed at full depth; they do not count as
            tokens of the result, nor in its score. None: none has any.
        places: Sentences decoded at once; None means all of them.

    Returns:
        The ``n_best`` hypotheses of each source, best first, in order of the sources. Scores are
        those that rank them; pad and bos are never chosen.
    """
    places = len(sources) if places is None else min(places, len(sources))
    waiting = Waiting(decoder, sources, policy, places, options.size)
    state, sentences = waiting.take_batch()

    def begin(sentence: int) -> _Beam:
        return _Beam(options, max_lengths[sentence], tuple(prefixes[sentence]) if prefixes else ())

    beams = [begin(sentence) for sentence in sentences.tolist()]
    results: list[list[Hypothesis]] = [[] for _ in sources]
    tokens = np.full(places * options.size, BOS_ID, dtype=np.int64)
    parents: IntArray | None = np.repeat(np.arange(places), options.size)
    while beams:
        if any(beam.forced for beam in beams):
            fed_at = np.repeat([decoder.full_depth if beam.forced else 0 for beam in beams], options.size)
            step = decoder.step(state, tokens, parents, fed_at)
        else:
            step = decoder.step(state, tokens, parents)
        depths = step.depths.reshape(len(beams), options.size).tolist()
        steps = zip(beams, _best_continuations(step, beams), depths, strict=True)
        continued = np.array([beam.advance(best, used) for beam, best, used in steps])
        parents = continued + np.arange(0, continued.size, options.size)[:, None]
        done = np.flatnonzero([beam.done for beam in beams])
        for place in done.tolist():
            results[int(sentences[place])] = beams[place].best()
        if len(done):
            sentences = sentences.copy()
            begun, done = waiting.fill(state, done, sentences)
            for place in begun.tolist():
                beams[place] = begin(int(sentences[place]))
                parents[place] = np.arange(place * options.size, (place + 1) * options.size)
        if len(done):
            kept = np.delete(np.arange(len(beams)), done)
            beams, sentences, parents = [beams[place] for place in kept.tolist()], sentences[kept], parents[kept]
        parents = parents.reshape(-1)
        tokens = np.array([token for beam in beams for token in beam.newest], dtype=np.int64)
    return results


class _Continuation(NamedTuple):
    """What a hypothesis may go on with.

    Attributes:
        row: The hypothesis, counted from the first row of its sentence.
        token: The piece.
        token_score: Its log-probability.
        total: Summed log-probability of the hypothesis and it; -inf where it must not be chosen.
    """

    row: int
    token: int
    token_score: float
    total: float


def _best_continuations(step: Scored, beams: Sequence["_Beam"]) -> list[Iterable[_Continuation]]:
    """For each sentence the best 2 · ``size``, best first."""
    size = beams[0].size
    forbidden = [tokens for beam in beams for tokens in beam.forbidden()]
    scores, columns = rank(step.logits, 2 * size + len(NEVER_CHOSEN) + max(map(len, forbidden)))
    tokens = columns if step.candidates is None else np.take_along_axis(step.candidates, columns, axis=1)
    totals = scores + np.array([total for beam in beams for total in beam.totals], dtype=np.float32)[:, None]
    for token in NEVER_CHOSEN:
        totals[tokens == token] = -np.inf
    for row, of_row in enumerate(forbidden):
        if of_row:
            totals[row, np.isin(tokens[row], of_row)] = -np.inf
    by_sentence = (len(beams), -1)
    order = (-totals).reshape(by_sentence).argsort(axis=1, kind="stable")[:, : 2 * size]
    chosen = (np.take_along_axis(each.reshape(by_sentence), order, axis=1) for each in (tokens, scores, totals))
    rows = order // scores.shape[1]
    return [map(_Continuation, *of_one) for of_one in zip(rows.tolist(), *map(np.ndarray.tolist, chosen), strict=True)]


class _Path(NamedTuple):
    """A hypothesis on its way: what it has chosen so far, and the sum of the scores."""

    tokens: tuple[int, ...] = ()
    depths: tuple[int, ...] = ()
    token_scores: tuple[float, ...] = ()
    total: float = 0.0

    def extended(self, continuation: _Continuation, depth: int) -> "_Path":
        return _Path(
            (*self.tokens, continuation.token),
            (*self.depths, depth),
            (*self.token_scores, continuation.token_score),
            self.total + continuation.token_score,
        )


class _Beam:
    """The hypotheses of one sentence.

    Attributes:
        size: Rows that it has.
        done: Whether there is nothing left to do.
    """

    def __init__(self, options: BeamOptions, max_length: int, prefix: tuple[int, ...]) -> None:
        self.size = options.size
        self.done = False
        self._prefix = prefix
        self._forced = 0  # tokens of the prefix so far chosen
        self._options = options
        self._max_length = max_length
        # All rows begin alike; one of them speaks for all at the first step.
        self._open = [_Path()]
        self._closed: list[_Path] = []

    @property
    def forced(self) -> bool:
        """Whether the next token is one of the prefix."""
        return self._forced < len(self._prefix)

    @property
    def newest(self) -> list[int]:
        """The token each row is fed next; rows without a hypothesis repeat the last one's."""
        first = self._prefix[self._forced - 1] if self._forced else BOS_ID
        newest = [path.tokens[-1] if path.tokens else first for path in self._open]
        return newest + newest[-1:] * (self.size - len(newest))

    @property
    def totals(self) -> list[float]:
        """Summed log-probability of each row; -inf for those without a hypothesis."""
        return [path.total for path in self._open] + [-np.inf] * (self.size - len(self._open))

    def forbidden(self) -> list[list[int]]:
        """What each row must not go on with, beside what nobody may."""
        too_early = [EOS_ID] if len(self._open[0].tokens) + 1 < self._options.min_length else []
        ngram = self._options.no_repeat_ngram
        forbidden = [too_early + _repeating(self._prefix + path.tokens, ngram) for path in self._open]
        return forbidden + [too_early] * (self.size - len(forbidden))

    def advance(self, best: Iterable[_Continuation], depths: Sequence[int]) -> list[int]:
        """Take one step.

        Args:
            best: Continuations, best first.
            depths: (size,), blocks used for each row's next token.

        Returns:
            (size,), for each row the row it continues.
        """
        size = self.size
        if self.forced:
            self._forced += 1
            return list(range(size))
        opened: list[_Continuation] = []
        for place, continuation in enumerate(takewhile(lambda each: each.total > -np.inf, best)):
            if continuation.token != EOS_ID:
                opened.append(continuation)
            elif place < size:
                self._closed.append(self._extend(continuation, depths))
            if len(opened) == size:
                break
        last = len(self._open[0].tokens) + 1 == self._max_length
        if not opened and not self._closed:  # whatever could follow is forbidden
            self._closed = self._open
        elif last and len(self._closed) < size:
            self._closed += [self._extend(continuation, depths) for continuation in opened]
        self.done = last or len(self._closed) >= size or not opened
        if self.done:
            return list(range(size))
        self._open = [self._extend(continuation, depths) for continuation in opened]
        rows = [continuation.row for continuation in opened]
        return rows + rows[-1:] * (size - len(rows))

    def _extend(self, continuation: _Continuation, depths: Sequence[int]) -> _Path:
        return self._open[continuation.row].extended(continuation, depths[continuation.row])

    def best(self) -> list[Hypothesis]:
        """The n best closed hypotheses, best first."""
        penalty = self._options.length_penalty
        # A path without tokens is closed only where nothing could follow the start.
        scored = [(path.total / max(1, len(path.tokens)) ** penalty, path) for path in self._closed]
        scored.sort(key=lambda pair: pair[0], reverse=True)  # stable: of equals the one closed first
        return [
            Hypothesis(list(path.tokens), list(path.depths), score, list(path.token_scores))
            for score, path in scored[: self._options.n_best]
        ]


def _repeating(tokens: tuple[int, ...], size: int) -> list[int]:
    """Tokens that would complete a run of ``size`` tokens that is there already."""
    if not 0 < size <= len(tokens) + 1:
        return []
    begun = tokens[len(tokens) - size + 1 :]
    return [tokens[end] for end in range(size - 1, len(tokens)) if tokens[end - size + 1 : end] == begun]
