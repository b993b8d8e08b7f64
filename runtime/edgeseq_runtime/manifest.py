"""The bundle's table of contents, ``manifest.json``, as typed and checked data.

Export writes it through these classes and the runtime reads it through them, so the two cannot
drift apart. Nothing here opens the files it lists: whether they agree is the business of
:mod:`edgeseq_runtime.bundle`. Parsing is strict, and every mistake is reported at once.
"""

import json
import math
from collections import Counter
from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from edgeseq_runtime.errors import EXPORT_AGAIN, BundleError
from edgeseq_runtime.records import (
    CandidateWeights,
    ComputeTypeName,
    CountInt,
    FileName,
    FileSize,
    Measure,
    PositiveInt,
    Record,
    Sha256,
    SizeInt,
    list_problems,
)
from edgeseq_runtime.reports import DepthQuality, ParityReport, QuantisationReport, ShortlistReport

FORMAT: Final = "edgeseq-bundle"
FORMAT_VERSION: Final = 7
MANIFEST_FILE = "manifest.json"

GraphRole = Literal["encoder", "cross", "block", "head", "step", "candidates", "shortlist_head", "shortlist_step"]
FileRole = Literal["weights", "tokenizer", "predictors", "known_answers", "shortlist"]
DType = Literal["float32", "int64", "int8", "bool"]


class ModelFacts(Record):
    """What the runtime has to know of the model. All sizes concern the decoder.

    Attributes:
        dim: Width d of states and columns.
        heads: Heads of all attention.
        vocab_size: Ids, source and target alike, the special ones included.
        encoder_blocks: Number of encoder blocks.
        decoder_reaches: Positions that each decoder block reads, from block 1: taps K_n of a
            convolution, window of self-attention, 0 where it reads all; its length is N.
        head: Whether the exit heads of all blocks share their weights.
        norm: Whether blocks normalise their inputs (pre) or their outputs (post).
        parameters: Trained numbers of the whole model.
        feed_forward_dim: Inner width f of the decoder's feed-forward layers.
        mixer: What mixes positions: a convolution whose taps are weights (lightweight) or predicted
            per position (dynamic), or self-attention.
        glu: Whether the input projection of a convolution is gated, hence twice as wide.
        convolution_heads: Groups of channels that share the taps of a convolution.
    """

    dim: PositiveInt
    heads: PositiveInt
    vocab_size: PositiveInt
    encoder_blocks: PositiveInt
    decoder_reaches: Annotated[list[SizeInt], Field(min_length=1, max_length=256)]
    head: Literal["tied", "untied"]
    norm: Literal["pre", "post"]
    parameters: PositiveInt
    feed_forward_dim: PositiveInt
    mixer: Literal["dynamic", "lightweight", "attention"]
    glu: bool
    convolution_heads: PositiveInt

    @property
    def decoder_blocks(self) -> int:
        """Number N of decoder blocks: the full depth."""
        return len(self.decoder_reaches)

    @property
    def mixer_heads(self) -> int:
        """Groups of channels that the mixer treats alike, H."""
        return self.heads if self.mixer == "attention" else self.convolution_heads

    @model_validator(mode="after")
    def _check_sizes(self) -> Self:
        for name, heads in (("heads", self.heads), ("the mixer's heads", self.mixer_heads)):
            if self.dim % heads:
                raise ValueError(f"dim {self.dim} is not a multiple of {name} {heads}")
        if self.mixer == "attention" and self.glu:
            raise ValueError("glu is true, but self-attention has no gate")
        if self.mixer != "attention" and 0 in self.decoder_reaches:
            raise ValueError("decoder_reaches holds 0, but a convolution has at least one tap")
        return self


class TensorSpec(Record):
    """One input or output of a graph; axes are sizes, or names where the size varies."""

    name: Annotated[str, Field(min_length=1, max_length=100)]
    dtype: DType
    shape: list[CountInt | str]


class GraphEntry(Record):
    """One ONNX file. ``block`` is None for graphs that belong to no block."""

    file: FileName
    role: GraphRole
    block: PositiveInt | None
    size: FileSize
    sha256: Sha256
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]


class FileEntry(Record):
    """One file that is not a graph."""

    file: FileName
    role: FileRole
    size: FileSize
    sha256: Sha256


class TokenizerFacts(Record):
    """Number of pieces, and the special ids, which are the same in all of edgeseq."""

    pieces: PositiveInt
    pad_id: Literal[0] = 0
    unk_id: Literal[1] = 1
    bos_id: Literal[2] = 2
    eos_id: Literal[3] = 3


