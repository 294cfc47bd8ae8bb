"""How a function becomes an op."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from ocvtp_kernels import backends, ops, use_backend
from ocvtp_kernels.ops import registry
from tests.ops.cases import ARGUMENTS

OPS = sorted(set(ops.__all__) - set(registry.COMPOSED))


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.library.Library]:
    """What is defined in the test goes with it."""
    library = torch.library.Library("ocvtp", "FRAGMENT")
    monkeypatch.setattr(registry, "LIBRARY", library)
    monkeypatch.setattr(backends, "_kernels", dict(backends._kernels))
    yield library
    library._destroy()


def shifted(x: Tensor, by: int, scale: float = 2.0, twice: bool = False) -> Tensor:
    """X * scale + by."""
    return x * scale + by * (1 + twice)


def make(**more: object) -> registry.Op[..., Tensor]:
    options = {"check": lambda x: None, "fake": lambda x: torch.empty_like(x), **more}
    return registry.op(**options)(shifted)  # type: ignore[arg-type]


@pytest.mark.usefixtures("library")
def test_helpers_get_the_arguments_that_they_name_and_defaults_once() -> None:
    seen: list[tuple[object, ...]] = []

    def check(scale: float, by: int) -> None:
        seen.append((scale, by))

    def kernel(twice: bool, x: Tensor, by: int) -> Tensor:
        seen.append((twice, by))
        return x + 100

    op = make(check=check, cpu=kernel, plain=kernel)
    x = torch.ones(3)
    assert torch.equal(op(x, by=4), x + 100)
    assert seen == [(2.0, 4), (False, 4)]
    with use_backend("reference"):
        assert torch.equal(op(x, 4, twice=True), x * 2 + 8)
    assert torch.equal(op.reference(x, 4), x * 2 + 4)


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("name", ["check", "fake", "cpu", "cuda"])
def test_a_helper_that_names_no_argument_of_the_op_is_refused(name: str) -> None:
    with pytest.raises(TypeError, match="the op has no argument 'weights'"):
        make(**{name: lambda x, weights: None})


@pytest.mark.usefixtures("library")
def test_an_upcast_oracle_computes_wide_and_may_return_narrow() -> None:
    op = make(reference=registry.Upcast(), plain=registry.Upcast(narrow=True))
    x = torch.ones(3, dtype=torch.bfloat16)
    assert op(x, 1).dtype == torch.bfloat16
    with use_backend("reference"):
        assert op(x, 1).dtype == torch.float32


@pytest.mark.parametrize("name", OPS)
def test_an_op_is_called_by_its_own_names(name: str) -> None:
    op, arguments = getattr(ops, name), ARGUMENTS[name]()
    by_name = dict(zip(op.__wrapped__.__annotations__, arguments, strict=False))
    for a, b in zip(
        torch.utils._pytree.tree_leaves(op(**by_name)),
        torch.utils._pytree.tree_leaves(getattr(torch.ops.ocvtp, name)(*arguments)),
        strict=True,
    ):
        assert torch.equal(a, b)


def test_the_two_words_of_an_argument_are_one() -> None:
    q, k, final_tokens, importance, budget = ARGUMENTS["argmax_gather"]()
    schema = {"final": final_tokens, "importance": importance, "budget": budget}
    ours = ops.argmax_gather(q, k, final_tokens=final_tokens, importance=None, budget=budget)
    theirs = torch.ops.ocvtp.argmax_gather(q, k, **schema)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_an_ops_function_compiles_whole() -> None:
    q, k, final_tokens, _, budget = ARGUMENTS["argmax_gather"]()

    def function(q: Tensor, k: Tensor, tokens: Tensor) -> Tensor:
        return ops.argmax_gather(q, k, final_tokens=tokens, importance=None, budget=budget)[0]

    compiled = torch.compile(function, fullgraph=True, backend="eager")
    assert torch.equal(compiled(q, k, final_tokens), function(q, k, final_tokens))
