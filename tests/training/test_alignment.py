"""Alignments find which target pieces translate which source pieces."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

from edgeseq.data.corpus import ParallelCorpus, build_corpus
from edgeseq_export import alignment
from edgeseq_export.alignment import align
from edgeseq_export.errors import ExportError
from edgeseq_export.shortlists import make_tables
from edgeseq_runtime.tokenizer import EOS_ID, PAD_ID, Tokenizer
from small_corpora import SENTENCES, write_lines
from tiny_bundle import tiny_facts

VOCAB = 40
Pairs = Sequence[tuple[list[int], list[int]]]


class Side:
    """One side of a corpus in memory."""

    def __init__(self, sentences: Sequence[list[int]]) -> None:
        self._sentences = [np.array([*ids, EOS_ID], dtype=np.uint16) for ids in sentences]
        self.lengths = np.array([len(ids) for ids in self._sentences])

    def __getitem__(self, index: int) -> np.ndarray:
        return self._sentences[index]


class Corpus(SimpleNamespace):
    """A corpus in memory."""

    def __len__(self) -> int:
        return len(self.source.lengths)


def corpus_of(pairs: Pairs) -> ParallelCorpus:
    sources, targets = zip(*pairs, strict=True)
    return cast("ParallelCorpus", Corpus(source=Side(sources), target=Side(targets)))


def translated(number: int = 400, seed: int = 0) -> Pairs:
    """Sentences of pieces 4 to 19; translations have the pieces 20 higher, in another order, and 22 three times."""
    generator = np.random.default_rng(seed)
    pairs = []
    for length in generator.integers(2, 9, number):
        source = generator.integers(4, 20, length)
        pairs.append((source.tolist(), [22, 22, 22, *generator.permutation(source + 20).tolist()]))
    return pairs


def naive(pairs: Pairs, iterations: int) -> dict[tuple[int, int], float]:
    """Model 1 as the book has it: dictionaries, one link at a time."""
    pairs = [([*source, EOS_ID], [*target, EOS_ID]) for source, target in pairs]
    probabilities: dict[tuple[int, int], float] = {}
    for _ in range(iterations):
        counts: dict[tuple[int, int], float] = {}
        totals: dict[int, float] = {}
        for source, target in pairs:
            for piece in target:
                total = sum(probabilities.get((other, piece), 1.0) for other in source)
                for other in source:
                    share = probabilities.get((other, piece), 1.0) / total
                    counts[other, piece] = counts.get((other, piece), 0.0) + share
                    totals[other] = totals.get(other, 0.0) + share
        probabilities = {(other, piece): count / totals[other] for (other, piece), count in counts.items()}
    return probabilities


def test_translations_are_found() -> None:
    found = align(corpus_of(translated()), VOCAB, best=1)
    assert found.best[4:20, 0].tolist() == list(range(24, 40))
    assert set(align(corpus_of(translated()), VOCAB, best=2).best[EOS_ID].tolist()) == {22, EOS_ID}
    assert found.pairs == 400


def test_control_one_iteration_counts_what_occurs_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is in every target wins over what translates a piece."""
    monkeypatch.setattr(alignment, "ITERATIONS", 1)
    assert align(corpus_of(translated()), VOCAB, best=1).best[4:20, 0].tolist() != list(range(24, 40))


@pytest.mark.parametrize("links_of_a_chunk", [1, 50, 10**6])
def test_equals_the_naive_algorithm(monkeypatch: pytest.MonkeyPatch, links_of_a_chunk: int) -> None:
    """However many links are dealt with at once."""
    monkeypatch.setattr(alignment, "_CHUNK_LINKS", links_of_a_chunk)
    pairs = translated(60, seed=1)
    found = align(corpus_of(pairs), VOCAB, best=5).best
    probabilities = naive(pairs, alignment.ITERATIONS)
    for source in [EOS_ID, *range(4, 20)]:
        targets = [target for other, target in probabilities if other == source]
        wanted = sorted((probabilities[source, target] for target in targets), reverse=True)[:5]
        kept = [target for target in found[source].tolist() if target != PAD_ID]
        assert [probabilities[source, target] for target in kept] == pytest.approx(wanted, rel=1e-6)


def test_pieces_that_have_fewer_translations_are_filled_up_with_pad() -> None:
    found = align(corpus_of([([4], [24]), ([4, 5], [24, 25])]), VOCAB, best=4).best
    assert sorted(found[4].tolist()) == [PAD_ID, EOS_ID, 24, 25]
    assert found[6].tolist() == [PAD_ID] * 4


def test_a_large_corpus_is_thinned_evenly() -> None:
    pairs = translated()
    links = sum((len(source) + 1) * (len(target) + 1) for source, target in pairs)
    found = align(corpus_of(pairs), VOCAB, best=1, max_links=links // 3)
    assert found.pairs in (100, 134)
    np.testing.assert_array_equal(found.best, align(corpus_of(pairs[:: -(-400 // found.pairs)]), VOCAB, best=1).best)


def test_tables_are_made_of_the_ids_that_a_run_was_trained_on(tmp_path: Path, tokenizer: Tokenizer) -> None:
    src, tgt = write_lines(tmp_path / "a.src", SENTENCES), write_lines(tmp_path / "a.tgt", SENTENCES)
    (tmp_path / "run" / "data").mkdir(parents=True)
    build_corpus(src, tgt, tokenizer, 99, tmp_path / "run" / "data" / "train")
    facts = tiny_facts(vocab_size=tokenizer.vocab_size)
    tables = make_tables(tmp_path / "run", facts, best=3)
    assert tables.best.shape == (tokenizer.vocab_size, 3)
    pieces = [piece for line in SENTENCES for piece in tokenizer.encode(line)]
    counts = np.bincount(pieces, minlength=tokenizer.vocab_size)
    assert counts[tables.frequent[0]] == counts.max()
    assert np.all(np.diff(counts[tables.frequent]) <= 0)
    assert not set(tables.frequent[:10].tolist()) & {PAD_ID, EOS_ID}


def test_a_run_whose_ids_are_gone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ExportError, match=r"train is missing, the token ids of the training text, .* --resume` make them"
    ):
        make_tables(tmp_path, tiny_facts(), best=3)


def test_untied_heads_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"exit heads are untied .* train with head = 'tied', or export without"):
        make_tables(tmp_path, tiny_facts(head="untied"), best=3)
