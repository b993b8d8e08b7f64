"""One torch module to one ONNX graph, free of traces of the machine it was made on."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

import onnx
import torch
from torch import Tensor

from edgeseq_export.errors import ExportError
from edgeseq_export.graphs import GraphPart
from edgeseq_runtime.signatures import GraphSignature

OPSET = 20
MAX_IR_VERSION = 10

# Sizes of the example inputs: different, so that no two axes are taken for the same, and none 0 or 1.
_EXAMPLE_SIZES = {"rows": 3, "source": 8, "positions": 2, "pending": 5}
_DTYPES = {"float32": torch.float32, "int64": torch.int64, "bool": torch.bool}


def trace_graph(part: GraphPart) -> onnx.ModelProto:
    """Exports a part of the model.

    Args:
        part: the module, in evaluation mode, and the signature it must have.

    Returns:
        The graph: opset 20, all axes named as in the signature, no metadata of the exporter.

    Raises:
        ExportError: the exporter fails, or gives another opset or signature.
    """
    signature = part.signature
    with _quiet(), torch.no_grad():
        try:
            program = torch.onnx.export(
                part.module,
                example_inputs(signature, _EXAMPLE_SIZES, torch.Generator().manual_seed(0)),
                input_names=[spec.name for spec in signature.inputs],
                output_names=[spec.name for spec in signature.outputs],
                dynamic_shapes=tuple(
                    {axis: name for axis, name in enumerate(spec.shape) if isinstance(name, str)}
                    for spec in signature.inputs
                ),
                opset_version=OPSET,
                external_data=False,
                dynamo=True,
                verbose=False,
            )
        except Exception as error:  # the exporter raises whatever its passes raise
            raise ExportError(f"torch cannot export {signature.file}: {error}") from error
    assert program is not None
    model = program.model_proto
    _strip(model, signature)
    _check(model, signature)
    return model


def example_inputs(signature: GraphSignature, sizes: dict[str, int], generator: torch.Generator) -> tuple[Tensor, ...]:
    """Draws inputs for a graph.

    Args:
        signature: names, types and axes.
        sizes: axis name → size.
        generator: source of the draw.

    Returns:
        Normal floats, small ids, and masks whose first column is always a token.
    """
    inputs = []
    for spec in signature.inputs:
        shape = [sizes[axis] if isinstance(axis, str) else axis for axis in spec.shape]
        if spec.name == "source_bias":
            lengths = torch.randint(1, shape[-1] + 1, (shape[0], 1), generator=generator)
            padded = torch.arange(shape[-1]) >= lengths
            inputs.append(torch.zeros(shape).masked_fill(padded[:, None, None, :], float("-inf")))
        elif spec.dtype == "bool":
            lengths = torch.randint(1, shape[-1] + 1, (shape[0], 1), generator=generator)
            inputs.append(torch.arange(shape[-1]) >= lengths)
        elif spec.dtype == "int64":
            inputs.append(torch.randint(1, 16, shape, generator=generator))
        else:
            inputs.append(torch.randn(shape, generator=generator, dtype=_DTYPES[spec.dtype]))
    return tuple(inputs)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the exporter's own warnings and progress to itself; as errors they would break it."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _strip(model: onnx.ModelProto, signature: GraphSignature) -> None:
    """Removes stack traces and source paths, which the exporter writes into every node."""
    graph = model.graph
    for holder in (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del holder.metadata_props[:]
        holder.doc_string = ""
    # Shapes of intermediate values name axes by the exporter's own expressions; sessions infer them anyway.
    del graph.value_info[:]
    graph.name = signature.file.removesuffix(".onnx")
    model.producer_name = "edgeseq"
    model.producer_version = ""


def _check(model: onnx.ModelProto, signature: GraphSignature) -> None:
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    if opsets.get("") != OPSET or model.ir_version > MAX_IR_VERSION:
        raise ExportError(
            f"{signature.file} came out with opsets {opsets} and IR version {model.ir_version}; expected opset {OPSET} "
            f"and at most IR version {MAX_IR_VERSION}. Is torch or onnx newer than this edgeseq knows?"
        )
    for kind, specs, values in (
        ("inputs", signature.inputs, model.graph.input),
        ("outputs", signature.outputs, model.graph.output),
    ):
        expected = [(spec.name, list(spec.shape)) for spec in specs]
        found = [(value.name, _shape(value)) for value in values]
        if expected != found:
            raise ExportError(f"{signature.file} came out with {kind} {found}; expected {expected}")
    onnx.checker.check_model(model, full_check=True)


def _shape(value: onnx.ValueInfoProto) -> list[int | str]:
    return [
        dimension.dim_value if dimension.HasField("dim_value") else dimension.dim_param
        for dimension in value.type.tensor_type.shape.dim
    ]
