"""From a teacher and a student's configuration to the configuration that trains the student on distilled text."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

from edgeseq.config import RunConfig
from edgeseq.data.text import read_parallel
from edgeseq.distillation.selection import SOURCE_FILE, TARGET_FILE, Selection, write_pairs
from edgeseq.distillation.translations import TranslationSettings, has_translations, translate_text
from edgeseq.errors import ConfigError
from edgeseq_runtime import BeamOptions, Translator, TranslatorPool
from edgeseq_runtime.atomic import recover
from edgeseq_runtime.bundle import Bundle
from edgeseq_runtime.sources import MAX_SOURCE_PIECES

TRANSLATIONS_FOLDER = "translations"
DISTILLED_FOLDER = "distilled"

PART_LINES = 2048
"""Source lines of a part: some minutes of work, and a multiple of what the translator reads ahead."""

_LOGGER = logging.getLogger(__name__)


def check_run(run: Path, *, resume: bool, training_begun: bool) -> None:
    """Refuses a folder that holds something else, or that was not meant to be continued.

    Args:
        run: the run's folder, which need not exist.
        resume: whether the user wants to continue.
        training_begun: whether the folder holds a training run, as far as it may be.

    Raises:
        ConfigError: a new run needs another folder, or --resume.
    """
    translated = has_translations(run / TRANSLATIONS_FOLDER)
    if training_begun and not translated:
        raise ConfigError(f"{run} holds a run that was not distilled; give another --out")
    if translated and not resume:
        raise ConfigError(f"{run} holds a run already; give --resume to continue it, or another --out")


def distill(
    config: RunConfig,
    translator: Translator | TranslatorPool,
    run: Path,
    beam: BeamOptions,
    selection: Selection,
    batch_size: int,
    *,
    training_begun: bool,
) -> RunConfig:
    """Translates the training text of a student with its teacher and selects the pairs to train on.

    Continues where an earlier call stopped.

    Args:
        config: the student's, naming the original text.
        translator: the teacher.
        run: the student's run; gets translations/ and distilled/.
        beam: the teacher's search.
        selection: which translations become pairs.
        batch_size: sentences that the teacher decodes at once; changes no translation.
        training_begun: whether the student has read the distilled text already, which then stays as it is.

    Returns:
        The student's configuration, naming the distilled text.

    Raises:
        CheckpointError: the run was begun with another teacher, text or settings; names what changed.
        DataError: a text cannot be read, or no pair is left.
        KeyboardInterrupt: Ctrl-C came; what is done stays.
    """
    src, tgt = Path(config.data.src), Path(config.data.tgt)
    lines, source, references = _fingerprint(src, tgt)
    # Read now: that validation text is missing should not come up after hours of translation.
    _fingerprint(Path(config.data.valid_src), Path(config.data.valid_tgt))
    settings = TranslationSettings(
        teacher=translator.bundle.sha256,
        source_text=source,
        source_lines=lines,
        depth=translator.policy.name,
        beam_size=beam.size,
        n_best=beam.n_best,
        length_penalty=beam.length_penalty,
        max_pieces=min(config.data.max_pieces, MAX_SOURCE_PIECES + 1),
        part_lines=PART_LINES,
    )
    recover(run)
    translate_text(translator, src, run / TRANSLATIONS_FOLDER, settings, batch_size)
    counts = write_pairs(
        src,
        tgt,
        run / TRANSLATIONS_FOLDER,
        settings,
        selection,
        references,
        run / DISTILLED_FOLDER,
        fixed=training_begun,
    )
    _LOGGER.info("distilled: %s", counts.describe())
    return student_config(config, run / DISTILLED_FOLDER, translator.bundle)


def student_config(config: RunConfig, distilled: Path, teacher: Bundle) -> RunConfig:
    """Makes a configuration name the distilled text and where it comes from; the licence stays."""
    origin = teacher.manifest.provenance
    data = config.data.model_copy(
        update={
            "src": str((distilled / SOURCE_FILE).resolve()),
            "tgt": str((distilled / TARGET_FILE).resolve()),
            "description": f"{config.data.description}; distilled from the teacher {teacher.sha256}, which was trained "
            f"on: {origin.data} (licence: {origin.licence})",
        }
    )
    return config.model_copy(update={"data": data})


def _fingerprint(src: Path, tgt: Path) -> tuple[int, str, str]:
    """Number of pairs in two files, and the SHA-256 of the lines of each."""
    digests = hashlib.sha256(), hashlib.sha256()
    pairs = 0
    for pair in read_parallel(src, tgt):
        pairs += 1
        for digest, line in zip(digests, pair, strict=True):
            digest.update(f"{line}\n".encode())
    return pairs, digests[0].hexdigest(), digests[1].hexdigest()
