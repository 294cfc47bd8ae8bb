"""The vision encoder of Qwen2.5-VL: from images of any size to the kept merged tokens."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from ocvtp_kernels.selectors.interface import Selected, Selector, SelectorInputs, reads_of
from ocvtp_kernels.vlm.columns import join_ids
from ocvtp_kernels.vlm.handle import Handle, Options
from ocvtp_kernels.vlm.pending_selection import PendingSelection
from ocvtp_kernels.vlm.qwen_rows import Units, finish_units, grid_arguments

# The fields of `SelectorInputs` that the encoder fills.
AVAILABLE_FIELDS = frozenset({"reference_tokens", "final_tokens", "grid"})


class QwenEncoder:
    """Encodes images and keeps ``budget`` merged tokens of each, or all where there are no more.

    Args:
        selector: chooses the tokens.
        budget: tokens to keep of an image.
        layer: block of the encoder whose output the decision is made on.
        handle: where ids and times are recorded.
        options: ``skip_unused_layers``, with a selector that reads no final tokens: the rest of
            the encoder computes only what the kept tokens need. ``overlap`` and ``timed`` as for
            `PendingSelection`.
    """

    def __init__(
        self, selector: Selector, budget: int, layer: int, handle: Handle, options: Options
    ) -> None:
        self.selector, self.budget, self.layer = selector, budget, layer
        self.handle, self.options = handle, options
        reads = reads_of(selector) & AVAILABLE_FIELDS
        self.selects_early = options.skip_unused_layers and reads <= {"reference_tokens"}

    def encode(
        self, inner: Any, pixel_values: Tensor, grids: list[list[int]]
    ) -> tuple[list[Tensor], Any]:
        """Encodes the images of one call.

        Args:
            inner: the ``Qwen2_5_VLModel``.
            pixel_values: ``[patches, C]``, all images in a row.
            grids: patches of each image: time, height, width.

        Returns:
            ids int64 ``[T_i]`` of each image, and the encoder's output with those tokens only.
        """
        visual, device = inner.visual, pixel_values.device
        lengths = [t * h * w for t, h, w in grids]
        grid = torch.tensor(grids)
        arguments = grid_arguments(visual, grid, device)
        call = _Call(self, visual, grids, arguments["window_index"].argsort())
        # Not in training, which may run blocks again for their gradients.
        is_early = self.selects_early and max(call.sizes) > self.budget and not visual.training
        with self.handle.stage("encoder", device), ExitStack() as stack:
            hook = visual.blocks[self.layer].register_forward_hook(call.start)
            stack.callback(hook.remove)
            if is_early:
                is_last = self.layer == len(visual.blocks) - 1
                merged = stack.enter_context(
                    finish_units(visual, call.finish_early, lengths, is_last)
                )
            # The grid stays on the CPU, where it is read.
            output = inner.get_image_features(pixel_values, grid, return_dict=True, **arguments)
        if is_early:
            tokens = list(merged[0].split([len(image) for image in call.ids]))
        else:
            tokens = call.finish(output.pooler_output)
        self.handle.record(call.ids)
        return call.ids, type(output)(pooler_output=tokens)


class _Call:
    """The selection of one call's tokens; images of the same grid form a batch."""

    def __init__(
        self, encoder: QwenEncoder, visual: Any, grids: list[list[int]], unit_index: Tensor
    ) -> None:
        merge = visual.spatial_merge_size
        self._grids = [(t * h // merge, w // merge) for t, h, w in grids]
        self.sizes = [rows * columns for rows, columns in self._grids]
        self._visual, self._unit_index = visual, unit_index
        self._handle, self._budget, device = encoder.handle, encoder.budget, unit_index.device
        self._pending = PendingSelection(encoder.selector, encoder.handle, device, encoder.options)
        groups: dict[tuple[int, int], list[int]] = {}
        for image, grid in enumerate(self._grids):
            if self.sizes[image] > encoder.budget:
                groups.setdefault(grid, []).append(image)
        self._groups = list(groups.values())
        self._reference_tokens: list[Tensor] = []
        self.ids = [torch.arange(size, device=device) for size in self.sizes]

    def start(self, _block: nn.Module, _args: Any, output: Tensor) -> None:
        """Starts the selection; a forward hook of the reference layer."""
        with self._handle.stage("pruner", output.device):
            units = average_units(self._visual, output.detach(), self._unit_index).split(self.sizes)
            for group in self._groups:
                self._reference_tokens.append(torch.stack([units[image] for image in group]))
                self._pending.start(self._reference_tokens[-1], self._budget)

    def finish(self, features: Sequence[Tensor]) -> list[Tensor]:
        """The kept ones ``[T_i, D]`` of each image's merged tokens; sets `ids`."""
        tokens = list(features)
        for index, group in enumerate(self._groups):
            final_tokens = torch.stack([features[image] for image in group])
            kept = self._select(index, final_tokens).gather(final_tokens)
            for image, rows in zip(group, kept, strict=True):
                tokens[image] = rows
        return tokens

    def _select(self, index: int, final_tokens: Tensor) -> Selected:
        group = self._groups[index]
        inputs = SelectorInputs(
            self._reference_tokens[index], final_tokens, grid=self._grids[group[0]]
        )
        selected = self._pending.finish(inputs, index)
        for image, ids in zip(group, selected.ids, strict=True):
            self.ids[image] = ids
        return selected

    def finish_early(self) -> Units:
        """The kept units, before there are merged tokens; sets `ids`."""
        for index, reference_tokens in enumerate(self._reference_tokens):
            self._select(index, reference_tokens)
        with self._handle.stage("pruner", self._unit_index.device):
            kept = join_ids(self.ids, self.sizes)
            return Units(self._unit_index[kept], [len(image) for image in self.ids])


def merge_units(visual: Any, states: Tensor, grid_thw: Tensor) -> Tensor:
    """One reference token a merged token: the mean of its patches, in the merger's order.

    Args:
        visual: the vision encoder.
        states: ``[patches, C]``, the output of a block. Blocks run in the order of their attention
            windows; only the merger's output is in the images' order.
        grid_thw: int64 ``[images, 3]``.

    Returns:
        ``[patches / 4, C]``
    """
    order = grid_arguments(visual, grid_thw.cpu(), states.device)["window_index"]
    return average_units(visual, states, order.argsort())


def average_units(visual: Any, states: Tensor, unit_index: Tensor) -> Tensor:
    """The mean of each unit, in the images' order: ``[patches / 4, C]``.

    Args:
        unit_index: int64 ``[patches / 4]``, of each unit in the order of the windows.
    """
    # The mean first, so that a quarter of the rows is reordered.
    return states.unflatten(0, (-1, visual.spatial_merge_unit)).mean(1)[unit_index]
