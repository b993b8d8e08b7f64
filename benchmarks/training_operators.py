"""The parts of a training step that were worth writing, against the forms one would write first.

Forward and backward of each, medians of the rounds, variants in turn, as a table in Markdown. Sizes are those of the
six-exit Tatoeba model: batches of 360 sentences of 10 tokens.

    python benchmarks/training_operators.py --threads 1
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import click
import torch
import torch.nn.functional as F
from torch import Tensor

from edgeseq.modules.convolution import banded_product
from edgeseq.modules.dropout import dropout
from edgeseq.training.losses import classify_and_score

BATCH, TIME, DIM, HEADS, KERNEL_SIZE, VOCAB_SIZE = 360, 10, 256, 4, 15, 4000

Variants = dict[str, Callable[[], Tensor]]


def convolution_by_windows(x: Tensor, taps: Tensor) -> Tensor:
    """Convolves by unfolding: a window of K positions for each position."""
    windows = F.pad(x, (0, 0, KERNEL_SIZE - 1, 0)).unfold(1, KERNEL_SIZE, 1)  # (B, T, D, K)
    windows = windows.unflatten(2, (HEADS, DIM // HEADS))  # (B, T, H, D/H, K)
    return (windows * taps.unsqueeze(3)).sum(-1).flatten(2)


def convolution_by_slices(x: Tensor, taps: Tensor) -> Tensor:
    """Convolves by adding shifted copies, one for each tap."""
    padded = F.pad(x, (0, 0, KERNEL_SIZE - 1, 0)).unflatten(2, (HEADS, DIM // HEADS))
    total = torch.zeros(())
    for tap in range(KERNEL_SIZE):
        total = total + padded[:, tap : tap + TIME] * taps[..., tap : tap + 1]
    return total.flatten(2)


def convolution_by_gather(x: Tensor, taps: Tensor) -> Tensor:
    """Convolves by gathering the taps into a band matrix."""
    index = torch.arange(TIME)[None, :] - torch.arange(TIME)[:, None] + KERNEL_SIZE - 1  # (T, T)
    outside = (index < 0) | (index >= KERNEL_SIZE)
    padded = F.pad(taps.transpose(1, 2), (0, 1))
    band = padded.gather(-1, index.masked_fill(outside, KERNEL_SIZE).expand(BATCH, HEADS, -1, -1))
    values = x.unflatten(2, (HEADS, DIM // HEADS)).transpose(1, 2)
    return (band @ values).transpose(1, 2).flatten(2)


@click.command(help=__doc__)
@click.option("--threads", default=1, show_default=True)
@click.option("--rounds", default=15, show_default=True)
def main(threads: int, rounds: int) -> None:
    """Measures and prints the table; the module's description is the command's help."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    x = torch.randn(BATCH, TIME, DIM, requires_grad=True)
    taps = torch.randn(BATCH, TIME, HEADS, KERNEL_SIZE).softmax(-1).requires_grad_()
    states = torch.randn(BATCH * TIME, DIM, requires_grad=True)
    weight = (torch.randn(VOCAB_SIZE, DIM) / 16).requires_grad_()
    labels = torch.randint(VOCAB_SIZE, (BATCH * TIME,))

    def plain_loss() -> Tensor:
        return F.cross_entropy((states @ weight.T).float(), labels, label_smoothing=0.1)

    parts: dict[str, Variants] = {
        "dynamic convolution": {
            "windows by unfold": lambda: convolution_by_windows(x, taps).sum(),
            "shifted slices": lambda: convolution_by_slices(x, taps).sum(),
            "gather into a band matrix": lambda: convolution_by_gather(x, taps).sum(),
            "**skew into a band matrix**": lambda: banded_product(x, taps, KERNEL_SIZE - 1).sum(),
        },
        "dropout": {
            "torch": lambda: F.dropout(x, 0.1).sum(),
            "**a byte per element**": lambda: dropout(x, 0.1, training=True).sum(),
        },
        "exit head and loss": {
            "linear, then cross_entropy": plain_loss,
            "**classify_and_score**": lambda: classify_and_score(states, weight, labels, 0.1)[0],
        },
    }
    click.echo("| part | variant | ms, forward + backward | of the first |\n|---|---|---|---|")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for part, variants in parts.items():
            medians = measure(variants, rounds)
            first = next(iter(medians.values()))
            for name, seconds in medians.items():
                click.echo(f"| {part} | {name} | {1e3 * seconds:.1f} | {seconds / first:.2f} |")


def measure(variants: Variants, rounds: int) -> dict[str, float]:
    """Returns the median seconds of each variant, run in turn after one round of warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds + 1):
        for name, variant in variants.items():
            started = time.perf_counter()
            variant().backward()
            seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values[1:]) for name, values in seconds.items()}


if __name__ == "__main__":
    main()
