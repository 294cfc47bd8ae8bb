"""Schedules of the decoder's selectors: their layers and counts, and who is left."""

from __future__ import annotations

import copy
import pickle
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from ocvtp_kernels.selectors.fastv import FastV
from ocvtp_kernels.selectors.interface import (
    Selected,
    Selector,
    SelectorInputs,
    needs_of,
    place_of,
    reads_of,
    run_selector,
    stages_of,
)
from ocvtp_kernels.selectors.oc_progressive import OCProgressive
from ocvtp_kernels.selectors.oc_pruner import PrunerSelector
from ocvtp_kernels.selectors.pyramiddrop import PyramidDrop
from ocvtp_kernels.selectors.registry import make_selector, select
from ocvtp_kernels.selectors.sparsevlm import COUNTS, SparseVLM, distances_between
from tests.cases import assert_kept, random_pruner, random_tokens
from tests.selectors.cases import Images
from tests.selectors.transcribed import sparse_counts

NUM_TOKENS = 40


def layers_and_counts(selector: Selector, budget: int, depth: int, tokens: int) -> list[Any]:
    """Of every stage its layer, and what it keeps of what the one before it left."""
    found = []
    for stage in stages_of(selector, budget, depth):
        tokens = stage.count(tokens)
        found.append((stage.layer, tokens))
    return found


def test_fastv_has_one_stage() -> None:
    (stage,) = stages_of(FastV(layer=3), 7, 8)
    assert stage.layer == 3 and stage.count(100) == 7


@pytest.mark.parametrize(
    ("depth", "layers"), [(32, (8, 16, 24)), (28, (7, 14, 21)), (4, (1, 2, 3)), (7, (1, 3, 5))]
)
def test_pyramiddrop_halves_at_quarters_of_the_depth(
    depth: int, layers: tuple[int, int, int]
) -> None:
    for selector in (PyramidDrop(), OCProgressive(random_pruner())):
        found = layers_and_counts(selector, 72, depth, 576)
        assert found == list(zip(layers, (288, 144, 72), strict=True))
        found = layers_and_counts(selector, 72, depth, 100)
        assert found == list(zip(layers, (100, 100, 72), strict=True))


@pytest.mark.parametrize("budget", COUNTS)
def test_sparsevlm_has_the_published_counts(budget: int) -> None:
    layers, tokens = (3, 7, 16), 576
    found = layers_and_counts(SparseVLM(recycle=False), budget, 32, tokens)
    assert found == list(zip(layers, COUNTS[budget], strict=True))
    wanted = []
    for layer, kept in zip(layers, COUNTS[budget], strict=True):
        tokens = kept + sparse_counts(tokens, kept)[1]
        wanted.append((layer, tokens))
    assert layers_and_counts(SparseVLM(), budget, 32, 576) == wanted


def test_sparsevlm_counts_of_few_tokens() -> None:
    found = layers_and_counts(SparseVLM(), 64, 32, 66)
    # Of as many tokens as are kept and fewer, one is dropped, and is its own centre.
    assert found[0] == (3, 66)
    assert layers_and_counts(SparseVLM(recycle=False), 64, 32, 66)[0] == (3, 65)
    for recycle in (True, False):
        once = SparseVLM(recycle, schedule=[(1, 1), (2, 1)])
        assert [count for _, count in layers_and_counts(once, 1, 4, 1)] == [1, 1]


def test_sparsevlm_of_another_depth() -> None:
    assert [stage.layer for stage in stages_of(SparseVLM(), 64, 40)] == [3, 9, 20]
    assert [stage.layer for stage in stages_of(SparseVLM(), 64, 4)] == [1, 2, 3]
    with pytest.raises(ValueError, match="schedule: expected one for a decoder of 2 layers"):
        stages_of(SparseVLM(), 64, 2)


def test_sparsevlm_of_another_budget_needs_a_schedule() -> None:
    with pytest.raises(ValueError, match=r"budget: expected one of 64, 96, 128, 192, .* got 100"):
        stages_of(SparseVLM(), 100, 32)
    given = SparseVLM(recycle=False, schedule=[(3, 50), (9, 20)])
    assert layers_and_counts(given, 100, 32, 576) == [(3, 50), (9, 20)]
    with pytest.raises(TypeError, match="budget: expected a whole number"):
        stages_of(SparseVLM(), 64.5, 32)  # type: ignore[arg-type]


