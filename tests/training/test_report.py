"""Parts of the report: escaping, counts, settings, axes, the sample."""

import json
import re
from typing import Any

import numpy as np
import pytest

from edgeseq.evaluation.probing import Probe
from edgeseq.evaluation.report.charts import Axis, Point, Series, histogram, scatter, share_bars
from edgeseq.evaluation.report.dials import spread_settings
from edgeseq.evaluation.report.markup import Markup, element, join, table
from edgeseq.evaluation.report.sentences import choose_lines, tinted_text
from edgeseq.evaluation.report.tallies import count_by_position, count_by_probability, count_depths

ATTACK = "<script>alert('\"')</script>&"


def probe(depths: list[int], confidence: float | list[float] = 0.5, blocks: int = 3) -> Probe:
    tokens = len(depths)
    probabilities = np.full((tokens, blocks), np.nan, dtype=np.float32)
    probabilities[np.arange(tokens), np.array(depths, dtype=np.int64) - 1] = confidence
    return Probe(
        source=[5, 3] if depths else [],
        tokens=[4] * tokens,
        depths=np.array(depths, dtype=np.int64),
        choices=np.full((tokens, blocks), 4, dtype=np.int64),
        confidence=probabilities,
        signals={},
    )


def attributes(markup: str, name: str, within: str) -> list[str]:
    return re.findall(rf'<{within}[^>]* {name}="([^"]*)"', markup)


# Markup


def test_text_and_attributes_are_escaped() -> None:
    made = element("p", ATTACK, title=ATTACK)
    assert made.count("<") == 2
    assert made.count('"') == 3  # two around the attribute; one as text, where it does no harm
    assert element("b", element("i", "x")) == "<b><i>x</i></b>"


def test_control_markup_is_not_escaped_again() -> None:
    assert element("p", Markup(ATTACK)) == f"<p>{ATTACK}</p>"


def test_attributes_are_named_and_left_out() -> None:
    assert element("p", class_="a", aria_label="b", data_n=1, hidden=True, id=None, lang=False) == (
        '<p class="a" aria-label="b" data-n="1" hidden></p>'
    )
    assert element("br") == "<br>"
    assert join(["a", None, ["b", element("i", "<")]]) == "ab<i>&lt;</i>"


def test_a_table_names_its_rows_and_columns() -> None:
    with pytest.raises(ValueError, match=r"^caption: a row has 3 cells, expected 2, one per column$"):
        table("caption", ("a", "b"), [("x", "1"), ("y", "2", "3")])
    made = table("caption", ("a", "b"), [("x", "1"), ("y", "2")])
    assert made.count('<th scope="col">') == made.count('<th scope="row">') == 2
    assert "<caption>caption</caption>" in made


# Counts


def test_depths_are_counted_by_group() -> None:
    probes = [probe([1, 3, 3]), probe([]), probe([2, 3])]
    everything = count_depths(probes, 3)
    assert everything.counts.tolist() == [[1, 1, 3]]
    assert everything.shares == [[0.2, 0.2, 0.6]]
    assert everything.averages == [pytest.approx(2.4)]


def test_positions_that_few_sentences_reach_are_one_group() -> None:
    probes = [*[probe([1, 2]) for _ in range(30)], probe([1, 2, 3, 3, 3])]
    tally = count_by_position(probes, 3)
    assert tally.labels == ["1", "2", "3+"]
    assert tally.names[2] == "position 3+"
    assert tally.counts.tolist() == [[31, 0, 0], [0, 31, 0], [0, 0, 3]]
    assert sum(tally.tokens) == 65


def test_probabilities_fall_into_groups_of_equal_size() -> None:
    values = np.linspace(0.01, 0.99, 60)
    tally = count_by_probability([probe([1] * 30 + [3] * 30, values.tolist())], 3)
    assert tally.tokens == [10] * 6
    assert tally.averages == [1, 1, 1, 3, 3, 3]
    assert tally.labels[-1] == "1"
    limits = [float(label) for label in tally.labels]
    assert limits == sorted(limits)


def test_equal_probabilities_stay_together() -> None:
    tally = count_by_probability([probe([1, 2, 3, 3], 1.0)], 3)
    assert tally.tokens == [4]


# Settings


@pytest.mark.parametrize("reaches", [False, True])
def test_settings_divide_the_range_of_depth(reaches: bool) -> None:
    signals = np.random.default_rng(0).random((4000, 5)).astype(np.float32)
    settings = spread_settings(signals, 6, reaches=reaches)
    assert settings == sorted(settings)
    depths = []
    for setting in settings:
        stops = signals >= setting if reaches else signals > setting
        depths.append(float(np.where(stops.any(axis=1), stops.argmax(axis=1) + 1, 6).mean()))
    assert np.abs(np.array(depths) - np.linspace(1, 6, 7)[1:-1]).max() < 0.15


