"""The pruner's parts in plain PyTorch, under the authors' parameter names."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ocvtp_kernels.ops.slot_attention.reference import StepWeights, slot_attention_step
from ocvtp_kernels.ops.slot_attention.step import iterate
from ocvtp_kernels.pruner import seeded


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
    def linears(self) -> list[nn.Linear]:
        """The Linear layers, first to last."""
        return [layer for layer in self.mlp if isinstance(layer, nn.Linear)]

    @property
    def norm(self) -> tuple[Tensor, Tensor] | None:
        """The LayerNorm's gamma and beta, if there is one."""
        for layer in self.mlp:
            if isinstance(layer, nn.LayerNorm):
                return layer.weight, layer.bias
        return None

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

    _noise: Tensor

    def __init__(self, dim: int, noise_seed: int | None) -> None:
        super().__init__()
        self.noise_seed = noise_seed
        self.mean = nn.Parameter(torch.empty(1, 1, dim))
        self.logstd = nn.Parameter(torch.empty(1, 1, dim))
        nn.init.xavier_uniform_(self.mean)
        nn.init.xavier_uniform_(self.logstd)
        self.draw()

    def forward(
        self, batch: int, num_slots: int, prior: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        """``mean + noise * exp(logstd)`` ``[batch, num_slots, D]``; with a seed, the same an image.

        Args:
            prior: another mean and logstd.
        """
        mean, logstd = (self.mean, self.logstd) if prior is None else prior
        if self.noise_seed is None:
            noise = mean.new_empty(batch, num_slots, mean.shape[-1]).normal_()
        else:
            noise = seeded.noise(self._noise, self.noise_seed, num_slots).unsqueeze(0)
        return (mean + noise * logstd.exp()).expand(batch, -1, -1)

    def scores(self, batch: int, num_tokens: int) -> Tensor:
        """A random score per token: [batch, num_tokens]; with a seed, equal for all images."""
        if self.noise_seed is None:
            return self.mean.new_empty(batch, num_tokens).normal_()
        rows = -(-num_tokens // self.mean.shape[-1])
        noise = seeded.noise(self._noise, self.noise_seed, rows)
        return noise.flatten()[:num_tokens].expand(batch, -1)

    def draw(self) -> None:
        """Draws the seed's noise, in the dtype and on the device of the parameters."""
        if self.noise_seed is None:
            return
        noise = seeded.draw(self.noise_seed, seeded.BLOCK, self.mean.shape[-1])
        with torch.inference_mode(False), torch.no_grad():
            self._noise = noise.to(self.mean)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SlotPrior:
        super()._apply(fn, recurse)
        # Drawn again, not cast, so that a cast to half and back loses nothing.
        self.draw()
        return self


class SlotAttention(nn.Module):
    """``num_iter`` iterations of Slot Attention."""

    def __init__(
        self, num_iter: int, dim: int, ffn_dim: int, dropout: float, trunc_bp: str | None
    ) -> None:
        super().__init__()
        self.num_iter = num_iter
        self.trunc_bp = trunc_bp
        self.dropout = dropout
        self.norm_in = nn.LayerNorm(dim)
        self.proj_q = nn.Linear(dim, dim, bias=False)
        self.norm_slots_0 = nn.LayerNorm(dim)
        self.proj_k = nn.Linear(dim, dim, bias=False)
        self.proj_v = nn.Linear(dim, dim, bias=False)
        self.gru = nn.GRUCell(dim, dim)
        self.norm_slots_1 = nn.LayerNorm(dim)
        self.ffn = MLP(dim, (ffn_dim, dim), None, dropout)

    def step_weights(self) -> StepWeights:
        """The weights of one iteration."""
        hidden, output = self.ffn.linears
        return StepWeights(
            self.norm_slots_0.weight,
            self.norm_slots_0.bias,
            self.proj_q.weight,
            self.gru.weight_ih,
            self.gru.weight_hh,
            self.gru.bias_ih,
            self.gru.bias_hh,
            self.norm_slots_1.weight,
            self.norm_slots_1.bias,
            hidden.weight,
            hidden.bias,
            output.weight,
            output.bias,
        )

    def forward(
        self, tokens: Tensor, slots_init: Tensor, slot_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Encoded tokens ``[B, N, D]`` and initial slots ``[B, K, D]`` to slots and logits.

        With ``trunc_bp="bi-level"`` the last iteration's gradient skips the earlier ones and
        flows to the initial slots straight; values are unchanged.
        """
        step = slot_attention_step
        return self._iterate(step, step, tokens, slots_init, slot_mask)

    def aggregate(
        self, tokens: Tensor, slots_init: Tensor, slot_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """As `forward`, on the fused ops: slots, and the last iteration's attention ``[B, K, N]``.

        Used in training. Dropout draws from torch's own generator.
        """
        # ocvtp::slot_attention_step has neither the attention nor dropout.
        last = functools.partial(iterate, need_attention=True)
        return self._iterate(iterate, last, tokens, slots_init, slot_mask)

    def _iterate(
        self,
        step: Callable[..., tuple[Tensor, Any]],
        last_step: Callable[..., tuple[Tensor, Any]],
        tokens: Tensor,
        slots_init: Tensor,
        slot_mask: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        x = self.norm_in(tokens)
        k, v, weights = self.proj_k(x), self.proj_v(x), self.step_weights()
        options: dict[str, Any] = {
            "scale": k.shape[-1] ** -0.5,
            "slot_mask": slot_mask,
            "dropout": self.dropout if self.training else 0.0,
        }
        slots, early = slots_init, (k, v, weights)
        if self.trunc_bp == "bi-level":
            # No gradient reaches the early iterations, so nothing is stored for one.
            early = (k.detach(), v.detach(), StepWeights(*(weight.detach() for weight in weights)))
            slots = slots.detach()
        for _ in range(self.num_iter - 1):
            slots, _ = step(slots, *early, **options)
        if self.trunc_bp == "bi-level":
            # The bracket is exactly zero, so the value is exactly the detached one.
            slots = slots + (slots_init - slots_init.detach())
        return last_step(slots, k, v, weights, **options)
