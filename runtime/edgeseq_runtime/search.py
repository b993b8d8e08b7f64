"""Greedy search over anything that can score the next token.

Talks to a small protocol and knows nothing of ONNX or text, so that tests can script a decoder by
hand. There is one search loop; collecting whole sentences and streaming both use it.

The batch stays full: when a sentence ends, its row goes to the next one that waits. A batch of
sentences that end one after another would spend half its steps on a few rows.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np

from edgeseq_runtime.arrays import BoolArray, FloatArray, IntArray
from edgeseq_runtime.policy import DepthPolicy
from edgeseq_runtime.row_sums import row_sums
from edgeseq_runtime.tokenizer import BOS_ID, EOS_ID, PAD_ID

State = TypeVar("State")

NEVER_CHOSEN = (PAD_ID, BOS_ID)
"""No translation contains these."""


class Scored(Protocol):
    """What a decoder's step gives."""

    @property
    def logits(self) -> FloatArray:
        """(rows, columns), of the next token; the search may write into it.

        The columns of pad, unk, bos and eos are their ids.
        """

    @property
    def candidates(self) -> IntArray | None:
        """(rows, columns), the id of each column, ascending, with padding behind; None where column and id agree."""

    @property
    def depths(self) -> IntArray:
        """(rows,), blocks used for it."""


class Decoder(Protocol[State]):
    """What the search needs of an engine."""

    @property
    def full_depth(self) -> int:
        """Number of decoder blocks."""

    def encode(self, sources: Sequence[Sequence[int]], policy: DepthPolicy, *, alone: bool) -> State:
        """Prepare to decode sentences as the rows of one batch.

        ``alone`` says whether a single sentence will be decoded by itself, as one row.
        """

    def adopt(self, state: State, rows: IntArray, other: State, other_rows: IntArray) -> None:
        """Give rows of a batch to sentences that ``other`` has prepared and not begun."""

    def step(
        self, state: State, tokens: IntArray, parents: IntArray | None = None, depths: IntArray | None = None
    ) -> Scored:
        """Feed one token per row.

        ``parents`` names the rows that continue, None all; ``depths`` the depth of each token, 0 for
        the policy's choice, None for that of all.
        """


class GreedyDecoder(Decoder[State], Protocol[State]):
    """What greedy search needs of an engine."""

    def run_ahead(
        self, state: State, token: int, most: int, never: Sequence[int]
    ) -> tuple[list[int], list[int]] | None:
        """Decode the only row greedily, up to EOS or ``most`` (1 or more) tokens; give them and their depths.

        None where there are several rows, or where the decoder has to be asked for each step.
        """

    def release(self, state: State) -> None:
        """Take back a state that is not used any more."""


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """One translation in ids, without the prefix that was given.

    Attributes:
        tokens: Ids, eos included if it was reached within the maximum length.
        depths: Blocks used for each of them.
        score: Mean log-probability of the tokens, or what beam search ranks by; None unless asked for.
        token_scores: Log-probability of each token; None unless asked for.
    """

    tokens: list[int]
    depths: list[int]
    score: float | None
    token_scores: list[float] | None = None


@dataclass(frozen=True, slots=True)
class Emission:
    """The tokens of one step, or of several steps of the only row, in order.

    Attributes:
        sentences: (n,), index into the sources of each token's row.
        tokens: (n,), the tokens chosen.
        depths: (n,), blocks used for them.
        log_probabilities: (n,), None unless asked for.
        forced: bool (n,), True where the token is one of a prefix; None where none is.
    """

    sentences: IntArray
    tokens: IntArray
    depths: IntArray
    log_probabilities: FloatArray | None
    forced: BoolArray | None


def output_limit(source_pieces: int) -> int:
    """Most tokens of a translation unless told otherwise, EOS included.

    Args:
        source_pieces: Pieces of the source, EOS included.
    """
    return max(10, 2 * (source_pieces - 1) + 10)