def test_quarters_need_four_layers() -> None:
    with pytest.raises(ValueError, match="schedule: expected one for a decoder of 3 layers"):
        stages_of(PyramidDrop(), 4, 3)
    assert layers_and_counts(PyramidDrop([(1, 5)]), 4, 3, 9) == [(1, 5)]
    with pytest.raises(ValueError, match="layer: expected 1 to 2, got 3"):
        stages_of(PyramidDrop([(3, 5)]), 4, 3)
    with pytest.raises(ValueError, match="budget: expected at least 1, got 0"):
        stages_of(PyramidDrop(), 0, 32)


WRONG: list[tuple[Any, type[Exception], str]] = [
    (3, TypeError, "expected pairs of a layer and a count, got 3"),
    ("12", TypeError, "expected pairs"),
    (["12"], TypeError, "expected pairs"),
    ([(1, 2, 3)], TypeError, "expected pairs"),
    ([1, 2], TypeError, "expected pairs"),
    (torch.ones(2, 2), TypeError, "expected pairs"),
    ([], ValueError, "expected at least one pair"),
    ([(1.0, 4)], TypeError, "expected a whole number, got 1.0"),
    ([(1, True)], TypeError, "expected a whole number, got True"),
    ([(0, 4)], ValueError, "expected at least 1, got 0"),
    ([(1, 0)], ValueError, "expected at least 1, got 0"),
    ([(2, 4), (1, 3)], ValueError, r"expected rising layers, got \[2, 1\]"),
    ([(2, 4), (2, 3)], ValueError, "expected rising layers"),
    ([(1, 3), (2, 4)], ValueError, r"expected no count above the one before it, got \[3, 4\]"),
]


@pytest.mark.parametrize("make", [PyramidDrop, SparseVLM, OCProgressive])
@pytest.mark.parametrize(("schedule", "error", "message"), WRONG, ids=str)
def test_a_schedule_that_is_none_is_named(
    make: Any, schedule: Any, error: type[Exception], message: str
) -> None:
    given = {"pruner": random_pruner()} if make is OCProgressive else {}
    with pytest.raises(error, match=f"^schedule: {message}"):
        make(**given, schedule=schedule)


def test_counts_may_stay_equal() -> None:
    assert layers_and_counts(PyramidDrop(((1, 4), (2, 4))), 4, 3, 9) == [(1, 4), (2, 4)]


@pytest.mark.parametrize(
    ("selector", "needs", "rows", "layer"),
    [
        (FastV(), {"text_attention"}, "last", "before"),
        (PyramidDrop(), {"text_attention"}, "last", "behind"),
        (SparseVLM(), {"text_attention", "final_tokens"}, "raters", "before"),
        (SparseVLM(recycle=False), {"text_attention"}, "raters", "before"),
    ],
    ids=lambda value: type(value).__name__ if callable(value) else None,
)
def test_what_they_ask_of_the_decoder(
    selector: Any, needs: set[str], rows: str, layer: str
) -> None:
    asking = [selector, *(stage.selector for stage in stages_of(selector, 64, 32))]
    for one in asking:
        assert place_of(one) == "decoder" and needs_of(one) == needs
        assert (one.text_rows, one.text_layer) == (rows, layer)


def run_stages(selector: Selector, inputs: SelectorInputs, budget: int) -> list[Tensor]:
    """Ids in the whole image, ``[B, T]``, of each of the stages of a decoder of 8 layers."""
    kept = []
    batch, num_tokens = inputs.reference_tokens.shape[:2]
    ids = torch.arange(num_tokens).expand(batch, -1)
    for stage in stages_of(selector, budget, 8):
        images = torch.arange(batch)[:, None]
        here = inputs.map_tokens(lambda field, at=(images, ids): field[at])._replace(ids=ids)
        count = stage.count(ids.shape[1])
        selected = run_selector(stage.selector, here, count)
        assert_kept(selected.ids, count, ids.shape[1])
        ids = ids.gather(1, selected.ids)
        if selected.tokens is not None:
            tokens = inputs.final_tokens.scatter(
                1, ids[..., None].expand_as(selected.tokens), selected.tokens
            )
            inputs = inputs._replace(final_tokens=tokens)
        kept.append(ids)
    return kept


