"""Makes the vocabulary shortlist of a bundle, and measures what it changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from edgeseq.data.corpus import ParallelCorpus
from edgeseq.evaluation.scores import score_corpus
from edgeseq_export.alignment import align
from edgeseq_export.errors import ExportError
from edgeseq_runtime import Translator
from edgeseq_runtime.atomic import write_file
from edgeseq_runtime.manifest import ModelFacts, ShortlistFacts
from edgeseq_runtime.records import CandidateWeights
from edgeseq_runtime.reports import ShortlistReport
from edgeseq_runtime.shortlist import SPECIAL_IDS, Shortlist
from edgeseq_runtime.sources import read_source
from edgeseq_runtime.tokenizer import EOS_ID

SHORTLIST_FILE = "shortlist.safetensors"
FREQUENT = 100
"""Target pieces that every sentence has."""


@dataclass(frozen=True)
class ShortlistTables:
    """What a bundle keeps of a shortlist."""

    best: NDArray[np.uint16]
    frequent: NDArray[np.uint16]
    pairs: int
    """Sentence pairs they were made of."""

    def write(self, folder: Path) -> None:
        """Writes them as the runtime reads them."""
        write_file(folder / SHORTLIST_FILE, save(self._tensors))

    def open(self, weights: CandidateWeights) -> Shortlist:
        """Makes what the runtime makes of them, for graphs that keep weights so."""
        facts = ShortlistFacts(best=self.best.shape[1], frequent=len(self.frequent), weights=weights, report=None)
        return Shortlist(facts, len(self.best), self._tensors)

    @property
    def _tensors(self) -> dict[str, NDArray[np.uint16]]:
        return {"best": self.best, "frequent": self.frequent}


def make_tables(run: Path, model: ModelFacts, best: int) -> ShortlistTables:
    """Makes the tables from the token ids that a run was trained on.

    Args:
        run: folder of the training run.
        model: facts of its model.
        best: target pieces of a source piece.

    Raises:
        ExportError: the ids are gone, or exit heads are untied.
    """
    if model.head == "untied":
        raise ExportError(
            "exit heads are untied (model.head), but shortlists are for tied ones: with a head per block, a sentence "
            "would need weights for its candidates of each; train with head = 'tied', or export without --shortlist"
        )
    folder = run / "data" / "train"
    if not folder.is_dir():
        raise ExportError(
            f"{folder} is missing, the token ids of the training text, from which a shortlist is made: have "
            f"`edgeseq train ... --out {run} --resume` make them again, or export without --shortlist"
        )
    corpus = ParallelCorpus(folder)
    vocab_size = model.vocab_size
    alignment = align(corpus, vocab_size, min(best, vocab_size))
    occurring = np.bincount(corpus.target.tokens, minlength=vocab_size)
    occurring[list(SPECIAL_IDS)] = 0
    frequent = np.argsort(-occurring, kind="stable")[: min(FREQUENT, vocab_size)]
    return ShortlistTables(alignment.best, frequent.astype(np.uint16), alignment.pairs)


def measure_shortlist(bundle: Path, pairs: Sequence[tuple[str, str]], aligned_pairs: int) -> ShortlistReport:
    """Translates validation text at full depth, with the shortlist and without.

    Args:
        bundle: has a shortlist.
        pairs: validation sentences and their references.
        aligned_pairs: sentence pairs that the shortlist was made of.
    """
    sources, references = map(list, zip(*pairs, strict=True))
    with_shortlist, without = (Translator(bundle, depth="full", device="cpu", shortlist=on) for on in (True, False))
    found, expected = (
        [result.text for result in translator.translate(sources)] for translator in (with_shortlist, without)
    )
    shortlist, tokenizer = with_shortlist.bundle.shortlist, with_shortlist.bundle.tokenizer
    assert shortlist is not None, "it has one"
    covered = pieces = candidates = 0
    for source, reference in pairs:
        own = shortlist.candidates(read_source(tokenizer, source)[0] or [EOS_ID])
        wanted = [*tokenizer.encode(reference), EOS_ID]
        covered += int(np.isin(wanted, own).sum())
        pieces += len(wanted)
        candidates += len(own)
    scores, full_scores = score_corpus(found, references), score_corpus(expected, references)
    return ShortlistReport(
        pairs=aligned_pairs,
        sentences=len(pairs),
        coverage=covered / pieces,
        average_candidates=candidates / len(pairs),
        changed=float(np.mean([one != other for one, other in zip(found, expected, strict=True)])),
        full_bleu=full_scores.bleu,
        full_chrf=full_scores.chrf,
        bleu=scores.bleu,
        chrf=scores.chrf,
    )
