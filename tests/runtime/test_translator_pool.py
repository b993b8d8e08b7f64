"""Processes that share lines give what one Translator gives, and say what goes wrong in them."""

import itertools
import multiprocessing
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeseq_runtime import (
    BeamOptions,
    BundleError,
    DeviceError,
    InputError,
    PolicyError,
    Translation,
    Translator,
    TranslatorPool,
    TruncationWarning,
    WorkerError,
)
from edgeseq_runtime.translator import WINDOW_BATCHES

LINES = [" ".join(["the dog plays"] * (number % 5)) + " in the snow" * (number % 3) for number in range(90)]
"""Blank ones among them; with batches of one, several windows of two processes."""


@pytest.fixture(scope="module")
def pool(tiny_bundle: Path) -> Iterator[TranslatorPool]:
    with TranslatorPool(tiny_bundle, processes=2, depth="halting:0.5", device="cpu") as made:
        yield made


@pytest.fixture(scope="module")
def translator(tiny_bundle: Path) -> Translator:
    return Translator(tiny_bundle, depth="halting:0.5", device="cpu")


@pytest.mark.parametrize("batch_size", [1, 7])
def test_a_pool_gives_what_one_translator_gives(pool: TranslatorPool, translator: Translator, batch_size: int) -> None:
    assert any(not line for line in LINES)
    assert len(LINES) > 2 * 2 * WINDOW_BATCHES
    expected = translator.translate(LINES)
    assert list(pool.translate_iter(LINES, batch_size=batch_size)) == expected
    assert len({translation.text for translation in expected}) > 10, "an order that is lost could not be seen"


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_there_may_be_fewer_lines_than_processes(pool: TranslatorPool, translator: Translator, count: int) -> None:
    assert list(pool.translate_iter(LINES[-count:] if count else [])) == translator.translate(
        LINES[-count:] if count else []
    )


def test_all_settings_reach_the_processes(pool: TranslatorPool, translator: Translator) -> None:
    beam = BeamOptions(size=3, n_best=2)
    prefixes = [line[:3] for line in LINES[:9]]
    expected = translator.translate(LINES[:9], max_length=6, beam=beam, prefix=prefixes)
    assert list(pool.translate_iter(LINES[:9], max_length=6, beam=beam, prefixes=prefixes)) == expected
    (scored,) = pool.translate_iter(["the dog"], scores=True)
    assert scored == translator.translate("the dog", scores=True)
    assert scored.score is not None


def test_lines_are_read_as_they_are_needed(pool: TranslatorPool, translator: Translator) -> None:
    """And results that nobody took are no later call's."""
    endless = itertools.count()
    results = pool.translate_iter((f"the dog {number}" for number in endless), batch_size=1)
    next(results)
    assert next(endless) == 2 * 2 * WINDOW_BATCHES
    assert list(pool.translate_iter(["snow"])) == [translator.translate("snow")]
    for _ in range(2 * WINDOW_BATCHES - 1):
        next(results)
    with pytest.raises(InputError, match="another call of this pool has begun"):
        next(results)


def test_shares_longer_than_a_pipe_pass_each_other(pool: TranslatorPool, translator: Translator) -> None:
    """Were each end to send first, with nobody to receive, both would wait for ever."""
    text = "the dog plays in the snow " * 3
    lines = [text + " " * (5000 + number) for number in range(2 * 2 * 8 * WINDOW_BATCHES)]  # two windows
    beam = BeamOptions(size=4, n_best=4)
    expected = [translator.translate(text, beam=beam)] * len(lines)
    assert list(pool.translate_iter(lines, batch_size=8, beam=beam)) == expected


def test_warnings_come_through(pool: TranslatorPool) -> None:
    with pytest.warns(TruncationWarning, match="only the first 1024 are translated") as caught:
        list(pool.translate_iter(["the dog", "the dog " * 2000], max_length=1))
    assert len(caught) == 1


def test_what_comes_before_an_error_is_given(pool: TranslatorPool, translator: Translator) -> None:
    lines: list[str] = ["the dog"] * 2 * WINDOW_BATCHES + ["snow", 3]  # type: ignore[list-item]
    results = pool.translate_iter(lines, batch_size=1)
    expected = translator.translate("the dog")
    assert [next(results) for _ in range(2 * WINDOW_BATCHES)] == [expected] * 2 * WINDOW_BATCHES
    assert next(results) == translator.translate("snow")
    with pytest.raises(InputError, match="expected text as str, got int: 3"):
        next(results)
    assert list(pool.translate_iter(["the dog"])) == [expected], "a call after an error"


