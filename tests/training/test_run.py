"""Whole runs from configuration to model file: all phases, interrupted anywhere, and every refusal."""

import logging
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import edgeseq.training.run
import edgeseq.training.trainer
from edgeseq.config import RunConfig, TrainingConfig
from edgeseq.config_files import load_resolved_config
from edgeseq.data.vocabulary import train_tokenizer
from edgeseq.errors import CheckpointError, ConfigError, DataError, DivergenceError, EdgeseqError
from edgeseq.training.checkpoints import model_tensors
from edgeseq.training.exit_cache import ExitCache
from edgeseq.training.objectives import AlignedExits, JointObjective, MixedExits
from edgeseq.training.run import load_run, train
from edgeseq_runtime.tokenizer import Tokenizer
from small_corpora import SENTENCES, VOCAB_SIZE, write_lines, write_texts

STACK = {"convolution_heads": 2, "feed_forward_dim": 8}
HALTING = {"kind": "halting", "target": "gain", "oracle": "likelihood"}
FROZEN: list[dict[str, Any]] = [
    {"name": "common", "kind": "halting", "units": "shared", "oracle": "likelihood"},
    {"kind": "multinomial", "oracle": "likelihood", "sigma": 1.0},
]
SENTENCE = {"name": "by-sentence", "kind": "sequence", "oracle": "likelihood", "depth_penalty": 0.2}


def make_config(folder: Path, **changes: Any) -> RunConfig:
    """A run over small texts: two short phases, then two predictors; changes are dotted keys with __ for dots."""
    table: dict[str, Any] = {
        "data": {**write_texts(folder), "vocab_size": VOCAB_SIZE},
        "model": {
            "dim": 8,
            "attention_heads": 2,
            "encoder": {**STACK, "kernel_sizes": [3]},
            "decoder": {**STACK, "kernel_sizes": [3, 4]},
        },
        "training": {
            "epochs": 1,
            "batch_tokens": 100,
            "precision": "float32",
            "device": "cpu",
            "valid_sentences": 1,
            "valid_depths": [1],
        },
        "joint": {"epochs": 1},
        "frozen": {"tokens": 300, "epochs": 2},
        "predictors": [HALTING, *FROZEN],
    }
    for key, value in changes.items():
        *parents, leaf = key.split("__")
        place = table
        for parent in parents:
            place = place[parent]
        place[leaf] = value
    return RunConfig.model_validate(table)


NO_PREDICTORS: dict[str, Any] = {"predictors": [], "joint": None}


def refusal(error_class: type[EdgeseqError], call: Callable[[], object]) -> str:
    with pytest.raises(error_class) as caught:
        call()
    return str(caught.value)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("finished")
    train(make_config(folder), folder / "run", resume=False)
    return folder / "run"


MOMENTS: dict[str, tuple[type, str]] = {
    "exits": (AlignedExits, "loss"),
    "joint": (JointObjective, "loss"),
    "frozen": (ExitCache, "__getitem__"),
}
"""Phase to what is called once in each of its steps."""


