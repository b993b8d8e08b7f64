"""``edgeseq report`` on a tiny bundle, as a user types it: the page, read as a browser would."""

from __future__ import annotations

import html
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from command_line import Outcome, run_edgeseq
from edgeseq_runtime import Translator
from tiny_bundle import tiny_sentences, write_tiny_bundle

ATTACK = "<script>alert(1)</script> & <img src=https://example.org/x>"
VOID = {"br", "input", "meta", "wbr"}


class Page(HTMLParser):
    """Checks that every element is closed, and collects what a browser would see."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(text)
        self.close()
        assert self.open == [], f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open[-1] == tag, f"</{tag}> closes <{self.open[-1]}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open:
            self.texts.append((self.open[-1], data))

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def text(self, tag: str) -> list[str]:
        return [text for name, text in self.texts if name == tag]


def loads(text: str) -> list[str]:
    """What a browser would fetch for a page: addresses in attributes that load, and in style sheets."""
    page = Page(text)
    addresses = [
        value
        for _, attributes in page.elements
        for name, value in attributes.items()
        if name in {"src", "href", "xlink:href", "srcset", "data", "poster", "action"} and not value.startswith("#")
    ]
    for style in page.text("style"):
        addresses += re.findall(r"@import[^;]*|url\([^)]*\)", style)
    for script in page.text("script"):
        addresses += re.findall(r"\bfetch\(|XMLHttpRequest|\bimport\b|sendBeacon|WebSocket|new Image", script)
    return addresses


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    write_tiny_bundle(folder / "tiny.bundle")
    sources = [*tiny_sentences(30, seed=5), "", ATTACK]
    references = [*tiny_sentences(30, seed=6), "", ATTACK]
    (folder / "a.en").write_text("".join(f"{line}\n" for line in sources), encoding="utf-8")
    (folder / "a.de").write_text("".join(f"{line}\n" for line in references), encoding="utf-8")
    return folder


def report(folder: Path, *arguments: object, out: Path | None = None) -> Outcome:
    files = ("--src", folder / "a.en", "--ref", folder / "a.de", "--out", out or folder / "report.html")
    return run_edgeseq("report", folder / "tiny.bundle", *files, "--device", "cpu", *arguments)


@pytest.fixture(scope="module")
def page(folder: Path) -> str:
    outcome = report(folder, "--depth", "adaptive", "--depth", "confidence:0.2", "--depth", "full")
    assert outcome.code == 0, outcome.stderr
    assert outcome.stdout == b""
    assert "policies, 31 sentences" in outcome.stderr
    return (folder / "report.html").read_text(encoding="utf-8")


def test_the_page_is_whole(page: str) -> None:
    assert page.startswith("<!DOCTYPE html>")
    parsed = Page(page)
    names = [attributes["id"] for _, attributes in parsed.elements if "id" in attributes]
    assert len(names) == len(set(names))
    assert parsed.text("title")[0] == "edgeseq report: tiny.bundle"
    with pytest.raises(AssertionError, match="closes"):  # control: the parser minds
        Page(page.replace("</figure>", "", 1))


def test_every_kind_of_policy_is_measured(page: str, folder: Path) -> None:
    bundle = Translator(folder / "tiny.bundle", device="cpu").bundle
    rows = Page(page).text("th")
    for expected in ("1", "2", "3", "full", "halting:0.5", "confidence:0.2"):
        assert expected in rows, expected
    for entry in bundle.manifest.predictors:
        assert any(row.startswith(f"{entry.name}:") for row in rows), entry.name
        if entry.kind in {"multinomial", "sequence"}:
            assert entry.name in rows
    assert any("depth:halting:0.5|" in signature for signature in Page(page).text("code") if signature)


def test_every_chart_has_a_name_and_every_figure_a_table(page: str) -> None:
    charts = [svg for svg in Page(page).all("svg") if svg.get("role") == "img"]
    assert len(charts) == 2 + 3 * 5
    assert all(chart["aria-label"] for chart in charts)
    figures = page.split("<figure>")[1:]
    assert len(figures) == 1 + 3 * 3
    assert all(figure.partition("</figure>")[0].count("<table>") == 1 for figure in figures)


def test_tables_hold_the_numbers_of_the_decode(page: str, folder: Path) -> None:
    translator = Translator(folder / "tiny.bundle", device="cpu")
    sources = (folder / "a.en").read_text(encoding="utf-8").split("\n")[:-1]
    used = [depth for result in translator.translate(sources, depth="confidence:0.2") for depth in result.depths]
    table = page.split("<caption>Tokens by depth with confidence:0.2</caption>")[1].partition("</table>")[0]
    counts = [int(cells.replace(",", "")) for cells in re.findall(r"<td>([\d,]+)</td></tr>", table)]
    assert counts == [used.count(depth) for depth in range(1, 5)]


def test_tokens_are_those_of_the_translation(page: str, folder: Path) -> None:
    translator = Translator(folder / "tiny.bundle", device="cpu")
    first = (folder / "a.en").read_text(encoding="utf-8").split("\n")[0]
    result = translator.translate(first, depth="halting:0.5")
    rows = [attributes for _, attributes in Page(page).elements if "data-row" in attributes]
    assert rows[0]["aria-label"].startswith("line 1 with halting:0.5, ")
    tokens = page.split('data-row="0"')[1].partition("</div>")[0]
    assert [int(depth) for depth in re.findall(r'data-depth="(\d)"', tokens)] == result.depths
    text = html.unescape(re.sub(r"<[^>]*>", "", tokens.partition(">")[2]))
    assert text.removesuffix("end").split() == result.text.split()
    records = json.loads(page.split('id="records">')[1].partition("</script>")[0])
    assert len(records) == len(rows)
    of_tokens, _ = records[0]
    assert [len(said) for said, _, _ in of_tokens] == result.depths
    assert [len(confidence) for _, confidence, _ in of_tokens] == result.depths


def test_text_of_corpora_stays_text(page: str) -> None:
    assert Page(page).all("img") == []
    assert len(Page(page).all("script")) == 2
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page


def test_nothing_is_loaded(page: str) -> None:
    assert loads(page) == []
    (policy,) = [meta["content"] for meta in Page(page).all("meta") if "http-equiv" in meta]
    assert policy.startswith("default-src 'none'; ")
    assert policy.count("'sha256-") == 2
    assert "unsafe" not in policy


@pytest.mark.parametrize(
    "leak",
    [
        '<img alt="" src="https://example.org/x.png"></img>',
        '<link href="a.css"></link>',
        "<style>@import 'a.css';</style>",
        "<style>p{background:url(a.png)}</style>",
        "<script>fetch('/')</script>",
    ],
)
def test_control_a_leak_is_seen(page: str, leak: str) -> None:
    assert len(loads(page.replace("</main>", f"{leak}</main>"))) == 1


def test_without_an_operating_point_the_first_predictor_is_shown(folder: Path, tmp_path: Path) -> None:
    bare = write_tiny_bundle(tmp_path / "bare.bundle", operating_point=None)
    out = tmp_path / "r.html"
    files = ("--src", folder / "a.en", "--ref", folder / "a.de", "--out", out)
    assert run_edgeseq("report", bare, *files, "--sentences", 8, "--sample", 0).code == 0
    text = out.read_text(encoding="utf-8")
    assert "Where tokens stop with halting:" in text
    assert 'id="sentences"' not in text


def test_a_policy_that_the_bundle_lacks_is_named_before_anything_is_decoded(folder: Path, tmp_path: Path) -> None:
    outcome = report(folder, "--depth", "adaptive:fast", out=tmp_path / "r.html")
    assert outcome.code == 1
    assert "depth policy 'adaptive:fast' needs the operating point 'fast', which this bundle lacks" in outcome.stderr
    assert "sentences" not in outcome.stderr.partition("\n")[2]
    assert list(tmp_path.iterdir()) == []


def test_blank_text_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "blank").write_text("\n  \n", encoding="utf-8")
    files = ("--src", tmp_path / "blank", "--ref", tmp_path / "blank", "--out", tmp_path / "r.html")
    outcome = run_edgeseq("report", folder / "tiny.bundle", *files)
    assert outcome.code == 1
    assert "all 2 source sentences are blank; give text to report on" in outcome.stderr
    assert not (tmp_path / "r.html").exists()


def test_a_missing_folder_is_named_before_anything_is_decoded(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "none" / "r.html"
    outcome = report(folder, out=out)
    assert outcome.code == 1
    assert outcome.stderr == f"Error: cannot write {out}: its folder does not exist\n"
