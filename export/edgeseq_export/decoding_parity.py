"""Whole decodes of the exported graphs against torch, forced along torch's tokens and depths.

Free-running decodes of two float32 implementations part at the first tie and say nothing after it. Here both
sides are led along the same tokens and depths, and every decision on the way is compared.

Dimensions: B sentences, T target positions, N decoder blocks, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgeseq import modules
from edgeseq.models import Seq2Seq
from edgeseq.models.reference import (
    StopRule,
    pad_sources,
    reference_decode,
    stop_by_certainty,
    stop_by_choice,
    stop_by_halting,
)
from edgeseq.modules.predictors import certainty_of, mean_memory
from edgeseq_runtime.engine import Engine
from edgeseq_runtime.policy import largest_probability
from edgeseq_runtime.predictors import CertaintyUnits, DepthClassifier, HaltingUnits, Predictor
from edgeseq_runtime.predictors import mean_memory as runtime_mean_memory
from edgeseq_runtime.reports import DecodingParity
from edgeseq_runtime.state import DecoderState
from edgeseq_runtime.tokenizer import BOS_ID, PAD_ID

TIE_MARGIN = 1e-4
"""Decisions on which torch's own margin is smaller are ties: either side is right."""

MAX_TIE_SHARE = 0.001
"""Of the decisions: a token brings one, and one more for each predictor after each block that it runs."""

MAX_TIES = 3
"""Of short texts, where one would be more than that share."""

