"""What reads or writes past a tensor of its launch, or askew, is caught in the interpreter."""

from __future__ import annotations

from typing import Any

import pytest
import torch

triton = pytest.importorskip("triton", reason="Triton is not installed")
tl = pytest.importorskip("triton.language", reason="Triton is not installed")
gpu_launch: Any = pytest.importorskip("ocvtp_kernels.triton_common.launch")

pytestmark = [
    pytest.mark.interpreter,
    pytest.mark.skipif(
        not gpu_launch.interpreting(), reason="Triton compiles here: TRITON_INTERPRET is not 1"
    ),
]


@triton.jit
def doubling_kernel(x, out, live, stored, LANES: tl.constexpr):
    lane = tl.arange(0, LANES)
    values = tl.load(x + lane, mask=lane < live, other=0.0)
    tl.store(out + lane, 2 * values, mask=lane < stored)


@triton.jit
def plain_kernel(x, out, semaphore, place, LANES: tl.constexpr):
    before = tl.atomic_add(semaphore + place, 1)
    tl.atomic_cas(semaphore, before, before)
    tl.store(out + tl.arange(0, LANES), tl.load(x + tl.arange(0, LANES)))


@triton.jit
def askew_kernel(x, out):
    pointer = (x.to(tl.pointer_type(tl.int8)) + 2).to(tl.pointer_type(tl.float32))
    tl.store(out, tl.load(pointer))


def launch(kernel: Any, **arguments: Any) -> None:
    gpu_launch.launch(kernel, (1,), arguments, num_warps=4)


def test_masked_lanes_may_lie_anywhere() -> None:
    x = torch.arange(20.0)
    out = torch.zeros_like(x)
    launch(doubling_kernel, x=x, out=out, live=20, stored=20, LANES=32)
    assert torch.equal(out, 2 * x)


@pytest.mark.parametrize(("live", "stored"), [(17, 16), (16, 17)], ids=["load", "store"])
def test_one_element_past_a_tensor_is_caught(live: int, stored: int) -> None:
    # The memory beyond is that of other views, as in a workspace.
    memory = torch.ones(100)
    views = {"x": memory[20:36], "out": memory[60:76]}
    launch(doubling_kernel, **views, live=16, stored=16, LANES=32)
    with pytest.raises(Exception, match="not within one of the launch's tensors"):
        launch(doubling_kernel, **views, live=live, stored=stored, LANES=32)


@pytest.mark.parametrize("change", [{"place": 1}, {"x": torch.ones(15)}, {"out": torch.ones(15)}])
def test_accesses_without_a_mask_are_checked(change: dict[str, Any]) -> None:
    semaphore = torch.zeros(1, dtype=torch.int32)
    given = {"x": torch.ones(16), "out": torch.zeros(16), "semaphore": semaphore, "place": 0}
    launch(plain_kernel, **given, LANES=16)
    assert semaphore.item() == 1 and given["out"].sum() == 16
    with pytest.raises(Exception, match="not within one of the launch's tensors"):
        launch(plain_kernel, **{**given, **change}, LANES=16)


def test_an_access_askew_is_caught() -> None:
    with pytest.raises(Exception, match=r"elements of 4 bytes .* not aligned"):
        launch(askew_kernel, x=torch.ones(4), out=torch.ones(1))


def test_the_interpreter_is_left_as_it_was() -> None:
    builder = triton.runtime.interpreter.interpreter_builder
    before = dict(vars(builder))
    x = torch.ones(16)
    launch(doubling_kernel, x=x, out=x, live=16, stored=16, LANES=16)
    assert vars(builder).keys() - before.keys() <= {"grid_dim", "grid_idx"}
    doubling_kernel[(1,)](x, x, 16, 16, LANES=16)
    assert torch.equal(x, torch.full_like(x, 4.0))
