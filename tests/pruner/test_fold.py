"""The folded path is the plain path: exact identities, so float64 agrees to rounding."""

from __future__ import annotations

import copy
import gc
import io
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor

from ocvtp_kernels import PrunerConfig
from ocvtp_kernels.ops.prune import weights as kept_lists
from ocvtp_kernels.ops.prune.native.pipeline import prepare
from ocvtp_kernels.ops.prune.reference import attention_logits
from ocvtp_kernels.ops.prune.weights import kept_with, unpack
from tests.cases import random_pruner, random_tokens, small_config

CONFIGS = {
    "small": small_config(),
    "no norm": small_config(enc_ln=None),
    "norm after": small_config(enc_ln="post"),
    "one layer": small_config(enc_dims=(10,)),
    "three layers": small_config(enc_dims=(20, 15, 10)),
    "one iteration": small_config(agg_num_iter=1),
    "five iterations": small_config(agg_num_iter=5),
    "published widths": PrunerConfig(init_num=65),
}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("outliers", [False, True])
def test_attention_and_ids_agree_in_float64(name: str, outliers: bool) -> None:
    config = CONFIGS[name]
    pruner = random_pruner(config, dtype=torch.float64)
    tokens = random_tokens(2, 90, config.enc_in_dim, dtype=torch.float64, outliers=outliers)
    slots = pruner.sample_slots(2, config.init_num)
    with torch.no_grad():
        _, plain = pruner.attend(tokens, slots)
        folded = attention_logits(tokens, pruner.packed(), slots).softmax(dim=1)
        torch.testing.assert_close(folded, plain, rtol=0, atol=1e-12)
        for budget in (1, config.init_num, 89, 90):
            before = pruner(tokens, tokens, budget=budget)
            after = pruner.freeze()(tokens, tokens, budget=budget)
            pruner.unfreeze()
            assert torch.equal(before.ids, after.ids)
            assert torch.equal(before.tokens, after.tokens)


def test_a_packed_list_is_read_back_whole() -> None:
    for config in CONFIGS.values():
        packed = random_pruner(config).packed()
        folded = unpack(packed)
        assert folded.num_iter == config.agg_num_iter
        assert folded.ln == config.enc_ln
        assert len(folded.encode_weights) == len(config.enc_dims)
        assert all(a is b for a, b in zip(folded.pack()[1:], packed[1:], strict=True))


def test_other_lists_are_refused() -> None:
    packed = random_pruner().packed()
    plans = [torch.empty(0, 0, 1, 2), torch.empty(0, 3, 3, 2), torch.empty(0, 3, 1, 0)]
    for wrong in ([], packed[1:], packed[:-1], [packed[1]], *([p, *packed[1:]] for p in plans)):
        with pytest.raises(ValueError, match="weights: expected"):
            unpack(wrong)


@pytest.mark.parametrize("name", ["small", "no norm", "norm after", "three layers"])
def test_every_tensor_of_a_list_has_to_fit(name: str) -> None:
    pruner = random_pruner(CONFIGS[name])
    packed = pruner.packed()
    tokens = random_tokens(2, 9, pruner.config.enc_in_dim)
    slots = pruner.sample_slots(2, 3)
    for place, weight in enumerate(packed):
        spoilt = [weight.double(), weight.unsqueeze(0), weight.to("meta")]
        if place:
            spoilt += [weight[:-1], torch.cat([weight, weight[:1]])]
        for other in spoilt:
            wrong = [*packed[:place], other, *packed[place + 1 :]]
            with pytest.raises((ValueError, TypeError), match=r"^weights(\[\d+\])?: "):
                unpack(wrong)
            with pytest.raises((ValueError, TypeError), match="weights"):
                torch.ops.ocvtp.prune(tokens, tokens, wrong, slots, None, 3)


def test_what_a_list_keeps_is_for_that_list_alone() -> None:
    packed = random_pruner().packed()
    kept = prepare(packed)
    assert unpack(kept) is unpack(kept) and unpack(packed) is not unpack(packed)
    for place in range(1, len(kept)):
        other = [*kept[:place], kept[place].clone(), *kept[place + 1 :]]
        assert kept_with(other) is None and unpack(other) is not unpack(kept)
    assert kept_with(packed) is None and kept_with(kept[:-1]) is None


