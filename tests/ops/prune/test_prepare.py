"""What `prepare` takes, and that its list keeps what the given one does."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ocvtp_kernels import ops, prepare
from tests.cases import PruneCase, random_tokens, small_config

CASE = PruneCase(small_config(), batch=2, num_tokens=20, num_slots=7)
_, _, WEIGHTS, SLOTS = CASE.arguments(torch.float32)


@pytest.mark.parametrize(
    ("weights", "slots_init", "named"),
    [
        (None, None, "weights: expected a list"),
        (WEIGHTS[0], None, "weights: expected a list"),
        ([], None, "weights: expected the list that"),
        ([WEIGHTS], None, r"weights\[0\]: expected a tensor"),
        ([*WEIGHTS[:3], None, *WEIGHTS[4:]], None, r"weights\[3\]: expected a tensor, got None"),
        ([*WEIGHTS[:3], WEIGHTS[3].to_sparse(), *WEIGHTS[4:]], None, r"weights\[3\]: .* dense"),
        ([*WEIGHTS[:3], WEIGHTS[3].double(), *WEIGHTS[4:]], None, r"weights\[3\]: expected dtype"),
        (WEIGHTS, 3, "slots_init: expected a tensor"),
        (WEIGHTS, SLOTS, "slots_init: expected size 1 in dimension 0"),
        (WEIGHTS, SLOTS[0], "slots_init: expected shape"),
        (WEIGHTS, SLOTS[:1, :, 1:], "slots_init: expected size 10 in dimension 2"),
        (WEIGHTS, SLOTS[:1].double(), "slots_init: expected dtype torch.float32"),
        (WEIGHTS, SLOTS[:1].to("meta"), "slots_init: expected device cpu"),
    ],
)
def test_what_does_not_fit_is_named(weights: Any, slots_init: Any, named: str) -> None:
    with pytest.raises((ValueError, TypeError), match=f"^{named}"):
        prepare(weights, slots_init)


def test_no_gradient_is_kept() -> None:
    with torch.inference_mode():
        weights = [weight.clone() for weight in WEIGHTS]
    prepared = prepare(weights, SLOTS[:1].clone().requires_grad_())
    assert not any(weight.requires_grad for weight in prepared)


def test_slots_that_share_memory_with_others_are_not_taken_for_them() -> None:
    reference_tokens, final_tokens, weights, _ = CASE.arguments(torch.float32)
    slots = random_tokens(1, 7, 10, seed=5)
    first = slots[:, :1].expand(1, 7, 10)  # begins where the slots do
    expected = ops.prune(reference_tokens[:1], final_tokens[:1], weights, slots, None, budget=9)
    given = prepare(weights, first)
    kept = ops.prune(reference_tokens[:1], final_tokens[:1], given, slots, None, budget=9)
    assert torch.equal(kept[1], expected[1])
