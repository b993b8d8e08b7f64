"""Whole decodes of the exported graphs against torch, forced along torch's tokens and depths.

Free-running decodes of two float32 implementations part at the first tie and say nothing after it. Here both
sides are led along the same tokens and depths, and every decision on the way is compared.

Dimensions: B sentences, T target positions, N decoder blocks, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgeseq.models import Seq2Seq
from edgeseq.models.reference import StopRule, pad_sources, reference_decode, stop_by_halting
from edgeseq_runtime.engine import Engine
from edgeseq_runtime.manifest import DecodingParity
from edgeseq_runtime.policy import HaltingUnits
from edgeseq_runtime.tokenizer import BOS_ID, PAD_ID

TIE_MARGIN = 1e-4
"""Decisions on which torch's own margin is smaller are ties: either side is right."""

MAX_TIE_SHARE = 0.001

_BATCH = 16
_HALTING_THRESHOLD = 0.5


@dataclass
class _Count:
    sentences: int = 0
    tokens: int = 0
    decisions: int = 0
    disagreements: int = 0
    ties: int = 0

    def add(self, expected: NDArray[np.bool_], found: NDArray[np.bool_], margin: NDArray[np.float64]) -> None:
        tie = margin <= TIE_MARGIN
        self.decisions += expected.size
        self.ties += int(tie.sum())
        self.disagreements += int(((expected != found) & ~tie).sum())


@dataclass
class _Replay:
    """A depth policy that follows given depths and keeps what a halting policy would have seen."""

    units: HaltingUnits | None
    depths: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    halting_logits: dict[int, NDArray[np.float32]] = field(default_factory=dict)
    """Block → logits of the rows that ran it, in order."""
    name: str = "replay"

    def decides(self, block: int) -> bool:
        return block >= 1

    def stops(self, block: int, exit_states: NDArray[np.float32]) -> NDArray[np.bool_]:
        if self.units is not None:
            self.halting_logits[block] = self.units.logits(block, exit_states)
        return self.depths[self.depths >= block] <= block


@torch.no_grad()
def compare_decoding(
    model: Seq2Seq,
    engine: Engine,
    units: HaltingUnits | None,
    sources: Sequence[Sequence[int]],
    max_length: int,
    seed: int,
) -> DecodingParity:
    """Leads the engine along torch's decodes and compares the choice of each token and of each stop.

    Each sentence is decoded twice: with depths drawn at random, so that every block is skipped and entered again,
    and where there are halting units with theirs.

    Args:
        model: in evaluation mode.
        engine: of the exported graphs.
        units: the exported halting units.
        sources: token ids, EOS last.
        max_length: greatest number of tokens per sentence.
        seed: of the random depths.

    Returns:
        Counts. A decision on which torch's margin is at most 1e-4 is a tie.
    """
    generator = torch.Generator().manual_seed(seed)
    blocks = len(model.decoder.blocks)
    rules = [
        StopRule(blocks, lambda states: torch.randint(1, blocks + 1, (len(states[0]),), generator=generator)),
    ]
    if units is not None:
        rules.append(stop_by_halting(model, _HALTING_THRESHOLD))
    count = _Count()
    for rule in rules:
        for start in range(0, len(sources), _BATCH):
            batch = sources[start : start + _BATCH]
            decoded = reference_decode(model, batch, rule, [max_length] * len(batch))
            _compare_batch(model, engine, units, batch, decoded, count)
    return DecodingParity(
        sentences=count.sentences,
        tokens=count.tokens,
        decisions=count.decisions,
        disagreements=count.disagreements,
        ties=count.ties,
    )


def _compare_batch(
    model: Seq2Seq,
    engine: Engine,
    units: HaltingUnits | None,
    sources: Sequence[Sequence[int]],
    decoded: Sequence[tuple[list[int], list[int]]],
    count: _Count,
) -> None:
    longest = max(len(tokens) for tokens, _ in decoded)
    tokens = torch.full((len(sources), longest), PAD_ID)
    depths = torch.ones((len(sources), longest), dtype=torch.long)
    valid = torch.zeros((len(sources), longest), dtype=torch.bool)
    for row, (row_tokens, row_depths) in enumerate(decoded):
        tokens[row, : len(row_tokens)] = torch.tensor(row_tokens)
        depths[row, : len(row_depths)] = torch.tensor(row_depths)
        valid[row, : len(row_tokens)] = True
    fed = torch.cat((torch.full((len(sources), 1), BOS_ID), tokens[:, :-1]), dim=1)
    source, padding_mask = pad_sources(sources, torch.device("cpu"))
    states = model.decoder(fed, model.encoder(source, padding_mask), padding_mask, depths)
    logits = _logits_at_depth(model, states, depths)
    logits[..., [PAD_ID, BOS_ID]] = float("-inf")
    halting = None
    if model.decoder.halting_units is not None:
        halting = model.decoder.halting_units(states).double().numpy()

    replay = _Replay(units)
    state = engine.encode(sources, replay)
    for position in range(longest):
        replay.depths = depths[:, position].numpy()
        found = engine.step(state, fed[:, position].numpy()).logits
        rows = valid[:, position].numpy()
        _compare_tokens(logits[:, position].double().numpy()[rows], found[rows].astype(np.float64), count)
        if halting is None:
            continue
        for block, found_logits in replay.halting_logits.items():
            entered = replay.depths >= block
            expected = halting[:, position, block - 1][entered & rows]
            got = found_logits[rows[entered]].astype(np.float64)
            count.add(expected > 0, got > 0, np.abs(expected))
        replay.halting_logits.clear()
    count.sentences += len(sources)
    count.tokens += int(valid.sum())


def _compare_tokens(expected: NDArray[np.float64], found: NDArray[np.float64], count: _Count) -> None:
    found[:, [PAD_ID, BOS_ID]] = -np.inf
    best = np.sort(expected, axis=-1)
    margin = best[:, -1] - best[:, -2]
    choice = expected.argmax(axis=-1)
    count.add(np.ones(len(choice), dtype=np.bool_), choice == found.argmax(axis=-1), margin)


def _logits_at_depth(model: Seq2Seq, states: list[Tensor], depths: Tensor) -> Tensor:
    logits = torch.stack([model.decoder.exit_heads(state, n) for n, state in enumerate(states, start=1)], dim=2)
    index = (depths - 1)[..., None, None].expand(-1, -1, 1, logits.shape[-1])
    return logits.gather(2, index).squeeze(2)  # (B, T, V)
