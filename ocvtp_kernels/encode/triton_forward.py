"""The encode MLP: one launch a Linear, and in the first one the slots' first query besides.

That query needs nothing of the tokens, so it fills what the first Linear leaves of the chip.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from ocvtp_kernels.encode.reference import EPS
from ocvtp_kernels.fold import Folded
from ocvtp_kernels.gpu.launch import launch
from ocvtp_kernels.linear.triton_forward import Linear, linear, linear_kernel


@triton.jit
def first_kernel(
    x,
    weight,
    bias,
    out,
    rows,
    rows_per_image,
    depth,
    columns,
    x_image_stride,
    x_row_stride,
    out_row_stride,
    slots,
    query_weight,
    query_bias,
    q,
    constant,
    slot_rows,
    slots_per_image,
    dim,
    slots_image_stride,
    slots_row_stride,
    arrivals,
    num_arrivals,
    programs,
    eps,
    NORM: tl.constexpr,
    GELU: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    SLOT_ROWS: tl.constexpr,
    SLOT_COLUMNS: tl.constexpr,
    SLOT_DEPTH: tl.constexpr,
    ARRIVALS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Programs below ``programs`` encode, the others make the first query; one clears arrivals."""
    program = tl.program_id(0)
    if program < programs:
        linear_kernel(
            program,
            x,
            weight,
            bias,
            out,
            out,
            out,
            rows,
            rows_per_image,
            depth,
            columns,
            x_image_stride,
            x_row_stride,
            out_row_stride,
            eps,
            NORM,
            GELU,
            False,
            False,
            ROWS,
            COLUMNS,
            DEPTH,
            PRECISION,
        )
    else:
        linear_kernel(
            program - programs,
            slots,
            query_weight,
            query_bias,
            q,
            q,
            constant,
            slot_rows,
            slots_per_image,
            dim,
            dim + 1,
            slots_image_stride,
            slots_row_stride,
            dim,
            eps,
            True,
            False,
            False,
            True,
            SLOT_ROWS,
            SLOT_COLUMNS,
            SLOT_DEPTH,
            PRECISION,
        )
        if program == programs:
            for first in range(0, num_arrivals, ARRIVALS):
                here = first + tl.arange(0, ARRIVALS)
                tl.store(arrivals + here, tl.zeros([ARRIVALS], tl.int32), mask=here < num_arrivals)


def first(job: Linear, query: Linear, arrivals: Tensor) -> None:
    """The first Linear and the first query in one launch, which also clears ``arrivals``."""
    assert query.tail is not None
    mine, its = job.arguments(), query.arguments()
    launch(
        first_kernel,
        (job.programs + query.programs,),
        {
            **{name: mine[name] for name in SHARED},
            "slots": its["x"],
            "query_weight": its["weight"],
            "query_bias": its["bias"],
            "q": its["out"],
            "constant": its["tail"],
            "slot_rows": its["rows"],
            "slots_per_image": its["rows_per_image"],
            "dim": its["depth"],
            "slots_image_stride": its["x_image_stride"],
            "slots_row_stride": its["x_row_stride"],
            "arrivals": arrivals,
            "num_arrivals": arrivals.numel(),
            "programs": job.programs,
            "SLOT_ROWS": its["ROWS"],
            "SLOT_COLUMNS": its["COLUMNS"],
            "SLOT_DEPTH": its["DEPTH"],
            "ARRIVALS": 256,
        },
        num_warps=job.tile.warps,
        num_stages=job.tile.stages,
    )


SHARED = (
    *("x", "weight", "bias", "out", "rows", "rows_per_image", "depth", "columns"),
    *("x_image_stride", "x_row_stride", "out_row_stride", "eps"),
    *("NORM", "GELU", "ROWS", "COLUMNS", "DEPTH", "PRECISION"),
)


def encode(
    reference: Tensor,
    folded: Folded,
    outputs: Sequence[Tensor],
    query: Linear,
    arrivals: Tensor,
) -> Tensor:
    """Encoded tokens before ``norm_in``'s LayerNorm, which the competition takes itself.

    Args:
        reference: ``[B, N, C]``, neighbours of the last dimension adjacent.
        outputs: one ``[B, N, width]`` per Linear, written.
        query: the slots' first query.
        arrivals: int32, cleared.

    Returns:
        ``[B, N, D]``, the last output, or its LayerNorm where the config has ``enc_ln`` "post".
    """
    x = reference
    for depth, out in enumerate(outputs):
        weight, bias = folded.encode_weights[depth], folded.encode_biases[depth]
        job = Linear(
            x,
            weight,
            bias,
            out,
            norm=depth == 0 and folded.ln == "pre",
            gelu=depth + 1 < len(outputs),
        )
        if depth == 0:
            first(job, query, arrivals)
        else:
            linear(job)
        x = out
    if folded.post_norm is not None:
        x = F.layer_norm(x, x.shape[-1:], *folded.post_norm, EPS)
    return x
