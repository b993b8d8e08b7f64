"""Opening a bundle: what is wrong with it is found before onnxruntime sees it, and named."""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from edgeseq_runtime.bundle import file_sha256, load_bundle
from edgeseq_runtime.errors import BundleError
from edgeseq_runtime.manifest import MANIFEST_FILE
from edgeseq_runtime.policy import FixedDepth
from edgeseq_runtime.predictors import CertaintyUnits, DepthClassifier, HaltingUnits
from linear import linear
from tiny_bundle import safetensors_bytes, write_tiny_bundle


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A copy that a test may break."""
    copy = tmp_path / "copy.bundle"
    shutil.copytree(tiny_bundle, copy)
    return copy


def edit_manifest(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = bundle / MANIFEST_FILE
    content = json.loads(path.read_bytes())
    change(content)
    path.write_text(json.dumps(content))


def replace_file(bundle: Path, name: str, data: bytes) -> None:
    """Swap a file and make the manifest agree, as someone who tampers with both would."""
    (bundle / name).write_bytes(data)

    def change(content: dict[str, Any]) -> None:
        for entry in [*content["graphs"], *content["files"]]:
            if entry["file"] == name:
                entry.update(size=len(data), sha256=hashlib.sha256(data).hexdigest())

    edit_manifest(bundle, change)


def refusal(bundle: Path) -> str:
    with pytest.raises(BundleError) as error:
        load_bundle(bundle)
    return str(error.value)


def test_whole_bundle_is_loaded(bundle: Path) -> None:
    """Control of all refusals: a copy is as good as the original."""
    loaded = load_bundle(str(bundle))
    assert loaded.path == bundle
    assert loaded.sha256 == file_sha256(bundle / MANIFEST_FILE)
    assert loaded.tokenizer.vocab_size == loaded.manifest.model.vocab_size
    *tables, certainty = loaded.predictors.items()
    assert [(name, type(predictor), linear(predictor).weight.shape) for name, predictor in tables] == [
        ("halting", HaltingUnits, (3, 16)),
        ("shared", HaltingUnits, (1, 16)),
        ("multinomial", DepthClassifier, (4, 16)),
        ("by-sentence", DepthClassifier, (4, 16)),
    ]
    assert (certainty[0], type(certainty[1])) == ("certainty", CertaintyUnits)
    assert isinstance(loaded.policy("2"), FixedDepth)


def test_bundle_without_predictors_is_loaded(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "b", predictors=(), operating_point=None)
    assert not (bundle / "predictors.safetensors").exists()
    assert load_bundle(bundle).predictors == {}


@pytest.mark.parametrize("name", ["absent.bundle", "file"])
def test_what_is_no_folder_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    message = refusal(tmp_path / name)
    assert f"{name}' is not a folder: expected what `edgeseq export` wrote" in message


def test_folder_without_manifest_is_refused(tmp_path: Path) -> None:
    assert "lacks manifest.json: No such file or directory" in refusal(tmp_path)


def test_huge_manifest_is_refused(bundle: Path) -> None:
    (bundle / MANIFEST_FILE).write_bytes(b" " * ((4 << 20) + 1))
    assert "manifest.json has 4194305 bytes, expected at most 4194304" in refusal(bundle)


@pytest.mark.parametrize("name", ["block_2.onnx", "tokenizer.model", "predictors.safetensors"])
def test_missing_file_is_named(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    assert f"lacks {name}: No such file or directory; export or copy it again" in refusal(bundle)


def test_a_folder_that_must_not_be_entered_is_named(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path) -> bool:
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "is_dir", refuse)
    assert refusal(bundle) == f"{bundle} cannot be read: Permission denied; let this user read all files of the bundle"


@pytest.mark.parametrize("name", ["manifest.json", "head.onnx"])
def test_a_file_that_must_not_be_read_is_named(bundle: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose modes would not keep the administrator from reading it."""
    opened = Path.open

    def refuse(self: Path, *arguments: Any, **settings: Any) -> Any:
        if self.name == name:
            raise PermissionError(errno.EACCES, "Permission denied", str(self))
        return opened(self, *arguments, **settings)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(BundleError, match=rf"{name} cannot be read: Permission denied; let this user read all files"):
        load_bundle(bundle)


