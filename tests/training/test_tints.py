"""Tints of depths: told apart without seeing hues, with text that can be read on them."""

from itertools import pairwise

import pytest

from edgeseq.tints import contrast, css_variables, ink, luminance, terminal_colour, tint

LEVELS = (0, 95, 135, 175, 215, 255)


def tints(blocks: int, *, dark: bool = False) -> list[str]:
    return [tint(depth, blocks, dark=dark) for depth in range(1, blocks + 1)]


def falls(colours: list[str]) -> bool:
    return all(luminance(one) > luminance(other) for one, other in pairwise(colours))


def of_terminal(colour: int) -> str:
    red, green, blue = (LEVELS[(colour - 16) // size % 6] for size in (36, 6, 1))
    return f"#{red:02x}{green:02x}{blue:02x}"


@pytest.mark.parametrize("blocks", [2, 3, 6, 12, 40])
def test_deeper_is_darker_on_a_light_page_and_lighter_on_a_dark_one(blocks: int) -> None:
    assert falls(tints(blocks))
    assert falls(tints(blocks, dark=True)[::-1])


def test_control_a_rainbow_does_not_fall() -> None:
    assert not falls(["#ff0000", "#ffff00", "#00ff00", "#0000ff"])


@pytest.mark.parametrize("blocks", range(1, 25))
@pytest.mark.parametrize("dark", [False, True])
def test_text_reads_on_every_tint(blocks: int, dark: bool) -> None:
    assert all(contrast(ink(colour), colour) >= 4.5 for colour in tints(blocks, dark=dark))


def test_control_one_ink_for_all_would_not_read() -> None:
    for fixed in ("#000000", "#ffffff"):
        assert min(contrast(fixed, colour) for colour in tints(6)) < 4.5


@pytest.mark.parametrize("blocks", range(2, 9))
def test_a_terminal_shows_as_many_colours_that_read_and_fall(blocks: int) -> None:
    shown = [of_terminal(terminal_colour(colour)) for colour in tints(blocks)]
    assert falls(shown)
    assert all(contrast(ink(colour), seen) >= 4 for colour, seen in zip(tints(blocks), shown, strict=True))


def test_terminal_colours_are_the_nearest_of_the_cube() -> None:
    assert [terminal_colour(colour) for colour in ("#000000", "#ffffff", "#5f87af")] == [16, 231, 67]
    assert of_terminal(67) == "#5f87af"


def test_contrast_is_that_of_wcag() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


def test_style_declares_a_tint_and_an_ink_for_each_depth() -> None:
    declared = css_variables(3, dark=False)
    assert declared.count("--depth-") == declared.count("--ink-") == 3
    assert f"--depth-2:{tint(2, 3)};--ink-2:{ink(tint(2, 3))};" in declared
