"""DART: pivots of the image and of the text, and budgets that have room for few of them."""

from __future__ import annotations

import torch

from ocvtp_kernels.selectors.interface import needs_of, place_of, reads_of, stages_of
from ocvtp_kernels.selectors.registry import make_selector, select
from tests.selectors.cases import Images


def test_what_it_asks_of_the_decoder() -> None:
    selector = make_selector("dart")
    assert place_of(selector) == "decoder" and needs_of(selector) == {"final_tokens", "keys"}
    assert reads_of(selector) == {"final_tokens", "keys", "text_pivots"}
    assert "text_pivots" not in reads_of(make_selector("dart", num_text_pivots=0))
    (stage,) = stages_of(make_selector("dart", layer=3), 7, 8)
    assert stage.layer == 3 and stage.count(100) == 7


def test_pivots_by_hand() -> None:
    # Tokens at these angles; the first and the fourth have the largest keys.
    angles = torch.tensor([0.0, 10.0, 50.0, 90.0, 100.0, 130.0]).deg2rad()
    tokens = torch.stack([angles.cos(), angles.sin()], dim=1)[None]
    keys = torch.tensor([[[3.0], [1.0], [0.0], [-2.0], [0.5], [0.7]]])
    given = {"keys": keys, "num_image_pivots": 2}
    # Of 0 degrees those at 130 are the least like it, of 90 then those at 10.
    order = select(tokens, 4, "dart", **given).order  # type: ignore[arg-type]
    assert order is not None and order.tolist() == [[0, 3, 5, 1]]
    # Three pivots and two places: one each for the first two.
    text = -tokens[:, 2:3]
    order = select(tokens, 4, "dart", text_pivots=text, **given).order  # type: ignore[arg-type]
    assert order is not None and order.tolist() == [[0, 3, 5, 1]]
    order = select(tokens, 5, "dart", text_pivots=text, **given).order  # type: ignore[arg-type]
    assert order is not None and order.tolist() == [[0, 3, 5, 1, 2]]
    # As published all three have one, or none.
    found = select(tokens, 4, "dart", text_pivots=text, as_published=True, **given)  # type: ignore[arg-type]
    assert found.ids.tolist() == [[0, 3, -1, -1]]


def test_budgets_below_the_pivots_keep_the_largest_keys() -> None:
    images = Images(3)
    norms = images.inputs["keys"].abs().sum(dim=2)
    for budget in (1, 3, 4):
        wanted = norms.topk(budget, dim=1).indices.sort(dim=1).values
        images.budget = budget
        for as_published in (False, True):
            found = images.select("dart", as_published=as_published)
            assert torch.equal(found.ids, wanted)


def test_as_published_every_pivot_keeps_as_many() -> None:
    images = Images(3, sizes=(2, 6, 8, 50))
    for budget in range(1, 49):
        images.budget = budget
        found = images.select("dart", as_published=True)
        pivots = min(4, budget)
        count = pivots + (budget - pivots) // (pivots + 3) * (pivots + 3)
        assert found.found is not None and found.found.tolist() == [count] * 2
        assert (found.ids[:, :count].diff(dim=1) > 0).all() and (found.ids[:, :count] >= 0).all()
        assert (found.ids[:, count:] == -1).all()
        assert found.tokens is not None and not found.tokens[:, count:].any()


def test_text_of_nothing_changes_no_count() -> None:
    images = Images(3, torch.float32)
    for value in (0.0, torch.nan):
        images.inputs["text_pivots"] = torch.full_like(images.inputs["text_pivots"], value)
        ids = images.select("dart").ids
        assert (ids.diff(dim=1) > 0).all() and ids.shape[1] == images.budget


def test_tokens_and_text_may_differ_in_dtype() -> None:
    images = Images(3, torch.float32)
    wanted = images.select("dart").ids
    images.inputs["text_pivots"] = images.inputs["text_pivots"].double()
    assert torch.equal(images.select("dart").ids, wanted)
