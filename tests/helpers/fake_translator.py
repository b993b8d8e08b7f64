"""A stand-in for the runtime's Translator: no model, upper case for a translation."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import repeat
from types import SimpleNamespace
from typing import ClassVar, Self

from edgeseq_runtime.beam import BeamOptions
from edgeseq_runtime.errors import BundleError


@dataclass(frozen=True)
class FakeTranslation:
    """The fields of a Translation that commands read."""

    text: str
    tokens: list[str]
    depths: list[int]
    score: float | None = None
    token_scores: list[float] | None = None
    prefix: list[str] = field(default_factory=list)
    alternatives: list["FakeTranslation"] = field(default_factory=list)
    source_pieces: int = 0
    pieces_left_out: int = 0


class FakeTranslator:
    """Answers each line at once, with a beam also in lower case; some words make it misbehave.

    ``!raise`` in a line raises what `error` holds, ``!long`` is cut after two pieces of five, ``!break`` puts
    line ends into the translation.

    Attributes:
        calls: Arguments of every construction and of every translate_iter, in order.
        lines: The lines received.
        error: What ``!raise`` raises.
    """

    calls: ClassVar[list[dict[str, object]]] = []
    lines: ClassVar[list[str]] = []
    error: ClassVar[BaseException] = BundleError("bundle 'b' is broken")
    bundle = SimpleNamespace(manifest=SimpleNamespace(model=SimpleNamespace(decoder_blocks=6)))

    def __init__(self, path: str, **settings: object) -> None:
        self.calls.append({"path": path, **settings})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.calls.append({"closed": True})

    def translate_iter(
        self, lines: Iterable[str], *, beam: BeamOptions, **settings: object
    ) -> Iterator[FakeTranslation]:
        self.calls.append({"beam": beam, **settings})
        prefixes = settings.get("prefixes")
        for line, _ in zip(lines, prefixes if isinstance(prefixes, Iterable) else repeat(""), strict=False):
            self.lines.append(line)
            if "!raise" in line:
                raise self.error
            text = "one\ntwo\r\nthree" if "!break" in line else line.upper()
            best = self._translation(text, -1.0 if beam.size > 1 else None)
            others = [self._translation(text.lower(), -float(rank)) for rank in range(2, beam.n_best + 1)]
            best.alternatives.extend(others)
            yield replace(best, source_pieces=3, pieces_left_out=3) if "!long" in line else best

    def _translation(self, text: str, score: float | None) -> FakeTranslation:
        words = text.split()
        tokens = [*words, "</s>"] if words else []
        scores = None if score is None else [score for _ in tokens]
        return FakeTranslation(text, tokens, self._depths(words), score, scores)

    @staticmethod
    def _depths(words: list[str]) -> list[int]:
        return [*range(1, len(words) + 1), 6] if words else []
