"""Every selector beside a slow transcription of its steps, on random images without ties."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from ocvtp_kernels.selectors.interface import Selected, SelectorInputs, run_selector, stages_of
from ocvtp_kernels.selectors.registry import select
from ocvtp_kernels.selectors.sparsevlm import SparseVLM
from tests.selectors import transcribed
from tests.selectors.cases import HEADS, WAYS, Images, on, tied

# Exact in float64; float32 decides the same wherever no two scores are within a rounding.
RUNS = [(torch.float64, 200), (torch.float32, 30)]


def assert_same(selected: Selected, image: int, kept: transcribed.Kept) -> None:
    """The ids of an image are the transcription's, and what else that has is there."""
    ids, there = kept
    budget = selected.ids.shape[1]
    assert selected.ids[image].tolist() == ids + [-1] * (budget - len(ids))
    for name, wanted in there.items():
        got = getattr(selected, name)[image][: len(wanted)]
        tight = 1e-9 if got.dtype == torch.float64 else 1e-4
        np.testing.assert_allclose(got.double().numpy(), wanted, rtol=tight, atol=tight)
    assert ("extra" in there) == (selected.extra is not None)


def compare(
    method: str,
    transcription: Callable[..., transcribed.Kept],
    options: Callable[[Images], dict[str, Any]] = lambda images: {},
    rename: dict[str, str] | None = None,
) -> None:
    """Checks all random images, with options that may depend on them."""
    for dtype, count in RUNS:
        for seed in range(count):
            images = Images(seed, dtype)
            chosen = options(images)
            named = {(rename or {}).get(name, name): value for name, value in chosen.items()}
            wanted = [transcription(**image, **named) for image in images.images()]
            for way in WAYS:
                with on(way):
                    selected = images.select(method, **chosen)
                for index, kept in enumerate(wanted):
                    assert_same(selected, index, kept)


def test_fastervlm() -> None:
    compare("fastervlm", transcribed.fastervlm)


def test_vispruner() -> None:
    shares, drops = (0.5, 0.5, 0.0, 1.0, 0.3), (8, 8, 3)

    def options(images: Images) -> dict[str, Any]:
        seed = images.seed
        return {"important_share": shares[seed % 5], "drop": drops[seed % 3]}

    compare("vispruner", transcribed.vispruner, options, {"important_share": "share"})


@pytest.mark.parametrize("as_published", [False, True])
def test_hiprune(as_published: bool) -> None:
    # The last shares make anchors and buffers more than the budget.
    shares = (0.1, 0.5, 0.9, 2.0, 5.0)

    def options(images: Images) -> dict[str, Any]:
        if images.seed % 2:  # sums over queries, which exceed 1
            images.inputs["importance"] *= images.tokens.shape[1]
        share = shares[images.seed % len(shares)]
        return {"anchor_share": share, "as_published": as_published}

    compare("hiprune", transcribed.hiprune, options, {"anchor_share": "share"})


