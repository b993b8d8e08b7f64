"""Which of the teacher's translations become training pairs, and beside which of the reference pairs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Literal

from sacrebleu.metrics.chrf import CHRF

from edgeseq.data.text import read_parallel
from edgeseq.distillation.translations import (
    TeacherHypothesis,
    TeacherLine,
    TranslationSettings,
    read_translations,
)
from edgeseq.errors import CheckpointError, DataError
from edgeseq_runtime.atomic import publish_directory, write_file

SOURCE_FILE = "train.src"
TARGET_FILE = "train.tgt"
COUNTS_FILE = "counts.json"


@dataclass(frozen=True)
class Selection:
    """Settings of the choice."""

    select: Literal["best", "closest"] = "best"
    """All hypotheses of a line, or the one that is closest to the reference: sequence-level interpolation (Kim and
    Rush, section 3.3), with chrF of the sentence as the similarity, since it needs no smoothing on short ones."""
    original: bool = True
    """Whether the reference pairs stay beside the teacher's."""
    shortest: float = 1 / 3
    """Least pieces of a translation for each piece of its source, EOS included on both sides."""
    longest: float = 3.0
    """Most of them."""
    min_score: float | None = None
    """Least mean log-probability of a translation's pieces; None: any."""


@dataclass
class Counts:
    """What became of source lines and hypotheses."""

    lines: int = 0
    """Of the source text."""
    blank: int = 0
    """Lines without text: neither translated nor kept."""
    overlong: int = 0
    """Lines that were not translated, because they have more than max_pieces."""
    blank_references: int = 0
    """Lines with text whose reference has none: there is no reference pair to keep."""
    hypotheses: int = 0
    """Of the teacher: the sum of all that follow but `reference_pairs`."""
    empty: int = 0
    """Hypotheses without text."""
    unfinished: int = 0
    """Hypotheses that ran into the greatest length."""
    length_ratio: int = 0
    """Hypotheses that are too short or too long for their source."""
    low_score: int = 0
    """Hypotheses that the teacher itself finds improbable."""
    not_closest: int = 0
    """Hypotheses that a sibling beat."""
    repeated: int = 0
    """Hypotheses with the text of a better sibling."""
    same_as_reference: int = 0
    """Hypotheses that say what the reference pair, which stays, says already."""
    teacher_pairs: int = 0
    """Pairs with a hypothesis on the target side."""
    reference_pairs: int = 0
    """Pairs of the original text."""

    def describe(self) -> str:
        """Says it aloud."""
        dropped = (
            (self.empty, "empty"),
            (self.unfinished, "unfinished"),
            (self.length_ratio, "of an odd length"),
            (self.low_score, "improbable"),
            (self.not_closest, "not the closest"),
            (self.repeated, "repeated"),
            (self.same_as_reference, "the same as the reference"),
        )
        listed = ", ".join(f"{count:,} {what}" for count, what in dropped if count)
        return (
            f"{self.teacher_pairs:,} pairs of the teacher and {self.reference_pairs:,} of the original text; "
            f"of {self.lines:,} lines {self.blank:,} are blank and {self.overlong:,} overlong; "
            f"of {self.hypotheses:,} translations are left out: {listed or 'none'}"
        )


