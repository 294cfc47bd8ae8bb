"""Prepared launches on a GPU: as those of a first call, in a graph, and in threads.

Streams that share nothing are tested in `tests.ops.prune.test_gpu`, whose later calls are prepared.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="triton is not installed")

from ocvtp_kernels import OCPruner, PrunerConfig, backends, use_backend
from ocvtp_kernels.ops.prune.triton import pipeline
from tests.cases import random_pruner, random_tokens

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU"),
]


@pytest.fixture(scope="module")
def pruner() -> OCPruner:
    return random_pruner(PrunerConfig()).bfloat16().cuda().requires_grad_(False)


@pytest.fixture(autouse=True)
def triton_only() -> Iterator[None]:
    reason = backends.unsupported_reason("prune", "triton", "cuda")
    if reason is not None:
        pytest.skip(reason)
    with use_backend("triton"):
        yield


def arguments(pruner: OCPruner, seed: int = 0) -> list[Any]:
    tokens = random_tokens(1, 577, 1024, seed=seed).bfloat16().cuda()[:, 1:]
    slots = pruner.sample_slots(1, 64).detach()
    importance = random_tokens(1, 576, seed=seed + 1).float().cuda()
    return [tokens, tokens.clone(), pruner.packed(), slots, importance, 64]


def prune(given: list[Any]) -> tuple[Tensor, Tensor]:
    result: tuple[Tensor, Tensor] = torch.ops.ocvtp.prune(*given)
    return result


def first(given: list[Any]) -> tuple[Tensor, Tensor]:
    pipeline.prune.forget()
    return prune(given)


def same(result: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> bool:
    return all(
        torch.equal(one.cpu(), other.cpu()) for one, other in zip(result, expected, strict=True)
    )


def test_a_later_call_is_as_a_first_one(pruner: OCPruner) -> None:
    for seed in range(3):
        given = arguments(pruner, seed)
        expected = first(given)
        assert same(prune(given), expected)
        assert not isinstance(pipeline.prune.kept(*given, 1), str)


@pytest.mark.parametrize("known", [False, True])
def test_a_graph_holds_a_first_call_or_a_later_one(pruner: OCPruner, known: bool) -> None:
    given = arguments(pruner)
    prune(given)  # loads the kernels
    if not known:
        pipeline.prune.forget()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = prune(given)
    again = arguments(pruner, 3)
    for place in (0, 1, 4):
        given[place].copy_(again[place])
    graph.replay()
    torch.cuda.synchronize()
    assert same(result, first(given))


def test_threads_on_streams_of_their_own(pruner: OCPruner) -> None:
    inputs = [arguments(pruner, seed) for seed in range(3)]
    expected = [prune(given) for given in inputs]
    torch.cuda.synchronize()

    def work(place: int) -> list[tuple[Tensor, Tensor]]:
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream), use_backend("triton"):
            results = [prune(inputs[place]) for _ in range(10)]
        stream.synchronize()
        return results

    with ThreadPoolExecutor(len(inputs)) as pool:
        for place, results in enumerate(pool.map(work, range(len(inputs)))):
            assert all(same(result, expected[place]) for result in results)
