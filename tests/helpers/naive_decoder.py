"""Two oracles of the engine: the bundle's graphs run the simplest way, and the torch model run all at once.

Both take one sentence, and its tokens and depths; neither shares code with the engine.
"""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch

from edgeseq.models import Seq2Seq
from edgeseq_runtime.manifest import ModelFacts
from edgeseq_runtime.tokenizer import PAD_ID

Array = npt.NDArray[np.float32]


@torch.no_grad()
def torch_logits(model: Seq2Seq, source: Sequence[int], tokens: Sequence[int], depths: Sequence[int]) -> Array:
    """Logits after each token, (tokens, vocab): one pass of the training code, with no state at all.

    Equal to the engine's up to rounding: other kernels, other orders of sums.
    """
    memory = model.encoder(torch.tensor([source]), None)
    states = model.decoder(torch.tensor([tokens]), memory, None, torch.tensor([depths]))
    heads = model.decoder.exit_heads
    logits = [heads(states[depth - 1][0, position], depth) for position, depth in enumerate(depths)]
    return torch.stack(logits).numpy()


class NaiveDecoder:
    """Runs the graphs on one sentence, with lists for state, filling the columns of skipped blocks at once.

    Each call of a block gets tensors made anew, that hold one row and one state. A column is what the graph
    would have made of the copied state, had the token gone on. Equal to the engine's logits in bits.
    """

    def __init__(self, folder: Path, model: ModelFacts) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._model = model
        self._sessions = {
            path.stem: onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
            for path in folder.glob("*.onnx")
        }

    def logits(self, source: Sequence[int], tokens: Iterable[int], depths: Iterable[int]) -> list[Array]:
        """Logits after each token.

        Args:
            source: Ids, eos included.
            tokens: Ids to feed, bos first.
            depths: Depth of each.
        """
        padded = -(-len(source) // 4) * 4
        ids = np.array([[*source, *[PAD_ID] * (padded - len(source))]], dtype=np.int64)
        mask = np.arange(padded)[None] >= len(source)
        memory = self._run("encoder", source=ids, padding_mask=mask)[0]
        bias = np.where(mask, -np.inf, 0).astype(np.float32)[None, None]
        crosses = [self._run(f"cross_{block}", memory=memory) for block in range(1, self._model.decoder_blocks + 1)]
        columns: list[list[list[Array]]] = [[] for _ in crosses]
        result = []
        for token, depth in zip(tokens, depths, strict=True):
            x = np.zeros((1, self._model.dim), dtype=np.float32)  # block 1 begins with the token instead
            for block, (past, cross) in enumerate(zip(columns, crosses, strict=True), start=1):
                next_x, next_exit_state, column = self._block(block, x, token, past, cross, bias)
                past.append(column)
                if block <= depth:
                    x, exit_state = next_x, next_exit_state
            head = "head" if self._model.head == "tied" else f"head_{depth}"
            result.append(self._run(head, exit_states=exit_state)[0][0])
        return result

    def _block(
        self, block: int, x: Array, token: int, past: list[list[Array]], cross: list[Array], bias: Array
    ) -> tuple[Array, Array, list[Array]]:
        """Next state, exit state and new column of one position; ``past`` holds the columns of all before it.

        A column is a list of vectors, one for each tensor that holds columns.
        """
        dim, heads = self._model.dim, self._model.mixer_heads
        attention = self._model.mixer == "attention"
        names = ["keys", "values"] if attention else ["columns"]
        # Where all positions are read, any multiple of 4 gives the same bits, here another than the engine's.
        size = self._model.decoder_reaches[block - 1] or 4 * (len(past) // 4 + 1)
        # The order in which a ring's products are summed is a matter of bits, so position p has its place here too.
        rings = [np.zeros((heads, size, dim // heads), dtype=np.float32) for _ in names]
        order = np.zeros((1, 1, heads, 1, size), dtype=np.int64)
        unread = np.full((1, 1, 1, 1, size), -np.inf, dtype=np.float32)
        for tap in range(size):
            position = len(past) - (size - 1) + tap
            order[..., position % size] = tap
            if position >= 0:
                unread[..., position % size] = 0
            if 0 <= position < len(past):
                for ring, vector in zip(rings, past[position], strict=True):
                    ring[:, position % size] = vector.reshape(heads, -1)
        own_place = len(past) % size
        first = np.zeros((1, 1), dtype=np.int64)
        own: dict[str, npt.NDArray[np.generic]]
        if block == 1:
            own = {"tokens": np.array([token]), "position_vectors": self._position_vector(len(past))}
        else:
            own = {"exit_states": np.zeros_like(x), "active_rows": first, "read_cells": first[0]}
        next_x, exit_state, *written = self._run(
            f"block_{block}",
            **own,
            states=x,
            **{name: ring.reshape(heads * size, -1) for name, ring in zip(names, rings, strict=True)},
            cross_key=cross[0],
            cross_value=cross[1],
            source_bias=bias,
            own_cells=first,
            written_columns=np.array([[head * size + own_place] for head in range(heads)]),
            **({"place_bias": unread} if attention else {"tap_places": order}),
            **({"stop_weight": np.zeros((1, dim), dtype=np.float32)} if block < self._model.decoder_blocks else {}),
        )
        written = written[: len(rings)]
        return next_x, exit_state, [ring.reshape(heads, size, -1)[:, own_place].reshape(dim) for ring in written]

    def _position_vector(self, position: int) -> Array:
        """Sines of growing wavelength, then their cosines, in the float32 arithmetic of the runtime."""
        half = self._model.dim // 2
        exponents = np.arange(half, dtype=np.float32) * np.float32(-math.log(10000) / max(half - 1, 1))
        angles = np.float32(position) * np.exp(exponents)
        return np.concatenate((np.sin(angles), np.cos(angles)))[None]

    def _run(self, graph: str, **feed: npt.NDArray[np.generic]) -> list[Array]:
        outputs: list[Array] = self._sessions[graph].run(None, feed)
        return outputs