@pytest.mark.parametrize("method", ["fastv", "pyramiddrop", "sparsevlm"])
def test_each_stage_keeps_a_subset(method: str) -> None:
    options = {"schedule": [(2, 20), (4, 12), (5, 6)]} if method == "sparsevlm" else {}
    for seed in range(10):
        images = Images(seed, torch.float32, sizes=(2, 5, 8, 9))
        inputs = SelectorInputs(images.tokens, images.tokens, **images.inputs)
        kept = run_stages(make_selector(method, **options), inputs, 6)
        again = run_stages(make_selector(method, **options), inputs, 6)
        assert all(map(torch.equal, kept, again))
        assert all(
            torch.isin(later, earlier).all()
            for before, behind in pairwise(kept)
            for earlier, later in zip(before, behind, strict=True)
        )


def test_oc_progressive_goes_down_in_steps() -> None:
    pruner, tokens = random_pruner(), random_tokens(2, NUM_TOKENS, 12)
    selector = make_selector("oc-progressive", pruner=pruner)
    assert place_of(selector) == "decoder" and needs_of(selector) == {"reference_tokens"}
    assert reads_of(selector) == reads_of(PrunerSelector(pruner, importance=False))
    kept = run_stages(selector, SelectorInputs(tokens, tokens), 5)
    assert [ids.shape for ids in kept] == [(2, 20), (2, 10), (2, 5)]
    frozen = copy.deepcopy(pruner).freeze()
    ids = torch.arange(NUM_TOKENS).expand(2, -1)
    for found in kept:
        left = tokens.gather(1, ids[..., None].expand(-1, -1, 12))
        ids = ids.gather(1, frozen(left, left, found.shape[1]).ids)
        assert torch.equal(found, ids)
    once = run_selector(selector, SelectorInputs(tokens, tokens), 5).ids
    assert torch.equal(once, frozen(tokens, tokens, 5).ids)


def test_oc_progressive_takes_a_schedule() -> None:
    tokens = random_tokens(1, NUM_TOKENS, 12)
    selector = make_selector("oc-progressive", pruner=random_pruner(), schedule=[(2, 9), (3, 4)])
    kept = run_stages(selector, SelectorInputs(tokens, tokens), 6)
    assert [ids.shape[1] for ids in kept] == [9, 4]
    assert torch.isin(kept[1], kept[0]).all()
    twin = pickle.loads(pickle.dumps(selector))
    again = run_stages(twin, SelectorInputs(tokens, tokens), 6)
    assert all(map(torch.equal, kept, again))


def test_oc_progressive_names_what_is_wrong() -> None:
    with pytest.raises(TypeError, match="pruner: expected an OCPruner, got int"):
        make_selector("oc-progressive", pruner=3)
    with pytest.raises(TypeError, match="pruner"):
        make_selector("oc-progressive")
    with pytest.raises(TypeError, match=r"seed: oc-progressive takes .* has: pruner, schedule"):
        make_selector("oc-progressive", pruner=random_pruner(), seed=1)


@pytest.mark.parametrize("how", ["copied", "pickled"])
def test_stages_are_copied_with_what_they_keep(how: str) -> None:
    way = copy.deepcopy if how == "copied" else lambda value: pickle.loads(pickle.dumps(value))
    images = Images(3, torch.float32, sizes=(2, 5, 8, 9))
    inputs = SelectorInputs(images.tokens, images.tokens, **images.inputs)
    stages = stages_of(SparseVLM(schedule=[(2, 7)]), 3, 8)
    for stage, twin in zip(stages, way(stages), strict=True):
        count = stage.count(NUM_TOKENS)
        assert twin.count(NUM_TOKENS) == count
        one, other = (run_selector(each.selector, inputs, count) for each in (stage, twin))
        assert torch.equal(one.ids, other.ids)


def recycled(images: Images, budget: int, **options: Any) -> Selected:
    return select(images.tokens, budget, "sparsevlm", **images.inputs, **options)


