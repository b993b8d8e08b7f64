"""Open a bundle: everything is checked before any of it is used.

The order matters. Names and links first, so that nothing outside the folder is ever opened; then
sizes and hashes, so that nothing changed is parsed; then the declared signatures, so that a bundle
of another model is refused before onnxruntime sees a graph. Creating sessions is not done here.
"""

import contextlib
import hashlib
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeseq_runtime.arrays import FloatArray
from edgeseq_runtime.calibration import CALIBRATE_AGAIN, CALIBRATION_FILE, Calibration, parse_calibration
from edgeseq_runtime.errors import EXPORT_AGAIN, BundleError, InputError, PolicyError
from edgeseq_runtime.file_identities import FileIdentities, identify_files
from edgeseq_runtime.manifest import (
    MANIFEST_FILE,
    FileEntry,
    FileRole,
    GraphEntry,
    Manifest,
    PredictorKind,
    TensorSpec,
)
from edgeseq_runtime.policy import DepthPolicy
from edgeseq_runtime.policy_names import operating_points, parse_policy
from edgeseq_runtime.predictors import CertaintyUnits, DepthClassifier, HaltingUnits, Predictor
from edgeseq_runtime.safetensors import TensorType, read_safetensors
from edgeseq_runtime.shortlist import Shortlist
from edgeseq_runtime.signatures import GraphSignature, expected_signatures
from edgeseq_runtime.tokenizer import Tokenizer

MAX_MANIFEST_BYTES = 4 << 20
MAX_TENSORS_BYTES = 64 << 20
MAX_CALIBRATION_BYTES = 1 << 20
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, eq=False)
class Bundle:
    """A bundle whose files have been checked.

    Attributes:
        path: The folder.
        manifest: Its table of contents.
        sha256: Hash of ``manifest.json``, which lists the hashes of all other files, so it
            stands for the whole bundle.
        files: What its graphs and weights were before their hashes were computed.
        tokenizer: Its tokenizer.
        predictors: Weights of its depth predictors by name.
        calibration: What was measured of it on a machine; None where it was not.
        known_answers: Inputs and outputs by which a machine's 8-bit products are checked; see
            ``known_answers``. Empty for float32.
        shortlist: Its vocabulary shortlist; None where it has none.
    """

    path: Path
    manifest: Manifest
    sha256: str
    files: FileIdentities
    tokenizer: Tokenizer
    predictors: dict[str, Predictor]
    calibration: Calibration | None = None
    known_answers: dict[str, FloatArray] = field(default_factory=dict)
    shortlist: Shortlist | None = None

    @property
    def operating_points(self) -> dict[str, str]:
        """Policies by name; see :func:`edgeseq_runtime.policy_names.operating_points`."""
        return operating_points(self.manifest, self.calibration)

    def policy(self, text: str | int) -> DepthPolicy:
        """Parse a depth policy as :func:`edgeseq_runtime.policy_names.parse_policy` does."""
        return parse_policy(text, self.manifest, self.predictors, self.calibration)


def load_bundle(path: str | Path) -> Bundle:
    """Check a bundle and read all of it but the graphs.

    Raises:
        BundleError: The folder is missing, incomplete, changed, or not of this format.
    """
    folder = Path(path)
    with _readable(folder):
        if not folder.is_dir():
            raise BundleError(f"bundle {str(path)!r} is not a folder: expected what `edgeseq export` wrote")
        files = identify_files(folder)
    data = _read_manifest(folder)
    manifest = Manifest.from_bytes(data, str(folder / MANIFEST_FILE))
    for entry in manifest.entries:
        _check_file(folder, entry)
    _check_signatures(manifest, folder)
    sha256 = hashlib.sha256(data).hexdigest()
    predictors = _read_predictors(folder, manifest)
    return Bundle(
        path=folder,
        manifest=manifest,
        sha256=sha256,
        files=files,
        tokenizer=_read_tokenizer(folder, manifest),
        predictors=predictors,
        known_answers={} if manifest.compute_type == "float32" else _read_tensors(folder, manifest, "known_answers"),
        calibration=_read_calibration(folder, manifest, predictors, sha256),
        shortlist=_read_shortlist(folder, manifest),
    )


