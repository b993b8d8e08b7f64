"""onnxruntime driven the ordinary way: the Transformer as two graphs, exported by torch, the cache handed round.

Eight bits are onnxruntime's own dynamic quantisation at its defaults: weights per tensor, activations measured in each
call, so that a sentence's result depends on its batch.
"""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from cached_search import Ids, Logits, make_translate
from edgeseq_runtime.tokenizer import Tokenizer
from translations import Translate

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

GRAPHS = ("source.onnx", "step.onnx")


def write(run: Path, folder: Path, compute_type: Literal["int8", "float32"]) -> None:
    """Exports both graphs, and quantises them."""
    import torch
    from onnxruntime.quantization import QuantType, quantize_dynamic

    from transformer_modules import example_inputs, load_transformer

    tokenizer, model = load_transformer(run)
    folder.mkdir(parents=True)
    (folder / "tokenizer.model").write_bytes(tokenizer.model_bytes)
    # Of packages that are not there and are not needed, and of a step before quantisation that changes nothing here.
    logging.disable(logging.WARNING)
    for name, example in zip(GRAPHS, example_inputs(model), strict=True):
        path = folder / name
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # names of axes that several inputs share
            torch.onnx.export(
                example.module,
                example.arguments,
                path,
                input_names=example.names,
                dynamic_shapes=example.axes,
                external_data=False,
                verbose=False,
            )
        if compute_type == "int8":
            quantize_dynamic(path, path, weight_type=QuantType.QInt8)
    logging.disable(logging.NOTSET)


def load(folder: Path, threads: int) -> Translate:
    """Makes the graphs ready."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    source, step = (
        onnxruntime.InferenceSession(folder / name, options, providers=["CPUExecutionProvider"]) for name in GRAPHS
    )
    return make_translate(_OnnxModel(source, step), Tokenizer(folder / "tokenizer.model"))


class _OnnxModel:
    """Two sessions as a `cached_search.CachedModel`."""

    def __init__(self, source: InferenceSession, step: InferenceSession) -> None:
        self._source = source
        self._step = step
        self._inputs = [each.name for each in step.get_inputs()]

    def encode(self, source: Ids) -> tuple[list[NDArray[np.float32]], list[NDArray[np.float32]]]:
        bias, *cross = self._source.run(None, {"source": source})
        return [bias, *cross], [array[:, :, :0] for array in cross]

    def step(
        self, tokens: Ids, source: list[NDArray[np.float32]], past: list[NDArray[np.float32]]
    ) -> tuple[Logits, list[NDArray[np.float32]]]:
        position = np.array([past[0].shape[2]])
        feeds = dict(zip(self._inputs, (tokens, position, *source, *past), strict=True))
        logits, *present = self._step.run(None, feeds)
        return logits, present
