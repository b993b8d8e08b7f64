"""Validation: losses are means over tokens, translations come back in order, BLEU is of decoded text."""

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch

import edgeseq.training.validation
from edgeseq.models import Seq2Seq
from edgeseq.models.reference import StopRule, reference_decode, stop_at
from edgeseq.training.validation import bleu_per_depth, loss_per_depth, translate_ids
from edgeseq_runtime.search import output_limit
from edgeseq_runtime.tokenizer import BOS_ID, EOS_ID, Tokenizer
from small_corpora import SENTENCES
from small_models import DECODER_KERNEL_SIZES, small_model
from small_runs import encode

BLOCKS = len(DECODER_KERNEL_SIZES)


@torch.no_grad()
@pytest.mark.parametrize("batch_tokens", [1, 40, 4096])
def test_losses_are_means_over_target_tokens_however_batched(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, batch_tokens: int
) -> None:
    model = small_model(tokenizer.vocab_size)
    corpus = encode(tokenizer, [*SENTENCES[:6], "der hund sieht den ball der hund sieht den ball", "ein kind"])
    sums, tokens, means = [0.0] * BLOCKS, 0, [0.0] * BLOCKS
    for index in range(len(corpus)):
        labels = torch.tensor(corpus.target[index].tolist())
        fed = torch.tensor([[BOS_ID, *labels[:-1]]])
        tokens += len(labels)
        for n, state in enumerate(model(torch.tensor([corpus.source[index].tolist()]), None, fed)):
            loss = torch.nn.functional.cross_entropy(model.decoder.exit_heads(state[0], n + 1), labels)
            sums[n] += float(loss) * len(labels)
            means[n] += float(loss) / len(corpus)
    monkeypatch.setattr(edgeseq.training.validation, "_BATCH_TOKENS", batch_tokens)
    losses = loss_per_depth(model, corpus, torch.device("cpu"))
    assert losses == pytest.approx([one / tokens for one in sums], abs=1e-5)
    assert losses != pytest.approx(means, abs=1e-5)  # control: means over sentences


@pytest.mark.parametrize("sentences_per_batch", [1, 3, 100])
def test_translations_come_back_in_the_order_of_their_sources(
    monkeypatch: pytest.MonkeyPatch, sentences_per_batch: int
) -> None:
    model = small_model()
    sources = [[5, 6, 7, 8, 3], [9, 3], [11, 12, 13, 14, 15, 16, 3], [4, 4, 3], [20, 8, 3]]
    expected = [reference_decode(model, [source], stop_at(2), [output_limit(len(source))])[0] for source in sources]
    monkeypatch.setattr(edgeseq.training.validation, "_BATCH_SENTENCES", sentences_per_batch)
    assert list(translate_ids(model, sources, stop_at(2))) == expected


def test_outputs_are_as_long_as_the_runtime_would_allow() -> None:
    model = small_model(tied_embeddings=False)
    with torch.no_grad():  # or it would say EOS at some time
        model.decoder.exit_heads.weight(1)[EOS_ID] = 0
    sources = [[5, 3], [11, 12, 13, 14, 15, 16, 3]]
    lengths = [len(tokens) for tokens, _ in translate_ids(model, sources, stop_at(1))]
    assert lengths == [output_limit(2), output_limit(7)] == [12, 22]


def test_bleu_compares_decoded_text_of_the_first_sentences(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = encode(tokenizer, SENTENCES[:10])
    asked = []

    def translate(
        model: Any, sources: Sequence[Sequence[int]], rule: StopRule
    ) -> Iterator[tuple[list[int], list[int]]]:
        asked.append((rule.blocks, len(sources)))
        for index in range(len(sources)):
            right = corpus.target[index].tolist()
            wrong = [*tokenizer.encode("ein"), EOS_ID]
            yield (right if rule.blocks == 2 else wrong), []

    monkeypatch.setattr(edgeseq.training.validation, "translate_ids", translate)
    model: Seq2Seq = small_model()
    scores = bleu_per_depth(model, corpus, tokenizer, [1, 2], sentences=4)
    assert asked == [(1, 4), (2, 4)]
    assert scores.keys() == {1, 2}
    assert scores[2] == pytest.approx(100)
    assert scores[1] < 10
    assert len(bleu_per_depth(model, corpus, tokenizer, [2], sentences=99)) == 1
    assert asked[-1] == (2, 10)