@pytest.mark.parametrize("name", ["head.onnx", "tokenizer.model", "predictors.safetensors"])
def test_truncated_file_is_named(bundle: Path, name: str) -> None:
    data = (bundle / name).read_bytes()
    (bundle / name).write_bytes(data[:-1])
    message = refusal(bundle)
    assert f"{name} has {len(data) - 1} bytes, but the manifest says {len(data)}" in message


@pytest.mark.parametrize("name", ["block_1.onnx", "tokenizer.model", "predictors.safetensors"])
def test_changed_byte_is_found(bundle: Path, name: str) -> None:
    data = bytearray((bundle / name).read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / name).write_bytes(data)
    message = refusal(bundle)
    assert f"{name} has the SHA-256 {hashlib.sha256(data).hexdigest()}" in message
    assert "the file was changed; export or copy the bundle again" in message


@pytest.mark.parametrize("name", [MANIFEST_FILE, "block_1.onnx"])
def test_symbolic_links_are_refused(bundle: Path, tmp_path: Path, name: str) -> None:
    (bundle / name).rename(tmp_path / name)
    (bundle / name).symlink_to(tmp_path / name)
    assert f"{name} is a symbolic link: expected a regular file" in refusal(bundle)


def test_hard_links_are_refused(bundle: Path, tmp_path: Path) -> None:
    os.link(bundle / "head.onnx", tmp_path / "elsewhere.onnx")
    assert "head.onnx is a hard link (2 names)" in refusal(bundle)


def test_folder_in_place_of_a_file_is_refused(bundle: Path) -> None:
    (bundle / "head.onnx").unlink()
    (bundle / "head.onnx").mkdir()
    assert "head.onnx is not a regular file" in refusal(bundle)


def test_files_that_are_not_listed_do_no_harm(bundle: Path) -> None:
    (bundle / "notes.txt").write_text("mine")
    load_bundle(bundle)


