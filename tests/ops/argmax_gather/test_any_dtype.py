"""Final tokens are copied only, so they may have any dtype that torch has."""

from __future__ import annotations

import pytest
import torch

from ocvtp_kernels import ops
from tests.cases import CPU_BACKENDS, random_tokens, running

# Quantized dtypes are those of quantized tensors.
DTYPES = sorted(
    {
        value
        for name, value in vars(torch).items()
        if isinstance(value, torch.dtype) and not name.startswith(("qint", "quint"))
    },
    key=str,
)


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.filterwarnings("ignore:ComplexHalf")
def test_rows_are_copied_to_the_bit(backend: str, batch: int) -> None:
    q, k = random_tokens(batch, 5, 8), random_tokens(batch, 20, 8, seed=1)
    for dtype in DTYPES:
        generator = torch.Generator().manual_seed(2)
        # Booleans other than 0 and 1 are none.
        most = 2 if dtype == torch.bool else 256
        shape = (batch, 20, 3 * dtype.itemsize)
        numbers = torch.randint(0, most, shape, generator=generator).to(torch.uint8)
        with running(backend):
            tokens, ids = ops.argmax_gather(q, k, numbers.view(dtype), None, 6)
        assert tokens.dtype == dtype
        expected = torch.stack([image[kept] for image, kept in zip(numbers, ids, strict=True)])
        assert torch.equal(tokens.view(torch.uint8), expected)


def test_a_gradient_that_another_argument_asks_for_passes_over_them() -> None:
    q, k = random_tokens(2, 5, 8).requires_grad_(), random_tokens(2, 20, 8, seed=1)
    final_tokens = torch.ones(2, 20, 4).to(torch.float8_e8m0fnu)
    for backend in ("reference", "plain"):
        with running(backend):
            tokens, _ = ops.argmax_gather(q, k, final_tokens, None, 6)
        assert tokens.requires_grad
        assert torch.autograd.grad(tokens, q, tokens.detach(), allow_unused=True) == (None,)
