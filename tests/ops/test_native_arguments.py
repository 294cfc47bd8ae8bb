"""Raw native ops refuse, by name, what their kernels would read or write out of bounds.

Each argument of each op is spoilt in every way, on the CPU kernels and on the emulated CUDA ones.
What is no error is listed, and has to run.
"""

from __future__ import annotations

import re
from collections import ChainMap
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from typing import Any

import pytest
import torch
from torch import Tensor

from ocvtp_kernels import native
from tests.cases import random_tokens
from tests.emulated import loaded  # noqa: F401
from tests.ops.cases import op_modules
from tests.ops.raw_calls import EPS, B, D, K, N, RawCall, ids

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32]
DTYPES += [torch.bool]
CASES = {
    "isa": RawCall({"wanted": ""}, cpu_only=True),
    **ChainMap(*(getattr(module, "RAW_CALLS", {}) for module in op_modules())),
}
# The dtypes that the kernels have, as messages list them.
LIBRARIES = {
    "ocvtp_native": ["float32", "float64"],
    "ocvtp_emulated": ["float16", "float32", "bfloat16"],
}
# Those of the ops beside products, too.
MULTIPLIED = {**LIBRARIES, "ocvtp_native": ["float32", "float64", "bfloat16"]}


def spoilt(tensor: Tensor) -> Iterator[tuple[str, Any]]:
    """What may be wrong with a tensor."""
    yield "rank +1", tensor.unsqueeze(0)
    yield "rank -1", tensor[0]
    yield "empty", tensor.new_empty(0)
    for dim, size in enumerate(tensor.shape):
        yield f"size {dim} -1", tensor.narrow(dim, 0, size - 1)
        yield f"size {dim} +1", torch.cat([tensor, tensor.narrow(dim, 0, 1)], dim)
        yield f"size {dim} =0", tensor.narrow(dim, 0, 0)
    for dtype in DTYPES:
        if dtype != tensor.dtype:
            yield f"dtype {dtype}".replace("torch.", ""), tensor.to(dtype)
    yield "none", None


def outside(least: int, most: int | None) -> Iterator[int]:
    yield from (least - 1, -(2**63))
    if most is not None:
        yield from (most + 1, 2**63 - 1)


