"""A cache of the latest folded weights, valid while the parameters are unchanged.

Tensors are compared by value, as an edit in place need not change the version; as bytes, which is
fastest.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ocvtp_kernels.ops.prune.weights import PLAIN
from ocvtp_kernels.pruner.fold import Unfolded


class Copy(NamedTuple):
    """The bytes of a tensor."""

    shape: torch.Size
    dtype: torch.dtype
    data: bytearray

    @classmethod
    def of(cls, tensor: Tensor) -> Copy:
        """Copies a tensor on the CPU."""
        return cls(tensor.shape, tensor.dtype, bytearray(_bytes(tensor)))

    def fits(self, tensor: Tensor) -> bool:
        """Whether the tensor has the same bytes."""
        if tensor.shape != self.shape or tensor.dtype != self.dtype or tensor.device.type != "cpu":
            return False
        return bool(self.data == _bytes(tensor))

    def tensor(self) -> Tensor:
        """A tensor of these bytes, in memory of its own."""
        new = torch.empty(self.shape, dtype=self.dtype, device="cpu")
        if self.data:
            new.copy_(torch.frombuffer(self.data, dtype=self.dtype).view(self.shape))
        return new


class LastFold(NamedTuple):
    """Folded weights, and copies of what they were made of."""

    rules: tuple[Any, ...]
    parameters: list[Copy]
    weights: list[Copy]
    given: list[Tensor]  # the weights as the caller has them

    @classmethod
    def of(cls, unfolded: Unfolded, fold: Callable[[Unfolded], list[Tensor]]) -> LastFold:
        """Folds with ``fold``."""
        weights = fold(unfolded)
        return cls(unfolded.rules, _copied(unfolded.tensors), _copied(weights), weights)

    def is_of(self, present: Unfolded) -> bool:
        """Whether these would fold to the same weights."""
        return self.rules == present.rules and _all_fit(self.parameters, present.tensors)

    def restored(self) -> LastFold:
        """The same, in new tensors if the caller has changed those it has."""
        changed = any(weight.requires_grad for weight in self.given)
        if not changed and _all_fit(self.weights, self.given):
            return self
        return self._replace(given=[weight.tensor() for weight in self.weights])


def comparable(tensors: list[Tensor]) -> bool:
    """Whether tensors can be compared without a wait, and results of them cached."""
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack():
        return False
    if torch._C._are_functorch_transforms_active():
        return False
    # On another device comparing would wait for it, and folding is fast there.
    return all(type(tensor) in PLAIN and tensor.device.type == "cpu" for tensor in tensors)


def _copied(tensors: list[Tensor]) -> list[Copy]:
    return [Copy.of(tensor) for tensor in tensors]


def _all_fit(copies: list[Copy], tensors: list[Tensor]) -> bool:
    return len(copies) == len(tensors) and all(map(Copy.fits, copies, tensors))


def _bytes(tensor: Tensor) -> Any:
    return tensor.detach().contiguous().view(-1).view(torch.uint8).numpy()
