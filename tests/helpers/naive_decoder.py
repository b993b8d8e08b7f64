"""The simplest decoder that can be right: one sentence, lists for state, everything at once.

Runs a bundle's graphs through onnxruntime directly and shares no code with the engine.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime

from edgeseq_runtime.manifest import ModelFacts

Array = npt.NDArray[np.float32]


class NaiveDecoder:
    """Decodes along given tokens and depths, filling the columns of skipped blocks at once."""

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
        ids = np.array([[*source, *[0] * (padded - len(source))]], dtype=np.int64)
        mask = np.arange(padded)[None] >= len(source)
        memory = self._run("encoder", source=ids, padding_mask=mask)[0]
        bias = np.where(mask, -np.inf, 0).astype(np.float32)[None, None]
        columns: list[list[Array]] = [[] for _ in self._model.decoder_kernel_sizes]
        result = []
        for position, (token, depth) in enumerate(zip(tokens, depths, strict=True)):
            x = self._run(
                "embed",
                tokens=np.array([[token]], dtype=np.int64),
                position=np.array([[position]], dtype=np.int64),
            )[0]
            exit_state = x
            for block, taps in enumerate(self._model.decoder_kernel_sizes, start=1):
                past = columns[block - 1]
                if block > depth:
                    if taps > 1:
                        past.append(self._run(f"backfill_{block}", states=x[0])[0])
                    continue
                key, value = self._run(f"cross_{block}", memory=memory)
                feed = {"x": x, "cross_key": key, "cross_value": value, "source_bias": bias}
                if taps > 1:
                    feed["history"] = self._history(past, taps)
                x, exit_state, column = self._run(f"block_{block}", **feed)
                past.append(column[0])
            head = "head" if self._model.head == "tied" else f"head_{depth}"
            result.append(self._run(head, exit_state=exit_state[0])[0][0])
        return result

    def _history(self, past: list[Array], taps: int) -> Array:
        zeros = [np.zeros((1, self._model.dim), dtype=np.float32)] * (taps - 1)
        return np.concatenate([*zeros, *past])[None, -(taps - 1) :]

    def _run(self, graph: str, **feed: npt.NDArray[np.generic]) -> list[Array]:
        outputs: list[Array] = self._sessions[graph].run(None, feed)
        return outputs
