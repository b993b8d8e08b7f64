"""Probes: what each exit and each predictor would have said along a decode at full depth."""

import numpy as np
import pytest
import torch

from edgeseq.evaluation.probing import NOT_RUN, Probe, probe_texts
from edgeseq_runtime import Translator
from edgeseq_runtime.predictors import CertaintyUnits, DepthClassifier, HaltingUnits
from edgeseq_runtime.tokenizer import BOS_ID, PAD_ID
from tiny_bundle import tiny_model, tiny_sentences, write_tiny_bundle

TEXTS = [*tiny_sentences(40, seed=3), "", "  "]
BLOCKS = 4


@pytest.fixture(scope="module")
def translator(tmp_path_factory: pytest.TempPathFactory) -> Translator:
    return Translator(write_tiny_bundle(tmp_path_factory.mktemp("probing") / "tiny.bundle"), device="cpu")


@pytest.fixture(scope="module")
def probes(translator: Translator) -> list[Probe]:
    return probe_texts(translator.bundle, translator.engine, TEXTS, batch_size=8)


@torch.no_grad()
def ask_torch(probe: Probe) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits of each exit (T, N, V), exit states (T, N, d) and memory (S, d), of the torch model at full depth."""
    model = tiny_model()
    memory = model.encoder(torch.tensor([probe.source]), None)
    fed = torch.tensor([[BOS_ID, *probe.tokens[:-1]]])
    states = model.decoder(fed, memory, None)
    logits = [model.decoder.exit_heads(state, block) for block, state in enumerate(states, start=1)]
    return torch.stack(logits, dim=2)[0], torch.stack(states, dim=2)[0], memory[0]


def test_tokens_are_those_of_full_depth(translator: Translator, probes: list[Probe]) -> None:
    tokenizer = translator.bundle.tokenizer
    for text, probe in zip(TEXTS, probes, strict=True):
        expected = translator.translate(text, depth="full")
        assert tokenizer.pieces(probe.tokens) == expected.tokens
        assert probe.choices[:, -1].tolist() == probe.tokens
        assert len(probe.source) == expected.source_pieces
    lengths = {len(probe.tokens) for probe in probes}
    assert len(lengths) > 4, "sentences must end one before another, or rows never change places"


def test_choices_and_confidence_are_those_of_each_exit(probes: list[Probe]) -> None:
    """Along the same tokens, torch's exits say the same."""
    others = 0
    for probe in probes[:20]:
        logits = ask_torch(probe)[0].double()
        probabilities = logits.softmax(-1)
        np.testing.assert_allclose(probe.confidence[:, :-1], probabilities[:, :-1].amax(-1).numpy(), atol=1e-5)
        chosen = probabilities[range(len(probe.tokens)), -1, probe.tokens]
        np.testing.assert_allclose(probe.confidence[:, -1], chosen.numpy(), atol=1e-5)
        logits[..., [PAD_ID, BOS_ID]] = -torch.inf
        best = logits.topk(2).values
        clear = (best[..., 0] - best[..., 1] > 1e-4).numpy()
        assert clear.mean() > 0.95
        assert (probe.choices == logits.argmax(-1).numpy())[clear].all()
        others += int((probe.choices != probe.choices[:, -1:]).sum())
    assert others, "exits that all agree tell nothing apart"


def test_signals_are_those_of_each_predictor(translator: Translator, probes: list[Probe]) -> None:
    predictors = translator.bundle.predictors
    for probe in probes[:20]:
        exit_logits, states, memory = (tensor.numpy() for tensor in ask_torch(probe))
        units = predictors["halting"]
        assert isinstance(units, HaltingUnits)
        chi = 1 / (1 + np.exp(-((states[:, :-1] * units.weight).sum(-1) + units.bias)))
        np.testing.assert_allclose(probe.signals["halting"], chi, atol=1e-5)
        units = predictors["certainty"]
        assert isinstance(units, CertaintyUnits)
        for block in range(1, BLOCKS):
            chi = units.probabilities(block, exit_logits[:, block - 1])
            np.testing.assert_allclose(probe.signals["certainty"][:, block - 1], chi, atol=1e-4)
        for name, read in (("multinomial", states[:, 0]), ("by-sentence", memory.mean(0))):
            classifier = predictors[name]
            assert isinstance(classifier, DepthClassifier)
            logits = read @ classifier.weight.T + classifier.bias
            expected = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
            np.testing.assert_allclose(probe.signals[name], expected, atol=1e-5)


