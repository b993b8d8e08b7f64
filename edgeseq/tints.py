"""Colours that stand for depths, on pages and in terminals.

One ramp from yellow over green to blue: its lightness falls steadily, so that it can be told apart without seeing hues,
and printed in grey. On a dark page the ramp runs the other way: deep tokens stand out from either.
"""

from __future__ import annotations

from itertools import pairwise

_RAMP = ("#f7fcc9", "#d3eeb3", "#94d5b9", "#50bcc2", "#2896c0", "#2165ab", "#243a92", "#121f5e")  # after YlGnBu
_DARK_RAMP = _RAMP[-2::-1]  # less its darkest colour, which a dark page would swallow
_BLACK, _WHITE = "#000000", "#ffffff"
_CUBE = (0, 95, 135, 175, 215, 255)
_CUBE_START = 16
"""Of the 256 colours of terminals, 16 to 231 are a cube of six values of red, green and blue."""


def tint(depth: int, blocks: int, *, dark: bool = False) -> str:
    """Gives the colour of a depth.

    Args:
        depth: from 1 to `blocks`.
        blocks: full depth N.
        dark: whether it is for a dark page.

    Returns:
        ``#rrggbb``.
    """
    ramp = _DARK_RAMP if dark else _RAMP
    place = (len(ramp) - 1) * ((depth - 1) / (blocks - 1) if blocks > 1 else 0.0)
    index = min(int(place), len(ramp) - 2)
    pairs = zip(_channels(ramp[index]), _channels(ramp[index + 1]), strict=True)
    return "#" + "".join(f"{round(low + (place - index) * (high - low)):02x}" for low, high in pairs)


def ink(background: str) -> str:
    """Gives black or white, whichever reads better on a colour."""
    return max((_BLACK, _WHITE), key=lambda colour: contrast(colour, background))


def contrast(one: str, other: str) -> float:
    """Computes the contrast ratio of WCAG 2, from 1 to 21; text wants 4.5."""
    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


def luminance(colour: str) -> float:
    """Computes the relative luminance of WCAG 2, from 0 to 1."""
    linear = [
        value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4
        for value in (channel / 255 for channel in _channels(colour))
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def terminal_colour(colour: str) -> int:
    """Finds the nearest of a terminal's 256 colours, among those of its cube: 16 to 231."""
    red, green, blue = (
        min(range(len(_CUBE)), key=lambda level, channel=channel: abs(_CUBE[level] - channel))  # type: ignore[misc]
        for channel in _channels(colour)
    )
    return _CUBE_START + 36 * red + 6 * green + blue


def css_variables(blocks: int, *, dark: bool) -> str:
    """Declares ``--depth-n`` and ``--ink-n`` for all depths n, as the inside of a CSS rule."""
    colours = {depth: tint(depth, blocks, dark=dark) for depth in range(1, blocks + 1)}
    return "".join(f"--depth-{depth}:{colour};--ink-{depth}:{ink(colour)};" for depth, colour in colours.items())


def _channels(colour: str) -> tuple[int, int, int]:
    red, green, blue = (int(colour[start : start + 2], 16) for start in (1, 3, 5))
    return red, green, blue


assert all(luminance(lighter) > luminance(darker) for lighter, darker in pairwise(_RAMP)), "the ramp must fall"
