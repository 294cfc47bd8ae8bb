"""The weights folded last, for as long as what they were made of is as it was.

All is compared by value, since an edit need leave no trace, and as bytes, which is quickest.
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
        """Those of a tensor on the CPU."""
        return cls(tensor.shape, tensor.dtype, bytearray(_bytes(tensor)))

    def fits(self, tensor: Tensor) -> bool:
        """Whether the tensor has these very bytes."""
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
    """Folded weights, and what they were made of."""

    rules: tuple[Any, ...]
    parameters: list[Copy]
    weights: list[Copy]
    given: list[Tensor]  # the weights in the caller's memory

    @classmethod
    def of(cls, unfolded: Unfolded, fold: Callable[[Unfolded], list[Tensor]]) -> LastFold:
        """Folds these, by ``fold``."""
        weights = fold(unfolded)
        return cls(unfolded.rules, _copied(unfolded.tensors), _copied(weights), weights)

    def is_of(self, present: Unfolded) -> bool:
        """Whether the same would be made of these."""
        return self.rules == present.rules and _all_fit(self.parameters, present.tensors)

    def restored(self) -> LastFold:
        """The same, given in other tensors if the caller has changed those given before."""
        changed = any(weight.requires_grad for weight in self.given)
        if not changed and _all_fit(self.weights, self.given):
            return self
        return self._replace(given=[weight.tensor() for weight in self.weights])


def comparable(tensors: list[Tensor]) -> bool:
    """Whether tensors can be compared at once, and what is made of them may be kept."""
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack():
        return False
    if torch._C._are_functorch_transforms_active():
        return False
    # On another device that would wait for it, and folding is quick there.
    return all(type(tensor) in PLAIN and tensor.device.type == "cpu" for tensor in tensors)


def _copied(tensors: list[Tensor]) -> list[Copy]:
    return [Copy.of(tensor) for tensor in tensors]


def _all_fit(copies: list[Copy], tensors: list[Tensor]) -> bool:
    return len(copies) == len(tensors) and all(map(Copy.fits, copies, tensors))


def _bytes(tensor: Tensor) -> Any:
    return tensor.detach().contiguous().view(-1).view(torch.uint8).numpy()
