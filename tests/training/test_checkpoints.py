"""Checkpoints: everything comes back in bits, damage and misfits are named, a kill while writing loses nothing."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

import edgeseq.training.checkpoints
from edgeseq.errors import CheckpointError
from edgeseq.models import Seq2Seq
from edgeseq.training.checkpoints import (
    Progress,
    average_checkpoints,
    list_checkpoints,
    load_checkpoint,
    load_model,
    model_tensors,
    save_checkpoint,
    save_model,
)
from edgeseq_runtime.atomic import write_file
from ramp import fill_with_ramp, ramp
from small_models import small_model


def make_model() -> Seq2Seq:
    return small_model().float()


def make_optimizer(model: nn.Module) -> torch.optim.AdamW:
    return torch.optim.AdamW(model.parameters(), lr=0.01, fused=True)


def take_step(model: Seq2Seq, optimizer: torch.optim.Optimizer) -> None:
    """One step on a fixed batch, with a random mask, so that the random state matters."""
    tokens = torch.tensor([[2, 5, 6, 7]])
    states = model(tokens, None, tokens)
    noise = torch.rand(states[-1].shape)
    (states[-1] * noise).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def same_tensors(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(model_tensors(one).items(), model_tensors(other).items(), strict=True)
    return all(name == other_name and torch.equal(a, b) for (name, a), (other_name, b) in pairs)


def message(call: Callable[[], object]) -> str:
    with pytest.raises(CheckpointError) as caught:
        call()
    return str(caught.value)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A checkpoint after two steps."""
    model = make_model()
    optimizer = make_optimizer(model)
    torch.manual_seed(5)
    for _ in range(2):
        take_step(model, optimizer)
    save_checkpoint(tmp_path, model, optimizer, Progress("aligned", step=2, best_loss=1.5), keep=3)
    return tmp_path / "aligned-00000002"


# --- Exactness


def continue_from(saved: Path, *, forget: str = "") -> Seq2Seq:
    """Loads into new objects and takes two more steps; `forget` drops one part of the checkpoint."""
    model = fill_with_ramp(make_model())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)  # nothing may remain of what it was
    optimizer = make_optimizer(model)
    torch.manual_seed(99)
    before = torch.get_rng_state()
    assert load_checkpoint(saved, model, optimizer) == Progress("aligned", step=2, best_loss=1.5)
    if forget == "moments":
        optimizer.state.clear()
    elif forget == "step count":
        for state in optimizer.state.values():
            state["step"].zero_()
    elif forget == "random state":
        torch.set_rng_state(before)
    for _ in range(2):
        take_step(model, optimizer)
    return model


def test_training_goes_on_as_if_it_had_not_stopped(saved: Path) -> None:
    model = make_model()
    optimizer = make_optimizer(model)
    torch.manual_seed(5)
    for _ in range(4):
        take_step(model, optimizer)
    assert same_tensors(continue_from(saved), model)
    for part in ("moments", "step count", "random state"):  # controls
        assert not same_tensors(continue_from(saved, forget=part), model), part


def test_moments_lie_where_their_parameters_are(tmp_path: Path) -> None:
    """The step count as well: the fused optimiser reads it on the device."""
    module = nn.Linear(2, 2)
    optimizer = make_optimizer(module)
    module(torch.ones(2)).sum().backward()
    optimizer.step()
    save_checkpoint(tmp_path, module, optimizer, Progress("aligned", step=1), keep=1)
    elsewhere = nn.Linear(2, 2, device="meta")
    loaded = make_optimizer(elsewhere)
    load_checkpoint(tmp_path / "aligned-00000001", elsewhere, loaded)
    for state in loaded.state.values():
        assert {key: value.device.type for key, value in state.items()} == dict.fromkeys(
            ("step", "exp_avg", "exp_avg_sq"), "meta"
        )


def test_a_checkpoint_holds_no_pickle(saved: Path) -> None:
    names = sorted(path.name for path in saved.iterdir())
    assert names == ["model.safetensors", "optimizer.safetensors", "progress.json", "random.safetensors"]
    for path in saved.glob("*.safetensors"):
        with safe_open(path, framework="pt") as tensors:
            assert list(tensors.keys())
    assert json.loads((saved / "progress.json").read_text())["best_loss"] == 1.5


