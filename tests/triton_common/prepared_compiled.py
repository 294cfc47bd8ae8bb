"""Run by `test_prepared.py` in a process where kernels are compiled and nothing runs."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor
from torch._subclasses import FakeTensorMode
from triton.runtime.jit import JITFunction

from bench.host_driver import Driver, difference, standing_in
from ocvtp_kernels.triton_common.archs import ARCHS, pretend
from ocvtp_kernels.triton_common.launch import Launch, launch, watch
from ocvtp_kernels.triton_common.prepared import MAX_RECIPES, Prepared, prepared
from ocvtp_kernels.triton_common.recipe import Recipe


@triton.jit
def add_kernel(x, y, out, count, scale, FLAG: tl.constexpr, LANES: tl.constexpr):
    lane = tl.program_id(0) * LANES + tl.arange(0, LANES)
    value = tl.load(x + lane, mask=lane < count, other=0.0)
    if FLAG:
        value += tl.load(y + lane, mask=lane < count, other=0.0) * scale
    tl.store(out + lane, value, mask=lane < count)


@triton.jit
def dependent_kernel(x, out, PDL: tl.constexpr):
    if PDL:
        tl.extra.cuda.gdc_wait()
    tl.store(out, tl.load(x))


def add(x: Tensor, y: Tensor, out: Tensor, scale: float = 0.5, flag: bool = True) -> None:
    count = out.numel()
    launch(
        add_kernel,
        (-(-count // 64),),
        {"x": x, "y": y, "out": out, "count": count, "scale": scale, "FLAG": flag, "LANES": 64},
        num_warps=1,
    )


def several(
    x: Tensor, others: list[Tensor], scale: float, last: Tensor | None = None, flag: bool = True
) -> tuple[Tensor, ...]:
    """Views of one workspace and an allocation of its own; outputs that share memory and do not."""
    memory = torch.empty(4 * x.numel() * x.element_size(), dtype=torch.uint8, device=x.device)
    first, second = (part.view(x.dtype).view(x.shape) for part in memory.chunk(4)[1:3])
    alone = x.new_empty(x.numel() + 3)
    add(x, others[0], first, scale, flag)
    add(first, others[-1], second, scale)
    add(second, x if last is None else last, alone[3:], scale)
    both = torch.empty((2, *x.shape), dtype=x.dtype, device=x.device)
    out = torch.empty_like(x.t())
    add(alone, second, both[1], scale)
    add(alone[1:], second, out, scale)
    return both[1], out, both[0].view(-1)


@pytest.fixture(scope="module")
def driver() -> Iterator[Driver]:
    with standing_in(90) as driver:
        yield driver


@pytest.fixture(autouse=True)
def arch(driver: Driver) -> Iterator[None]:
    with pretend(ARCHS[90]):
        yield


def laid_out(offset: int = 0, dtype: torch.dtype = torch.float32, rows: int = 5) -> Tensor:
    return torch.zeros(offset + 24 * rows, dtype=dtype)[offset:].view(rows, 24)


def parts_of(whole: Tensor) -> tuple[Tensor, list[Tensor]]:
    return whole[:4], [whole[4:8]]


ARGUMENTS: dict[str, Callable[[], tuple[Any, ...]]] = {
    "plain": lambda: (laid_out(), [laid_out(), laid_out()], 0.25),
    "more rows": lambda: (laid_out(rows=9), [laid_out(), laid_out()], 0.25),
    "bfloat16": lambda: (laid_out(dtype=torch.bfloat16), [laid_out()], 0.25),
    "misaligned": lambda: (laid_out(1), [laid_out(), laid_out()], 0.25),
    "misaligned others": lambda: (laid_out(), [laid_out(1), laid_out(3)], 0.25),
    "strided": lambda: (laid_out()[:, ::2], [laid_out(), laid_out()], 0.25),
    "another number": lambda: (laid_out(), [laid_out(), laid_out()], 1.0),
    "a whole number": lambda: (laid_out(), [laid_out(), laid_out()], 1),
    "none": lambda: (laid_out(), [laid_out(), laid_out()], 0.25, None),
    "one": lambda: (laid_out(), [laid_out()], 0.25, laid_out()),
    "without": lambda: (laid_out(), [laid_out()], 0.25, laid_out(), False),
    "a tuple": lambda: (laid_out(), (laid_out(), laid_out()), 0.25),
    "one storage": lambda: (*parts_of(laid_out(rows=9)), 0.25),
}


def tensors_of(arguments: tuple[Any, ...]) -> list[Tensor]:
    flat = [arguments[0], *arguments[1], *arguments[3:]]
    return [each for each in flat if isinstance(each, Tensor)]


@pytest.mark.parametrize("name", ARGUMENTS)
def test_the_driver_gets_the_same(driver: Driver, name: str) -> None:
    function = prepared(several)
    function(*ARGUMENTS[name]())
    for _ in range(2):
        arguments = ARGUMENTS[name]()
        assert isinstance(function.kept(*arguments), Recipe)
        ordinary, expected = driver.given(lambda a=arguments: several(*a))
        given, outputs = driver.given(lambda a=arguments: function(*a))
        assert len(given) == 5
        pairs = list(zip(expected, outputs, strict=True))
        assert difference(ordinary, given, tensors_of(arguments), pairs) == ""
        for one, other in pairs:
            assert one.shape == other.shape and one.stride() == other.stride()
            assert one.dtype == other.dtype and one.storage_offset() == other.storage_offset()
        assert outputs[0].untyped_storage()._cdata == outputs[2].untyped_storage()._cdata
        assert all(isinstance(each, int) for one in given for each in one.arguments[:3])


def test_every_kind_of_call_is_another() -> None:
    function = prepared(several)
    for count, arguments in enumerate(ARGUMENTS.values(), 1):
        function(*arguments())
        function(*arguments())
        assert function.kinds() == count
    x, y = laid_out(), laid_out()
    for count, call in enumerate(
        (
            lambda: function(x, [x, y], 0.25),
            lambda: function(x, [y, x], 0.25),
            lambda: function(x, [y, y], scale=0.25),
            lambda: function(x, [y, y], 0.25, flag=True),
            lambda: function(x, [y, y], 0.25, flag=1),
        ),
        len(ARGUMENTS) + 1,
    ):
        call()
        assert function.kinds() == count
    with pretend(ARCHS[80]):
        function(x, [x, y], 0.25)
    assert function.kinds() == len(ARGUMENTS) + 6
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = "ieee" if before == "tf32" else "tf32"
    try:
        function(x, [x, y], 0.25)
    finally:
        matmul.fp32_precision = before
    assert function.kinds() == len(ARGUMENTS) + 7


KEPT = torch.zeros(64)


def copying(x: Tensor) -> Tensor:
    out = torch.empty_like(x)
    add(x.t().contiguous(), x, out)
    return out


def clearing(x: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    add(x, x, out)
    return out


def reading(x: Tensor) -> Tensor:
    out = torch.empty_like(x)
    add(x, x, out, float(x[0, 0]))
    return out


def launching_elsewhere(x: Tensor) -> Tensor:
    out = torch.empty_like(x)
    add(x, KEPT, out)
    return out


def returning_an_input(x: Tensor) -> Tensor:
    add(x, x, x)
    return x.view(-1)


def returning_what_it_had(x: Tensor) -> Tensor:
    add(x, x, KEPT)
    return KEPT


def returning_a_number(x: Tensor) -> Any:
    return torch.empty_like(x), 3


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (copying, "aten.clone"),
        (clearing, "aten.zeros_like"),
        (reading, "aten._local_scalar_dense"),
        (launching_elsewhere, "memory of no input"),
        (returning_an_input, "returns memory"),
        (returning_what_it_had, "returns memory"),
        (returning_a_number, "returns a int"),
    ],
)
def test_what_no_recipe_can_do_runs_as_it_is(
    driver: Driver, function: Callable[[Tensor], Any], reason: str
) -> None:
    made = prepared(function)
    x = laid_out()
    made(x)
    kept = made.kept(x)
    assert isinstance(kept, str) and reason in kept
    ordinary, _ = driver.given(lambda: function(x))
    given, _ = driver.given(lambda: made(x))
    assert len(given) == len(ordinary)
    assert all(type(a) is type(b) for a, b in zip(given, ordinary, strict=True))
    assert made.kinds() == 1


def test_inputs_that_overlap_are_refused_where_it_matters() -> None:
    whole = laid_out(rows=9)
    function = prepared(several)
    function(whole[:4], [whole[2:6]], 0.25)
    assert "overlap" in str(function.kept(whole[:4], [whole[2:6]], 0.25))


def test_the_least_recently_used_is_forgotten() -> None:
    @prepared
    def function(x: Tensor) -> Tensor:
        return torch.empty_like(x)

    for size in range(MAX_RECIPES + 20):
        function(torch.empty(size))
        function(torch.empty(0))
    assert function.kinds() == MAX_RECIPES
    assert function.kept(torch.empty(0)) is not None
    assert function.kept(torch.empty(MAX_RECIPES + 19)) is not None
    assert function.kept(torch.empty(1)) is None


def test_no_tensor_is_kept() -> None:
    seen: list[weakref.ref[Any]] = []

    @prepared
    def function(x: Tensor) -> Tensor:
        scratch, out = torch.empty_like(x), torch.empty_like(x)
        seen.extend(map(weakref.ref, (x, scratch, out)))
        add(x, x, scratch)
        add(scratch, x, out)
        return out

    x = laid_out()
    out = function(x)
    assert isinstance(function.kept(x), Recipe)
    seen.append(weakref.ref(function(x)))
    del x, out
    gc.collect()
    assert len(seen) == 4 and not any(each() for each in seen)


def test_none_and_a_single_tensor_are_returned() -> None:
    @prepared
    def function(x: Tensor, both: bool) -> Any:
        out = torch.empty_like(x)
        add(x, x, out)
        return (out, None) if both else out

    x = laid_out()
    for _ in range(2):
        assert isinstance(function(x, False), Tensor)
        out, nothing = function(x, True)
        assert isinstance(out, Tensor) and nothing is None


def test_an_empty_call_launches_nothing(driver: Driver) -> None:
    function = prepared(several)
    for _ in range(2):
        x = laid_out(rows=0)
        given, outputs = driver.given(lambda x=x: function(x, [x], 0.25))
        assert given == [] and [o.shape for o in outputs] == [(0, 24), (24, 0), (0,)]
    assert isinstance(function.kept(x, [x], 0.25), Recipe)


def test_threads_do_not_disturb_one_another(driver: Driver) -> None:
    @prepared
    def function(x: Tensor) -> Tensor:
        scratch, out = torch.empty_like(x), torch.empty_like(x)
        add(x, x, scratch)
        add(scratch, x, out)
        return out

    here = threading.local()
    wrong: list[Any] = []

    def take(*given: Any) -> None:
        here.launches.append([a if isinstance(a, int) else a.data_ptr() for a in given[9:12]])

    def work() -> None:
        held = []
        for turn in range(200):
            x, here.launches = laid_out(rows=1 + turn % 3), []
            out = function(x)
            held.append((x, out))
            (source, _, scratch), (again, _, target) = here.launches
            if (source, again, target) != (x.data_ptr(), scratch, out.data_ptr()):
                wrong.append(here.launches)

    # The first launch of a kernel takes `run` from the driver.
    work_of_each = [threading.Thread(target=work) for _ in range(6)]
    with mock.patch.object(driver, "run", take), fresh_kernels():
        for each in work_of_each:
            each.start()
        for each in work_of_each:
            each.join()
    assert not wrong and function.kinds() == 3


def fresh_kernels() -> Any:
    """Within it kernels are found anew, and bound to the driver's `run` of now."""
    return mock.patch.object(
        add_kernel, "device_caches", type(add_kernel.device_caches)(add_kernel.create_binder)
    )


