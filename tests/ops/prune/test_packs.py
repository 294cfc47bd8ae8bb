"""A frozen pruner owns packs of its weights for the CPU's products; nobody else has any."""

from __future__ import annotations

import copy
import io
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.profiler import profile

from ocvtp_kernels import OCPruner, native, ops
from ocvtp_kernels.ops.prune.native import linear as linear_native
from ocvtp_kernels.ops.prune.native.pipeline import prepare
from tests.cases import random_pruner, random_tokens, small_config

REASON = native.missing_reason("cpu")
pytestmark = [
    pytest.mark.skipif(REASON is not None, reason=str(REASON)),
    pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch has no oneDNN"),
]

WIDTHS = {"enc_in_dim": 24, "enc_dims": (32, 16), "init_dim": 16, "agg_embed_dim": 16}
PRODUCTS = 2 + 1 + 2 * 4  # encode; the first query; two iterations of gates, FFN and the next query
KEPT = PRODUCTS - 1  # for the slots of a seed, whose first query the pruner has kept
TOKENS = random_tokens(2, 40, 24)
BUDGET = 7


@pytest.fixture(autouse=True)
def products_of_every_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pruners here are small: all their products are below what is worth a pack."""
    monkeypatch.setattr(linear_native, "MIN_PRODUCTS", 0)


def made(**changes: Any) -> OCPruner:
    return random_pruner(small_config(**WIDTHS, **changes)).requires_grad_(False)


def prune(weights: list[Tensor], slots: Tensor) -> Tensor:
    ids: Tensor = torch.ops.ocvtp.prune(TOKENS, TOKENS, weights, slots, None, BUDGET)[1]
    return ids


def packed_products(call: Callable[[], Any]) -> int:
    """How many products with a pack the call made."""
    with profile() as events:
        call()
    return sum(event.name == "mkldnn::_linear_pointwise" for event in events.events())


def in_a_thread(call: Callable[[], Any]) -> None:
    thread = threading.Thread(target=call)
    thread.start()
    thread.join()


def frozen_in_inference_mode() -> OCPruner:
    with torch.inference_mode():
        return made().freeze()


def loaded_in_inference_mode() -> OCPruner:
    pruner, state = made().freeze(), made().state_dict()
    with torch.inference_mode():
        pruner.load_state_dict(state)
    return pruner


def pickled() -> OCPruner:
    file = io.BytesIO()
    torch.save(made().freeze(), file)
    file.seek(0)
    pruner = torch.load(file, weights_only=False)
    assert isinstance(pruner, OCPruner)
    return pruner


FROZEN = {
    "frozen": lambda: made().freeze(),
    "frozen in inference mode": frozen_in_inference_mode,
    "loaded in inference mode": loaded_in_inference_mode,
    "cast to half and back": lambda: made().freeze().half().float(),
    "copied": lambda: copy.deepcopy(made().freeze()),
    "pickled": pickled,
}


@pytest.mark.parametrize("how", FROZEN)
def test_a_frozen_pruner_multiplies_with_its_packs_in_every_mode(how: str) -> None:
    pruner = FROZEN[how]()
    slots = pruner.sample_slots(2, BUDGET)
    with torch.no_grad():
        assert packed_products(lambda: pruner(TOKENS, TOKENS, BUDGET)) == KEPT
        assert packed_products(lambda: pruner(TOKENS, TOKENS, BUDGET, None, slots)) == PRODUCTS
        assert packed_products(lambda: pruner(TOKENS, TOKENS, BUDGET, num_slots=17)) == PRODUCTS
    with torch.inference_mode():
        assert packed_products(lambda: pruner(TOKENS, TOKENS, BUDGET)) == KEPT
        assert packed_products(lambda: pruner.pick(TOKENS)) == KEPT
    counts: list[int] = []
    in_a_thread(lambda: counts.append(packed_products(lambda: pruner(TOKENS, TOKENS, BUDGET))))
    assert counts == [KEPT]


def test_a_compiled_pruner_does_too() -> None:
    pruner = made().freeze()
    compiled = torch.compile(pruner, backend="aot_eager", fullgraph=True)
    ids = compiled(TOKENS, TOKENS, BUDGET).ids
    assert packed_products(lambda: compiled(TOKENS, TOKENS, BUDGET)) == KEPT
    assert torch.equal(ids, pruner(TOKENS, TOKENS, BUDGET).ids)


@pytest.mark.parametrize("change", ["multiplied", "through numpy", "another storage"])
def test_the_op_sees_every_edit_of_weights_that_nobody_froze(change: str) -> None:
    pruner = made()
    weights, others = pruner.packed(), made().packed()
    slots = pruner.sample_slots(2, BUDGET).contiguous()
    for _ in range(20):
        prune(weights, slots)
        for weight, other in zip(weights[1:], others[1:], strict=True):
            if change == "multiplied":
                weight.data.mul_(-0.7)
            elif change == "through numpy":
                weight.numpy()[...] = other.numpy()
            else:
                # The second may get the address that the first had.
                weight.data = other.data.clone()
                weight.data = torch.randn_like(other) / other.shape[-1] ** 0.5
        expected = ops.prune.reference(TOKENS, TOKENS, weights, slots, None, BUDGET)[1]
        assert torch.equal(prune(weights, slots), expected)


def test_edits_of_a_frozen_pruners_list_change_no_pruner() -> None:
    pruner = made().freeze()
    before = pruner(TOKENS, TOKENS, BUDGET).ids
    weights = pruner.packed()
    # The same tensors each time: launches are prepared by address.
    assert all(a is b for a, b in zip(weights, pruner.packed(), strict=True))
    slots = pruner.sample_slots(2, BUDGET)
    assert torch.equal(prune(weights, slots), before)
    for weight in weights:
        weight.data.mul_(-1)
    expected = ops.prune.reference(TOKENS, TOKENS, weights, slots, None, BUDGET)[1]
    assert torch.equal(prune(weights, slots), expected)
    assert torch.equal(pruner(TOKENS, TOKENS, BUDGET).ids, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_parameter_edited_after_freezing_is_not_seen(dtype: torch.dtype) -> None:
    pruner, tokens = made().to(dtype).freeze(), TOKENS.to(dtype)
    before = pruner(tokens, tokens, BUDGET).ids
    for parameter in pruner.parameters():
        parameter.data.mul_(-1)
    for same in (pruner, copy.deepcopy(pruner)):
        assert torch.equal(same(tokens, tokens, BUDGET).ids, before)
    assert not torch.equal(pruner.freeze()(tokens, tokens, BUDGET).ids, before)


def test_packs_serve_no_list_but_their_own() -> None:
    pruner = made()
    weights, others = prepare(pruner.packed()), made().packed()
    slots = pruner.sample_slots(2, BUDGET)
    mixed = [weights[0], *others[1:]]
    assert packed_products(lambda: prune(weights, slots)) == PRODUCTS
    assert packed_products(lambda: prune(mixed, slots)) == 0
    expected = ops.prune.reference(TOKENS, TOKENS, mixed, slots, None, BUDGET)[1]
    assert torch.equal(prune(mixed, slots), expected)


def test_packs_serve_views_of_their_list() -> None:
    pruner = made()
    weights, slots = prepare(pruner.packed()), pruner.sample_slots(2, BUDGET)
    expected = prune(weights, slots)
    for mode in (torch.no_grad, torch.inference_mode, torch.enable_grad):
        with mode():
            for views in ([w.view_as(w) for w in weights], [w.detach() for w in weights]):
                assert packed_products(lambda views=views: prune(views, slots)) == PRODUCTS
                assert torch.equal(prune(views, slots), expected)


def test_small_products_go_without_a_pack(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = torch.randn(6, 8), torch.randn(5, 8)
    layer = linear_native.Layer.of(weight, None, x.dtype).packed()
    for fewest, expected in ((6 * 8 * 5, 1), (6 * 8 * 5 + 1, 0)):
        monkeypatch.setattr(linear_native, "MIN_PRODUCTS", fewest)
        assert packed_products(lambda: linear_native.linear(x, layer)) == expected


def test_the_weights_that_were_used_can_be_swapped() -> None:
    pruner = made()
    weights = pruner.packed()
    prune(weights, pruner.sample_slots(2, BUDGET))
    prune(prepare(weights), pruner.sample_slots(2, BUDGET))
    torch.utils.swap_tensors(weights[1], weights[1].clone())


def test_a_frozen_pruner_goes_to_the_meta_device() -> None:
    pruner = made().freeze().to("meta")
    assert all(weight.is_meta for weight in pruner.packed())
