"""A run can be exported whatever the kind of its first predictor, which decodes are compared and measured with."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from edgeseq.config import PredictorConfig, RunConfig
from edgeseq.config_files import save_config
from edgeseq.data.vocabulary import train_tokenizer
from edgeseq.models import build_model
from edgeseq.models.seq2seq import Encoder
from edgeseq.training.checkpoints import save_model
from edgeseq_export import ValidationText, bundle_writer, export_run, quantisation
from edgeseq_runtime import Translator, TruncationWarning, sources
from edgeseq_runtime.engine import Engine
from edgeseq_runtime.tokenizer import Tokenizer
from small_corpora import SENTENCES, VOCAB_SIZE, write_lines

STACK = {"convolution_heads": 2, "feed_forward_dim": 16}
OTHERS = [PredictorConfig(name="other", kind="halting"), PredictorConfig(name="another", kind="sequence")]


def write_run(folder: Path, first: PredictorConfig) -> Path:
    """What training leaves, with weights at random."""
    (folder / "tokenizer.model").write_bytes(train_tokenizer(iter(SENTENCES), VOCAB_SIZE))
    table: dict[str, Any] = {
        "data": dict.fromkeys(("src", "tgt", "valid_src", "valid_tgt"), "text"),
        "model": {
            "dim": 16,
            "attention_heads": 2,
            "encoder": {**STACK, "kernel_sizes": [3]},
            "decoder": {**STACK, "kernel_sizes": [3, 2, 4]},
        },
        "predictors": [first, *OTHERS],
    }
    config = RunConfig.model_validate(table)
    (folder / "config.json").write_bytes(save_config(config))
    torch.manual_seed(1)
    model = build_model(config.model, Tokenizer(folder / "tokenizer.model").vocab_size, config.predictors)
    for parameter in model.predictors.parameters():  # zeros otherwise, which say the same of all tokens
        torch.nn.init.normal_(parameter)
    save_model(model, folder / "model.safetensors")
    return folder


def test_validation_lines_of_any_length_are_cut_as_a_translator_cuts_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the oracle's decodes, in the measuring of activations, and in the gate: else one line takes all memory."""
    limit = 40  # more than the sizes at which graphs are compared
    monkeypatch.setattr(sources, "MAX_SOURCE_PIECES", limit)
    monkeypatch.setattr(bundle_writer, "MAX_TIES", 20)
    for name, value in (("MAX_LOSS", 100.0), ("MAX_DEPTH_CHANGES", 1.0), ("MIN_TOKEN_AGREEMENT", 0.0)):
        monkeypatch.setattr(quantisation, name, value)
    longest: list[int] = []

    def watch(owner: type, method: str, length: Callable[..., int]) -> None:
        original = getattr(owner, method)

        def watched(self: object, *arguments: Any, **options: Any) -> object:
            longest.append(length(*arguments))
            return original(self, *arguments, **options)

        monkeypatch.setattr(owner, method, watched)

    run = write_run(tmp_path, PredictorConfig(name="first", kind="halting"))
    watch(Engine, "encode", lambda given, *_: max(map(len, given)))
    watch(Encoder, "forward", lambda ids, *_: ids.shape[1])
    text = write_lines(tmp_path / "valid.txt", [*SENTENCES[:4], " ".join(SENTENCES)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TruncationWarning)
        export_run(run, tmp_path / "b", ValidationText(text, text), "int8")
    assert max(longest) == limit + 1


@pytest.mark.parametrize("kind", ["halting", "certainty", "multinomial", "sequence"])
def test_any_kind_may_be_the_first(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle_writer, "MAX_TIES", 20)  # weights at random decide narrowly
    run = write_run(tmp_path, PredictorConfig(name="first", kind=kind))  # type: ignore[arg-type]
    text = write_lines(tmp_path / "valid.txt", SENTENCES[:8])
    manifest = export_run(run, tmp_path / "b", ValidationText(text, text))
    assert manifest.predictors[0].name == "first"
    measured = [row.depth for row in manifest.quality]
    expected = {"first:0.5", "first:0.9"} if kind in ("halting", "certainty") else {"first", "first:0.5"}
    assert expected <= set(measured)
    translator = Translator(tmp_path / "b", depth=measured[-1], device="cpu")
    assert translator.translate(SENTENCES[0]).depths
