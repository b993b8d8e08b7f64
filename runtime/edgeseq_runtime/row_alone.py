"""A sentence decoded alone: one graph runs its whole step, and stops by itself.

Between the calls of an engine that runs block after block, Python takes as long as some of the blocks. A
batch shares that time among its rows; a row alone does not have to take it. Nor what a search does between steps, where
all it wants is the best token.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from edgeseq_runtime.arrays import AnyArray, FloatArray, IntArray
from edgeseq_runtime.policy import LinearStop
from edgeseq_runtime.sessions import BoundGraph
from edgeseq_runtime.sinusoids import Sinusoids
from edgeseq_runtime.state import DecoderState
from edgeseq_runtime.tokenizer import EOS_ID


def best_piece(logits: FloatArray, pieces: IntArray | None, never: Sequence[int]) -> int:
    """Choose the best token of a row.

    Args:
        logits: (columns,); written into.
        pieces: (columns,), the piece of each column; None where they agree.
        never: Ids that are not chosen; their columns are these.
    """
    for piece in never:
        logits[piece] = -np.inf
    column = int(logits.argmax())
    return column if pieces is None else int(pieces[column])


class RowAlone:
    """The graph of a step, bound to the state of one row. N blocks, vectors of width d.

    It reads and writes the same state as the graphs of single blocks, and either may take the next step.

    Attributes:
        stop: Says after which block tokens stop.
    """

    def __init__(self, graph: BoundGraph, stop: LinearStop, never: LinearStop, sinusoids: Sinusoids) -> None:
        """Make room for what changes from step to step.

        Args:
            graph: The graph, on the CPU.
            stop: Says after which block tokens stop.
            never: Says nothing, for tokens whose depth is given.
            sinusoids: Position vectors.
        """
        self._graph = graph
        self.stop = stop
        self._never = never
        self._sinusoids = sinusoids
        self._tokens = np.zeros(1, dtype=np.int64)
        self._position = np.zeros(1, dtype=np.int64)
        self._position_vectors = np.zeros((1, sinusoids.dim), dtype=np.float32)
        self._limits = np.empty_like(stop.limits)
        self._depth = np.zeros(1, dtype=np.int64)

    def step(self, state: DecoderState, token: int, deepest: int, *, forced: bool) -> int:
        """Run a step at the row's current position; its logits are then those of the state.

        Args:
            state: Of one row, with source keys and values for the first ``deepest`` blocks at least.
            token: The token at this position.
            deepest: The block after which the token stops at the latest.
            forced: Whether it stops there and no sooner.

        Returns:
            The block after which it stopped.

        Raises:
            DeviceError: onnxruntime fails.
        """
        position = int(state.positions[0])
        self._run(state, token, position, (self._never if forced else self.stop).within[deepest - 1])
        state.positions = state.positions + 1
        state.filled[0] = state.positions
        return int(self._depth[0])

    def decode(
        self, state: DecoderState, token: int, deepest: Iterable[int], never: Sequence[int], *, forced: bool
    ) -> tuple[list[int], list[int]]:
        """Take the best token of each step to the next, up to EOS.

        Args:
            state: Of one row, with source keys and values for the greatest of ``deepest`` blocks at least.
            token: The token at the row's current position.
            deepest: For each step, as many as are run at most: the block after which its token stops at the latest.
            never: Ids that are not chosen.
            forced: Whether tokens stop there and no sooner.

        Returns:
            The tokens chosen, EOS included, and the block after which each stopped.

        Raises:
            DeviceError: onnxruntime fails.
        """
        limits = (self._never if forced else self.stop).within
        logits, depth = state.logits[0], self._depth
        pieces = None if state.candidates is None else state.candidates.ids[0]
        tokens: list[int] = []
        depths: list[int] = []
        for position, most in enumerate(deepest, start=int(state.positions[0])):
            self._run(state, token, position, limits[most - 1])
            token = best_piece(logits, pieces, never)
            tokens.append(token)
            depths.append(int(depth[0]))
            if token == EOS_ID:
                break
        state.positions = state.positions + len(tokens)
        state.filled[0] = state.positions
        return tokens, depths

    def _run(self, state: DecoderState, token: int, position: int, limits: FloatArray) -> None:
        """Run the graph at a position."""
        self._tokens[0] = token
        self._position[0] = position
        self._position_vectors[0] = self._sinusoids.at(position)
        self._limits[:] = limits
        if state.moved:
            self._run_first(state)
            state.moved = False
        else:
            self._graph.run_again()

    def _run_first(self, state: DecoderState) -> None:
        """Bind the state's tensors where they are, and run."""
        held: dict[str, AnyArray] = {"states": state.states}
        feed: dict[str, AnyArray] = {
            "tokens": self._tokens,
            "position": self._position,
            "position_vectors": self._position_vectors,
            "source_bias": state.source_bias,
        }
        if len(self._limits):
            held["filled"] = state.filled[1:].reshape(-1)
            feed |= {"stop_weights": self.stop.weights, "stop_limits": self._limits}
        for number, past in enumerate(state.blocks, start=1):
            held |= {f"{name}_{number}": tensor for name, tensor in past.tensors.items()}
            # A block that is not entered reads none: those of another will do.
            sources = past.cross or state.blocks[0].cross
            assert sources is not None, "block 1 is always entered"
            feed |= dict(zip((f"cross_key_{number}", f"cross_value_{number}"), sources, strict=True))
        if state.candidates is not None:
            feed |= state.candidates.tensors
        self._graph.run(held, feed, {"logits": state.logits, "depth": self._depth})
