"""What tells, after a block, whether the last block will choose the same piece: certainty, or a function of the state.

Fits units on the training pairs, by teacher forcing: on exit states a linear one and two with a hidden layer; on the
two numbers of `certainty_of` (log-odds of the best piece, lead over the next) one with a hidden layer. Compares them on
the validation pairs with either number alone. Prints the area under the curve, and the share of tokens that could stop
with 97 % of them agreeing.

    python benchmarks/stop_signals.py runs/tatoeba
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click
import torch
from torch import Tensor, nn

from edgeseq.data.batching import collate, plan_epoch
from edgeseq.data.corpus import ParallelCorpus
from edgeseq.models import Seq2Seq
from edgeseq.modules.predictors import certainty_of
from edgeseq.training.run import load_run
from edgeseq_runtime.tokenizer import PAD_ID


@dataclass(frozen=True)
class Tokens:
    """Exit states of one block, (M, D), how certain the exit is, (M, 2), and whether the last block agrees, (M,)."""

    states: Tensor
    certainty: Tensor
    agrees: Tensor


@click.command(help=__doc__)
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--train-tokens", default=150_000, show_default=True)
@click.option("--valid-tokens", default=20_000, show_default=True)
@click.option("--seed", default=0, show_default=True, help="Of the fits.")
def main(run: Path, train_tokens: int, valid_tokens: int, seed: int) -> None:
    """Measures and prints the table; the module's description is the command's help."""
    torch.manual_seed(seed)
    _, _, model = load_run(run)
    train = collect(model, ParallelCorpus(run / "data" / "train"), train_tokens)
    valid = collect(model, ParallelCorpus(run / "data" / "valid"), valid_tokens)
    click.echo("| block | tokens that agree | signal | area under the curve | can stop at 97 % agreement |")
    click.echo("|---|---|---|---|---|")
    for block, (seen, held_out) in enumerate(zip(train, valid, strict=True), start=1):
        dim = seen.states.shape[1]
        signals = {"largest probability": held_out.certainty[:, 0], "lead over the next": held_out.certainty[:, 1]}
        for name, read, net in (
            ("state, linear unit", "states", nn.Linear(dim, 1)),
            ("state, hidden layer of 32", "states", with_hidden_layer(dim, 32)),
            ("state, hidden layer of 128", "states", with_hidden_layer(dim, 128)),
            ("both numbers, hidden layer of 32", "certainty", with_hidden_layer(2, 32)),
        ):
            fit(net, getattr(seen, read), seen.agrees)
            with torch.no_grad():
                signals[name] = net(getattr(held_out, read)).squeeze(-1)
        for name, signal in signals.items():
            click.echo(
                f"| {block} | {held_out.agrees.mean():.1%} | {name} | {area(signal, held_out.agrees):.3f} "
                f"| {coverage(signal, held_out.agrees, 0.97):.1%} |"
            )


@torch.no_grad()
def collect(model: Seq2Seq, corpus: ParallelCorpus, tokens: int) -> list[Tokens]:
    """Gathers tokens of blocks 1 to N - 1."""
    batches: list[list[Tokens]] = []
    count = 0
    for indices in plan_epoch(corpus, 4096, seed=5, epoch=0):
        batch = collate(corpus, indices)
        valid = batch.labels != PAD_ID
        states = [state[valid] for state in model(batch.source, batch.padding_mask, batch.tokens)]
        logits = [model.decoder.exit_heads(state, block) for block, state in enumerate(states, start=1)]
        last = logits[-1].argmax(-1)
        batches.append(
            [
                Tokens(state, certainty_of(scores), (scores.argmax(-1) == last).float())
                for state, scores in zip(states[:-1], logits[:-1], strict=True)
            ]
        )
        count += len(last)
        if count >= tokens:
            break
    return [
        Tokens(*(torch.cat([getattr(part, name) for part in parts]) for name in ("states", "certainty", "agrees")))
        for parts in zip(*batches, strict=True)
    ]


def with_hidden_layer(dim: int, hidden_dim: int) -> nn.Module:
    """Makes a unit on D numbers."""
    return nn.Sequential(nn.Linear(dim, hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, 1))


def fit(net: nn.Module, inputs: Tensor, agrees: Tensor, steps: int = 1500, peak_rate: float = 3e-3) -> None:
    """Fits by Adam with a rate that falls to zero."""
    optimizer = torch.optim.Adam(net.parameters(), lr=peak_rate)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = peak_rate * (1 - step / steps)
        chosen = torch.randint(len(agrees), (2048,))
        logits = net(inputs[chosen]).squeeze(-1)
        loss = nn.functional.binary_cross_entropy_with_logits(logits, agrees[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def area(signal: Tensor, agrees: Tensor) -> float:
    """Computes the chance that a token that agrees has a larger signal than one that does not."""
    ranks = torch.empty(len(signal))
    ranks[signal.argsort()] = torch.arange(len(signal), dtype=torch.float32)
    positive = agrees > 0
    above = ranks[positive].mean() - (positive.sum() - 1) / 2
    return float(above / (~positive).sum())


def coverage(signal: Tensor, agrees: Tensor, precision: float) -> float:
    """Computes the largest share of tokens, by falling signal, of which so many agree."""
    ordered = agrees[signal.argsort(descending=True)]
    precise = (ordered.cumsum(0) / torch.arange(1, len(ordered) + 1) >= precision).nonzero()
    return float(precise.max() + 1) / len(ordered) if len(precise) else 0.0


if __name__ == "__main__":
    main()
