from __future__ import annotations

from dataclasses import replace
from math import prod

import pytest

from ocvtp_kernels import PrunerConfig
from ocvtp_kernels.cost.work import PruneCall, Work
from tests.cost.cases import SMALL_PRUNER

B, N, K, T, C, D, H = 2, 40, 7, 5, 24, 16, 64
CONFIG = PrunerConfig(
    enc_in_dim=C, enc_dims=(H, D), init_dim=D, agg_embed_dim=D, agg_ffn_dim=H, agg_num_iter=3
)


def tensors(*shapes: tuple[int, ...], size: int = 2) -> int:
    return sum(size * prod(shape) for shape in shapes)


def test_a_step_reads_its_inputs_and_writes_its_outputs() -> None:
    steps = PruneCall(CONFIG, B, N, K, T, C, 2).steps()
    slots, per_slot = tensors((B, K, D)), tensors((B, K), size=4)
    wide = tensors((B, K, D), size=4)
    # The query's weight has a column for the constant of the logits, which is float32.
    query = tensors((B, K, D), (D + 1, D + 1), (B, K, D)) + per_slot
    up = tensors((B, N, C), (H, C), (H,), (B, N, H))
    assert steps["encode_up+query"] == Work(2 * B * N * C * H + 2 * B * K * D * (D + 1), up + query)
    attention = tensors((B, K, D), (B, N, D), (B, K, D)) + 2 * per_slot
    assert steps["slot_attention_fwd"] == Work(8 * B * K * N * D, 2 * attention)
    gates = tensors((3 * D, D), (3 * D, D), (3 * D,), (3 * D,), (3 * D,))
    # Initial slots are narrow, later ones float32.
    assert steps["gru"].bytes == 2 * (slots + per_slot + gates + wide) + slots + wide
    chosen = tensors((B, T, C), (B, T, C)) + tensors((B, K), (B, T), size=8)
    assert steps["resolve"] == Work(0, chosen + tensors((B, N), size=4))


@pytest.mark.parametrize("iterations", [1, 2, 3])
@pytest.mark.parametrize("config", [CONFIG, SMALL_PRUNER, replace(SMALL_PRUNER, enc_dims=(24,))])
def test_the_op_has_the_flops_of_its_steps_and_fewer_bytes(
    config: PrunerConfig, iterations: int
) -> None:
    call = PruneCall(replace(config, agg_num_iter=iterations), B, N, K, T, C, 2)
    whole, steps = call.work(), call.steps()
    assert sum(step.flops for step in steps.values()) == whole.flops
    # One iteration alone reads no weights of the update, which the op is given all the same.
    assert iterations == 1 or sum(step.bytes for step in steps.values()) > whole.bytes
    assert all(step.bytes >= 0 for step in steps.values())
