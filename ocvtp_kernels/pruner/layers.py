"""The weights by which a layer computes: its own, or those that an adapter or a mask makes of them.

A layer that computes as torch has it is read. Of any other a copy is called: on inputs that show
its weights, then on random ones, of which it has to make what these weights make.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ocvtp_kernels.ops.gru_cell import gru_cell
from ocvtp_kernels.ops.prune.weights import PLAIN
from ocvtp_kernels.ops.slot_attention.reference import LN_EPS
from ocvtp_kernels.pruner import seeded

GRU_WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
# How far outputs may be from those of the weights that were found, over their root mean square.
TOLERANCE = 1e-5
# Scales of random inputs, since an adapter may be linear for small ones alone.
SCALES = (0.1, 1.0, 1.0, 10.0)


def computes_as(layer: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a layer computes with its parameters as ``kind`` does: no other code, no hooks."""
    own = type(layer).forward is kind.forward and "forward" not in vars(layer)
    return own and not layer._forward_pre_hooks and not layer._forward_hooks


def unwrapped(layer: nn.Module) -> nn.Module:
    """What ``torch.compile`` has wrapped."""
    inner: nn.Module = getattr(layer, "_orig_mod", layer)
    return inner


def linear_weights(
    name: str, layer: nn.Module, width: int, like: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Weight ``[out, width]`` and bias ``[out]`` with which a layer computes in evaluation.

    Args:
        name: the layer's, for errors.
        layer: a Linear, or what stands in its place.
        width: channels of its input.
        like: a tensor of the dtype and on the device that the layer is for.

    Returns:
        weight and bias, None where the layer has none.

    Raises:
        ValueError: no weights compute what the layer does.
    """
    layer = unwrapped(layer)
    if computes_as(layer, nn.Linear):
        weight, bias = _own(name, layer, ("weight", "bias"), width, 2)
        if _are_plain(weight, bias) and weight is not None:
            return weight, bias
    units = torch.eye(width, device="cpu")
    probe = _Probe(name, layer, like, units)
    bias = probe(units[:1] * 0)[0]
    weight = (probe(units) - bias).T
    probe.require(lambda x: F.linear(x.double(), weight, bias), _random(width))
    return weight.to(like.device), bias.to(like.device)


def norm_weights(name: str, layer: nn.Module, width: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Gamma and beta ``[width]`` with which a layer scales normalized tokens in evaluation.

    Args:
        name, layer, width, like: as `linear_weights`, of a LayerNorm.

    Raises:
        ValueError: no gamma and beta compute what the layer does.
    """
    layer = unwrapped(layer)
    if computes_as(layer, nn.LayerNorm) and layer.eps == LN_EPS:
        gamma, beta = _own(name, layer, ("weight", "bias"), width, 1)
        if gamma is not None and beta is not None and _are_plain(gamma, beta):
            return gamma, beta
    signs = torch.ones(1, width, device="cpu")
    signs[:, ::2] = -1.0
    probe = _Probe(name, layer, like, signs)
    high, low = probe(signs)[0], probe(-signs)[0]
    normed = F.layer_norm(signs.to(high), (width,), eps=LN_EPS)[0]
    beta = (high + low) / 2
    gamma = torch.where(normed == 0, 0.0, (high - low) / 2 / normed)
    scaled = functools.partial(F.layer_norm, normalized_shape=(width,), weight=gamma, bias=beta)
    probe.require(lambda x: scaled(x.double(), eps=LN_EPS), _random(width))
    return gamma.to(like.device), beta.to(like.device)


def gru_weights(name: str, layer: nn.Module, width: int, like: Tensor) -> list[Tensor]:
    """The tensors of `GRU_WEIGHTS` with which a cell computes in evaluation.

    Args:
        name, layer, width, like: as `linear_weights`, of a GRUCell whose widths are equal.

    Raises:
        ValueError: the cell has no such tensors, or computes otherwise.
    """
    layer, states = unwrapped(layer), (_random(width), _random(width, seed=1))
    probe = None
    if not computes_as(layer, nn.GRUCell):
        # A mask sets the weights when the cell is called.
        probe = _Probe(name, layer, like, *states)
        layer = probe.twin
    found = _own(name, layer, GRU_WEIGHTS, width, 2)
    weights = [weight for weight in found if isinstance(weight, Tensor)]
    if len(weights) < len(found) or not _are_plain(*weights):
        raise ValueError(
            f"{name}: expected a GRUCell with {', '.join(GRU_WEIGHTS)}, got {_named(layer)}"
        )
    if probe is not None:
        wide = [weight.detach().double() for weight in weights]
        probe.require(lambda x, h: gru_cell.reference(x.double(), h.double(), *wide), *states)
    return [weight.to(like.device) for weight in weights]


def require_same(
    name: str, layer: nn.Module, function: Callable[..., Any], like: Tensor, *widths: int
) -> None:
    """Raises ValueError unless a layer computes a function in evaluation.

    Args:
        name, layer, like: as `linear_weights`.
        function: of a copy of the layer, and of its inputs.
        widths: channels of each input.
    """
    inputs = [_random(width, seed)[None] for seed, width in enumerate(widths)]
    probe = _Probe(name, unwrapped(layer), like, *inputs)
    probe.require(lambda *x: function(probe.twin, *x), *inputs)


def _random(width: int, seed: int = 0) -> Tensor:
    rows = seeded.draw(seed, len(SCALES), width)[: len(SCALES)]
    return rows * torch.tensor(SCALES, device="cpu").unsqueeze(-1)


class _Probe:
    """A copy of a layer to call: in float64 on the CPU, or as the layer is where it cannot.

    A copy, as calls leave traces: adapters are merged, masks computed, observers count.
    """

    def __init__(self, name: str, layer: nn.Module, like: Tensor, *inputs: Tensor) -> None:
        self.name = name
        self.dtype, self.device = torch.float64, torch.device("cpu")
        # A layer may raise anything on a dtype or a device that it is not made for.
        try:
            self.twin = copied(layer).eval().to(self.device, self.dtype)
            self(*inputs)
            return
        except Exception:
            self.dtype, self.device = like.dtype, like.device
        try:
            self.twin = copied(layer).eval()
            self(*inputs)
        except Exception as error:
            raise ValueError(
                f"{name}: expected a layer that can be folded, got {_named(layer)}, which raises "
                f"{type(error).__name__}: {error}"
            ) from error

    @torch.no_grad()
    def __call__(self, *inputs: Tensor) -> Tensor:
        """What the layer computes, in float64."""
        return _last(self.twin(*(x.to(self.device, self.dtype) for x in inputs)))

    def require(self, function: Callable[..., Tensor], *inputs: Tensor) -> None:
        """Raises ValueError unless the layer computes a function in float64."""
        got = self(*inputs)
        if got.is_meta:
            return
        want = _last(function(*(x.to(self.device, self.dtype) for x in inputs)))
        tolerance = max(TOLERANCE, 4 * torch.finfo(self.dtype).eps)
        error, size = ((part.square().mean(dim=-1).sqrt()) for part in (got - want, want))
        if not (error <= tolerance * size).all():
            raise ValueError(
                f"{self.name}: expected a layer that can be folded, got {_named(self.twin)}, which "
                "computes what no weights do; leave the pruner unfrozen"
            )


def _last(outputs: Any) -> Tensor:
    """The output, of several the last, in float64."""
    output: Tensor = outputs[-1] if isinstance(outputs, tuple) else outputs
    return output.double()


def copied(layer: nn.Module, memo: dict[int, Any] | None = None) -> Any:
    """A deep copy, also of a layer with a mask, whose weights have a gradient history."""
    memo = {} if memo is None else memo
    for part in layer.modules():
        for value in vars(part).values():
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    return copy.deepcopy(layer, memo)


def whole(tensor: Tensor) -> Tensor:
    """A tensor that may be sharded over processes, gathered, which all of them have to do."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def _own(
    name: str, layer: nn.Module, parts: tuple[str, ...], width: int, dims: int
) -> list[Tensor | None]:
    """Tensors of a layer: weights of ``dims`` dimensions, ``width`` the last, and their biases."""
    found: list[Tensor | None] = []
    rows: tuple[int, ...] = ()
    for part in parts:
        tensor = getattr(layer, part, None)
        if not isinstance(tensor, Tensor):
            found.append(None)
            continue
        tensor = whole(tensor)
        fits = not rows or tensor.shape == rows
        if part.startswith("weight"):
            fits, rows = tensor.shape[dims - 1 :] == (width,), tensor.shape[:1]
        # FullyShardedDataParallel leaves flat pieces, or tensors whose memory is freed.
        if not fits or (tensor.numel() and not tensor.untyped_storage().nbytes()):
            raise ValueError(
                f"{name}.{part}: expected a whole tensor for {width} channels, got shape "
                f"{list(tensor.shape)}; gather it first where it is sharded"
            )
        found.append(tensor)
    return found


def _are_plain(*tensors: Tensor | None) -> bool:
    return all(tensor is None or type(tensor) in PLAIN for tensor in tensors)


def _named(layer: nn.Module) -> str:
    return f"{type(layer).__module__}.{type(layer).__qualname__}"
