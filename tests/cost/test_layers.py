from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest

from ocvtp_kernels import OCPruner
from ocvtp_kernels.cost import flops
from ocvtp_kernels.cost.layers import (
    NAMES,
    PROGRESSIVE,
    language_cost,
    stages_by_name,
    tokens_by_layer,
)
from ocvtp_kernels.cost.models import LLAVA_7B, VICUNA_7B
from ocvtp_kernels.selectors.interface import Stage, stages_of
from ocvtp_kernels.selectors.oc_progressive import OCProgressive
from tests.cost.cases import SMALL, SMALL_PRUNER

IN_DECODER = ("vlm-pruner", "fastv", "dart", "pyramiddrop", "sparsevlm", PROGRESSIVE)


def read(method: str, budget: int, num_tokens: int = 576, depth: int = 32) -> tuple[int, ...]:
    return tokens_by_layer(stages_by_name(method, budget, depth), num_tokens, budget, depth)


def test_fastv_by_hand() -> None:
    assert read("fastv", 64) == (576,) * 2 + (64,) * 30
    assert language_cost(VICUNA_7B, read("fastv", 64)).mean_tokens == 96
    assert read("vlm-pruner", 64) == read("dart", 64) == read("fastv", 64)


def test_pyramiddrop_by_hand() -> None:
    by_layer = (576,) * 8 + (288,) * 8 + (144,) * 8 + (72,) * 8
    assert read("pyramiddrop", 72) == read(PROGRESSIVE, 72) == by_layer
    # The published average over layers.
    assert language_cost(VICUNA_7B, by_layer).mean_tokens == 270
    assert read("pyramiddrop", 192) == (576,) * 16 + (384,) * 8 + (192,) * 8


def test_sparsevlm_by_hand() -> None:
    # 66 and 16 centres of the 510 others, 30 and 2 of 52, 17 and 1 of 15.
    assert read("sparsevlm", 64) == (576,) * 3 + (82,) * 4 + (32,) * 9 + (18,) * 16
    with pytest.raises(ValueError, match="budget: expected one of 64, 96, 128, 192"):
        stages_by_name("sparsevlm", 65, 32)


@pytest.mark.parametrize("method", sorted({*NAMES} - {*IN_DECODER}))
def test_the_other_methods_hand_over_the_budget(method: str) -> None:
    assert stages_by_name(method, 64, 32) == ()
    assert read(method, 64) == (64,) * 32
    assert read(method, 64, num_tokens=40) == (40,) * 32


@pytest.mark.parametrize("method", IN_DECODER)
def test_an_image_within_the_budget_is_left_alone(method: str) -> None:
    assert read(method, 64, num_tokens=64) == (64,) * 32
    assert read(method, 64, num_tokens=65) != (65,) * 32


def test_the_progressive_pruner_has_these_counts() -> None:
    selector = OCProgressive(OCPruner(SMALL_PRUNER))
    for budget, depth in ((64, 32), (5, 4), (192, 28)):
        found = tokens_by_layer(stages_of(selector, budget, depth), 576, budget, depth)
        assert found == read(PROGRESSIVE, budget, depth=depth)


def test_no_stage_adds_tokens() -> None:
    def stage(layer: int, count: int) -> Stage:
        return Stage(layer, lambda _: count, partial(lambda inputs, budget: inputs.ids))

    assert tokens_by_layer([stage(1, 30), stage(3, 50)], 40, 10, 4) == (40, 30, 30, 30)


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(ValueError, match="method: expected one of"):
        stages_by_name("dicprune", 64, 32)


def test_layers_of_as_many_tokens_cost_what_the_model_does() -> None:
    for budget in (None, *LLAVA_7B.budgets):
        whole = flops.cost(LLAVA_7B, budget)
        found = language_cost(VICUNA_7B, [whole.kept] * VICUNA_7B.layers)
        assert (found.paper, found.language) == (whole.paper, whole.language)
        assert found.kv_bytes == whole.kv_bytes
        assert found.equal_budget == found.mean_tokens == whole.kept


def test_layers_cost_by_their_own_tokens() -> None:
    by_layer, text = (9, 9, 4), 5
    found = language_cost(SMALL, by_layer, text)
    parts = [(replace(SMALL, layers=count), tokens + text) for count, tokens in ((2, 9), (1, 4))]
    assert found.language == sum(flops.prefill(*part) for part in parts)
    assert found.paper == sum(flops.paper_prefill(*part) for part in parts)
    assert found.kv_bytes == sum(flops.kv_cache_bytes(*part) for part in parts)
    with pytest.raises(ValueError, match="by_layer: expected 3 numbers, got 2"):
        language_cost(SMALL, by_layer[:2])


@pytest.mark.parametrize("method", IN_DECODER)
def test_the_equal_budget_is_the_largest_that_costs_no_more(method: str) -> None:
    for budget in (64, 128, 192):
        found = language_cost(VICUNA_7B, read(method, budget))
        most = found.equal_budget + flops.TEXT_TOKENS
        costs = [flops.prefill(VICUNA_7B, tokens) for tokens in (most, most + 1)]
        assert costs[0] <= found.language < costs[1]
        # Attention costs more than in proportion, so it is no less than the mean.
        assert found.equal_budget >= int(found.mean_tokens)