def test_a_signal_that_never_varies_has_few_settings() -> None:
    assert spread_settings(np.ones((10, 2), dtype=np.float32), 3, reaches=False) == []
    assert spread_settings(np.full((10, 2), 0.5, dtype=np.float32), 3, reaches=False) == [0.5]


# Charts


@pytest.mark.parametrize(
    ("values", "low", "ends"),
    [
        ([31.2, 36.9], None, (31, 37)),
        ([0.0, 61.9], 0, (0, 80)),
        ([5.0, 5.0], None, (5, 5)),
        ([0.001, 0.004], 0, (0, 0.004)),
    ],
)
def test_an_axis_holds_its_values_between_round_ends(
    values: list[float], low: float | None, ends: tuple[float, float]
) -> None:
    axis = Axis.around("t", values, low)
    assert (axis.low, axis.high) == pytest.approx(ends, abs=1e-6)
    assert axis.low <= min(values)
    assert axis.high >= max(values)
    assert 2 <= len(axis.ticks) <= 8
    assert all(0 <= axis.share(tick) <= 1 + 1e-9 for tick in axis.ticks)


def test_points_stand_where_their_numbers_say() -> None:
    axis = Axis("x", 0, 10, [0, 10])
    drawn = scatter("t", axis, Axis("y", 0, 100, [0, 100]), [Series("s", [Point(5, 25, "half", "named")])])
    assert attributes(drawn, "x", "use") == ["50.00%"]
    assert attributes(drawn, "y", "use") == ["195.0"]  # a quarter of 260 from below
    assert "<title>half</title>" in drawn
    assert ">named</text>" in drawn
    assert 'class="ring"' in drawn


def test_bars_are_as_high_as_their_shares() -> None:
    drawn = histogram("t", [0.1, 0.4, 0.5], "depth")
    heights = [float(height) for height in attributes(drawn, "height", "rect")]
    assert heights[1] / heights[0] == pytest.approx(4, rel=0.01)
    assert [f">{value}</text>" in drawn for value in ("10.0", "40.0", "50.0")] == [True] * 3
    stacked = share_bars("t", ["a"], [[0.25, 0.0, 0.75]], "x")
    assert [float(height) for height in attributes(stacked, "height", "rect")] == pytest.approx([48.8, 146.2], abs=0.1)


# The sample


def test_a_sample_holds_extremes_and_is_the_same_each_time() -> None:
    generator = np.random.default_rng(1)
    probes = [probe(generator.integers(1, 4, 6).tolist()) for _ in range(200)]
    probes[17], probes[120] = probe([1] * 6), probe([3] * 6)
    probes[3], probes[4] = probe([]), probe([3])  # blank, and too short to count as extreme
    chosen = choose_lines(probes, 20)
    assert chosen == choose_lines(probes, 20) == sorted(set(chosen))
    assert len(chosen) == 20
    assert {17, 120} < set(chosen)
    assert 3 not in choose_lines(probes, 199)
    assert choose_lines(probes, 0) == []
    assert choose_lines(probes, 500) == [index for index in range(200) if index != 3]
    assert choose_lines(probes, 20, seed=1) != chosen  # control: the rest is drawn


def test_tokens_carry_their_depth_for_eyes_and_ears() -> None:
    made = tinted_text(["▁Lei", "ter", "▁" + ATTACK, "</s>"], [2, 1, 3, 1], "line 1", 0)
    assert attributes(made, "data-depth", "span") == ["2", "1", "3", "1"]
    assert re.findall(r'class="token (tint-\d)', made) == ["tint-2", "tint-1", "tint-3", "tint-1"]
    assert attributes(made, "aria-label", "span")[0] == "Lei, depth 2"
    assert attributes(made, "tabindex", "span") == ["0", "-1", "-1", "-1"]
    assert "<script" not in made
    assert re.sub(r"<[^>]*>", "", made).startswith("Leiter &lt;script&gt;")


def test_json_of_records_cannot_end_its_block() -> None:
    from edgeseq.evaluation.report.page import _records
    from edgeseq.evaluation.report.sentences import SampledSentence

    record: list[Any] = [[[["</script><!--"], [0.5], {}]], {}]
    block = _records([SampledSentence(1, Markup(""), [record])])
    assert "<" not in block
    assert json.loads(block) == [record]
