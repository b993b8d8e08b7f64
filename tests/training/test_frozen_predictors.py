"""Predictors of a frozen trunk: the cache of exit states, and what is fitted on it."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import edgeseq.training.exit_cache
from edgeseq.config import PredictorConfig
from edgeseq.data.batching import Batch, collate, plan_epoch
from edgeseq.data.corpus import ParallelCorpus
from edgeseq.models import Seq2Seq
from edgeseq.models.builder import build_predictor
from edgeseq.modules import DepthPredictor
from edgeseq.modules.predictors import mean_memory
from edgeseq.training.exit_cache import ExitCache, build_exit_cache
from edgeseq.training.frozen_predictors import fit_predictors
from edgeseq.training.predictor_loss import ExitObservations, PredictorLoss, observe_exits
from edgeseq_runtime.tokenizer import EOS_ID, PAD_ID, Tokenizer
from small_corpora import SENTENCES, corpus_of
from small_models import DECODER_KERNEL_SIZES, PREDICTORS, linear_units, small_config, small_model
from small_runs import encode

BLOCKS = len(DECODER_KERNEL_SIZES)
PRICES = [1.0, 2.0, 3.0, 4.0]
TOKENS, BATCH_TOKENS, SEED = 150, 60, 3


@pytest.fixture(scope="module")
def corpus(tokenizer: Tokenizer) -> ParallelCorpus:
    return encode(tokenizer, SENTENCES)


def make_model(tokenizer: Tokenizer, dropout: float = 0.5) -> Seq2Seq:
    """With dropout, and in training mode, as it leaves the trainer."""
    return small_model(tokenizer.vocab_size, predictors=PREDICTORS, dropout=dropout).float().train()


@pytest.fixture
def model(tokenizer: Tokenizer) -> Seq2Seq:
    return make_model(tokenizer)


def build(
    model: Seq2Seq,
    corpus: ParallelCorpus,
    folder: Path,
    *,
    tokens: int = TOKENS,
    batch_tokens: int = BATCH_TOKENS,
    seed: int = SEED,
    precision: torch.dtype = torch.float32,
) -> ExitCache:
    return build_exit_cache(
        model, corpus, folder, tokens=tokens, batch_tokens=batch_tokens, seed=seed, precision=precision
    )


def batches(corpus: ParallelCorpus) -> Iterator[Batch]:
    for indices in plan_epoch(corpus, BATCH_TOKENS, SEED, epoch=0):
        yield collate(corpus, indices)


# --- The cache


@torch.no_grad()
def test_the_cache_holds_what_the_model_without_dropout_says(
    model: Seq2Seq, corpus: ParallelCorpus, tmp_path: Path
) -> None:
    cache = build(model, corpus, tmp_path / "cache")
    assert model.training, "the mode was not restored"
    model.eval()
    for index, batch in zip(range(len(cache)), batches(corpus), strict=False):
        memory = model.encoder(batch.source, batch.padding_mask)
        states = model.decoder(batch.tokens, memory, batch.padding_mask)
        mean = mean_memory(memory, batch.padding_mask)
        found, expected = cache[index], observe_exits(model, states, mean, batch.labels)
        assert torch.equal(found.labels, batch.labels)
        assert torch.equal(found.choices, expected.choices)
        assert torch.allclose(found.likelihood, expected.likelihood, atol=1e-6)
        assert torch.allclose(found.mean_memory, mean, atol=1e-6)
        for one, other in zip(found.exit_states, states, strict=True):
            assert one.dtype == torch.float16
            assert torch.allclose(one.float(), other, rtol=2**-11, atol=1e-6)  # half precision has 11 bits
            assert not torch.equal(one.float(), other)
    # Control: with dropout the states are others.
    model.train()
    batch = next(batches(corpus))
    dropped = model(batch.source, batch.padding_mask, batch.tokens)[0]
    assert not torch.allclose(dropped, cache[0].exit_states[0].float(), atol=1e-2)


def test_the_cache_has_as_many_tokens_as_asked_for(model: Seq2Seq, corpus: ParallelCorpus, tmp_path: Path) -> None:
    """Whole batches of the first epoch's plan: the last one may go over it, and a corpus may end before."""
    for tokens in (1, TOKENS, 10**6):
        cache = build(model, corpus, tmp_path / f"cache{tokens}", tokens=tokens)
        kept = [int((cache[index].labels != PAD_ID).sum()) for index in range(len(cache))]
        assert sum(kept[:-1]) < tokens
        assert sum(kept) >= min(tokens, corpus.target_tokens)
    assert sum(kept) == corpus.target_tokens


