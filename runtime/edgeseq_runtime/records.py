"""What the files that describe a bundle are made of: a strict base class, and numbers and names within bounds."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

MAX_FILE_BYTES = 2**31 - 1
"""Largest file a bundle may list: the limit of protobuf, hence of one ONNX graph."""


def _plain_file_name(name: str) -> str:
    allowed = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")
    if not name or not set(name) <= allowed or name.startswith((".", "-")):
        raise ValueError(
            f"{name!r} is not a plain file name: expected letters, digits, '.', '_' and '-' only, "
            "starting with a letter, digit or '_'"
        )
    return name


FileName = Annotated[str, Field(max_length=100), AfterValidator(_plain_file_name)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
FileSize = Annotated[int, Field(gt=0, le=MAX_FILE_BYTES)]
PositiveInt = Annotated[int, Field(gt=0, lt=2**31)]
SizeInt = Annotated[int, Field(ge=0, lt=2**31)]
CountInt = Annotated[int, Field(ge=0)]
Measure = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]

ComputeTypeName = Literal["float32", "int8", "int8-weights", "int4"]
CandidateWeights = Literal["float32", "int8"]
"""How the graphs of a shortlist keep the weights of a sentence's candidates."""


class Record(BaseModel):
    """An entry of a file: nothing is converted, nothing unknown passes."""

    # Built when one is read, not when its module is imported: of a start-up of half a second this saves a twentieth.
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", defer_build=True)


def list_problems(error: ValidationError, whole: str) -> str:
    """Say what is wrong with a file, a line each: ``(2 problems):`` and so on.

    Args:
        error: What pydantic found.
        whole: Where a problem lies that is in no field.
    """
    problems = [
        f"  {'.'.join(str(part) for part in problem['loc']) or whole}: {problem['msg'].removeprefix('Value error, ')}"
        for problem in error.errors(include_url=False)
    ]
    return f"({len(problems)} problems):\n" + "\n".join(problems)
