"""What a pruner folds, when it folds again, and that its tensors work in every mode."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from ocvtp_kernels import OCPruner
from ocvtp_kernels.ops.prune.reference import attention_logits
from ocvtp_kernels.pruner import seeded
from tests.cases import random_pruner, random_tokens, small_config

TOKENS = random_tokens(2, 40, 12)
BUDGET = 7
MODES: dict[str, Callable[[], Any]] = {
    "grad": contextlib.nullcontext,
    "no grad": torch.no_grad,
    "inference": torch.inference_mode,
}
IN = pytest.mark.parametrize("inside", MODES)
OUT = pytest.mark.parametrize("outside", MODES)


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(map(torch.equal, one, other))


def is_the_same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(a is b for a, b in zip(one, other, strict=True))


def loaded(pruner: OCPruner) -> OCPruner:
    pruner.freeze().load_state_dict(random_pruner(seed=1).state_dict())
    return pruner


CHANGES: dict[str, Callable[[OCPruner], OCPruner]] = {
    "frozen": lambda pruner: pruner.freeze(),
    "loaded": loaded,
    "cast": lambda pruner: pruner.freeze().half().float(),
    "copied": lambda pruner: copy.deepcopy(pruner.freeze()),
}


@IN
@OUT
@pytest.mark.parametrize("change", CHANGES)
def test_what_a_mode_froze_serves_every_other(inside: str, outside: str, change: str) -> None:
    pruner = random_pruner()
    with MODES[inside]():
        pruner = CHANGES[change](pruner)
        given = pruner.packed()
    assert pruner._folded is not None and pruner._slots is not None
    assert not any(weight.is_inference() for weight in (*pruner._folded, *given, pruner._slots))
    expected = copy.deepcopy(pruner).freeze()(TOKENS, TOKENS, BUDGET)
    with MODES[outside]():
        final = TOKENS.clone().requires_grad_(outside == "grad")
        out = pruner(TOKENS, final, BUDGET)
        assert torch.equal(out.ids, expected.ids)
        if outside == "grad":
            out.tokens.sum().backward()
            tokens = TOKENS.clone().requires_grad_()
            slots = pruner.sample_slots(2, BUDGET)
            attention_logits(tokens, given, slots).square().sum().backward()
            assert tokens.grad is not None and tokens.grad.abs().sum() > 0


@IN
def test_noise_drawn_in_any_mode_can_be_trained_on(inside: str) -> None:
    pruner = random_pruner().train()
    with MODES[inside]():
        pruner.sample_slots(1, 1030)
        pruner.float()
        pruner.double().float()
    trained = pruner.initializ
    slots = trained.mean.detach().clone().requires_grad_()
    logstd = trained.logstd.detach().clone().requires_grad_()
    for count in (3, 1030):
        trained(2, count, (slots, logstd)).sum().backward()
    assert logstd.grad is not None


def test_packed_gives_the_same_tensors_while_nothing_changed() -> None:
    pruner = random_pruner()
    first = pruner.packed()
    expected = [weight.clone() for weight in first]
    assert is_the_same(pruner.packed(), first)
    pruner.train().requires_grad_(False)
    with torch.inference_mode():
        assert is_the_same(pruner.packed(), first)
    assert same(first, expected)


def test_packed_sees_every_edit_of_every_parameter() -> None:
    pruner = random_pruner()
    for name, parameter in pruner.named_parameters():
        if name.startswith("initializ"):
            continue
        pruner.packed()
        # Neither raises the version.
        parameter.data[..., -1] += 0.5
        assert same(pruner.packed(), copy.deepcopy(pruner).freeze().packed()), name
        pruner.packed()
        parameter.detach().numpy()[..., 0] -= 0.25
        assert same(pruner.packed(), copy.deepcopy(pruner).freeze().packed()), name
    pruner.aggregat.num_iter += 1
    assert pruner.packed()[0].shape[1] == pruner.aggregat.num_iter
    pruner.aggregat.num_iter -= 1
    pruner.load_state_dict(random_pruner(seed=4).state_dict())
    assert same(pruner.packed(), random_pruner(seed=4).packed())
    assert pruner.double().packed()[1].dtype == torch.float64
    assert all(weight.is_meta for weight in pruner.to("meta").packed())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_edits_of_what_packed_gave_reach_no_later_list(dtype: torch.dtype) -> None:
    pruner = random_pruner(dtype=dtype)
    expected = [weight.clone() for weight in pruner.packed()]
    for index in range(1, len(expected)):
        given = pruner.packed()
        given[index].data.mul_(-1)
        edited = given[index].clone()
        assert same(pruner.packed(), expected)
        assert torch.equal(given[index], edited)
    pruner.packed()[1].requires_grad_()
    assert not any(weight.requires_grad for weight in pruner.packed())
    pruner.packed()[1].data = torch.zeros(1)
    assert same(pruner.packed(), expected)


def test_nan_parameters_are_as_they_were() -> None:
    pruner = random_pruner()
    with torch.no_grad():
        pruner.aggregat.proj_k.weight[0] = torch.nan
    assert is_the_same(pruner.packed(), pruner.packed())


def test_a_copy_and_a_pickle_hold_no_fold() -> None:
    pruner = random_pruner()
    pruner.packed()
    assert pruner.__getstate__()["_last"] is None
    twin = copy.deepcopy(pruner)
    assert same(twin.packed(), pruner.packed())
    assert not any(a is b for a, b in zip(twin.packed(), pruner.packed(), strict=True))


def test_a_transposed_or_a_shifted_parameter_is_folded_as_its_copy() -> None:
    pruner, plain = random_pruner(), random_pruner()
    for name, parameter in pruner.named_parameters():
        other = torch.empty(parameter.numel() + 1)[1:].view(parameter.shape)
        if parameter.dim() == 2:
            other = torch.empty(parameter.shape[::-1]).T
        parameter.data = other.copy_(parameter.data)
        assert torch.equal(parameter, plain.get_parameter(name))
    assert same(pruner.packed(), plain.packed()) and is_the_same(pruner.packed(), pruner.packed())


@pytest.mark.parametrize("noise_seed", [0, None])
def test_slots_of_a_frozen_pruner_are_those_of_freezing(noise_seed: int | None) -> None:
    pruner = OCPruner(small_config(), noise_seed=noise_seed).freeze()
    assert pruner._slots is None or torch.equal(pruner.sample_slots(1, 5), pruner._slots[:, :5])
    state = copy.deepcopy(pruner)
    for parameter in (pruner.initializ.mean, pruner.initializ.logstd):
        parameter.data.add_(1.5)
    for count in (3, 1024, 1030):
        torch.manual_seed(0)
        now = pruner._initial_slots(TOKENS, None, count, 1)
        torch.manual_seed(0)
        assert torch.equal(now, state._initial_slots(TOKENS, None, count, 1))
        torch.manual_seed(0)
        assert torch.equal(now, pruner.sample_slots(2, count))
    assert not torch.equal(pruner.freeze().sample_slots(1, 1030), state.sample_slots(1, 1030))


SLOW = pytest.mark.slow


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("frozen", [pytest.param(False, marks=SLOW), True], ids=["plain", "frozen"])
def test_more_slots_than_a_block_compile_to_one_graph(frozen: bool, dynamic: bool) -> None:
    pruner = random_pruner(small_config(agg_num_iter=1)).requires_grad_(False)
    pruner = pruner.freeze() if frozen else pruner
    eager = copy.deepcopy(pruner)
    tokens = random_tokens(1, 60, 12)
    torch._dynamo.reset()
    compiled = torch.compile(pruner, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for count in (1030, 2050, 1030):
        got = compiled(tokens, tokens, 9, num_slots=count)
        assert torch.equal(got.ids, eager(tokens, tokens, 9, num_slots=count).ids)
    assert torch.equal(pruner.sample_slots(1, 2050)[:, :1024], eager.sample_slots(1, 1024))


def test_many_slots_are_drawn_once_and_shared_with_nobody() -> None:
    pruner = random_pruner()
    slots = pruner.sample_slots(1, 1030)
    seeded.noise(pruner.initializ.mean, 0, 1030 * 10).zero_()
    with mock.patch.object(seeded, "draw", side_effect=AssertionError):
        assert torch.equal(pruner.sample_slots(1, 1027), slots[:, :1027])


@pytest.mark.parametrize("draw", [seeded.noise, seeded.rank])
@pytest.mark.parametrize("captured", [False, True])
def test_what_a_captured_graph_reads_is_kept(draw: Callable[..., Tensor], captured: bool) -> None:
    kept: dict[int, Tensor] = {}
    with (
        mock.patch.object(seeded, "_is_captured", return_value=captured),
        mock.patch.object(seeded, "_CAPTURED", kept),
    ):
        drawn = draw(torch.empty(1, 8), 77, 24)
        assert torch.equal(draw(torch.empty(1, 8), 77, 24), drawn)
    assert len(kept) == captured
    assert all(torch.equal(one.flatten()[:24], drawn) for one in kept.values())


def test_random_padding_of_many_tokens_compiles_too() -> None:
    pruner = random_pruner(small_config(init_dim=2, agg_embed_dim=2, enc_dims=(20, 2))).freeze()
    tokens = random_tokens(1, 2060, 12)
    slots = random_tokens(1, 1, 2).expand(-1, 5, -1)
    torch._dynamo.reset()
    compiled = torch.compile(pruner, fullgraph=True, backend="aot_eager")
    given = (tokens, tokens, 5, None, slots)
    assert torch.equal(compiled(*given, padding="random").ids, pruner(*given, padding="random").ids)