@pytest.fixture(params=LIBRARIES)
def library(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if name == "ocvtp_native":
        reason = native.missing_reason("cpu")
        if reason is not None:
            pytest.skip(reason)
    else:
        request.getfixturevalue("loaded")
    return name


def call(library: str, op: str, arguments: Mapping[str, Any], **changed: Any) -> Any:
    """The op on copies: one writes into its argument."""
    given = {**arguments, **changed}
    values = [x.clone() if isinstance(x, Tensor) else x for x in given.values()]
    return getattr(getattr(torch.ops, library), op)(*values)


def schemas(library: str) -> dict[str, Any]:
    prefix = f"{library}::"
    found = (s for s in torch._C._jit_get_all_schemas() if s.name.startswith(prefix))
    return {schema.name.removeprefix(prefix): schema for schema in found}


def patterns(library: str, case: RawCall, name: str) -> Iterator[str]:
    dtypes = {"dtype taken": LIBRARIES[library], "dtype multiplied": MULTIPLIED[library]}
    for pattern in case.valid.get(name, []):
        if library == "ocvtp_native":
            pattern = pattern.removeprefix("cpu: ")
        yield from (
            [f"dtype {dtype}" for dtype in dtypes[pattern]] if pattern in dtypes else [pattern]
        )


def test_every_op_has_its_case(library: str) -> None:
    found = schemas(library)
    cuda = {op for op, case in CASES.items() if not case.cpu_only}
    assert found.keys() == (CASES.keys() if library == "ocvtp_native" else cuda)
    for op, schema in found.items():
        assert [a.name for a in schema.arguments] == list(CASES[op].arguments), op
        ints = {a.name for a in schema.arguments if str(a.type) == "int"}
        assert ints == CASES[op].ranges.keys(), op


@pytest.mark.parametrize("op", CASES)
def test_spoilt_arguments_are_named(library: str, op: str) -> None:
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    if op not in schemas(library) or not has_kernel(f"{library}::{op}", "CPU"):
        pytest.skip("no such kernel on this device")
    case = CASES[op]
    optional = {a.name for a in schemas(library)[op].arguments if "Optional" in str(a.type)}

    def refused(name: str, value: Any, what: str) -> None:
        with pytest.raises(ValueError) as caught:
            call(library, op, case.arguments, **{name: value})
            pytest.fail(f"{name}: {what} was taken")
        said = re.fullmatch(r"(.+?): expected .+, got .+", str(caught.value))
        assert said, caught.value
        names = said[1].split(", ")
        assert case.arguments.keys() >= set(names), said[0]
        assert name in (*names, *case.measures), (what, said[0])

    call(library, op, case.arguments)
    for name, value in case.arguments.items():
        if isinstance(value, Tensor):
            for what, other in spoilt(value):
                if what == "none" and name not in optional:
                    continue
                if any(fnmatch(what, pattern) for pattern in patterns(library, case, name)):
                    call(library, op, case.arguments, **{name: other})
                else:
                    refused(name, other, what)
    for name, (least, most) in case.ranges.items():
        for number in {least, least if most is None else most}:
            call(library, op, case.arguments, **{name: number})
        for number in outside(least, most):
            refused(name, number, str(number))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_attention_from_rows_takes_half_precision_if_both_have_it(
    library: str, dtype: torch.dtype
) -> None:
    given = CASES["attention_from_rows"].arguments
    halves = {name: given[name].to(dtype) for name in "qk"}
    got = call(library, "attention_from_rows", given, **halves)
    assert got.shape == (B, N) and got.dtype == torch.float32
    for name, half in halves.items():
        with pytest.raises(ValueError, match=r"k: expected \[2, 2, any, 8\] .*, got "):
            call(library, "attention_from_rows", given, **{name: half})


def test_a_sentence_says_what_came_and_what_was_expected(library: str) -> None:
    x, kinds = random_tokens(2, 9, 8), " or ".join(MULTIPLIED[library])
    sentences = {
        "bias: expected [8] float32, got [4] float64": ("bias_gelu_", x, torch.ones(4).double()),
        f"x: expected [..., any] {kinds}, got [2, 9, 8] int32": ("layer_norm", x.int(), EPS),
        "k: expected [2, any, 8] float32, got [2, 9, 8] float16": (
            *("slot_argmax", x, x.half(), None, 1.0, 1, False),
        ),
        "top_k: expected 1 to 9, got 10": ("slot_argmax", x, x, None, 1.0, 10, False),
        "last: expected [1, 9] int64, got [1, 3] int64": (
            *("attention_from_rows", x[None], x[None], ids(1, 3), None, 1.0),
        ),
    }
    for sentence, (op, *arguments) in sentences.items():
        with pytest.raises(ValueError, match=re.escape(sentence)):
            getattr(getattr(torch.ops, library), op)(*arguments)


@pytest.mark.parametrize(
    ("op", "name", "value"),
    [
        ("bias_gelu_", "x", random_tokens(D, B).mT),
        ("resolve_picks", "picks", ids(B, K, 2) - 1),
        ("resolve_gather", "picks", ids(B, K, 2) + 7),
        ("farthest_select", "first", torch.tensor([0, N])),
        ("match_select", "ranked", ids(B, N) + 1),
        ("centrifugal_select", "pivots", ids(B, 3) - 1),
        ("isa", "wanted", "sse9"),
    ],
)
def test_values_are_checked_on_the_cpu(op: str, name: str, value: Any) -> None:
    arguments = {**CASES[op].arguments, name: value}
    with pytest.raises(ValueError, match=f"^{name}: expected .+, got .+"):
        getattr(torch.ops.ocvtp_native, op)(*arguments.values())
