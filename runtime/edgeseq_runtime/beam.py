"""Beam search over anything that can score the next token.

Each hypothesis goes to its own depth at each token. Like greedy search this talks to a small
protocol, keeps the batch full, and gives the same result whatever a sentence's batch mates.

How it decides, in full. A sentence has ``size`` open hypotheses. At each step, of all their
continuations the best 2 · ``size`` by summed log-probability are looked at, best first: those that
end (eos) among the first ``size`` are closed, and the first ``size`` that do not end are the next
open ones. A sentence is done when ``size`` hypotheses are closed, or at its greatest length, where
the open ones are closed as they are if fewer than ``size`` are closed. The result is the closed
hypothesis with the highest score: summed log-probability divided by length ** ``length_penalty``.
Equal continuations are taken by hypothesis, then by token id; of equal scores the one closed first
wins.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from edgeseq_runtime.arrays import FloatArray, IntArray
from edgeseq_runtime.errors import InputError
from edgeseq_runtime.policy import DepthPolicy
from edgeseq_runtime.search import Decoder, Hypothesis, State, Waiting, log_sum_exp
from edgeseq_runtime.tokenizer import BOS_ID, EOS_ID, PAD_ID

_RUN = 64
"""Scores whose maximum stands for all of them when the best are looked for."""


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

    def __str__(self) -> str:
        """The size, and each setting that is not the usual one: ``4,length_penalty=0.6``."""
        changed = [
            f",{item.name}={getattr(self, item.name):g}"
            for item in fields(self)
            if item.name != "size" and getattr(self, item.name) != item.default
        ]
        return "".join((str(self.size), *changed))

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            InputError: A setting is out of range.
        """
        for name, lowest, highest in (
            ("size", 1, None),
            ("n_best", 1, self.size),
            ("min_length", 1, None),
            ("no_repeat_ngram", 0, None),
        ):
            value = getattr(self, name)
            if value < lowest or (highest is not None and value > highest):
                expected = f"at least {lowest}" if highest is None else f"{lowest} to the beam size, {highest}"
                raise InputError(f"beam setting {name} is {value}, expected {expected}")
        if not 0 <= self.length_penalty < np.inf:
            raise InputError(f"beam setting length_penalty is {self.length_penalty}, expected a finite number from 0")


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
        logits = step.logits.reshape(len(beams), options.size, -1)
        # All hypotheses of a sentence have the same candidates.
        candidates = None if step.candidates is None else step.candidates[:: options.size]
        depths = step.depths.reshape(len(beams), options.size)
        continued = np.empty((len(beams), options.size), dtype=np.int64)
        for place, beam in enumerate(beams):
            of_place = None if candidates is None else candidates[place]
            continued[place] = beam.advance(logits[place], depths[place], of_place)
        parents = continued + np.arange(0, len(continued) * options.size, options.size)[:, None]
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


@dataclass(frozen=True, slots=True)
class _Path:
    """A hypothesis on its way: what it has chosen so far."""

    tokens: tuple[int, ...] = ()
    depths: tuple[int, ...] = ()
    token_scores: tuple[float, ...] = ()

    @property
    def total(self) -> float:
        """Summed log-probability."""
        return sum(self.token_scores)

    def extended(self, token: int, depth: int, token_score: float) -> "_Path":
        return _Path((*self.tokens, token), (*self.depths, depth), (*self.token_scores, token_score))


class _Beam:
    """The hypotheses of one sentence.

    Attributes:
        done: Whether there is nothing left to do.
    """

    def __init__(self, options: BeamOptions, max_length: int, prefix: tuple[int, ...]) -> None:
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
        return newest + newest[-1:] * (self._options.size - len(newest))

    def advance(self, logits: FloatArray, depths: IntArray, candidates: IntArray | None = None) -> IntArray:
        """Take one step.

        Args:
            logits: (size, columns), of each open hypothesis' next token; may be written into.
            depths: (size,), blocks used for it.
            candidates: (columns,), the id of each column; None where they agree.

        Returns:
            (size,), for each row the row it continues.
        """
        size = self._options.size
        if self.forced:
            self._forced += 1
            return np.arange(size)
        number = len(self._open)
        token_scores = self._token_scores(logits[:number], candidates)
        totals = token_scores + np.array([path.total for path in self._open], dtype=np.float32)[:, None]
        opened: list[tuple[int, _Path]] = []
        for rank, choice in enumerate(_best(totals.reshape(-1), 2 * size).tolist()):
            row, column = divmod(choice, totals.shape[1])
            token = column if candidates is None else int(candidates[column])
            path = self._open[row].extended(token, int(depths[row]), float(token_scores[row, column]))
            if token != EOS_ID:
                opened.append((row, path))
            elif rank < size:
                self._closed.append(path)
            if len(opened) == size:
                break
        last = len(self._open[0].tokens) + 1 == self._max_length
        if len(self._closed) < size and last:
            self._closed += [path for _, path in opened]
        if not opened and not self._closed:  # whatever could follow is forbidden
            self._closed = self._open
        self.done = last or len(self._closed) >= size or not opened
        if self.done:
            return np.arange(size)
        self._open = [path for _, path in opened]
        rows = [row for row, _ in opened]
        return np.array(rows + rows[-1:] * (size - len(rows)), dtype=np.int64)

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

    def _token_scores(self, logits: FloatArray, candidates: IntArray | None) -> FloatArray:
        """Log-probabilities, -inf for what must not be chosen: (open hypotheses, columns)."""
        scores: FloatArray = logits - log_sum_exp(logits)[:, None]
        scores[:, [PAD_ID, BOS_ID]] = -np.inf
        if len(self._open[0].tokens) + 1 < self._options.min_length:
            scores[:, EOS_ID] = -np.inf
        for row, path in enumerate(self._open):
            repeating = _repeating(self._prefix + path.tokens, self._options.no_repeat_ngram)
            scores[row, repeating if candidates is None else np.isin(candidates, repeating)] = -np.inf
        return scores


def _best(scores: FloatArray, number: int) -> IntArray:
    """Indices of the highest scores, best first, of equals the lower index; none that is -inf."""
    number = min(number, len(scores))
    # No more than ``number`` runs have a maximum above the bound: parting these is quicker than parting all scores.
    runs = len(scores) // _RUN
    parted = scores if runs < number else scores[: runs * _RUN].reshape(_RUN, runs).max(axis=0)
    bound = np.partition(parted, -number)[-number]
    candidates = np.flatnonzero((scores >= bound) & (scores > -np.inf))
    order = np.argsort(-scores[candidates], kind="stable")
    best: IntArray = candidates[order[:number]]
    return best


def _repeating(tokens: tuple[int, ...], size: int) -> list[int]:
    """Tokens that would complete a run of ``size`` tokens that is there already."""
    if not 0 < size <= len(tokens) + 1:
        return []
    begun = tokens[len(tokens) - size + 1 :]
    return [tokens[end] for end in range(size - 1, len(tokens)) if tokens[end - size + 1 : end] == begun]
