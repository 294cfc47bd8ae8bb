"""Freezing: a pruner's weights are folded once, and stay those of its parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ocvtp_kernels.chain_native import prepare
from ocvtp_kernels.config import PrunerConfig
from ocvtp_kernels.fold import fold_modules
from ocvtp_kernels.modules import MLP, SlotAttention, SlotPrior

Self = TypeVar("Self", bound="Freezable")


class Freezable(nn.Module):
    """What an `OCPruner` may be frozen by: `freeze`, `unfreeze`, and what keeps folds up to date.

    A subclass sets the config and the three modules. While frozen, ``_folded`` is what the ops
    take, ``_slots`` the first of the seed's initial slots, if there is a seed, and ``_given`` what
    `packed` gave.
    """

    config: PrunerConfig
    encode_project: MLP
    initializ: SlotPrior
    aggregat: SlotAttention

    def __init__(self) -> None:
        super().__init__()
        self._folded: list[Tensor] | None = None
        self._slots: Tensor | None = None
        self._given: list[Tensor] | None = None

    @property
    def frozen(self) -> bool:
        """Whether `forward` is ``torch.ops.ocvtp.prune`` on folded weights."""
        return self._folded is not None

    def freeze(self: Self) -> Self:
        """Folds the weights once; `forward` is then ``torch.ops.ocvtp.prune``.

        Sets ``eval`` and stops parameter gradients. Moving, casting and ``load_state_dict`` fold
        anew; parameters edited in place after this are not seen until the next `freeze`.
        """
        self.eval().requires_grad_(False)
        self._keep(self._fold())
        return self

    def unfreeze(self: Self) -> Self:
        """Undoes `freeze`: plain PyTorch again, parameters with gradients."""
        self._folded = self._slots = self._given = None
        self.requires_grad_(True)
        return self

    def packed(self) -> list[Tensor]:
        """The folded weights that ``torch.ops.ocvtp.prune`` takes, in the parameters' dtype.

        Folded in float64 (see `ocvtp_kernels.fold`) now, from the present parameters; a frozen
        pruner's are those of `freeze`, in the same tensors each time. They are the caller's: edits
        change no pruner. `ocvtp_kernels.prepare` makes the list as fast as the pruner's own.
        """
        if self._folded is None:
            return self._fold()
        if self._given is None:
            self._given = [weight.clone() for weight in self._folded]
        return list(self._given)

    @torch.no_grad()
    def _fold(self) -> list[Tensor]:
        dtype = self.initializ.mean.dtype
        folded = fold_modules(self.encode_project, self.aggregat)
        dense = torch.contiguous_format
        return [tensor.to(dtype, copy=True, memory_format=dense) for tensor in folded.pack()]

    @torch.no_grad()
    def _keep(self, weights: list[Tensor]) -> None:
        """Makes these weights, and the present initial slots, the frozen ones."""
        if self.initializ.noise_seed is not None:
            count = max(self.config.init_num, self.initializ.BLOCK)
            self._slots = self.initializ(1, count).contiguous()
        self._prepare(weights)

    def _prepare(self, weights: list[Tensor]) -> None:
        slots = self._slots
        first = None if slots is None else slots[:, : self.config.init_num]
        self._folded, self._given = prepare(weights, first), None

    def __getstate__(self) -> dict[str, Any]:
        # What `prepare` adds stays in this process; `__setstate__` makes it anew.
        folded = self._folded and [weight.clone() for weight in self._folded]
        return {**self.__dict__, "_folded": folded, "_given": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if self._folded is not None:
            self._prepare(self._folded)

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """As `torch.nn.Module.load_state_dict`; a frozen pruner folds anew."""
        result = super().load_state_dict(state_dict, strict=strict, assign=assign)
        if assign:
            # The parameters may have changed dtype, or come from the meta device.
            self.initializ.draw()
        if self._folded is not None:
            self.freeze()
        return result

    def _apply(self: Self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        if self._folded is not None:
            self._keep(self._fold())
        return self
