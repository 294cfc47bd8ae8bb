"""Random operands of slot logits, for the CUDA ops slot_attention and slot_argmax."""

from __future__ import annotations

import torch
from torch import Tensor

from ocvtp_kernels.ops.slot_attention import reference as slots
from tests.csrc.device_cases import EPS, INF, NAN, DeviceCase

ops = torch.ops.ocvtp_emulated

# Slots within a tile, a tile of them, two tiles, and more than a tile holds.
SLOTS = (1, 7, 16, 64, 65, 128, 130, 200)
TOKENS = (1, 31, 32, 33, 50, 100, 200)
WIDTHS = (8, 9, 24, 61, 64, 72, 136)


class SlotLogitsCase:
    """Random slots and tokens, their logits in float64, and the error that these may have."""

    def __init__(
        self, case: DeviceCase, tokens: int = 0, slots: int = 0, outliers: bool = True
    ) -> None:
        self.batch, self.slots = case.between(1, 2), slots or case.pick(SLOTS)
        self.tokens, depth = tokens or case.pick(TOKENS), case.pick(WIDTHS)
        self.outlier = case.pick([0, 24, 36]) if outliers else 0
        self.q = case.rows(self.batch, self.slots, depth, outlier=self.outlier)
        self.k = case.rows(self.batch, self.tokens, depth, outlier=self.outlier)
        self.scale = depth**-0.5
        # A column of a wider tensor, NaN beside it.
        columns = case.rows(self.batch, self.slots, 3, dtype=torch.float32)
        columns[..., ::2] = NAN
        self.constant = columns[..., 1] if case.flag() else None
        self.mask = None
        if case.flag():
            self.mask = torch.rand(self.batch, self.slots, generator=case.random) < 2 / 3
            self.mask[:, self.slots // 2] = True

    def logits(self, masked: bool) -> tuple[Tensor, Tensor]:
        """``[B, K, N]``, and for each image the error of float32 sums ``[B, 1, 1]``."""
        constant = torch.zeros(1, 1) if self.constant is None else self.constant.double()
        added = constant.unsqueeze(-1)
        q, k = self.q.double(), self.k.double()
        exact = slots.slot_logits(q, k, self.scale) + added
        sizes = slots.slot_logits(q.abs(), k.abs(), self.scale) + added.abs()
        if masked and self.mask is not None:
            exact = exact.masked_fill(~self.mask.unsqueeze(-1), -INF)
            sizes = sizes.masked_fill(~self.mask.unsqueeze(-1), 0)
        # Sums of random signs lose far less than a rounding of each product.
        return exact, sizes.amax((1, 2), keepdim=True) * 2**-22 + 2**-21

    def argmax(self, top_k: int, evidence: bool = True) -> tuple[Tensor, Tensor, Tensor]:
        return ops.slot_argmax(self.q, self.k, self.constant, self.scale, top_k, evidence)

    def image(self, index: int) -> SlotLogitsCase:
        """One image alone."""
        alone = object.__new__(SlotLogitsCase)
        alone.__dict__ = dict(self.__dict__)
        for name in ("q", "k", "constant", "mask"):
            tensor = getattr(self, name)
            setattr(alone, name, None if tensor is None else tensor[index : index + 1])
        return alone

    def attention(self, v: Tensor, with_attention: bool = True) -> tuple[Tensor, Tensor, Tensor]:
        given = (self.q, self.k, v, self.constant, self.mask, self.scale, EPS)
        return ops.slot_attention(*given, with_attention)
