from __future__ import annotations

from typing import Any

import pytest
import torch

triton = pytest.importorskip("triton", reason="Triton is not installed")
tl = pytest.importorskip("triton.language", reason="Triton is not installed")
counted: Any = pytest.importorskip("bench.counted")
gpu_launch: Any = pytest.importorskip("ocvtp_kernels.triton_common.launch")

pytestmark = [
    pytest.mark.interpreter,
    pytest.mark.skipif(
        not gpu_launch.interpreting(), reason="Triton compiles here: TRITON_INTERPRET is not 1"
    ),
]


@triton.jit
def doubling_kernel(x, out, live, OFFSET: tl.constexpr, LANES: tl.constexpr):
    lane = tl.program_id(0) * OFFSET + tl.arange(0, LANES)
    values = tl.load(x + lane, mask=lane < live, other=0.0)
    tl.store(out + lane, 2 * values, mask=lane < live)


@triton.jit
def counting_kernel(semaphore, out):
    before = tl.atomic_add(semaphore, 1)
    tl.store(out + before, tl.load(semaphore))


@triton.jit
def product_kernel(a, b, out, ROWS: tl.constexpr, INNER: tl.constexpr, COLUMNS: tl.constexpr):
    row, inner, column = tl.arange(0, ROWS), tl.arange(0, INNER), tl.arange(0, COLUMNS)
    left = tl.load(a + row[:, None] * INNER + inner[None, :])
    right = tl.load(b + inner[:, None] * COLUMNS + column[None, :])
    total = tl.dot(left, right, tl.zeros([ROWS, COLUMNS], tl.float32))
    tl.store(out + row[:, None] * COLUMNS + column[None, :], total)


def run(kernel: Any, programs: int, multiply: bool = True, **arguments: Any) -> Any:
    with counted.counting(multiply) as counts:
        gpu_launch.launch(kernel, (programs,), arguments, num_warps=4)
    (count,) = counts
    return count


@pytest.mark.parametrize(("dtype", "size"), [(torch.float16, 2), (torch.float32, 4)])
def test_masked_lanes_do_not_count(dtype: torch.dtype, size: int) -> None:
    x = torch.arange(20, dtype=dtype)
    out = torch.zeros_like(x)
    count = run(doubling_kernel, 2, x=x, out=out, live=20, OFFSET=16, LANES=16)
    assert torch.equal(out, 2 * x)
    assert (count.kernel, count.programs) == ("doubling_kernel", 2)
    assert count.numbers == {"live": 20, "OFFSET": 16, "LANES": 16}
    assert count.loaded == count.stored == count.read == count.written == 20 * size
    assert count.flops == 0


def test_a_byte_counts_once_a_launch_however_often_it_is_touched() -> None:
    # All in one allocation, as in the workspace of prune.
    memory = torch.zeros(3 * 24)
    x, out = memory[1:25], memory[40:64]
    arguments = {"x": x, "out": out, "live": 24, "OFFSET": 4, "LANES": 16}
    with counted.counting() as counts:
        for _ in range(2):
            gpu_launch.launch(doubling_kernel, (3,), arguments, num_warps=4)
    for count in counts:
        assert count.loaded == count.stored == 3 * 16 * 4
        assert count.read == count.written == 24 * 4


def test_in_place_reads_and_writes() -> None:
    x = torch.ones(16)
    count = run(doubling_kernel, 1, x=x, out=x, live=16, OFFSET=16, LANES=16)
    assert (count.read, count.written) == (64, 64)


def test_atomics_load_and_store() -> None:
    semaphore, out = torch.zeros(1, dtype=torch.int32), torch.zeros(4, dtype=torch.int64)
    count = run(counting_kernel, 3, semaphore=semaphore, out=out)
    assert out.tolist() == [1, 2, 3, 0]
    # Each program an atomic's four bytes both ways, a load without mask, and eight bytes stored.
    assert (count.loaded, count.stored) == (3 * (4 + 4), 3 * (4 + 8))
    assert (count.read, count.written) == (4, 4 + 3 * 8)


@pytest.mark.parametrize("multiply", [True, False])
def test_dots(multiply: bool) -> None:
    a, b, out = torch.ones(16, 32).half(), torch.ones(32, 64).half(), torch.empty(16, 64)
    sizes = {"ROWS": 16, "INNER": 32, "COLUMNS": 64}
    count = run(product_kernel, 2, multiply, a=a, b=b, out=out, **sizes)
    assert count.flops == 2 * (2 * 16 * 32 * 64)
    assert count.loaded == 2 * (a.numel() + b.numel()) * 2
    assert count.read == (a.numel() + b.numel()) * 2
    assert count.written == out.numel() * 4
    assert torch.equal(out, torch.full_like(out, 32.0 if multiply else 0.0))


def test_an_access_outside_of_every_tensor_is_refused() -> None:
    x = torch.ones(16)
    with pytest.raises(Exception, match="outside of every tensor"):
        run(doubling_kernel, 1, x=x, out=x.clone(), live=17, OFFSET=16, LANES=32)


def test_the_interpreter_is_left_as_it_was() -> None:
    builder = counted.interpreter_builder
    before = dict(vars(builder))
    x = torch.ones(16)
    run(doubling_kernel, 1, x=x, out=x, live=16, OFFSET=16, LANES=16)
    assert vars(builder).keys() - before.keys() <= {"grid_dim", "grid_idx"}
    doubling_kernel[(1,)](x, x, 16, OFFSET=16, LANES=16)
    assert torch.equal(x, torch.full_like(x, 4.0))
