"""What a call watches or changes in shared modules, and that other calls do not see it."""

from __future__ import annotations

import copy
import functools
import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ocvtp_kernels.vlm.intercept import Intercepts, is_changed, remove_intercepts
from tests.vlm.models import SIDE, make_tower

ONE = torch.ones(1)


class Add(nn.Module):
    def forward(self, number: Tensor, *, more: int = 1) -> Tensor:
        return number + more


def double(original: Callable[..., Tensor], number: Tensor, **kwargs: Any) -> Tensor:
    return 2 * original(number, **kwargs)


@pytest.fixture
def module() -> nn.Module:
    return Add()


def test_only_within_the_block_another_forward_runs(module: nn.Module) -> None:
    intercepts = Intercepts()
    intercepts.replace(module, double)
    assert module(ONE) == 2
    with intercepts.active():
        assert module(ONE) == 4 and module(ONE, more=2) == 6
    assert module(ONE) == 2


def test_a_watch_sees_the_output_behind_the_hooks_of_others(module: nn.Module) -> None:
    seen: list[Tensor] = []
    intercepts = Intercepts()
    intercepts.watch(module, seen.append)
    # Set later, and so behind ours until the next call asks again.
    hook = module.register_forward_hook(lambda _part, _args, output: output * 10)
    intercepts = Intercepts()
    intercepts.watch(module, seen.append)
    with intercepts.active():
        assert module(ONE) == 20
    assert seen == [20]
    hook.remove()
    assert module(ONE) == 2 and seen == [20]


def test_what_a_watch_returns_is_the_output(module: nn.Module) -> None:
    intercepts = Intercepts()
    intercepts.watch(module, lambda output: output + 0.5)
    intercepts.watch(module, lambda output: None)
    with intercepts.active():
        assert module(ONE) == 2.5
    assert module(ONE) == 2


def test_inside_a_watch_or_a_forward_nothing_is_intercepted(module: nn.Module) -> None:
    seen: list[Tensor] = []

    def nested(original: Callable[..., Tensor], number: Tensor) -> Tensor:
        return original(number) + module(number)

    intercepts = Intercepts()
    intercepts.replace(module, nested)
    intercepts.watch(module, lambda output: seen.append(module(output)))
    with intercepts.active():
        assert module(ONE) == 4
    assert seen == [5]


def test_an_error_ends_the_block(module: nn.Module) -> None:
    intercepts = Intercepts()
    intercepts.replace(module, double)
    with pytest.raises(TypeError), intercepts.active():
        module(ONE, less=1)
    assert module(ONE) == 2


def test_calls_in_each_other_have_their_own(module: nn.Module) -> None:
    outer, inner = Intercepts(), Intercepts()
    outer.replace(module, double)
    inner.replace(module, lambda original, number: -original(number))
    with outer.active():
        with inner.active():
            assert module(ONE) == -2
        assert module(ONE) == 4


def test_other_threads_see_nothing(module: nn.Module) -> None:
    intercepts, found = Intercepts(), []
    intercepts.replace(module, double)
    with intercepts.active():
        thread = threading.Thread(target=lambda: found.append(module(ONE)))
        thread.start()
        thread.join()
    assert found == [2]


def test_removing_leaves_modules_as_they_were(module: nn.Module) -> None:
    before = dict(vars(module))
    for _ in range(2):
        intercepts = Intercepts()
        intercepts.replace(module, double)
        intercepts.watch(module, lambda output: None)
        assert len(module._forward_hooks) == 1
    remove_intercepts(nn.Sequential(module))
    assert vars(module) == before and not module._forward_hooks
    remove_intercepts(module)
    assert module(ONE) == 2


def test_a_forward_of_others_runs_and_stays(module: nn.Module) -> None:
    stock, calls = module.forward, []

    @functools.wraps(stock)
    def counted(*args: Any, **kwargs: Any) -> Tensor:
        calls.append(1)
        result: Tensor = stock(*args, **kwargs)
        return result

    vars(module)["forward"] = counted
    intercepts = Intercepts()
    intercepts.replace(module, double)
    with intercepts.active():
        assert module(ONE) == 4
    remove_intercepts(module)
    assert calls == [1] and vars(module)["forward"] is counted


def test_changes_of_others_are_seen() -> None:
    pytest.importorskip("transformers")
    tower = make_tower()
    layer = tower.encoder.layers[0]
    attention = layer.self_attn
    with torch.no_grad():
        # Transformers sets hooks of its own.
        tower(torch.zeros(1, 3, SIDE, SIDE), output_hidden_states=True, output_attentions=True)
    assert layer._forward_hooks and not is_changed(layer) and not is_changed(attention)
    Intercepts().replace(layer, double)
    assert not is_changed(layer)
    for register in (attention.register_forward_hook, attention.register_forward_pre_hook):
        hook = register(lambda *_args: None)
        assert is_changed(attention) and not is_changed(attention, hooks=False)
        hook.remove()
    vars(attention)["forward"] = attention.forward
    assert is_changed(attention, hooks=False)
    del vars(attention)["forward"]
    attention.__class__ = type("Other", (type(attention),), {})
    assert is_changed(attention, hooks=False)


def test_a_wrapper_set_later_keeps_ours_inside(module: nn.Module) -> None:
    intercepts = Intercepts()
    intercepts.replace(module, double)
    ours = module.forward

    @functools.wraps(ours)
    def wrapper(*args: Any, **kwargs: Any) -> Tensor:
        result: Tensor = ours(*args, **kwargs)
        return result

    vars(module)["forward"] = wrapper
    again = Intercepts()
    again.replace(module, double)
    assert vars(module)["forward"] is wrapper
    with again.active():
        assert module(ONE) == 4
    remove_intercepts(module)
    assert vars(module)["forward"] is wrapper and module(ONE) == 2


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda part: pickle.loads(pickle.dumps(part))])
def test_copies_are_intercepted_alone(module: nn.Module, copied: Callable[..., Any]) -> None:
    first = Intercepts()
    first.replace(module, double)
    first.watch(module, lambda output: None)
    other = copied(module)
    with first.active():
        assert other(ONE) == 2 and module(ONE) == 4
    second = Intercepts()
    second.replace(other, double)
    with second.active():
        assert other(ONE) == 4 and module(ONE) == 2
    remove_intercepts(other)
    assert "forward" not in vars(other) and "forward" in vars(module)