def test_sparsevlm_keeps_rows_bitwise_and_merges_the_rest() -> None:
    images = Images(3, torch.bfloat16, sizes=(2, 5, 8, 9))
    order = images.inputs["text_attention"].argsort(dim=1, descending=True, stable=True)
    selected = recycled(images, 12)
    assert selected.tokens is not None and selected.tokens.dtype == torch.bfloat16
    merged = 0
    for image in range(2):
        kept = order[image, : 12 - 1]  # and one centre
        for index, row in zip(selected.ids[image], selected.tokens[image], strict=True):
            same = torch.equal(row, images.tokens[image, index])
            assert same or index not in kept
            merged += not same
    assert merged


def test_sparsevlm_of_the_whole_budget_changes_nothing() -> None:
    images = Images(3, torch.float32, sizes=(2, 5, 8, 9))
    selected = recycled(images, NUM_TOKENS)
    assert selected.tokens is not None and torch.equal(selected.tokens, images.tokens)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_image_of_equal_rows_keeps_the_same_alone(dtype: torch.dtype) -> None:
    images = Images(3, dtype, sizes=(3, 16, 25, 300))
    images.tokens[:, 100:300] = images.tokens[:, 100:101]
    images.inputs["text_attention"][:, 50:350] = 1.0
    for budget in (70, 140):
        whole = recycled(images, budget)
        for index in range(3):
            scores = images.inputs["text_attention"][index : index + 1]
            tokens = images.tokens[index : index + 1]
            alone = select(tokens, budget, "sparsevlm", text_attention=scores)
            assert torch.equal(alone.ids[0], whole.ids[index])


def test_distances_survive_outliers_and_are_zero_between_equals() -> None:
    states = torch.randn(2, 300, 500, generator=torch.Generator().manual_seed(0))
    states[:, :, 7] = 3000.0
    states[:, 10, 9] = 3000.0
    states[:, 20:40] = states[:, 20:21]
    found = distances_between(states)
    wanted = torch.cdist(
        states.double(), states.double(), compute_mode="donot_use_mm_for_euclid_dist"
    )
    torch.testing.assert_close(found.double(), wanted, rtol=1e-6, atol=0)
    assert (found[:, 20:40, 20:40] == 0).all()
    assert torch.equal(found, found.transpose(1, 2))


def test_tokens_that_are_not_finite_are_merged_into_none() -> None:
    for value in (torch.nan, torch.inf, -torch.inf):
        images = Images(3, torch.float32, sizes=(2, 5, 8, 9))
        images.tokens[:, 7] = value
        images.inputs["text_attention"][:, 7] = 0.0
        images.inputs["text_attention"][:, 8:] *= 1e-3
        images.inputs["text_attention"][:, 20:] = -1.0
        selected = recycled(images, 8)
        assert selected.tokens is not None and selected.tokens.isfinite().all()
        assert not (selected.ids == 7).any()


def test_noise_is_of_the_seed_or_as_published_fresh() -> None:
    images = Images(3, torch.float32, sizes=(2, 5, 8, 9))
    # All are equally dense, so that noise alone tells who is a centre.
    images.tokens = torch.eye(NUM_TOKENS)[None, :, :].expand(2, -1, -1)
    first, same = recycled(images, 8), recycled(images, 8, seed=0)
    assert torch.equal(first.ids, same.ids)
    assert any(not torch.equal(recycled(images, 8, seed=s).ids, first.ids) for s in range(1, 4))
    given = {**images.inputs, "text_attention": images.inputs["text_attention"][:1].expand(2, -1)}
    alike = select(images.tokens, 8, "sparsevlm", **given)
    assert torch.equal(alike.ids[0], alike.ids[1])
    runs = []
    for seed in (0, 0, 1, 2):
        torch.manual_seed(seed)
        runs.append(recycled(images, 8, as_published=True).ids)
    assert torch.equal(runs[0], runs[1])
    assert not all(torch.equal(runs[0], run) for run in runs[2:])


def test_seeded_noise_draws_nothing_from_the_global_generator() -> None:
    images = Images(3, torch.float32, sizes=(2, 5, 8, 9))
    before = torch.get_rng_state()
    recycled(images, 8)
    assert torch.equal(torch.get_rng_state(), before)