def file_sha256(path: str | Path) -> str:
    """Hash of a file's content, in hexadecimal."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def describe_graph(folder: Path, signature: GraphSignature) -> GraphEntry:
    """Manifest entry of a graph that has been written to ``folder``."""
    path = folder / signature.file
    return GraphEntry(
        file=signature.file,
        role=signature.role,
        block=signature.block,
        size=path.stat().st_size,
        sha256=file_sha256(path),
        inputs=list(signature.inputs),
        outputs=list(signature.outputs),
    )


def describe_file(folder: Path, file: str, role: FileRole) -> FileEntry:
    """Manifest entry of a file other than a graph that has been written to ``folder``."""
    path = folder / file
    return FileEntry(file=file, role=role, size=path.stat().st_size, sha256=file_sha256(path))


def _read_manifest(folder: Path) -> bytes:
    size = _regular_file_size(folder, MANIFEST_FILE)
    if size > MAX_MANIFEST_BYTES:
        raise BundleError(
            f"{folder / MANIFEST_FILE} has {size} bytes, expected at most {MAX_MANIFEST_BYTES}; {EXPORT_AGAIN}"
        )
    with _readable(folder / MANIFEST_FILE):
        return (folder / MANIFEST_FILE).read_bytes()


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Say of a file that is there and cannot be read that the bundle cannot be used."""
    try:
        yield
    except OSError as error:
        raise BundleError(
            f"{path} cannot be read: {error.strerror}; let this user read all files of the bundle"
        ) from error


@contextlib.contextmanager
def _with_way_out() -> Iterator[None]:
    """Say what to do to who reads a file's format, and knows nothing of bundles."""
    try:
        yield
    except (BundleError, InputError) as error:
        raise BundleError(f"{error}; {EXPORT_AGAIN}") from error


def _regular_file_size(folder: Path, file: str) -> int:
    """Size in bytes of a file that is one, and is no link to somewhere else."""
    path = folder / file
    try:
        status = path.lstat()
    except OSError as error:
        raise BundleError(f"bundle {str(folder)!r} lacks {file}: {error.strerror}; export or copy it again") from error
    if not stat.S_ISREG(status.st_mode):
        kind = "a symbolic link" if stat.S_ISLNK(status.st_mode) else "not a regular file"
        raise BundleError(f"{path} is {kind}: expected a regular file inside the bundle; copy its content there")
    if status.st_nlink > 1:
        raise BundleError(
            f"{path} is a hard link ({status.st_nlink} names): expected a file of the bundle's "
            "own; copy the bundle without links"
        )
    return status.st_size


def _check_file(folder: Path, entry: GraphEntry | FileEntry) -> None:
    size = _regular_file_size(folder, entry.file)
    if size != entry.size:
        raise BundleError(
            f"{folder / entry.file} has {size} bytes, but the manifest says {entry.size}: "
            "the bundle was changed or copied in part; export or copy it again"
        )
    with _readable(folder / entry.file):
        found = file_sha256(folder / entry.file)
    if found != entry.sha256:
        raise BundleError(
            f"{folder / entry.file} has the SHA-256 {found}, but the manifest says {entry.sha256}: "
            f"the file was changed; {EXPORT_AGAIN}"
        )


def _check_signatures(manifest: Manifest, folder: Path) -> None:
    weights = None if manifest.shortlist is None else manifest.shortlist.weights
    expected = {signature.file: signature for signature in expected_signatures(manifest.model, weights)}
    declared = {entry.file: entry for entry in manifest.graphs}
    problems = [f"graph {file} is missing" for file in expected if file not in declared]
    problems += [f"graph {file} is not expected" for file in declared if file not in expected]
    for file, signature in expected.items():
        if file in declared:
            problems += _differences(declared[file], signature)
    if problems:
        listed = "\n".join(f"  {problem}" for problem in problems)
        raise BundleError(
            f"{folder / MANIFEST_FILE} lists graphs that do not fit its model ({len(problems)} problems); "
            f"{EXPORT_AGAIN}:\n{listed}"
        )