def test_hooks_see_every_launch() -> None:
    function, told = prepared(several), []
    arguments = ARGUMENTS["plain"]()
    function(*arguments)

    def enter(metadata: Any) -> None:
        told.append(("enter", metadata.get()["name"]))

    def leave(metadata: Any) -> None:
        told.append(("leave", metadata.get()["name"]))

    runtime = triton.knobs.runtime
    runtime.launch_enter_hook.add(enter)
    runtime.launch_exit_hook.add(leave)
    try:
        several(*arguments)
        expected = list(told)
        told.clear()
        function(*arguments)
    finally:
        runtime.launch_enter_hook.remove(enter)
        runtime.launch_exit_hook.remove(leave)
    assert told == expected and len(told) == 10
    assert {name for _, name in told} == {"add_kernel"}
    function(*arguments)
    assert len(told) == 10


def seen_by_a_watcher(function: Prepared[Any, Any], arguments: tuple[Any, ...]) -> list[Launch]:
    found: list[Launch] = []
    with watch(found.append):
        function(*arguments)
    return found


def test_a_watcher_sees_every_launch() -> None:
    function, arguments = prepared(several), ARGUMENTS["plain"]()
    assert len(seen_by_a_watcher(function, arguments)) == 5
    assert function.kinds() == 0
    function(*arguments)
    assert len(seen_by_a_watcher(function, arguments)) == 5


