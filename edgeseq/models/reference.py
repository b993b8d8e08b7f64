"""The reference decoder: greedy search that recomputes every state at every step.

It keeps no history, no cache and no pending columns, so it can hardly be wrong; validation uses it, and the
runtime is held against it. Its cost is quadratic in the length.

Dimensions: B sentences, S source and T target positions, D channels, N decoder blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from edgeseq.models.seq2seq import Seq2Seq
from edgeseq_runtime.tokenizer import BOS_ID, EOS_ID, PAD_ID


@dataclass(frozen=True)
class StopRule:
    """Where tokens stop."""

    blocks: int
    """Blocks to run at most."""
    choose: Callable[[list[Tensor]], Tensor]
    """From the exit states of those blocks at one position, each (B, D), to depths, int64 (B,)."""


def stop_at(depth: int) -> StopRule:
    """Every token stops at the same depth."""
    return StopRule(depth, lambda states: torch.full((len(states[0]),), depth, device=states[0].device))


def stop_by_halting(model: Seq2Seq, threshold: float) -> StopRule:
    """A token stops at the first block n < N whose χ_n exceeds the threshold, else at N."""
    units = model.decoder.halting_units
    if units is None:
        raise ValueError("the model has no halting units; train it with model.halting = 'per_block' or 'shared'")

    def choose(states: list[Tensor]) -> Tensor:
        stops = torch.sigmoid(units(states)) > threshold  # (B, N - 1)
        passed = torch.cumprod((~stops).long(), dim=-1)
        return 1 + passed.sum(-1)

    return StopRule(len(model.decoder.blocks), choose)


@torch.no_grad()
def reference_decode(
    model: Seq2Seq, sources: Sequence[Sequence[int]], rule: StopRule, max_lengths: Sequence[int]
) -> list[tuple[list[int], list[int]]]:
    """Translates a batch greedily.

    Args:
        model: in evaluation mode.
        sources: token ids, EOS last.
        rule: where tokens stop.
        max_lengths: greatest number of tokens of each result, EOS included.

    Returns:
        Tokens (EOS included where it was reached) and depths of each sentence, equally long.
    """
    device = next(model.parameters()).device
    source, padding_mask = pad_sources(sources, device)
    memory = model.encoder(source, padding_mask)
    blocks = len(model.decoder.blocks)
    rows = len(sources)
    tokens = torch.full((rows, 1), BOS_ID, device=device)
    depths = torch.empty((rows, 0), dtype=torch.long, device=device)
    finished = torch.zeros(rows, dtype=torch.bool, device=device)
    limits = torch.tensor(max_lengths, device=device)
    while not bool(finished.all()):
        # How deep the newest token goes is not known yet: let it pass all blocks, then choose.
        open_depths = torch.cat((depths, depths.new_full((rows, 1), blocks)), dim=1)
        states = model.decoder(tokens, memory, padding_mask, open_depths, rule.blocks)
        newest = [state[:, -1] for state in states]
        chosen = rule.choose(newest)
        stacked = torch.stack(newest)  # (blocks, B, D)
        logits = torch.empty((rows, len(model.decoder.exit_heads.weight(1))), device=device)
        for depth in chosen.unique().tolist():
            stopped = chosen == depth
            logits[stopped] = model.decoder.exit_heads(stacked[depth - 1, stopped], depth).float()
        logits[:, [PAD_ID, BOS_ID]] = float("-inf")  # nothing to say; the runtime never chooses them either
        token = logits.argmax(-1).masked_fill(finished, PAD_ID)
        tokens = torch.cat((tokens, token.unsqueeze(1)), dim=1)
        depths = torch.cat((depths, chosen.unsqueeze(1)), dim=1)
        finished = finished | (token == EOS_ID) | (depths.shape[1] >= limits)
    results = []
    for row_tokens, row_depths in zip(tokens[:, 1:].tolist(), depths.tolist(), strict=True):
        length = row_tokens.index(PAD_ID) if PAD_ID in row_tokens else len(row_tokens)
        results.append((row_tokens[:length], row_depths[:length]))
    return results


def pad_sources(sources: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Builds source ids, int64 (B, S), and the padding mask, bool (B, S), or None where nothing is padded."""
    longest = max(map(len, sources))
    source = torch.full((len(sources), longest), PAD_ID)
    for row, ids in zip(source, sources, strict=True):
        row[: len(ids)] = torch.tensor(ids)
    padding_mask = source == PAD_ID
    return source.to(device), padding_mask.to(device) if bool(padding_mask.any()) else None
