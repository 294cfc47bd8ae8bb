"""The vision encoder of Qwen2.5-VL: images of any size in, the merged tokens to keep out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ocvtp_kernels.vlm.handle import Handle
from ocvtp_kernels.vlm.selectors import Evidence, Selector, select


class QwenEncoder:
    """Encodes images and keeps ``budget`` merged tokens of each, or all where there are no more.

    Args:
        selector: what chooses the tokens.
        budget: tokens to keep of an image.
        layer: block of the encoder whose output the decision is made on.
        handle: where ids and times are recorded.
    """

    def __init__(self, selector: Selector, budget: int, layer: int, handle: Handle) -> None:
        self.selector, self.budget, self.layer, self.handle = selector, budget, layer, handle

    def encode(
        self, inner: Any, pixel_values: Tensor, grid_thw: Tensor, sizes: list[int]
    ) -> tuple[list[Tensor], Any]:
        """Encodes the images of one call.

        Args:
            inner: the ``Qwen2_5_VLModel``.
            pixel_values: ``[patches, C]``, all images in a row.
            grid_thw: int64 ``[images, 3]``.
            sizes: merged tokens of each image.

        Returns:
            ids int64 ``[T_i]`` of each image, and the encoder's output with those tokens only.
        """
        device, block = pixel_values.device, inner.visual.blocks[self.layer]
        with self.handle.stage("encoder", device), _outputs_of(block) as states:
            output = inner.get_image_features(pixel_values, grid_thw, return_dict=True)
        features = output.pooler_output
        with self.handle.stage("pruner", device):
            units = merge_units(inner.visual, states[0], grid_thw)
            ids = self._choose(units.split(sizes), features)
        tokens = [part[kept] for part, kept in zip(features, ids, strict=True)]
        self.handle.record(ids)
        return ids, type(output)(pooler_output=tokens)

    def _choose(self, reference: tuple[Tensor, ...], features: tuple[Tensor, ...]) -> list[Tensor]:
        """Ids of each image; images of one size are chosen from together."""
        ids = [torch.arange(len(tokens), device=tokens.device) for tokens in features]
        groups: dict[int, list[int]] = {}
        for image, tokens in enumerate(features):
            if len(tokens) > self.budget:
                groups.setdefault(len(tokens), []).append(image)
        for group in groups.values():
            evidence = Evidence(
                torch.stack([reference[image] for image in group]),
                torch.stack([features[image] for image in group]),
            )
            chosen = select(self.selector, evidence, self.budget)
            for image, kept in zip(group, chosen, strict=True):
                ids[image] = kept
        return ids


def merge_units(visual: Any, states: Tensor, grid_thw: Tensor) -> Tensor:
    """One reference token a merged token: the mean of its patches, in the merger's order.

    Args:
        visual: the vision encoder.
        states: ``[patches, C]``, the output of a block. Blocks run in the order of their attention
            windows, which only the merger's output is taken out of.
        grid_thw: int64 ``[images, 3]``.

    Returns:
        ``[patches / 4, C]``
    """
    from transformers.vision_utils import get_vision_window_index

    order, _ = get_vision_window_index(
        grid_thw,
        spatial_merge_size=visual.spatial_merge_size,
        window_size=visual.window_size,
        patch_size=visual.patch_size,
    )
    # The mean first: a quarter of the rows to put back in order.
    units = states.unflatten(0, (-1, visual.spatial_merge_unit)).mean(1)
    return units[order.to(units.device).argsort()]


@contextmanager
def _outputs_of(block: nn.Module) -> Iterator[list[Tensor]]:
    """What a block puts out within the block, detached.

    ``output_hidden_states`` would keep every layer's patches of all images of the batch alive.
    """
    outputs: list[Tensor] = []

    def keep(_module: nn.Module, _args: Any, output: Any) -> None:
        state = output if isinstance(output, Tensor) else output[0]
        outputs.append(state.detach())

    hook = block.register_forward_hook(keep)
    try:
        yield outputs
    finally:
        hook.remove()
