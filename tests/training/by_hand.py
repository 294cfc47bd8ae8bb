"""The autoencoder and its loss written out for one image, token by token and slot by slot.

Nothing of the package is used but the names of the state dict. Float64; differentiable.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ocvtp_kernels import PrunerConfig

State = dict[str, Tensor]


def norm(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    centred = x - x.sum() / len(x)
    normed = centred / torch.sqrt((centred**2).sum() / len(x) + 1e-5)
    return normed * weight + (0 if bias is None else bias)


def gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def softmax(scores: list[Tensor]) -> list[Tensor]:
    top = max(score.item() for score in scores)
    shares = [torch.exp(score - top) for score in scores]
    return [share / sum(shares) for share in shares]


def encode(state: State, token: Tensor) -> Tensor:
    p = "encode_project.mlp."
    x = norm(token, state[p + "0.weight"], state[p + "0.bias"])
    x = gelu(state[p + "1.weight"] @ x + state[p + "1.bias"])
    return state[p + "4.weight"] @ x + state[p + "4.bias"]


def gru(state: State, x: Tensor, h: Tensor) -> Tensor:
    i = (state["aggregat.gru.weight_ih"] @ x + state["aggregat.gru.bias_ih"]).split(len(h))
    g = (state["aggregat.gru.weight_hh"] @ h + state["aggregat.gru.bias_hh"]).split(len(h))
    reset, update = torch.sigmoid(i[0] + g[0]), torch.sigmoid(i[1] + g[1])
    return (1 - update) * torch.tanh(i[2] + reset * g[2]) + update * h


def iterate(
    state: State, tokens: list[Tensor], slots: list[Tensor]
) -> tuple[list[Tensor], list[list[Tensor]]]:
    """One iteration: new slots, and ``attention[token][slot]``."""
    p = "aggregat."
    queries = [
        state[p + "proj_q.weight"]
        @ norm(s, state[p + "norm_slots_0.weight"], state[p + "norm_slots_0.bias"])
        for s in slots
    ]
    attention, values = [], []
    for token in tokens:
        x = norm(token, state[p + "norm_in.weight"], state[p + "norm_in.bias"])
        key = state[p + "proj_k.weight"] @ x
        attention.append(softmax([(q * key).sum() / math.sqrt(len(q)) for q in queries]))
        values.append(state[p + "proj_v.weight"] @ x)
    new = []
    for k, slot in enumerate(slots):
        mass = sum(row[k] for row in attention) + 1e-5
        update = sum(row[k] / mass * value for row, value in zip(attention, values, strict=True))
        s = gru(state, update, slot)
        x = norm(s, state[p + "norm_slots_1.weight"], state[p + "norm_slots_1.bias"])
        x = gelu(state[p + "ffn.mlp.0.weight"] @ x + state[p + "ffn.mlp.0.bias"])
        new.append(s + state[p + "ffn.mlp.3.weight"] @ x + state[p + "ffn.mlp.3.bias"])
    return new, attention


def attend(
    state: State, p: str, queries: list[Tensor], memory: list[Tensor], heads: int
) -> tuple[list[Tensor], list[Tensor]]:
    """Multi-head attention without biases; the weights are the mean over heads."""
    w_q, w_k, w_v = state[p + "in_proj_weight"].chunk(3)
    width = len(w_q) // heads
    outputs, weights = [], []
    for query in queries:
        parts, mean = [], 0
        for head in range(heads):
            rows = slice(head * width, (head + 1) * width)
            q = (w_q @ query)[rows]
            shares = softmax([(q * (w_k @ m)[rows]).sum() / math.sqrt(width) for m in memory])
            parts.append(sum(a * (w_v @ m)[rows] for a, m in zip(shares, memory, strict=True)))
            mean = mean + torch.stack(shares) / heads
        outputs.append(state[p + "out_proj.weight"] @ torch.cat(parts))
        weights.append(mean)
    return outputs, weights


def project(state: State, p: str, x: Tensor) -> Tensor:
    return norm(state[p + "project.weight"] @ x, state[p + "norm.weight"], state[p + "norm.bias"])


def decode(
    state: State,
    config: PrunerConfig,
    tokens: Tensor,
    slots: list[Tensor],
    order: list[int] | None = None,
    keep: int = 0,
) -> tuple[Tensor, Tensor]:
    """Reconstruction ``[N, C]`` and attention ``[K, N]`` of one image.

    With an order, tokens and positions really are permuted, all but the first ``keep`` tokens
    replaced, and both results put back.
    """
    places = list(range(len(tokens))) if order is None else order
    x = []
    for rank, place in enumerate(places):
        token = project(state, "decode.project1.", tokens[place])
        if order is not None and rank >= keep:
            token = state["decode.mask_token"][0, 0]
        token = token + state["decode.posit_embed._pe"][0, place]
        x.append(norm(token, state["decode.norm0.weight"], None))
    memory = [project(state, "decode.project2.", slot) for slot in slots]
    weights: list[Tensor] = []
    for depth in range(config.backbone_nlayer):
        p, heads = f"decode.backbone.layers.{depth}.", config.transformer_nhead
        normed = x if depth == 0 else [norm(t, state[p + "norm1.weight"], None) for t in x]
        seen, _ = attend(state, p + "self_attn.", normed, normed, heads)
        x = [a + b for a, b in zip(x, seen, strict=True)]
        normed = [norm(t, state[p + "norm2.weight"], None) for t in x]
        seen, weights = attend(state, p + "multihead_attn.", normed, memory, heads)
        x = [a + b for a, b in zip(x, seen, strict=True)]
        hidden = [
            gelu(state[p + "linear1.weight"] @ norm(t, state[p + "norm3.weight"], None)) for t in x
        ]
        x = [t + state[p + "linear2.weight"] @ h for t, h in zip(x, hidden, strict=True)]
    back = [places.index(place) for place in range(len(tokens))]
    return torch.stack([x[r] for r in back]), torch.stack([weights[r] for r in back]).T


def reconstruct(
    state: State,
    config: PrunerConfig,
    tokens: Tensor,
    slots_init: Tensor,
    order: list[int] | None = None,
    keep: int = 0,
    before_last: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Of one image: slots, attention, decoder attention, reconstruction, and the slots that the
    last iteration started from, which ``before_last`` replaces if given."""
    encoded = [encode(state, token) for token in tokens]
    slots = list(slots_init)
    for _ in range(config.agg_num_iter - 1):
        slots, _ = iterate(state, encoded, slots)
    start = torch.stack(slots) if before_last is None else before_last
    slots, attention = iterate(state, encoded, list(start))
    by_slot = torch.stack([torch.stack(row) for row in attention]).T
    out, seen = decode(state, config, tokens, slots, order, keep)
    return torch.stack(slots), by_slot, seen, out, start


