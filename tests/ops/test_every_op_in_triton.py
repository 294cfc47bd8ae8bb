"""What every op promises, kept by its Triton kernels too."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ocvtp_kernels import backends, use_backend
from ocvtp_kernels.ops.registry import COMPOSED
from tests.cases import outputs, to_device, triton_dtypes
from tests.ops.cases import ARGUMENTS, op
from tests.ops.test_every_op import map_tensors

pytest.importorskip("triton", reason="triton is not installed")

pytestmark = [pytest.mark.interpreter, pytest.mark.usefixtures("poisoned")]
WITH_KERNEL = [n for n in ARGUMENTS if n in COMPOSED or "triton" in backends._kernels[n]]
EVERY_OP = pytest.mark.parametrize("name", WITH_KERNEL)
EVERY_DTYPE = pytest.mark.parametrize("dtype", triton_dtypes())


def run(name: str, arguments: object) -> tuple[Tensor, ...]:
    with use_backend("triton"):
        return outputs(op(name)(*map_tensors(to_device, arguments)))


def test_only_what_torch_does_as_well_has_no_kernel() -> None:
    assert set(ARGUMENTS) - set(WITH_KERNEL) == {"channel_variance"}


def test_gradients_are_taken_all_the_same() -> None:
    def gradients(arguments: Any) -> tuple[Tensor, ...]:
        leaves = [tensor.detach().requires_grad_() for tensor in arguments[:3]]
        updates, _ = torch.ops.ocvtp.slot_attention(*leaves, *arguments[3:])
        return torch.autograd.grad(updates.sum(), leaves)

    arguments = ARGUMENTS["slot_attention"]()
    with use_backend("triton"):
        got = gradients(map_tensors(to_device, arguments))
    for a, b in zip(got, gradients(arguments), strict=True):
        torch.testing.assert_close(a.cpu(), b)


@EVERY_OP
@EVERY_DTYPE
def test_opcheck(name: str, dtype: torch.dtype) -> None:
    arguments = map_tensors(to_device, ARGUMENTS[name](dtype=dtype))
    with use_backend("triton"):
        torch.library.opcheck(op(name), arguments)


@EVERY_OP
def test_the_cpus_answer(name: str) -> None:
    got = run(name, ARGUMENTS[name](batch=3))
    expected = outputs(op(name)(*ARGUMENTS[name](batch=3, dtype=torch.float64)))
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a.cpu(), b.to(a.dtype), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@EVERY_OP
def test_compiles_whole_with_any_batch(name: str) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(op(name), fullgraph=True, dynamic=True, backend="aot_eager")
    for batch in (2, 3):
        arguments = map_tensors(to_device, ARGUMENTS[name](batch=batch))
        with use_backend("triton"):
            for got, expected in zip(
                outputs(compiled(*arguments)), outputs(op(name)(*arguments)), strict=True
            ):
                torch.testing.assert_close(got, expected)


@EVERY_OP
@EVERY_DTYPE
def test_two_runs_are_bitwise_equal(name: str, dtype: torch.dtype) -> None:
    first, second = (run(name, ARGUMENTS[name](dtype=dtype)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@EVERY_OP
def test_an_empty_batch(name: str) -> None:
    if name == "gru_cell_backward":
        pytest.skip("the weights' gradients have no batch; its empty case is in tests/ops/gru_cell")
    for result, full in zip(
        run(name, ARGUMENTS[name](batch=0)), run(name, ARGUMENTS[name](batch=1)), strict=True
    ):
        assert result.shape == (0, *full.shape[1:])


@EVERY_OP
def test_strided_inputs_equal_dense_ones(name: str) -> None:
    arguments = ARGUMENTS[name]()
    dense = map_tensors(Tensor.contiguous, arguments)
    for a, b in zip(run(name, arguments), run(name, dense), strict=True):
        torch.testing.assert_close(a, b)
