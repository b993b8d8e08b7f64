"""Position vectors: those that the model was trained with, however far a sentence goes."""

import threading

import numpy as np
import pytest
import torch

from edgeseq.modules.embedding import sinusoid
from edgeseq_runtime.arrays import FloatArray
from edgeseq_runtime.sinusoids import Sinusoids

DIMS = [2, 16, 256]


def rounding(positions: np.ndarray) -> np.ndarray:
    """How far float32 lets two computations lie apart: two units in the last place of the angle, and of the sine."""
    units: np.ndarray = 2 * (np.spacing(np.maximum(positions, 1).astype(np.float32)) + np.spacing(np.float32(1)))
    return units[:, None]


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("length", [8, 128, 1500])
def test_vectors_equal_those_of_training(dim: int, length: int) -> None:
    positions = np.arange(length)
    expected = sinusoid(torch.from_numpy(positions), dim).numpy()
    found = Sinusoids(dim).take(positions)
    assert found.dtype == np.float32
    assert found.shape == (length, dim)
    assert (np.abs(found - expected) <= rounding(positions)).all()
    if length == 8:
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dim", DIMS)
def test_vectors_equal_the_formula(dim: int) -> None:
    """Sines, then cosines, of wavelengths from 2π to 10000 · 2π (tensor2tensor's layout), in float64."""
    positions = np.arange(1500)
    half = dim // 2
    angles = positions[:, None] / 10000.0 ** (np.arange(half) / max(half - 1, 1))
    expected = np.concatenate((np.sin(angles), np.cos(angles)), axis=1)
    assert (np.abs(Sinusoids(dim).take(positions) - expected) <= rounding(positions)).all()


def test_control_a_position_that_is_off_by_one_is_seen() -> None:
    """The tolerance above is far below the difference of neighbours, even far out."""
    positions = np.arange(1499)
    neighbours = Sinusoids(16).take(positions + 1)
    differences = np.abs(Sinusoids(16).take(positions) - neighbours).max(axis=1)
    assert (differences > 100 * rounding(positions)[:, 0]).all()


def check_growth(dim: int) -> None:
    early, late = Sinusoids(dim), Sinusoids(dim)
    positions = np.arange(100)
    first = early.take(positions)
    for longest in (128, 300, 5000):
        assert early.take(np.array([longest])).shape == (1, dim)
        np.testing.assert_array_equal(early.take(positions), first)
    late.take(np.array([4000]))
    for positions in (np.array([0]), np.array([127, 128, 129]), np.arange(1000, 1100)):
        np.testing.assert_array_equal(late.take(positions), early.take(positions))


@pytest.mark.parametrize("dim", DIMS)
def test_a_vector_is_the_same_bits_whoever_made_the_table_grow(dim: int) -> None:
    """Or a sentence's result would depend on the length of those before it."""
    check_growth(dim)


def test_control_a_table_that_rounds_by_its_length_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Sinusoids._compute

    def compute(self: Sinusoids, length: int) -> FloatArray:
        table: FloatArray = original(self, length) * np.float32(length) / np.float32(length)
        return table

    monkeypatch.setattr(Sinusoids, "_compute", compute)
    with pytest.raises(AssertionError):
        check_growth(16)


def test_vectors_come_in_the_order_of_the_positions() -> None:
    sinusoids = Sinusoids(16)
    found = sinusoids.take(np.array([7, 0, 7, 200]))
    np.testing.assert_array_equal(found[0], found[2])
    np.testing.assert_array_equal(found[1], [0] * 8 + [1] * 8)
    np.testing.assert_array_equal(found[3], sinusoids.take(np.array([200]))[0])


def test_vectors_are_copies() -> None:
    sinusoids = Sinusoids(16)
    sinusoids.take(np.array([3]))[:] = 9
    assert np.abs(sinusoids.take(np.array([3]))).max() <= 1


def test_a_table_never_shrinks_under_another_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads want the table to grow at once; the one that wants less comes last."""
    sinusoids = Sinusoids(16)
    far, near = np.array([5000]), np.array([200])
    expected = [Sinusoids(16).take(far), Sinusoids(16).take(near)]
    computing, may_go_on = threading.Event(), threading.Event()
    original = Sinusoids._compute

    def slowly(self: Sinusoids, length: int) -> FloatArray:
        computing.set()
        assert may_go_on.wait(10)
        return original(self, length)

    monkeypatch.setattr(Sinusoids, "_compute", slowly)
    found: list[FloatArray | None] = [None, None]

    def take(number: int, positions: np.ndarray) -> None:
        found[number] = sinusoids.take(positions)

    first = threading.Thread(target=take, args=(0, far))
    second = threading.Thread(target=take, args=(1, near))
    first.start()
    assert computing.wait(10)
    second.start()  # sees the short table, and waits for the lock
    second.join(0.2)
    assert second.is_alive()
    may_go_on.set()
    first.join()
    second.join()
    np.testing.assert_equal(found, expected)
    assert len(sinusoids._table) > 5000


def test_threads_share_a_table() -> None:
    sinusoids = Sinusoids(16)
    whole = Sinusoids(16).take(np.arange(6000))
    wrong: list[object] = []

    def work(seed: int) -> None:
        generator = np.random.default_rng(seed)
        for longest in generator.integers(1, 6000, 50):
            positions = generator.integers(0, longest, 5)
            try:
                if not np.array_equal(sinusoids.take(positions), whole[positions]):
                    wrong.append(positions)
            except IndexError as error:
                wrong.append(error)

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert wrong == []
