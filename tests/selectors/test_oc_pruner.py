"""A pruner that is not frozen runs as a frozen copy, and stays unchanged."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ocvtp_kernels import OCPruner
from ocvtp_kernels.pruner.pruner import Picks, Pruned
from ocvtp_kernels.selectors.interface import SelectorInputs, start_selector
from ocvtp_kernels.selectors.oc_pruner import PrunerSelector
from tests.cases import random_pruner, random_tokens, small_config

TOKENS = random_tokens(2, 40, 12)
BUDGET = 7


def ids(selector: PrunerSelector, tokens: Tensor = TOKENS) -> Tensor:
    return selector(SelectorInputs(tokens, tokens), BUDGET).ids


def ids_of(pruner: OCPruner) -> Tensor:
    tokens = TOKENS.to(pruner.initializ.mean.dtype)
    return copy.deepcopy(pruner).freeze()(tokens, tokens, BUDGET).ids


def runs_frozen(selector: PrunerSelector) -> bool:
    """Whether it runs the ops on folded weights, at once and in two halves."""
    called: list[str] = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            called.append(str(func))
            return func(*args, **(kwargs or {}))

    with torch.no_grad(), Watch():
        ids(selector)
        start_selector(selector, TOKENS, BUDGET)
    return "ocvtp.prune.default" in called and "ocvtp.prune_picks.default" in called


@pytest.mark.parametrize("training", [False, True])
def test_a_pruner_that_is_not_frozen_runs_as_a_frozen_copy(training: bool) -> None:
    pruner = random_pruner(small_config(agg_dropout=0.5, enc_dropout=0.5)).train(training)
    parameters = list(pruner.parameters())
    with torch.inference_mode(training):
        selector = PrunerSelector(pruner)
    assert runs_frozen(selector) and not pruner.frozen
    assert torch.equal(ids(selector), ids_of(pruner))
    assert all(a is b for a, b in zip(parameters, pruner.parameters(), strict=True))
    assert all(p.requires_grad and not p.is_inference() for p in parameters)
    assert all(part.training == training for part in pruner.modules())
    pruner.attend(TOKENS)[0].square().sum().backward()
    assert parameters[0].grad is not None
    frozen = random_pruner().freeze()
    assert PrunerSelector(frozen)._active_pruner() is frozen


def test_the_copy_follows_as_a_frozen_pruner_does() -> None:
    pruner = random_pruner()
    selector = PrunerSelector(pruner)
    before = ids(selector)
    with torch.no_grad():
        for parameter in pruner.parameters():
            parameter.mul_(-1)
    assert torch.equal(ids(selector), before)
    assert not torch.equal(ids(PrunerSelector(pruner)), before)
    pruner.load_state_dict(random_pruner(seed=1).state_dict())
    assert torch.equal(ids(selector), ids_of(pruner)) and runs_frozen(selector)
    pruner.double()
    assert torch.equal(ids(selector, TOKENS.double()), ids_of(pruner)) and runs_frozen(selector)
    assert selector._active_pruner().initializ.mean.dtype == torch.float64
    pruner.float().freeze()
    assert selector._active_pruner() is pruner
    pruner.unfreeze()
    assert runs_frozen(selector) and not pruner.frozen
    with torch.device("meta"):
        pruner = OCPruner(small_config())
    selector = PrunerSelector(pruner)
    pruner.load_state_dict(random_pruner().state_dict(), assign=True)
    assert torch.equal(ids(selector), ids_of(pruner))


@pytest.mark.parametrize("how", ["copied", "pickled"])
def test_a_selector_is_copied_with_its_pruner(how: str) -> None:
    selector = PrunerSelector(random_pruner())
    way = copy.deepcopy if how == "copied" else lambda value: pickle.loads(pickle.dumps(value))
    twin = way(selector)
    assert torch.equal(ids(twin), ids(selector)) and runs_frozen(twin)
    assert twin.pruner is not selector.pruner
    frozen = way(PrunerSelector(random_pruner().freeze()))
    assert frozen._active_pruner() is frozen.pruner


def test_hooks_on_the_pruner_are_on_its_copy() -> None:
    pruner, calls = random_pruner(), []
    first = pruner.register_forward_hook(lambda module, given, out: calls.append("first"))
    selector = PrunerSelector(pruner)
    pruner.register_forward_pre_hook(lambda module, given: calls.append("later"))
    ids(selector)
    assert calls == ["later", "first"] and runs_frozen(selector)
    first.remove()
    calls.clear()
    ids(selector)
    assert calls == ["later"]


class Refusing(OCPruner):
    def forward(self, *args: Any, **kwargs: Any) -> Pruned:
        raise AssertionError("called")

    def pick(self, *args: Any, **kwargs: Any) -> Picks:
        raise AssertionError("called")


class Doubled(nn.Linear):
    pass


def with_a_hook() -> OCPruner:
    pruner = random_pruner()
    pruner.aggregat.register_forward_hook(lambda module, given, out: None)
    return pruner


def with_another_linear() -> OCPruner:
    pruner = random_pruner()
    pruner.aggregat.proj_k = Doubled(10, 10, bias=False)
    return pruner


def with_a_forward_of_its_own() -> OCPruner:
    pruner = random_pruner()
    pruner.forward = lambda *args, **kwargs: None  # type: ignore[method-assign]
    return pruner


@pytest.mark.parametrize(
    "make",
    [
        lambda: Refusing(small_config()),
        with_a_hook,
        with_another_linear,
        with_a_forward_of_its_own,
    ],
)
def test_a_pruner_that_is_no_ordinary_one_runs_itself(make: Any) -> None:
    pruner = make()
    assert PrunerSelector(pruner)._active_pruner() is pruner
