"""Bundles with the tokens and depths that tests feed an engine."""

from pathlib import Path

import numpy as np

from edgeseq_runtime.engine import Engine
from edgeseq_runtime.policy import FixedDepth
from edgeseq_runtime.tokenizer import BOS_ID, EOS_ID
from naive_decoder import torch_logits
from tiny_bundle import tiny_facts, tiny_model, write_tiny_bundle

STEPS = 60  # more than the widest ring has places, so that every ring goes round

MODELS: dict[str, dict[str, object]] = {
    "pre-norm, tied, gated": {},
    "post-norm, untied, not gated": {"norm": "post", "head": "untied", "glu": False},
    "lightweight": {"mixer": "lightweight"},
    "one wide block above, none between": {"decoder_reaches": [1, 1, 40]},
    "upper blocks without history": {"decoder_reaches": [5, 1, 1]},
    "attention": {"mixer": "attention", "glu": False, "decoder_reaches": [0, 0, 0, 0]},
    "attention in windows, post-norm, untied": {
        "mixer": "attention",
        "glu": False,
        "decoder_reaches": [3, 5, 1, 7],
        "norm": "post",
        "head": "untied",
    },
    "attention in windows and without": {"mixer": "attention", "glu": False, "decoder_reaches": [6, 0, 40]},
    "a single block": {"decoder_reaches": [3], "predictors": (), "operating_point": None},
}


class Case:
    """A bundle with the tokens and depths that tests feed it."""

    def __init__(self, folder: Path, changes: dict[str, object]) -> None:
        write_tiny_bundle(folder, **changes)  # type: ignore[arg-type]
        self.folder = folder
        settings = {name: value for name, value in changes.items() if name != "operating_point"}
        self.facts = tiny_facts(**{name: value for name, value in settings.items() if name != "predictors"})
        self.model = tiny_model(**settings)  # type: ignore[arg-type]
        generator = np.random.default_rng(0)
        lengths = generator.integers(1, 14, 9)
        vocabulary = (4, self.facts.vocab_size)
        self.sources = [[*generator.integers(*vocabulary, n).tolist(), EOS_ID] for n in lengths]
        rows = len(self.sources)
        self.tokens = generator.integers(*vocabulary, (STEPS, rows))
        self.tokens[0] = BOS_ID
        # Long shallow runs, so that rows come back to block N after more than K - 1 of them.
        deepest = self.facts.decoder_blocks
        self.depths = generator.integers(1, deepest + 1, (STEPS, rows))
        self.depths[generator.random((STEPS, rows)) < 0.7] = 1

    def fixed(self, depth: int = 1) -> FixedDepth:
        return FixedDepth(str(depth), self.facts, depth)

    def engine(self, kind: type[Engine] = Engine) -> Engine:
        return kind(self.folder, self.facts, device="cpu")

    def logits(self, engine: Engine, rows: list[int]) -> np.ndarray:
        """Feed the rows their tokens at their depths: (steps, rows, vocab)."""
        state = engine.encode([self.sources[row] for row in rows], self.fixed())
        return np.stack(
            [
                engine.step(state, tokens[rows], depths=depths[rows]).logits.copy()
                for tokens, depths in zip(self.tokens, self.depths, strict=True)
            ]
        )

    def torch_logits(self, row: int) -> np.ndarray:
        """What the torch model makes of the same row: (steps, vocab)."""
        return torch_logits(self.model, self.sources[row], self.tokens[:, row].tolist(), self.depths[:, row].tolist())

    @property
    def everyone(self) -> list[int]:
        return list(range(len(self.sources)))
