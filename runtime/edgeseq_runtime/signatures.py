"""Which graphs a bundle holds and what each takes and gives, derived from the model's facts.

Export builds its graphs to these signatures; the runtime refuses graphs that differ.

Decoding state lives in a few large tensors that hold all rows of a batch. A graph takes them whole,
takes indices that say which parts it reads and writes, and gives them back with those parts
replaced; an output called ``next_X`` has the shape of the input ``X`` and may share its memory.

Axis names: ``rows`` sentences (or hypotheses) of the batch, ``source`` padded source length,
``active`` rows that run a block, ``read`` cells that it reads: one per active row, and one per
copied state that it turns into a column; ``written`` parts of columns, one per head, that it makes
of them; ``cells`` and ``column_cells`` vectors of a state tensor; ``places`` of a ring that grows;
``candidates`` target pieces of a sentence's shortlist, padded.

The graph of a whole step is for a row alone. It takes the state tensors of all blocks, whose names
end with the block's number, and stops by itself.
"""

from dataclasses import dataclass

from edgeseq_runtime.manifest import DType, GraphRole, ModelFacts, TensorSpec
from edgeseq_runtime.records import CandidateWeights


@dataclass(frozen=True)
class MixerState:
    """What decoder blocks keep of earlier positions, by the names that their graphs give it.

    Attributes:
        tensors: State tensors that hold the columns, in rings, (column_cells, d/H) each.
        places: The input that says what lies in the places of a ring.
    """

    tensors: tuple[str, ...]
    places: str


_CONVOLUTION = MixerState(("columns",), "tap_places")
_MIXER_STATES = {
    "dynamic": _CONVOLUTION,
    "lightweight": _CONVOLUTION,
    "attention": MixerState(("keys", "values"), "place_bias"),
}


def mixer_state(model: ModelFacts) -> MixerState:
    """What the decoder blocks of a model keep of earlier positions."""
    return _MIXER_STATES[model.mixer]


@dataclass(frozen=True)
class GraphInterface:
    """What a graph takes and gives.

    Attributes:
        file: Name of its file.
        inputs: What it takes, in order.
        outputs: What it gives, in order.
    """

    file: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True)
class GraphSignature(GraphInterface):
    """A graph of a bundle: what it takes and gives, and what it does.

    Attributes:
        role: What it does.
        block: The decoder block it belongs to, from 1; None where it belongs to none.
    """

    role: GraphRole
    block: int | None = None


def expected_signatures(model: ModelFacts, shortlist: CandidateWeights | None = None) -> list[GraphSignature]:
    """Signatures of all graphs of a bundle, in the order in which an engine uses them.

    Args:
        model: Facts of its model.
        shortlist: How its shortlist keeps weights; None where it has none.
    """
    signatures = [_encoder(model)]
    for block, reach in enumerate(model.decoder_reaches, start=1):
        signatures.append(_cross(model, block))
        signatures.append(_block(model, block, reach))
    if model.head == "tied":
        signatures.append(_head(model, None))
    else:
        signatures.extend(_head(model, n) for n in range(1, model.decoder_blocks + 1))
    if has_step(model):
        signatures.append(_step(model))
    if shortlist is not None:
        signatures += [_candidates(model, shortlist), _shortlist_head(model, shortlist)]
        if has_step(model):
            signatures.append(_shortlist_step(model, shortlist))
    return signatures


def has_step(model: ModelFacts) -> bool:
    """Whether a bundle of this model has the graph of a whole step: where decoder blocks convolve."""
    return model.mixer != "attention"


def _tensor(name: str, *shape: int | str, dtype: DType = "float32") -> TensorSpec:
    return TensorSpec(name=name, dtype=dtype, shape=list(shape))


def _index(name: str, *shape: int | str) -> TensorSpec:
    return _tensor(name, *shape, dtype="int64")


def _encoder(model: ModelFacts) -> GraphSignature:
    return GraphSignature(
        "encoder.onnx",
        (
            _index("source", "rows", "source"),
            _tensor("padding_mask", "rows", "source", dtype="bool"),
        ),
        (_tensor("memory", "rows", "source", model.dim),),
        "encoder",
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
        (_tensor("memory", "rows", "source", model.dim),),
        _cross_tensors(model),
        "cross",
        block,
    )