def test_a_model_keeps_the_mode_that_it_had(model: Seq2Seq, corpus: ParallelCorpus, tmp_path: Path) -> None:
    build(model.eval(), corpus, tmp_path / "cache")
    assert not model.training


def test_states_under_autocast_are_near_the_exact_ones(
    tokenizer: Tokenizer, corpus: ParallelCorpus, tmp_path: Path
) -> None:
    model = make_model(tokenizer)
    exact, low = (
        build(model, corpus, tmp_path / str(precision), precision=precision)[0]
        for precision in (torch.float32, torch.bfloat16)
    )
    # In the folder of the other precision, it is made anew.
    again = build(model, corpus, tmp_path / str(torch.float32), precision=torch.bfloat16)[0]
    assert torch.equal(again.likelihood, low.likelihood)
    assert torch.equal(low.labels, exact.labels)
    assert low.mean_memory.dtype == low.likelihood.dtype == torch.float32
    assert torch.allclose(low.likelihood, exact.likelihood, atol=0.3)
    assert not torch.equal(low.likelihood, exact.likelihood)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def forbid_building(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> Iterator[Batch]:
        pytest.fail("the cache is built again")

    monkeypatch.setattr(edgeseq.training.exit_cache, "_batches", fail)


def test_a_cache_of_the_same_trunk_is_used_again(
    tokenizer: Tokenizer, corpus: ParallelCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever has become of the predictors."""
    built = build(make_model(tokenizer), corpus, tmp_path / "cache")
    before = contents(tmp_path / "cache")
    forbid_building(monkeypatch)
    model = make_model(tokenizer)
    with torch.no_grad():
        linear_units(model, "halting").weight.add_(1)
    for same in (model, small_model(tokenizer.vocab_size, predictors=(), dropout=0.1).float()):
        opened = build(same, corpus, tmp_path / "cache")
        assert len(opened) == len(built)
        assert torch.equal(opened[0].likelihood, built[0].likelihood)
    assert contents(tmp_path / "cache") == before


def move_the_trunk(model: Seq2Seq) -> None:
    with torch.no_grad():
        model.get_parameter("encoder.blocks.0.feed_forward.expand.weight")[0, 0] += 1e-3


CHANGES: dict[str, dict[str, int]] = {
    "trunk": {},
    "corpus": {},
    "tokens": {"tokens": 300},
    "batches": {"batch_tokens": 40},
    "seed": {"seed": 4},
}


@pytest.mark.parametrize("changed", CHANGES)
def test_a_cache_of_something_else_is_replaced(
    model: Seq2Seq, corpus: ParallelCorpus, tmp_path: Path, changed: str
) -> None:
    settings: dict[str, Any] = CHANGES[changed]
    build(model, corpus, tmp_path / "cache")
    before = contents(tmp_path / "cache")
    if changed == "trunk":
        move_the_trunk(model)
    elif changed == "corpus":
        corpus = corpus_of([(corpus.source[n].tolist(), corpus.target[n].tolist()) for n in range(50)])
    build(model, corpus, tmp_path / "cache", **settings)
    after = contents(tmp_path / "cache")
    assert after["fingerprint"] != before["fingerprint"]
    assert after.keys() != before.keys() or after["00000.safetensors"] != before["00000.safetensors"]
    build(model, corpus, tmp_path / "fresh", **settings)
    assert after == contents(tmp_path / "fresh")


def test_a_cache_that_was_not_finished_is_none(
    model: Seq2Seq, corpus: ParallelCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted while it is built, it leaves nothing, and the model in the mode that it had."""

    def interrupt(*arguments: object) -> Iterator[Batch]:
        yield next(batches(corpus))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(edgeseq.training.exit_cache, "_batches", interrupt)
        with pytest.raises(KeyboardInterrupt):
            build(model, corpus, tmp_path / "cache")
    assert list(tmp_path.iterdir()) == []
    assert model.training
    assert len(build(model, corpus, tmp_path / "cache")) > 1


# --- Fitting

LOSSES = {
    "halting": PredictorLoss("likelihood", "depth", 0.0, 0.05, PRICES),
    "shared": PredictorLoss("agreement", "gain", 0.0, 0.05, PRICES),
    "multinomial": PredictorLoss("correctness", "depth", 1.0, 0.05, PRICES),
    "sentence": PredictorLoss("likelihood", "depth", 0.0, 0.2, PRICES),
}
Fitted = dict[str, tuple[DepthPredictor, PredictorLoss]]


def untrained(names: Sequence[str]) -> Fitted:
    configs = {config.name: config for config in PREDICTORS}
    return {name: (build_predictor(small_config(), configs[name]), LOSSES[name]) for name in names}


def weights(fitted: Fitted) -> dict[str, Tensor]:
    return {
        name: torch.cat((p.get_parameter("weight").detach(), p.get_parameter("bias").detach()[:, None]), dim=1)
        for name, (p, _) in fitted.items()
    }


@pytest.fixture(scope="module")
def cache(tokenizer: Tokenizer, corpus: ParallelCorpus, tmp_path_factory: pytest.TempPathFactory) -> ExitCache:
    return build(make_model(tokenizer), corpus, tmp_path_factory.mktemp("exits") / "cache", tokens=500)


def test_each_predictor_ends_as_if_it_were_alone(cache: ExitCache) -> None:
    together = untrained(list(LOSSES))
    fit_predictors(cache, together, epochs=1, learning_rate=0.01, seed=5)
    for name in LOSSES:
        alone = untrained([name])
        fit_predictors(cache, alone, epochs=1, learning_rate=0.01, seed=5)
        assert torch.equal(weights(alone)[name], weights(together)[name])
        assert weights(alone)[name].any()
        other = untrained([name])  # control: another order of the batches
        fit_predictors(cache, other, epochs=1, learning_rate=0.01, seed=6)
        assert not torch.equal(weights(other)[name], weights(together)[name])


def fit_by_hand(cache: ExitCache, name: str, epochs: int, seed: int, rates: Sequence[float]) -> Tensor:
    """Adam, written out: β 0.9 and 0.999, at the given rates."""
    fitted = untrained([name])
    predictor, loss_of = fitted[name]
    order = torch.Generator().manual_seed(seed)
    batches = [index for _ in range(epochs) for index in torch.randperm(len(cache), generator=order).tolist()]
    moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in predictor.parameters()]
    for step, (index, rate) in enumerate(zip(batches, rates, strict=True), start=1):
        gradients = torch.autograd.grad(loss_of(predictor, cache[index])[0], list(predictor.parameters()))
        for parameter, gradient, (mean, square) in zip(predictor.parameters(), gradients, moments, strict=True):
            mean.mul_(0.9).add_(0.1 * gradient)
            square.mul_(0.999).add_(0.001 * gradient**2)
            update = (mean / (1 - 0.9**step)) / ((square / (1 - 0.999**step)).sqrt() + 1e-8)
            with torch.no_grad():
                parameter.sub_(rate * update)
    return weights(fitted)[name]


@pytest.mark.parametrize("name", ["halting", "sentence"])
def test_fitting_is_adam_along_half_a_cosine(cache: ExitCache, name: str) -> None:
    steps = 2 * len(cache)
    rates = [0.01 * (1 + float(torch.cos(torch.tensor(torch.pi * step / steps)))) / 2 for step in range(steps)]
    fitted = untrained([name])
    fit_predictors(cache, fitted, epochs=2, learning_rate=0.01, seed=5)
    found = weights(fitted)[name]
    assert torch.allclose(found, fit_by_hand(cache, name, 2, 5, rates), atol=1e-4)
    constant = fit_by_hand(cache, name, 2, 5, [0.01] * steps)  # control
    assert not torch.allclose(found, constant, atol=1e-3)


class Toy(ExitCache):
    """Batches in memory: tokens whose first exit state tells their depth, and sentences whose mean does."""

    def __init__(self, number: int) -> None:
        self.batches = [self._make(seed) for seed in range(number)]

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> ExitObservations:
        return self.batches[index]

    @staticmethod
    def _make(seed: int) -> ExitObservations:
        generator = torch.Generator().manual_seed(seed)
        depths = torch.randint(1, BLOCKS + 1, (16, 5), generator=generator)
        depths[:, 1:] = torch.where(torch.rand(16, 4, generator=generator) < 0.9, depths[:, :1], depths[:, 1:])
        blocks = torch.arange(1, BLOCKS + 1)
        right = blocks >= depths.unsqueeze(-1)  # from its depth on, a token is right
        signs = (2.0 * right - 1).unsqueeze(-1)  # (16, 5, N, 1)
        noise = 0.1 * torch.randn(16, 5, BLOCKS, 8, generator=generator)
        own = torch.nn.functional.one_hot(depths - 1, 8).float()
        states = torch.cat((signs, torch.zeros(16, 5, BLOCKS, 7)), dim=-1) + noise
        states[:, :, 0] += 2 * own.roll(2, dims=-1)
        mean = torch.nn.functional.one_hot(depths[:, 0] - 1, 8).float() + 0.1 * torch.randn(16, 8, generator=generator)
        labels = torch.full((16, 5), EOS_ID + 1)
        choices = torch.where(right, EOS_ID + 1, EOS_ID)
        likelihood = torch.where(right, -0.1, -3.0)
        return ExitObservations(list(states.half().unbind(2)), mean, likelihood, choices, labels)


@pytest.mark.parametrize(
    ("config", "least"),
    [
        (PredictorConfig(kind="halting", target="gain"), 0.95),
        (PredictorConfig(kind="halting", target="depth"), 0.95),
        (PredictorConfig(kind="halting", units="shared"), 0.95),
        (PredictorConfig(kind="multinomial"), 0.95),
        (PredictorConfig(kind="sequence"), 0.6),  # one depth for tokens that differ now and then
    ],
    ids=lambda value: f"{value.kind} {value.units} {value.target}" if isinstance(value, PredictorConfig) else "",
)
def test_what_can_be_told_apart_is_learnt(config: PredictorConfig, least: float) -> None:
    """The share of fresh tokens, or sentences, whose likeliest depth is the oracle's."""
    predictor = build_predictor(small_config(), config)
    loss_of = PredictorLoss("correctness", config.target, 0.0, 0.05, PRICES)
    toy, fresh = Toy(12), Toy(13)[12]
    assert share_right(predictor, fresh) < 0.5
    fit_predictors(toy, {config.name: (predictor, loss_of)}, epochs=15, learning_rate=0.1, seed=1)
    assert share_right(predictor, fresh) >= least


@torch.no_grad()
def share_right(predictor: DepthPredictor, observed: ExitObservations) -> float:
    log_q = predictor.log_distribution([state.float() for state in observed.exit_states], observed.mean_memory)
    wanted = (observed.choices == observed.labels.unsqueeze(-1)).int().argmax(-1)
    if log_q.shape[1] == 1:
        wanted = wanted[:, :1]  # what the mean tells
    return float((log_q.argmax(-1) == wanted).float().mean())
