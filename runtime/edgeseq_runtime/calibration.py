"""``calibration.json``: what ``edgeseq calibrate`` measured of a bundle on a machine.

It lies in the bundle's folder beside the manifest and is no part of it, so that calibrating changes
no hash. It names the bundle it belongs to by its hash; that of another bundle is refused, because
thresholds mean nothing to another model.
"""

from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from edgeseq_runtime.errors import BundleError
from edgeseq_runtime.records import Measure, PositiveInt, Record, Sha256, list_problems

CALIBRATION_FILE = "calibration.json"
CALIBRATION_VERSION: Final = 2
CALIBRATE_AGAIN = "delete it, and run `edgeseq calibrate` to have operating points again"

_Level = Annotated[float, Field(gt=0, lt=1)]


class Machine(Record):
    """Where and how times were measured.

    Attributes:
        provider: The execution provider of onnxruntime.
        onnxruntime: Its version.
        batch_size: Sentences decoded together.
        cpu_count: Logical processors of the machine.
    """

    provider: Annotated[str, Field(min_length=1, max_length=100)]
    onnxruntime: Annotated[str, Field(min_length=1, max_length=100)]
    batch_size: PositiveInt
    cpu_count: PositiveInt


class MeasuredPolicy(Record):
    """What a depth policy gave on the calibration text.

    Attributes:
        policy: The policy in full, such as ``halting:0.9,0.8@1,2``.
        bleu: Corpus BLEU, 0 to 100.
        chrf: Corpus chrF, 0 to 100.
        average_depth: Blocks used per generated token, EOS included.
        flops_per_token: Of the decoder, per generated token.
        ms_per_sentence: Wall time in milliseconds, tokenizer and encoder included.
    """

    policy: Annotated[str, Field(min_length=1, max_length=5000)]
    bleu: Measure
    chrf: Measure
    average_depth: Measure
    flops_per_token: Measure
    ms_per_sentence: Measure

    @field_validator("policy")
    @classmethod
    def _check_policy(cls, policy: str) -> str:
        if policy.partition(":")[0] == "adaptive":
            raise ValueError(f"{policy!r} names an operating point, expected the policy it stands for")
        return policy


class Guarantee(Record):
    """With probability at least 1 - epsilon, the expected loss against full depth is at most delta.

    The probability is over the sentences that were drawn to test with.

    Attributes:
        loss: Of a sentence: by how much its chrF falls, or the share of pieces that differ.
        delta: Bound of the expected loss.
        epsilon: Bound of the probability that ``delta`` is exceeded.
        sentences: Sentences tested with; none of them was used to propose the policy.
        mean_loss: Their mean loss.
        p_value: Of the hypothesis that ``delta`` is exceeded.
    """

    loss: Literal["chrf-drop", "disagreement"]
    delta: _Level
    epsilon: _Level
    sentences: PositiveInt
    mean_loss: Measure
    p_value: Measure

    def describe(self) -> str:
        """Say it in words."""
        return (
            f"expected {self.loss} against full depth at most {self.delta:g}, but for a chance of {self.epsilon:g} "
            f"({self.mean_loss:.4f} on {self.sentences:,} sentences, p = {self.p_value:.2g})"
        )


class CalibratedPoint(MeasuredPolicy):
    """A depth policy under a name.

    Attributes:
        name: What follows ``adaptive:``.
        guarantee: What is known of it beyond measurements; None for most.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,50}$")]
    guarantee: Guarantee | None = None


class Calibration(Record):
    """The whole of ``calibration.json``.

    Attributes:
        created: ISO date.
        bundle_sha256: Hash of the bundle it belongs to.
        sentences: Size of the calibration text.
        price: What was to be saved: milliseconds, FLOPs or blocks.
        full_depth: What full depth gave.
        points: Operating points, each name once.
    """

    format: Literal["edgeseq-calibration"] = "edgeseq-calibration"
    format_version: Literal[2] = CALIBRATION_VERSION
    edgeseq_version: str
    created: Annotated[str, Field(pattern=r"^\d{4}-\d{2}-\d{2}")]
    bundle_sha256: Sha256
    machine: Machine
    sentences: PositiveInt
    price: Literal["ms", "flops", "blocks"]
    full_depth: MeasuredPolicy
    points: list[CalibratedPoint]

    @model_validator(mode="after")
    def _check_unique_points(self) -> Self:
        names = [point.name for point in self.points]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"operating point {name!r} is listed more than once")
        return self

    def to_bytes(self) -> bytes:
        """Content of ``calibration.json``: indented JSON in UTF-8, ending with a line feed."""
        return self.model_dump_json(indent=2).encode() + b"\n"


def parse_calibration(data: bytes, path: Path, bundle_sha256: str) -> Calibration:
    """Read ``calibration.json``.

    Args:
        data: The file's content.
        path: What error messages call it.
        bundle_sha256: Hash of the bundle in whose folder it lies.

    Raises:
        BundleError: It is damaged, of another version, or another bundle's.
    """
    try:
        calibration = Calibration.model_validate_json(data)
    except ValidationError as error:
        raise BundleError(f"{path} is not valid; {CALIBRATE_AGAIN} {list_problems(error, 'calibration')}") from error
    if calibration.bundle_sha256 != bundle_sha256:
        raise BundleError(
            f"{path} belongs to the bundle {calibration.bundle_sha256[:12]}, but this one is {bundle_sha256[:12]}: "
            f"thresholds of another model mean nothing here; {CALIBRATE_AGAIN}"
        )
    return calibration
