"""What is made once of a list of folded weights, and how that list is known again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import ref

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ocvtp_kernels.fold import Folded

PLAIN = (Tensor, torch.nn.Parameter)  # no subclass, which may be anything
# Strides of a plan that something hangs on: its views keep them, and lose the attribute.
MARK = (0, 0, 0, 0)


@dataclass(eq=False)
class Kept:
    """What the owner of a list of folded weights, who never edits it, has made of it once."""

    weights: tuple[Tensor, ...]  # the list but for its plan
    folded: Folded
    layers: Any  # of the native kernels; see `ocvtp_kernels.chain_native.prepare`
    device: torch.device  # that they are for
    casts: dict[torch.dtype, list[Tensor]]  # the list in other dtypes, prepared too

    def __reduce__(self) -> tuple[type, tuple[()]]:
        # Copies and files of the list go without, and may hold nothing but what every reader takes.
        return OrderedDict, ()

    def go_with(self, plan: Tensor) -> list[Tensor]:
        """The list that begins with such a plan, of its own, which all this hangs on."""
        with torch.inference_mode(False), torch.no_grad():
            plan = plan.new_empty_strided(plan.shape, MARK)
        plan.kept = self  # type: ignore[attr-defined]
        for address in [address for address, known in list(_KEPT.items()) if not known]:
            _KEPT.pop(address, None)
        known = _KEPT.setdefault(_address(self.weights[0]), [])
        known.append(ref(self, known.remove))
        return [plan, *self.weights]


# By the memory of the first weights; nothing here holds a list.
_KEPT: dict[int, list[ref[Kept]]] = {}


def kept_with(weights: Sequence[Tensor]) -> Kept | None:
    """What was made of this very list: its tensors, or others of the same memory."""
    if not weights:
        return None
    kept: Kept | None = getattr(weights[0], "kept", None)
    if kept:
        return kept if _is_of(kept, weights) else None
    if len(weights) < 2 or weights[0].stride() != MARK:
        return None
    known = [there() for there in tuple(_KEPT.get(_address(weights[1]), ()))]
    return next((kept for kept in known if kept is not None and _is_of(kept, weights)), None)


def _is_of(kept: Kept, weights: Sequence[Tensor]) -> bool:
    if len(kept.weights) + 1 != len(weights) or kept.device != weights[0].device:
        return False
    pairs = list(zip(kept.weights, weights[1:], strict=True))
    return all(a is b for a, b in pairs) or all(a is b or _same_memory(a, b) for a, b in pairs)


def _same_memory(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or one.stride() != other.stride() or one.dtype != other.dtype:
        return False
    return _address(one) == _address(other) != 0


def _address(tensor: Tensor) -> int:
    """Where a tensor is in memory; 0 for what has none, such as a tracer's tensors."""
    try:
        return tensor.data_ptr() if type(tensor) in PLAIN else 0
    except RuntimeError:
        return 0