@pytest.fixture(autouse=True)
def ctrl_c_interrupts() -> Iterator[None]:
    """A shell has its background jobs ignore Ctrl-C, and Python leaves it so."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupt_at(monkeypatch: pytest.MonkeyPatch, kind: type, method: str, call: int) -> None:
    """Presses Ctrl-C during one call of a class's method."""
    original = getattr(kind, method)
    calls = 0

    def interrupting(self: Any, *arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            signal.raise_signal(signal.SIGINT)  # to this thread: one of torch could be asleep
        return original(self, *arguments)

    monkeypatch.setattr(kind, method, interrupting)


def test_a_run_leaves_what_export_needs(finished: Path) -> None:
    assert {"config.json", "tokenizer.model", "model.safetensors"} <= {path.name for path in finished.iterdir()}
    config, tokenizer, model = load_run(finished)
    assert config == make_config(finished.parent)
    assert tokenizer.vocab_size == VOCAB_SIZE
    assert not model.training
    assert list(model.predictors) == ["halting", "common", "multinomial"]
    for name in model.predictors:
        assert model.predictor(name).get_parameter("weight").any(), f"predictor {name} has learnt nothing"


def test_a_run_says_what_became_of_its_data(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = make_config(tmp_path, **NO_PREDICTORS, training__epochs=0.1, data__max_pieces=16)
    long = " ".join(SENTENCES[:4])
    write_lines(Path(config.data.src), [*SENTENCES, "", long])
    write_lines(Path(config.data.tgt), [*SENTENCES, "x", long])
    tokenizer = tmp_path / "given.model"
    tokenizer.write_bytes(train_tokenizer(iter(SENTENCES), VOCAB_SIZE))
    config = make_config_with_tokenizer(config, tokenizer)
    with caplog.at_level(logging.INFO, logger="edgeseq"):
        train(config, tmp_path / "run", resume=False)
    kept = re.search(r"train: (\d+) pairs kept, 1 empty and (\d+) overlong ones left out", caplog.text)
    assert kept is not None
    assert int(kept[1]) + int(kept[2]) == len(SENTENCES) + 1
    assert re.search(r"valid: \d pairs kept, 0 empty and \d overlong ones left out", caplog.text)
    assert f"{tmp_path / 'run'} is ready for `edgeseq export`" in caplog.text


def make_config_with_tokenizer(config: RunConfig, path: Path) -> RunConfig:
    return config.model_copy(update={"data": config.data.model_copy(update={"tokenizer": str(path)})})


def test_a_given_tokenizer_is_used_and_kept(tmp_path: Path, tokenizer: Tokenizer) -> None:
    given = tmp_path / "given.model"
    given.write_bytes(tokenizer.model_bytes)
    config = make_config_with_tokenizer(make_config(tmp_path, **NO_PREDICTORS, data__vocab_size=9000), given)
    train(config, tmp_path / "run", resume=False)
    assert (tmp_path / "run" / "tokenizer.model").read_bytes() == tokenizer.model_bytes


# --- Resumption


@pytest.mark.parametrize(
    "moments", [[("exits", 2)], [("joint", 3)], [("exits", 3), ("joint", 1)], [("frozen", 2)]], ids=str
)
def test_an_interrupted_run_ends_with_the_same_model_file(
    tmp_path: Path, finished: Path, monkeypatch: pytest.MonkeyPatch, moments: list[tuple[str, int]]
) -> None:
    config = make_config(tmp_path)
    for count, (phase, call) in enumerate(moments):
        with monkeypatch.context() as patch:
            interrupt_at(patch, *MOMENTS[phase], call)
            with pytest.raises(KeyboardInterrupt):
                train(config, tmp_path / "run", resume=count > 0)
        assert not (tmp_path / "run" / "model.safetensors").exists()
    train(config, tmp_path / "run", resume=True)
    whole, parts = ((run / "model.safetensors").read_bytes() for run in (finished, tmp_path / "run"))
    assert parts == whole


def test_another_seed_gives_another_model(tmp_path: Path, finished: Path) -> None:
    """Control of the test above."""
    train(make_config(tmp_path, training__seed=2), tmp_path / "run", resume=False)
    assert (tmp_path / "run" / "model.safetensors").read_bytes() != (finished / "model.safetensors").read_bytes()


def test_resuming_a_finished_run_changes_nothing(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (finished / "model.safetensors").read_bytes()
    forbid_training_of_the_trunk(monkeypatch)
    train(make_config(finished.parent), finished, resume=True)
    assert (finished / "model.safetensors").read_bytes() == before


def test_resuming_nothing_starts_a_run(tmp_path: Path, finished: Path) -> None:
    train(make_config(tmp_path), tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == (finished / "model.safetensors").read_bytes()


def forbid_training_of_the_trunk(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in (AlignedExits, MixedExits, JointObjective):
        monkeypatch.delattr(kind, "loss")


def tensors_of(run: Path) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model_tensors(load_run(run)[2]).items()}


def different(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> set[str]:
    return {name for name in one.keys() | other.keys() if not torch.equal(one.get(name, NONE), other.get(name, NONE))}


NONE = torch.zeros(0)


def test_predictors_can_be_added_to_a_finished_run(
    tmp_path: Path, finished: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """They and only they are trained; the trunk, and what was trained with it, stays as it is in bits."""
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    before = tensors_of(run)
    forbid_training_of_the_trunk(monkeypatch)
    cached = {path: path.stat().st_mtime_ns for path in (run / "exit_states").iterdir()}
    config = make_config(finished.parent, predictors=[HALTING, *FROZEN, SENTENCE], frozen__epochs=3)
    with caplog.at_level(logging.INFO, logger="edgeseq"):
        train(config, run, resume=True)
    after = tensors_of(run)
    frozen = {f"predictors.{name}.{kind}" for name in ("common", "multinomial") for kind in ("weight", "bias")}
    added = {"predictors.by-sentence.weight", "predictors.by-sentence.bias"}
    assert different(before, after) == frozen | added  # the old ones were trained for longer
    assert after["predictors.by-sentence.weight"].any()
    assert load_run(run)[0] == config
    assert {path: path.stat().st_mtime_ns for path in (run / "exit_states").iterdir()} == cached, "computed again"
    assert "predictor by-sentence: loss" in caplog.text
    assert "predictor halting" not in caplog.text


def test_a_resumed_run_never_pairs_a_configuration_with_other_weights(
    tmp_path: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted while a predictor is trained for another target, it has no model until it goes on."""
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    other = [HALTING, FROZEN[0], {**FROZEN[1], "sigma": 2.0}]
    config = make_config(finished.parent, predictors=other)
    with monkeypatch.context() as patch:
        interrupt_at(patch, *MOMENTS["frozen"], 1)
        with pytest.raises(KeyboardInterrupt):
            train(config, run, resume=True)
    assert refusal(CheckpointError, lambda: load_run(run)) == (
        f"there is no {run / 'model.safetensors'}, so this run is not finished: "
        f"`edgeseq train CONFIG --out {run} --resume` goes on with it"
    )
    train(config, run, resume=True)
    assert load_run(run)[0] == config


@pytest.mark.parametrize("resume", [False, True])
def test_a_finished_run_without_checkpoints_is_kept(tmp_path: Path, finished: Path, resume: bool) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    shutil.rmtree(run / "checkpoints")
    before = {name: (run / name).read_bytes() for name in ("config.json", "tokenizer.model", "model.safetensors")}
    config = make_config(tmp_path, **NO_PREDICTORS)
    assert refusal(ConfigError, lambda: train(config, run, resume=resume)) == (
        f"{run} holds a finished run whose checkpoints are gone, so there is nothing to resume; give another --out, "
        f"and training.start_from = '{run}' to begin with its weights"
    )
    assert {name: (run / name).read_bytes() for name in before} == before


def test_every_setting_of_training_is_known_to_resuming(tmp_path: Path) -> None:
    """A new one has to be sorted: it may not change, or not after its phase, or whenever."""
    module = edgeseq.training.run
    fixed = {"seed", "batch_tokens", "start_from"}
    free = {"average_checkpoints", "keep_checkpoints", "precision", "device", "threads"}
    free |= {"valid_interval", "valid_sentences", "valid_depths"}
    groups = [fixed, free, set(module._SCHEDULE), set(module._OBJECTIVE)]
    assert sorted(name for group in groups for name in group) == sorted(TrainingConfig.model_fields)
    config = make_config(tmp_path)
    for name in fixed:
        other = config.model_copy(update={"training": config.training.model_copy(update={name: "other"})})
        assert module._changes(config, other) == [f"training.{name}"]


def test_a_predictor_ends_the_same_whichever_others_are_trained(tmp_path: Path, finished: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    train(make_config(finished.parent, predictors=[HALTING, SENTENCE, FROZEN[1]]), run, resume=True)
    one, other = tensors_of(finished), tensors_of(run)
    assert torch.equal(one["predictors.multinomial.weight"], other["predictors.multinomial.weight"])
    assert not any(name.startswith("predictors.common") for name in other)
    # Control: with other settings it ends otherwise.
    train(make_config(finished.parent, predictors=[HALTING, {**FROZEN[1], "sigma": 0.0}]), run, resume=True)
    assert not torch.equal(tensors_of(run)["predictors.multinomial.weight"], one["predictors.multinomial.weight"])


def test_all_predictors_are_frozen_ones_without_a_joint_phase(tmp_path: Path, finished: Path) -> None:
    train(make_config(tmp_path, joint=None), tmp_path / "run", resume=False)
    frozen, joint = tensors_of(tmp_path / "run"), tensors_of(finished)
    assert frozen.keys() == joint.keys()
    name = "encoder.blocks.0.feed_forward.expand.weight"
    assert not torch.equal(joint[name], frozen[name])
    assert frozen["predictors.halting.weight"].any()


@pytest.mark.parametrize(
    "changes",
    [
        {"training__exits": "mixed", "training__paths": 2},
        {"training__exits": "all", "training__gradient_scaling": 0.5, "training__self_distillation": 0.3},
        {"training__exits": "last", "predictors": [], "joint": None},
        {"predictors": [SENTENCE]},
        {"predictors": [{**FROZEN[1], "oracle": "correctness"}], "training__precision": "bfloat16"},
    ],
    ids=str,
)
def test_every_kind_of_training_runs(tmp_path: Path, finished: Path, changes: dict[str, Any]) -> None:
    train(make_config(tmp_path, **changes), tmp_path / "run", resume=False)
    found, plain = tensors_of(tmp_path / "run"), tensors_of(finished)
    assert all(tensor.isfinite().all() for tensor in found.values())
    name = "encoder.blocks.0.feed_forward.expand.weight"
    assert not torch.equal(found[name], plain[name])


# --- Starting from another run


THREE_BLOCKS = {**STACK, "kernel_sizes": [3, 4, 5]}


def train_hardly_from(other: Path, folder: Path, **changes: Any) -> Path:
    """Trains two short phases at a rate that leaves the weights where they were; a decoder of one block more."""
    rates: dict[str, Any] = {"training__learning_rate": 1e-9, "joint__learning_rate": 1e-9}
    changes = {"model__decoder": THREE_BLOCKS, "predictors": [HALTING], **rates, **changes}
    train(make_config(folder, training__start_from=str(other), **changes), folder / "run", resume=False)
    return folder / "run"


def test_a_run_starts_with_the_weights_of_another_that_fit(
    tmp_path: Path, finished: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="edgeseq"):
        run = train_hardly_from(finished, tmp_path, training__seed=2)
    old, new = tensors_of(finished), tensors_of(run)
    kept = {name for name in old.keys() & new.keys() if old[name].shape == new[name].shape}
    assert {name for name in kept if not torch.allclose(old[name], new[name], atol=1e-6)} == set()
    halting = {f"predictors.halting.{kind}" for kind in ("weight", "bias")}  # a unit more
    assert new.keys() - kept == {name for name in new if name.startswith("decoder.blocks.2.")} | halting
    count = sum(new[name].numel() for name in kept)
    assert f"{count:,} of them start from {finished}; at random: decoder.blocks.*." in caplog.text
    assert (run / "tokenizer.model").read_bytes() == (finished / "tokenizer.model").read_bytes()


def test_without_it_weights_are_others(tmp_path: Path, finished: Path) -> None:
    """Control of the test above."""
    old = tensors_of(finished)["encoder.embedding.table.weight"]
    config = make_config(tmp_path, training__seed=2, training__learning_rate=1e-9, **NO_PREDICTORS)
    train(config, tmp_path / "run", resume=False)
    assert not torch.allclose(old, tensors_of(tmp_path / "run")["encoder.embedding.table.weight"], atol=1e-2)


def test_a_run_goes_on_when_what_it_started_from_is_gone(
    tmp_path: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint has all that was taken."""
    other = tmp_path / "other"
    shutil.copytree(finished, other)
    with monkeypatch.context() as patch:
        interrupt_at(patch, AlignedExits, "loss", 2)
        with pytest.raises(KeyboardInterrupt):
            train_hardly_from(other, tmp_path)
    shutil.rmtree(other)
    run = tmp_path / "run"
    train(load_resolved_config(run / "config.json"), run, resume=True)
    old, new = (tensors_of(folder)["encoder.embedding.table.weight"] for folder in (finished, run))
    assert torch.allclose(old, new, atol=1e-6)


def test_a_run_of_other_pieces_is_no_start(tmp_path: Path, finished: Path) -> None:
    other = tmp_path / "other.model"
    other.write_bytes(train_tokenizer(iter(SENTENCES[::2]), VOCAB_SIZE - 8))
    assert refusal(ConfigError, lambda: train_hardly_from(finished, tmp_path, data__tokenizer=str(other))) == (
        f"training.start_from = '{finished}' has another tokenizer than this run, so its embeddings would stand for "
        "other pieces; leave out data.tokenizer, and its own is taken"
    )


def test_a_run_of_another_dim_is_no_start(tmp_path: Path, finished: Path) -> None:
    assert refusal(ConfigError, lambda: train_hardly_from(finished, tmp_path, model__dim=16)) == (
        f"training.start_from = '{finished}' has dim = 8 and this model 16; set model.dim"
    )


@pytest.mark.parametrize("fault", ["no validation text", "another dim", "not finished"])
def test_faults_are_seen_before_the_training_text_is_read(tmp_path: Path, finished: Path, fault: str) -> None:
    start = tmp_path / "start"
    shutil.copytree(finished, start)
    changes: dict[str, Any] = {"training__start_from": str(start)}
    if fault == "no validation text":
        changes["data__valid_tgt"] = str(tmp_path / "none.de")
    elif fault == "another dim":
        changes["model__dim"] = 16
    else:
        (start / "model.safetensors").unlink()
    kind = {"no validation text": DataError, "another dim": ConfigError}.get(fault, CheckpointError)
    expected = {"no validation text": "none.de", "another dim": "set model.dim"}.get(fault, "is not finished")
    config = make_config(tmp_path, **NO_PREDICTORS, **changes)
    assert expected in refusal(kind, lambda: train(config, tmp_path / "run", resume=False))
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.json"]


# --- Refusals


def test_a_second_run_in_one_folder_needs_resume(finished: Path) -> None:
    assert refusal(ConfigError, lambda: train(make_config(finished.parent), finished, resume=False)) == (
        f"{finished} holds a run already; give --resume to continue it, or another --out"
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"model__norm": "post"},
        {"training__seed": 2, "training__batch_tokens": 50},
        {"data__vocab_size": 99},
        {"training__start_from": "another/run"},
        {"predictors": [{**HALTING, "sigma": 1.0}, *FROZEN]},
        {"predictors": FROZEN},
        {"joint": None},
    ],
    ids=str,
)
def test_resuming_with_what_a_run_cannot_go_on_with_is_refused(finished: Path, changes: dict[str, Any]) -> None:
    before = (finished / "config.json").read_bytes()
    config = make_config(finished.parent, **changes)
    joint = "the predictor that is trained with the trunk"
    names = {"model__norm": "model", "predictors": joint, "joint": joint}
    changed = ", ".join(names.get(key, key.replace("__", ".")) for key in changes)
    assert refusal(CheckpointError, lambda: train(config, finished, resume=True)) == (
        f"{finished / 'config.json'} has other values of {changed} than the configuration, and the run cannot go on "
        "with them; continue with the old ones, or start a new run with another --out"
    )
    assert (finished / "config.json").read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"training__epochs": 50, "joint__alpha": 3.0}, "training.epochs, joint.alpha"),
        ({"training__label_smoothing": 0.3, "training__exits": "all"}, "training.exits, training.label_smoothing"),
    ],
    ids=str,
)
def test_what_would_change_nothing_any_more_is_refused(finished: Path, changes: dict[str, Any], named: str) -> None:
    before = (finished / "config.json").read_bytes()
    config = make_config(finished.parent, **changes)
    message = refusal(CheckpointError, lambda: train(config, finished, resume=True))
    assert f"has other values of {named} than the configuration, and what they are for is done" in message
    assert message.endswith(f"with another --out and training.start_from = '{finished}'")
    assert (finished / "config.json").read_bytes() == before


def test_a_phase_that_goes_on_may_get_another_objective(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: of what is not done, anything may change that fits the weights."""
    with monkeypatch.context() as patch:
        interrupt_at(patch, *MOMENTS["joint"], 3)
        with pytest.raises(KeyboardInterrupt):
            train(make_config(tmp_path), tmp_path / "run", resume=False)
    train(make_config(tmp_path, training__label_smoothing=0.3, joint__alpha=2.0), tmp_path / "run", resume=True)
    assert load_run(tmp_path / "run")[0].training.label_smoothing == 0.3


def test_a_disk_that_was_full_at_the_first_checkpoint_loses_no_start(
    tmp_path: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder of checkpoints is there then, and empty."""

    def fail(*_: object, **__: object) -> None:
        (tmp_path / "run" / "checkpoints").mkdir()
        raise OSError("no space left on device")

    config = make_config(tmp_path, training__start_from=str(finished), **NO_PREDICTORS)
    with monkeypatch.context() as patch:
        patch.setattr(edgeseq.training.trainer, "save_checkpoint", fail)
        with pytest.raises(OSError, match="no space left"):
            train(config, tmp_path / "run", resume=False)
    train(config, tmp_path / "run", resume=True)
    train(config, tmp_path / "whole", resume=False)
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == (
        tmp_path / "whole" / "model.safetensors"
    ).read_bytes()


def test_before_a_checkpoint_the_tokenizer_may_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(edgeseq.training.trainer.Trainer, "run_phase", stop)
        with pytest.raises(KeyboardInterrupt):
            train(make_config(tmp_path), tmp_path / "run", resume=False)
    train(make_config(tmp_path, data__vocab_size=VOCAB_SIZE - 3, **NO_PREDICTORS), tmp_path / "run", resume=True)
    assert load_run(tmp_path / "run")[1].vocab_size == VOCAB_SIZE - 3


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "data" / ".train.0123456789ab.tmp").mkdir(parents=True)
    (run / ".exit_states.0123456789ab.tmp").mkdir()
    (run / ".config.json.0123456789ab.tmp").write_bytes(b"{")
    train(make_config(tmp_path, **NO_PREDICTORS), run, resume=False)
    assert list(run.rglob(".*.tmp")) == []


def test_what_a_living_process_writes_is_left_alone(tmp_path: Path, finished: Path) -> None:
    """Whoever calls a second time without --resume is refused, and nothing is put in order before that."""
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    (run / "checkpoints" / ".exits-00000008.0123456789ab.tmp").mkdir()
    refusal(ConfigError, lambda: train(make_config(finished.parent), run, resume=False))
    assert (run / "checkpoints" / ".exits-00000008.0123456789ab.tmp").exists()


def test_a_loss_that_is_no_number_ends_training(tmp_path: Path) -> None:
    config = make_config(tmp_path, **NO_PREDICTORS, training__learning_rate=1e30, training__warmup_steps=0)
    message = refusal(DivergenceError, lambda: train(config, tmp_path / "run", resume=False))
    assert message.startswith("training has diverged: by step ")
    assert "there is no checkpoint yet. Train again with a lower learning_rate" in message
    assert not (tmp_path / "run" / "model.safetensors").exists()
    assert list((tmp_path / "run").glob("checkpoints/*")) == []


def test_a_run_does_not_go_on_with_other_text(tmp_path: Path, finished: Path) -> None:
    """Which would be read from the middle. The same text under another name is the same."""
    before = (finished / "config.json").read_bytes()
    config = make_config(tmp_path)
    assert config.data.src != load_run(finished)[0].data.src
    train(config, finished, resume=True)
    source = Path(config.data.src)
    source.write_text(source.read_text().upper())
    (finished / "config.json").write_bytes(before)
    assert refusal(CheckpointError, lambda: train(config, finished, resume=True)) == (
        f"{source} and {config.data.tgt} are not the text that {finished} was begun with, or the tokenizer is not that "
        "one; continue with the old ones, or start a new run with another --out"
    )
    assert (finished / "config.json").read_bytes() == before


def test_a_start_that_failed_can_be_repeated(tmp_path: Path, finished: Path) -> None:
    config = make_config(tmp_path)
    target = Path(config.data.tgt)
    text = target.read_bytes()
    target.write_bytes(b"")
    with pytest.raises(DataError):
        train(config, tmp_path / "run", resume=False)
    target.write_bytes(text)
    train(config, tmp_path / "run", resume=False)
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == (finished / "model.safetensors").read_bytes()


def test_resuming_with_a_damaged_checkpoint_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config(tmp_path)
    with monkeypatch.context() as patch:
        interrupt_at(patch, AlignedExits, "loss", 2)
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path / "run", resume=False)
    path = tmp_path / "run" / "checkpoints" / "exits-00000002-interrupted" / "optimizer.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    text = refusal(CheckpointError, lambda: train(config, tmp_path / "run", resume=True))
    assert text.startswith(f"{path} is damaged (")


