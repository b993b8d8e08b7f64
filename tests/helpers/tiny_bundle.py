"""A small random bundle on disk: a real model's graphs and a real tokenizer, made in milliseconds.

Random weights translate into nonsense, but every mechanism of the runtime is exercised: all depths
occur, sentences end by eos, and nothing is trained.
"""

import io
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import sentencepiece
import torch
from torch import nn

from edgeseq.config import ModelConfig, PredictorConfig, StackConfig
from edgeseq.models import Seq2Seq, build_model
from edgeseq.modules import CertaintyUnits
from edgeseq_export.facts import model_facts, predictor_entry
from edgeseq_export.graphs import split_model
from edgeseq_export.onnx_graphs import write_graph
from edgeseq_export.shortlists import SHORTLIST_FILE, ShortlistTables
from edgeseq_export.weights_file import WEIGHTS_FILE, gather_weights
from edgeseq_runtime._version import __version__
from edgeseq_runtime.bundle import describe_file, describe_graph
from edgeseq_runtime.manifest import MANIFEST_FILE, Manifest, ModelFacts, OperatingPoint, Provenance, TokenizerFacts
from edgeseq_runtime.reports import DecodingParity, ParityReport, ParityRow
from edgeseq_runtime.tokenizer import BOS_ID, EOS_ID, PAD_ID, UNK_ID
from small_models import balance_predictors, linear_units

VOCAB_SIZE = 60

PREDICTORS = (
    PredictorConfig(kind="halting"),
    PredictorConfig(name="shared", kind="halting", units="shared"),
    PredictorConfig(kind="multinomial"),
    PredictorConfig(name="by-sentence", kind="sequence"),
    PredictorConfig(kind="certainty"),
)
"""One of each kind; some have a name of their own."""

POLICIES = [
    *("full", "2", "halting:0.5", "halting:0.4,0.6,0.5", "halting:0.3@2", "shared:0.5", "confidence:0.1"),
    *("confidence:0.08,0.12@1,3", "multinomial", "multinomial:0.6", "by-sentence", "by-sentence:0.7"),
    *("certainty:0.5", "certainty:0.6,0.4,0.5"),
]
"""Depth policies of every kind that a tiny bundle has."""

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
    """Facts of the tiny model: 4 blocks of unequal reach."""
    facts: dict[str, object] = {
        "dim": 16,
        "heads": 2,
        "vocab_size": VOCAB_SIZE,
        "encoder_blocks": 1,
        "decoder_reaches": [3, 5, 1, 7],
        "head": "tied",
        "norm": "pre",
        "parameters": 1000,
        "feed_forward_dim": 32,
        "mixer": "dynamic",
        "glu": True,
        "convolution_heads": 4,
    }
    return ModelFacts.model_validate(facts | changes)


