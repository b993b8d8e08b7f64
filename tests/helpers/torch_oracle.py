"""The oracle of whole decodes: depth policies as torch knows them, and how surely it decides.

Two implementations in float32 part at the first tie. So both are led along the same tokens and depths, and every
decision is compared wherever the oracle is sure of it; where they run freely, they may part at a tie and nowhere else.

Dimensions: T target positions, N decoder blocks, D channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from edgeseq.models import Seq2Seq
from edgeseq.models.reference import stop_at, stop_by_certainty, stop_by_choice, stop_by_confidence, stop_by_halting
from edgeseq.modules import CertaintyUnits, HaltingUnits
from edgeseq.modules.predictors import certainty_of, mean_memory
from edgeseq_runtime.arrays import FloatArray, IntArray
from edgeseq_runtime.engine import Engine
from edgeseq_runtime.policy import DepthPolicy
from edgeseq_runtime.tokenizer import BOS_ID, PAD_ID

TIE_MARGIN = 1e-4
"""Decisions on which the oracle's own margin is at most this are ties: either side is right."""

Decoded = tuple[list[int], list[int]]
"""Tokens and depths."""


class TorchPolicy:
    """A depth policy by its runtime spelling, made of torch's own parts.

    Attributes:
        text: The spelling.
        rule: Where tokens stop.
    """

    def __init__(self, model: Seq2Seq, text: str) -> None:
        self.text = text
        self._model = model
        self._blocks = len(model.decoder.blocks)
        self._name, _, argument = text.partition(":")
        self._thresholds: list[float] = []
        self._quantile = float(argument) if argument and "," not in argument and "@" not in argument else None
        if text == "full" or text.isdigit():
            self.rule = stop_at(self._blocks if text == "full" else int(text))
        elif self._name == "confidence":
            self._thresholds = self._by_block(argument)
            self.rule = stop_by_confidence(model, self._thresholds)
        elif isinstance(model.predictor(self._name), CertaintyUnits):
            self._thresholds = self._by_block(argument)
            self.rule = stop_by_certainty(model, self._name, self._thresholds)
        elif isinstance(model.predictor(self._name), HaltingUnits):
            self._thresholds = self._by_block(argument)
            self.rule = stop_by_halting(model, self._name, self._thresholds)
        else:
            self.rule = stop_by_choice(model, self._name, self._quantile)

    def _by_block(self, argument: str) -> list[float]:
        """Thresholds of blocks 1 to N - 1; one that nothing exceeds where the policy does not ask."""
        values, _, blocks = argument.partition("@")
        asked = [int(block) for block in blocks.split(",")] if blocks else range(1, self._blocks)
        thresholds = [1.0] * (self._blocks - 1)
        listed = [float(value) for value in values.split(",")]
        for number, block in enumerate(asked):
            thresholds[block - 1] = listed[number % len(listed)]
        return thresholds

    @torch.no_grad()
    def margins(self, states: Sequence[Tensor], mean: Tensor, depths: Tensor) -> Tensor:
        """Says how far each decision on a depth was from another one.

        Args:
            states: exit states of all blocks, each (T, D).
            mean: (T, D), the mean of the encoder's output, the same for all.
            depths: (T,), the depths decided on.

        Returns:
            (T,), differences of probabilities; of the blocks that decided.
        """
        if self.text == "full" or self.text.isdigit():
            return torch.full((len(depths),), torch.inf)
        if self._thresholds:
            signals = self._signals(states)
            asked = torch.tensor(self._thresholds) < 1
            decided = torch.arange(1, self._blocks) <= depths.unsqueeze(-1)
            distance = (signals - torch.tensor(self._thresholds)).abs()
            return distance.masked_fill(~(decided & asked), torch.inf).amin(-1)
        predictor = self._model.predictor(self._name)
        q = predictor.log_distribution([state.unsqueeze(0) for state in states], mean).exp()
        q = q.reshape(len(depths), -1)
        if self._quantile is None:
            best = q.topk(2, dim=-1).values
            return best[:, 0] - best[:, 1]
        return (q.cumsum(-1)[:, :-1] - self._quantile).abs().amin(-1)

    def _signals(self, states: Sequence[Tensor]) -> Tensor:
        """χ, or the largest probability, of each block below N: (T, N - 1)."""
        heads = self._model.decoder.exit_heads
        if self._name != "confidence":
            units = self._model.predictor(self._name)
            if isinstance(units, CertaintyUnits):
                certainty = [certainty_of(heads(state, n)) for n, state in enumerate(states, start=1)]
                return torch.sigmoid(units(torch.stack(certainty, dim=-2)))
            assert isinstance(units, HaltingUnits)
            return torch.sigmoid(units(states))
        below = [torch.softmax(heads(state, n), dim=-1).amax(-1) for n, state in enumerate(states[:-1], start=1)]
        return torch.stack(below, dim=-1)


@dataclass(frozen=True)
class Forced:
    """What torch makes of given tokens and depths, in one pass over all of them.

    Attributes:
        log_probabilities: (T, V), of the next token, each from the exit at which its depth ends.
        depths: (T,), those that its policy would choose there.
        token_margins: (T,), between the two best tokens that may be chosen.
        depth_margins: (T,), see :meth:`TorchPolicy.margins`.
    """

    log_probabilities: Tensor
    depths: Tensor
    token_margins: Tensor
    depth_margins: Tensor