def test_progress_before_the_first_validation_comes_back(tmp_path: Path) -> None:
    """Its best loss is infinite, for which JSON has no number."""
    model = make_model()
    save_checkpoint(tmp_path, model, make_optimizer(model), Progress("aligned", step=1), keep=1)
    progress = load_checkpoint(tmp_path / "aligned-00000001", model, make_optimizer(model))
    assert progress == Progress("aligned", step=1)


# --- Models


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_model_comes_back_from_any_floating_type(tmp_path: Path, dtype: torch.dtype) -> None:
    model = make_model()
    save_model(model, tmp_path / "m.safetensors", dtype)
    loaded = make_model()
    nn.init.zeros_(loaded.decoder.embedding.table.weight)
    load_model(loaded, tmp_path / "m.safetensors")
    expected = {name: tensor.to(dtype).float() for name, tensor in model_tensors(model).items()}
    for name, tensor in model_tensors(loaded).items():
        assert torch.equal(tensor, expected[name])
        assert tensor.dtype == torch.float32


def test_a_shared_table_is_stored_once() -> None:
    tables = [name for name, tensor in model_tensors(small_model()).items() if len(tensor) == 24]
    assert len(tables) == 1
    assert len([n for n, t in model_tensors(small_model(tied_embeddings=False)).items() if len(t) == 24]) == 3


def test_a_model_of_other_shapes_is_named_with_what_does_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_model(make_model(), path)
    assert message(lambda: load_model(small_model(vocab_size=30), path)) == (
        f"{path} does not fit the model of this configuration: missing [], unknown [], of another shape "
        "['encoder.embedding.table.weight (24, 8) instead of (30, 8)']"
    )
    text = message(lambda: load_model(small_model(predictors=()), path))
    assert "missing [], unknown ['predictors.halting.bias', 'predictors.halting.weight']" in text
    save_model(small_model(predictors=()), path)
    text = message(lambda: load_model(make_model(), path))
    assert "missing ['predictors.halting.bias', 'predictors.halting.weight'], unknown []" in text


def test_a_misfit_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_model(make_model(), path)
    model = small_model(vocab_size=30)
    before = {name: tensor.clone() for name, tensor in model_tensors(model).items()}
    message(lambda: load_model(model, path))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model_tensors(model).items())


# --- Damage


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "random.safetensors"])
def test_a_damaged_file_is_named(saved: Path, name: str) -> None:
    path = saved / name
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"\xff" * 64):
        path.write_bytes(damaged)
        model = make_model()
        text = message(lambda: load_checkpoint(saved, model, make_optimizer(model)))  # noqa: B023  # called at once
        assert text.startswith(f"{path} is damaged (")
        assert text.endswith("; use an older checkpoint or train again")


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "random.safetensors"])
def test_a_missing_file_is_named(saved: Path, name: str) -> None:
    (saved / name).unlink()
    model = make_model()
    assert message(lambda: load_checkpoint(saved, model, make_optimizer(model))) == f"there is no {saved / name}"


@pytest.mark.parametrize("content", ["", "{", '{"phase": "aligned", "colour": 1}', "[1]"])
def test_damaged_progress_is_named(saved: Path, content: str) -> None:
    (saved / "progress.json").write_text(content)
    model = make_model()
    text = message(lambda: load_checkpoint(saved, model, make_optimizer(model)))
    assert text.startswith(f"cannot read {saved / 'progress.json'}: ")
    assert text.endswith("; remove this checkpoint")


def test_moments_of_an_unknown_parameter_are_named(saved: Path) -> None:
    path = saved / "optimizer.safetensors"
    save_file({"decoder.blocks.9.weight:exp_avg": torch.zeros(1)}, path)
    model = make_model()
    assert message(lambda: load_checkpoint(saved, model, make_optimizer(model))) == (
        f"{path} holds decoder.blocks.9.weight, which the model has not"
    )


# --- Folders


def save_at(folder: Path, phase: str, step: int, *, keep: int = 9, value: float = 0.0) -> None:
    module = nn.Linear(1, 1, bias=False)
    nn.init.constant_(module.weight, value)
    save_checkpoint(folder, module, make_optimizer(module), Progress(phase, step=step), keep)


