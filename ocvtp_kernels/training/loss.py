"""The area-weighted mean squared error that the pruner is trained with."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ocvtp_kernels import checks
from ocvtp_kernels.dtypes import acc_dtype
from ocvtp_kernels.pruner.config import is_number

NORM_MODES = ("mean1", "sum1", "none")
CHANNEL_REDUCTIONS = ("mean", "sum")
REDUCTIONS = ("mean", "sum", "none")
# Lower bound of areas and of sums of weights.
EPS = 1e-8


class AreaWeightedMSE(nn.Module):
    """Squared error in which the tokens of small slots weigh more, so that small objects count.

    Each token belongs to the slot with the largest attention, ties to the lowest index;
    ``area_k`` is the share of the tokens assigned to slot k. Then

    * ``w_k = max(area_k, 1e-8) ** -power_p``, normalised over slots, and then cut at ``cap_w``;
    * ``alpha_n = sum_k A_kn w_k``, no gradient through it;
    * an image's loss is ``sum_n alpha_n e_n / max(sum_n alpha_n, 1e-8)`` with ``e_n`` the squared
      error of token n, over channels.

    Source: arXiv 2511.20439.

    Args:
        power_p: how strongly small areas weigh; 0 is the plain mean squared error as long as
            ``cap_w`` is not reached.
        cap_w: the largest weight of a slot, above 0; infinity for none. It is applied to the
            normalised weights.
        norm_mode: slot weights have mean 1 ("mean1"), sum 1 ("sum1") or stay ("none"). A slot
            without tokens counts as of area 1e-8. With "none" the cap limits its weight. With
            "mean1", the published one, E such slots of K share nearly all of the normalised
            weight: min(K / E, ``cap_w``) each, next to nothing for the others, so that tokens
            weigh by the attention that they leave to empty slots. "sum1" does the same.
        reduce_channel: "mean" or "sum" over channels.
        reduction: "mean" or "sum" over images, or "none" for a loss per image.

    Raises:
        ValueError: an option is not one of these; the message names it.
    """

    def __init__(
        self,
        power_p: float = 0.5,
        cap_w: float = 10.0,
        norm_mode: str = "mean1",
        reduce_channel: str = "mean",
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        if not is_number(power_p) or not 0 <= power_p < math.inf:
            raise ValueError(f"power_p: expected a finite number of at least 0, got {power_p!r}")
        if not is_number(cap_w) or not cap_w > 0:
            raise ValueError(f"cap_w: expected a number above 0, got {cap_w!r}")
        checks.require_one_of("norm_mode", norm_mode, NORM_MODES)
        checks.require_one_of("reduce_channel", reduce_channel, CHANNEL_REDUCTIONS)
        checks.require_one_of("reduction", reduction, REDUCTIONS)
        self.power_p = power_p
        self.cap_w = cap_w
        self.norm_mode = norm_mode
        self.reduce_channel = reduce_channel
        self.reduction = reduction

    def forward(self, reconstruction: Tensor, target: Tensor, attention: Tensor) -> Tensor:
        """The loss, in float32, or in float64 where an argument is.

        Args:
            reconstruction: ``[B, N, C]``, any floating dtype.
            target: ``[B, N, C]``, any floating dtype: the reference tokens.
            attention: ``[B, K, N]``, sums to 1 over slots; no gradient flows to it.

        Returns:
            ``[]``, or ``[B]`` with reduction "none".

        Raises:
            ValueError, TypeError: an argument does not fit; the message names it.
        """
        _check(reconstruction, target, attention)
        wide = acc_dtype(torch.promote_types(reconstruction.dtype, target.dtype))
        squared = (reconstruction.to(wide) - target.to(wide)).square()
        error = squared.mean(dim=-1) if self.reduce_channel == "mean" else squared.sum(dim=-1)
        alpha = self.token_weights(attention)
        loss = (alpha * error).sum(dim=-1) / alpha.sum(dim=-1).clamp(min=EPS)
        if self.reduction == "none":
            return loss
        return loss.mean() if self.reduction == "mean" else loss.sum()

    @torch.no_grad()
    def token_weights(self, attention: Tensor) -> Tensor:
        """The weight of each token's error, ``alpha``: ``[B, K, N]`` -> ``[B, N]``."""
        num_slots, num_tokens = attention.shape[1:]
        wide = acc_dtype(attention.dtype)
        slot = torch.arange(num_slots, device=attention.device).view(1, -1, 1)
        # Counted by comparison: a scatter adds with atomics, a histogram waits for the device.
        counts = (attention.argmax(dim=1, keepdim=True) == slot).sum(dim=-1)
        area = counts.to(wide) / num_tokens
        weight = area.clamp(min=EPS).pow(-self.power_p)
        if self.norm_mode == "mean1":
            weight = weight / weight.mean(dim=-1, keepdim=True)
        elif self.norm_mode == "sum1":
            weight = weight / weight.sum(dim=-1, keepdim=True)
        weight = weight.clamp(max=self.cap_w)
        # Autocast would round the weights to half precision.
        with torch.autocast(attention.device.type, enabled=False):
            alpha = torch.matmul(weight.unsqueeze(1), attention.to(wide)).squeeze(1)
        return alpha.clamp(min=0.0)


def _check(reconstruction: Tensor, target: Tensor, attention: Tensor) -> None:
    checks.require_rank("reconstruction", reconstruction, "B, N, C")
    checks.require_rank("attention", attention, "B, K, N")
    named = {"reconstruction": reconstruction, "target": target, "attention": attention}
    for name, tensor in named.items():
        checks.require_floating(name, tensor)
        checks.require_same_device(name, tensor, "reconstruction", reconstruction)
    # Broadcasting would hide a target of another shape.
    checks.require_shape("target", target, reconstruction.shape)
    checks.require_nonempty("reconstruction", reconstruction, 1, "token")
    checks.require_nonempty("reconstruction", reconstruction, 2, "channel")
    checks.require_nonempty("attention", attention, 1, "slot")
    checks.require_size("attention", attention, 0, reconstruction.shape[0], "reconstruction")
    checks.require_size("attention", attention, 2, reconstruction.shape[1], "reconstruction")
