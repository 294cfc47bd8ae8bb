from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import ocvtp_kernels as ocvtp
from tests.cases import random_pruner, random_tokens

FROZEN = pytest.mark.parametrize("frozen", [False, True], ids=["plain", "frozen"])


def make(frozen: bool) -> ocvtp.OCPruner:
    return random_pruner().freeze() if frozen else random_pruner()


def call(pruner: ocvtp.OCPruner, **changes: object) -> object:
    tokens = random_tokens(2, 40, 12)
    return pruner(**{"reference_tokens": tokens, "final_tokens": tokens, "budget": 9, **changes})


@FROZEN
@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint8])
def test_a_budget_of_any_whole_type(frozen: bool, kind: type[np.integer]) -> None:
    pruner, tokens = make(frozen), random_tokens(2, 40, 12)
    expected = pruner(tokens, tokens, budget=9).ids
    assert torch.equal(pruner(tokens, tokens, budget=kind(9)).ids, expected)
    kept = ocvtp.select(tokens, budget=kind(9), method="divprune").ids
    assert torch.equal(kept, ocvtp.select(tokens, budget=9, method="divprune").ids)


@FROZEN
@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"budget": 0}, ValueError, "budget: expected 1 to 40"),
        ({"budget": 7.0}, TypeError, "budget: expected a whole number"),
        ({"budget": True}, TypeError, "budget: expected a whole number, got True"),
        ({"budget": np.bool_(True)}, TypeError, "budget: expected a whole number"),
        ({"budget": torch.tensor(7)}, TypeError, "budget: expected a whole number"),
        ({"top_k": "2"}, TypeError, "top_k: expected a whole number"),
        ({"budget": 41}, ValueError, "budget: expected 1 to 40"),
        ({"reference_tokens": torch.zeros(2, 40, 13)}, ValueError, "reference_tokens.*size 12"),
        ({"reference_tokens": torch.zeros(40, 12)}, ValueError, r"reference_tokens.*\[B, N, C\]"),
        ({"reference_tokens": torch.zeros(2, 0, 12)}, ValueError, "reference_tokens.*one token"),
        (
            {"reference_tokens": torch.zeros(2, 40, 12, dtype=torch.float64)},
            TypeError,
            "reference_tokens: expected dtype torch.float32",
        ),
        (
            {"reference_tokens": torch.zeros(2, 40, 12, dtype=torch.int64)},
            TypeError,
            "reference_tokens: expected a floating dtype",
        ),
        (
            {"reference_tokens": torch.zeros(2, 40, 12, device="meta")},
            ValueError,
            "reference_tokens: expected device cpu",
        ),
        ({"final_tokens": torch.zeros(3, 40, 12)}, ValueError, "final_tokens: expected size 2"),
        ({"final_tokens": torch.zeros(2, 39, 12)}, ValueError, "final_tokens: expected size 40"),
        (
            {"final_tokens": torch.zeros(2, 40, 12, device="meta")},
            ValueError,
            "final_tokens: expected device cpu",
        ),
        ({"importance": torch.zeros(2, 39)}, ValueError, "importance: expected size 40"),
        ({"importance": torch.zeros(2, 40, dtype=torch.int64)}, TypeError, "importance"),
        ({"slots_init": torch.zeros(1, 9, 10)}, ValueError, "slots_init: expected size 2"),
        ({"slots_init": torch.zeros(2, 9, 11)}, ValueError, "slots_init: expected size 10"),
        ({"slots_init": torch.zeros(2, 0, 10)}, ValueError, "slots_init: expected at least one"),
        (
            {"slots_init": torch.zeros(2, 9, 10), "num_slots": 8},
            ValueError,
            "slots_init: expected size 8",
        ),
        ({"num_slots": 0}, ValueError, "num_slots: expected at least 1"),
        ({"num_slots": "8"}, TypeError, "num_slots: expected a whole number"),
        ({"num_slots": [1, 2]}, TypeError, "num_slots: expected a whole number"),
        (
            {"slots_init": torch.zeros(2, 9, 10), "num_slots": 9.0},
            TypeError,
            "num_slots: expected a whole number",
        ),
        ({"top_k": 0}, ValueError, "top_k: expected 1 to 40"),
        ({"padding": "zeros"}, ValueError, "padding: expected one of"),
    ],
)
def test_bad_input_is_named(
    frozen: bool, changes: dict[str, object], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        call(make(frozen), **changes)


@FROZEN
@pytest.mark.parametrize(
    ("mask", "error"),
    [
        (torch.ones(2, 7), TypeError),
        (torch.ones(7, dtype=torch.bool), ValueError),
        (torch.ones(2, 6, dtype=torch.bool), ValueError),
        (torch.ones(1, 7, dtype=torch.bool), ValueError),
        (torch.ones(2, 7, dtype=torch.bool, device="meta"), ValueError),
        (True, TypeError),
        ([[True] * 7] * 2, TypeError),
    ],
    ids=str,
)
def test_a_bad_slot_mask_is_named(frozen: bool, mask: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"^slot_mask: expected"):
        make(frozen).attend(random_tokens(2, 40, 12), slot_mask=mask)


@FROZEN
@pytest.mark.parametrize(
    ("batch", "num_slots", "named"),
    [(-1, 3, "batch"), (True, 3, "batch"), (2, 0, "num_slots"), (2, "3", "num_slots")],
)
def test_bad_numbers_of_slots_are_named(
    frozen: bool, batch: Any, num_slots: Any, named: str
) -> None:
    pruner = make(frozen)
    with pytest.raises((TypeError, ValueError), match=f"^{named}: expected"):
        pruner.sample_slots(batch, num_slots)


@pytest.mark.parametrize(
    ("position", "value", "words"),
    [
        (0, torch.zeros(2, 40, 13), "reference_tokens: expected size 12"),
        (0, torch.zeros(2, 40, 12, dtype=torch.float64), "reference_tokens: expected dtype"),
        (1, torch.zeros(2, 41, 12), "final_tokens: expected size 40"),
        (2, [torch.zeros(3)], "weights: expected the list that OCPruner.packed"),
        (3, torch.zeros(2, 9, 9), "slots_init: expected size 10"),
        (4, torch.zeros(1, 40), "importance: expected size 2"),
        (5, 41, "budget: expected 1 to 40"),
    ],
)
def test_bad_input_to_the_op_is_named(position: int, value: object, words: str) -> None:
    pruner = random_pruner()
    tokens = random_tokens(2, 40, 12)
    slots: Tensor = pruner.sample_slots(2, 9).detach()
    arguments = [tokens, tokens, pruner.packed(), slots, None, 9]
    arguments[position] = value
    with pytest.raises((ValueError, TypeError), match=words):
        torch.ops.ocvtp.prune(*arguments)
