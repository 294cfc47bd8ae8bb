"""What every op promises, whatever it computes."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from ocvtp_kernels import backends
from ocvtp_kernels.dtypes import product_dtype
from ocvtp_kernels.ops.registry import COMPOSED
from ocvtp_kernels.ops.slot_attention.reference import slot_attention_step
from tests.cases import assert_within_budget, outputs, running
from tests.ops.cases import ARGUMENTS, op

EVERY_OP = pytest.mark.parametrize("name", ARGUMENTS)


def test_no_op_is_left_out() -> None:
    assert set(ARGUMENTS) == {*backends.registered_ops(), *COMPOSED}


@EVERY_OP
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_opcheck(name: str, dtype: torch.dtype) -> None:
    torch.library.opcheck(op(name), ARGUMENTS[name](dtype=dtype))


@EVERY_OP
def test_opcheck_with_gradients(name: str) -> None:
    arguments = [
        value.requires_grad_() if isinstance(value, Tensor) and value.is_floating_point() else value
        for value in ARGUMENTS[name](dtype=torch.float64)
    ]
    torch.library.opcheck(op(name), tuple(arguments))


@EVERY_OP
def test_compiles_whole_with_any_batch(name: str) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(op(name), fullgraph=True, dynamic=True, backend="aot_eager")
    for batch in (2, 3, 5):
        arguments = ARGUMENTS[name](batch=batch)
        for got, expected in zip(
            outputs(compiled(*arguments)), outputs(op(name)(*arguments)), strict=True
        ):
            torch.testing.assert_close(got, expected)


@EVERY_OP
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_two_runs_are_bitwise_equal(name: str, dtype: torch.dtype) -> None:
    first, second = (outputs(op(name)(*ARGUMENTS[name](dtype=dtype))) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@EVERY_OP
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_fake_tells_shape_dtype_and_strides(name: str, dtype: torch.dtype) -> None:
    arguments = ARGUMENTS[name](dtype=dtype)
    real = outputs(op(name)(*arguments))
    with FakeTensorMode() as mode:
        fake = outputs(op(name)(*map_tensors(mode.from_tensor, arguments)))
    for a, b in zip(fake, real, strict=True):
        assert (a.shape, a.dtype, a.stride()) == (b.shape, b.dtype, b.stride())


def by_columns(tensor: Tensor) -> Tensor:
    """The same numbers, a channel's side by side in memory; its rows are those of one matrix."""
    return tensor.movedim(-1, 0).contiguous().movedim(0, -1)


@EVERY_OP
@pytest.mark.parametrize("backend", ["", "plain", "reference"])
@pytest.mark.parametrize("with_gradient", [False, True])
def test_strides_of_outputs_do_not_follow_those_of_arguments(
    name: str, backend: str, with_gradient: bool
) -> None:
    def asking(tensor: Tensor) -> Tensor:
        asks = with_gradient and tensor.is_floating_point()
        return tensor.detach().requires_grad_() if asks else tensor

    dense = map_tensors(Tensor.contiguous, ARGUMENTS[name]())
    strided = map_tensors(by_columns, dense)
    # One alone too: where arguments differ, torch follows some and not others.
    changed = [[*dense[:place], strided[place], *dense[place + 1 :]] for place in range(len(dense))]
    for given in (strided, *changed):
        with running(backend) if backend else nullcontext():
            results = outputs(op(name)(*map_tensors(asking, given)))
        assert all(result.is_contiguous() for result in results)


@EVERY_OP
def test_opcheck_and_compilation_hold_for_gpu_tensors_too(name: str) -> None:
    real = ARGUMENTS[name]()
    with FakeTensorMode():
        arguments = map_tensors(
            lambda t: torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="cuda"), real
        )
        assert all(t.device.type == "cuda" for t in outputs(op(name)(*arguments)))
        torch.library.opcheck(op(name), arguments)
        torch._dynamo.reset()
        compiled = torch.compile(op(name), fullgraph=True, backend="eager")
        assert all(t.device.type == "cuda" for t in outputs(compiled(*arguments)))


@EVERY_OP
def test_an_empty_batch(name: str) -> None:
    if name.startswith("gru_cell"):
        pytest.skip("the GRU has rows, not images; its empty cases are in tests/ops/gru_cell")
    for result, full in zip(
        outputs(op(name)(*ARGUMENTS[name](batch=0))),
        outputs(op(name)(*ARGUMENTS[name](batch=1))),
        strict=True,
    ):
        assert result.shape == (0, *full.shape[1:])


