"""Bipartite merging against a loop over its tokens, on every backend of a CPU."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from ocvtp_kernels import ops
from tests.cases import CPU_BACKENDS, assert_within_budget, random_tokens, running
from tests.ops.raw_calls import B, D, E, N, RawCall

EVERY_BACKEND = pytest.mark.parametrize("backend", CPU_BACKENDS)
SHAPES = (
    # tokens, width, depth, merged, prefix
    *((1, 1, 1, 0, 0), (2, 3, 1, 1, 0), (2, 3, 1, 0, 2), (3, 1, 0, 1, 1), (7, 5, 3, 1, 5)),
    *((37, 10, 24, 18, 1), (50, 0, 9, 25, 0), (130, 70, 65, 20, 5), (577, 33, 64, 288, 1)),
)
EVERY_SHAPE = pytest.mark.parametrize("shape", SHAPES)


def arguments(batch: int = 2, dtype: torch.dtype = torch.float32) -> tuple[Any, ...]:
    tokens = random_tokens(batch, 31, 10, dtype=dtype)[:, 1:]
    keys = random_tokens(batch, 6, 30, seed=1, dtype=dtype).mT
    sizes = random_tokens(30, batch, seed=2).abs().add(0.5).to(dtype).t()
    return tokens, keys, sizes, 9, 1


RAW_CALLS = {
    "bipartite_merge": RawCall(
        {
            "tokens": random_tokens(B, N, E),
            "keys": random_tokens(B, N, D, seed=1),
            "sizes": random_tokens(B, N, seed=2).abs() + 0.5,
            "num_merged": 0,
            "num_prefix": 1,
        },
        {"tokens": ["size 2 *"], "keys": ["size 2 *"]},
        {"num_merged": (0, 5), "num_prefix": (0, N)},
        measures=("tokens",),
        cpu_only=True,
    ),
}


def case(
    shape: tuple[int, ...], batch: int = 2, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor, int, int]:
    num_tokens, width, depth, num_merged, num_prefix = shape
    tokens = random_tokens(batch, num_tokens, width, seed=num_tokens, dtype=dtype, outliers=True)
    keys = random_tokens(batch, num_tokens, depth, seed=1, dtype=dtype)
    sizes = random_tokens(batch, num_tokens, seed=2, dtype=dtype).abs() + 0.5
    return tokens, keys, sizes, num_merged, num_prefix


def cosine(one: list[float], other: list[float]) -> float:
    product = sum(x * y for x, y in zip(one, other, strict=True))
    norms = math.hypot(*one) * math.hypot(*other)
    cos = product / norms if norms != 0 else 0.0
    return -math.inf if math.isnan(cos) else cos


def loop(
    tokens: Tensor, keys: Tensor, sizes: Tensor, num_merged: int, num_prefix: int
) -> tuple[Tensor, Tensor, Tensor]:
    """One image, token by token."""
    key, num_tokens = keys.tolist(), len(keys)
    evens = [n for n in range(num_prefix, num_tokens) if n % 2 == 0]
    odds = [n for n in range(num_prefix, num_tokens) if n % 2 == 1]
    found = []
    for a in evens if num_merged else []:
        scores = [cosine(key[a], key[b]) for b in odds]
        # The first of equals.
        found.append((-max(scores), a, odds[scores.index(max(scores))]))
    into = {a: b for _, a, b in sorted(found)[:num_merged]}
    left = [n for n in range(num_tokens) if n not in into]
    rows, totals = [], []
    for n in left:
        group = [n, *(a for a in into if into[a] == n)]
        total = sum(float(sizes[m]) for m in group)
        mean = sum((sizes[m] * tokens[m] for m in group), torch.zeros_like(tokens[n])) / total
        rows.append(mean if len(group) > 1 else tokens[n])
        totals.append(total)
    assignment = [left.index(into.get(n, n)) for n in range(num_tokens)]
    return torch.stack(rows), torch.tensor(totals, dtype=sizes.dtype), torch.tensor(assignment)


def agree_with_the_loop(given: tuple[Tensor, Tensor, Tensor, int, int]) -> None:
    tokens, keys, sizes, num_merged, num_prefix = given
    merged, merged_sizes, assignment = ops.bipartite_merge(*given)
    for image in range(len(tokens)):
        expected = loop(tokens[image], keys[image], sizes[image], num_merged, num_prefix)
        assert torch.equal(assignment[image], expected[2])
        torch.testing.assert_close(merged[image], expected[0])
        torch.testing.assert_close(merged_sizes[image], expected[1])


@EVERY_BACKEND
def test_as_token_by_token(backend: str) -> None:
    generator = torch.Generator().manual_seed(0)

    def below(end: int) -> int:
        return int(torch.randint(end, (), generator=generator))

    with running(backend):
        for _ in range(200):
            num_tokens = 1 + below(40)
            num_prefix = below(min(num_tokens, 5) + 1)
            num_merged = below((num_tokens - num_prefix) // 2 + 1)
            agree_with_the_loop(
                case((num_tokens, 1 + below(20), 2 + below(20), num_merged, num_prefix), batch=1)
            )


@EVERY_BACKEND
@EVERY_SHAPE
def test_error_budget(backend: str, shape: tuple[int, ...]) -> None:
    exact = case(shape)
    oracle = ops.bipartite_merge.reference(*exact)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        rounded = case(shape, dtype=dtype)
        # Keys are exact, so that every dtype has the same matches.
        given = (rounded[0], exact[1], rounded[2], *exact[3:])
        plain = ops.bipartite_merge.reference(*given)
        with running(backend):
            got = ops.bipartite_merge(*given)
        assert torch.equal(got[2], oracle[2])
        for ours, theirs, best in zip(got[:2], plain[:2], oracle[:2], strict=True):
            assert_within_budget(ours, theirs, best)


@EVERY_BACKEND
def test_batch_invariant(backend: str) -> None:
    if backend in ("reference", "plain"):
        pytest.skip("a BLAS may sum a single small matrix in another order")
    given = case((130, 70, 65, 40, 1), batch=3, dtype=torch.float32)
    with running(backend):
        together = ops.bipartite_merge(*given)
        for image in range(3):
            alone = ops.bipartite_merge(*(t[image : image + 1] for t in given[:3]), *given[3:])
            assert all(torch.equal(a[0], b[image]) for a, b in zip(alone, together, strict=True))


@EVERY_BACKEND
@pytest.mark.parametrize("num_prefix", [0, 1, 5])
@pytest.mark.parametrize("num_merged", [0, 1, 16])
def test_tokens_alike_still_merge_as_many(backend: str, num_prefix: int, num_merged: int) -> None:
    tokens = torch.full((2, 40, 9), 0.3)
    sizes = torch.ones(2, 40, dtype=torch.float16)
    with running(backend):
        merged, merged_sizes, assignment = ops.bipartite_merge(
            tokens, tokens, sizes, num_merged, num_prefix
        )
    assert merged.shape[1] == 40 - num_merged and merged_sizes.dtype == torch.float32
    torch.testing.assert_close(merged, torch.full_like(merged, 0.3))
    counted = torch.zeros_like(merged_sizes).scatter_add(1, assignment, sizes.float())
    assert torch.equal(counted, merged_sizes) and (counted >= 1).all()
    prefix = torch.arange(num_prefix).expand(2, -1)
    assert torch.equal(assignment[:, :num_prefix], prefix)
    assert (merged_sizes[:, :num_prefix] == 1).all()


@EVERY_BACKEND
def test_ties_go_to_the_first_place(backend: str) -> None:
    # Whole numbers of norm 1: no cosine rounds.
    keys = torch.eye(2)[torch.tensor([[0, 1, 0, 0, 0, 0, 1, 1]])]
    with running(backend):
        _, sizes, assignment = ops.bipartite_merge(keys, keys, torch.ones(1, 8), 2)
    # 0 and 2 merge into 3, the first like them; 4 and 6 tie with them and stay.
    assert assignment.tolist() == [[1, 0, 1, 1, 2, 3, 4, 5]]
    assert sizes.tolist() == [[1, 3, 1, 1, 1, 1]]


@EVERY_BACKEND
@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_a_key_that_is_not_finite_is_like_none(backend: str, broken: float) -> None:
    tokens, keys, sizes, _, _ = case((16, 3, 5, 0, 0), batch=1, dtype=torch.float32)
    keys[0, 4, 1] = keys[0, 5, 2] = broken
    with running(backend):
        last = ops.bipartite_merge(tokens, keys, sizes, 7)[2]
        every = ops.bipartite_merge(tokens, keys, sizes, 8)[2]
    # Of A token 4 comes last, and then merges into the first of B; into 5 merges none.
    assert (last[0] == last[0, 4]).sum() == 1 and every[0, 4] == every[0, 1]
    assert (every[0] == every[0, 5]).sum() == 1


@EVERY_BACKEND
@pytest.mark.parametrize("small", [0.0, 1e-30])
def test_a_key_of_no_norm_has_cosine_0(backend: str, small: float) -> None:
    keys = torch.tensor(
        [[[1.0, 0.0], [-1.0, 0.0], [0.0, 0.0], [small, 0.0], [-1.0, 0.0], [0.0, 1.0]]]
    )
    keys[0, 2] = small
    with running(backend):
        assignment = ops.bipartite_merge(keys, keys, torch.ones(1, 6), 1)[2]
    # Token 4 is like 1; without it 0 has the largest cosine left, with 3 or 5.
    assert assignment.tolist() == [[0, 1, 2, 3, 1, 4]]


@EVERY_BACKEND
def test_tokens_that_do_not_merge_are_copied_bit_for_bit(backend: str) -> None:
    tokens, keys, sizes, _, _ = case((33, 9, 5, 0, 1), dtype=torch.float32)
    sizes[:, ::3] = 0
    with running(backend):
        merged, merged_sizes, assignment = ops.bipartite_merge(tokens, keys, sizes, 7, 1)
    rows = merged.gather(1, assignment.unsqueeze(-1).expand_as(tokens))
    is_alone = (assignment.unsqueeze(1) == assignment.unsqueeze(2)).sum(dim=2) == 1
    assert is_alone.sum() >= 2 * (33 - 14) and torch.equal(rows[is_alone], tokens[is_alone])
    assert torch.equal(merged_sizes.gather(1, assignment)[is_alone], sizes[is_alone])


def test_dtypes_are_each_tensors_own() -> None:
    tokens, keys, sizes, *numbers = case((12, 4, 4, 3, 0))
    for dtype in (torch.float16, torch.float32, torch.float64):
        for other in (torch.bfloat16, torch.float64):
            merged, merged_sizes, _ = ops.bipartite_merge(
                tokens.to(dtype), keys.to(other), sizes.to(other), *numbers
            )
            wide = torch.float64 if other == torch.float64 else torch.float32
            assert (merged.dtype, merged_sizes.dtype) == (dtype, wide)


@EVERY_BACKEND
@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape[0] < 100])
def test_gradcheck(backend: str, shape: tuple[int, ...]) -> None:
    tokens, *others = case(shape)
    with running(backend):
        torch.autograd.gradcheck(
            lambda tokens: ops.bipartite_merge(tokens, *others)[0], tokens.requires_grad_()
        )


@EVERY_BACKEND
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_gradients_keep_the_error_budget(backend: str, dtype: torch.dtype) -> None:
    tokens, keys, sizes, *numbers = case((130, 33, 9, 50, 1))
    tokens, sizes = tokens.to(dtype), sizes.to(dtype)
    grad = random_tokens(2, 80, 33, seed=3, dtype=dtype)
    leaf = tokens.clone().requires_grad_()
    with running(backend):
        merged, merged_sizes, assignment = ops.bipartite_merge(leaf, keys, sizes, *numbers)
        assert not merged_sizes.requires_grad and not assignment.requires_grad
        merged.backward(grad)
    assert leaf.grad is not None and leaf.grad.dtype == dtype

    def through_sums(dtype: torch.dtype) -> Tensor:
        leaf, weight = tokens.to(dtype, copy=True).requires_grad_(), sizes.to(dtype)
        rows = assignment.unsqueeze(-1).expand_as(leaf)
        sums = torch.zeros(grad.shape, dtype=dtype).scatter_add(1, rows, weight[..., None] * leaf)
        totals = torch.zeros(grad.shape[:2], dtype=dtype).scatter_add(1, assignment, weight)
        (sums / totals[..., None]).backward(grad.to(dtype))
        assert leaf.grad is not None
        return leaf.grad

    assert_within_budget(leaf.grad, through_sums(dtype), through_sums(torch.float64))


def test_the_gradient_of_a_copied_token_of_size_0_is_its_own() -> None:
    tokens, keys, sizes, _, _ = case((9, 3, 4, 0, 0))
    sizes.zero_()
    merged = ops.bipartite_merge(tokens.requires_grad_(), keys, sizes, 0)[0]
    merged.sum().backward()
    assert tokens.grad is not None and torch.equal(tokens.grad, torch.ones_like(tokens))


@pytest.mark.parametrize(
    ("num_tokens", "num_prefix", "most"),
    [(1, 0, 0), (2, 0, 1), (3, 0, 2), (9, 1, 4), (9, 5, 2), (9, 7, 1), (9, 8, 0), (9, 9, 0)],
)
def test_no_more_than_a_has_merge(num_tokens: int, num_prefix: int, most: int) -> None:
    tokens, sizes = random_tokens(1, num_tokens, 3), torch.ones(1, num_tokens)
    merged = ops.bipartite_merge(tokens, tokens, sizes, most, num_prefix)[0]
    assert merged.shape[1] == num_tokens - most
    for wrong in (-1, most + 1):
        with pytest.raises(ValueError, match=rf"^num_merged: expected 0 to {most} .*got {wrong}$"):
            ops.bipartite_merge(tokens, tokens, sizes, wrong, num_prefix)


def test_bad_arguments_are_named() -> None:
    tokens, keys, sizes, *_ = arguments()
    for name, wrong in (
        ("tokens", (tokens[0], keys, sizes, 1)),
        ("tokens", (tokens[:, :0], keys[:, :0], sizes[:, :0], 0)),
        ("keys", (tokens, keys[:, 1:], sizes, 1)),
        ("keys", (tokens, keys[:1], sizes, 1)),
        ("keys", (tokens, keys.long(), sizes, 1)),
        ("sizes", (tokens, keys, sizes[:, 1:], 1)),
        ("sizes", (tokens, keys, sizes.long(), 1)),
        ("num_prefix", (tokens, keys, sizes, 0, -1)),
        ("num_prefix", (tokens, keys, sizes, 0, 31)),
    ):
        with pytest.raises((ValueError, TypeError), match=rf"^{name}: expected "):
            ops.bipartite_merge(*wrong)