_BATCH = 16
_THRESHOLD = 0.5


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
    """A depth policy that follows given depths and keeps what any policy would have seen."""

    blocks: int
    depths: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    exit_states: dict[int, NDArray[np.float32]] = field(default_factory=dict)
    """Block → exit states of the rows that ran it, in order."""
    logits: dict[int, NDArray[np.float32]] = field(default_factory=dict)
    """Block → their logits."""
    name: str = "replay"
    reads_logits: bool = True
    draft_depth = None
    linear_stop: None = None

    def limits(self, memory: NDArray[np.float32], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
        del memory
        return np.full(len(lengths), self.blocks, dtype=np.int64)

    def decides(self, block: int) -> bool:
        return block >= 1

    def plan(
        self, block: int, exit_states: NDArray[np.float32], logits: NDArray[np.float32] | None
    ) -> NDArray[np.int64]:
        assert logits is not None
        self.exit_states[block] = exit_states.copy()
        self.logits[block] = logits.copy()
        return self.depths[self.depths >= block]

    def decision_flops(self, block: int) -> int:
        del block
        return 0


@torch.no_grad()
def compare_decoding(
    model: Seq2Seq,
    engine: Engine,
    predictors: Mapping[str, Predictor],
    sources: Sequence[Sequence[int]],
    max_length: int,
    seed: int,
) -> DecodingParity:
    """Leads the engine along torch's decodes and compares the choice of each token and what each predictor says.

    Each sentence is decoded twice: with depths drawn at random, so that every block is skipped and entered again,
    and where there are predictors as the first of them says.

    Args:
        model: in evaluation mode.
        engine: of the exported graphs. With a shortlist, it and torch choose among each sentence's candidates.
        predictors: the exported ones by name.
        sources: token ids, EOS last.
        max_length: greatest number of tokens per sentence.
        seed: of the random depths.

    Returns:
        Counts. A decision on which torch's margin is at most 1e-4 is a tie.
    """
    generator = torch.Generator().manual_seed(seed)
    blocks = len(model.decoder.blocks)
    rules = [
        StopRule(blocks, lambda states, _: torch.randint(1, blocks + 1, (len(states[0]),), generator=generator)),
    ]
    for name in list(model.predictors)[:1]:
        thresholds = [_THRESHOLD] * (blocks - 1)
        if isinstance(model.predictor(name), modules.HaltingUnits):
            rules.append(stop_by_halting(model, name, thresholds))
        elif isinstance(model.predictor(name), modules.CertaintyUnits):
            rules.append(stop_by_certainty(model, name, thresholds))
        else:
            rules.append(stop_by_choice(model, name))
    count = _Count()
    for rule in rules:
        for start in range(0, len(sources), _BATCH):
            batch = sources[start : start + _BATCH]
            decoded = reference_decode(model, batch, rule, [max_length] * len(batch))
            _compare_batch(model, engine, predictors, batch, decoded, count)
    return DecodingParity(
        sentences=count.sentences,
        tokens=count.tokens,
        decisions=count.decisions,
        disagreements=count.disagreements,
        ties=count.ties,
    )


def add_counts(parts: Sequence[DecodingParity]) -> DecodingParity:
    """Adds up comparisons of several engines."""
    return DecodingParity(**{name: sum(getattr(part, name) for part in parts) for name in DecodingParity.model_fields})


def _compare_batch(
    model: Seq2Seq,
    engine: Engine,
    predictors: Mapping[str, Predictor],
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
    memory = model.encoder(source, padding_mask)
    states = model.decoder(fed, memory, padding_mask, depths)
    replay = _Replay(len(states))
    state = engine.encode(sources, replay)
    by_block = [
        _columns_of(model.decoder.exit_heads(exit_states, block), state)
        for block, exit_states in enumerate(states, start=1)
    ]
    logits = _logits_at_depth(by_block, depths)
    logits[..., [PAD_ID, BOS_ID]] = float("-inf")
    told = _Told(model, states, by_block, memory, padding_mask)
    told.compare_sentences(predictors, state, count)
    for position in range(longest):
        replay.depths = depths[:, position].numpy()
        found = engine.step(state, fed[:, position].numpy()).logits
        rows = valid[:, position].numpy()
        _compare_tokens(logits[:, position].double().numpy()[rows], found[rows].astype(np.float64), count)
        told.compare_tokens(predictors, replay, position, rows, count)
    count.sentences += len(sources)
    count.tokens += int(valid.sum())


class _Told:
    """What torch's predictors say of a batch, to be compared with those of the runtime."""

    def __init__(
        self,
        model: Seq2Seq,
        states: list[Tensor],
        logits: list[Tensor],
        memory: Tensor,
        padding_mask: Tensor | None,
    ) -> None:
        mean = mean_memory(memory, padding_mask)
        self._halting: dict[str, NDArray[np.float64]] = {}  # logits of chi, (B, T, N - 1)
        self._certainty: dict[str, NDArray[np.float64]] = {}  # logits of chi, (B, T, N - 1)
        self._token: dict[str, NDArray[np.float64]] = {}  # log q, (B, T, N)
        self._sentence: dict[str, NDArray[np.float64]] = {}  # log q, (B, N)
        for name in model.predictors:
            predictor = model.predictor(name)
            if isinstance(predictor, modules.HaltingUnits):
                self._halting[name] = predictor(states).double().numpy()
            elif isinstance(predictor, modules.CertaintyUnits):
                certainty = torch.stack([certainty_of(of_block) for of_block in logits], dim=2)
                self._certainty[name] = predictor(certainty).double().numpy()
            elif isinstance(predictor, modules.TokenDepth):
                self._token[name] = predictor.log_distribution(states, mean).double().numpy()
            else:
                self._sentence[name] = predictor.log_distribution(states, mean)[:, 0].double().numpy()
        confidence = [torch.softmax(of_block, dim=-1).amax(-1) for of_block in logits[:-1]]
        self._confidence = torch.stack(confidence or [memory[:, :0, 0]], dim=-1).double().numpy()  # (B, T, N - 1)

    def compare_sentences(self, predictors: Mapping[str, Predictor], state: DecoderState, count: _Count) -> None:
        for name, expected in self._sentence.items():
            predictor = predictors[name]
            assert isinstance(predictor, DepthClassifier)
            found = predictor.logits(runtime_mean_memory(state.memory, state.lengths))
            _compare_choices(expected, found.astype(np.float64), count)

    def compare_tokens(
        self,
        predictors: Mapping[str, Predictor],
        replay: _Replay,
        position: int,
        rows: NDArray[np.bool_],
        count: _Count,
    ) -> None:
        for block, exit_states in replay.exit_states.items():
            entered = replay.depths >= block
            real, kept = entered & rows, rows[entered]
            for name, logits in self._halting.items():
                predictor = predictors[name]
                assert isinstance(predictor, HaltingUnits)
                if not predictor.weight[predictor.unit(block)].any():
                    continue  # of a block that its oracle never chose: it says the same of all tokens, a tie if 0
                expected = logits[real, position, block - 1]
                found = predictor.logits(block, exit_states)[kept].astype(np.float64)
                count.add(expected > 0, found > 0, np.abs(expected))
            for name, logits in self._certainty.items():
                predictor = predictors[name]
                assert isinstance(predictor, CertaintyUnits)
                expected = logits[real, position, block - 1]
                found = predictor.logits(block, replay.logits[block])[kept].astype(np.float64)
                count.add(expected > 0, found > 0, np.abs(expected))
            expected = self._confidence[real, position, block - 1] - _THRESHOLD
            found = largest_probability(replay.logits[block])[kept].astype(np.float64) - _THRESHOLD
            count.add(expected > 0, found > 0, np.abs(expected))
        for name, log_q in self._token.items():
            predictor = predictors[name]
            assert isinstance(predictor, DepthClassifier)
            found = predictor.logits(replay.exit_states[1]).astype(np.float64)
            _compare_choices(log_q[rows, position], found[rows], count)
        replay.exit_states.clear()


def _compare_tokens(expected: NDArray[np.float64], found: NDArray[np.float64], count: _Count) -> None:
    found[:, [PAD_ID, BOS_ID]] = -np.inf
    _compare_choices(expected, found, count)


def _compare_choices(expected: NDArray[np.float64], found: NDArray[np.float64], count: _Count) -> None:
    """Compares the best of each row, (rows, choices)."""
    best = np.sort(expected, axis=-1)
    margin = best[:, -1] - best[:, -2]
    choice = expected.argmax(axis=-1)
    count.add(np.ones(len(choice), dtype=np.bool_), choice == found.argmax(axis=-1), margin)


def _columns_of(logits: Tensor, state: DecoderState) -> Tensor:
    """Picks what the engine computes of logits (B, T, V): with a shortlist, the columns of each row's candidates."""
    if state.candidates is None:
        return logits
    ids = torch.from_numpy(state.candidates.ids).unsqueeze(1).expand(-1, logits.shape[1], -1)
    return logits.gather(-1, ids) + torch.from_numpy(state.candidates.tensors["candidate_bias"]).unsqueeze(1)


def _logits_at_depth(by_block: list[Tensor], depths: Tensor) -> Tensor:
    logits = torch.stack(by_block, dim=2)
    index = (depths - 1)[..., None, None].expand(-1, -1, 1, logits.shape[-1])
    return logits.gather(2, index).squeeze(2)  # (B, T, V or candidates)
