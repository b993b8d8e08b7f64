"""torch with the Transformer of a training run and a cache: eager, or compiled ahead of time by Inductor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cached_search import Ids, Logits, make_translate
from edgeseq_runtime.tokenizer import Tokenizer
from translations import Translate

if TYPE_CHECKING:
    from torch import Tensor

RUN_FILES = ("config.json", "tokenizer.model", "model.safetensors")
SOURCE_PACKAGE = "source.pt2"
STEP_PACKAGE = "step.pt2"


def write_eager(run: Path, folder: Path) -> None:
    """Takes what is needed of a run, after a look at whether it can be run."""
    from transformer_modules import load_transformer

    load_transformer(run)
    folder.mkdir(parents=True)
    for name in RUN_FILES:
        (folder / name).write_bytes((run / name).read_bytes())


def write_compiled(run: Path, folder: Path) -> None:
    """Compiles both modules for any batch and length; needs a C++ compiler, and minutes."""
    import torch
    from torch._inductor import aoti_compile_and_package, config

    from transformer_modules import example_inputs, load_transformer

    config.freezing = True  # weights are laid out for oneDNN's products
    tokenizer, model = load_transformer(run)
    folder.mkdir(parents=True)
    with torch.no_grad():
        for name, example in zip((SOURCE_PACKAGE, STEP_PACKAGE), example_inputs(model), strict=True):
            exported = torch.export.export(example.module, example.arguments, dynamic_shapes=example.axes)
            aoti_compile_and_package(exported, package_path=str(folder / name))
    (folder / "tokenizer.model").write_bytes(tokenizer.model_bytes)


def load_eager(folder: Path, threads: int) -> Translate:
    """Makes the modules ready."""
    import torch

    from transformer_modules import SourceModule, StepModule, load_transformer

    torch.set_num_threads(threads)
    tokenizer, model = load_transformer(folder)
    return make_translate(_TorchModel(SourceModule(model).eval(), StepModule(model).eval()), tokenizer)


def load_compiled(folder: Path, threads: int) -> Translate:
    """Makes the compiled modules ready."""
    import torch
    from torch._inductor import aoti_load_package

    torch.set_num_threads(threads)
    source, step = (aoti_load_package(str(folder / name)) for name in (SOURCE_PACKAGE, STEP_PACKAGE))
    return make_translate(_TorchModel(source, step), Tokenizer(folder / "tokenizer.model"))


class _TorchModel:
    """Two functions as a `cached_search.CachedModel`."""

    def __init__(self, source: Callable[..., Sequence[Tensor]], step: Callable[..., Sequence[Tensor]]) -> None:
        import torch

        self._source = torch.inference_mode()(source)
        self._step = torch.inference_mode()(step)

    def encode(self, source: Ids) -> tuple[list[Tensor], list[Tensor]]:
        import torch

        bias, *cross = self._source(torch.from_numpy(source))
        return [bias, *cross], [array[:, :, :0].contiguous() for array in cross]

    def step(self, tokens: Ids, source: list[Tensor], past: list[Tensor]) -> tuple[Logits, list[Tensor]]:
        import torch

        position = torch.tensor([past[0].shape[2]])
        logits, *present = self._step(torch.from_numpy(tokens), position, source[0], source[1:], past)
        return logits.numpy(), present
