"""The reference decoder: greedy and beam search that recompute every state at every step.

It keeps no history, no cache and no pending columns, so it can hardly be wrong; validation uses it, and the
runtime is held against it. Its cost is quadratic in the length.

Dimensions: B sentences, S source and T target positions, D channels, N decoder blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from edgeseq.models.seq2seq import Seq2Seq
from edgeseq.modules import CertaintyUnits, HaltingUnits
from edgeseq.modules.predictors import certainty_of, mean_memory
from edgeseq_runtime.beam import BeamOptions
from edgeseq_runtime.tokenizer import BOS_ID, EOS_ID, PAD_ID


@dataclass(frozen=True)
class StopRule:
    """Where tokens stop."""

    blocks: int
    """Blocks to run at most."""
    choose: Callable[[list[Tensor], Tensor], Tensor]
    """From the exit states of those blocks at one position, each (B, D), and the encoder's output averaged over each
    sentence, (B, D), to depths, int64 (B,)."""


def stop_at(depth: int) -> StopRule:
    """Every token stops at the same depth."""
    return StopRule(depth, lambda states, _: torch.full((len(states[0]),), depth, device=states[0].device))


def stop_by_halting(model: Seq2Seq, name: str, thresholds: Sequence[float]) -> StopRule:
    """A token stops at the first block n < N whose χ_n exceeds its threshold, else at N.

    Args:
        model: has halting units of that name.
        name: of the units.
        thresholds: N - 1 of them.
    """
    units = model.predictor(name)
    if not isinstance(units, HaltingUnits):
        raise TypeError(f"predictor {name!r} is {type(units).__name__}, which has no thresholds")
    return StopRule(len(model.decoder.blocks), lambda states, _: _first_above(torch.sigmoid(units(states)), thresholds))


def stop_by_certainty(model: Seq2Seq, name: str, thresholds: Sequence[float]) -> StopRule:
    """A token stops at the first block n < N whose χ_n, of certainty units of that name, exceeds its threshold."""
    units, heads = model.predictor(name), model.decoder.exit_heads
    if not isinstance(units, CertaintyUnits):
        raise TypeError(f"predictor {name!r} is {type(units).__name__}, expected certainty units")

    def choose(states: list[Tensor], _: Tensor) -> Tensor:
        certainty = [certainty_of(heads(state, block)) for block, state in enumerate(states, start=1)]
        return _first_above(torch.sigmoid(units(torch.stack(certainty, dim=-2).to(states[0].dtype))), thresholds)

    return StopRule(len(model.decoder.blocks), choose)


def stop_by_confidence(model: Seq2Seq, thresholds: Sequence[float]) -> StopRule:
    """A token stops at the first block n < N whose exit gives a piece a probability above its threshold, else at N."""
    heads = model.decoder.exit_heads

    def choose(states: list[Tensor], _: Tensor) -> Tensor:
        below = enumerate(states[:-1], start=1)
        confidence = [torch.softmax(heads(state, block).float(), dim=-1).amax(-1) for block, state in below]
        return _first_above(torch.stack(confidence, dim=-1), thresholds)

    return StopRule(len(model.decoder.blocks), choose)


def stop_by_choice(model: Seq2Seq, name: str, quantile: float | None = None) -> StopRule:
    """A depth is chosen at once from a distribution.

    Args:
        model: has a predictor of that name.
        name: of the predictor.
        quantile: None for the likeliest depth; else the lowest whose cumulative probability reaches it, N at 1.
    """
    predictor = model.predictor(name)
    blocks = len(model.decoder.blocks)

    def choose(states: list[Tensor], mean: Tensor) -> Tensor:
        q = predictor.log_distribution([state.unsqueeze(1) for state in states], mean).squeeze(1).exp()
        if quantile is None:
            return q.argmax(-1) + 1
        goes_on = (q.cumsum(-1)[:, :-1] < quantile) | (quantile == 1)
        return 1 + goes_on.sum(-1)

    return StopRule(blocks, choose)


def _first_above(signals: Tensor, thresholds: Sequence[float]) -> Tensor:
    """Finds the first of N - 1 signals (B, N - 1) above its threshold: 1 to N - 1, or N where there is none."""
    goes_on = signals <= torch.tensor(list(thresholds), dtype=signals.dtype, device=signals.device)
    return 1 + torch.cumprod(goes_on.long(), dim=-1).sum(-1)


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
    going = torch.arange(len(sources), device=device)  # the sentences that have not ended: everything below is of them
    tokens = torch.full((len(sources), 1), BOS_ID, device=device)
    depths = torch.empty((len(sources), 0), dtype=torch.long, device=device)
    limits = torch.tensor(max_lengths, device=device)
    results: dict[int, tuple[list[int], list[int]]] = {}
    while len(going):
        logits, chosen = _next_logits(model, rule, tokens, depths, memory, padding_mask)
        logits[:, [PAD_ID, BOS_ID]] = float("-inf")  # nothing to say; the runtime never chooses them either
        token = logits.argmax(-1)
        tokens = torch.cat((tokens, token.unsqueeze(1)), dim=1)
        depths = torch.cat((depths, chosen.unsqueeze(1)), dim=1)
        ended = (token == EOS_ID) | (depths.shape[1] >= limits)
        found = zip(tokens[ended, 1:].tolist(), depths[ended].tolist(), strict=True)
        results.update(zip(going[ended].tolist(), found, strict=True))
        going, tokens, depths, limits, memory = (each[~ended] for each in (going, tokens, depths, limits, memory))
        padding_mask = None if padding_mask is None else padding_mask[~ended]
    return [results[sentence] for sentence in range(len(sources))]


@torch.no_grad()
def reference_beam_search(
    model: Seq2Seq, source: Sequence[int], rule: StopRule, max_length: int, options: BeamOptions
) -> list[NaiveHypothesis]:
    """Translates one sentence by beam search.

    Args:
        model: in evaluation mode.
        source: token ids, EOS last.
        rule: where tokens stop.
        max_length: greatest number of tokens, EOS included.
        options: settings of the search.

    Returns:
        The best hypotheses, best first.
    """
    device = next(model.parameters()).device
    memory = model.encoder(torch.tensor([source], device=device), None)

    def score_next(paths: list[list[int]], used: list[list[int]]) -> tuple[list[list[float]], list[int]]:
        tokens = torch.tensor([[BOS_ID, *path] for path in paths], device=device)
        depths = torch.tensor(used, dtype=torch.long, device=device).reshape(len(paths), -1)
        logits, chosen = _next_logits(model, rule, tokens, depths, memory.expand(len(paths), -1, -1), None)
        return torch.log_softmax(logits.double(), dim=-1).tolist(), chosen.tolist()

    return naive_beam_search(score_next, max_length, options)


@dataclass(frozen=True)
class NaiveHypothesis:
    """One result of a naive beam search."""

    tokens: list[int]
    depths: list[int]
    score: float


def naive_beam_search(
    score_next: Callable[[list[list[int]], list[list[int]]], tuple[list[list[float]], list[int]]],
    max_length: int,
    options: BeamOptions,
) -> list[NaiveHypothesis]:
    """Follows the rules of `edgeseq_runtime.beam`, written down once more, on every continuation there is.

    Args:
        score_next: from paths of tokens and the depths these used, all equally long, to the log-probabilities of
            every next token of each path, and to the depth used for it.
        max_length: greatest number of tokens, EOS included.
        options: settings of the search.

    Returns:
        The best hypotheses, best first.
    """
    opened = [NaiveHypothesis([], [], 0.0)]
    closed: list[NaiveHypothesis] = []
    while opened and len(closed) < options.size and len(opened[0].tokens) < max_length:
        scores, depths = score_next([path.tokens for path in opened], [path.depths for path in opened])
        continuations = [
            NaiveHypothesis([*path.tokens, token], [*path.depths, depth], path.score + score)
            for path, row, depth in zip(opened, scores, depths, strict=True)
            for token, score in enumerate(row)
            if _allowed([*path.tokens, token], options)
        ]
        ranked = sorted(continuations, key=lambda path: -path.score)[: 2 * options.size]
        closed += [path for path in ranked[: options.size] if path.tokens[-1] == EOS_ID]
        opened = [path for path in ranked if path.tokens[-1] != EOS_ID][: options.size]
    if len(closed) < options.size:
        closed += opened
    scored = [replace(path, score=path.score / len(path.tokens) ** options.length_penalty) for path in closed]
    return sorted(scored, key=lambda path: -path.score)[: options.n_best]


def _allowed(path: list[int], options: BeamOptions) -> bool:
    if path[-1] in (PAD_ID, BOS_ID) or (path[-1] == EOS_ID and len(path) < options.min_length):
        return False
    size = options.no_repeat_ngram
    runs = [tuple(path[start : start + size]) for start in range(len(path) - size + 1)] if size else []
    return len(runs) == len(set(runs))


def _next_logits(
    model: Seq2Seq, rule: StopRule, tokens: Tensor, depths: Tensor, memory: Tensor, padding_mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Recomputes everything up to the newest token; gives its logits (B, V) and its depth (B,)."""
    # How deep the newest token goes is not known yet: let it pass all blocks, then choose.
    passing = depths.new_full((len(tokens), 1), len(model.decoder.blocks))
    states = model.decoder(tokens, memory, padding_mask, torch.cat((depths, passing), dim=1), rule.blocks)
    newest = torch.stack([state[:, -1] for state in states])  # (blocks, B, D)
    chosen = rule.choose(list(newest), mean_memory(memory, padding_mask))
    logits = torch.empty((len(tokens), len(model.decoder.exit_heads.weight(1))), device=tokens.device)
    for depth in chosen.unique().tolist():
        stopped = chosen == depth
        logits[stopped] = model.decoder.exit_heads(newest[depth - 1, stopped], depth).float()
    return logits, chosen


def pad_sources(sources: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Builds source ids, int64 (B, S), and the padding mask, bool (B, S), or None where nothing is padded."""
    longest = max(map(len, sources))
    source = torch.full((len(sources), longest), PAD_ID)
    for row, ids in zip(source, sources, strict=True):
        row[: len(ids)] = torch.tensor(ids)
    padding_mask = source == PAD_ID
    return source.to(device), padding_mask.to(device) if bool(padding_mask.any()) else None
