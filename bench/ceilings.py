"""The roofline: measured ceilings of a device, which an op's work is held against.

All variants of an op have the same work, so what a variant does beyond it lowers its share of the
ceilings. Each op's formula stands in its file of `bench.ops`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from bench.results import Ceilings
from bench.timing import measure


def measure_ceilings(device: torch.device, dtypes: Sequence[str], short: bool = False) -> Ceilings:
    """Measures both ceilings, on random data, as zeros run faster."""
    cuda = device.type == "cuda"
    size = (4096 if short else 8192) if cuda else (512 if short else 1024)
    elements = 2 ** (28 if cuda else 24 if short else 26)
    source = torch.randn(elements, device=device)
    target = torch.empty_like(source)
    calls: dict[str, Callable[[], object]] = {"copy": lambda: target.copy_(source)}
    for dtype in dtypes:
        a, b = torch.randn(2, size, size, device=device).to(getattr(torch, dtype))
        calls[dtype] = lambda a=a, b=b: torch.mm(a, b)  # type: ignore[misc]
    # A ceiling is a best case, so it takes the 20th percentile.
    seconds = {
        name: measure({name: call}, device=device, seconds=1.0)[name].p20
        for name, call in calls.items()
    }
    copied = 2 * source.numel() * source.element_size()
    return Ceilings(
        copy_gb_s=copied / seconds["copy"] / 1e9,
        matmul_tflops={dtype: 2 * size**3 / seconds[dtype] / 1e12 for dtype in dtypes},
    )


def tensor_bytes(*tensors: Tensor) -> int:
    """Bytes of tensors, read or written once."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
