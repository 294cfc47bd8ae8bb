"""`prune` on folded weights beside the plain module, on the CPU; run by `make bench`."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from ocvtp_kernels import OCPruner, PrunerConfig

NUM_TOKENS, BUDGET, ROUNDS, WARMUP = 576, 64, 40, 5
# The folded arithmetic is 0.81 of the plain module's.
MOST_OF_PLAIN = 0.85


def timed(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


@pytest.mark.parametrize("batch", [1, 8])
def test_prune_beside_the_plain_module(benchmark: Any, batch: int) -> None:
    torch.manual_seed(0)
    config = PrunerConfig()
    plain = OCPruner(config).eval()
    frozen = copy.deepcopy(plain).freeze()
    tokens = torch.randn(batch, NUM_TOKENS, config.enc_in_dim)

    # No figure without the right answer.
    with torch.inference_mode():
        assert torch.equal(frozen(tokens, tokens, BUDGET).ids, plain(tokens, tokens, BUDGET).ids)

    plain_times: list[float] = []

    @torch.inference_mode()
    def run_plain() -> None:
        plain_times.append(timed(lambda: plain(tokens, tokens, BUDGET)))

    @torch.inference_mode()
    def run_frozen() -> None:
        frozen(tokens, tokens, BUDGET)

    # The plain module runs before every round, so both see the same weather.
    benchmark.pedantic(run_frozen, setup=run_plain, rounds=ROUNDS, warmup_rounds=WARMUP)
    plain_median = statistics.median(plain_times[-ROUNDS:])
    ratio = benchmark.stats.stats.median / plain_median
    benchmark.extra_info.update(plain_median_s=plain_median, ratio=ratio, torch=torch.__version__)
    print(f"B={batch}: {ratio:.3f} of the plain module's {plain_median * 1e3:.1f} ms")
    if batch == 1:
        assert ratio <= MOST_OF_PLAIN