def write_pairs(
    src: Path,
    tgt: Path,
    translations: Path,
    settings: TranslationSettings,
    selection: Selection,
    references: str,
    folder: Path,
    *,
    fixed: bool,
) -> Counts:
    """Writes the student's training text, or finds the result of an earlier call with the same settings.

    Args:
        src: the source text.
        tgt: its references, line by line.
        translations: the teacher's, all of them: what `translate_text` wrote.
        settings: of the translations.
        selection: which of them become pairs.
        references: SHA-256 of the references.
        folder: where train.src, train.tgt and counts.json go; replaced as a whole.
        fixed: whether a student trains on the folder already, so that it must not change.

    Returns:
        What became of lines and hypotheses.

    Raises:
        CheckpointError: the text would change, but is fixed; or a part of the translations is damaged.
        DataError: a text cannot be read, or no pair is left.
    """
    wanted = {"references": references, **asdict(selection)}
    before, counts = _read_counts(folder / COUNTS_FILE)
    if before is not None:
        changes = [
            f"{name} was {before.get(name)} and is {now}" for name, now in wanted.items() if before.get(name) != now
        ]
        if not changes:
            return counts
        if fixed:
            raise CheckpointError(
                f"the student trains on {folder} already, which was selected with other settings: "
                f"{'; '.join(changes)}. Continue with the old ones, or start a new run with another --out"
            )
    counts = Counts()
    with publish_directory(folder) as temporary:
        with (
            (temporary / SOURCE_FILE).open("w", encoding="utf-8", newline="\n") as sources,
            (temporary / TARGET_FILE).open("w", encoding="utf-8", newline="\n") as targets,
        ):
            for pair, line in zip(read_parallel(src, tgt), read_translations(translations, settings), strict=True):
                for target in select_targets(*pair, line, selection, counts):
                    sources.write(f"{pair[0]}\n")
                    targets.write(f"{target}\n")
        if not counts.teacher_pairs:
            raise DataError(f"the teacher gives no pair to learn from: {counts.describe()}")
        document = {"settings": wanted, "counts": asdict(counts)}
        write_file(temporary / COUNTS_FILE, (json.dumps(document, indent=2) + "\n").encode())
    return counts


def select_targets(
    source: str, reference: str, line: TeacherLine, selection: Selection, counts: Counts
) -> Iterator[str]:
    """Yields the target sides of the pairs that one source line gives, the reference first.

    Args:
        source: the line.
        reference: its translation in the original text.
        line: what the teacher made of it.
        selection: settings.
        counts: goes up.
    """
    counts.lines += 1
    if not source.strip() or line.pieces == 1:
        counts.blank += 1
        return
    counts.overlong += not line.hypotheses
    counts.blank_references += not reference.strip()
    keep_reference = selection.original and bool(reference.strip())
    if keep_reference:
        counts.reference_pairs += 1
        yield reference
    taken = {_normal(reference)} if keep_reference else set()
    for text in _accepted(reference, line, selection, counts):
        if _normal(text) not in taken:
            taken.add(_normal(text))
            counts.teacher_pairs += 1
            yield text
        elif keep_reference and _normal(text) == _normal(reference):
            counts.same_as_reference += 1
        else:
            counts.repeated += 1


def _accepted(reference: str, line: TeacherLine, selection: Selection, counts: Counts) -> list[str]:
    texts = []
    for hypothesis in line.hypotheses:
        counts.hypotheses += 1
        fault = _fault(hypothesis, line.pieces, selection)
        if fault is None:
            texts.append(hypothesis.text)
        else:
            setattr(counts, fault, getattr(counts, fault) + 1)
    if selection.select == "closest" and texts:
        counts.not_closest += len(texts) - 1
        texts = [max(texts, key=lambda text: _chrf().sentence_score(text, [reference]).score)]
    return texts


def _fault(hypothesis: TeacherHypothesis, source_pieces: int, selection: Selection) -> str | None:
    """Names the count under which a hypothesis is left out."""
    if not hypothesis.text.strip():
        return "empty"
    if not hypothesis.ended:
        return "unfinished"
    if not selection.shortest <= hypothesis.pieces / source_pieces <= selection.longest:
        return "length_ratio"
    if selection.min_score is not None and hypothesis.log_probability < selection.min_score:
        return "low_score"
    return None


def _normal(text: str) -> str:
    """Text as the tokenizer sees its spaces."""
    return " ".join(text.split())


@cache
def _chrf() -> CHRF:
    return CHRF()


def _read_counts(path: Path) -> tuple[dict[str, object] | None, Counts]:
    """Settings and counts of an earlier call, None where there was none."""
    if not path.exists():
        return None, Counts()
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        known = {field.name for field in fields(Counts)}
        if document["counts"].keys() != known:
            raise ValueError(f"its counts are not {', '.join(sorted(known))}")
        return dict(document["settings"]), Counts(**document["counts"])
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(
            f"cannot read {path} ({error}); remove {path.parent}, and --resume makes it anew"
        ) from error
