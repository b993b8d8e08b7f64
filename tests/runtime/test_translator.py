"""The front door: text in, translations out, whatever the batch."""

import itertools
import shutil
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeseq_runtime import Translation, Translator, TruncationWarning, sources
from edgeseq_runtime.beam import BeamOptions
from edgeseq_runtime.bundle import load_bundle
from edgeseq_runtime.engine import Engine
from edgeseq_runtime.errors import BundleError, DeviceError, InputError, PolicyError
from edgeseq_runtime.state import DecoderState
from edgeseq_runtime.tokenizer import UNK_ID
from tiny_bundle import POLICIES, tiny_sentences, write_tiny_bundle

SENTENCES = [*tiny_sentences(44, longest=16), "", "  ", "犬 dog", *tiny_sentences(5, longest=60)]
ONE_OF_EACH_KIND = [
    "full",
    "2",
    "halting:0.4,0.6,0.5",
    "shared:0.5",
    "confidence:0.1",
    "multinomial",
    "by-sentence:0.7",
]
BLANK = Translation(text="", tokens=[], depths=[], score=None, source_pieces=0)


def test_a_str_gives_one_translation_and_a_list_gives_a_list(translator: Translator) -> None:
    one = translator.translate("the dog runs")
    assert isinstance(one, Translation)
    assert translator.translate(["the dog runs"]) == [one]
    assert translator.translate([]) == []


def test_fields_of_a_translation(translator: Translator) -> None:
    results = translator.translate(SENTENCES, scores=True)
    endings = set()
    for text, result in zip(SENTENCES, results, strict=True):
        assert len(result.tokens) == len(result.depths)
        if not text.strip():
            assert result == BLANK
            continue
        assert result.source_pieces == len(translator.bundle.tokenizer.encode(text)) + 1
        assert len(result.tokens) <= 2 * (result.source_pieces - 1) + 10
        assert result.score is not None
        assert result.score < 0
        endings.add(result.tokens[-1] == "</s>")
    assert endings == {True, False}
    assert {depth for result in results for depth in result.depths} == {1, 2, 3, 4}
    assert translator.translate("the dog").score is None


@pytest.mark.parametrize("depth", ["adaptive", *POLICIES])
def test_batched_equals_single(translator: Translator, depth: str) -> None:
    """Everything of a result, scores to the last bit."""
    single = [translator.translate(text, depth=depth, scores=True) for text in SENTENCES]
    for batch_size in (7, 32):
        batched = translator.translate(SENTENCES, batch_size=batch_size, depth=depth, scores=True)
        assert batched == single