def image_loss(
    reconstruction: Tensor,
    target: Tensor,
    attention: Tensor,
    power_p: float = 0.5,
    cap_w: float = 10.0,
    norm_mode: str = "mean1",
    reduce_channel: str = "mean",
) -> Tensor:
    """Area-weighted MSE of one image: ``[N, C]``, ``[N, C]``, ``[K, N]``."""
    num_slots, num_tokens = attention.shape
    shares = attention.tolist()
    owned = [0] * num_slots
    for n in range(num_tokens):
        column = [shares[k][n] for k in range(num_slots)]
        owned[column.index(max(column))] += 1
    weights = [max(count / num_tokens, 1e-8) ** -power_p for count in owned]
    if norm_mode != "none":
        total = sum(weights) / (num_slots if norm_mode == "mean1" else 1)
        weights = [weight / total for weight in weights]
    weights = [min(weight, cap_w) for weight in weights]
    alphas = [sum(shares[k][n] * weights[k] for k in range(num_slots)) for n in range(num_tokens)]
    loss = torch.zeros((), dtype=torch.float64)
    for n, alpha in enumerate(alphas):
        error = ((reconstruction[n] - target[n]) ** 2).sum()
        loss = loss + alpha * (error / target.shape[1] if reduce_channel == "mean" else error)
    return loss / max(sum(alphas), 1e-8)
