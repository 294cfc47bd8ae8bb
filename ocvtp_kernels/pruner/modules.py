"""The pruner's parts in plain PyTorch, under the authors' parameter names."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ocvtp_kernels.checks import whole_number
from ocvtp_kernels.ops.gru_cell import gru_cell
from ocvtp_kernels.ops.slot_attention import reference
from ocvtp_kernels.ops.slot_attention.step import EPS, attend, gated
from ocvtp_kernels.pruner import seeded
from ocvtp_kernels.pruner.layers import computes_as


def drawing_for(device: torch.device | str | None) -> AbstractContextManager[Any]:
    """Within the block parameters that will be moved to a device are made on the CPU.

    Where no device is named they are made on torch's default one, which may be "meta".
    """
    return nullcontext() if device is None else torch.device("cpu")


def without_place_mean(tokens: Tensor, place_mean: Tensor | None) -> Tensor:
    """Reference tokens ``[B, N, C]`` as the encode MLP takes them.

    Args:
        place_mean: ``[N, C]`` of a pruner, or that of each token; None where it has none.
    """
    return tokens if place_mean is None else tokens - place_mean


class MLP(nn.Module):
    """Linear, GELU, Dropout, ..., Linear, with a LayerNorm before, after or nowhere.

    Parameters live in ``mlp``, numbered as the authors number them.
    """

    def __init__(self, in_dim: int, dims: tuple[int, ...], ln: str | None, dropout: float) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.LayerNorm(in_dim)] if ln == "pre" else []
        for depth, dim in enumerate(dims):
            layers.append(nn.Linear(in_dim, dim))
            if depth + 1 < len(dims):
                layers += [nn.GELU(), nn.Dropout(dropout)]
            in_dim = dim
        if ln == "post":
            layers.append(nn.LayerNorm(in_dim))
        self.ln = ln
        self.mlp = nn.Sequential(*layers)

    @property
    def first_linear(self) -> int:
        """Place of the first Linear in ``mlp``; every third layer from there is one."""
        return 1 if self.ln == "pre" else 0

    @property
    def linears(self) -> list[Any]:
        """The Linear layers, first to last, or what stands in their places."""
        return list(self.mlp)[self.first_linear :: 3]

    @property
    def norm(self) -> nn.Module | None:
        """The LayerNorm, if there is one."""
        return None if self.ln is None else self.mlp[0 if self.ln == "pre" else -1]

    def forward(self, tokens: Tensor) -> Tensor:
        """``[..., in_dim]`` -> ``[..., dims[-1]]``."""
        output: Tensor = self.mlp(tokens)
        return output


class SlotPrior(nn.Module):
    """The Gaussian of the initial slots: one mean and one deviation, shared.

    Args:
        dim: the slot width D.
        noise_seed: fixes the noise; None draws it afresh at every call.
    """

    def __init__(self, dim: int, noise_seed: int | None) -> None:
        super().__init__()
        self.noise_seed = noise_seed if noise_seed is None else _seed(noise_seed)
        self.mean = nn.Parameter(torch.empty(1, 1, dim))
        self.logstd = nn.Parameter(torch.empty(1, 1, dim))
        nn.init.xavier_uniform_(self.mean)
        nn.init.xavier_uniform_(self.logstd)

    def forward(
        self, batch: int, num_slots: int, prior: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        """``mean + noise * exp(logstd)`` ``[batch, num_slots, D]``; with a seed, the same an image.

        Args:
            prior: another mean and logstd.
        """
        mean, logstd = (self.mean, self.logstd) if prior is None else prior
        width = mean.shape[-1]
        if self.noise_seed is None:
            noise = mean.new_empty(batch, num_slots, width).normal_()
        else:
            noise = seeded.noise(mean, self.noise_seed, num_slots * width).view(1, -1, width)
        return (mean + noise * logstd.exp()).expand(batch, -1, -1)

    def scores(self, batch: int, num_tokens: int) -> Tensor:
        """A random score per token: [batch, num_tokens]; with a seed, equal for all images."""
        if self.noise_seed is None:
            return self.mean.new_empty(batch, num_tokens).normal_()
        return seeded.noise(self.mean, self.noise_seed, num_tokens).expand(batch, -1)


def _seed(noise_seed: Any) -> int:
    seed = whole_number("noise_seed", noise_seed, -(2**63))
    if seed >= 2**63:
        raise ValueError(f"noise_seed: expected less than 2**63, got {seed}")
    return seed


class SlotAttention(nn.Module):
    """``num_iter`` iterations of Slot Attention."""

    def __init__(
        self, num_iter: int, dim: int, ffn_dim: int, dropout: float, trunc_bp: str | None
    ) -> None:
        super().__init__()
        self.num_iter = num_iter
        self.trunc_bp = trunc_bp
        self.norm_in = nn.LayerNorm(dim)
        self.proj_q = nn.Linear(dim, dim, bias=False)
        self.norm_slots_0 = nn.LayerNorm(dim)
        self.proj_k = nn.Linear(dim, dim, bias=False)
        self.proj_v = nn.Linear(dim, dim, bias=False)
        self.gru = nn.GRUCell(dim, dim)
        self.norm_slots_1 = nn.LayerNorm(dim)
        self.ffn = MLP(dim, (ffn_dim, dim), None, dropout)

    def forward(
        self, tokens: Tensor, slots_init: Tensor, slot_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Encoded tokens ``[B, N, D]`` and initial slots ``[B, K, D]`` to slots and logits.

        With ``trunc_bp="bi-level"`` the last iteration's gradient skips the earlier ones and
        flows to the initial slots straight; values are unchanged.
        """
        attend, cell = reference.attend, gru_cell.reference
        return self._iterate(attend, attend, cell, tokens, slots_init, slot_mask)

    def aggregate(
        self, tokens: Tensor, slots_init: Tensor, slot_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """As `forward`, on the fused ops: slots, and the last iteration's attention ``[B, K, N]``.

        Used in training. Dropout draws from torch's own generator.
        """
        last = functools.partial(attend, need_attention=True)
        return self._iterate(attend, last, gated, tokens, slots_init, slot_mask)

    def _iterate(
        self,
        attend: Callable[..., tuple[Tensor, Any]],
        attend_last: Callable[..., tuple[Tensor, Any]],
        cell: Callable[..., Tensor],
        tokens: Tensor,
        slots_init: Tensor,
        slot_mask: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Every layer is called, so that adapters and masks on it count."""
        # Layers of early iterations run with gradients all the same, and are cut off around what is
        # costly: a weight that autocast or a parametrization caches would lose its own without.
        cut = torch.detach if self.trunc_bp == "bi-level" else _pass
        x = self.norm_in(tokens)
        k, v = self.proj_k(x), self.proj_v(x)
        options = {"scale": k.shape[-1] ** -0.5, "eps": EPS, "slot_mask": slot_mask}
        slots, early = cut(slots_init), (cut(k), cut(v))
        for _ in range(self.num_iter - 1):
            updates, _ = attend(cut(self._query(slots)), *early, **options)
            slots = cut(self._update(cell, updates, slots, cut))
        if self.trunc_bp == "bi-level":
            # The bracket is exactly zero, so the value is exactly the detached one.
            slots = slots + (slots_init - slots_init.detach())
        updates, attended = attend_last(self._query(slots), k, v, **options)
        return self._update(cell, updates, slots, _pass), attended

    def _query(self, slots: Tensor) -> Tensor:
        query: Tensor = self.proj_q(self.norm_slots_0(slots))
        return query

    def _update(
        self,
        cell: Callable[..., Tensor],
        updates: Tensor,
        slots: Tensor,
        cut: Callable[[Tensor], Tensor],
    ) -> Tensor:
        gru = self.gru
        if computes_as(gru, nn.GRUCell):
            weights = (gru.weight_ih, gru.weight_hh, gru.bias_ih, gru.bias_hh)
            state = cell(updates, slots, *map(cut, weights))
        else:
            state = gru(updates.flatten(0, 1), slots.flatten(0, 1)).view(slots.shape)
        return state + self.ffn(self.norm_slots_1(state))


def _pass(tensor: Tensor) -> Tensor:
    return tensor