def test_signatures_of_another_model_are_refused_by_graph(bundle: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        content["model"]["decoder_reaches"] = [3, 5, 3, 9]
        content["graphs"][0]["block"] = 1

    edit_manifest(bundle, change)
    message = refusal(bundle)
    assert "manifest.json lists graphs that do not fit its model (5 problems); export or copy the bundle" in message
    assert "  encoder.onnx: is the encoder of block 1, expected the encoder of block None" in message
    assert "  block_3.onnx: inputs are states float32['cells', 16], exit_states" in message
    assert "tap_places int64['active', 1, 4, 1, 1], stop_weight float32[1, 16]; expected states" in message
    assert "tap_places int64['active', 1, 4, 1, 3]" in message
    assert "tap_places int64['active', 1, 4, 1, 9]" in message


def test_missing_and_additional_blocks_are_named(bundle: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        content["graphs"] = [graph for graph in content["graphs"] if graph["file"] != "cross_2.onnx"]
        content["model"]["decoder_reaches"] = [3, 5, 1]
        content["predictors"] = [entry for entry in content["predictors"] if entry["rows"] == 1]

    edit_manifest(bundle, change)
    message = refusal(bundle)
    assert "(7 problems);" in message
    assert "  graph cross_2.onnx is missing" in message
    assert "  graph block_4.onnx is not expected" in message
    assert "  graph cross_4.onnx is not expected" in message


def test_graph_that_is_not_expected_is_refused(bundle: Path) -> None:
    edit_manifest(bundle, lambda content: content["model"].update(head="untied"))
    message = refusal(bundle)
    assert "  graph head_1.onnx is missing" in message
    assert "  graph head.onnx is not expected" in message


def test_tokenizer_that_is_none_is_refused(bundle: Path) -> None:
    replace_file(bundle, "tokenizer.model", b"not a model")
    assert "tokenizer.model' (11 bytes) is not a SentencePiece model" in refusal(bundle)


def test_tokenizer_of_another_size_is_refused(bundle: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        content["model"]["vocab_size"] = content["tokenizer"]["pieces"] = 61
        for graph in content["graphs"]:
            if graph["role"] in ("head", "step"):
                graph["outputs"][0]["shape"][1] = 61

    edit_manifest(bundle, change)
    assert "tokenizer.model has 60 pieces, but the manifest says 61" in refusal(bundle)


EXPECTED = {
    "halting.weight": (3, 16),
    "halting.bias": (3,),
    "shared.weight": (1, 16),
    "shared.bias": (1,),
    "multinomial.weight": (4, 16),
    "multinomial.bias": (4,),
    "by-sentence.weight": (4, 16),
    "by-sentence.bias": (4,),
    "certainty.expand_weight": (3, 32, 2),
    "certainty.expand_bias": (3, 32),
    "certainty.contract_weight": (3, 32),
    "certainty.contract_bias": (3,),
}


def weights(**changes: np.ndarray | None) -> bytes:
    """Predictors of zeros; changes by name, with _ for the dot, None for a missing one."""
    tensors: dict[str, np.ndarray | None] = {name: np.zeros(shape) for name, shape in EXPECTED.items()}
    tensors |= {name.replace("_", "."): tensor for name, tensor in changes.items()}
    return safetensors_bytes({name: tensor for name, tensor in tensors.items() if tensor is not None})


def test_predictors_of_zeros_are_accepted(bundle: Path) -> None:
    """Control of the refusals below."""
    replace_file(bundle, "predictors.safetensors", weights())
    assert not linear(load_bundle(bundle).predictors["shared"]).weight.any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"halting_weight": np.zeros((2, 16))}, "holds {'halting.weight': (2, 16), 'halting.bias': (3,)"),
        ({"shared_bias": None}, "'shared.weight': (1, 16), 'multinomial.weight': (4, 16)"),
        ({"other_bias": np.zeros(1)}, "'other.bias': (1,)}, expected {'halting.weight': (3, 16)"),
        ({"multinomial_weight": np.full((4, 16), np.nan)}, "holds numbers that are not finite: export the model again"),
        ({"shared_bias": np.full(1, np.inf)}, "holds numbers that are not finite"),
    ],
)
def test_wrong_predictors_are_refused(bundle: Path, changes: dict[str, np.ndarray | None], message: str) -> None:
    replace_file(bundle, "predictors.safetensors", weights(**changes))
    text = refusal(bundle)
    assert message in text
    if "holds {" in text:
        assert text.endswith(f"expected {EXPECTED}; export or copy the bundle again")


@pytest.fixture
def with_shortlist(tmp_path: Path) -> Path:
    return write_tiny_bundle(tmp_path / "b", shortlist=True)


def test_a_shortlist_is_read(with_shortlist: Path) -> None:
    shortlist = load_bundle(with_shortlist).shortlist
    assert shortlist is not None
    assert shortlist.facts.best == 3


def test_a_bundle_without_a_shortlist_has_none(bundle: Path) -> None:
    assert load_bundle(bundle).shortlist is None


def test_a_shortlist_of_pieces_that_are_none_is_refused(with_shortlist: Path) -> None:
    tables = {"best": np.full((60, 3), 60, np.uint16), "frequent": np.zeros(6, np.uint16)}
    replace_file(with_shortlist, "shortlist.safetensors", save(tables))
    assert refusal(with_shortlist).endswith(
        "lists the id 60 under 'best', but there are 60 pieces; export or copy the bundle again"
    )


def test_graphs_of_a_shortlist_that_is_not_declared_are_refused(with_shortlist: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        content["shortlist"] = None
        content["files"] = [entry for entry in content["files"] if entry["role"] != "shortlist"]

    edit_manifest(with_shortlist, change)
    message = refusal(with_shortlist)
    for name in ("candidates", "shortlist_head", "shortlist_step"):
        assert f"graph {name}.onnx is not expected" in message


def test_integers_where_a_shortlist_declares_float32_are_refused(with_shortlist: Path) -> None:
    edit_manifest(with_shortlist, lambda content: content["shortlist"].update(weights="int8"))
    assert "candidates.onnx: outputs are candidate_weights float32" in refusal(with_shortlist)
