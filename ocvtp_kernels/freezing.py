"""Freezing: a pruner's weights are folded once, and stay those of its parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ocvtp_kernels.fold import fold_modules
from ocvtp_kernels.modules import MLP, SlotAttention, SlotPrior

Self = TypeVar("Self", bound="Freezable")


class Freezable(nn.Module):
    """What an `OCPruner` may be frozen by: `freeze`, `unfreeze`, and what keeps folds up to date.

    A subclass sets the three modules; ``_folded`` is None unless frozen.
    """

    encode_project: MLP
    initializ: SlotPrior
    aggregat: SlotAttention

    def __init__(self) -> None:
        super().__init__()
        self._folded: list[Tensor] | None = None

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
        self._folded = self._fold()
        return self

    def unfreeze(self: Self) -> Self:
        """Undoes `freeze`: plain PyTorch again, parameters with gradients."""
        self._folded = None
        self.requires_grad_(True)
        return self

    def packed(self) -> list[Tensor]:
        """The folded weights that ``torch.ops.ocvtp.prune`` takes, in the parameters' dtype.

        A frozen pruner's own; otherwise folded, in float64, from the present parameters (see
        `ocvtp_kernels.fold`).
        """
        return self._fold() if self._folded is None else list(self._folded)

    @torch.no_grad()
    def _fold(self) -> list[Tensor]:
        dtype = self.initializ.mean.dtype
        folded = fold_modules(self.encode_project, self.aggregat)
        return [tensor.to(dtype).contiguous() for tensor in folded.pack()]

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
            self._folded = self._fold()
        return self
