"""The vision encoder of Qwen2.5-VL: images of any size in, the merged tokens to keep out."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from ocvtp_kernels.selectors.interface import Evidence, Selected, Selector, reads_of
from ocvtp_kernels.vlm.choice import Choice
from ocvtp_kernels.vlm.handle import Handle, Options
from ocvtp_kernels.vlm.qwen_positions import join_ids
from ocvtp_kernels.vlm.qwen_rows import Units, finish_units, plan

# The fields of `Evidence` that the encoder can tell.
KNOWN = frozenset({"reference_tokens", "final_tokens", "grid"})


class QwenEncoder:
    """Encodes images and keeps ``budget`` merged tokens of each, or all where there are no more.

    Args:
        selector: what chooses the tokens.
        budget: tokens to keep of an image.
        layer: block of the encoder whose output the decision is made on.
        handle: where ids and times are recorded.
        options: ``savings``, with a selector that needs no final tokens: the rest of the encoder
            leaves out what the kept tokens do not need. ``overlap`` and ``timed`` as for `Choice`.
    """

    def __init__(
        self, selector: Selector, budget: int, layer: int, handle: Handle, options: Options
    ) -> None:
        self.selector, self.budget, self.layer = selector, budget, layer
        self.handle, self.options = handle, options
        self.saves = options.savings and reads_of(selector) & KNOWN <= {"reference_tokens"}

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
        planned = plan(visual, grid, device)
        call = _Call(self, visual, grids, planned["window_index"].argsort())
        # Training may run blocks again for their gradients, when nothing is left out any more.
        saves = self.saves and max(call.sizes) > self.budget and not visual.training
        with self.handle.stage("encoder", device), ExitStack() as stack:
            hook = visual.blocks[self.layer].register_forward_hook(call.begin)
            stack.callback(hook.remove)
            if saves:
                whole = self.layer == len(visual.blocks) - 1
                merged = stack.enter_context(
                    finish_units(visual, call.finish_early, lengths, whole)
                )
            # On the CPU, where the sizes of the features are read from it.
            output = inner.get_image_features(pixel_values, grid, return_dict=True, **planned)
        if saves:
            tokens = list(merged[0].split([len(image) for image in call.ids]))
        else:
            tokens = call.finish(output.pooler_output)
        self.handle.record(call.ids)
        return call.ids, type(output)(pooler_output=tokens)


class _Call:
    """The choice of one call's tokens; images of one grid are chosen from together."""

    def __init__(
        self, encoder: QwenEncoder, visual: Any, grids: list[list[int]], places: Tensor
    ) -> None:
        merge = visual.spatial_merge_size
        self._grids = [(t * h // merge, w // merge) for t, h, w in grids]
        self.sizes = [rows * columns for rows, columns in self._grids]
        self._visual, self._places = visual, places
        self._handle, self._budget, device = encoder.handle, encoder.budget, places.device
        self._choice = Choice(encoder.selector, encoder.handle, device, encoder.options)
        groups: dict[tuple[int, int], list[int]] = {}
        for image, grid in enumerate(self._grids):
            if self.sizes[image] > encoder.budget:
                groups.setdefault(grid, []).append(image)
        self._groups = list(groups.values())
        self._reference: list[Tensor] = []
        self.ids = [torch.arange(size, device=device) for size in self.sizes]

    def begin(self, _block: nn.Module, _args: Any, output: Tensor) -> None:
        """Takes the reference tokens; a hook of the block decided on."""
        with self._handle.stage("pruner", output.device):
            units = average_units(self._visual, output.detach(), self._places).split(self.sizes)
            for group in self._groups:
                self._reference.append(torch.stack([units[image] for image in group]))
                self._choice.begin(self._reference[-1], self._budget)

    def finish(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Merged tokens of each image in, those kept ``[T_i, D]`` out; makes `ids` their ids."""
        tokens = list(features)
        for index, group in enumerate(self._groups):
            final = torch.stack([features[image] for image in group])
            kept = self._choose(index, final).gather(final)
            for image, rows in zip(group, kept, strict=True):
                tokens[image] = rows
        return tokens

    def _choose(self, index: int, final: Tensor) -> Selected:
        group = self._groups[index]
        evidence = Evidence(self._reference[index], final, grid=self._grids[group[0]])
        selected = self._choice.finish(evidence, index)
        for image, ids in zip(group, selected.ids, strict=True):
            self.ids[image] = ids
        return selected

    def finish_early(self) -> Units:
        """As `finish`, before there are merged tokens."""
        for index, reference in enumerate(self._reference):
            self._choose(index, reference)
        with self._handle.stage("pruner", self._places.device):
            kept = join_ids(self.ids, self.sizes)
            return Units(self._places[kept], [len(image) for image in self.ids])


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
    order = plan(visual, grid_thw.cpu(), states.device)["window_index"]
    return average_units(visual, states, order.argsort())


def average_units(visual: Any, states: Tensor, places: Tensor) -> Tensor:
    """The mean of each unit, taken out of the order of windows: ``[patches / 4, C]``."""
    # The mean first: a quarter of the rows to put back in order.
    return states.unflatten(0, (-1, visual.spatial_merge_unit)).mean(1)[places]
