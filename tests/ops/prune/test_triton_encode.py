"""The encode MLP's Triton launches end to end: x^ within the error budget."""

from __future__ import annotations

import pytest
import torch

from ocvtp_kernels.ops.prune.reference import encode_folded
from ocvtp_kernels.ops.prune.weights import unpack
from tests.cases import DEVICE, PruneCase, assert_within_budget, small_config, triton_dtypes

pytest.importorskip("triton", reason="triton is not installed")

from ocvtp_kernels.ops.prune.triton.encode import encode
from ocvtp_kernels.ops.prune.triton.pipeline import query_of
from ocvtp_kernels.ops.prune.triton.workspace import new_workspace
from ocvtp_kernels.ops.slot_attention.triton.forward import split_plan

pytestmark = [pytest.mark.interpreter, pytest.mark.usefixtures("poisoned")]


@pytest.mark.parametrize("dtype", triton_dtypes())
@pytest.mark.parametrize("enc_ln", ["pre", "post", None])
@pytest.mark.parametrize("offset", [0.0, 50.0])
def test_outliers_and_rows_far_from_zero_stay_within_the_budget(
    offset: float, enc_ln: str | None, dtype: torch.dtype
) -> None:
    config = small_config(enc_ln=enc_ln, enc_in_dim=96, enc_dims=(130, 10))
    # Every fifth channel is 80 times the others.
    case = PruneCase(config, 2, 33, 7)
    case.reference_tokens = case.reference_tokens + offset
    reference_tokens, _, weights, slots = case.arguments(dtype, DEVICE)
    folded = unpack(weights)
    split = split_plan(slots, 33, slots.shape[2])
    space = new_workspace(reference_tokens, slots, folded, split)
    norm, query = query_of(slots, folded, space)
    got = encode(reference_tokens, folded, norm, query, space)

    tokens, halves = reference_tokens.cpu(), [weight.cpu() for weight in weights]
    plain = encode_folded(tokens, unpack(halves))
    oracle = encode_folded(tokens.double(), unpack([weight.double() for weight in halves]))
    assert_within_budget(got.cpu(), plain, oracle)
