"""Vocabulary shortlists: a sentence chooses from its own candidates, whoever its batch mates are."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from edgeseq_runtime.bundle import Bundle, load_bundle
from edgeseq_runtime.engine import Engine
from edgeseq_runtime.errors import BundleError, InputError
from edgeseq_runtime.manifest import ShortlistFacts
from edgeseq_runtime.shortlist import CANDIDATE_MULTIPLE, Shortlist
from edgeseq_runtime.tokenizer import BOS_ID, EOS_ID, PAD_ID, UNK_ID
from edgeseq_runtime.translator import Translation, Translator
from edgeseq_runtime.translator_pool import TranslatorPool
from tiny_bundle import POLICIES, VOCAB_SIZE, tiny_sentences, write_tiny_bundle

SPECIAL = [PAD_ID, UNK_ID, BOS_ID, EOS_ID]
SENTENCES = tiny_sentences(40)
LONG = " ".join(tiny_sentences(6, seed=8))
FACTS = ShortlistFacts(best=2, frequent=2, weights="float32", report=None)


def shortlist_of(best: dict[int, list[int]], frequent: Sequence[int] = (20, 21), vocab_size: int = 30) -> Shortlist:
    """A shortlist in which source pieces that are not named have nothing."""
    table = np.full((vocab_size, 2), PAD_ID, dtype=np.uint16)
    for source, targets in best.items():
        table[source, : len(targets)] = targets
    return Shortlist(FACTS, vocab_size, {"best": table, "frequent": np.array(frequent, dtype=np.uint16)})


def test_candidates_are_the_special_pieces_the_frequent_ones_and_those_of_the_source() -> None:
    shortlist = shortlist_of({5: [9, 25], 6: [9], 7: [28, 4]})
    assert shortlist.candidates([5, 6, 5, EOS_ID]).tolist() == [*SPECIAL, 9, 20, 21, 25]
    assert shortlist.candidates([7]).tolist() == [*SPECIAL, 4, 20, 21, 28]
    assert shortlist.candidates([EOS_ID]).tolist() == [*SPECIAL, 20, 21]


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"best": np.zeros((30, 2))}, r"s.bin holds \{'best': \(30, 2\)\}, expected \{'best': \(30, 2\), 'frequent'"),
        ({"best": np.zeros((30, 3)), "frequent": np.zeros(2)}, r"holds \{'best': \(30, 3\), .*expected \{'best'"),
        ({"best": np.full((30, 2), 30), "frequent": np.zeros(2)}, "s.bin lists the id 30 under 'best', but there are"),
        ({"best": np.zeros((30, 2)), "frequent": np.array([1, 99])}, "lists the id 99 under 'frequent', .* 30 pieces"),
    ],
)
def test_tables_that_do_not_fit_are_refused(tensors: dict[str, np.ndarray], message: str) -> None:
    small = {name: tensor.astype(np.uint16) for name, tensor in tensors.items()}
    with pytest.raises(BundleError, match=message):
        Shortlist(FACTS, 30, small, "s.bin")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bundle(tmp_path_factory.mktemp("shortlist") / "b", shortlist=True)


@pytest.fixture(scope="module")
def bundle(folder: Path) -> Bundle:
    return load_bundle(folder)


@pytest.fixture(scope="module")
def translator(folder: Path) -> Translator:
    return Translator(folder, device="cpu", shortlist=True)


def results(translator: Translator, batch_size: int, **settings: object) -> list[Translation]:
    found = translator.translate([*SENTENCES, LONG], batch_size=batch_size, scores=True, **settings)  # type: ignore[call-overload]
    assert isinstance(found, list)
    return found


def test_the_tiny_shortlist_pads_and_is_no_whole_vocabulary(translator: Translator) -> None:
    """Or the comparisons below would say little."""
    sizes = [translator.engine.count_candidates(translator.source_ids(line)) for line in [*SENTENCES, LONG]]
    assert min(sizes) < CANDIDATE_MULTIPLE < max(sizes) < VOCAB_SIZE
    assert len(set(sizes)) > 10


@pytest.mark.parametrize("depth", POLICIES)
@pytest.mark.parametrize("size", [1, 3])
def test_batched_equals_single_in_bits(translator: Translator, depth: str, size: int) -> None:
    single = results(translator, 1, depth=depth, beam=size)
    for batch_size in (5, 32):
        assert results(translator, batch_size, depth=depth, beam=size) == single


def test_tokens_are_candidates_and_without_a_shortlist_some_are_not(translator: Translator, folder: Path) -> None:
    shortlist = translator.bundle.shortlist
    assert shortlist is not None

    def outside(found: Translator) -> int:
        pieces = found.bundle.tokenizer.pieces
        return sum(
            len(set(result.tokens) - set(pieces(shortlist.candidates(found.source_ids(line)).tolist())))
            for line, result in zip(SENTENCES, found.translate(SENTENCES), strict=True)
        )

    assert outside(translator) == 0
    assert outside(Translator(folder, device="cpu")) > 0


def test_candidates_of_the_whole_batch_are_seen(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: one shortlist for all sentences of a batch, as others have it."""
    original = Engine._choose_candidates

    def of_batch(engine: Engine, shortlist: Shortlist, sources: Sequence[Sequence[int]]) -> object:
        return original(engine, shortlist, [[piece for source in sources for piece in source]] * len(sources))

    monkeypatch.setattr(Engine, "_choose_candidates", of_batch)
    translator = Translator(folder, depth="full", device="cpu", shortlist=True)
    assert results(translator, 5) != results(translator, 1)


