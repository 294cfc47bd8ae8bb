"""Every method on Triton's kernels: the ids of the reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ocvtp_kernels import use_backend
from ocvtp_kernels.selectors.registry import METHODS, select
from tests.cases import DEVICE
from tests.selectors.cases import PUBLISHED, Images

pytest.importorskip("triton", reason="triton is not installed")

pytestmark = [pytest.mark.interpreter, pytest.mark.usefixtures("poisoned")]

VARIANTS: list[tuple[str, dict[str, Any]]] = [(method, {}) for method in METHODS]
VARIANTS += [(method, {"as_published": True}) for method in PUBLISHED]


@pytest.mark.parametrize(("method", "options"), VARIANTS)
def test_every_method(method: str, options: dict[str, Any]) -> None:
    for seed in (1, 8):
        images = Images(seed, torch.float32)
        with use_backend("reference"):
            wanted = images.select(method, **options)
        inputs = {
            name: value.to(DEVICE) if isinstance(value, Tensor) else value
            for name, value in images.inputs.items()
        }
        with use_backend("triton"):
            got = select(images.tokens.to(DEVICE), images.budget, method, **inputs, **options)
        assert torch.equal(got.ids.cpu(), wanted.ids)
        for name in ("order", "found", "tokens", "extra"):
            one, other = getattr(got, name), getattr(wanted, name)
            assert (one is None) == (other is None)
            if one is not None:
                torch.testing.assert_close(one.cpu(), other, rtol=1e-4, atol=1e-4)
