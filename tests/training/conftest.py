"""Fixtures of the training tests."""

import os
from collections.abc import Iterator

import pytest
import torch

from edgeseq.data.vocabulary import train_tokenizer
from edgeseq_runtime.tokenizer import Tokenizer
from small_corpora import SENTENCES, VOCAB_SIZE


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Sums in one order, so that a resumed run can be compared in bits; tiny tensors are faster so, too."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", autouse=True)
def _no_waiting_for_disks() -> Iterator[None]:
    """Small runs write many files; that they survive a power failure is not tested here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer(train_tokenizer(iter(SENTENCES), VOCAB_SIZE))