@pytest.mark.parametrize("as_published", [False, True])
def test_visionzip(as_published: bool) -> None:
    def options(images: Images) -> dict[str, Any]:
        patches = images.budget - as_published
        contextual = [None, 0, patches, patches // 2][images.seed % 4]
        heads = [None, HEADS][images.seed % 2]
        return {"contextual": contextual, "heads": heads, "as_published": as_published}

    compare("visionzip", transcribed.visionzip, options)


@pytest.mark.slow
def test_scope() -> None:
    compare("scope", transcribed.scope, lambda images: {"alpha": (1.0, 0.5)[images.seed % 2]})


@pytest.mark.slow
@pytest.mark.parametrize("method", ["prumerge", "prumerge+"])
def test_prumerge(method: str) -> None:
    def transcription(**image: Any) -> transcribed.Kept:
        return transcribed.prumerge(**image, spatial=method == "prumerge+")

    compare(method, transcription, lambda images: {"neighbours": (32, 5, 0)[images.seed % 3]})


@pytest.mark.parametrize("as_published", [False, True])
def test_trim(as_published: bool) -> None:
    compare("trim", transcribed.trim, lambda _: {"as_published": as_published})


@pytest.mark.slow
@pytest.mark.parametrize("relevance", ["none", "text", "as_published"])
def test_cdpruner(relevance: str) -> None:
    for dtype, count in RUNS:
        for seed in range(count):
            images = Images(seed, dtype)
            if relevance == "none":
                images.inputs["text"] = None
            orders = cdpruner_orders(images, relevance)
            for way in WAYS:
                with on(way):
                    selected = images.select("cdpruner", as_published=relevance == "as_published")
                assert selected.order is not None
                assert selected.order.tolist() == orders
                assert selected.ids.tolist() == [sorted(order) for order in orders]


@pytest.mark.parametrize("method", ["fastv", "pyramiddrop"])
def test_most_attended(method: str) -> None:
    compare(method, transcribed.most_attended)


def test_sparsevlm() -> None:
    compare(
        "sparsevlm",
        transcribed.sparsevlm,
        lambda images: {"recycle": images.seed % 4 > 0, "seed": images.seed % 3},
    )


@pytest.mark.parametrize("most", [1, 7, 20])
def test_a_stage_of_sparsevlm(most: int) -> None:
    (stage,) = stages_of(SparseVLM(schedule=[(2, most)]), 1, 4)
    for dtype, count in RUNS:
        for seed in range(count // 2):
            images = Images(seed, dtype)
            images.budget = stage.count(images.tokens.shape[1])
            inputs = SelectorInputs(images.tokens, images.tokens, **images.inputs)
            selected = run_selector(stage.selector, inputs, images.budget)
            rows = selected._replace(tokens=selected.gather(images.tokens))
            for index, image in enumerate(images.images()):
                assert_same(rows, index, transcribed.sparsevlm(**image, most=most))


SCORES = ("importance", "cls_attention", "relevance")


def test_idpruner() -> None:
    trade_offs = (0.5, 0.5, 0.2, 1.0, 0.9)
    compare(
        "idpruner",
        transcribed.idpruner,
        lambda images: {
            "trade_off": trade_offs[images.seed % 5],
            "score": SCORES[images.seed % 3],
        },
    )


def test_id_selection() -> None:
    # Products of the decay and a score underflow to ties where gamma is large.
    gammas = (20.0, 20.0, 0.0, 1.0, 100.0)
    compare(
        "id-selection",
        transcribed.id_selection,
        lambda images: {"gamma": gammas[images.seed % 5], "score": SCORES[images.seed % 2]},
    )


@pytest.mark.parametrize("as_published", [False, True])
def test_dart(as_published: bool) -> None:
    pivots = (4, 1, 9)

    def options(images: Images) -> dict[str, Any]:
        of_text = images.seed % 4 > 0
        return {
            "num_image_pivots": pivots[images.seed % 3],
            "num_text_pivots": 4 * of_text,
            "as_published": as_published,
        }

    # Of the number of text pivots the transcription reads whether there are any.
    compare("dart", transcribed.dart, options, {"num_text_pivots": "from_text"})


@pytest.mark.parametrize("as_published", [False, True])
def test_holov(as_published: bool) -> None:
    patches = (16, 1, 5, 100)

    def options(images: Images) -> dict[str, Any]:
        score = SCORES[images.seed % 2]
        if images.seed % 3 == 0:  # one chunk has more than it has room for
            images.inputs[score][:, :5] *= 50
        return {
            "alpha": (0.09, 2.0)[images.seed % 2],
            "num_patches": patches[images.seed % 4],
            "score": score,
            "as_published": as_published,
        }

    compare("holov", transcribed.holov, options)


@pytest.mark.slow
def test_apet() -> None:
    basis = (10, 1, 4, 500)
    compare(
        "apet",
        transcribed.apet,
        lambda images: {
            "num_basis": basis[images.seed % 4],
            "merge": images.seed % 3 > 0,
        },
    )


def cdpruner_orders(images: Images, relevance: str) -> list[list[int]]:
    """The order that the transcription picks in, of every image."""
    every = images.images()
    if relevance == "none":
        qualities = [[1.0] * len(image["tokens"]) for image in every]
    else:
        sign = -1 if relevance == "as_published" else 1
        raw = [transcribed.relevance_of(x["text"], x["text_tokens"], sign) for x in every]
        batch = [value for values in raw for value in values]
        spans = [batch if relevance == "as_published" else values for values in raw]
        qualities = [
            transcribed.relevance_quality(values, min(span), max(span))
            for values, span in zip(raw, spans, strict=True)
        ]
    return [
        transcribed.cdpruner(image["tokens"], quality, image["budget"])
        for image, quality in zip(every, qualities, strict=True)
    ]


TIES: list[tuple[str, Callable[..., transcribed.Kept], dict[str, Any]]] = [
    ("fastervlm", transcribed.fastervlm, {}),
    ("vispruner", transcribed.vispruner, {}),
    ("hiprune", transcribed.hiprune, {}),
    ("hiprune", transcribed.hiprune, {"as_published": True}),
    ("visionzip", transcribed.visionzip, {}),
    ("visionzip", transcribed.visionzip, {"as_published": True}),
    ("scope", transcribed.scope, {}),
    ("prumerge", transcribed.prumerge, {"neighbours": 5}),
    ("trim", transcribed.trim, {}),
    ("trim", transcribed.trim, {"as_published": True}),
    ("fastv", transcribed.most_attended, {}),
    ("pyramiddrop", transcribed.most_attended, {}),
    ("sparsevlm", transcribed.sparsevlm, {}),
    ("sparsevlm", transcribed.sparsevlm, {"recycle": False}),
    ("idpruner", transcribed.idpruner, {"trade_off": 0.5, "score": "importance"}),
    ("id-selection", transcribed.id_selection, {"gamma": 20.0, "score": "cls_attention"}),
    ("dart", transcribed.dart, {}),
    ("dart", transcribed.dart, {"as_published": True}),
    ("holov", transcribed.holov, {}),
    ("holov", transcribed.holov, {"as_published": True}),
    ("apet", transcribed.apet, {}),
]


@pytest.mark.parametrize(("method", "transcription", "options"), TIES)
def test_ties_go_to_the_lowest_id(
    method: str, transcription: Callable[..., transcribed.Kept], options: dict[str, Any]
) -> None:
    for seed in range(30):
        images = tied(seed)
        wanted = [transcription(**image, **options) for image in images.images()]
        for way in WAYS:
            with on(way):
                selected = images.select(method, **options)
            for index, kept in enumerate(wanted):
                assert_same(selected, index, kept)


@pytest.mark.parametrize("method", ["cdpruner", "divprune"])
def test_ties_of_diversity_go_to_the_lowest_id(method: str) -> None:
    tokens = torch.eye(6).repeat(2, 1)[None]
    for way in WAYS:
        with on(way):
            selected = select(tokens, 9, method)
        # Duplicates add nothing, so they come after all distinct tokens.
        assert selected.order is not None
        assert selected.order.tolist() == [list(range(9))]
