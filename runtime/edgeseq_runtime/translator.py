"""The runtime's front door: text in, translations out.

Brings together the bundle's tokenizer, the search and the engine; decides batches and limits.
A Translator may be shared by threads: everything a call changes belongs to that call. To use
several processor cores, see ``translator_pool``.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import overload

from edgeseq_runtime._version import __version__
from edgeseq_runtime.beam import GREEDY, BeamOptions, beam_search
from edgeseq_runtime.bundle import Bundle, load_bundle
from edgeseq_runtime.engine import Engine
from edgeseq_runtime.errors import InputError, TruncationWarning, warn_caller
from edgeseq_runtime.known_answers import check_answers
from edgeseq_runtime.lines import read_window, with_prefixes
from edgeseq_runtime.manifest import Manifest
from edgeseq_runtime.policy import DepthPolicy
from edgeseq_runtime.policy_names import DEFAULT_POINT
from edgeseq_runtime.search import Hypothesis, greedy, greedy_steps, output_limit
from edgeseq_runtime.sessions import onnxruntime_version
from edgeseq_runtime.settings import check_whole_number
from edgeseq_runtime.shortlist import Shortlist
from edgeseq_runtime.sources import MAX_SOURCE_PIECES, group_sources, read_source

WINDOW_BATCHES = 16
"""Batches' worth of lines that translate_iter reads ahead, to batch lines of similar length."""

_SHOWN_CHARACTERS = 40
_ENDLESS = 2**31 - 1
"""Tokens that no translation will have; with more, positions might not fit their type."""


@dataclass(frozen=True)
class Translation:
    """One translated text.

    Attributes:
        text: The translation; empty for blank input.
        tokens: Its pieces, EOS included unless the maximum length was reached first.
        depths: Decoder blocks used for each token.
        score: Mean log-probability of the tokens, or with a beam what it ranks by; None unless asked
            for, or for blank input.
        source_pieces: Pieces of the input that were translated, EOS included; 0 for blank input.
        pieces_left_out: Pieces of the input beyond MAX_SOURCE_PIECES, which were not translated.
        token_scores: Log-probability of each token; None where ``score`` is.
        alternatives: The other hypotheses of an n-best beam, best first.
        prefix: Pieces of the beginning that was given; ``text`` starts with them, ``tokens`` does not.
        candidates: Pieces that each token was chosen from: all of the vocabulary, or the sentence's shortlist; 0
            for blank input.
    """

    text: str
    tokens: list[str]
    depths: list[int]
    score: float | None
    source_pieces: int
    token_scores: list[float] | None = None
    alternatives: list["Translation"] = field(default_factory=list)
    prefix: list[str] = field(default_factory=list)
    candidates: int = 0
    pieces_left_out: int = 0


@dataclass(frozen=True, slots=True)
class _Options:
    """Settings of one call, checked."""

    policy: DepthPolicy
    batch_size: int
    max_length: int | None
    scores: bool
    beam: BeamOptions

    @property
    def greedy(self) -> bool:
        """Whether a beam would do nothing but take the best token at each step."""
        return self.beam == GREEDY

    def limit(self, source: Sequence[int]) -> int:
        """Most tokens of a source's translation, EOS included."""
        if self.max_length is not None:
            return min(self.max_length, _ENDLESS)
        return output_limit(len(source))


@dataclass(frozen=True, slots=True)
class _Line:
    """A line in ids, its prefix, and how many of its pieces are left out."""

    source: list[int]
    prefix: list[int]
    left_out: int


