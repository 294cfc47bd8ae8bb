"""IDPruner and ID-Selection: the score that they are given, and tokens that are no numbers."""

from __future__ import annotations

import pytest
import torch

from ocvtp_kernels.selectors.interface import Selected, needs_of
from ocvtp_kernels.selectors.ranking import ranking
from ocvtp_kernels.selectors.registry import make_selector, select
from tests.selectors.cases import Images

METHODS = ("idpruner", "id-selection")


@pytest.mark.parametrize("method", METHODS)
def test_the_score_is_the_field_of_that_name(method: str) -> None:
    images = Images(3)
    for score in ("importance", "cls_attention", "relevance"):
        assert needs_of(make_selector(method, score=score)) == {"final_tokens", score}
        given = images.inputs[score]
        here = select(images.tokens, 9, method, score=score, **{score: given})  # type: ignore[arg-type]
        own = select(images.tokens, 9, method, score="relevance", relevance=given)
        assert here.order is not None and own.order is not None
        assert torch.equal(here.order, own.order)


def test_without_diversity_the_order_is_that_of_the_score() -> None:
    images = Images(4)
    wanted = ranking(images.inputs["relevance"].abs())[:, : images.budget]
    for method, options in (("idpruner", {"trade_off": 1}), ("id-selection", {"gamma": 0})):
        given = {"relevance": images.inputs["relevance"].abs(), "score": "relevance"}
        order = select(images.tokens, images.budget, method, **given, **options).order
        assert order is not None and torch.equal(order, wanted)


def test_importance_has_no_scale() -> None:
    images = Images(5)
    wanted = images.select("idpruner")
    images.inputs["importance"] = 1000 * images.inputs["importance"] - 7
    assert torch.equal(images.select("idpruner").ids, wanted.ids)


def test_similar_tokens_wait() -> None:
    # The second is nearly the first; the third is like neither, and of less importance.
    tokens = torch.tensor([[[1.0, 0.0], [1.0, 0.01], [0.0, 1.0]]])
    scores = torch.tensor([[3.0, 2.0, 1.0]])
    for method in METHODS:
        found = select(tokens, 3, method, relevance=scores, score="relevance")
        assert found.order is not None and found.order.tolist() == [[0, 2, 1]]


def pick(scores: list[float], tokens: torch.Tensor | None = None, **options: float) -> Selected:
    rows = torch.eye(len(scores)) if tokens is None else tokens
    given = torch.tensor([scores])
    return select(rows[None], 4, "id-selection", relevance=given, score="relevance", **options)


@pytest.mark.parametrize("gamma", [0.0, 20.0, 1e30])
def test_scores_of_nothing_come_last_in_the_order_of_ids(gamma: float) -> None:
    nan = float("nan")
    for zeros in ([0.0, 0.0], [-1.0, 0.0], [nan, -2.0], [0.0, nan]):
        found = pick([*zeros, 1e-30, 5.0], gamma=gamma)
        assert found.order is not None and found.order.tolist() == [[3, 2, 0, 1]]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_token_that_is_no_number_is_last_whatever_its_score(method: str, value: float) -> None:
    images = Images(6, torch.float32)
    num_tokens = images.tokens.shape[1]
    scores = images.inputs["relevance"].abs()
    scores[:, 4] = 100.0
    images.tokens[:, 4, 1] = value
    for budget in (1, num_tokens - 1):
        found = select(images.tokens, budget, method, relevance=scores, score="relevance")
        assert not (found.ids == 4).any()
