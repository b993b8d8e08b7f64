"""HTML and SVG as strings that know whether they are markup: text is escaped unless it was made here."""

from __future__ import annotations

import html
from collections.abc import Iterable

_VOID = frozenset({"br", "input", "meta", "wbr"})


class Markup(str):
    """A string that is markup already."""

    __slots__ = ()


Child = str | Markup | Iterable["Child"] | None


def element(tag: str, *children: Child, **attributes: object) -> Markup:
    """Makes an element.

    Args:
        tag: its name.
        children: text, which is escaped; markup, which is not; or iterables of both. None is left out.
        attributes: by name, with ``_`` for ``-``, and ``class_`` for class. True gives the name alone; None and False
            leave it out.
    """
    given = "".join(_attribute(name.rstrip("_").replace("_", "-"), value) for name, value in attributes.items())
    return Markup(f"<{tag}{given}>" if tag in _VOID else f"<{tag}{given}>{join(children)}</{tag}>")


def join(children: Iterable[Child]) -> Markup:
    """Makes one piece of markup of several children."""
    parts = []
    for child in children:
        if child is None:
            continue
        if isinstance(child, Markup):
            parts.append(str(child))
        elif isinstance(child, str):
            parts.append(html.escape(child, quote=False))
        else:
            parts.append(str(join(child)))
    return Markup("".join(parts))


def table(caption: str, header: Iterable[Child], rows: Iterable[Iterable[Child]]) -> Markup:
    """Makes a table whose first column names its rows; it scrolls by itself where the page is narrow.

    Raises:
        ValueError: a row has more or fewer cells than the header.
    """
    names = list(header)
    head = element("tr", [element("th", cell, scope="col") for cell in names])
    body = []
    for row in rows:
        first, *others = row
        if len(others) + 1 != len(names):
            raise ValueError(f"{caption}: a row has {len(others) + 1} cells, expected {len(names)}, one per column")
        body.append(element("tr", element("th", first, scope="row"), [element("td", cell) for cell in others]))
    whole = element("table", element("caption", caption), element("thead", head), element("tbody", body))
    return element("div", whole, class_="scroll", tabindex=0, role="region", aria_label=caption)


def _attribute(name: str, value: object) -> str:
    if value is None or value is False:
        return ""
    return f" {name}" if value is True else f' {name}="{html.escape(str(value))}"'