def names(folder: Path, phase: str) -> list[str]:
    return [path.name for path in list_checkpoints(folder, phase)]


def test_the_newest_checkpoints_of_a_phase_are_kept(tmp_path: Path) -> None:
    save_at(tmp_path, "aligned", 1, keep=2)
    for step in (9, 10, 100, 12345678):
        save_at(tmp_path, "joint", step, keep=3)
    assert names(tmp_path, "joint") == ["joint-00000010", "joint-00000100", "joint-12345678"]
    assert names(tmp_path, "aligned") == ["aligned-00000001"]  # another phase's are left alone


def test_a_checkpoint_of_the_same_step_is_replaced(tmp_path: Path) -> None:
    save_at(tmp_path, "aligned", 5, value=1.0)
    save_at(tmp_path, "aligned", 5, value=2.0)
    assert names(tmp_path, "aligned") == ["aligned-00000005"]
    module = nn.Linear(1, 1, bias=False)
    load_model(module, tmp_path / "aligned-00000005" / "model.safetensors")
    assert module.weight.item() == 2


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors", "random.safetensors", "progress.json"])
def test_a_failure_while_writing_leaves_the_older_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    save_at(tmp_path, "aligned", 1, keep=1, value=1.0)

    def fail(path: Path, data: bytes) -> None:
        if path.name == file:
            path.write_bytes(data[: len(data) // 2])
            raise KeyboardInterrupt
        write_file(path, data)

    monkeypatch.setattr(edgeseq.training.checkpoints, "write_file", fail)
    with pytest.raises(KeyboardInterrupt):
        save_at(tmp_path, "aligned", 2, keep=1, value=2.0)
    assert [path.name for path in tmp_path.iterdir()] == ["aligned-00000001"]
    module = nn.Linear(1, 1, bias=False)
    assert load_checkpoint(tmp_path / "aligned-00000001", module, make_optimizer(module)).step == 1
    assert module.weight.item() == 1


def test_what_a_kill_leaves_behind_is_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is killed cleans nothing up: the half-written folder stays, under a name of its own."""
    save_at(tmp_path, "aligned", 1)

    class Killed(BaseException):
        pass

    def kill(path: Path, data: bytes) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(edgeseq.training.checkpoints, "write_file", kill)
        patch.setattr(shutil, "rmtree", lambda *args, **kwargs: None)
        with pytest.raises(Killed):
            save_at(tmp_path, "aligned", 2)
    assert len(list(tmp_path.iterdir())) == 2  # control: something was left
    assert names(tmp_path, "aligned") == ["aligned-00000001"]
    save_at(tmp_path, "aligned", 2)
    assert names(tmp_path, "aligned") == ["aligned-00000001", "aligned-00000002"]


# --- Averaging


def test_the_average_is_the_mean_of_each_parameter(tmp_path: Path) -> None:
    models = []
    for step in range(3):
        model = make_model()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(ramp(*parameter.shape, start=100 * step, dtype=torch.float32))
        save_checkpoint(tmp_path, model, make_optimizer(model), Progress("aligned", step=step), keep=9)
        models.append(model)
    averaged = make_model()
    average_checkpoints(list_checkpoints(tmp_path, "aligned")[-2:], averaged)
    tensors = [model_tensors(model) for model in models]
    for name, tensor in model_tensors(averaged).items():
        assert torch.allclose(tensor, (tensors[1][name] + tensors[2][name]) / 2, atol=1e-7)
        of_all = (tensors[0][name] + tensors[1][name] + tensors[2][name]) / 3
        assert not torch.allclose(tensor, of_all, atol=1e-3)  # control


def test_the_average_of_one_is_itself(saved: Path) -> None:
    loaded, averaged = make_model(), make_model()
    load_model(loaded, saved / "model.safetensors")
    average_checkpoints([saved], averaged)
    assert same_tensors(loaded, averaged)


def test_an_average_over_a_damaged_checkpoint_names_it(tmp_path: Path, saved: Path) -> None:
    other = tmp_path / "aligned-00000003"
    shutil.copytree(saved, other)
    (other / "model.safetensors").write_bytes(b"")
    assert message(lambda: average_checkpoints([saved, other], make_model())).startswith(
        f"{other / 'model.safetensors'} is damaged ("
    )