class Translator:
    """A bundle, ready to translate."""

    def __init__(
        self,
        model: str | Path,
        *,
        depth: str | int | None = None,
        device: str = "auto",
        shortlist: bool = False,
    ) -> None:
        """Check a bundle and load it.

        Args:
            model: The bundle's folder.
            depth: ``full``, a depth from 1 to N, ``adaptive``, ``adaptive:NAME``, or a predictor of the
                bundle such as ``halting:0.9``; see ``policy_names``. None means ``adaptive`` where the
                bundle has a default operating point, else ``full``.
            device: ``cpu``, ``cuda`` (an error where it cannot be had), or ``auto``.
            shortlist: Whether to choose tokens from each sentence's shortlist only, which is faster where the
                vocabulary is large, and changes some translations; the manifest tells how many. Scores then are
                of the shortlist's pieces, and so are the probabilities that depth policies read.

        Raises:
            BundleError: The bundle is missing, incomplete, changed, or of another format.
            PolicyError: The bundle does not have this depth policy.
            DeviceError: onnxruntime is not installed, the device cannot be used, or its 8-bit products
                are wrong.
            InputError: ``device`` is out of range, or the bundle has no shortlist to use.
        """
        self._bundle = load_bundle(model)
        self._policy = self._bundle.policy(default_depth(self._bundle) if depth is None else depth)
        chosen = chosen_shortlist(self._bundle) if shortlist else None
        bundle = self._bundle
        self._engine = Engine(bundle.path, self.manifest.model, device, chosen, bundle.shortlist, bundle.files)
        if self.manifest.compute_type != "float32":
            check_answers(self._engine, self.manifest.model, self._bundle.known_answers)

    @property
    def bundle(self) -> Bundle:
        """The bundle, checked when the Translator was made."""
        return self._bundle

    @property
    def manifest(self) -> Manifest:
        """The bundle's table of contents: model, measured quality, licence."""
        return self._bundle.manifest

    @property
    def engine(self) -> Engine:
        """The bundle's graphs, for measurements that look inside a decode."""
        return self._engine

    @property
    def policy(self) -> DepthPolicy:
        """The depth policy of calls that name none."""
        return self._policy

    def signature(self, depth: str | int | None = None, beam: int | BeamOptions = 1) -> str:
        """Everything that a score made with this Translator depends on, in one line.

        Args:
            depth: The depth policy of the call; None means the Translator's own.
            beam: The beam of the call.

        Raises:
            PolicyError: The bundle does not have this depth policy.
            InputError: The beam is out of range.
        """
        parts = {
            "bundle": self._bundle.sha256[:12],
            "provider": self._engine.provider,
            "depth": self._resolve(depth).name,
            "beam": str(BeamOptions.of(beam)),
            **({} if self._engine.shortlist is None else {"shortlist": "on"}),
            "edgeseq": __version__,
            "onnxruntime": onnxruntime_version(),
        }
        return "|".join(f"{key}:{value}" for key, value in parts.items())

    @overload
    def translate(
        self,
        text: str,
        *,
        batch_size: int = ...,
        depth: str | int | None = ...,
        max_length: int | None = ...,
        scores: bool = ...,
        beam: int | BeamOptions = ...,
        prefix: str = ...,
    ) -> Translation: ...

    @overload
    def translate(
        self,
        text: list[str],
        *,
        batch_size: int = ...,
        depth: str | int | None = ...,
        max_length: int | None = ...,
        scores: bool = ...,
        beam: int | BeamOptions = ...,
        prefix: list[str] | None = ...,
    ) -> list[Translation]: ...

    def translate(
        self,
        text: str | list[str],
        *,
        batch_size: int = 32,
        depth: str | int | None = None,
        max_length: int | None = None,
        scores: bool = False,
        beam: int | BeamOptions = 1,
        prefix: str | list[str] | None = None,
    ) -> Translation | list[Translation]:
        """Translate one text, or a list of texts.

        Args:
            text: Blank text gives an empty translation.
            batch_size: Sentences decoded at once. On the CPU it changes speed and memory, never
                a result.
            depth: Depth policy of this call; None means the Translator's own.
            max_length: Most tokens per translation, EOS included; None means
                ``max(10, 2 * source pieces + 10)``.
            scores: Whether to compute scores. A beam always does.
            beam: Hypotheses kept per sentence, or all settings of a beam search; 1 is greedy search.
            prefix: What the translation has to begin with, whole words best; of a list of texts one
                for each, of at most MAX_SOURCE_PIECES pieces. It is fed at full depth, and counts in no length, depth
                or score. Blank text has none.

        Returns:
            One Translation for a str, a list in the same order for a list.

        Raises:
            InputError: Something other than str, or a setting out of range.
            PolicyError: The bundle does not have this depth policy.
            BundleError: The bundle's files have changed since it was opened, and one is wanted a first time.
            DeviceError: onnxruntime fails.
        """
        lines = [text] if isinstance(text, str) else text
        if not isinstance(lines, list):
            raise InputError(
                f"expected a str or a list of str, got {type(text).__name__}: for other iterables use translate_iter"
            )
        results = list(
            self.translate_iter(
                lines,
                batch_size=batch_size,
                depth=depth,
                max_length=max_length,
                scores=scores,
                beam=beam,
                prefixes=[prefix] if isinstance(prefix, str) else prefix,
            )
        )
        return results[0] if isinstance(text, str) else results

    def translate_iter(
        self,
        lines: Iterable[str],
        *,
        batch_size: int = 32,
        depth: str | int | None = None,
        max_length: int | None = None,
        scores: bool = False,
        beam: int | BeamOptions = 1,
        prefixes: Iterable[str] | None = None,
    ) -> Iterator[Translation]:
        """Translate any number of lines in bounded memory, in order.

        Reads up to WINDOW_BATCHES * batch_size lines ahead and decodes lines of similar length
        together. With a batch size of 1 nothing is read ahead. Arguments and errors are those of
        :meth:`translate`, with a prefix for each line; settings are checked at once, lines when
        they are reached: what comes before a line that is at fault is translated.
        """
        if isinstance(lines, str):
            raise InputError(f"expected an iterable of lines, got the str {lines[:_SHOWN_CHARACTERS]!r}")
        options = self._options(batch_size, depth, max_length, beam, scores=scores)
        return self._translate_windows(with_prefixes(lines, prefixes), options)

    def stream(self, text: str, *, depth: str | int | None = None, max_length: int | None = None) -> Iterator[str]:
        """Translate one text, giving pieces of it as they are produced.

        Concatenated, the pieces equal ``translate(text).text``. Arguments and errors are those of
        :meth:`translate`.
        """
        options = self._options(1, depth, max_length, GREEDY, scores=False)
        source, _ = self._read_source(text)
        return self._stream_pieces(source, options) if source else iter(())

    def _resolve(self, depth: str | int | None) -> DepthPolicy:
        return self._policy if depth is None else self._bundle.policy(depth)

    def _options(
        self,
        batch_size: int,
        depth: str | int | None,
        max_length: int | None,
        beam: int | BeamOptions,
        *,
        scores: bool,
    ) -> _Options:
        options = BeamOptions.of(beam)
        check_settings(batch_size, max_length, options)
        return _Options(self._resolve(depth), batch_size, max_length, scores, options)

    def source_ids(self, text: str) -> list[int]:
        """Turn text into what the encoder reads.

        Args:
            text: One sentence.

        Returns:
            Ids, eos last, truncated to MAX_SOURCE_PIECES with a TruncationWarning; none for blank text.

        Raises:
            InputError: Not a str, or one that holds lone surrogates.
        """
        return self._read_source(text)[0]

    def _read_source(self, text: str) -> tuple[list[int], int]:
        """What the encoder reads of a text, and the number of pieces that are left out."""
        ids, left_out = read_source(self._bundle.tokenizer, text)
        if left_out:
            kept = len(ids) - 1
            message = (
                f"the input starting {text[:_SHOWN_CHARACTERS]!r} has {kept + left_out} pieces; only the first {kept} "
                "are translated: split it into sentences"
            )
            warn_caller(TruncationWarning(message))
        return ids, left_out

    def _translate_windows(self, lines: Iterator[tuple[str, str]], options: _Options) -> Iterator[Translation]:
        size = options.batch_size
        window_size = size * WINDOW_BATCHES if size > 1 else 1
        failure: Exception | None = None
        while failure is None:
            window, failure = read_window(map(self._read_line, lines), window_size)
            if not window:
                break
            results = self._translate_window(
                [line.source for line in window], [line.prefix for line in window], options
            )
            for line, result in zip(window, results, strict=True):
                yield dataclasses.replace(result, pieces_left_out=line.left_out) if line.left_out else result
        if failure is not None:
            raise failure

    def _read_line(self, pair: tuple[str, str]) -> _Line:
        line, prefix = pair
        source, left_out = self._read_source(line)
        forced = self._bundle.tokenizer.encode(prefix)
        if len(forced) > MAX_SOURCE_PIECES:
            raise InputError(
                f"the prefix starting {prefix[:_SHOWN_CHARACTERS]!r} has {len(forced)} pieces, expected at most "
                f"{MAX_SOURCE_PIECES}"
            )
        return _Line(source, forced, left_out)

    def _translate_window(
        self, sources: list[list[int]], prefixes: list[list[int]], options: _Options
    ) -> Iterator[Translation]:
        """Decode sentences of similar length together, and give results in the order of the lines."""
        results: dict[int, Translation] = {}
        hypotheses_each = options.beam.size
        for group, places in group_sources([len(source) for source in sources], options.batch_size, hypotheses_each):
            found = self._search(
                [sources[index] for index in group], [prefixes[index] for index in group], places, options
            )
            for index, hypotheses in zip(group, found, strict=True):
                results[index] = self._translation(sources[index], prefixes[index], hypotheses)
        for index in range(len(sources)):
            blank = Translation(text="", tokens=[], depths=[], score=None, source_pieces=0)
            yield results.pop(index, blank)

    def _search(
        self, sources: list[list[int]], prefixes: list[list[int]], places: int, options: _Options
    ) -> list[list[Hypothesis]]:
        """Decode sentences: the hypotheses of each, best first."""
        engine, policy = self._engine, options.policy
        limits = [options.limit(source) for source in sources]
        if not options.greedy:
            return beam_search(engine, sources, policy, limits, options.beam, prefixes=prefixes, places=places)
        best = greedy(engine, sources, policy, limits, prefixes=prefixes, rows=places, want_scores=options.scores)
        return [[hypothesis] for hypothesis in best]

    def _translation(self, source: list[int], prefix: list[int], hypotheses: list[Hypothesis]) -> Translation:
        tokenizer = self._bundle.tokenizer
        candidates = self._engine.count_candidates(source)
        best, *others = [
            Translation(
                text=tokenizer.decode([*prefix, *hypothesis.tokens]),
                tokens=tokenizer.pieces(hypothesis.tokens),
                depths=hypothesis.depths,
                score=hypothesis.score,
                source_pieces=len(source),
                token_scores=hypothesis.token_scores,
                prefix=tokenizer.pieces(prefix),
                candidates=candidates,
            )
            for hypothesis in hypotheses
        ]
        best.alternatives.extend(others)
        return best

    def _stream_pieces(self, source: list[int], options: _Options) -> Iterator[str]:
        tokens: list[int] = []
        given = ""
        limits = [options.limit(source)]
        for step in greedy_steps(self._engine, [source], options.policy, limits):
            tokens += step.tokens.tolist()
            text = self._bundle.tokenizer.decode(tokens)
            # A character of several byte pieces decodes to U+FFFD until its last byte is there.
            if len(text) > len(given) and text.startswith(given) and text[-1] != "\ufffd":
                yield text[len(given) :]
                given = text
        rest = self._bundle.tokenizer.decode(tokens)[len(given) :]
        if rest:
            yield rest


def default_depth(bundle: Bundle) -> str:
    """The depth policy of who names none."""
    return "adaptive" if DEFAULT_POINT in bundle.operating_points else "full"


def chosen_shortlist(bundle: Bundle) -> Shortlist:
    """The shortlist of a bundle, for who asks for it.

    Raises:
        InputError: It has none.
    """
    if bundle.shortlist is None:
        raise InputError(
            f"a shortlist is asked for, but {bundle.path} has none: export the model again with --shortlist, or "
            "translate without"
        )
    return bundle.shortlist


def check_settings(batch_size: int, max_length: int | None, beam: BeamOptions) -> None:
    """Refuse settings of a call that are out of range, or contradict each other.

    Raises:
        InputError: They are.
    """
    check_whole_number("batch_size", batch_size, 1)
    if max_length is not None:
        check_whole_number("max_length", max_length, 1)
    if max_length is not None and beam.min_length > max_length:
        raise InputError(f"beam setting min_length is {beam.min_length}, expected at most max_length, {max_length}")
