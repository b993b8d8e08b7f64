"""Predictors of every kind × kinds of blocks × greedy and beam search, from one training each, against torch.

The bundle's free-running decodes may part from the oracle's at a tie, and nowhere else; led along the oracle's tokens
and depths, both sides decide alike. See `torch_oracle`.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from deciding import DECIDING, FIXED, PER_SENTENCE, deciding_policies, shifted
from edgeseq.models import Seq2Seq
from edgeseq.models.reference import reference_beam_search, reference_decode
from edgeseq.training.run import load_run
from edgeseq_runtime import BeamOptions, Translation, Translator
from edgeseq_runtime.engine import Engine
from edgeseq_runtime.policy_names import parse_policy
from edgeseq_runtime.predictors import Predictor
from edgeseq_runtime.state import BlockState
from edgeseq_runtime.tokenizer import EOS_ID
from linear import linear
from torch_oracle import TIE_MARGIN, Count, Decoded, TorchPolicy, compare_forced, force_torch

MAX_LENGTH = 14
SENTENCES = 20
MAX_TIE_SHARE = 0.001
MAX_TIES = 3  # in a few hundred decisions, where one is more than the share already
BEAMS = [BeamOptions(size=4, n_best=4), BeamOptions(size=3, length_penalty=0.6, min_length=5, no_repeat_ngram=2)]
BEAM_SENTENCES = 5
# A beam whose continuations tie in float32 may keep another one, and end elsewhere: one sentence, at most.
MAX_PARTED = 1

CHOOSING = ("multinomial at once", "by-sentence at once")
NAMES = [*FIXED, *DECIDING, *CHOOSING]
"""Policies of every kind, and each predictor of the shared run; see `deciding`."""


@dataclass(frozen=True, eq=False)
class Both:
    """The two sides of a comparison, and what they translate."""

    model: Seq2Seq
    translator: Translator
    engine: Engine
    text: list[str]
    policies: dict[str, str]

    @property
    def sources(self) -> list[list[int]]:
        return [[*self.translator.bundle.tokenizer.encode(line), EOS_ID] for line in self.text]

    def pieces(self, tokens: list[int]) -> list[str]:
        return self.translator.bundle.tokenizer.pieces(tokens)


@pytest.fixture(scope="module")
def both(every_kind: tuple[Path, Path], sentences: list[str]) -> Both:
    run, bundle = every_kind
    translator = Translator(bundle, device="cpu")
    engine = Engine(bundle, translator.manifest.model, device="cpu")
    text = [line for line in sentences if line][:SENTENCES]
    return Both(load_run(run)[2], translator, engine, text, deciding_policies(translator, text))


# --- Greedy


@cache
def decode_with_torch(both: Both, policy: str) -> list[Decoded]:
    rule = TorchPolicy(both.model, policy).rule
    return reference_decode(both.model, both.sources, rule, [MAX_LENGTH] * len(both.text))


def margin_of_parting(both: Both, policy: str, row: int, found: Translation) -> float:
    """How sure torch was where the runtime first did something else; infinite where it did the same."""
    tokens, depths = decode_with_torch(both, policy)[row]
    expected = list(zip(both.pieces(tokens), depths, strict=True))
    different = [
        here != there for here, there in zip(expected, zip(found.tokens, found.depths, strict=True), strict=False)
    ]
    if True not in different:
        assert len(found.tokens) == len(tokens)
        return float("inf")
    forced = force_torch(both.model, TorchPolicy(both.model, policy), both.sources[row], (tokens, depths))
    position = different.index(True)
    same_depth = found.depths[position] == depths[position]
    return float((forced.token_margins if same_depth else forced.depth_margins)[position])


@pytest.mark.parametrize("name", NAMES)
def test_greedy_decodes_part_from_the_oracle_at_ties_only(name: str, both: Both) -> None:
    policy = both.policies[name]
    found = both.translator.translate(both.text, depth=policy, max_length=MAX_LENGTH)
    margins = [margin_of_parting(both, policy, row, translation) for row, translation in enumerate(found)]
    parted = [margin for margin in margins if margin < float("inf")]
    print(f"{policy}: {len(parted)} of {len(margins)} sentences part from torch, at margins {parted}")
    assert all(margin <= TIE_MARGIN for margin in parted)
    assert len(parted) <= MAX_PARTED


@pytest.mark.parametrize("name", DECIDING)
def test_policies_decide_something_here(name: str, both: Both) -> None:
    """Without this the comparisons would not say much."""
    policy = both.policies[name]
    decoded = decode_with_torch(both, policy)
    assert len({depth for _, depths in decoded for depth in depths}) > 1
    per_sentence = {len(set(depths)) for _, depths in decoded}
    assert (per_sentence == {1}) == (name in PER_SENTENCE)


def force(both: Both, policy: str, decoded: list[Decoded], predictors: dict[str, Predictor] | None = None) -> Count:
    bundle = both.translator.bundle
    parsed = parse_policy(policy, bundle.manifest, predictors or bundle.predictors)
    return compare_forced(both.model, both.engine, (TorchPolicy(both.model, policy), parsed), both.sources, decoded)


@pytest.mark.parametrize("name", NAMES)
def test_along_the_oracles_tokens_and_depths_all_decisions_agree(name: str, both: Both) -> None:
    policy = both.policies[name]
    count = force(both, policy, decode_with_torch(both, policy))
    print(f"{policy}: {count}")
    assert count.disagreements == 0
    assert count.ties <= max(MAX_TIES, MAX_TIE_SHARE * count.decisions)
    assert count.tokens == sum(len(tokens) for tokens, _ in decode_with_torch(both, policy))


@pytest.mark.parametrize("name", DECIDING)
def test_along_random_depths_all_decisions_agree(name: str, both: Both) -> None:
    """Paths that the policy would not take itself: every block is skipped and entered again."""
    policy = both.policies[name]
    generator = np.random.default_rng(4)
    decoded = [
        (tokens, generator.integers(1, len(both.model.decoder.blocks) + 1, len(tokens)).tolist())
        for tokens, _ in decode_with_torch(both, "full")
    ]
    count = force(both, policy, decoded)
    assert count.disagreements == 0
    assert count.ties <= max(MAX_TIES, MAX_TIE_SHARE * count.decisions)


@pytest.mark.parametrize("name", DECIDING)
def test_control_a_threshold_that_is_a_little_off_is_seen(name: str, both: Both) -> None:
    policy = both.policies[name]
    bundle = both.translator.bundle
    policies = TorchPolicy(both.model, policy), bundle.policy(shifted(policy))
    decoded = decode_with_torch(both, policy)
    assert compare_forced(both.model, both.engine, policies, both.sources, decoded).disagreements > 0


@pytest.mark.parametrize("name", ["halting", "common", "multinomial", "by-sentence"])
def test_control_a_predictor_that_is_a_little_off_is_seen(name: str, both: Both) -> None:
    policy = both.policies[name]
    right = linear(both.translator.bundle.predictors[name])
    bias = right.bias + np.linspace(1, -1, len(right.bias), dtype=np.float32)
    wrong = type(right)(right.weight, bias)
    predictors = {**both.translator.bundle.predictors, name: wrong}
    assert force(both, policy, decode_with_torch(both, policy), predictors).disagreements > 0


def test_control_a_free_run_of_another_policy_is_seen(both: Both) -> None:
    policy = both.policies["halting"]
    found = both.translator.translate(both.text, depth=shifted(policy), max_length=MAX_LENGTH)
    margins = [margin_of_parting(both, policy, row, translation) for row, translation in enumerate(found)]
    assert any(TIE_MARGIN < margin < float("inf") for margin in margins)


# --- Beams


def is_what_torch_makes_of_it(both: Both, policy: str, row: int, found: Translation, options: BeamOptions) -> bool:
    """Whether torch, led along a hypothesis, chooses its depths, but for ties, and gives it the same score."""
    tokenizer = both.translator.bundle.tokenizer
    ids = {piece: number for number, piece in enumerate(tokenizer.pieces(list(range(tokenizer.vocab_size))))}
    tokens = [ids[piece] for piece in found.tokens]
    forced = force_torch(both.model, TorchPolicy(both.model, policy), both.sources[row], (tokens, found.depths))
    same = forced.depths == torch.tensor(found.depths)
    total = sum(float(forced.log_probabilities[position, token]) for position, token in enumerate(tokens))
    score = total / len(tokens) ** options.length_penalty
    return bool((same | (forced.depth_margins <= TIE_MARGIN)).all()) and found.score == pytest.approx(score, abs=1e-4)


def beam_with_torch(both: Both, policy: str, options: BeamOptions, row: int) -> list[tuple[list[str], list[int]]]:
    rule = TorchPolicy(both.model, policy).rule
    found = reference_beam_search(both.model, both.sources[row], rule, MAX_LENGTH, options)
    return [(both.pieces(best.tokens), best.depths) for best in found]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("options", BEAMS, ids=str)
def test_beams_part_from_the_oracle_at_ties_only(name: str, options: BeamOptions, both: Both) -> None:
    policy = both.policies[name]
    text = both.text[:BEAM_SENTENCES]
    found = both.translator.translate(text, depth=policy, max_length=MAX_LENGTH, beam=options)
    parted = 0
    for row, translation in enumerate(found):
        hypotheses = [translation, *translation.alternatives]
        assert all(is_what_torch_makes_of_it(both, policy, row, each, options) for each in hypotheses)
        parted += [(each.tokens, each.depths) for each in hypotheses] != beam_with_torch(both, policy, options, row)
    print(f"{policy}, beam {options}: {parted} of {len(text)} sentences part from torch")
    assert parted <= MAX_PARTED


@pytest.mark.parametrize("name", ["halting", "multinomial", "confidence"])
def test_control_a_beam_of_another_policy_is_seen(name: str, both: Both) -> None:
    """Its hypotheses are other ones, or went to depths that torch is sure not to choose."""
    policy, other = both.policies[name], shifted(both.policies[name])
    text = both.text[:BEAM_SENTENCES]
    found = both.translator.translate(text, depth=other, max_length=MAX_LENGTH, beam=BEAMS[0])
    assert not all(is_what_torch_makes_of_it(both, policy, row, each, BEAMS[0]) for row, each in enumerate(found))


def test_control_columns_that_stay_behind_are_seen(both: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hypotheses change places, and their columns do not come along."""
    monkeypatch.setattr(BlockState, "overwrite", lambda *_: None)
    text = both.text[:BEAM_SENTENCES]
    found = both.translator.translate(text, depth="full", max_length=MAX_LENGTH, beam=BEAMS[0])
    assert not all(is_what_torch_makes_of_it(both, "full", row, each, BEAMS[0]) for row, each in enumerate(found))