_PREDICTOR = "[a-z][a-z0-9_-]{0,49}"
_THRESHOLDS = "[0-9.]+(,[0-9.]+)*(@[0-9]+(,[0-9]+)*)?"
_POLICY = f"^([1-9][0-9]*|{_PREDICTOR}(:{_THRESHOLDS})?)$"

RESERVED_NAMES: Final = frozenset({"full", "adaptive", "confidence", "speculative"})
"""Policies that are no predictor's."""

PredictorKind = Literal["halting", "certainty", "multinomial", "sequence"]

THRESHOLD_KINDS: Final = frozenset({"halting", "certainty"})
"""Predictors that are asked after each block and compared with a threshold."""


class PredictorEntry(Record):
    """One depth predictor, whose weights the bundle holds.

    Attributes:
        name: What users call it in a depth policy.
        kind: Units that read the exit state (halting) or how certain the exit is (certainty); or a
            classifier over depths, of each token after block 1 (multinomial) or of each sentence
            before its first token (sequence).
        rows: Units: one per block below N, or 1 for all blocks (halting); of classifiers one per depth.
        hidden_dim: Width of the hidden layer of certainty units; 0 where there is none.
        training: What it was trained to tell, in words.
    """

    name: Annotated[str, Field(pattern=f"^{_PREDICTOR}$")]
    kind: PredictorKind
    rows: PositiveInt
    hidden_dim: CountInt = 0
    training: str

    def tensor_shapes(self, dim: int) -> dict[str, tuple[int, ...]]:
        """Names and shapes of its weights, of a model of width ``dim``."""
        if self.kind == "certainty":
            return {
                f"{self.name}.expand_weight": (self.rows, self.hidden_dim, 2),
                f"{self.name}.expand_bias": (self.rows, self.hidden_dim),
                f"{self.name}.contract_weight": (self.rows, self.hidden_dim),
                f"{self.name}.contract_bias": (self.rows,),
            }
        return {f"{self.name}.weight": (self.rows, dim), f"{self.name}.bias": (self.rows,)}

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        if name in RESERVED_NAMES:
            raise ValueError(f"{name!r} is a depth policy of every bundle; give the predictor another name")
        return name