def _differences(entry: GraphEntry, signature: GraphSignature) -> list[str]:
    problems = []
    if (entry.role, entry.block) != (signature.role, signature.block):
        problems.append(
            f"{entry.file}: is the {entry.role} of block {entry.block}, "
            f"expected the {signature.role} of block {signature.block}"
        )
    for what, found, wanted in (
        ("inputs", entry.inputs, signature.inputs),
        ("outputs", entry.outputs, signature.outputs),
    ):
        if found != list(wanted):
            problems.append(f"{entry.file}: {what} are {_list_tensors(found)}; expected {_list_tensors(wanted)}")
    return problems


def _list_tensors(tensors: Iterable[TensorSpec]) -> str:
    return ", ".join(f"{tensor.name} {tensor.dtype}{tensor.shape}" for tensor in tensors)


def _entry_of(manifest: Manifest, role: FileRole) -> FileEntry:
    return next(entry for entry in manifest.files if entry.role == role)


def _read_tokenizer(folder: Path, manifest: Manifest) -> Tokenizer:
    path = folder / _entry_of(manifest, "tokenizer").file
    with _with_way_out():
        tokenizer = Tokenizer(path)
    if tokenizer.vocab_size != manifest.tokenizer.pieces:
        raise BundleError(
            f"{path} has {tokenizer.vocab_size} pieces, but the manifest says {manifest.tokenizer.pieces}; "
            f"{EXPORT_AGAIN}"
        )
    return tokenizer


def _read_calibration(
    folder: Path, manifest: Manifest, predictors: dict[str, Predictor], sha256: str
) -> Calibration | None:
    path = folder / CALIBRATION_FILE
    if not os.path.lexists(path):
        return None
    size = _regular_file_size(folder, CALIBRATION_FILE)
    if size > MAX_CALIBRATION_BYTES:
        raise BundleError(f"{path} has {size} bytes, expected at most {MAX_CALIBRATION_BYTES}; {CALIBRATE_AGAIN}")
    with _readable(path):
        data = path.read_bytes()
    calibration = parse_calibration(data, path, sha256)
    for point in calibration.points:
        try:
            parse_policy(point.policy, manifest, predictors)
        except PolicyError as error:
            raise BundleError(f"{path}: operating point {point.name!r}: {error}; {CALIBRATE_AGAIN}") from error
    return calibration


def _read_tensors(
    folder: Path, manifest: Manifest, role: FileRole, dtype: TensorType = "F32"
) -> dict[str, npt.NDArray[Any]]:
    path = folder / _entry_of(manifest, role).file
    if path.stat().st_size > MAX_TENSORS_BYTES:
        raise BundleError(
            f"{path} has more than {MAX_TENSORS_BYTES} bytes, too large for {role.replace('_', ' ')}; {EXPORT_AGAIN}"
        )
    with _with_way_out():
        tensors = read_safetensors(path.read_bytes(), str(path), dtype)
    if not all(np.isfinite(tensor).all() for tensor in tensors.values()):
        raise BundleError(f"{path} holds numbers that are not finite: export the model again")
    return tensors


def _read_predictors(folder: Path, manifest: Manifest) -> dict[str, Predictor]:
    if not manifest.predictors:
        return {}
    path = folder / _entry_of(manifest, "predictors").file
    tensors = _read_tensors(folder, manifest, "predictors")
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    expected: dict[str, tuple[int, ...]] = {}
    for entry in manifest.predictors:
        expected |= entry.tensor_shapes(manifest.model.dim)
    if shapes != expected:
        raise BundleError(f"{path} holds {shapes}, expected {expected}; {EXPORT_AGAIN}")
    classes: dict[PredictorKind, type[Predictor]] = {"halting": HaltingUnits, "certainty": CertaintyUnits}
    return {
        entry.name: classes.get(entry.kind, DepthClassifier)(
            **{name.removeprefix(f"{entry.name}."): tensors[name] for name in entry.tensor_shapes(manifest.model.dim)}
        )
        for entry in manifest.predictors
    }


def _read_shortlist(folder: Path, manifest: Manifest) -> Shortlist | None:
    if manifest.shortlist is None:
        return None
    tensors = _read_tensors(folder, manifest, "shortlist", "U16")
    path = folder / _entry_of(manifest, "shortlist").file
    with _with_way_out():
        return Shortlist(manifest.shortlist, manifest.model.vocab_size, tensors, str(path))