# --- One bundle, many policies


Call = tuple[str, int]
"""Name of a depth policy and size of the beam."""
CALLS: list[Call] = [(name, size) for name in NAMES for size in (1, 3)]


def call(both: Both, name: str, size: int) -> list[Translation]:
    depth = both.policies[name]
    return both.translator.translate(both.text, depth=depth, beam=size, max_length=MAX_LENGTH, batch_size=5)


@pytest.fixture(scope="module")
def alone(both: Both) -> dict[Call, list[Translation]]:
    """What a Translator made for one policy gives."""
    folder = both.translator.bundle.path
    return {
        (name, size): Translator(folder, depth=both.policies[name], device="cpu").translate(
            both.text, beam=size, max_length=MAX_LENGTH, batch_size=5
        )
        for name, size in CALLS
    }


def test_one_translator_takes_every_policy_call_by_call(both: Both, alone: dict[Call, list[Translation]]) -> None:
    """In any order: no call leaves anything behind for the next."""
    order = np.random.default_rng(8).permutation(len(CALLS)).tolist()
    for name, size in [*CALLS, *(CALLS[number] for number in order)]:
        assert call(both, name, size) == alone[name, size], (name, size)
    # Control: the policies differ in what they give.
    assert len({str([t.depths for t in results]) for results in alone.values()}) > len(DECIDING)


def test_threads_take_a_translator_to_different_depths(both: Both, alone: dict[Call, list[Translation]]) -> None:
    found: dict[Call, list[Translation]] = {}
    threads = 4
    together = threading.Barrier(threads)

    def work(first: int) -> None:
        together.wait()
        for name, size in CALLS[first::threads]:
            found[name, size] = call(both, name, size)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert found == alone


def test_a_stream_takes_any_policy(both: Both) -> None:
    for depth in both.policies.values():
        pieces = both.translator.stream(both.text[0], depth=depth, max_length=MAX_LENGTH)
        assert "".join(pieces) == both.translator.translate(both.text[0], depth=depth, max_length=MAX_LENGTH).text
