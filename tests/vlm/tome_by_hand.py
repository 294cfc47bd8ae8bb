"""ToMe in a CLIP or SigLIP tower, token by token."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


class Group:
    """Patches that have become one token."""

    def __init__(self, token: Tensor, members: list[int], place: int) -> None:
        self.token, self.members, self.place = token, members, place

    @property
    def size(self) -> int:
        return len(self.members)


def attend(layer: Any, groups: list[Group]) -> tuple[Tensor, Tensor]:
    """The attention's output and the keys, mean over heads, with log(size) on the logits."""
    attention = layer.self_attn
    normed = layer.layer_norm1(torch.stack([group.token for group in groups]))
    q, k, v = (
        getattr(attention, f"{name}_proj")(normed).unflatten(-1, (attention.num_heads, -1))
        for name in "qkv"
    )
    logits = torch.einsum("ihd,jhd->hij", q, k) * q.shape[-1] ** -0.5
    logits += torch.tensor([math.log(group.size) for group in groups], dtype=logits.dtype)
    mixed = torch.einsum("hij,jhd->ihd", logits.softmax(-1), v)
    return attention.out_proj(mixed.flatten(1)), k.mean(1)


def merge(groups: list[Group], keys: Tensor, count: int, prefix: int) -> list[Group]:
    """The groups after the ``count`` best of A have merged."""
    units = [key / key.norm() for key in keys]
    candidates = []
    for a in range(len(groups)):
        others = [b for b in range(prefix, len(groups)) if b % 2]
        if a % 2 == 0 and a >= prefix and others:
            scores = [float(units[a] @ units[b]) for b in others]
            best = max(range(len(others)), key=lambda at: (scores[at], -at))
            candidates.append((-scores[best], a, others[best]))
    for _, a, b in sorted(candidates)[:count]:
        into, one = groups[b], groups[a]
        total = into.token * into.size + one.token * one.size
        token = total / (into.size + one.size)
        groups[b] = Group(token, into.members + one.members, into.place)
    gone = {a for _, a, _ in sorted(candidates)[:count]}
    return [group for at, group in enumerate(groups) if at not in gone]


@torch.no_grad()
def merged_tokens(tower: Any, pixels: Tensor, merges: list[int], prefix: int) -> list[list[Group]]:
    """The groups of each image behind as many layers as there are numbers."""
    inner = getattr(tower, "vision_model", tower)
    embedded = inner.embeddings(pixels)
    if hasattr(inner, "pre_layrnorm"):
        embedded = inner.pre_layrnorm(embedded)
    images = []
    for image in embedded:
        groups = [Group(token, [place], place) for place, token in enumerate(image)]
        for layer, count in zip(inner.encoder.layers, merges, strict=False):
            mixed, keys = attend(layer, groups)
            for group, row in zip(groups, mixed, strict=True):
                group.token = group.token + row
            groups = merge(groups, keys, count, prefix)
            rows = torch.stack([group.token for group in groups])
            rows = rows + layer.mlp(layer.layer_norm2(rows))
            for group, row in zip(groups, rows, strict=True):
                group.token = row
        images.append(groups)
    return images