def _block(model: ModelFacts, block: int, reach: int) -> GraphSignature:
    """Block 1 begins with the embedding; all rows run it always, so it is not told who is active, nor what to read."""
    column_dim = model.dim // model.mixer_heads
    kept = mixer_state(model)
    active = "rows" if block == 1 else "active"
    places = {
        "tap_places": _index("tap_places", active, 1, model.mixer_heads, 1, reach),
        "place_bias": _tensor("place_bias", active, 1, 1, 1, reach or "places"),
    }
    states = _tensor("states", "cells", model.dim)
    exit_states = _tensor("exit_states", "rows", model.dim)
    columns = [_tensor(name, "column_cells", column_dim) for name in kept.tensors]
    sources = (*_cross_tensors(model), _tensor("source_bias", "rows", 1, 1, "source"))
    # After the last block every token stops.
    asked = block < model.decoder_blocks
    stop_weight = (_tensor("stop_weight", 1, model.dim),) if asked else ()
    stop_scores = (_tensor("stop_scores", active),) if asked else ()
    own_cells, written_columns = _index("own_cells", active, 1), _index("written_columns", "written", 1)
    if block == 1:
        tokens = (_index("tokens", "rows"), _tensor("position_vectors", "rows", model.dim))
        inputs = (*tokens, states, *columns, *sources, own_cells, written_columns, places[kept.places], *stop_weight)
        outputs = (_next(states), exit_states, *map(_next, columns), *stop_scores)
    else:
        rows, read = _index("active_rows", "active", 1), _index("read_cells", "read")
        indices = (rows, own_cells, read, written_columns)
        inputs = (states, exit_states, *columns, *sources, *indices, places[kept.places], *stop_weight)
        outputs = (_next(states), _next(exit_states), *map(_next, columns), *stop_scores)
    return GraphSignature(f"block_{block}.onnx", inputs, outputs, "block", block)


def _next(tensor: TensorSpec) -> TensorSpec:
    return tensor.model_copy(update={"name": f"next_{tensor.name}"})


def _head(model: ModelFacts, block: int | None) -> GraphSignature:
    return GraphSignature(
        "head.onnx" if block is None else f"head_{block}.onnx",
        (_tensor("exit_states", "rows", model.dim),),
        (_tensor("logits", "rows", model.vocab_size),),
        "head",
        block,
    )


def _candidate_tensors(model: ModelFacts, weights: CandidateWeights, rows: int | str) -> tuple[TensorSpec, ...]:
    """The exit head's weights for the candidates of each row; scales where they are integers."""
    kept = _tensor("candidate_weights", rows, model.dim, "candidates", dtype=weights)
    return (kept,) if weights == "float32" else (kept, _tensor("candidate_scales", rows, "candidates"))


def _candidates(model: ModelFacts, weights: CandidateWeights) -> GraphSignature:
    return GraphSignature(
        "candidates.onnx",
        (_index("candidates", "rows", "candidates"),),
        _candidate_tensors(model, weights, "rows"),
        "candidates",
    )


def _shortlist_head(model: ModelFacts, weights: CandidateWeights) -> GraphSignature:
    return GraphSignature(
        "shortlist_head.onnx",
        (
            _tensor("exit_states", "rows", model.dim),
            *_candidate_tensors(model, weights, "rows"),
            _tensor("candidate_bias", "rows", "candidates"),
        ),
        (_tensor("logits", "rows", "candidates"),),
        "shortlist_head",
    )


def _shortlist_step(model: ModelFacts, weights: CandidateWeights) -> GraphSignature:
    """The graph of a whole step, with the shortlist's exit head."""
    step = _step(model)
    candidates = (*_candidate_tensors(model, weights, 1), _tensor("candidate_bias", 1, "candidates"))
    outputs = (_tensor("logits", 1, "candidates"), *step.outputs[1:])
    return GraphSignature("shortlist_step.onnx", (*step.inputs, *candidates), outputs, "shortlist_step")


def _step(model: ModelFacts) -> GraphSignature:
    blocks, dim, head_dim = model.decoder_blocks, model.dim, model.dim // model.heads
    token = (_index("tokens", 1), _tensor("position_vectors", 1, dim), _index("position", 1))
    states = _tensor("states", max(model.decoder_reaches), dim)
    filled: list[TensorSpec] = []
    stop_rule: list[TensorSpec] = []
    if blocks > 1:
        filled = [_index("filled", blocks - 1)]
        stop_rule = [_tensor("stop_weights", blocks - 1, dim), _tensor("stop_limits", blocks - 1)]
    columns = [
        _tensor(f"columns_{block}", model.mixer_heads * reach, dim // model.mixer_heads)
        for block, reach in enumerate(model.decoder_reaches, start=1)
    ]
    sources = [
        tensor
        for block in range(1, blocks + 1)
        for tensor in (
            _tensor(f"cross_key_{block}", 1, model.heads, head_dim, "source"),
            _tensor(f"cross_value_{block}", 1, model.heads, "source", head_dim),
        )
    ]
    state = (states, *filled, *columns)
    inputs = (*token, *stop_rule, *state, *sources, _tensor("source_bias", 1, 1, 1, "source"))
    outputs = (_tensor("logits", 1, model.vocab_size), _index("depth", 1), *map(_next, state))
    return GraphSignature("step.onnx", inputs, outputs, "step")