def tiny_model(*, seed: int = 1, predictors: Sequence[PredictorConfig] = PREDICTORS, **changes: object) -> Seq2Seq:
    """Build the model of a tiny bundle, in evaluation mode; the same arguments give the same weights.

    Args:
        seed: Of the weights.
        predictors: What it has; the other weights do not depend on it.
        changes: Model facts that differ from those of :func:`tiny_facts`.
    """
    facts = tiny_facts(**changes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_model(_config(facts), facts.vocab_size, predictors)
        _roughen(model)
    built = model_facts(_config(facts), model, facts.vocab_size)
    assert built == facts.model_copy(update={"parameters": built.parameters}), "the model is not what its facts say"
    return model.eval()


def _config(facts: ModelFacts) -> ModelConfig:
    reaches = "windows" if facts.mixer == "attention" else "kernel_sizes"

    def stack(numbers: list[int]) -> StackConfig:
        return StackConfig(
            mixer=facts.mixer,
            convolution_heads=facts.convolution_heads,
            feed_forward_dim=facts.feed_forward_dim,
            glu=facts.glu,
            **{reaches: numbers},
        )

    return ModelConfig(
        dim=facts.dim,
        attention_heads=facts.heads,
        encoder=stack([0 if facts.mixer == "attention" else 3] * facts.encoder_blocks),
        decoder=stack(facts.decoder_reaches),
        norm=facts.norm,
        head=facts.head,
        tied_embeddings=False,  # or each token's best successor would be itself
        dropout=0.0,
    )


@torch.no_grad()
def _roughen(model: Seq2Seq) -> None:
    """Make fresh weights matter as trained ones do: norms that are not the identity, branches that weigh something."""
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.weight.add_(torch.randn_like(module.weight) * 0.1)
            module.bias.add_(torch.randn_like(module.bias) * 0.1)
        elif isinstance(module, nn.Linear):
            module.weight.mul_(2)
    for weight in model.decoder.exit_heads.weights:
        weight[EOS_ID] *= 2  # or few sentences would end before their maximum length
    for name in model.predictors:
        predictor = model.predictor(name)
        if isinstance(predictor, CertaintyUnits):
            predictor.contract_weight.copy_(torch.randn_like(predictor.contract_weight))
        else:
            weight = linear_units(model, name).weight
            weight.copy_(torch.randn_like(weight) * 0.5)
    balance_predictors(model)


def tiny_shortlist() -> ShortlistTables:
    """Tables of a shortlist: three random target pieces of each source piece, six frequent ones."""
    generator = np.random.default_rng(5)
    best, frequent = generator.integers(EOS_ID + 1, VOCAB_SIZE, (VOCAB_SIZE, 3)), generator.choice(VOCAB_SIZE, 6)
    return ShortlistTables(best.astype(np.uint16), frequent.astype(np.uint16), pairs=1)


def write_tiny_bundle(
    path: Path,
    *,
    seed: int = 1,
    operating_point: str | None = "halting:0.5",
    predictors: Sequence[PredictorConfig] = PREDICTORS,
    shortlist: bool = False,
    **changes: object,
) -> Path:
    """Write a bundle.

    Args:
        path: The folder to make.
        seed: Of the weights.
        operating_point: Policy of the default operating point; None leaves it out.
        predictors: What it has.
        shortlist: Whether it has one; of random pieces, from 10 to all of them a sentence.
        changes: Model facts that differ from those of :func:`tiny_facts`.
    """
    facts = tiny_facts(**changes)
    model = tiny_model(seed=seed, predictors=predictors, **changes)
    path.mkdir(parents=True)
    tables = tiny_shortlist() if shortlist else None
    parts = list(split_model(model, facts, "float32" if shortlist else None))
    for part in parts:
        (path / part.signature.file).write_bytes(write_graph(part).SerializeToString(deterministic=True))
    gather_weights(path)
    graphs = [describe_graph(path, part.signature) for part in parts]
    (path / "tokenizer.model").write_bytes(tiny_tokenizer())
    files = [describe_file(path, WEIGHTS_FILE, "weights"), describe_file(path, "tokenizer.model", "tokenizer")]
    if predictors:
        tensors = {name: tensor.detach().numpy() for name, tensor in model.predictors.named_parameters()}
        (path / "predictors.safetensors").write_bytes(safetensors_bytes(tensors))
        files.append(describe_file(path, "predictors.safetensors", "predictors"))
    if tables is not None:
        tables.write(path)
        files.append(describe_file(path, SHORTLIST_FILE, "shortlist"))
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
        compute_type="float32",
        model=facts,
        graphs=graphs,
        files=files,
        tokenizer=TokenizerFacts(pieces=VOCAB_SIZE),
        predictors=[predictor_entry(config, model, joint=False) for config in predictors],
        operating_points=points,
        quality=[],
        parity=ParityReport(
            tie_margin=1e-4,
            rows=[ParityRow(graph="head.onnx", shapes=1, max_abs_diff=0.0, tolerance=1e-5)],
            decoding=DecodingParity(sentences=1, tokens=1, decisions=1, disagreements=0, ties=0),
        ),
        quantisation=None,
        shortlist=None if tables is None else tables.open("float32").facts,
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
