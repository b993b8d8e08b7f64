"""The tiny bundle with depth predictors of every kind."""

import json
from pathlib import Path

import numpy as np

from edgeseq_runtime.bundle import describe_file
from edgeseq_runtime.manifest import MANIFEST_FILE
from edgeseq_runtime.safetensors import read_safetensors
from tiny_bundle import safetensors_bytes, write_tiny_bundle

_FILE = "predictors.safetensors"


def write_predictor_bundle(path: Path) -> Path:
    """Writes the tiny bundle, adds a multinomial and a sequence predictor of random weights, and returns its path."""
    write_tiny_bundle(path)
    manifest = json.loads((path / MANIFEST_FILE).read_text(encoding="utf-8"))
    tensors = read_safetensors((path / _FILE).read_bytes(), _FILE)
    generator = np.random.default_rng(4)
    blocks, dim = len(manifest["model"]["decoder_kernel_sizes"]), manifest["model"]["dim"]
    for kind in ("multinomial", "sequence"):
        tensors[f"{kind}.weight"] = generator.standard_normal((blocks, dim)).astype(np.float32)
        tensors[f"{kind}.bias"] = generator.standard_normal(blocks).astype(np.float32)
        manifest["predictors"].append({"name": kind, "kind": kind, "rows": blocks, "training": "nothing"})
    (path / _FILE).write_bytes(safetensors_bytes(tensors))
    entry = describe_file(path, _FILE, "predictors").model_dump(mode="json")
    manifest["files"] = [entry if file["file"] == _FILE else file for file in manifest["files"]]
    (path / MANIFEST_FILE).write_text(json.dumps(manifest), encoding="utf-8")
    return path
