"""A tower whose tokens merge, beside the whole one: ``python -m bench run --suite merging``.

The whole tower, the one that merges by ToMe's schedule and the merging alone take turns: the layers
that make LLaVA's tokens, of random weights. The gate is that the ops' references merge the same
tokens. FLOPs are counted by `ocvtp_kernels.cost`; what the clock says is beside them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from bench.processes import add
from bench.results import ProcessRow, Results, Versus
from bench.timing import measure
from ocvtp_kernels.backends import use_backend
from ocvtp_kernels.cost import flops
from ocvtp_kernels.cost.layers import merges_by_name
from ocvtp_kernels.cost.models import CLIP_L_336, VisionTower
from ocvtp_kernels.selectors.interface import Selected
from ocvtp_kernels.selectors.similarity import mean_over_heads
from ocvtp_kernels.selectors.tome import MergedTokens
from ocvtp_kernels.vlm.towers import Tower

BUDGETS = (64, 128, 192)
FINAL_LAYER = -2
PATCH = 14
SECONDS = 60.0  # about how long for a budget, on a CPU
ROUNDS = (3, 40)
TINY = replace(CLIP_L_336, layers=4, width=128, ffn_width=256, grid=(6, 6))


def make_tower(shape: VisionTower, device: torch.device) -> Tower:
    """A CLIP tower of random weights; float32 on a CPU, else bfloat16."""
    import transformers

    torch.manual_seed(0)
    config = transformers.CLIPVisionConfig(
        num_hidden_layers=shape.layers,
        hidden_size=shape.width,
        intermediate_size=shape.ffn_width,
        num_attention_heads=shape.width // shape.head_width,
        image_size=shape.grid[0] * PATCH,
        patch_size=PATCH,
    )
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    return Tower.of(transformers.CLIPVisionModel(config).eval().to(device, dtype))


def merging_alone(tower: Tower, shape: VisionTower, merges: Sequence[int]) -> Callable[[], Tensor]:
    """What the tower does more than the whole one, layer by layer, on tokens of its shapes."""
    weight = tower.layers[0].get_parameter("layer_norm1.weight")
    tokens = [shape.vision_tokens + shape.class_tokens]
    for merged in merges:
        tokens.append(tokens[-1] - merged)
    rows = [torch.randn(1, n, shape.width).to(weight) for n in tokens]
    heads = shape.width // shape.head_width

    def run() -> Tensor:
        merged = MergedTokens(1, tokens[0], weight.device)
        for states, count in zip(rows, merges, strict=False):
            if merged.sizes is not None:
                merged.sizes.log().to(states.dtype)
            merged.merge(states, mean_over_heads(states, heads), count, shape.class_tokens)
        return merged.ids

    return run


def is_same(one: Selected, other: Selected) -> bool:
    """Whether two towers merged the same tokens into the same."""
    assert one.tokens is not None and other.tokens is not None
    close = torch.allclose(one.tokens.float(), other.tokens.float(), rtol=2e-2, atol=2e-2)
    return close and torch.equal(one.ids, other.ids)


@torch.no_grad()
def run(results: Results, folder: Path, device: torch.device, short: bool, deadline: float) -> int:
    """Measures every budget, saving after each; returns how many are refused."""
    shape, budgets = (TINY, (8,)) if short else (CLIP_L_336, BUDGETS)
    tower, refused = make_tower(shape, device), 0
    pixels = torch.randn(1, 3, *(side * PATCH for side in shape.grid))
    pixels = pixels.to(tower.layers[0].get_parameter("layer_norm1.weight"))
    # LLaVA's final tokens are the output of all layers but the last.
    whole = flops.vision_tower(replace(shape, layers=shape.layers - 1))
    for budget in budgets:
        if time.monotonic() > deadline:
            print(f"out of time: {budget} tokens and what comes after are left out")
            break
        merges = merges_by_name("tome", budget, shape)

        def merged(merges: Sequence[int] = merges) -> Selected:
            return tower.encode_merged(pixels, FINAL_LAYER, merges)

        with use_backend("reference"):
            expected = merged()
        if not is_same(merged(), expected):
            print(f"{budget} tokens refused: the ops' references merge others")
            refused += 1
            continue
        times = measure(
            {
                "whole": lambda: tower.encode(pixels, 0, FINAL_LAYER).final_tokens,
                "merged": merged,
                "alone": merging_alone(tower, shape, merges),
            },
            device=device,
            seconds=SECONDS / 10 if short or device.type == "cuda" else SECONDS,
            rounds=ROUNDS,
        )
        name = f"CLIP, {budget} of {shape.vision_tokens} tokens"
        for what, ours in (("the tower", times["merged"]), ("merging", times["alone"])):
            add(results, folder, ProcessRow(name, what, "s", Versus(times["whole"], ours)))
        left = flops.vision_tower(replace(shape, layers=shape.layers - 1), merges)
        print(
            f"{budget} tokens: {1 - left / whole:.1%} of the FLOPs and "
            f"{1 - times['merged'].median / times['whole'].median:.1%} of the time saved; merging "
            f"takes {times['alone'].median / times['whole'].median:.1%} of the whole tower's time",
            flush=True,
        )
    return refused