def greedy(
    decoder: GreedyDecoder[State],
    sources: Sequence[Sequence[int]],
    policy: DepthPolicy,
    max_lengths: Sequence[int],
    *,
    prefixes: Sequence[Sequence[int]] | None = None,
    rows: int | None = None,
    want_scores: bool = False,
) -> list[Hypothesis]:
    """Translate sentences, taking the best token at each step.

    Args:
        decoder: Scores the next tokens.
        sources: Ids of each sentence, eos included. Those of similar length belong together.
        policy: Decides depths.
        max_lengths: Most tokens of each translation, eos included; at least 1.
        prefixes: Ids that each translation begins with, fed at full depth; they do not count as
            tokens of the result. None: none has any.
        rows: Sentences decoded at once; None means all of them.
        want_scores: Whether to compute log-probabilities, which costs a pass over all logits.

    Returns:
        One hypothesis per source, in order.
    """
    tokens: list[list[int]] = [[] for _ in sources]
    depths: list[list[int]] = [[] for _ in sources]
    scores: list[list[float]] = [[] for _ in sources]
    steps = greedy_steps(
        decoder, sources, policy, max_lengths, prefixes=prefixes, rows=rows, want_scores=want_scores, ahead=True
    )
    for step in steps:
        chosen = slice(None) if step.forced is None else ~step.forced
        sentences = step.sentences[chosen].tolist()
        for sentence, token, depth in zip(
            sentences, step.tokens[chosen].tolist(), step.depths[chosen].tolist(), strict=True
        ):
            tokens[sentence].append(token)
            depths[sentence].append(depth)
        if step.log_probabilities is not None:
            for sentence, value in zip(sentences, step.log_probabilities[chosen].tolist(), strict=True):
                scores[sentence].append(value)
    if not want_scores:
        return [Hypothesis(ids, used, None) for ids, used in zip(tokens, depths, strict=True)]
    return [
        Hypothesis(ids, used, sum(values) / len(ids), values)
        for ids, used, values in zip(tokens, depths, scores, strict=True)
    ]


def greedy_steps(
    decoder: GreedyDecoder[State],
    sources: Sequence[Sequence[int]],
    policy: DepthPolicy,
    max_lengths: Sequence[int],
    *,
    prefixes: Sequence[Sequence[int]] | None = None,
    rows: int | None = None,
    want_scores: bool = False,
    ahead: bool = False,
) -> Iterator[Emission]:
    """Search as :func:`greedy` does, giving the tokens of each step as they are chosen.

    Pad and bos are never chosen. With ``ahead`` a sentence alone may be decoded to its end before its first
    token is given.
    """
    rows = len(sources) if rows is None else min(rows, len(sources))
    prefix = Prefixes(prefixes) if prefixes is not None and any(prefixes) else None
    limits = np.asarray(max_lengths, dtype=np.int64)
    if prefix is not None:
        limits = limits + prefix.lengths
    waiting = Waiting(decoder, sources, policy, rows)
    state, sentences = waiting.take_batch()
    tokens = np.full(rows, BOS_ID, dtype=np.int64)
    generated = np.zeros(rows, dtype=np.int64)
    parents: IntArray | None = None
    while True:
        forced = None if prefix is None else generated < prefix.lengths[sentences]
        if forced is not None and not forced.any():
            forced = None
        found = None
        if ahead and forced is None and parents is None and not want_scores and len(sentences) == 1:
            most = int(limits[sentences[0]] - generated[0])
            found = decoder.run_ahead(state, int(tokens[0]), most, NEVER_CHOSEN)
        if found is not None:
            taken, used = map(np.array, found)
            yield Emission(sentences.repeat(len(taken)), taken, used, None, None)
            tokens = taken[-1:]
            generated += len(taken)
        else:
            depths = None if forced is None else np.where(forced, decoder.full_depth, 0)
            step = decoder.step(state, tokens, parents, depths)
            tokens, log_probabilities = _choose(step, want_scores=want_scores)
            if prefix is not None and forced is not None:
                tokens = np.where(forced, prefix.take(sentences, generated), tokens)
            generated += 1
            yield Emission(sentences, tokens, step.depths, log_probabilities, forced)
        ended = ((tokens == EOS_ID) | (generated >= limits[sentences])).nonzero()[0]
        parents = None
        if len(ended):
            sentences, tokens = sentences.copy(), tokens.copy()
            begun, ended = waiting.fill(state, ended, sentences)
            tokens[begun] = BOS_ID
            generated[begun] = 0
        if len(ended) == len(sentences):
            break
        if len(ended):
            parents = np.delete(np.arange(len(sentences)), ended)
            sentences, tokens, generated = sentences[parents], tokens[parents], generated[parents]
    decoder.release(state)