class OperatingPoint(Record):
    """A depth policy under a name, with what it gave on a validation set.

    Attributes:
        name: What follows ``adaptive:``; ``adaptive`` alone means "default".
        policy: The policy in full, such as ``halting:0.45``.
        bleu: BLEU of this policy on the validation set.
        chrf: chrF of this policy on the validation set.
        average_depth: Blocks used per generated token, EOS included.
        sentences: Size of the validation set.
        full_depth_bleu: BLEU of the same sentences at full depth.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,50}$")]
    policy: Annotated[str, Field(pattern=_POLICY, max_length=100)]
    bleu: Measure
    chrf: Measure
    average_depth: Measure
    sentences: PositiveInt
    full_depth_bleu: Measure

    @field_validator("policy")
    @classmethod
    def _check_policy(cls, policy: str) -> str:
        if policy.partition(":")[0] == "adaptive":  # it could even name itself
            raise ValueError(f"{policy!r} is an operating point; expected a policy, not the name of another point")
        return policy


class ShortlistFacts(Record):
    """What the runtime has to know of a vocabulary shortlist.

    Attributes:
        best: Most target pieces that a source piece brings.
        frequent: Target pieces that every sentence has, the most frequent ones.
        weights: How graphs keep the weights of candidates.
        report: What it changes; None where that was not measured.
    """

    best: PositiveInt
    frequent: CountInt
    weights: CandidateWeights
    report: ShortlistReport | None


class Provenance(Record):
    """Where the weights come from: licence of the bundle, and the data it was trained on."""

    licence: str
    data: str


class Manifest(Record):
    """The whole of ``manifest.json``.

    Attributes:
        created: ISO date of the export.
        compute_type: How the graphs keep their weights and multiply by them. Activations that graphs
            exchange are float32 in all.
        predictors: Those that depth policies can name.
        operating_points: Named depth policies, measured; "default" is what ``adaptive`` means.
        quality: Validation results of fixed depths (and of policies, if measured).
        parity: How far the graphs are from torch; in another compute type than float32, those of the
            same model in float32, which differ in nothing else.
        quantisation: What the compute type changed; None for float32.
        shortlist: Of a bundle that has one.
    """

    format: Literal["edgeseq-bundle"] = FORMAT
    format_version: Literal[7] = FORMAT_VERSION
    edgeseq_version: str
    created: Annotated[str, Field(pattern=r"^\d{4}-\d{2}-\d{2}")]
    compute_type: ComputeTypeName
    model: ModelFacts
    graphs: list[GraphEntry]
    files: list[FileEntry]
    tokenizer: TokenizerFacts
    predictors: list[PredictorEntry]
    operating_points: list[OperatingPoint]
    quality: list[DepthQuality]
    parity: ParityReport
    quantisation: QuantisationReport | None
    shortlist: ShortlistFacts | None
    provenance: Provenance

    @field_validator("operating_points")
    @classmethod
    def _check_unique_points(cls, points: list[OperatingPoint]) -> list[OperatingPoint]:
        _refuse_repeats("operating point", [point.name for point in points])
        return points

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        names = [entry.file for entry in self.entries]
        # Case counts as equal: on some file systems the two would be one file.
        _refuse_repeats("file", [name.lower() for name in (MANIFEST_FILE, *names)])
        if self.tokenizer.pieces != self.model.vocab_size:
            raise ValueError(
                f"the tokenizer has {self.tokenizer.pieces} pieces, "
                f"but the model's vocab_size is {self.model.vocab_size}"
            )
        roles = Counter(entry.role for entry in self.files)
        expected = Counter(
            ["weights", "tokenizer"]
            + ["predictors"] * bool(self.predictors)
            + ["known_answers"] * (self.compute_type != "float32")
            + ["shortlist"] * (self.shortlist is not None)
        )
        if roles != expected:
            raise ValueError(f"files have the roles {sorted(roles.elements())}, expected {sorted(expected)}")
        self._check_predictors()
        if self.shortlist is not None and self.model.head == "untied":
            raise ValueError("there is a shortlist, but exit heads are untied: shortlists are for tied ones")
        if self.quantisation is not None and self.quantisation.compute_type != self.compute_type:
            reported = self.quantisation.compute_type
            raise ValueError(f"compute_type is {self.compute_type!r}, but the quantisation report is of {reported!r}")
        return self

    def _check_predictors(self) -> None:
        _refuse_repeats("predictor", [entry.name for entry in self.predictors])
        blocks = self.model.decoder_blocks
        if self.predictors and blocks == 1:
            raise ValueError("there are predictors, but one decoder block leaves nothing to decide")
        for entry in self.predictors:
            allowed = {"halting": {1, blocks - 1}, "certainty": {blocks - 1}}.get(entry.kind, {blocks})
            if entry.rows not in allowed:
                expected = " or ".join(map(str, sorted(allowed)))
                raise ValueError(f"predictor {entry.name!r} ({entry.kind}) has {entry.rows} rows, expected {expected}")

    @property
    def entries(self) -> list[GraphEntry | FileEntry]:
        """All files of the bundle but the manifest."""
        return [*self.graphs, *self.files]

    def to_bytes(self) -> bytes:
        """Content of ``manifest.json``: indented JSON in UTF-8, ending with a line feed."""
        return self.model_dump_json(indent=2).encode() + b"\n"

    @classmethod
    def from_bytes(cls, data: bytes, name: str = MANIFEST_FILE) -> "Manifest":
        """Parse ``manifest.json``.

        Args:
            data: The file's content.
            name: What error messages call it.

        Raises:
            BundleError: Not JSON, not a bundle's manifest, an unknown version, or wrong fields;
                all wrong fields are listed.
        """
        _check_version(data, name)
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            raise BundleError(f"{name} is not valid {list_problems(error, 'manifest')}\n{EXPORT_AGAIN}") from error


def is_bundle(folder: Path) -> bool:
    """Whether a folder holds a bundle, of this or another version: its manifest says so."""
    try:
        content = json.loads((folder / MANIFEST_FILE).read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and content.get("format") == FORMAT


def _refuse_repeats(what: str, names: list[str]) -> None:
    repeated = sorted(name for name, count in Counter(names).items() if count > 1)
    if repeated:
        raise ValueError(f"{what} {repeated[0]!r} is listed more than once")


def _check_version(data: bytes, name: str) -> None:
    """Look at format and version alone, so that another version gives one clear message."""
    try:
        content = json.loads(data, parse_constant=lambda _: math.nan)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{name} is not JSON ({error}): {EXPORT_AGAIN}") from error
    found = content.get("format") if isinstance(content, dict) else None
    if found != FORMAT:
        raise BundleError(
            f"{name} is not the manifest of a bundle: format is {found!r}, expected {FORMAT!r}; give a folder that "
            "`edgeseq export` wrote"
        )
    version = content.get("format_version")
    if type(version) is not int or version != FORMAT_VERSION:
        raise BundleError(
            f"{name} has format_version {version!r}; this edgeseq reads version {FORMAT_VERSION}: "
            "export the model again, or install the edgeseq that wrote the bundle"
        )
