"""The end of Qwen2.5-VL's vision encoder for the kept units alone, without waits for the device.

A unit is the patches that the merger makes one token of. Blocks run on patches in the order of
their attention windows; an index of a unit here is one in that order, not an id.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Units(NamedTuple):
    """The units to finish, image by image."""

    indices: Tensor  # int64 [K], in the order of the windows
    counts: list[int]  # of each image, K in all


def grid_arguments(visual: Any, grid: Tensor, device: torch.device) -> dict[str, Tensor]:
    """What the encoder would compute from the images' sizes, waiting for the device.

    Args:
        visual: the vision encoder.
        grid: patches of each image: time, height, width; int64 ``[images, 3]``, on the CPU.
        device: where the encoder runs.

    Returns:
        Arguments of the encoder, ``window_index`` (int64 ``[units]``) among them: the unit at each
        index.
    """
    from transformers.vision_utils import (
        get_vision_cu_seqlens,
        get_vision_position_ids,
        get_vision_window_index,
    )

    order, windows = get_vision_window_index(
        grid,
        spatial_merge_size=visual.spatial_merge_size,
        window_size=visual.window_size,
        patch_size=visual.patch_size,
    )
    bounds = {"cu_seqlens": get_vision_cu_seqlens(grid), "cu_window_seqlens": windows}
    # sdpa and eager read the bounds on the host, in every block; flash attention on the device.
    if visual.config._attn_implementation not in ("sdpa", "eager"):
        bounds = {name: bound.to(device) for name, bound in bounds.items()}
    positions = get_vision_position_ids(grid, visual.spatial_merge_size)
    return {"position_ids": positions.to(device), "window_index": order.to(device), **bounds}


@contextmanager
def finish_units(
    visual: Any, choose: Callable[[], Units], lengths: list[int], is_last: bool
) -> Iterator[list[Tensor]]:
    """Makes the encoder finish only some units, chosen before its last block or after it.

    The last block computes queries, projection and MLP for their patches alone where it attends
    over whole images, and the merger merges them alone. Both are restored afterwards.

    Args:
        visual: the vision encoder, not training.
        choose: returns the units; called once.
        lengths: patches of each image.
        is_last: whether the reference layer is the last block, which then computes everything.

    Yields:
        A list that holds ``[K, D]`` after the encoder has run: the merger's output of the units,
        in the order chosen. The encoder itself then returns tokens of no channels.
    """
    merged: list[Tensor] = []
    block, unit = visual.blocks[-1], visual.spatial_merge_unit

    def take_rows() -> tuple[Tensor, list[int]]:
        indices, counts = choose()
        patches = torch.arange(unit, device=indices.device)
        rows = (indices[:, None] * unit + patches).flatten()
        return rows, [unit * count for count in counts]

    def pick(_block: nn.Module, _args: Any, output: Tensor) -> Tensor:
        return output[take_rows()[0]]

    def run_rows(hidden_states: Tensor, **kwargs: Any) -> Tensor:
        rows, queries = take_rows()
        # An image of several frames attends within each frame, which _run_block does not.
        if len(kwargs["cu_seqlens"]) != len(lengths) + 1:
            output: Tensor = type(block).forward(block, hidden_states, **kwargs)
            return output[rows]
        embeddings = kwargs["position_embeddings"]
        return _run_block(block, hidden_states, rows, (queries, lengths), embeddings)

    def take(_merger: nn.Module, _args: Any, output: Tensor) -> Tensor:
        merged.append(output)
        # The encoder then reorders all units; without channels that is free.
        return output.new_empty(sum(lengths) // unit, 0)

    with ExitStack() as stack:
        own, last = vars(block), len(visual.blocks) - 1
        # A forward set on the block, by offloading for example, has to run.
        if is_last or last not in visual.fullatt_block_indexes or "forward" in own:
            stack.callback(block.register_forward_hook(pick).remove)
        else:
            own["forward"] = run_rows
            stack.callback(own.pop, "forward")
        stack.callback(visual.merger.register_forward_hook(take).remove)
        yield merged


def _run_block(
    block: Any,
    hidden_states: Tensor,
    rows: Tensor,
    bounds: tuple[list[int], list[int]],
    position_embeddings: tuple[Tensor, Tensor],
) -> Tensor:
    """A block's output for some patches.

    Args:
        block: the block.
        hidden_states: ``[patches, C]``, its input.
        rows: int64 ``[R]``, the patches.
        bounds: how many of the rows, and of all patches, each image has.
        position_embeddings: cosines and sines ``[patches, C / heads]``.

    Returns:
        ``[R, C]``
    """
    attention = block.attn
    query, key, value = _project(attention, block.norm1(hidden_states), rows)
    # Queries and keys in one call: launching costs more than the work does.
    cos, sin = (torch.cat([part[rows], part]) for part in position_embeddings)
    rotated = _rotate(torch.cat([query, key], 1), cos, sin)
    query, key = rotated.split([len(rows), len(hidden_states)], 1)
    queries, lengths = bounds
    if len(lengths) == 1:
        mixed = _attend(query, key, value, attention.scaling)
    else:
        parts = (query.split(queries, 1), key.split(lengths, 1), value.split(lengths, 1))
        images = zip(*parts, strict=True)
        mixed = torch.cat([_attend(*image, attention.scaling) for image in images], 1)
    states = hidden_states[rows] + attention.proj(mixed.transpose(0, 1).flatten(1))
    result: Tensor = states + block.mlp(block.norm2(states))
    return result


def _attend(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Attention of one image: ``[heads, R, d]`` of its queries."""
    return F.scaled_dot_product_attention(query[None], key[None], value[None], scale=scale)[0]


def _project(attention: Any, normed: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries ``[heads, R, d]`` of the rows, keys and values ``[heads, patches, d]`` of all."""
    linear, heads = attention.qkv, (attention.num_heads, -1)
    plain = type(linear) is nn.Linear and "forward" not in vars(linear)
    if not plain or linear._forward_hooks or linear._forward_pre_hooks:
        # An adapter or a quantized layer computes more than its weight says.
        query, key, value = linear(normed).unflatten(1, (3, *heads)).permute(1, 2, 0, 3)
        return query[:, rows], key, value
    width = normed.shape[1]
    first, rest = linear.weight.split([width, 2 * width])
    bias, biases = (None, None) if linear.bias is None else linear.bias.split([width, 2 * width])
    query = F.linear(normed[rows], first, bias).unflatten(1, heads)
    key, value = F.linear(normed, rest, biases).unflatten(1, (2, *heads)).permute(1, 2, 0, 3)
    return query.transpose(0, 1), key, value


def _rotate(tokens: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions of ``[heads, N, d]``, in float32 as the model has them."""
    upcast = tokens.float()
    first, second = upcast.chunk(2, -1)
    swapped = torch.cat([-second, first], -1)
    rotated = upcast * cos.float() + swapped * sin.float()
    return rotated.to(tokens.dtype)