@pytest.mark.parametrize("view", ["view_as", "detach", "slice"])
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_views_of_a_prepared_list_are_that_list(view: str, mode: Any) -> None:
    with mode():
        weights = prepare(random_pruner().packed())
        views = {
            "view_as": lambda: [weight.view_as(weight) for weight in weights],
            "detach": lambda: [weight.detach() for weight in weights],
            "slice": lambda: [weight[:] for weight in weights],
        }[view]()
        assert kept_with(views) is kept_with(weights) is not None


def test_other_tensors_are_another_list() -> None:
    packed = random_pruner().packed()
    weights, again = prepare(packed), prepare(packed)
    views = [weight.detach() for weight in weights]
    assert kept_with(views) is kept_with(weights) is not kept_with(again) is not None
    # The list that was prepared shares its memory, and is still seen edited.
    assert kept_with([weight.detach() for weight in packed]) is None
    assert kept_with(copy.deepcopy(packed)) is None
    for place in range(1, len(weights)):
        weight = weights[place]
        others = [weight.clone(), weight.double(), weight.to("meta"), weight[:0], weight[:-1]]
        others += [weight.unsqueeze(0), weight.flip(0)]
        if weight.dim() == 2 and weight.shape[0] == weight.shape[1]:
            others.append(weight.T)
        for other in others:
            assert kept_with([*views[:place], other, *views[place + 1 :]]) is None
    assert kept_with([packed[0].detach(), *views[1:]]) is None
    assert kept_with(views[:-1]) is None and kept_with([*views, views[-1]]) is None


def test_a_prepared_list_is_copied_and_saved_as_any_other() -> None:
    pruner = random_pruner()
    weights = prepare(pruner.packed())
    file = io.BytesIO()
    torch.save(weights, file)
    file.seek(0)
    for other in (torch.load(file), copy.deepcopy(weights)):
        assert kept_with(other) is None and kept_with(prepare(other)) is not None
        assert all(map(torch.equal, other, weights)) and other[0].shape == weights[0].shape
        tokens, slots = random_tokens(2, 40, 12), pruner.sample_slots(2, 7)
        ids = torch.ops.ocvtp.prune(tokens, tokens, other, slots, None, 7)[1]
        assert torch.equal(ids, torch.ops.ocvtp.prune(tokens, tokens, weights, slots, None, 7)[1])


def test_tensors_without_memory_are_another_list() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    weights = prepare(random_pruner().packed())
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(weight) for weight in weights]
        assert kept_with(fakes) is None
        assert kept_with([weight.detach() for weight in fakes]) is None

    def wrapped(*inner: Tensor) -> Tensor:
        assert kept_with(inner) is None
        return inner[1] * 2

    torch.func.functionalize(wrapped)(*weights)
    torch.func.vmap(wrapped)(*(torch.stack([weight] * 2) for weight in weights))
    meta = prepare([weight.to("meta") for weight in weights])
    assert kept_with([weight.detach() for weight in meta]) is None


def test_nothing_of_a_dropped_list_is_kept() -> None:
    weights = prepare(random_pruner().packed())
    views = [weight.detach() for weight in weights]
    kept = kept_with(weights)
    assert kept is not None
    told = weakref.ref(kept)
    del kept, weights
    gc.collect()
    assert told() is None and kept_with(views) is None
    address = views[1].data_ptr()
    prepare(random_pruner().packed())
    assert address not in kept_lists._KEPT


def test_of_two_lists_of_the_same_weights_either_may_go() -> None:
    packed = random_pruner().packed()
    for place in (0, 1):
        lists = [prepare(packed), prepare(packed)]
        views = [[weight.detach() for weight in weights] for weights in lists]
        lists[place] = []
        gc.collect()
        assert all(kept_with(view) is kept_with(lists[1 - place]) is not None for view in views)
