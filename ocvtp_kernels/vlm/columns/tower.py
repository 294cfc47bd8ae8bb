"""Vision encoders of images of any size, whose merger makes one token of every unit of patches.

Images are one row of patches, unit by unit. The end of the encoder can be computed for some units
alone, without waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ocvtp_kernels.vlm.intercept import Forward, Intercepts, is_changed


class Units(NamedTuple):
    """The units to finish, image by image."""

    patches: Tensor  # int64 [K * patches], in the order in which blocks run
    counts: list[int]  # units of each image, K in all


class UnitTower:
    """The encoder of Qwen2-VL, and what those after it have in common.

    Args:
        visual: the encoder.

    Attributes:
        blocks: of the encoder.
        unit: patches of a merged token.
    """

    def __init__(self, visual: Any) -> None:
        self.visual = visual
        # A list: reading a ModuleList is slow.
        self.blocks: list[Any] = list(visual.blocks)
        self.merge = int(visual.spatial_merge_size)
        self.unit = self.merge**2

    @property
    def width(self) -> int:
        """Channels of a patch's token."""
        return int(self.blocks[0].attn.dim)

    def arguments(self, grid: Tensor, device: torch.device) -> dict[str, Tensor]:
        """What the encoder would compute from the images' sizes, waiting for the device.

        Args:
            grid: patches of each image: time, height, width; int64 ``[images, 3]``, on the CPU.
            device: where the encoder runs.
        """
        from transformers.vision_utils import get_vision_cu_seqlens, get_vision_position_ids

        positions = get_vision_position_ids(grid, self.merge)
        bounds = get_vision_cu_seqlens(grid)
        return {"position_ids": positions.to(device), "cu_seqlens": self.place(bounds, device)}

    def place(self, bounds: Tensor, device: torch.device) -> Tensor:
        """Bounds of attention, where they are read."""
        # sdpa and eager read them on the host, in every block; flash attention on the device.
        on_host = self.visual.config._attn_implementation in ("sdpa", "eager")
        return bounds if on_host else bounds.to(device)

    def unit_order(self, arguments: dict[str, Tensor]) -> Tensor | None:
        """The unit at each index in the order in which blocks run; None: that of the images."""
        return None

    def attends_whole(self, block: int) -> bool:
        """Whether patches of a block attend to all of their image."""
        return True

    def finish_units(
        self, intercepts: Intercepts, choose: Callable[[], Units], lengths: list[int], layer: int
    ) -> list[Tensor]:
        """Makes the encoder finish only some units, chosen before its last block or after it.

        The last block computes queries, projection and MLP for their patches alone where it
        attends over whole images, and the merger merges them alone.

        Args:
            intercepts: of the call.
            choose: returns the units, any number of times.
            lengths: patches of each image.
            layer: the reference layer; where it is the last block, that computes everything.

        Returns:
            A list that holds ``[K, D]`` after the encoder has run: the merger's output of the
            units, in the order chosen. The encoder itself then returns tokens of no channels.
        """
        merged: list[Tensor] = []
        merger, last, unit = self.visual.merger, len(self.blocks) - 1, self.unit
        block = self.blocks[last]

        def run_block(original: Forward, hidden_states: Tensor, **kwargs: Any) -> Any:
            # An image of several frames attends within each frame, which compute_rows does not.
            if len(kwargs["cu_seqlens"]) != len(lengths) + 1:
                return original(hidden_states, **kwargs)
            units = choose()
            bounds = [unit * count for count in units.counts], lengths
            embeddings = kwargs["position_embeddings"]
            return compute_rows(block, hidden_states, units.patches, bounds, embeddings)

        def run_merger(original: Forward, hidden_states: Tensor) -> Tensor:
            output: Tensor = original(self.take_units(hidden_states, choose(), lengths))
            return output

        def take_merged(output: Tensor) -> Tensor:
            merged.append(output)
            # The encoder may reorder all units, which is free without channels.
            return output.new_empty(sum(lengths) // unit, 0)

        is_known = not is_changed(block, hooks=False) and not is_changed(block.attn)
        if layer < last and self.attends_whole(last) and is_known:
            intercepts.replace(block, run_block)
        intercepts.replace(merger, run_merger)
        intercepts.watch(merger, take_merged)
        return merged

    def patches_of(self, units: Tensor) -> Tensor:
        """Indices int64 ``[K * patches]`` of the patches of units ``[K]``."""
        patches = torch.arange(self.unit, device=units.device)
        return (units[:, None] * self.unit + patches).flatten()

    def take_units(self, hidden_states: Tensor, units: Units, lengths: list[int]) -> Tensor:
        """The patches of the units; as they are where a block has computed these alone."""
        is_whole = len(hidden_states) == sum(lengths)
        return hidden_states[units.patches] if is_whole else hidden_states

    def extra_outputs(self, output: Any, take: Callable[[Tensor], list[Tensor]]) -> dict[str, Any]:
        """What the encoder's output has beside the merged tokens, of the kept units.

        Args:
            output: of the encoder.
            take: the kept ones ``[T_i, D]`` of each image, of features of all or of the kept units.
        """
        return {}

    def average_units(self, states: Tensor, unit_index: Tensor | None) -> Tensor:
        """The mean of the patches of each unit, in the images' order: ``[units, C]``.

        Args:
            states: ``[patches, C]``, the output of a block.
            unit_index: int64 ``[units]``, of each unit in the order of the blocks; None: the same.
        """
        # The mean first, so that fewer rows are reordered.
        units = states.reshape(-1, self.unit, states.shape[-1]).mean(1)
        return units if unit_index is None else units[unit_index]


def compute_rows(
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
    cos, sin = (torch.cat([part.index_select(0, rows), part]) for part in position_embeddings)
    rotated = _rotate(torch.cat([query, key], 1), cos, sin)
    query, key = rotated.split([len(rows), len(hidden_states)], 1)
    queries, lengths = bounds
    if len(lengths) == 1:
        mixed = _attend(query, key, value, attention.scaling)
    else:
        parts = (query.split(queries, 1), key.split(lengths, 1), value.split(lengths, 1))
        images = zip(*parts, strict=True)
        mixed = torch.cat([_attend(*image, attention.scaling) for image in images], 1)
    states = hidden_states.index_select(0, rows) + attention.proj(mixed.transpose(0, 1).flatten(1))
    result: Tensor = states + block.mlp(block.norm2(states))
    return result


def _attend(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Attention of one image: ``[heads, R, d]`` of its queries."""
    return F.scaled_dot_product_attention(query[None], key[None], value[None], scale=scale)[0]


def _project(attention: Any, normed: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries ``[heads, R, d]`` of the rows, keys and values ``[heads, patches, d]`` of all."""
    linear, heads = attention.qkv, attention.num_heads
    length, width = normed.shape
    if not _is_plain(linear):
        # An adapter or a quantized layer computes more than its weight says.
        query, key, value = linear(normed).view(length, 3, heads, -1).permute(1, 2, 0, 3)
        return query[:, rows], key, value
    first, rest = linear.weight.split([width, 2 * width])
    bias, biases = (None, None) if linear.bias is None else linear.bias.split([width, 2 * width])
    query = F.linear(normed.index_select(0, rows), first, bias).view(len(rows), heads, -1)
    key, value = F.linear(normed, rest, biases).view(length, 2, heads, -1).permute(1, 2, 0, 3)
    return query.transpose(0, 1), key, value


def _is_plain(linear: nn.Module) -> bool:
    """Whether a layer is a Linear of plain weights, without code of others."""
    if type(linear) is not nn.Linear or "forward" in vars(linear):
        return False
    if linear._forward_hooks or linear._forward_pre_hooks:
        return False
    parameters = linear._parameters.values()
    return all(each is None or type(each) in (Tensor, nn.Parameter) for each in parameters)


def _rotate(tokens: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions of ``[heads, N, d]``, in float32 as the model has them."""
    upcast = tokens.float()
    first, second = upcast.chunk(2, -1)
    swapped = torch.cat([-second, first], -1)
    rotated = upcast * cos.float() + swapped * sin.float()
    return rotated.to(tokens.dtype)