@pytest.mark.parametrize("count", [0, 5, 4 * WINDOW_BATCHES, 5 * WINDOW_BATCHES])
def test_what_was_read_before_the_reader_failed_is_given(
    pool: TranslatorPool, translator: Translator, count: int
) -> None:
    def lines() -> Iterator[str]:
        yield from itertools.islice(itertools.cycle(LINES), count)
        raise OSError("the disk has gone")

    found: list[Translation] = []
    with pytest.raises(OSError, match="the disk has gone"):
        found.extend(pool.translate_iter(lines(), batch_size=1))
    assert found == translator.translate(list(itertools.islice(itertools.cycle(LINES), count)))


def test_settings_out_of_range_are_refused_at_once(pool: TranslatorPool, tiny_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="batch_size is 0, expected at least 1"):
        pool.translate_iter([], batch_size=0)
    with pytest.raises(InputError, match="processes is 0, expected at least 1"):
        TranslatorPool(tiny_bundle, processes=0)
    with pytest.raises(PolicyError, match="'7' is not a depth of this model"):
        TranslatorPool(tiny_bundle, processes=2, depth="7")
    with pytest.raises(BundleError, match=r"none"):
        TranslatorPool(tmp_path / "none", processes=2)
    assert len(multiprocessing.active_children()) <= 2, "a refused pool has left processes"


def test_an_error_of_loading_is_raised(tiny_bundle: Path) -> None:
    with (
        TranslatorPool(tiny_bundle, processes=1, device="cuda") as pool,
        pytest.raises(DeviceError, match="device 'cuda' is asked for"),
    ):
        list(pool.translate_iter(["the dog"]))


def test_a_process_that_has_died_is_named(tiny_bundle: Path) -> None:
    with TranslatorPool(tiny_bundle, processes=2, device="cpu") as pool:
        list(pool.translate_iter(["the dog", "snow"]))
        victim = pool.process_ids[1]
        os.kill(victim, signal.SIGINT)
        assert len(list(pool.translate_iter(["the dog", "snow"]))) == 2, "Ctrl-C is for the process that has the pool"
        os.kill(victim, signal.SIGKILL)
        with pytest.raises(
            WorkerError, match=rf"process {victim}, one of 2 that translate, has died with exit code -9"
        ):
            list(pool.translate_iter(["the dog", "snow"]))


def test_a_closed_pool_leaves_no_process(tiny_bundle: Path) -> None:
    with TranslatorPool(tiny_bundle, processes=2, device="cpu") as pool:
        ours = set(pool.process_ids)
        assert ours <= {child.pid for child in multiprocessing.active_children()}
    assert not ours & {child.pid for child in multiprocessing.active_children()}


def test_a_closed_pool_says_so(tiny_bundle: Path) -> None:
    pool = TranslatorPool(tiny_bundle, processes=1, device="cpu")
    pool.close()
    with pytest.raises(InputError, match=r"^this pool is closed: make another one$"):
        pool.translate_iter(["the dog"])


def test_results_that_are_taken_too_late_are_not_called_a_death(tiny_bundle: Path) -> None:
    with TranslatorPool(tiny_bundle, processes=1, device="cpu") as pool:
        begun, late = pool.translate_iter(["the dog"]), pool.translate_iter(["the dog"])
    for results in (begun, late):
        with pytest.raises(InputError, match="this pool was closed before all results were taken"):
            list(results)


def test_a_pool_that_was_interrupted_while_it_waited_is_closed(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A later call would read on in the middle of a message."""

    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    with TranslatorPool(tiny_bundle, processes=1, device="cpu") as pool:
        with monkeypatch.context() as patch:
            patch.setattr(type(pool._connections[0]), "recv", interrupt)
            with pytest.raises(KeyboardInterrupt):
                list(pool.translate_iter(["the dog"]))
        with pytest.raises(InputError, match=r"^this pool is closed: make another one$"):
            pool.translate_iter(["the dog"])


def test_a_bundle_exchanged_before_a_process_opens_it_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "b"
    shutil.copytree(tiny_bundle, folder)
    with TranslatorPool(folder, processes=1, device="cpu") as pool:
        manifest = (folder / "manifest.json").read_bytes()
        (folder / "manifest.json").write_bytes(manifest + b"\n")
        with pytest.raises(BundleError, match="has changed since it was opened: open it again"):
            list(pool.translate_iter(["the dog"]))
