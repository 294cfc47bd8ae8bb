"""Freezing: a pruner's weights are folded once, and follow its parameters."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import wraps
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from ocvtp_kernels.dtypes import autocast_off
from ocvtp_kernels.ops.prune.native.pipeline import prepare
from ocvtp_kernels.pruner.config import PrunerConfig
from ocvtp_kernels.pruner.fold import Unfolded
from ocvtp_kernels.pruner.last_fold import LastFold, comparable
from ocvtp_kernels.pruner.layers import copied, whole
from ocvtp_kernels.pruner.modules import MLP, SlotAttention, SlotPrior
from ocvtp_kernels.pruner.seeded import BLOCK

Self = TypeVar("Self", bound="Freezable")
Method = TypeVar("Method", bound=Callable[..., Any])


def without_modes(method: Method) -> Method:
    """A method that runs outside inference mode, without gradients and without autocast."""

    @wraps(method)
    def run(self: Freezable, *args: Any) -> Any:
        # Some of the layers' copies are called on the CPU.
        devices = {self.initializ.mean.device, torch.device("cpu")}
        with torch.inference_mode(False), torch.no_grad(), ExitStack() as stack:
            for device in devices:
                stack.enter_context(autocast_off(device))
            return method(self, *args)

    return cast(Method, run)


class Freezable(nn.Module):
    """The part of an `OCPruner` that freezes it and keeps the folded weights up to date.

    A subclass sets the config and the three modules. While frozen, ``_folded`` is what the ops
    take, ``_slots`` the first of the seed's initial slots, if there is a seed, ``_prior`` the mean
    and the deviation of all, and ``_given`` what `packed` returned. Tensors stored here are made
    outside inference mode, so that all modes may use them.
    """

    config: PrunerConfig
    encode_project: MLP
    initializ: SlotPrior
    aggregat: SlotAttention

    def __init__(self) -> None:
        super().__init__()
        self._folded: list[Tensor] | None = None
        self._slots: Tensor | None = None
        self._prior: tuple[Tensor, Tensor] | None = None
        self._given: list[Tensor] | None = None
        self._last: LastFold | None = None
        self._changes = 0
        # A hook, as load_state_dict of a module around this one calls no method of it.
        self.register_load_state_dict_post_hook(_follow_loaded)

    @property
    def changes(self) -> int:
        """How often it was frozen, unfrozen, moved, cast or loaded."""
        return self._changes

    @property
    def frozen(self) -> bool:
        """Whether `forward` is ``torch.ops.ocvtp.prune`` on folded weights."""
        return self._folded is not None

    def freeze(self: Self) -> Self:
        """Folds the weights once; `forward` is then ``torch.ops.ocvtp.prune``.

        Sets ``eval`` and stops parameter gradients. Moving, casting and ``load_state_dict``, also
        those of a module around it, fold again; parameters edited in place, layers replaced and
        adapters changed take effect at the next `freeze` only.

        Raises:
            ValueError: a layer computes otherwise than weights do, such as one that quantizes its
                input; the message names it.
        """
        self._keep()
        return self.eval().requires_grad_(False)

    def unfreeze(self: Self) -> Self:
        """Undoes `freeze`: plain PyTorch again, parameters with gradients."""
        self._folded = self._slots = self._prior = self._given = None
        self._changes += 1
        self.requires_grad_(True)
        return self

    @torch.inference_mode(False)
    def frozen_copy(self: Self) -> Self:
        """A frozen copy; this pruner stays unchanged. Both share the hooks on this pruner."""
        hooks = {id(value): value for name, value in vars(self).items() if "_hooks" in name}
        twin: Self = copied(self, hooks)
        return twin.freeze()

    @without_modes
    def packed(self) -> list[Tensor]:
        """The folded weights that ``torch.ops.ocvtp.prune`` takes, in the parameters' dtype.

        Folded in float64 (see `ocvtp_kernels.pruner.fold`) from the present parameters; a frozen
        pruner's are those of `freeze`, in the same tensors each time. Edits of them change no
        pruner. With `ocvtp_kernels.prepare` the list runs as fast as the pruner itself.

        A place mean is not among them: the ops take reference tokens less ``place_mean``.

        On the CPU the latest folded weights are cached with a copy of the parameters, and returned
        again, in the same tensors, while these and the parameters are unchanged.
        """
        if self._folded is not None:
            if self._given is None:
                self._given = [weight.clone() for weight in self._folded]
            return list(self._given)
        present = self._unfolded()
        if not comparable(present.tensors):
            return self._fold(present)
        last = self._last
        if last is None or not last.is_of(present):
            last = LastFold.of(present, self._fold)
        self._last = last.restored()
        return list(self._last.given)

    def _in_use(self) -> Tensor:
        """A tensor of the dtype and on the device of the weights that `forward` computes with."""
        mean = self.initializ.mean
        if self._folded is None:
            return mean
        if self._folded[1].device != mean.device and not mean.is_meta:
            # Made on the meta device: what loads it there puts parameters in place, without a call.
            self._keep()
        return self._folded[1]

    def _unfolded(self) -> Unfolded:
        return Unfolded.of(self.config, self.encode_project, self.aggregat, self.initializ.mean)

    def _fold(self, present: Unfolded) -> list[Tensor]:
        dtype = self.initializ.mean.dtype
        dense = torch.contiguous_format
        folded = present.fold().pack()
        return [tensor.to(dtype, copy=True, memory_format=dense) for tensor in folded]

    @without_modes
    def _keep(self) -> None:
        """Freezes the present weights and initial slots."""
        weights = self._fold(self._unfolded())
        self._last = None
        self._changes += 1
        prior = self.initializ
        self._prior = (whole(prior.mean).clone(), whole(prior.logstd).clone())
        if prior.noise_seed is not None:
            count = max(self.config.init_num, BLOCK)
            self._slots = prior(1, count, self._prior).contiguous()
        self._prepare(weights)

    def _prepare(self, weights: list[Tensor]) -> None:
        slots = self._slots
        first = None if slots is None else slots[:, : self.config.init_num]
        self._folded, self._given = prepare(weights, first), None

    def __getstate__(self) -> dict[str, Any]:
        # What `prepare` adds is of this process; `__setstate__` makes it again.
        folded = self._folded and [weight.clone() for weight in self._folded]
        state: dict[str, Any] = super().__getstate__()
        return {**state, "_folded": folded, "_given": None, "_last": None}

    @torch.inference_mode(False)
    @torch.no_grad()
    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if self._folded is not None:
            self._slots = None if self._slots is None else self._slots.clone()
            self._prepare([weight.clone() for weight in self._folded])

    @torch.inference_mode(False)
    def _apply(self: Self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        self._last = None
        self._changes += 1
        if self._folded is not None:
            self._keep()
        return self


def _follow_loaded(pruner: Freezable, incompatible_keys: object) -> None:
    """After loading: a frozen pruner folds again."""
    pruner._changes += 1
    if pruner.frozen:
        pruner.freeze()