def test_a_probe_does_not_depend_on_the_other_texts(translator: Translator, probes: list[Probe]) -> None:
    for index in (0, 7, 23):
        single = probe_texts(translator.bundle, translator.engine, TEXTS[index : index + 1])[0]
        assert equal(single, probes[index])
    assert not equal(probes[0], probes[7])  # control: rows of another text would be seen


def equal(one: Probe, other: Probe) -> bool:
    """Whether two probes hold the same bits."""
    signals = all(np.array_equal(one.signals[name], other.signals[name]) for name in one.signals)
    same = np.array_equal(one.choices, other.choices) and np.array_equal(one.confidence, other.confidence)
    return one.tokens == other.tokens and same and signals


@pytest.mark.parametrize("name", ["halting", "certainty", "confidence", "multinomial", "by-sentence"])
def test_policies_choose_the_first_depth_by_these_signals(
    name: str, translator: Translator, probes: list[Probe]
) -> None:
    """Before the first token nothing has been skipped, so a decode with the policy sees what the probe saw."""
    texts = len(TEXTS) - 2
    by_name = {
        "halting": lambda probe: probe.signals["halting"][0],
        "certainty": lambda probe: probe.signals["certainty"][0],
        "confidence": lambda probe: probe.confidence[0, :-1],
        "multinomial": lambda probe: probe.signals["multinomial"][0].cumsum()[:-1],
        "by-sentence": lambda probe: probe.signals["by-sentence"].cumsum()[:-1],
    }
    signals = np.stack([by_name[name](probe) for probe in probes[:texts]])
    spread = int(np.ptp(signals, axis=0).argmax())
    threshold = float(np.median(signals[:, spread]))  # of an even number of texts: between two values
    stops = signals > threshold
    policy = f"{name}:{threshold:.9f}"
    if name not in {"multinomial", "by-sentence"}:  # asked after this block and no other
        stops[:, np.arange(BLOCKS - 1) != spread] = False
        policy += f"@{spread + 1}"
    expected = np.where(stops.any(axis=1), stops.argmax(axis=1), BLOCKS - 1) + 1
    results = translator.translate(TEXTS[:texts], depth=policy)
    assert [result.depths[0] for result in results] == expected.tolist()
    assert len(set(expected.tolist())) > 1, "a policy that always chooses the same shows nothing"


@pytest.mark.parametrize("name", ["2", "halting:0.5", "confidence:0.3", "multinomial", "by-sentence:0.9"])
def test_a_policy_is_followed_and_what_did_not_run_is_not_known(name: str, translator: Translator) -> None:
    policy = translator.bundle.policy(name)
    found = probe_texts(translator.bundle, translator.engine, TEXTS, 8, policy)
    for probe, expected in zip(found, translator.translate(TEXTS, depth=name, scores=True), strict=True):
        assert translator.bundle.tokenizer.pieces(probe.tokens) == expected.tokens
        assert probe.depths.tolist() == expected.depths
        ran = np.arange(1, BLOCKS + 1) <= probe.depths[:, None]
        assert ((probe.choices != NOT_RUN) == ran).all()
        assert (np.isnan(probe.confidence) == ~ran).all()
        assert (np.isnan(probe.signals["halting"]) == ~ran[:, :-1]).all()
        last = np.arange(len(probe.tokens)), probe.depths - 1
        assert probe.choices[last].tolist() == probe.tokens
        np.testing.assert_allclose(probe.confidence[last], np.exp(expected.token_scores or []), atol=1e-5)
        if name.startswith("halting"):
            chi = probe.signals["halting"]
            stopped = probe.depths < BLOCKS
            assert (chi[stopped, probe.depths[stopped] - 1] > 0.5).all()
    used = {depth for probe in found for depth in probe.depths.tolist()}
    assert used == {2} if name == "2" else len(used) > 1


def test_blank_text_generates_nothing(probes: list[Probe]) -> None:
    for probe in probes[-2:]:
        assert (probe.source, probe.tokens) == ([], [])
        assert probe.choices.shape == probe.confidence.shape == (0, BLOCKS)
        shapes = {name: signal.shape for name, signal in probe.signals.items()}
        assert shapes == {
            "halting": (0, 3),
            "shared": (0, 3),
            "certainty": (0, 3),
            "multinomial": (0, BLOCKS),
            "by-sentence": (BLOCKS,),
        }
