"""Which graphs a bundle holds and what each takes and gives, derived from the model's facts.

Export builds its graphs to these signatures; the runtime refuses graphs that differ. Axis names:
``rows`` sentences (or hypotheses), ``source`` padded source length, ``positions`` target positions
of one call, ``pending`` positions to be filled in at once.
"""

from dataclasses import dataclass

from edgeseq_runtime.manifest import DType, GraphRole, ModelFacts, TensorSpec


@dataclass(frozen=True)
class GraphSignature:
    """Inputs and outputs of one graph.

    Attributes:
        file: Name in the bundle.
        role: What the graph does.
        block: The decoder block it belongs to, from 1; None where it belongs to none.
        inputs: What it takes, in order.
        outputs: What it gives, in order.
    """

    file: str
    role: GraphRole
    block: int | None
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


def expected_signatures(model: ModelFacts) -> list[GraphSignature]:
    """Signatures of all graphs of a bundle, in the order in which an engine uses them.

    A block with one tap has no history, so it has neither a ``history`` input nor a backfill
    graph; block 1 is run for every token, so it needs no backfill graph either.
    """
    signatures = [_encoder(model), _embed(model)]
    for block, kernel_size in enumerate(model.decoder_kernel_sizes, start=1):
        signatures.append(_cross(model, block))
        signatures.append(_block(model, block, kernel_size))
        if block > 1 and kernel_size > 1:
            signatures.append(_backfill(model, block))
    if model.head == "tied":
        signatures.append(_head(model, None))
    else:
        signatures.extend(_head(model, n) for n in range(1, model.decoder_blocks + 1))
    return signatures


def _tensor(name: str, *shape: int | str, dtype: DType = "float32") -> TensorSpec:
    return TensorSpec(name=name, dtype=dtype, shape=list(shape))


def _encoder(model: ModelFacts) -> GraphSignature:
    return GraphSignature(
        "encoder.onnx",
        "encoder",
        None,
        (
            _tensor("source", "rows", "source", dtype="int64"),
            _tensor("padding_mask", "rows", "source", dtype="bool"),
        ),
        (_tensor("memory", "rows", "source", model.dim),),
    )


def _embed(model: ModelFacts) -> GraphSignature:
    return GraphSignature(
        "embed.onnx",
        "embed",
        None,
        (
            _tensor("tokens", "rows", "positions", dtype="int64"),
            _tensor("position", "rows", "positions", dtype="int64"),
        ),
        (_tensor("x", "rows", "positions", model.dim),),
    )


def _cross_tensors(model: ModelFacts) -> tuple[TensorSpec, TensorSpec]:
    head_dim = model.dim // model.heads
    return (
        _tensor("cross_key", "rows", model.heads, head_dim, "source"),
        _tensor("cross_value", "rows", model.heads, "source", head_dim),
    )


def _cross(model: ModelFacts, block: int) -> GraphSignature:
    return GraphSignature(
        f"cross_{block}.onnx",
        "cross",
        block,
        (_tensor("memory", "rows", "source", model.dim),),
        _cross_tensors(model),
    )


def _block(model: ModelFacts, block: int, kernel_size: int) -> GraphSignature:
    history = (_tensor("history", "rows", kernel_size - 1, model.dim),) if kernel_size > 1 else ()
    return GraphSignature(
        f"block_{block}.onnx",
        "block",
        block,
        (
            _tensor("x", "rows", "positions", model.dim),
            *history,
            *_cross_tensors(model),
            _tensor("source_bias", "rows", 1, 1, "source"),
        ),
        (
            _tensor("next_x", "rows", "positions", model.dim),
            _tensor("exit_state", "rows", "positions", model.dim),
            _tensor("columns", "rows", "positions", model.dim),
        ),
    )


def _backfill(model: ModelFacts, block: int) -> GraphSignature:
    return GraphSignature(
        f"backfill_{block}.onnx",
        "backfill",
        block,
        (_tensor("states", "pending", model.dim),),
        (_tensor("columns", "pending", model.dim),),
    )


def _head(model: ModelFacts, block: int | None) -> GraphSignature:
    return GraphSignature(
        "head.onnx" if block is None else f"head_{block}.onnx",
        "head",
        block,
        (_tensor("exit_state", "rows", model.dim),),
        (_tensor("logits", "rows", model.vocab_size),),
    )
