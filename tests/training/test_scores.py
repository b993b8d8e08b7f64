"""Scores: corpus BLEU from counts per sentence, and the test against the line between two fixed depths."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from edgeseq.evaluation.scores import Sample, compare_with_line, score_corpus
from small_corpora import SENTENCES

# Sentences of seven words, so that 4-grams survive a spoilt word.
REFERENCES = [f"{SENTENCES[i]} und {SENTENCES[(7 * i + 3) % 60].split()[1]}" for i in range(60)] * 4
EVERYTHING = np.arange(len(REFERENCES))


def spoil(reference: str, words: int) -> str:
    """Replaces the last words, as a worse model would get them wrong."""
    kept = reference.split()
    return " ".join([*kept[: len(kept) - words], *["falsch"] * words])


def collect(outputs: Sequence[str], depths: Sequence[Sequence[int]]) -> Sample:
    return Sample.collect(outputs, REFERENCES, depths)


def lengths() -> list[int]:
    return [len(reference.split()) + 1 for reference in REFERENCES]


def fixed_depth(depth: int) -> Sample:
    """Depth 1 gets two words of every second sentence wrong, 2 one of every second, 3 one of every tenth."""
    outputs = [
        spoil(reference, {1: 2 * (i % 2), 2: i % 2, 3: int(i % 10 == 1)}[depth])
        for i, reference in enumerate(REFERENCES)
    ]
    return collect(outputs, [[depth] * length for length in lengths()])


FIXED = {depth: fixed_depth(depth) for depth in (1, 2, 3)}


# --- Corpus scores

words = st.lists(st.sampled_from(["der", "hund", "sieht", "den", "ball", ".", "Ball"]), max_size=9).map(" ".join)


@given(st.lists(st.tuples(words, words), min_size=1, max_size=8))
def test_bleu_from_counts_is_sacrebleus_corpus_score(pairs: list[tuple[str, str]]) -> None:
    outputs, references = ([pair[side] for pair in pairs] for side in (0, 1))
    sample = Sample.collect(outputs, references, [[1]] * len(pairs))
    expected = BLEU().corpus_score(outputs, [references]).score
    assert sample.bleu(np.arange(len(pairs))) == pytest.approx(expected, abs=1e-9)


def test_bleu_of_a_selection_counts_repeats() -> None:
    outputs = [spoil(reference, i % 3) for i, reference in enumerate(REFERENCES[:9])]
    sample = Sample.collect(outputs, REFERENCES[:9], [[1]] * 9)
    chosen = [0, 0, 5, 7, 7, 7, 2]
    expected = BLEU().corpus_score([outputs[i] for i in chosen], [[REFERENCES[i] for i in chosen]]).score
    assert sample.bleu(np.array(chosen)) == pytest.approx(expected, abs=1e-9)
    assert sample.bleu(np.array(sorted(set(chosen)))) != pytest.approx(expected, abs=1e-3)  # control: repeats dropped


def test_bleu_is_not_the_mean_over_sentences() -> None:
    """Control: a mean of sentence scores is something else."""
    outputs = [REFERENCES[0], spoil(REFERENCES[1], 6), *REFERENCES[2:4]]
    sample = Sample.collect(outputs, REFERENCES[:4], [[1]] * 4)
    mean = np.mean([sample.bleu(np.array([i])) for i in range(4)])
    assert abs(float(mean) - sample.bleu(np.arange(4))) > 0.5


def test_average_depth_is_per_token_and_not_per_sentence() -> None:
    sample = Sample.collect(["a", "b"], ["a", "b"], [[1, 1, 1, 1], [5, 5]])
    assert sample.average_depth(np.array([0, 1])) == pytest.approx(14 / 6)
    assert sample.average_depth(np.array([1, 1])) == 5


def test_scores_come_with_their_signatures() -> None:
    outputs = [spoil(reference, 1) for reference in REFERENCES[:10]]
    scores = score_corpus(outputs, REFERENCES[:10])
    assert scores.bleu == BLEU().corpus_score(outputs, [REFERENCES[:10]]).score
    assert scores.chrf == CHRF().corpus_score(outputs, [REFERENCES[:10]]).score
    for part in ("nrefs:1", "case:mixed", "tok:13a", "version:"):
        assert part in scores.bleu_signature
    for part in ("nrefs:1", "nc:6", "nw:0", "version:"):
        assert part in scores.chrf_signature


# --- The line between fixed depths


def mixture(of_below: float, seed: int = 3) -> Sample:
    """Depth 2 for a share of sentences and depth 3 for the others, chosen without a look at them."""
    below = np.random.default_rng(seed).permutation(len(REFERENCES)) < of_below * len(REFERENCES)
    chosen = [FIXED[2] if is_below else FIXED[3] for is_below in below]
    return Sample(
        np.array([sample.bleu_counts[i] for i, sample in enumerate(chosen)]),
        np.array([sample.depth_sums[i] for i, sample in enumerate(chosen)]),
        np.array([sample.token_counts[i] for i, sample in enumerate(chosen)]),
    )


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_a_blind_mixture_of_two_depths_lies_on_the_line(share: float) -> None:
    assert FIXED[3].bleu(EVERYTHING) - FIXED[2].bleu(EVERYTHING) > 5, "the line must rise, or all is easy"
    test = compare_with_line(mixture(share), FIXED)
    assert test is not None
    assert test.average_depth == pytest.approx(3 - share, abs=0.02)
    assert test.low < 0 < test.high
    assert abs(test.gain) < 1


def test_a_policy_that_knows_where_depth_pays_lies_above_the_line() -> None:
    """It goes to depth 3 exactly where depth 2 is wrong."""
    needed = np.arange(len(REFERENCES)) % 2 == 1
    policy = Sample(
        np.where(needed[:, None], FIXED[3].bleu_counts, FIXED[2].bleu_counts),
        np.where(needed, FIXED[3].depth_sums, FIXED[2].depth_sums),
        FIXED[2].token_counts,
    )
    test = compare_with_line(policy, FIXED)
    assert test is not None
    assert 0 < test.low < test.gain < test.high
    line = FIXED[2].bleu(EVERYTHING) + (test.average_depth - 2) * (
        FIXED[3].bleu(EVERYTHING) - FIXED[2].bleu(EVERYTHING)
    )
    assert test.gain == pytest.approx(policy.bleu(EVERYTHING) - line)


def test_a_policy_that_goes_deep_where_it_does_not_pay_lies_below_the_line() -> None:
    needed = np.arange(len(REFERENCES)) % 2 == 1
    policy = Sample(
        np.where(needed[:, None], FIXED[2].bleu_counts, FIXED[3].bleu_counts),
        np.where(needed, FIXED[2].depth_sums, FIXED[3].depth_sums),
        FIXED[2].token_counts,
    )
    test = compare_with_line(policy, FIXED)
    assert test is not None
    assert test.low < test.gain < test.high < 0


def test_the_bootstrap_is_paired() -> None:
    """A policy that always outdoes the line by the same has a narrow interval, however much sentences differ."""
    test = compare_with_line(mixture(0.5), FIXED)
    assert test is not None
    generator = np.random.default_rng(0)
    draws = [generator.integers(len(EVERYTHING), size=(2, len(EVERYTHING))) for _ in range(300)]
    unpaired = [mixture(0.5).bleu(one) - FIXED[2].bleu(other) for one, other in draws]
    low, high = np.quantile(unpaired, (0.025, 0.975))
    assert test.high - test.low < 0.8 * (high - low)


def test_the_interval_follows_from_the_seed() -> None:
    policy = mixture(0.5)
    assert compare_with_line(policy, FIXED, seed=1) == compare_with_line(policy, FIXED, seed=1)
    one, other = compare_with_line(policy, FIXED, seed=1), compare_with_line(policy, FIXED, seed=2)
    assert one is not None
    assert other is not None
    assert one.gain == other.gain
    assert (one.low, one.high) != (other.low, other.high)
    assert one.low == pytest.approx(other.low, abs=0.5)


def test_at_a_whole_average_depth_the_line_is_that_depth() -> None:
    test = compare_with_line(FIXED[2], FIXED)
    assert test is not None
    assert (test.average_depth, test.gain, test.low, test.high) == (2, 0, 0, 0)


@pytest.mark.parametrize("known", [(), (2,), (3,), (1, 2)])
def test_without_both_neighbours_there_is_no_line(known: tuple[int, ...]) -> None:
    assert compare_with_line(mixture(0.5), {depth: FIXED[depth] for depth in known}) is None


def test_all_resamples_are_compared_with_one_line() -> None:
    """Every sentence at depth 1 or 3, on average a little above 2: some resamples lie below 2, and count as well."""
    deep = np.random.default_rng(3).permutation(len(REFERENCES)) < 0.52 * len(REFERENCES)
    policy = Sample(
        np.where(deep[:, None], FIXED[3].bleu_counts, FIXED[1].bleu_counts),
        np.where(deep, FIXED[3].depth_sums, FIXED[1].depth_sums),
        FIXED[1].token_counts,
    )
    some, everything = compare_with_line(policy, {n: FIXED[n] for n in (2, 3)}), compare_with_line(policy, FIXED)
    assert some is not None
    assert 2 < some.average_depth < 2.1
    assert some == everything
    assert some.low <= some.gain <= some.high
    # Control: there are such resamples.
    generator = np.random.default_rng(0)
    assert min(policy.average_depth(generator.choice(EVERYTHING, len(EVERYTHING))) for _ in range(100)) < 2


@pytest.mark.parametrize("blank", [1, 3])
def test_resamples_without_a_word_say_nothing_and_are_no_error(blank: int) -> None:
    references = [REFERENCES[0], *[""] * blank]
    fixed = {n: Sample.collect(references, references, [[n] * 7, *[[]] * blank]) for n in (2, 3)}
    policy = Sample.collect(references, references, [[2] * 3 + [3] * 4, *[[]] * blank])
    test = compare_with_line(policy, fixed)
    assert test is not None
    assert (test.gain, test.low, test.high) == (0, 0, 0)


def test_at_the_only_depth_that_is_known_the_line_is_that_depth() -> None:
    test = compare_with_line(FIXED[3], {3: FIXED[3]})
    assert test is not None
    assert (test.average_depth, test.gain, test.low, test.high) == (3, 0, 0, 0)