def test_control_visible_padding_breaks_equality(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    translator = Translator(tiny_bundle, device="cpu")
    encode = translator._engine.encode

    def careless(*arguments: object, **settings: object) -> DecoderState:
        state = encode(*arguments, **settings)  # type: ignore[arg-type]
        state.source_bias[:] = 0
        return state

    monkeypatch.setattr(translator._engine, "encode", careless)
    single = [translator.translate(text) for text in SENTENCES]
    assert translator.translate(SENTENCES, batch_size=32) != single


@pytest.mark.parametrize("text", ["the dog sees the cat", "犬 the 犬", "", "a"])
def test_streamed_pieces_join_to_the_translation(translator: Translator, text: str) -> None:
    pieces = list(translator.stream(text))
    assert "".join(pieces) == translator.translate(text).text
    assert all(pieces)


def test_stream_gives_text_before_the_end(translator: Translator) -> None:
    """Many pieces, not one at the end."""
    text = "the old dog sees the small cat under the big red tree"
    assert len(list(translator.stream(text))) > 3


def test_stream_holds_unfinished_characters_back(translator: Translator, monkeypatch: pytest.MonkeyPatch) -> None:
    """A character made of several byte pieces decodes to U+FFFD until its last byte is there."""
    texts = iter(["a", "a\ufffd", "a\ufffd\ufffd", "aß", "aß"])
    seen: dict[int, str] = {}

    def decode(tokens: list[int]) -> str:
        return seen.setdefault(len(tokens), next(texts, "aß!"))

    monkeypatch.setattr(translator.bundle.tokenizer, "decode", decode)
    assert list(translator.stream("the dog", max_length=5)) == ["a", "ß"]


def test_iteration_is_lazy_and_ordered(translator: Translator) -> None:
    taken = itertools.count()

    def endless() -> Iterator[str]:
        for text in itertools.cycle(SENTENCES):
            next(taken)
            yield text

    results = list(itertools.islice(translator.translate_iter(endless(), batch_size=2), 40))
    assert results == translator.translate(SENTENCES[:40], batch_size=2)
    assert next(taken) == 64  # two windows of 16 batches of 2


def test_batch_of_one_reads_nothing_ahead(translator: Translator) -> None:
    """So that a program may answer each line before it sends the next."""
    lines = iter(["the dog", "the cat"])
    results = translator.translate_iter(lines, batch_size=1)
    next(results)
    assert next(lines) == "the cat"


def test_overlong_input_is_truncated_with_a_warning(translator: Translator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MAX_SOURCE_PIECES", 8)
    text = "the dog the dog the dog the dog the dog the dog"
    with pytest.warns(TruncationWarning) as caught:
        result = translator.translate(text)
    number = len(translator.bundle.tokenizer.encode(text))
    assert str(caught[0].message) == (
        f"the input starting 'the dog the dog the dog the dog the dog ' has {number} pieces; only "
        "the first 8 are translated: split it into sentences"
    )
    assert (result.source_pieces, result.pieces_left_out) == (9, number - 8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        translator.translate("the dog the dog")


def test_max_length_counts_eos(translator: Translator) -> None:
    for text in SENTENCES[:10]:
        whole = translator.translate(text)
        cut = translator.translate(text, max_length=3)
        assert cut.tokens == whole.tokens[:3]


def test_default_depth_is_adaptive_where_there_is_one(tiny_bundle: Path, tmp_path: Path) -> None:
    assert Translator(tiny_bundle, device="cpu").policy.name == "halting:0.5"
    bare = write_tiny_bundle(tmp_path / "bare.bundle", operating_point=None)
    assert Translator(bare, device="cpu").policy.name == "full"
    assert Translator(bare, depth=2, device="cpu").policy.name == "2"


def test_depth_of_a_call_overrides_the_translator(translator: Translator) -> None:
    assert set(translator.translate("the dog", depth=3).depths) == {3}
    with pytest.raises(PolicyError, match=r"'7' is not a depth of this model\. This bundle has: full"):
        translator.translate("the dog", depth="7")


def test_signature_names_everything_that_matters(translator: Translator) -> None:
    parts = dict(part.split(":", 1) for part in translator.signature("halting:0.25").split("|"))
    assert parts["bundle"] == translator.bundle.sha256[:12]
    assert parts["provider"] == "CPUExecutionProvider"
    assert (parts["depth"], parts["beam"]) == ("halting:0.25", "1")
    assert set(parts) == {"bundle", "provider", "depth", "beam", "edgeseq", "onnxruntime"}
    assert "|depth:halting:0.5|" in translator.signature()


def test_settings_out_of_range_are_refused(translator: Translator) -> None:
    """At once, before anything is read."""
    with pytest.raises(InputError, match="batch_size is 0, expected at least 1"):
        translator.translate_iter([], batch_size=0)
    with pytest.raises(InputError, match="max_length is 0, expected at least 1"):
        translator.translate_iter([], max_length=0)
    with pytest.raises(InputError, match="max_length is -1, expected at least 1"):
        translator.stream("the dog", max_length=-1)


@pytest.mark.parametrize("value", [2.5, "4", True])
@pytest.mark.parametrize("name", ["batch_size", "max_length", "beam"])
def test_settings_of_another_type_are_refused(translator: Translator, name: str, value: object) -> None:
    with pytest.raises(InputError, match=rf"{name} is {value!r}, expected a (whole )?number"):
        translator.translate_iter([], **{name: value})  # type: ignore[arg-type]


def test_no_batch_size_is_refused(translator: Translator) -> None:
    with pytest.raises(InputError, match="batch_size is None, expected a whole number, at least 1"):
        translator.translate_iter([], batch_size=None)  # type: ignore[arg-type]


@pytest.mark.parametrize("beam", [1, 2])
def test_lengths_that_nothing_reaches_take_no_memory(translator: Translator, beam: int) -> None:
    found = {line: translator.translate(line, beam=beam) for line in SENTENCES}
    ended = [line for line, result in found.items() if result.tokens and result.tokens[-1] == "</s>"]
    assert ended
    for line in ended:
        assert translator.translate(line, beam=beam, max_length=2**70) == found[line]


def test_the_program_may_work_elsewhere_when_a_graph_is_first_needed(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does it matter where the link then leads that the bundle was opened by."""
    (tmp_path / "link.bundle").symlink_to(tiny_bundle)
    monkeypatch.chdir(tmp_path)
    translator = Translator("link.bundle", depth="full", device="cpu")
    (tmp_path / "link.bundle").unlink()
    monkeypatch.chdir("/")
    assert translator.translate("the dog") == Translator(tiny_bundle, depth="full", device="cpu").translate("the dog")


def test_settings_that_contradict_each_other_are_refused(translator: Translator) -> None:
    with pytest.raises(InputError, match=r"min_length is 5, expected at most max_length, 4$"):
        translator.translate("the dog", beam=BeamOptions(min_length=5), max_length=4)
    assert translator.translate("the dog", beam=BeamOptions(min_length=4), max_length=4).tokens


def test_a_beam_that_is_no_number_is_refused(translator: Translator) -> None:
    with pytest.raises(InputError, match=r"^beam is '4', expected a number of hypotheses or BeamOptions$"):
        translator.translate("the dog", beam="4")  # type: ignore[call-overload]


@pytest.mark.parametrize("count", [0, 5, 2 * 16 * 3, 2 * 16 * 3 + 1])
def test_lines_before_an_error_are_translated(translator: Translator, count: int) -> None:
    """Of the reader, of a line, and of a prefix that is missing; 16 batches are read at a time."""

    def failing() -> Iterator[str]:
        yield from ["the dog"] * count
        raise OSError("the disk has gone")

    expected = [translator.translate("the dog")] * count
    found: list[Translation] = []
    with pytest.raises(OSError, match="the disk has gone"):
        found.extend(translator.translate_iter(failing(), batch_size=2))
    assert found == expected
    found.clear()
    with pytest.raises(InputError, match="expected text as str, got NoneType"):
        found.extend(translator.translate_iter([*["the dog"] * count, None], batch_size=2))  # type: ignore[list-item]
    assert found == expected
    found.clear()
    with pytest.raises(InputError, match="expected text as str, got NoneType"):
        found.extend(
            translator.translate_iter(
                [*["the dog"] * count, None],  # type: ignore[list-item]
                batch_size=2,
                prefixes=[""] * (count + 1),
            )
        )
    assert found == expected
    found.clear()
    with pytest.raises(InputError, match=f"line {count + 1} has no prefix"):
        found.extend(translator.translate_iter(["the dog"] * (count + 1), batch_size=2, prefixes=[""] * count))
    assert found == expected


def test_a_prefix_of_any_length_is_not_fed(translator: Translator) -> None:
    with pytest.raises(
        InputError, match=r"^the prefix starting 'the dog the dog .*' has \d+ pieces, expected at most 1024$"
    ):
        translator.translate("the dog", prefix="the dog " * 1000)


def test_blank_lines_share_nothing(translator: Translator) -> None:
    first, second = translator.translate(["", " "])
    first.tokens.append("changed")
    assert second == BLANK


@pytest.mark.parametrize("call", ["translate", "translate_iter", "stream"])
def test_a_warning_names_the_line_that_called(
    translator: Translator, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "MAX_SOURCE_PIECES", 3)
    with pytest.warns(TruncationWarning) as caught:
        list(getattr(translator, call)(["the dog runs home"] if call != "stream" else "the dog runs home"))
    assert [warning.filename for warning in caught] == [__file__]


def test_what_decodes_a_sentence_alone_is_made_ready_where_one_is(tiny_bundle: Path) -> None:
    translator = Translator(tiny_bundle, depth="full", device="cpu")
    graphs = translator.engine._graphs
    translator.translate(["the dog runs", "the dog", "a cat"], batch_size=2)  # the last batch has one sentence
    translator.translate("the dog", beam=4)
    assert ("step", None) not in graphs._ready
    translator.translate("the dog")
    assert ("step", None) in graphs._ready


def test_a_bundle_exchanged_while_it_is_opened_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    """Its graphs were hashed before, and are read only now."""
    folder = tmp_path / "b"
    shutil.copytree(tiny_bundle, folder)
    opened = load_bundle(folder)
    (folder / "head.onnx").write_bytes((folder / "head.onnx").read_bytes())
    with pytest.raises(BundleError, match="has changed since it was opened: open it again"):
        Engine(opened.path, opened.manifest.model, "cpu", files=opened.files)
    Engine(opened.path, opened.manifest.model, "cpu")


@pytest.mark.parametrize("text", [b"the dog", None, ("the dog",)])
def test_what_is_not_text_is_refused(translator: Translator, text: object) -> None:
    with pytest.raises(InputError, match=r"expected a str or a list of str, got .* translate_iter"):
        translator.translate(text)  # type: ignore[call-overload]


def test_list_with_something_else_is_refused(translator: Translator) -> None:
    with pytest.raises(InputError, match="expected text as str, got int: 3"):
        translator.translate(["the dog", 3])  # type: ignore[list-item]


def test_iterating_over_one_str_is_refused(translator: Translator) -> None:
    """It would translate letter by letter."""
    with pytest.raises(InputError, match="expected an iterable of lines, got the str 'the dog'"):
        translator.translate_iter("the dog")


def test_cuda_is_never_replaced_silently(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(DeviceError, match="device 'cuda' is asked for"):
        Translator(tiny_bundle, device="cuda")


def test_threads_share_a_translator(translator: Translator) -> None:
    expected = translator.translate(SENTENCES)
    results: dict[int, list[Translation]] = {}

    def work(number: int) -> None:
        results[number] = translator.translate(SENTENCES, batch_size=5 + number)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert list(results.values()) == [expected] * 3


def test_one_translator_serves_every_policy_call_by_call(translator: Translator) -> None:
    """Each call gives what a Translator of that policy alone gives, greedily and with a beam, streamed or not."""
    text = SENTENCES[:5]
    alone = {
        (depth, beam): Translator(translator.bundle.path, depth=depth, device="cpu").translate(text, beam=beam)
        for depth in ONE_OF_EACH_KIND
        for beam in (1, 2)
    }
    for depth, beam in [*alone, *reversed(alone)]:
        assert translator.translate(text, depth=depth, beam=beam) == alone[depth, beam]
        if beam == 1:
            assert "".join(translator.stream(text[0], depth=depth)) == alone[depth, beam][0].text
    assert translator.policy.name == "halting:0.5", "a call has changed the Translator's own policy"
    # Control: the policies differ in what they give.
    results = {str([(t.tokens, t.depths) for t in translations]) for translations in alone.values()}
    assert len(results) >= len(ONE_OF_EACH_KIND)


def test_threads_share_a_translator_each_with_its_own_policy(translator: Translator) -> None:
    calls = [(depth, beam) for depth in ONE_OF_EACH_KIND for beam in (1, 2)]
    expected = [translator.translate(SENTENCES[:8], depth=depth, beam=beam) for depth, beam in calls]
    results: dict[int, list[Translation]] = {}
    together = threading.Barrier(4)

    def work(first: int) -> None:
        together.wait()
        for number in range(first, len(calls), 4):
            depth, beam = calls[number]
            results[number] = translator.translate(SENTENCES[:8], depth=depth, beam=beam, batch_size=3)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [results[number] for number in range(len(calls))] == expected


def test_unknown_characters_are_translated_all_the_same(translator: Translator) -> None:
    assert UNK_ID in translator.bundle.tokenizer.encode("犬")
    assert translator.translate("犬").tokens
