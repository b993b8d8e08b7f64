"""Exit states computed once, so that any number of depth predictors can be trained on a frozen trunk in minutes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file, save, save_file

from edgeseq.data.batching import Batch, collate, plan_epoch
from edgeseq.data.corpus import ParallelCorpus
from edgeseq.models import Seq2Seq
from edgeseq.modules.predictors import mean_memory
from edgeseq.training.checkpoints import model_tensors
from edgeseq.training.objectives import trunk_parameters
from edgeseq.training.precision import autocast
from edgeseq.training.predictor_loss import ExitObservations, observe_exits
from edgeseq_runtime.atomic import publish_directory
from edgeseq_runtime.tokenizer import PAD_ID

_FINGERPRINT_FILE = "fingerprint"


class ExitCache:
    """Observations of some training batches on disk, one file per batch."""

    def __init__(self, folder: Path) -> None:
        """Opens what `build_exit_cache` wrote."""
        self._files = sorted(folder.glob("*.safetensors"))

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> ExitObservations:
        """Reads one batch; exit states come in half precision."""
        tensors = load_file(self._files[index])
        return ExitObservations(
            list(tensors["exit_states"]),
            tensors["mean_memory"],
            tensors["likelihood"],
            tensors["choices"],
            tensors["labels"],
            tensors["certainty"],
        )


def build_exit_cache(
    model: Seq2Seq,
    corpus: ParallelCorpus,
    folder: Path,
    *,
    tokens: int,
    batch_tokens: int,
    seed: int,
    precision: torch.dtype,
) -> ExitCache:
    """Runs the trunk, without dropout, over random training batches; or opens the result of an earlier call.

    Args:
        model: the trunk, trained.
        corpus: training pairs.
        folder: where the cache goes; replaced as a whole, if it belongs to another trunk or other settings.
        tokens: target tokens to keep; the last batch may go over it.
        batch_tokens: positions per side and batch.
        seed: of the choice of batches.
        precision: of matrix products, float32 or bfloat16.

    Raises:
        OSError: the cache cannot be written.
    """
    fingerprint = _fingerprint(model, corpus, (tokens, batch_tokens, seed, precision))
    stamp = folder / _FINGERPRINT_FILE
    if stamp.is_file() and stamp.read_text() == fingerprint:
        return ExitCache(folder)
    products = autocast(precision, next(model.parameters()).device)
    with publish_directory(folder) as temporary, _without_dropout(model), products, torch.no_grad():
        for number, batch in enumerate(_batches(model, corpus, tokens, batch_tokens, seed)):
            memory = model.encoder(batch.source, batch.padding_mask)
            exit_states = model.decoder(batch.tokens, memory, batch.padding_mask)
            mean = mean_memory(memory, batch.padding_mask)
            observed = observe_exits(model, exit_states, mean, batch.labels, with_certainty=True)
            assert observed.certainty is not None
            tensors = {
                "exit_states": torch.stack(exit_states).half(),
                "mean_memory": observed.mean_memory.float(),
                "likelihood": observed.likelihood,
                "choices": observed.choices.int(),
                "labels": observed.labels.int(),
                "certainty": observed.certainty,
            }
            save_file({name: value.cpu() for name, value in tensors.items()}, temporary / f"{number:05d}.safetensors")
        (temporary / _FINGERPRINT_FILE).write_text(fingerprint)
    return ExitCache(folder)


@contextmanager
def _without_dropout(model: Seq2Seq) -> Iterator[None]:
    """Dropout would blur the very states and probabilities that predictors see when translating."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def _batches(model: Seq2Seq, corpus: ParallelCorpus, tokens: int, batch_tokens: int, seed: int) -> Iterator[Batch]:
    device = next(model.parameters()).device
    kept = 0
    for indices in plan_epoch(corpus, batch_tokens, seed, epoch=0):
        if kept >= tokens:
            break
        batch = collate(corpus, indices)
        kept += int((batch.labels != PAD_ID).sum())
        yield batch.to(device)


def _fingerprint(model: Seq2Seq, corpus: ParallelCorpus, settings: tuple[object, ...]) -> str:
    trunk = set(trunk_parameters(model))
    names = [name for name, parameter in model.named_parameters() if parameter in trunk]
    tensors = model_tensors(model)
    digest = hashlib.sha256(save({name: tensors[name].cpu() for name in names}))
    digest.update(f"{len(corpus)} {corpus.target_tokens} {settings}".encode())
    return digest.hexdigest()
