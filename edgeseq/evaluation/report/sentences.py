"""The browsable sample: sentences with each token tinted by its depth, and what each of its exits said.

Elbayad et al. (2020), figure 5, tint tokens in this way.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from edgeseq.evaluation.probing import NOT_RUN, Probe
from edgeseq.evaluation.report.markup import Markup, element, join
from edgeseq.evaluation.report.measuring import Measurements
from edgeseq.pieces import Stretch, stretches
from edgeseq_runtime.arrays import FloatArray
from edgeseq_runtime.tokenizer import Tokenizer

_EXTREME_SHARE = 0.2
"""Of the sample, at either end: the sentences of least and greatest average depth."""

_FEWEST_TOKENS = 4
"""Of a sentence that counts as extreme: an average over two tokens is extreme by chance."""


@dataclass(frozen=True)
class SampledSentence:
    """A sentence to show."""

    line: int
    """In the text files, from 1."""
    markup: Markup
    records: list[object]
    """Of each shown policy, what each exit said: see `exit_records`."""


def choose_lines(probes: Sequence[Probe], number: int, seed: int = 0) -> list[int]:
    """Chooses sentences to show: those of extreme average depth, and others at random.

    Args:
        probes: of every sentence; blank ones are not chosen.
        number: most sentences to choose.
        seed: of the choice.

    Returns:
        Indices in rising order.
    """
    present = [index for index, probe in enumerate(probes) if probe.tokens]
    if len(present) <= number:
        return present
    long = [index for index in present if len(probes[index].tokens) >= _FEWEST_TOKENS]
    ranked = sorted(long, key=lambda index: float(probes[index].depths.mean()))
    extremes = min(math.ceil(number * _EXTREME_SHARE), len(ranked) // 2, number // 2)
    chosen = {*ranked[:extremes], *ranked[len(ranked) - extremes :]}
    rest = np.random.default_rng(seed).permutation([index for index in present if index not in chosen])
    return sorted([*chosen, *rest[: number - len(chosen)].tolist()])


def sample_sentences(
    measured: Measurements, tokenizer: Tokenizer, sources: Sequence[str], references: Sequence[str], number: int
) -> list[SampledSentence]:
    """Makes the sample.

    Args:
        measured: with at least one shown policy; the first one says which sentences are extreme.
        tokenizer: the bundle's.
        sources: all sentences.
        references: one per source.
        number: most sentences to show.
    """
    # A bundle may have a dozen predictors; those that have no part in what is shown would only be in the way.
    predictors = {shown.policy.partition(":")[0] for shown in measured.shown}
    sample: list[SampledSentence] = []
    first_row = 0
    for index in choose_lines(measured.shown[0].probes, number):
        probes = {shown.policy: shown.probes[index] for shown in measured.shown}
        full = tokenizer.decode(measured.full[index].tokens)
        markup = _sentence(index + 1, sources[index], references[index], full, probes, tokenizer, first_row)
        sample.append(
            SampledSentence(
                index + 1, markup, [exit_records(probe, tokenizer, predictors) for probe in probes.values()]
            )
        )
        first_row += len(probes)
    return sample


def exit_records(probe: Probe, tokenizer: Tokenizer, predictors: Collection[str]) -> list[object]:
    """Says what each exit and some predictors said at each token of a sentence, for the page's script.

    Args:
        probe: of the sentence.
        tokenizer: the bundle's.
        predictors: names of those to include.

    Returns:
        First, per token, the pieces that the exits it ran say, their probabilities, and the signals by predictor; then
        the signals of those predictors that speak once for all tokens. Numbers are thousandths.
    """
    signals = {name: values for name, values in probe.signals.items() if name in predictors}
    tokens = []
    for token, depth in enumerate(probe.depths.tolist()):
        choices = [choice for choice in probe.choices[token].tolist() if choice != NOT_RUN]
        said = [stretch.label for piece in tokenizer.pieces(choices) for stretch in stretches([piece])]
        of_token = {name: _thousandths(values[token]) for name, values in signals.items() if values.ndim == 2}
        tokens.append([said, _thousandths(probe.confidence[token, :depth]), of_token])
    return [tokens, {name: _thousandths(values) for name, values in signals.items() if values.ndim == 1}]


def tinted_text(tokens: Sequence[str], depths: Sequence[int], label: str, row: int) -> Markup:
    """Writes a translation, each token tinted by its depth.

    Args:
        tokens: pieces, EOS included.
        depths: of each.
        label: what it is, for those who hear it.
        row: where the page's script finds what the exits said.
    """
    parts: list[Markup | str] = []
    for place, (stretch, depth) in enumerate(zip(stretches(tokens), depths, strict=True)):
        if stretch.space_before:
            parts.append(" ")
        parts.append(_token(stretch, depth, first=place == 0))
    return element("div", parts, class_="tokens", role="list", aria_label=label, data_row=row, dir="auto")


def _sentence(
    line: int,
    source: str,
    reference: str,
    full: str,
    probes: dict[str, Probe],
    tokenizer: Tokenizer,
    first_row: int,
) -> Markup:
    entries = [
        _entry("source", element("span", source, dir="auto")),
        _entry("reference", element("span", reference, dir="auto")),
    ]
    texts = {policy: tokenizer.decode(probe.tokens) for policy, probe in probes.items()}
    differs = any(text != full for text in texts.values())
    if differs:
        entries.append(_entry("full depth", element("span", full, dir="auto")))
    for row, (policy, probe) in enumerate(probes.items(), start=first_row):
        average = float(probe.depths.mean())
        label = f"line {line} with {policy}, {average:.2f} blocks per token"
        text = tinted_text(tokenizer.pieces(probe.tokens), probe.depths.tolist(), label, row)
        same = "" if texts[policy] != full or policy == "full" else "; the words of full depth"
        entries.append(
            _entry(policy, join([text, element("p", f"{average:.2f} blocks per token{same}", class_="note")]))
        )
    first = next(iter(probes.values()))
    return element(
        "li",
        element("p", f"line {line}", class_="line"),
        element("dl", entries),
        data_line=line,
        data_depth=f"{float(first.depths.mean()):.4f}",
        data_differs=differs,
    )


def _entry(name: str, value: Markup) -> Markup:
    return element("div", element("dt", name), element("dd", value))


def _token(stretch: Stretch, depth: int, *, first: bool) -> Markup:
    style = f"token tint-{depth}" + (" end-token" if stretch.is_end else "")
    # One stop of the tab key per sentence; arrow keys go on from there.
    return element(
        "span",
        stretch.label,
        class_=style,
        role="listitem",
        tabindex=0 if first else -1,
        data_depth=depth,
        aria_label=f"{stretch.label}, depth {depth}",
    )


def _thousandths(values: FloatArray) -> list[int]:
    """Probabilities as JSON has them; those of blocks that did not run, at the end, are left out."""
    return [round(1000 * value) for value in values.tolist() if not math.isnan(value)]
