from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ocvtp_kernels import ops
from ocvtp_kernels.ops.slot_argmax import slot_topk
from tests.cases import assert_kept, random_tokens
from tests.ops.raw_calls import SCORES, B, E, K, N, RawCall, ids, picks_scores


def arguments(batch: int = 2, dtype: torch.dtype = torch.float32) -> tuple[Any, ...]:
    topk_ids = torch.randint(0, 12, (batch, 7, 2), generator=torch.Generator().manual_seed(0))
    return topk_ids, random_tokens(batch, 7, dtype=dtype), random_tokens(batch, 12, dtype=dtype), 9


RAW_CALLS = {
    "resolve_picks": RawCall(
        picks_scores(budget=5, num_tokens=N),
        {"picks": ["size 2 *"], **SCORES},
        {"budget": (0, N), "num_tokens": (N, N)},
        measures=("picks", "num_tokens"),
    ),
    "resolve_gather": RawCall(
        picks_scores(final=random_tokens(B, N, E), budget=5),
        {"picks": ["size 2 *"], "final": ["size 2 *", "dtype *"], **SCORES},
        {"budget": (0, N)},
        measures=("picks", "final"),
    ),
    "resolve_gather_packed": RawCall(
        {
            "packed": ids(B, 1, K),
            "importance": random_tokens(B, N),
            "final": random_tokens(B, N, E),
            "budget": 5,
        },
        {
            "packed": ["size [12] *"],
            "importance": SCORES["importance"],
            "final": ["size 2 *", "dtype *"],
        },
        {"budget": (0, N)},
        measures=("packed", "final"),
    ),
}


def with_sets(
    topk_ids: Tensor, max_logprob: Tensor, importance: Tensor | None, budget: int, num_tokens: int
) -> list[list[int]]:
    """The rule written with Python sets and lists, one image at a time."""
    rows = []
    for image in range(topk_ids.shape[0]):
        # (slot's max_logprob, rank within slot, id), best first
        claims = sorted(
            (-float(max_logprob[image, slot]), rank, int(topk_ids[image, slot, rank]))
            for slot in range(topk_ids.shape[1])
            for rank in range(topk_ids.shape[2])
        )
        kept: list[int] = []
        for _, _, token in claims:
            if token not in kept and len(kept) < budget:
                kept.append(token)
        scores = [0.0] * num_tokens if importance is None else importance[image].tolist()
        scores = [-math.inf if math.isnan(score) else score for score in scores]
        rest = sorted(set(range(num_tokens)) - set(kept), key=lambda n: (-scores[n], n))
        rows.append(sorted(kept + rest[: budget - len(kept)]))
    return rows


@st.composite
def cases(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor | None, int, int]:
    batch, num_slots = draw(st.integers(1, 3)), draw(st.integers(1, 12))
    num_tokens = draw(st.integers(1, 20))
    top_k = draw(st.integers(1, min(3, num_tokens)))
    # Few distinct values, so that ties, duplicates and overflows are common.
    ids = st.integers(0, num_tokens - 1)
    values = st.sampled_from([-math.inf, -2.0, -0.5, 0.0, 0.25, 0.5, 1.0, math.nan])
    flat = draw(
        st.lists(ids, min_size=batch * num_slots * top_k, max_size=batch * num_slots * top_k)
    )
    topk_ids = torch.tensor(flat).reshape(batch, num_slots, top_k)
    logprobs = st.sampled_from([0.1, 0.5, 0.5, 1.0])
    max_logprob = draw(st.lists(logprobs, min_size=batch * num_slots, max_size=batch * num_slots))
    scores = draw(st.lists(values, min_size=batch * num_tokens, max_size=batch * num_tokens))
    importance = torch.tensor(scores).reshape(batch, num_tokens) if draw(st.booleans()) else None
    budget = draw(st.integers(1, num_tokens))
    return (
        topk_ids,
        torch.tensor(max_logprob).reshape(batch, num_slots),
        importance,
        budget,
        num_tokens,
    )


@given(cases())
@settings(max_examples=400, deadline=None)
def test_equals_the_rule_written_with_sets(
    case: tuple[Tensor, Tensor, Tensor | None, int, int],
) -> None:
    ids = torch.ops.ocvtp.resolve_picks(*case)
    assert ids.tolist() == with_sets(*case) == ops.resolve_picks.reference(*case).tolist()
    assert_kept(ids, case[3], case[4])


def test_the_slot_of_smallest_max_logprob_loses_its_token() -> None:
    ids = torch.ops.ocvtp.resolve_picks(
        torch.tensor([[9, 2, 5]]), torch.tensor([[0.9, 0.1, 0.6]]), None, 2, 12
    )
    assert ids.tolist() == [[5, 9]]


def test_a_token_two_slots_picked_counts_with_the_stronger() -> None:
    ids = torch.ops.ocvtp.resolve_picks(
        torch.tensor([[3, 3, 7, 8]]), torch.tensor([[0.1, 0.9, 0.5, 0.4]]), None, 2, 12
    )
    assert ids.tolist() == [[3, 7]]


def test_the_gap_goes_to_the_most_important_unpicked() -> None:
    importance = torch.tensor([[0.9, 0.1, 0.8, 0.8, 0.7]])
    ids = torch.ops.ocvtp.resolve_picks(torch.tensor([[0, 0, 0]]), torch.ones(1, 3), importance, 3)
    assert ids.tolist() == [[0, 2, 3]]


@pytest.mark.parametrize("top_k", [1, 3])
def test_ties_in_the_scores_go_to_the_lowest_token(top_k: int) -> None:
    scores = torch.zeros(1, 2, 600)
    scores[0, 1, 100:110] = 1.0
    topk_ids, max_logprob = slot_topk(scores, top_k)
    assert topk_ids.tolist() == [[list(range(top_k)), list(range(100, 100 + top_k))]]
    assert max_logprob.tolist() == [[0.0, 1.0]]


def test_a_nan_score_never_wins() -> None:
    scores = torch.tensor([[[math.nan, 0.2, 0.1], [math.nan] * 3]])
    topk_ids, max_logprob = slot_topk(scores)
    assert topk_ids.squeeze(-1).tolist() == [[1, 0]]
    assert max_logprob.tolist() == [[pytest.approx(0.2), -math.inf]]


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"budget": 0}, ValueError, "budget: expected 1 to 12"),
        ({"budget": 13}, ValueError, "budget: expected 1 to 12"),
        ({"topk_ids": torch.zeros(2, 7)}, TypeError, "topk_ids: expected dtype torch.int64"),
        ({"topk_ids": torch.zeros(14, dtype=torch.int64)}, ValueError, "topk_ids: expected shape"),
        ({"max_logprob": torch.zeros(2, 6)}, ValueError, "max_logprob: expected size 7"),
        ({"importance": torch.zeros(3, 12)}, ValueError, "importance: expected size 2"),
        ({"importance": None}, ValueError, "num_tokens"),
    ],
)
def test_bad_input_is_named(change: dict[str, object], error: type[Exception], words: str) -> None:
    good = {
        "topk_ids": torch.zeros(2, 7, dtype=torch.int64),
        "max_logprob": torch.zeros(2, 7),
        "importance": torch.zeros(2, 12),
        "budget": 5,
    }
    with pytest.raises(error, match=words):
        ops.resolve_picks(**{**good, **change})
