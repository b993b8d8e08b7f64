"""What `import edgeseq_runtime` offers."""

from importlib import metadata

import pytest

import edgeseq_runtime
from edgeseq_runtime import errors


def test_every_public_name_can_be_had() -> None:
    for name in edgeseq_runtime.__all__:
        assert getattr(edgeseq_runtime, name) is not None
    assert set(edgeseq_runtime.__all__) <= set(dir(edgeseq_runtime))


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'edgeseq_runtime' has no attribute 'Transl'"):
        edgeseq_runtime.Transl  # noqa: B018


def test_all_errors_have_one_root() -> None:
    found = [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, Exception)]
    kinds = [each for each in found if not issubclass(each, Warning)]
    assert len(kinds) > 4
    assert all(issubclass(each, edgeseq_runtime.EdgeseqRuntimeError) for each in kinds)


def test_version_is_that_of_the_distribution() -> None:
    assert edgeseq_runtime.__version__ == metadata.version("edgeseq")
