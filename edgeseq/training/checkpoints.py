"""Checkpoints: safetensors for tensors, JSON for the rest, published as whole folders; no pickle.

A run folder holds config.json, tokenizer.model, checkpoints/PHASE-STEP/ and, after a phase, model.safetensors.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from edgeseq.errors import CheckpointError
from edgeseq_runtime.atomic import publish_directory, write_file

CHECKPOINTS_FOLDER = "checkpoints"

_INTERRUPTED = "-interrupted"


@dataclass
class Progress:
    """Where a phase stands."""

    phase: str
    step: int = 0
    """Optimiser steps done."""
    epoch: int = 0
    """Passes over the data done; the order of each follows from the seed."""
    batch: int = 0
    """Batches read of the current pass."""
    tokens: int = 0
    """Target tokens read."""
    seconds: float = 0.0
    """Time spent, over all sessions."""
    best_loss: float = float("inf")
    """Lowest validation loss at full depth so far."""
    stale: int = 0
    """Validations since."""
    finished: bool = False


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters by name, a shared one once."""
    return {name: parameter.detach().contiguous() for name, parameter in model.named_parameters()}


def save_model(model: nn.Module, path: Path, dtype: torch.dtype = torch.float32) -> None:
    """Writes a model's parameters atomically."""
    write_file(path, save({name: tensor.to(dtype).cpu() for name, tensor in model_tensors(model).items()}))


def load_model(model: nn.Module, path: Path) -> None:
    """Fills a model's parameters, whatever floating type the file has.

    Raises:
        CheckpointError: the file cannot be read or does not fit the model.
    """
    _fill(model, _read_tensors(path), path)


def take_weights(model: nn.Module, path: Path) -> list[str]:
    """Fills those of a model's parameters that a file has under the same name and in the same shape.

    Returns:
        The names of the parameters that stay as they are.

    Raises:
        CheckpointError: the file cannot be read.
    """
    parameters = dict(model.named_parameters())
    tensors = _read_tensors(path)
    fitting = {
        name for name, parameter in parameters.items() if name in tensors and tensors[name].shape == parameter.shape
    }
    with torch.no_grad():
        for name in fitting:
            parameters[name].copy_(tensors[name])
    return [name for name in parameters if name not in fitting]


def save_checkpoint(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    keep: int,
    *,
    interrupted: bool = False,
) -> None:
    """Writes a checkpoint and removes those of the same phase that it makes needless.

    Args:
        folder: of all checkpoints; made if missing.
        model: the model.
        optimizer: its moments are saved, by parameter name.
        progress: where the phase stands.
        keep: newest regular checkpoints to keep.
        interrupted: whether an interruption calls for it. Such a checkpoint stays until the next one, and counts
            neither among those that are kept nor among those that are averaged: a run that was interrupted ends
            like one that was not.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = {parameter: name for name, parameter in model.named_parameters()}
    moments = {
        f"{names[parameter]}:{key}": value.cpu()
        for parameter, state in cast("dict[nn.Parameter, dict[str, Tensor]]", optimizer.state).items()
        for key, value in state.items()
    }
    random = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        random["cuda"] = torch.cuda.get_rng_state()
    name = f"{progress.phase}-{progress.step:08d}{_INTERRUPTED if interrupted else ''}"
    with publish_directory(folder / name) as temporary:
        save_model(model, temporary / "model.safetensors")
        write_file(temporary / "optimizer.safetensors", save(moments))
        write_file(temporary / "random.safetensors", save(random))
        write_file(temporary / "progress.json", json.dumps(asdict(progress), indent=2).encode())
    kept = {folder / name, *regular_checkpoints(folder, progress.phase)[-keep:]}
    for path in list_checkpoints(folder, progress.phase):
        if path not in kept:
            shutil.rmtree(path)


def list_checkpoints(folder: Path, phase: str) -> list[Path]:
    """Lists the checkpoints of a phase, oldest first."""
    return sorted(folder.glob(f"{phase}-*"))


def regular_checkpoints(folder: Path, phase: str) -> list[Path]:
    """Lists those that no interruption called for, oldest first."""
    return [path for path in list_checkpoints(folder, phase) if not path.name.endswith(_INTERRUPTED)]


def has_checkpoint(folder: Path) -> bool:
    """Whether there is one of any phase; the folder alone says nothing, it is made before the first."""
    return any(folder.glob("[!.]*"))


def read_progress(path: Path) -> Progress:
    """Reads where a checkpoint's phase stood.

    Raises:
        CheckpointError: the checkpoint cannot be read.
    """
    try:
        return Progress(**json.loads((path / "progress.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"cannot read {path / 'progress.json'}: {error}; remove this checkpoint") from error


def load_checkpoint(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> Progress:
    """Restores everything that `save_checkpoint` wrote, random state included.

    Raises:
        CheckpointError: the checkpoint cannot be read or does not fit.
    """
    progress = read_progress(path)
    load_model(model, path / "model.safetensors")
    moments = _read_tensors(path / "optimizer.safetensors")
    parameters = dict(model.named_parameters())
    for key, value in moments.items():
        name, _, kind = key.rpartition(":")
        if name not in parameters:
            raise CheckpointError(f"{path / 'optimizer.safetensors'} holds {name}, which the model has not")
        parameter = parameters[name]
        # The step count too: the fused optimiser reads it where the parameter is.
        optimizer.state[parameter][kind] = value.to(parameter.device)
    random = _read_tensors(path / "random.safetensors")
    torch.set_rng_state(random["torch"])
    if "cuda" in random and torch.cuda.is_available():
        torch.cuda.set_rng_state(random["cuda"])
    return progress


def average_checkpoints(paths: Sequence[Path], model: nn.Module) -> None:
    """Fills a model with the mean of several checkpoints' parameters.

    Raises:
        CheckpointError: one of them cannot be read or does not fit.
    """
    sums: dict[str, Tensor] = {}
    for path in paths:
        for name, tensor in _read_tensors(path / "model.safetensors").items():
            sums[name] = sums[name] + tensor if name in sums else tensor
    _fill(model, {name: total / len(paths) for name, total in sums.items()}, paths[-1])


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise CheckpointError(f"there is no {path}") from error
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); use an older checkpoint or train again") from error


def _fill(model: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    parameters = dict(model.named_parameters())
    missing = sorted(parameters.keys() - tensors.keys())
    unknown = sorted(tensors.keys() - parameters.keys())
    wrong = [
        f"{name} {tuple(tensors[name].shape)} instead of {tuple(parameter.shape)}"
        for name, parameter in parameters.items()
        if name in tensors and tensors[name].shape != parameter.shape
    ]
    if missing or unknown or wrong:
        raise CheckpointError(
            f"{path} does not fit the model of this configuration: missing {missing[:5]}, unknown {unknown[:5]}, "
            f"of another shape {wrong[:5]}"
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])