class Prefixes:
    """Tokens that translations have to begin with.

    Attributes:
        lengths: (sentences,), how many each has.
    """

    def __init__(self, prefixes: Sequence[Sequence[int]]) -> None:
        """Lay them out as a table."""
        self.lengths = np.array([len(prefix) for prefix in prefixes], dtype=np.int64)
        self._tokens = np.full((len(prefixes), int(self.lengths.max(initial=0))), PAD_ID, dtype=np.int64)
        for row, prefix in zip(self._tokens, prefixes, strict=True):
            row[: len(prefix)] = prefix

    def take(self, sentences: IntArray, positions: IntArray) -> IntArray:
        """Each sentence's token at a position, both (rows,); anything behind the prefix's end."""
        tokens: IntArray = self._tokens[sentences, np.minimum(positions, self._tokens.shape[1] - 1)]
        return tokens


class Waiting(Generic[State]):
    """Sentences that wait for their turn: encoded a batch at a time, handed out one by one.

    A sentence takes a place of the batch: one row, or as many as it has hypotheses.
    """

    def __init__(
        self,
        decoder: Decoder[State],
        sources: Sequence[Sequence[int]],
        policy: DepthPolicy,
        places: int,
        hypotheses: int = 1,
    ) -> None:
        """Let all of them wait.

        Args:
            decoder: Encodes them.
            sources: Ids of each sentence.
            policy: Decides depths.
            places: Sentences of a batch.
            hypotheses: Rows of a place: place p has those from p * hypotheses on.
        """
        self._decoder = decoder
        self._sources = sources
        self._policy = policy
        self._places = places
        self._hypotheses = np.arange(hypotheses)
        self._encoded = 0  # sentences encoded so far
        self._begun = 0  # sentences handed out so far
        self._first = 0  # sentence in row 0 of the newest batch
        self._batch: State | None = None

    def take_batch(self) -> tuple[State, IntArray]:
        """Encode a batch and hand out all of it: its state, a row a sentence, and the sentence of each place."""
        state = self._encode()
        sentences = np.arange(self._begun, self._encoded, dtype=np.int64)
        self._begun = self._encoded
        return state, sentences

    def fill(self, state: State, free: IntArray, sentences: IntArray) -> tuple[IntArray, IntArray]:
        """Give free places to sentences that wait.

        Args:
            state: The batch being decoded.
            free: Its places that are free.
            sentences: The sentence of each place; updated in place.

        Returns:
            The places that got a sentence, and those that did not.
        """
        filled = 0
        while filled < len(free) and self._begun < len(self._sources):
            if self._batch is None or self._begun == self._encoded:
                self._batch = self._encode()
            number = min(len(free) - filled, self._encoded - self._begun)
            places = free[filled : filled + number]
            begun = np.arange(self._begun, self._begun + number, dtype=np.int64)
            rows = places[:, None] * len(self._hypotheses) + self._hypotheses
            of_batch = np.repeat(begun - self._first, len(self._hypotheses))
            self._decoder.adopt(state, rows.reshape(-1), self._batch, of_batch)
            sentences[places] = begun
            self._begun += number
            filled += number
        return free[:filled], free[filled:]

    def _encode(self) -> State:
        self._first = self._encoded
        batch = self._sources[self._first : self._first + self._places]
        self._encoded += len(batch)
        return self._decoder.encode(batch, self._policy, alone=self._places * len(self._hypotheses) == 1)


def _choose(step: Scored, *, want_scores: bool) -> tuple[IntArray, FloatArray | None]:
    """Best token of each row, and its log-probability among all columns (pad and bos included)."""
    logits, candidates = step.logits, step.candidates
    normaliser = _log_sum_exp(logits) if want_scores else None
    for piece in NEVER_CHOSEN:
        logits[:, piece] = -np.inf
    columns = logits.argmax(axis=-1)
    every_row = np.arange(len(columns))
    tokens = columns if candidates is None else candidates[every_row, columns]
    if normaliser is None:
        return tokens, None
    chosen: FloatArray = logits[every_row, columns] - normaliser
    return tokens, chosen


def _log_sum_exp(logits: FloatArray) -> FloatArray:
    """Log of the summed exponentials of each row: (rows, columns) to (rows,)."""
    highest = logits.max(axis=-1)
    result: FloatArray = np.log(row_sums(np.exp(logits - highest[:, None]))) + highest
    return result
