"""The tiny bundle with depth predictors of every kind."""

import json
from pathlib import Path

import numpy as np

from edgeseq_runtime.bundle import describe_file
from edgeseq_runtime.manifest import MANIFEST_FILE, ModelFacts, PredictorEntry, PredictorKind
from edgeseq_runtime.safetensors import read_safetensors
from tiny_bundle import PREDICTORS, safetensors_bytes, write_tiny_bundle

_FILE = "predictors.safetensors"


def write_predictor_bundle(path: Path) -> Path:
    """Writes the tiny bundle, adds a predictor of each other kind with random weights, and returns its path."""
    write_tiny_bundle(path, predictors=PREDICTORS[:1])
    manifest = json.loads((path / MANIFEST_FILE).read_text(encoding="utf-8"))
    tensors = read_safetensors((path / _FILE).read_bytes(), _FILE)
    generator = np.random.default_rng(4)
    model = ModelFacts.model_validate(manifest["model"])
    blocks, dim = model.decoder_blocks, model.dim
    kinds: list[tuple[PredictorKind, int, int]] = [
        ("multinomial", blocks, 0),
        ("sequence", blocks, 0),
        ("certainty", blocks - 1, 3),
    ]
    for kind, rows, hidden_dim in kinds:
        entry = PredictorEntry(name=kind, kind=kind, rows=rows, hidden_dim=hidden_dim, training="nothing")
        tensors |= {
            name: generator.standard_normal(shape).astype(np.float32)
            for name, shape in entry.tensor_shapes(dim).items()
        }
        manifest["predictors"].append(entry.model_dump(mode="json"))
    (path / _FILE).write_bytes(safetensors_bytes(tensors))
    described = describe_file(path, _FILE, "predictors").model_dump(mode="json")
    manifest["files"] = [described if file["file"] == _FILE else file for file in manifest["files"]]
    (path / MANIFEST_FILE).write_text(json.dumps(manifest), encoding="utf-8")
    return path
