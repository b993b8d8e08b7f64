"""Matrix products are made in the precision that was asked for, or in the one that is faster here."""

from __future__ import annotations

import pytest
import torch

from edgeseq.training import precision
from edgeseq.training.precision import WORTHWHILE, pick_precision

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_precision_asked_for_is_taken(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "_seconds", lambda dtype: pytest.fail(f"{dtype} was timed"))
    assert pick_precision("float32" if dtype == torch.float32 else "bfloat16", CPU) == dtype


@pytest.mark.parametrize(
    ("times_as_fast", "dtype"),
    [
        (3.0, torch.bfloat16),
        (WORTHWHILE + 0.01, torch.bfloat16),
        (WORTHWHILE - 0.01, torch.float32),
        (0.02, torch.float32),
    ],
)
def test_auto_takes_bfloat16_where_it_is_clearly_faster(
    times_as_fast: float, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "_seconds", lambda dtype: 1.0 if dtype == torch.float32 else 1 / times_as_fast)
    assert pick_precision("auto", CPU) == dtype


@pytest.mark.parametrize("has_it", [False, True])
def test_auto_asks_a_gpu_for_bfloat16_of_its_own(has_it: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda *, including_emulation: has_it and not including_emulation
    )
    assert pick_precision("auto", torch.device("cuda")) == (torch.bfloat16 if has_it else torch.float32)


def test_products_are_timed() -> None:
    assert 0 < precision._seconds(torch.float32) < 1
    assert pick_precision("auto", CPU) in {torch.float32, torch.bfloat16}
