"""The authors' semantics written out again in NumPy, one image at a time, with sets and lists.

Shares no code with the package: LayerNorm, GELU, the GRU, slot attention and the selection with
its CLS bookkeeping are written out here from the published description.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from ocvtp_kernels import OCPruner
from tests.cases import random_pruner, random_tokens, small_config

Array = npt.NDArray[np.float64]
NUM_TOKENS, HEADS = 40, 3


def layer_norm(x: Array, weight: Array, bias: Array) -> Array:
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + 1e-5) * weight + bias


def gelu(x: Array) -> Array:
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def slot_attention(state: dict[str, Array], tokens: Array, slots: Array) -> tuple[Array, Array]:
    """Slots and attention of one image: tokens [N, C], slots [K, D]."""
    enc, agg = "encode_project.mlp.", "aggregat."
    x = layer_norm(tokens, state[enc + "0.weight"], state[enc + "0.bias"])
    x = gelu(x @ state[enc + "1.weight"].T + state[enc + "1.bias"])
    x = x @ state[enc + "4.weight"].T + state[enc + "4.bias"]
    x = layer_norm(x, state[agg + "norm_in.weight"], state[agg + "norm_in.bias"])
    keys, values = x @ state[agg + "proj_k.weight"].T, x @ state[agg + "proj_v.weight"].T
    dim = slots.shape[1]
    for _ in range(3):
        normed = layer_norm(
            slots, state[agg + "norm_slots_0.weight"], state[agg + "norm_slots_0.bias"]
        )
        logits = normed @ state[agg + "proj_q.weight"].T @ keys.T / math.sqrt(dim)
        exponentials = np.exp(logits - logits.max(0))
        attention = exponentials / exponentials.sum(0)
        updates = attention / (attention.sum(1, keepdims=True) + 1e-5) @ values
        gate_i = updates @ state[agg + "gru.weight_ih"].T + state[agg + "gru.bias_ih"]
        gate_h = slots @ state[agg + "gru.weight_hh"].T + state[agg + "gru.bias_hh"]
        reset = sigmoid(gate_i[:, :dim] + gate_h[:, :dim])
        keep = sigmoid(gate_i[:, dim : 2 * dim] + gate_h[:, dim : 2 * dim])
        new = np.tanh(gate_i[:, 2 * dim :] + reset * gate_h[:, 2 * dim :])
        slots = (1 - keep) * new + keep * slots
        normed = layer_norm(
            slots, state[agg + "norm_slots_1.weight"], state[agg + "norm_slots_1.bias"]
        )
        hidden = gelu(normed @ state[agg + "ffn.mlp.0.weight"].T + state[agg + "ffn.mlp.0.bias"])
        slots = slots + hidden @ state[agg + "ffn.mlp.3.weight"].T + state[agg + "ffn.mlp.3.bias"]
    return slots, attention


def published_ids(
    attention: Array, vit_attention: Array, budget: int, top_k: int, cls: bool, mode: str
) -> list[int] | None:
    """Kept ids, CLS counted as 0 where there is one; None where the picks overflow.

    ``vit_attention`` is [H, N + 1, N + 1] with a CLS token, [H, N, N] without.
    """
    target = budget + 1 if cls else budget
    picked = {int(i) + cls for row in attention for i in np.argsort(-row)[:top_k]}
    if cls:
        picked.add(0)
    if len(picked) > target:
        return None
    mean = vit_attention.mean(0)
    scores = mean[0] if mode == "cls" else mean.mean(0)
    for candidate in np.argsort(-scores).tolist():
        if len(picked) < target:
            picked.add(candidate)
    return sorted(picked)


@pytest.fixture(scope="module")
def pruner() -> OCPruner:
    return random_pruner(small_config(), dtype=torch.float64)


@pytest.fixture(scope="module")
def state(pruner: OCPruner) -> dict[str, Array]:
    return {name: tensor.numpy() for name, tensor in pruner.state_dict().items()}


def images(cls: bool) -> dict[str, Any]:
    """Four images: tokens, and a last layer's queries and keys, with or without CLS."""
    return {
        "tokens": random_tokens(4, NUM_TOKENS, 12, dtype=torch.float64, outliers=True),
        "q": random_tokens(4, HEADS, NUM_TOKENS + cls, 8, seed=1, dtype=torch.float64),
        "k": random_tokens(4, HEADS, NUM_TOKENS + cls, 8, seed=2, dtype=torch.float64),
    }


def test_slots_and_attention(pruner: OCPruner, state: dict[str, Array]) -> None:
    tokens = images(False)["tokens"]
    start = pruner.sample_slots(4, 7)
    slots, attention = pruner.attend(tokens, start)
    for image in range(4):
        expected = slot_attention(state, tokens[image].numpy(), start[image].detach().numpy())
        np.testing.assert_allclose(slots[image].detach().numpy(), expected[0], atol=1e-11)
        np.testing.assert_allclose(attention[image].detach().numpy(), expected[1], atol=1e-11)


@pytest.mark.parametrize("frozen", [False, True], ids=["plain", "frozen"])
@pytest.mark.parametrize("cls", [False, True])
@pytest.mark.parametrize("mode", ["meanq", "cls"])
@pytest.mark.parametrize("top_k", [1, 2])
@pytest.mark.parametrize("budget", [1, 5, 9, 24])
def test_ids_alone_and_in_a_batch(
    pruner: OCPruner,
    state: dict[str, Array],
    frozen: bool,
    cls: bool,
    mode: str,
    top_k: int,
    budget: int,
) -> None:
    case = images(cls)
    num_slots = max(1, (budget + cls) // top_k)
    start = pruner.sample_slots(4, num_slots)
    received = torch.ops.ocvtp.attention_received(case["q"], case["k"], mode)
    vit_attention = (case["q"] @ case["k"].mT / math.sqrt(8)).softmax(-1).numpy()
    arguments = (case["tokens"], case["tokens"], budget, received[:, int(cls) :], start)
    try:
        if frozen:
            pruner.freeze()
        together = pruner(*arguments, top_k=top_k).ids
        alone = torch.cat(
            [
                pruner(
                    *(a if isinstance(a, int) else a[image : image + 1] for a in arguments),
                    top_k=top_k,
                ).ids
                for image in range(4)
            ]
        )
    finally:
        pruner.unfreeze()
    assert torch.equal(alone, together)
    for image in range(4):
        _, attention = slot_attention(
            state, case["tokens"][image].numpy(), start[image].detach().numpy()
        )
        expected = published_ids(attention, vit_attention[image], budget, top_k, cls, mode)
        if expected is not None:
            # The published ids count CLS, which is kept besides the budget.
            assert together[image].tolist() == [i - cls for i in expected if i >= cls]