def test_what_runs_kernels_instead_sees_every_launch() -> None:
    function, arguments = prepared(several), ARGUMENTS["plain"]()
    function(*arguments)
    with mock.patch.object(JITFunction, "run") as run:
        function(*arguments)
    assert run.call_count == 5


def test_a_prepared_call_within_another_is_part_of_it(driver: Driver) -> None:
    inner = prepared(several)

    @prepared
    def outer(x: Tensor) -> Tensor:
        return inner(inner(x, [x], 0.25)[0], [x], 0.25)[0]

    x = laid_out()
    inner(x, [x], 0.25)
    outer(x)
    assert isinstance(outer.kept(x), Recipe)
    assert len(driver.given(lambda: outer(x))[0]) == 10


def test_tensors_without_memory_are_never_prepared() -> None:
    function = prepared(several)
    with watch(lambda _: None):
        x = laid_out().to("meta")
        function(x, [x], 0.25)
        with FakeTensorMode():
            x = torch.empty(5, 24)
            function(x, [x], 0.25)
    assert function.kept(x, [x], 0.25) is None
    assert function.kinds() == 0


@pytest.mark.parametrize("capability", [80, 90, 120])
def test_a_dependent_launch_is_asked_for_where_the_arch_has_it(capability: int) -> None:
    launches: list[Launch] = []
    arguments = {"x": torch.zeros(1), "out": torch.zeros(1)}
    with pretend(ARCHS[capability]), watch(launches.append):
        launch(dependent_kernel, (1,), arguments, num_warps=1)
        add(torch.zeros(1), torch.zeros(1), torch.zeros(1))
    assert launches[0].arguments["PDL"] is (capability >= 90)
    assert launches[0].options.get("launch_pdl", False) is (capability >= 90)
    assert "PDL" not in launches[1].arguments and "launch_pdl" not in launches[1].options
    assert "PDL" not in arguments


def test_a_dependent_launch_is_prepared(driver: Driver) -> None:
    @prepared
    def function(x: Tensor) -> Tensor:
        out = torch.empty_like(x)
        launch(dependent_kernel, (1,), {"x": x, "out": out}, num_warps=1)
        return out

    x = torch.zeros(4)
    function(x)
    ((_, _, kernel, _, arguments),), _ = driver.given(lambda: function(x))
    assert kernel.metadata.launch_pdl and arguments[2] is True
    assert "griddepcontrol.wait" in kernel.asm["ptx"]