def test_padding_that_is_taken_for_candidates_is_seen(translator: Translator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: without their bias, the logits of padding are 0, and count where probabilities are."""
    single = results(translator, 1, depth="full")
    for module in ("engine", "shortlist"):
        monkeypatch.setattr(
            f"edgeseq_runtime.{module}.candidate_bias", lambda sizes, width: np.zeros((len(sizes), width), np.float32)
        )
    assert results(translator, 32, depth="full") != single


def test_a_whole_step_equals_block_after_block_in_bits(bundle: Bundle) -> None:
    engine = Engine(bundle.path, bundle.manifest.model, "cpu", bundle.shortlist)
    for text in ("full", "1", "halting:0.5", "by-sentence"):
        found = []
        for alone in (True, False):
            state = engine.encode([[5, 17, 42, EOS_ID]], bundle.policy(text))
            assert state.alone is not None
            state.alone = state.alone if alone else None
            tokens = np.random.default_rng(1).integers(4, VOCAB_SIZE, (20, 1))
            steps = [engine.step(state, token) for token in tokens]
            found.append([(step.logits.tolist(), step.depths.tolist()) for step in steps[-1:]])
        assert found[0] == found[1]


@pytest.mark.parametrize("depth", ["full", "halting:0.5"])
def test_a_sentence_that_is_decoded_ahead_gets_the_same_pieces(translator: Translator, depth: str) -> None:
    """Without scores, a sentence alone is not asked for each step."""
    stepped = results(translator, 1, depth=depth)
    ahead = translator.translate([*SENTENCES, LONG], batch_size=1, depth=depth)
    assert [(result.tokens, result.depths) for result in ahead] == [
        (result.tokens, result.depths) for result in stepped
    ]
    assert [result.score for result in ahead] == [None] * len(stepped)


def everything(bundle: Bundle) -> Shortlist:
    """A shortlist of the whole vocabulary."""
    facts = ShortlistFacts(best=1, frequent=VOCAB_SIZE, weights="float32", report=None)
    ids = np.arange(VOCAB_SIZE, dtype=np.uint16)
    return Shortlist(facts, bundle.manifest.model.vocab_size, {"best": ids[:, None], "frequent": ids})


@pytest.mark.parametrize("rows", [1, 3])
def test_with_all_pieces_as_candidates_logits_are_those_of_the_exit_head(bundle: Bundle, rows: int) -> None:
    model = bundle.manifest.model
    listed, whole = (Engine(bundle.path, model, "cpu", shortlist) for shortlist in (everything(bundle), None))
    sources = [[5, 17, 42, EOS_ID], [9, EOS_ID], [30, 31, EOS_ID]][:rows]
    for text in ("halting:0.5", "confidence:0.1"):
        states = [engine.encode(sources, bundle.policy(text)) for engine in (listed, whole)]
        for token in (BOS_ID, 7, 40):
            found, wanted = (
                engine.step(state, np.full(rows, token)) for engine, state in zip((listed, whole), states, strict=True)
            )
            assert found.candidates is not None
            assert wanted.candidates is None
            np.testing.assert_array_equal(found.candidates[:, :VOCAB_SIZE], np.tile(np.arange(VOCAB_SIZE), (rows, 1)))
            np.testing.assert_allclose(found.logits[:, :VOCAB_SIZE], wanted.logits, atol=1e-5)
            assert np.isneginf(found.logits[:, VOCAB_SIZE:]).all()
            np.testing.assert_array_equal(found.depths, wanted.depths)


@pytest.mark.parametrize("size", [1, 3])
def test_a_prefix_may_have_any_piece(translator: Translator, size: int) -> None:
    tokenizer, shortlist = translator.bundle.tokenizer, translator.bundle.shortlist
    assert shortlist is not None
    prefix = "green house"
    outside = [
        line
        for line in SENTENCES
        if set(tokenizer.encode(prefix)) - set(shortlist.candidates(translator.source_ids(line)).tolist())
    ]
    assert len(outside) > 5
    single = translator.translate(outside, prefix=[prefix] * len(outside), beam=size, batch_size=1, scores=True)
    assert translator.translate(outside, prefix=[prefix] * len(outside), beam=size, batch_size=7, scores=True) == single
    for line, result in zip(outside, single, strict=True):
        assert result.text.startswith(prefix)
        own = tokenizer.pieces(shortlist.candidates(translator.source_ids(line)).tolist())
        assert set(result.tokens) <= set(own)


def test_results_say_what_they_were_chosen_from(translator: Translator, folder: Path) -> None:
    result = translator.translate(SENTENCES[0])
    assert result.candidates == translator.engine.count_candidates(translator.source_ids(SENTENCES[0])) < VOCAB_SIZE
    assert "|shortlist:on|" in translator.signature()
    whole = Translator(folder, device="cpu")
    assert whole.translate(SENTENCES[0]).candidates == VOCAB_SIZE
    assert "shortlist" not in whole.signature()
    assert translator.translate("").candidates == 0


def test_scores_are_of_the_candidates(translator: Translator) -> None:
    engine, policy = translator.engine, translator.bundle.policy("full")
    for line in SENTENCES[:5]:
        state = engine.encode([translator.source_ids(line)], policy)
        logits = engine.step(state, np.array([BOS_ID])).logits[0].astype(np.float64)
        normaliser = np.log(np.exp(logits).sum())  # padding counts for nothing: its logits are -inf
        logits[[PAD_ID, BOS_ID]] = -np.inf
        (first, *_) = translator.translate(line, depth="full", scores=True).token_scores or []
        assert first == pytest.approx(logits.max() - normaliser, abs=1e-5)


def test_streamed_pieces_join_to_the_translation(translator: Translator) -> None:
    for line in SENTENCES[:10]:
        assert "".join(translator.stream(line)) == translator.translate(line).text


def test_a_pool_uses_it_too(translator: Translator, folder: Path) -> None:
    with TranslatorPool(folder, processes=1, device="cpu", shortlist=True) as pool:
        assert list(pool.translate_iter(SENTENCES[:6])) == translator.translate(SENTENCES[:6])


def open_translator(folder: Path) -> object:
    return Translator(folder, device="cpu", shortlist=True)


def open_pool(folder: Path) -> object:
    return TranslatorPool(folder, processes=1, shortlist=True)


@pytest.mark.parametrize("opened", [open_translator, open_pool])
def test_a_bundle_without_one_says_so(tiny_bundle: Path, opened: Callable[[Path], object]) -> None:
    with pytest.raises(
        InputError, match=r"tiny\.bundle has none: export the model again with --shortlist, or translate"
    ):
        opened(tiny_bundle)
