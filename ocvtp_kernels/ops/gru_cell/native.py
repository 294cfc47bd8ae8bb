"""The GRU on the native kernels: products by BLAS, gates in C++ on the CPU, CUDA C++ on a GPU."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ocvtp_kernels.blas import float32_sums
from ocvtp_kernels.native import WIDE, for_products


def gru_cell(
    x: Tensor, h: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor
) -> Tensor:
    """Half precision that the CPU does not multiply is multiplied in float32."""
    dtype = h.dtype
    if not (h.is_cpu and dtype in WIDE):
        x, h, w_ih, w_hh, b_ih, b_hh = map(for_products, (x, h, w_ih, w_hh, b_ih, b_hh))
    with float32_sums(h.device):
        x_gates, h_gates = F.linear(x, w_ih, b_ih), F.linear(h, w_hh, b_hh)
    state: Tensor = torch.ops.ocvtp_native.gru_gates(
        x_gates, h_gates, h, None, None, None, None, None, 0.0, False
    )[0]
    return state if state.dtype == dtype else state.to(dtype)