@torch.no_grad()
def force_torch(model: Seq2Seq, policy: TorchPolicy, source: Sequence[int], decoded: Decoded) -> Forced:
    """Leads torch along tokens and depths."""
    tokens, depths = decoded
    number, blocks = len(tokens), len(model.decoder.blocks)
    memory = model.encoder(torch.tensor([source]), None).expand(number, -1, -1)
    fed = torch.tensor([[BOS_ID, *tokens[:-1]]]).expand(number, -1)
    # In row t, the token at t passes all blocks, and those before it stopped where they did.
    used = torch.tensor([depths]).repeat(number, 1).fill_diagonal_(blocks)
    every = torch.arange(number)
    states = [state[every, every] for state in model.decoder(fed, memory, None, used)]
    heads = model.decoder.exit_heads
    logits = torch.stack([heads(states[depth - 1][position], depth) for position, depth in enumerate(depths)])
    log_probabilities = torch.log_softmax(logits.double(), dim=-1)
    allowed = log_probabilities.clone()
    allowed[:, [PAD_ID, BOS_ID]] = -torch.inf
    best = allowed.topk(2, dim=-1).values
    mean = mean_memory(memory, None)
    chosen = policy.rule.choose(states[: policy.rule.blocks], mean)
    return Forced(log_probabilities, chosen, best[:, 0] - best[:, 1], policy.margins(states, mean, chosen))


class Following:
    """A policy for the engine: goes to given depths, and notes what another policy would have done.

    Attributes:
        depths: Where the batch's tokens go next.
        chosen: What the other policy says: depths, where it has said to stop no later than the given depth.
    """

    draft_depth = None
    linear_stop = None

    def __init__(self, policy: DepthPolicy, blocks: int) -> None:
        self._policy = policy
        self._blocks = blocks
        self.name = "following"
        self.reads_logits = policy.reads_logits
        self.depths: IntArray = np.zeros(0, dtype=np.int64)
        self.chosen: IntArray = np.zeros(0, dtype=np.int64)
        self._limits: IntArray = np.zeros(0, dtype=np.int64)

    def go(self, depths: IntArray) -> None:
        """Say where the next tokens go."""
        self.depths = depths
        self.chosen = self._limits.copy()

    def limits(self, memory: FloatArray, lengths: IntArray) -> IntArray:
        self._limits = self._policy.limits(memory, lengths)
        return np.full(len(lengths), self._blocks, dtype=np.int64)

    def decides(self, block: int) -> bool:
        return block >= 1

    def plan(self, block: int, exit_states: FloatArray, logits: FloatArray | None) -> IntArray:
        active = np.flatnonzero(self.depths >= block)
        if self._policy.decides(block):
            planned = self._policy.plan(block, exit_states, logits)
            going = self.chosen[active] >= block  # what has stopped already stays stopped
            self.chosen[active] = np.where(going, np.minimum(self.chosen[active], planned), self.chosen[active])
        return self.depths[active]

    def decision_flops(self, block: int) -> int:
        return 0


@dataclass
class Count:
    """Decisions compared, of tokens and of depths."""

    tokens: int = 0
    decisions: int = 0
    ties: int = 0
    disagreements: int = 0

    def add(self, same: bool, margin: float) -> None:
        """Count one decision."""
        self.decisions += 1
        tie = margin <= TIE_MARGIN
        self.ties += tie
        self.disagreements += not same and not tie


def compare_forced(
    model: Seq2Seq,
    engine: Engine,
    policies: tuple[TorchPolicy, DepthPolicy],
    sources: Sequence[Sequence[int]],
    decoded: Sequence[Decoded],
) -> Count:
    """Leads engine and torch along the same tokens and depths, and compares the choice of every token and depth.

    Args:
        model: In evaluation mode, float32.
        engine: Of the exported graphs.
        policies: The same one for both.
        sources: Token ids, EOS last.
        decoded: What to follow; none empty.
    """
    oracle, policy = policies
    count = Count()
    following = Following(policy, len(model.decoder.blocks))
    state = engine.encode(sources, following)
    forced = [force_torch(model, oracle, source, each) for source, each in zip(sources, decoded, strict=True)]
    fed = np.full(len(sources), BOS_ID, dtype=np.int64)
    for position in range(max(len(tokens) for tokens, _ in decoded)):
        following.go(np.array([depths[position] if position < len(depths) else 1 for _, depths in decoded]))
        logits = engine.step(state, fed).logits.copy()
        logits[:, [PAD_ID, BOS_ID]] = -np.inf
        for row, ((tokens, depths), expected) in enumerate(zip(decoded, forced, strict=True)):
            if position >= len(tokens):
                continue
            best = expected.log_probabilities[position].clone()
            best[[PAD_ID, BOS_ID]] = -torch.inf
            count.tokens += 1
            count.add(int(best.argmax()) == int(logits[row].argmax()), float(expected.token_margins[position]))
            wanted, found = int(expected.depths[position]), int(following.chosen[row])
            deeper = depths[position] + 1  # what happens there, the engine's policy has not seen
            count.add(min(found, deeper) == min(wanted, deeper), float(expected.depth_margins[position]))
            fed[row] = tokens[position]
    return count
