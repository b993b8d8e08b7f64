"""A small random bundle on disk: real ONNX graphs and a real tokenizer, made in milliseconds.

Random weights translate into nonsense, but every mechanism of the runtime is exercised: all depths
occur, sentences end by eos, and nothing is trained.
"""

import io
import json
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import sentencepiece

from edgeseq_runtime._version import __version__
from edgeseq_runtime.bundle import describe_file, describe_graph
from edgeseq_runtime.manifest import (
    MANIFEST_FILE,
    DecodingParity,
    Manifest,
    ModelFacts,
    OperatingPoint,
    ParityReport,
    ParityRow,
    Provenance,
    TokenizerFacts,
)
from edgeseq_runtime.signatures import expected_signatures
from edgeseq_runtime.tokenizer import BOS_ID, EOS_ID, PAD_ID, UNK_ID
from tiny_graphs import Weights, write_graph

VOCAB_SIZE = 60

_WORDS = (
    "a the dog cat bird tree house river snow sun play plays run runs see sees old young "
    "small big red green two three in on under near and with who what where it is are was"
)


@cache
def tiny_tokenizer() -> bytes:
    """A SentencePiece model of VOCAB_SIZE pieces."""
    words = _WORDS.split()
    generator = np.random.default_rng(0)
    sentences = [" ".join(generator.choice(words, 6)) for _ in range(200)]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_writer=model,
        vocab_size=VOCAB_SIZE,
        pad_id=PAD_ID,
        unk_id=UNK_ID,
        bos_id=BOS_ID,
        eos_id=EOS_ID,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def tiny_sentences(number: int, *, longest: int = 12, seed: int = 0) -> list[str]:
    """Texts of mixed length, from one word to ``longest``."""
    generator = np.random.default_rng(seed)
    words = _WORDS.split()
    lengths = generator.integers(1, longest + 1, number)
    return [" ".join(generator.choice(words, length)) for length in lengths]


def tiny_facts(**changes: object) -> ModelFacts:
    """Facts of the tiny model: 4 blocks of unequal reach, per-block halting units."""
    facts: dict[str, object] = {
        "dim": 16,
        "heads": 2,
        "vocab_size": VOCAB_SIZE,
        "encoder_blocks": 1,
        "decoder_kernel_sizes": [3, 5, 1, 7],
        "head": "tied",
        "norm": "pre",
        "halting": "per_block",
        "parameters": 1000,
        "feed_forward_dim": 32,
        "convolution": "dynamic",
        "glu": True,
        "convolution_heads": 4,
    }
    return ModelFacts.model_validate(facts | changes)


def write_tiny_bundle(
    path: Path, *, seed: int = 0, operating_point: str | None = "halting:0.5", **changes: object
) -> Path:
    """Write a bundle.

    Args:
        path: The folder to make.
        seed: Of the weights.
        operating_point: Policy of the default operating point; None leaves it out.
        changes: Model facts that differ from those of :func:`tiny_facts`.
    """
    facts = tiny_facts(**changes)
    weights = Weights(seed)
    path.mkdir(parents=True)
    signatures = expected_signatures(facts)
    for signature in signatures:
        (path / signature.file).write_bytes(write_graph(facts, signature, weights))
    (path / "tokenizer.model").write_bytes(tiny_tokenizer())
    files = [describe_file(path, "tokenizer.model", "tokenizer")]
    if facts.halting_units:
        tensors = {
            "halting.weight": weights.array("halting", facts.halting_units, facts.dim, scale=0.5),
            "halting.bias": np.zeros(facts.halting_units, dtype=np.float32),
        }
        (path / "predictors.safetensors").write_bytes(safetensors_bytes(tensors))
        files.append(describe_file(path, "predictors.safetensors", "predictors"))
    points = []
    if operating_point is not None:
        point = OperatingPoint(
            name="default",
            policy=operating_point,
            bleu=1.0,
            chrf=10.0,
            average_depth=2.0,
            sentences=8,
            full_depth_bleu=1.5,
        )
        points.append(point)
    manifest = Manifest(
        edgeseq_version=__version__,
        created="2026-01-01",
        model=facts,
        graphs=[describe_graph(path, signature) for signature in signatures],
        files=files,
        tokenizer=TokenizerFacts(pieces=VOCAB_SIZE),
        operating_points=points,
        quality=[],
        parity=ParityReport(
            tie_margin=1e-4,
            rows=[ParityRow(graph="embed.onnx", shapes=1, max_abs_diff=0.0, tolerance=1e-5)],
            decoding=DecodingParity(sentences=1, tokens=1, decisions=1, disagreements=0, ties=0),
        ),
        provenance=Provenance(licence="CC0-1.0", data="random numbers"),
    )
    (path / MANIFEST_FILE).write_bytes(manifest.to_bytes())
    return path


def safetensors_bytes(tensors: dict[str, npt.NDArray[np.float32]]) -> bytes:
    """Serialise float32 tensors in the safetensors format."""
    header: dict[str, object] = {}
    body = b""
    for name, tensor in tensors.items():
        data = tensor.astype("<f4").tobytes()
        header[name] = {
            "dtype": "F32",
            "shape": list(tensor.shape),
            "data_offsets": [len(body), len(body) + len(data)],
        }
        body += data
    encoded = json.dumps(header).encode()
    return len(encoded).to_bytes(8, "little") + encoded + body
