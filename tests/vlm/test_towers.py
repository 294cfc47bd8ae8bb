from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from ocvtp_kernels.selectors.at_random import RandomSelector
from ocvtp_kernels.selectors.interface import SelectorInputs, run_selector
from ocvtp_kernels.selectors.oc_pruner import PrunerSelector, as_selector
from ocvtp_kernels.vlm.intercept import remove_intercepts
from ocvtp_kernels.vlm.towers import Tower, resolve_reference
from tests.vlm.models import DEPTH, NUM_PATCHES, SIDE, WIDTH, make_pruner, make_tower

KINDS = {"clip": 1, "siglip": 0, "dinov2": 1, "dinov2_with_registers": 5}
KIND = pytest.mark.parametrize("kind", KINDS)


def make_pixels(batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


def run_eagerly(kind: str, pixels: Tensor) -> Any:
    """The same tower, all its layers, with the attention weights of all of them."""
    tower = make_tower(kind)
    tower.set_attn_implementation("eager")
    with torch.no_grad():
        return tower(pixels, output_hidden_states=True, output_attentions=True)


@KIND
@pytest.mark.parametrize("final_layer", [-1, -2, 2, 0])
@pytest.mark.parametrize("reference_layer", [0, 1, DEPTH - 1])
@torch.no_grad()
def test_taps_the_layers_asked_for(kind: str, final_layer: int, reference_layer: int) -> None:
    pixels, module = make_pixels(), make_tower(kind)
    tower = Tower.of(module)
    assert tower.num_prefix == KINDS[kind]
    assert tower.width == WIDTH and tower.count_patches(pixels) == NUM_PATCHES
    inputs = tower.encode(pixels, reference_layer, final_layer)
    truth = module(pixels, output_hidden_states=True).hidden_states
    prefix = KINDS[kind]
    assert inputs.final_tokens.shape == (2, NUM_PATCHES, WIDTH)
    assert torch.equal(inputs.reference_tokens, truth[reference_layer + 1][:, prefix:])
    assert torch.equal(inputs.final_tokens, truth[final_layer][:, prefix:])
    assert inputs.importance is None and inputs.valid is None


@KIND
@pytest.mark.parametrize("final_layer", [-1, -2])
@torch.no_grad()
def test_importance_is_the_attention_received_beside_sdpa(kind: str, final_layer: int) -> None:
    pixels = make_pixels()
    tower = Tower.of(make_tower(kind))
    inputs = tower.encode(pixels, 1, final_layer, {"importance"})
    weights = run_eagerly(kind, pixels).attentions[final_layer]
    assert inputs.importance is not None
    expected = weights.mean(dim=(1, 2))[:, KINDS[kind] :]
    torch.testing.assert_close(inputs.importance, expected, rtol=1e-5, atol=1e-7)


@torch.no_grad()
def test_the_embedding_has_no_importance() -> None:
    assert Tower.of(make_tower()).encode(make_pixels(), 1, 0, {"importance"}).importance is None


@KIND
@torch.no_grad()
def test_layers_behind_the_last_used_are_not_run(kind: str) -> None:
    module, pixels, run = make_tower(kind), make_pixels(), []
    tower = Tower.of(module)
    # transformers hooks its own layers, once, on the first run.
    module(pixels, output_hidden_states=True)
    hooks = [dict(part._forward_hooks) for part in module.modules()]
    handles = [
        projection.register_forward_hook(lambda *_args, name=name: run.append(name))
        for name, projection in module.named_modules()
        if name.endswith("q_proj") or name.endswith("query")
    ]
    less = tower.encode(pixels, 1, -2, {"importance"})
    assert len(run) == DEPTH - 1
    run.clear()
    tower.encode(pixels, DEPTH - 1, -2)
    assert len(run) == DEPTH
    run.clear()
    whole = tower.encode(pixels, 1, -2, {"importance"}, skip_unused_layers=False)
    assert len(run) == DEPTH
    for ours, full in zip(less[:3], whole[:3], strict=True):
        assert torch.equal(ours, full)
    for handle in handles:
        handle.remove()
    remove_intercepts(module)
    assert hooks == [dict(part._forward_hooks) for part in module.modules()]
    assert not any("forward" in vars(layer) for layer in tower.layers)


@torch.no_grad()
def test_a_forward_set_on_a_layer_comes_back_even_after_an_error() -> None:
    tower = Tower.of(make_tower())
    own = tower.layers[-1].forward
    tower.layers[-1].forward = own
    with pytest.raises((TypeError, RuntimeError, ValueError)):
        tower.encode(torch.zeros(1, 3, 7, 7), 1, -2, {"importance"})
    remove_intercepts(tower.module)
    assert vars(tower.layers[-1])["forward"] is own
    attention: Any = tower.layers[-2].self_attn
    assert not attention.q_proj._forward_hooks and not attention.k_proj._forward_hooks


@pytest.mark.parametrize("kind", ["clip", "siglip"])
@pytest.mark.parametrize("final_layer", [-1, -2])
@torch.no_grad()
def test_rows_alone_equal_rows_of_the_whole(kind: str, final_layer: int) -> None:
    pixels = make_pixels()
    tower = Tower.of(make_tower(kind))
    assert tower.can_compute_rows(1, final_layer)
    ids = torch.tensor([[0, 3, 15], [2, 7, 8]])
    seen: list[Tensor] = []

    def choose() -> Tensor:
        assert len(seen) == 1  # reference tokens come before the rows are needed
        return ids

    rows = tower.encode(pixels, 1, final_layer, on_reference_tokens=seen.append, row_ids=choose)
    whole = tower.encode(pixels, 1, final_layer)
    assert torch.equal(seen[0], whole.reference_tokens)
    assert torch.equal(rows.reference_tokens, whole.reference_tokens)
    expected = torch.stack([whole.final_tokens[i, ids[i]] for i in range(2)])
    torch.testing.assert_close(rows.final_tokens, expected, rtol=1e-5, atol=1e-5)


def test_rows_alone_need_a_decision_before_the_last_layer() -> None:
    tower = Tower.of(make_tower())
    assert tower.can_compute_rows(1, -2)
    assert not tower.can_compute_rows(2, -2)
    assert not tower.can_compute_rows(1, [-2, -1])
    assert not Tower.of(make_tower("dinov2")).can_compute_rows(1, -2)
    with pytest.raises(ValueError, match="row_ids: layer 2"):
        tower.encode(make_pixels(), 2, -2, row_ids=lambda: torch.zeros(2, 1))


@torch.no_grad()
def test_several_final_layers_are_joined() -> None:
    module, pixels = make_tower(), make_pixels()
    inputs = Tower.of(module).encode(pixels, 1, [-3, -2], {"importance"})
    states = module(pixels, output_hidden_states=True).hidden_states
    assert torch.equal(inputs.final_tokens, torch.cat([states[-3], states[-2]], dim=-1)[:, 1:])
    whole = Tower.of(module).encode(pixels, 1, -2, {"importance"})
    assert torch.equal(inputs.importance, whole.importance)


def test_bad_towers_and_layers_are_named() -> None:
    text = transformers.BertModel(
        transformers.BertConfig(
            hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
        )
    )
    with pytest.raises(ValueError, match=r"clip_vision_model.*got bert"):
        Tower.of(text)
    with pytest.raises(ValueError, match="got Linear"):
        Tower.of(torch.nn.Linear(2, 2))
    tower = Tower.of(make_tower())
    assert resolve_reference(None, DEPTH) == DEPTH // 3
    assert tower.resolve_reference(None, -2) == DEPTH // 3
    for layer in (-1, DEPTH):
        with pytest.raises(ValueError, match=f"reference_layer: expected 0 to {DEPTH - 1}"):
            resolve_reference(layer, DEPTH)
    with pytest.raises(ValueError, match="final_layer"):
        tower.encode(make_pixels(), 1, DEPTH + 1)


def test_the_default_reference_layer_follows_the_depth() -> None:
    third = {depth: depth // 3 for depth in (1, 2, 3, 4, *range(9, 49))}
    assert {depth: resolve_reference(None, depth) for depth in third} == third
    assert third[24] == 8
    assert [resolve_reference(None, depth) for depth in range(5, 9)] == [3] * 4
    # Not behind the layers that make the final tokens, unless a third is.
    assert [resolve_reference(None, 5, used) for used in range(6)] == [1, 1, 1, 2, 3, 3]
    assert resolve_reference(4, 5, 1) == 4
    shallow = Tower.of(make_tower(num_hidden_layers=5))
    of_layers = {-1: 3, -2: 3, -3: 2, (1, 3): 2, 0: 1}
    assert {layer: shallow.resolve_reference(None, layer) for layer in of_layers} == of_layers


def make_inputs(batch: int = 3, tokens: int = 20, valid: Tensor | None = None) -> SelectorInputs:
    generator = torch.Generator().manual_seed(3)
    states = torch.randn(batch, tokens, WIDTH, generator=generator)
    return SelectorInputs(states, states, torch.rand(batch, tokens, generator=generator), valid)


@pytest.mark.parametrize("selector", [PrunerSelector(make_pruner()), RandomSelector(4)])
@torch.no_grad()
def test_selectors_keep_the_budget_of_valid_tokens(selector: Any) -> None:
    valid = torch.rand(3, 20, generator=torch.Generator().manual_seed(0)) > 0.3
    for mask in (None, valid):
        inputs = make_inputs(valid=mask)
        ids = run_selector(selector, inputs, 6).ids
        assert ids.shape == (3, 6) and ids.dtype == torch.int64
        assert (ids.diff(dim=1) > 0).all()
        assert mask is None or mask.gather(1, ids).all()
        assert torch.equal(ids, run_selector(selector, inputs, 6).ids)
        for image in range(3):
            alone = SelectorInputs(*(None if t is None else t[image : image + 1] for t in inputs))
            assert torch.equal(run_selector(selector, alone, 6).ids[0], ids[image])


@torch.no_grad()
def test_the_pruner_never_sees_padding() -> None:
    inputs = make_inputs(batch=1)
    valid = torch.ones(1, 20, dtype=torch.bool)
    valid[0, [0, 5, 6, 19]] = False
    index = valid[0].nonzero().flatten()
    selector = PrunerSelector(make_pruner())
    cut = SelectorInputs(*(t[:, index] for t in inputs[:3]))
    expected = index[selector(cut, 6).ids]
    assert torch.equal(selector(inputs._replace(valid=valid), 6).ids, expected)


@torch.no_grad()
def test_the_pruner_runs_in_its_own_dtype() -> None:
    inputs = make_inputs()
    half = SelectorInputs(*(None if t is None else t.half() for t in inputs))
    pruner = make_pruner()
    tokens = half.reference_tokens.float()
    expected = pruner(tokens, tokens, 6, half.importance).ids
    assert torch.equal(PrunerSelector(pruner)(half, 6).ids, expected)
    expected = pruner(tokens, tokens, 6).ids
    assert torch.equal(
        PrunerSelector(pruner, importance=False)(half._replace(importance=None), 6).ids, expected
    )


def test_seeds_choose_differently() -> None:
    inputs = make_inputs()
    chosen = [RandomSelector(seed)(inputs, 6).ids for seed in (0, 1)]
    assert not torch.equal(*chosen)
    assert torch.equal(chosen[0], RandomSelector(0)(inputs, 6).ids)


def test_what_is_no_selector_is_named() -> None:
    with pytest.raises(TypeError, match="pruner: expected an OCPruner, got Linear"):
        PrunerSelector(torch.nn.Linear(2, 2))  # type: ignore[arg-type]
    for thing in (3, torch.nn.Linear(2, 2)):
        with pytest.raises(TypeError, match=f"a selector, got {type(thing).__name__}"):
            as_selector(thing)
    with pytest.raises(ValueError, match="budget: expected 1 to 20"):
        run_selector(RandomSelector(), make_inputs(), 21)

    class Wrong(RandomSelector):
        answer = torch.zeros(3, 5, dtype=torch.int64)

        def __call__(self, inputs: SelectorInputs, budget: int) -> Tensor:  # type: ignore[override]
            return self.answer

    with pytest.raises(ValueError, match=r"selector: expected ids of shape \(3, 6\), got \(3, 5\)"):
        run_selector(Wrong(), make_inputs(), 6)
    Wrong.answer = torch.zeros(3, 6)
    with pytest.raises(TypeError, match=r"int64, got torch\.float32"):
        run_selector(Wrong(), make_inputs(), 6)