def test_a_gpu_asked_for_and_missing_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config = make_config(tmp_path, training__device="cuda")
    assert refusal(ConfigError, lambda: train(config, tmp_path / "run", resume=False)) == (
        "training.device is 'cuda', but torch finds no CUDA device here; use 'cpu' or 'auto'"
    )


def test_auto_takes_the_cpu_where_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert edgeseq.training.run._pick_device("auto") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert edgeseq.training.run._pick_device("auto") == torch.device("cuda")
    assert edgeseq.training.run._pick_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize(
    ("side", "content", "expected"),
    [
        ("src", b"a\n\xffb\n", "src.txt, line 2: not valid UTF-8 at byte 0 (invalid start byte); convert the file"),
        ("tgt", b"a\n", "tgt.txt has 1: line 2 has no counterpart; parallel files need the same number of lines"),
        ("tgt", b"", "tgt.txt is empty (0 lines), its counterpart has 52 lines"),
    ],
    ids=["UTF-8", "line counts", "empty"],
)
def test_bad_text_is_named_although_the_tokenizer_reads_it_first(
    tmp_path: Path, side: str, content: bytes, expected: str
) -> None:
    config = make_config(tmp_path)
    Path(getattr(config.data, side)).write_bytes(content)
    assert expected in refusal(DataError, lambda: train(config, tmp_path / "run", resume=False))


def test_a_vocabulary_too_large_for_the_text_is_named(tmp_path: Path) -> None:
    config = make_config(tmp_path, data__vocab_size=5000)
    text = refusal(DataError, lambda: train(config, tmp_path / "run", resume=False))
    assert text.startswith("cannot train a tokenizer of 5000 pieces: Vocabulary size too high")


# --- Loading


@pytest.mark.parametrize("name", ["config.json", "tokenizer.model", "model.safetensors"])
def test_a_run_with_a_file_missing_names_it(tmp_path: Path, finished: Path, name: str) -> None:
    for path in finished.iterdir():
        if path.is_file() and path.name != name:
            (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(Exception, match=re.escape(str(tmp_path / name))) as caught:
        load_run(tmp_path)
    assert caught.type.__name__ in {"ConfigError", "InputError", "CheckpointError"}
