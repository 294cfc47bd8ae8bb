"""What one call watches or changes in shared modules; calls in other threads do not see it.

A module keeps a hook or a forward of ours until `remove_intercepts`. What a call wants of it lies
in a context variable, so that nothing of a call is on the module itself.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

from torch import Tensor, nn

Watch = Callable[[Any], Any]  # takes a module's output; returns another one, or None: the same
Forward = Callable[..., Any]  # takes the module's forward as it was, and its arguments


class Intercepts:
    """What one call wants of modules: to see outputs, or to run another forward."""

    def __init__(self) -> None:
        self.watches: dict[nn.Module, list[Watch]] = {}
        self.forwards: dict[nn.Module, Forward] = {}

    def watch(self, module: nn.Module, function: Watch) -> None:
        """Calls ``function`` with the module's output, behind all hooks of others.

        What it returns, unless None, is the output from then on.
        """
        _install_hook(module)
        self.watches.setdefault(module, []).append(function)

    def replace(self, module: nn.Module, forward: Forward) -> None:
        """Runs ``forward`` in place of the module's own."""
        _install_forward(module)
        self.forwards[module] = forward

    @contextmanager
    def active(self) -> Iterator[None]:
        """Within the block, in this thread and task alone."""
        token = _CURRENT.set(self)
        try:
            yield
        finally:
            _CURRENT.reset(token)


def watch_layer(intercepts: Intercepts, layer: nn.Module) -> Callable[[], Tensor]:
    """Watches a layer of hidden states; returns what gives its first output of the call."""
    outputs: list[Any] = []
    intercepts.watch(layer, outputs.append)

    def read() -> Tensor:
        states = outputs[0]
        hidden: Tensor = states[0] if isinstance(states, tuple) else states
        return hidden.detach()

    return read


_NOTHING = Intercepts()
_CURRENT: ContextVar[Intercepts] = ContextVar("ocvtp_intercepts", default=_NOTHING)
_LOCK = threading.Lock()


class _Hook:
    """A forward hook that hands the output to the current call."""

    def __call__(self, module: nn.Module, _args: Any, output: Any) -> Any:
        for function in _CURRENT.get().watches.get(module, ()):
            # A selector that runs the same encoder must not be watched.
            with _NOTHING.active():
                changed = function(output)
            output = output if changed is None else changed
        return output


class _Forward:
    """In place of a module's forward, which runs unless the current call wants another."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.own = {name: value for name, value in vars(module).items() if name == "forward"}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        original = self.own.get("forward") or partial(type(self.module).forward, self.module)
        forward = _CURRENT.get().forwards.get(self.module)
        if forward is None:
            return original(*args, **kwargs)
        with _NOTHING.active():
            return forward(original, *args, **kwargs)


def is_changed(module: nn.Module, hooks: bool = True) -> bool:
    """Whether others had a hand in what a module of transformers does, so that it has to run.

    By a forward set on it, as offloading does, by another class, or by hooks.

    Args:
        module: the module.
        hooks: whether hooks count; they need not where the module is called anyway.
    """
    forward = vars(module).get("forward")
    is_own = bool(forward.own) if isinstance(forward, _Forward) else forward is not None
    if is_own or not type(module).__module__.startswith("transformers."):
        return True
    given = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    # Those of transformers record outputs.
    return hooks and any(not _module_of(hook).startswith("transformers.") for hook in given)


def _module_of(function: Any) -> str:
    return getattr(function, "__module__", None) or ""


def remove_intercepts(root: nn.Module) -> None:
    """Takes every hook and forward of ours off the modules within ``root``."""
    with _LOCK:
        for module in root.modules():
            key = _find_hook(module)
            if key is not None:
                del module._forward_hooks[key]
            forward = vars(module).get("forward")
            if isinstance(forward, _Forward):
                del vars(module)["forward"]
                vars(module).update(forward.own)


def _install_hook(module: nn.Module) -> None:
    """Makes the last hook of a module ours."""
    with _LOCK:
        hooks: Any = module._forward_hooks
        if isinstance(next(reversed(hooks.values()), None), _Hook):
            return
        ours = _find_hook(module)
        if ours is None:
            module.register_forward_hook(_Hook())
        else:
            hooks.move_to_end(ours)


def _find_hook(module: nn.Module) -> int | None:
    hooks = module._forward_hooks.items()
    return next((key for key, hook in hooks if isinstance(hook, _Hook)), None)


def _install_forward(module: nn.Module) -> None:
    with _LOCK:
        forward = vars(module).get("forward")
        # Wrappers of others, as those of offloading, name what they wrap.
        if not isinstance(forward, _Forward | type(None)):
            forward = getattr(forward, "__wrapped__", None)
        if not isinstance(forward, _Forward):
            vars(module)["forward"] = _Forward(module)
