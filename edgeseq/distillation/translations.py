"""The teacher's translations of a text, on disk in parts: whatever happens, at most one part is lost.

A folder holds settings.json, which says what the translations depend on, and part-00000.jsonl, part-00001.jsonl, …:
one JSON object for each source line, in order.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from edgeseq.data.text import read_lines
from edgeseq.errors import CheckpointError
from edgeseq.progress import ProgressLine
from edgeseq_runtime import BeamOptions, Translation, Translator, TranslatorPool
from edgeseq_runtime.atomic import recover, write_file
from edgeseq_runtime.tokenizer import EOS_ID

SETTINGS_FILE = "settings.json"


@dataclass(frozen=True)
class TranslationSettings:
    """What the translations depend on; speed settings are not among it."""

    teacher: str
    """SHA-256 of the teacher's bundle."""
    source_text: str
    """SHA-256 of its lines."""
    source_lines: int
    depth: str
    """The teacher's depth policy in full."""
    beam_size: int
    n_best: int
    length_penalty: float
    max_pieces: int
    """Source lines of more pieces, EOS included, are not translated."""
    part_lines: int
    """Source lines of a part; the last one may have fewer."""

    @property
    def parts(self) -> int:
        """Number of parts."""
        return -(-self.source_lines // self.part_lines)

    def lines_of(self, part: int) -> int:
        """Source lines of a part, counted from 0."""
        return min(self.part_lines, self.source_lines - part * self.part_lines)


@dataclass(frozen=True)
class TeacherHypothesis:
    """One translation of one source line."""

    text: str
    pieces: int
    """EOS included."""
    ended: bool
    """Whether it ends by EOS, not by the greatest length."""
    log_probability: float
    """Mean over its pieces."""


@dataclass(frozen=True)
class TeacherLine:
    """What the teacher made of one source line."""

    pieces: int
    """Of the source in the teacher's tokenizer, EOS included: a blank line has 1."""
    hypotheses: list[TeacherHypothesis]
    """Best first; none of a line that is blank or has more than max_pieces."""


def has_translations(folder: Path) -> bool:
    """Says whether anything was translated into the folder."""
    return any(folder.glob("part-*.jsonl"))


def translate_text(
    translator: Translator | TranslatorPool, src: Path, folder: Path, settings: TranslationSettings, batch_size: int
) -> None:
    """Translates the lines of a text that the folder does not hold yet.

    Args:
        translator: the teacher, at the depth policy of the settings.
        src: the source text.
        folder: of the parts; made if missing.
        settings: what the translations depend on.
        batch_size: sentences decoded at once.

    Raises:
        CheckpointError: the folder was begun with other settings.
        DataError: the text cannot be read.
        KeyboardInterrupt: Ctrl-C came; the parts that are done stay.
    """
    _open_folder(folder, settings)
    missing = [part for part in range(settings.parts) if not _part_path(folder, part).exists()]
    done = settings.source_lines - sum(map(settings.lines_of, missing))
    began, first = time.monotonic(), done
    lines = read_lines(src)
    with ProgressLine("translating", settings.source_lines, done) as progress:
        try:
            for part in range(settings.parts):
                text = list(itertools.islice(lines, settings.part_lines))
                if part not in missing:
                    continue
                records = []
                for line in _translate(translator, text, settings, batch_size):
                    records.append(json.dumps(asdict(line), ensure_ascii=False) + "\n")
                    done += 1
                    progress.advance(done, f"{(done - first) / (time.monotonic() - began):,.1f} sentences/s")
                write_file(_part_path(folder, part), "".join(records).encode())
        except KeyboardInterrupt:
            progress.say(
                f"stopped at line {done}; finished parts of {settings.part_lines} lines stay, --resume continues"
            )
            raise


def read_translations(folder: Path, settings: TranslationSettings) -> Iterator[TeacherLine]:
    """Yields what the teacher made of each source line.

    Raises:
        CheckpointError: a part is damaged.
    """
    for part in range(settings.parts):
        path = _part_path(folder, part)
        number = 0
        try:
            with path.open(encoding="utf-8", newline="\n") as file:
                for record in file:
                    if number == settings.lines_of(part):
                        raise ValueError("no further one was expected")
                    yield _parse(record)
                    number += 1
            if number < settings.lines_of(part):
                raise ValueError(f"{settings.lines_of(part)} lines were expected")
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise CheckpointError(
                f"{path} is damaged after line {number} ({error}); remove it, and --resume translates its lines again"
            ) from error


def _part_path(folder: Path, part: int) -> Path:
    return folder / f"part-{part:05d}.jsonl"


def _open_folder(folder: Path, settings: TranslationSettings) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    recover(folder)
    path = folder / SETTINGS_FILE
    if has_translations(folder):
        before = _read_settings(path)
        changes = [
            f"{name} was {before.get(name)} and is {now}"
            for name, now in asdict(settings).items()
            if before.get(name) != now
        ]
        if changes:
            raise CheckpointError(
                f"{folder} was begun with other settings: {'; '.join(changes)}. Continue with the old ones, or start "
                "a new run with another --out"
            )
    write_file(path, (json.dumps(asdict(settings), indent=2) + "\n").encode())


def _read_settings(path: Path) -> dict[str, object]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"cannot read {path} ({error}), so nothing says what the translations beside it depend on; start a new "
            "run with another --out"
        ) from error


def _translate(
    translator: Translator | TranslatorPool, lines: list[str], settings: TranslationSettings, batch_size: int
) -> Iterator[TeacherLine]:
    tokenizer = translator.bundle.tokenizer
    (end,) = tokenizer.pieces([EOS_ID])
    pieces = [len(tokenizer.encode(line)) + 1 for line in lines]
    chosen = [1 < count <= settings.max_pieces for count in pieces]
    beam = BeamOptions(settings.beam_size, settings.length_penalty, settings.n_best)
    translations = translator.translate_iter(
        itertools.compress(lines, chosen), batch_size=batch_size, scores=True, beam=beam
    )
    for count, is_chosen in zip(pieces, chosen, strict=True):
        if is_chosen:
            best = next(translations)
            yield TeacherLine(count, [_hypothesis(each, end) for each in (best, *best.alternatives)])
        else:
            yield TeacherLine(count, [])


def _hypothesis(translation: Translation, end: str) -> TeacherHypothesis:
    assert translation.token_scores
    return TeacherHypothesis(
        text=translation.text.replace("\n", " ").replace("\r", " "),
        pieces=len(translation.tokens),
        ended=translation.tokens[-1] == end,
        log_probability=sum(translation.token_scores) / len(translation.token_scores),
    )


def _parse(record: str) -> TeacherLine:
    fields = json.loads(record)
    return TeacherLine(fields["pieces"], [TeacherHypothesis(**hypothesis) for hypothesis in fields["hypotheses"]])
