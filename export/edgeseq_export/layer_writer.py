"""Writes the layers of torch into an ONNX graph."""

from __future__ import annotations

import torch
from torch import nn

from edgeseq.modules import ExitHeads, TokenEmbedding
from edgeseq_export.compute_types import CandidateHead, ComputeType, Product
from edgeseq_export.graph_writer import GraphWriter
from edgeseq_runtime.signatures import GraphSignature


class LayerWriter(GraphWriter):
    """A graph in the making.

    Attributes:
        compute_type: writes products with weights, and tables, from now on.
    """

    def __init__(self, signature: GraphSignature, compute_type: ComputeType) -> None:
        """Starts an empty graph.

        Args:
            signature: what the graph takes and gives, and the file it is for.
            compute_type: writes products with weights, and tables.
        """
        super().__init__(signature)
        self.compute_type = compute_type

    def linear(self, x: str, layer: nn.Linear, scale: float = 1.0, *, rectify: bool = False) -> str:
        """Adds a linear layer, its result scaled.

        Args:
            x: (rows, in). Two axes, so that product and bias are one node.
            layer: with or without bias.
            scale: multiplied into weight and bias.
            rectify: whether x goes through a ReLU first.
        """
        weights = dict(layer.named_parameters())  # torch types `bias` as never None
        bias = weights["bias"] * scale if "bias" in weights else None
        return self.compute_type.multiply(self, Product(x, (layer.weight * scale).T, bias, layer, rectify))

    def joined(self, x: str, *layers: tuple[nn.Linear, float]) -> str:
        """Adds linear layers that read the same, as one product: their results side by side, (rows, sum of outs).

        Args:
            x: (rows, in).
            layers: each with what its result is multiplied by.
        """
        weight = torch.cat([layer.weight * scale for layer, scale in layers]).T
        biases = [dict(layer.named_parameters()).get("bias") for layer, _ in layers]
        bias = torch.cat(
            [
                layer.weight.new_zeros(layer.out_features) if bias is None else bias * scale
                for bias, (layer, scale) in zip(biases, layers, strict=True)
            ]
        )
        return self.compute_type.multiply(self, Product(x, weight, bias, layers[0][0]))

    def exit_head(self, x: str, heads: ExitHeads, block: int, output: str | None) -> str:
        """Adds the exit head of a block, (rows, d) to (rows, vocab)."""
        return self.compute_type.multiply(self, Product(x, heads.weight(block).T, None, heads, output=output))

    def take_candidates(self, heads: ExitHeads, embedding: TokenEmbedding, ids: str) -> None:
        """Adds the weights of a tied exit head for candidates, ids (rows, candidates)."""
        weight = heads.weight(1)
        if weight is embedding.table.weight:  # then the table is that of the embedding, which is stored once
            head = CandidateHead(weight * embedding.scale, 1 / embedding.scale, heads)
        else:
            head = CandidateHead(weight, 1.0, heads)
        self.compute_type.take_candidates(self, head, ids)

    def shortlist_head(self, x: str, heads: ExitHeads) -> str:
        """Adds the exit head for each row's candidates, (rows, d) to (rows, candidates): the `logits`."""
        products = self.compute_type.multiply_candidates(self, x, heads)
        return self.add("Add", products, "candidate_bias", output="logits")

    def scaled_tokens(self, embedding: TokenEmbedding, tokens: str) -> str:
        """Adds the embeddings of tokens (...), without positions: (..., d)."""
        return self.compute_type.look_up(self, embedding.table.weight * embedding.scale, tokens)

    def layer_norm(self, x: str, norm: nn.Module, output: str | None = None) -> str:
        """Adds a layer norm over the last axis; for the identity nothing, or a copy where the result needs a name."""
        if isinstance(norm, nn.Identity):
            return x if output is None else self.add("Identity", x, output=output)
        assert isinstance(norm, nn.LayerNorm)
        weights = self.constant(norm.weight), self.constant(norm.bias)
        return self.add("LayerNormalization", x, *weights, output=output, axis=-1, epsilon=norm.eps)
