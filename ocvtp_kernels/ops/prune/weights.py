"""The list of folded weights that `prune` takes: its format, and what is made of it once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from operator import is_
from typing import Any, NamedTuple
from weakref import ref

import torch
from torch import Tensor

from ocvtp_kernels import checks

ENCODE_NORMS = (None, "pre", "post")  # where the encode MLP has its LayerNorm


class FoldedSlots(NamedTuple):
    """What the iterations read, in packed order."""

    state_weight: Tensor  # [4D, D]    W_hh, then the rows of q', which can be one product
    query_bias: Tensor  # [D]
    constant_weight: Tensor  # [D]     the row of c
    constant_bias: Tensor  # [1]
    gates_weight: Tensor  # [3D, D]    W_ih Wv g
    gates_shift: Tensor  # [3D]       W_ih Wv b, times m / d
    gates_bias: Tensor  # [3D]       b_ih
    hidden_bias: Tensor  # [3D]       b_hh
    ffn_w1: Tensor  # [F, D]     gamma of norm_slots_1 folded in; centred
    ffn_b1: Tensor  # [F]
    ffn_w2: Tensor  # [D, F]
    ffn_b2: Tensor  # [D]

    @property
    def dim(self) -> int:
        """The slot width D."""
        return self.state_weight.shape[1]

    @property
    def hidden_weight(self) -> Tensor:
        """W_hh ``[3D, D]``."""
        return self.state_weight[: 3 * self.dim]

    @property
    def query_weight(self) -> Tensor:
        """The rows of q' ``[D, D]``; centred, and q' too."""
        return self.state_weight[3 * self.dim :]


class Folded(NamedTuple):
    """A pruner's folded weights."""

    num_iter: int
    ln: str | None
    encode_weights: list[Tensor]
    encode_biases: list[Tensor]
    post_norm: tuple[Tensor, Tensor] | None  # gamma, beta [D], when ln is "post"
    slots: FoldedSlots

    def pack(self) -> list[Tensor]:
        """The flat list that ``ocvtp::prune`` takes as ``weights``.

        The plan (iterations, place of the encode LayerNorm, depth of the encode MLP) rides in the
        shape of the first, empty tensor: it moves with the weights and needs no read from a
        device.
        """
        slots = self.slots
        plan = (0, self.num_iter, ENCODE_NORMS.index(self.ln), len(self.encode_weights))
        return [
            slots.state_weight.new_empty(plan),
            *self.encode_weights,
            *self.encode_biases,
            *(self.post_norm or ()),
            *slots,
        ]


def unpack(weights: Sequence[Tensor]) -> Folded:
    """Reads a list made by `Folded.pack`.

    Raises:
        ValueError, TypeError: the list was not made by `Folded.pack`: its length, a tensor's shape,
            dtype or device.
    """
    known = kept_with(weights)
    if known is not None:
        return known.folded
    plan = weights[0].shape if len(weights) else torch.Size()
    whole = len(plan) == 4 and plan[0] == 0 and plan[1] >= 1 and plan[3] >= 1
    if not whole or plan[2] >= len(ENCODE_NORMS):
        raise ValueError("weights: expected the list that OCPruner.packed() returns")
    _, num_iter, ln_code, depth = plan
    ln = ENCODE_NORMS[ln_code]
    first_norm = 1 + 2 * depth
    first_slot = first_norm + (2 if ln == "post" else 0)
    expected = first_slot + len(FoldedSlots._fields)
    if len(weights) != expected:
        raise ValueError(f"weights: expected {expected} tensors, got {len(weights)}")
    folded = Folded(
        num_iter=num_iter,
        ln=ln,
        encode_weights=list(weights[1 : 1 + depth]),
        encode_biases=list(weights[1 + depth : first_norm]),
        post_norm=(weights[first_norm], weights[first_norm + 1]) if ln == "post" else None,
        slots=FoldedSlots(*weights[first_slot:]),
    )
    _check(weights, folded)
    return folded


def _check(weights: Sequence[Tensor], folded: Folded) -> None:
    """Raises unless all of a list's tensors fit each other: kernels trust them."""
    slots = folded.slots
    matrices = (folded.encode_weights[0], slots.state_weight, slots.ffn_w1)
    if any(matrix.dim() != 2 for matrix in matrices):
        raise ValueError("weights: expected matrices where OCPruner.packed() has them")
    dim, ffn = slots.dim, slots.ffn_w1.shape[0]
    inner = [bias.numel() for bias in folded.encode_biases[:-1]]
    widths = [folded.encode_weights[0].shape[1], *inner, dim]
    expected: list[tuple[int, ...]] = [
        tuple(weights[0].shape),
        *zip(widths[1:], widths, strict=False),
        *((width,) for width in widths[1:]),
        *((dim,) for _ in folded.post_norm or ()),
        *((4 * dim, dim), (dim,), (dim,), (1,)),
        *((3 * dim, dim), (3 * dim,), (3 * dim,), (3 * dim,)),
        *((ffn, dim), (ffn,), (dim, ffn), (dim,)),
    ]
    if [weight.shape for weight in weights] != expected:
        for place, (weight, shape) in enumerate(zip(weights, expected, strict=True)):
            if weight.shape != shape:
                raise ValueError(
                    f"weights[{place}]: expected shape {list(shape)}, got {list(weight.shape)}"
                )
    kinds = [(weight.dtype, weight.device) for weight in weights]
    if kinds.count(kinds[0]) != len(kinds):
        for place, weight in enumerate(weights):
            checks.require_same_dtype_device(f"weights[{place}]", weight, "weights[0]", weights[0])


PLAIN = (Tensor, torch.nn.Parameter)  # no subclass, which may be anything
# Strides of a plan that something hangs on: its views keep them, and lose the attribute.
MARK = (0, 0, 0, 0)


@dataclass(eq=False)
class Kept:
    """What the owner of a list of folded weights, who never edits it, has made of it once."""

    weights: tuple[Tensor, ...]  # the list but for its plan
    folded: Folded
    layers: Any  # of the native kernels; see `ocvtp_kernels.ops.prune.native.pipeline.prepare`
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
    others = weights[1:]
    return all(map(is_, kept.weights, others)) or all(map(_same_memory, kept.weights, others))


def _same_memory(one: Tensor, other: Tensor) -> bool:
    if one is other:
        return True
    if one.shape != other.shape or one.stride() != other.stride() or one.dtype != other.dtype:
        return False
    return _address(one) == _address(other) != 0


def _address(tensor: Tensor) -> int:
    """Where a tensor is in memory; 0 for what has none, such as a tracer's tensors."""
    try:
        return tensor.data_ptr() if type(tensor) in PLAIN else 0
    except RuntimeError:
        return 0
