"""The whole page: one file, nothing to load, and a policy that forbids the browser to load anything.

Text of corpora, bundles and command lines is untrusted: it goes through `markup`, which escapes it, or into a block of
JSON that cannot end early. Should something slip through, the page's Content-Security-Policy names the hash of the one
script that may run.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

from edgeseq.evaluation.report.charts import marker_definitions
from edgeseq.evaluation.report.figures import depth_figures, depth_legend, quality_figure
from edgeseq.evaluation.report.markup import Child, Markup, element, join, table
from edgeseq.evaluation.report.measuring import Measurements
from edgeseq.evaluation.report.sentences import SampledSentence
from edgeseq.tints import css_variables


@dataclass(frozen=True)
class Heading:
    """What the page says of itself."""

    title: str
    facts: dict[str, str]
    """Bundle, model, text, machine, date: what a reader has to know, by name."""
    predictors: Sequence[tuple[str, str, str]]
    """Name, kind and training of the bundle's predictors."""


def render_page(heading: Heading, measured: Measurements, sample: Sequence[SampledSentence]) -> str:
    """Makes the page.

    Args:
        heading: title and facts.
        measured: all measurements.
        sample: sentences to browse.

    Returns:
        A complete HTML document.
    """
    blocks = len(measured.full_depth.depth_shares)
    style, script = _style(blocks), _read("page.js")
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=_security_policy(style, script)),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", heading.title),
        element("style", Markup(style)),
    )
    body = element(
        "body",
        marker_definitions(),
        element(
            "header", element("h1", heading.title), _facts(heading.facts | _score_facts(measured)), _summary(measured)
        ),
        element("main", _sections(heading, measured, sample, blocks)),
        element("div", id="tip", role="tooltip", hidden=True),
        element("script", _records(sample), type="application/json", id="records"),
        element("script", Markup(script)),
    )
    return f"<!DOCTYPE html>\n{element('html', head, body, lang='en')}\n"


def _sections(heading: Heading, measured: Measurements, sample: Sequence[SampledSentence], blocks: int) -> list[Markup]:
    sections = [_section("Quality and cost", quality_figure(measured))]
    for shown in measured.shown:
        figures = element("div", depth_figures(shown.policy, shown.probes, blocks), class_="grid")
        sections.append(
            _section(f"Where tokens stop with {_named(measured, shown.policy)}", depth_legend(blocks), figures)
        )
    if sample:
        sections.append(_section("Sentences", *_browser(sample, blocks)))
    return [*sections, _section("What the figures depend on", _predictors(heading), _signatures(measured))]


def _section(title: str, *parts: Child) -> Markup:
    return element("section", element("h2", title), parts)


def _named(measured: Measurements, policy: str) -> str:
    names = measured.points.get(policy)
    return f"{policy} ({', '.join(names)})" if names else policy


def _facts(facts: dict[str, str]) -> Markup:
    return element(
        "dl",
        [element("div", element("dt", name), element("dd", _breakable(value))) for name, value in facts.items()],
        class_="facts",
    )


def _breakable(signature: str) -> list[Markup]:
    """Lets a long signature break between its parts only."""
    *parts, last = signature.split("|")
    return [join([f"{part}|", element("wbr")]) for part in parts] + [join([last])]


def _score_facts(measured: Measurements) -> dict[str, str]:
    full = measured.full_depth
    return {"Scores": full.scores.bleu_signature, "Signature at full depth": full.signature}


def _summary(measured: Measurements) -> Markup:
    full_time = measured.milliseconds["full"]
    chosen = ["full", *measured.points, *(shown.policy for shown in measured.shown)]
    rows = []
    for policy in dict.fromkeys(chosen):
        result = measured.result(policy)
        rows.append(
            [
                _named(measured, policy) if policy != "full" else "full depth",
                f"{result.scores.bleu:.2f}",
                f"{result.average_depth:.2f}",
                f"{measured.milliseconds[policy]:.2f}",
                f"{full_time / measured.milliseconds[policy]:.2f}",
            ]
        )
    header = ("policy", "BLEU", "average depth", "ms per sentence", "times as fast")
    return table("In short", header, rows)


def _browser(sample: Sequence[SampledSentence], blocks: int) -> list[Markup]:
    sort = element(
        "select",
        element("option", "line in the text", value="line"),
        element("option", "shallowest first", value="shallow"),
        element("option", "deepest first", value="deep"),
        id="sort",
    )
    controls = element(
        "form",
        element("label", "Find ", element("input", type="search", id="find")),
        element("label", "Order ", sort),
        element("label", element("input", type="checkbox", id="differs"), " only where words differ from full depth"),
        element("label", element("input", type="checkbox", id="numbers", checked=True), " depth as a number"),
        id="controls",
        hidden=True,
    )
    note = (
        "Point at a token, or reach it with Tab and the arrow keys, to see what each exit said on the way; blocks "
        "above its depth did not run. Beside each exit's confidence stands what the policy's predictor said: its wish "
        "χ to stop after the block, or where it chooses once, the chance it gives to each depth. The sample holds "
        "sentences of the least and greatest average depth and others drawn at random."
    )
    return [
        element("p", note, class_="note"),
        depth_legend(blocks),
        controls,
        element("p", f"{len(sample)} sentences", id="count", role="status"),
        element("ol", [sentence.markup for sentence in sample], id="sentences", class_="numbers"),
        element("button", "Show more", type="button", id="more", hidden=True),
    ]


def _predictors(heading: Heading) -> Markup | None:
    if not heading.predictors:
        return None
    return table("Depth predictors of the bundle", ("name", "kind", "learnt"), heading.predictors)


def _signatures(measured: Measurements) -> list[Markup]:
    scores = measured.full_depth.scores
    lines = [f"BLEU  {scores.bleu_signature}", f"chrF  {scores.chrf_signature}"]
    lines += [result.signature for result in measured.results]
    return [
        element("p", "Scores are sacreBLEU's; a signature names all that a score depends on.", class_="note"),
        element("ul", [element("li", element("code", _breakable(line))) for line in lines], class_="signatures"),
    ]


def _records(sample: Sequence[SampledSentence]) -> Markup:
    records = [record for sentence in sample for record in sentence.records]
    text = json.dumps(records, ensure_ascii=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c"))  # no </script>, no <!--


def _style(blocks: int) -> str:
    light, dark = css_variables(blocks, dark=False), css_variables(blocks, dark=True)
    depths = range(1, blocks + 1)
    return join(
        [
            Markup(_read("page.css")),
            Markup(f":root{{{light}}}@media (prefers-color-scheme: dark){{:root{{{dark}}}}}"),
            *(Markup(f".tint-{n}{{background:var(--depth-{n});color:var(--ink-{n})}}") for n in depths),
            *(Markup(f".fill-{n}{{fill:var(--depth-{n})}}") for n in depths),
        ]
    )


def _security_policy(style: str, script: str) -> str:
    return (
        f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; base-uri 'none'; "
        "form-action 'none'"
    )


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _read(name: str) -> str:
    return files("edgeseq.evaluation.report").joinpath(name).read_text(encoding="utf-8")