@EVERY_OP
def test_strided_inputs_equal_dense_ones(name: str) -> None:
    arguments = ARGUMENTS[name]()
    dense = map_tensors(Tensor.contiguous, arguments)
    for a, b in zip(outputs(op(name)(*arguments)), outputs(op(name)(*dense)), strict=True):
        torch.testing.assert_close(a, b)


MULTIPLY = [
    "prune",
    "prune_picks",
    "slot_attention",
    "slot_attention_with_attention",
    "slot_attention_backward",
    "gru_cell",
    "gru_cell_backward",
]
# What is copied only, and so stays in its own dtype.
COPIED = {"prune": [1], "argmax_gather": [2], "merge": [2]}


@pytest.mark.parametrize("name", sorted(backends.registered_ops()))
def test_autocast_leaves_half_precision_as_it_is(name: str) -> None:
    narrow = ARGUMENTS[name](dtype=torch.bfloat16)
    expected = outputs(op(name)(*narrow))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = outputs(op(name)(*narrow))
    for a, b in zip(mixed, expected, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", sorted(backends.registered_ops()))
@pytest.mark.parametrize("mixed", [False, True])
def test_autocast_multiplies_in_its_dtype_where_the_cpu_does(name: str, mixed: bool) -> None:
    half = torch.bfloat16
    wide = list(ARGUMENTS[name](dtype=torch.float32))
    if mixed:
        wide[-1] = map_tensors(lambda t: t.to(half) if t.is_floating_point() else t, wide[-1])
    multiplied = product_dtype(half, torch.device("cpu")) if name in MULTIPLY else torch.float32
    cast = [
        argument
        if place in COPIED.get(name, ())
        else map_tensors(lambda t: t.to(multiplied) if t.is_floating_point() else t, argument)
        for place, argument in enumerate(wide)
    ]
    with torch.autocast("cpu", dtype=half):
        got = outputs(op(name)(*wide))
    for a, b in zip(got, outputs(op(name)(*cast)), strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


def test_autocast_of_a_whole_iteration_keeps_the_error_budget() -> None:
    arguments = ARGUMENTS["slot_attention_step"](dtype=torch.float32)
    exact, _ = slot_attention_step(*map_tensors(Tensor.double, arguments))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = torch.ops.ocvtp.slot_attention_step(*arguments)
        plain, _ = slot_attention_step(*arguments)
    assert_within_budget(got, plain, exact)


@EVERY_OP
def test_bad_kinds_are_named(name: str) -> None:
    arguments = list(ARGUMENTS[name]())
    if name == "slot_attention_step":
        with pytest.raises(ValueError, match="weights"):
            op(name)(*arguments[:3], arguments[3][:4], 0.3)
        return
    arguments[0] = arguments[0][0]
    with pytest.raises((ValueError, TypeError), match="expected"):
        op(name)(*arguments)


@EVERY_OP
def test_bad_arguments_are_the_same_error_where_a_gradient_is_to_come(name: str) -> None:
    arguments = ARGUMENTS[name](dtype=torch.float64)
    tensors = [place for place, value in enumerate(arguments) if isinstance(value, Tensor)]
    for place in tensors:
        for cut in (lambda t: t[0], lambda t: t[..., 1:], lambda t: t[:, None]):
            bad = list(arguments)
            bad[place] = cut(bad[place])
            assert error_of(name, with_gradients(bad)) == error_of(name, bad)


def error_of(name: str, arguments: Any) -> str | None:
    """The message of the error that these arguments raise, or None."""
    try:
        op(name)(*arguments)
    except (ValueError, TypeError, RuntimeError) as error:
        return str(error)
    return None


def with_gradients(arguments: Any) -> Any:
    """The same arguments, of which every floating tensor asks for a gradient."""
    return map_tensors(
        lambda t: t.clone().requires_grad_() if t.is_floating_point() else t, arguments
    )


def map_tensors(function: Any, value: Any) -> Any:
    """Applies ``function`` to every tensor in nested tuples and lists."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, (list, tuple)):
        return type(value)(map_tensors(function, element) for element in value)
    return value
