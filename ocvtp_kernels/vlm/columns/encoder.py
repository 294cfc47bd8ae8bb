"""From images of any size to the kept merged tokens."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ocvtp_kernels.selectors.interface import Selected, Selector, SelectorInputs, reads_of
from ocvtp_kernels.vlm.columns import join_ids
from ocvtp_kernels.vlm.columns.prompt import read_sizes, take_images
from ocvtp_kernels.vlm.columns.tower import Units, UnitTower
from ocvtp_kernels.vlm.handle import CallRecord, Options
from ocvtp_kernels.vlm.intercept import Intercepts
from ocvtp_kernels.vlm.pending_selection import PendingSelection

# The fields of `SelectorInputs` that the encoder fills.
AVAILABLE_FIELDS = frozenset({"reference_tokens", "final_tokens", "grid"})


class UnitEncoder:
    """Encodes images and keeps ``budget`` merged tokens of each, or all where there are no more.

    Args:
        make_tower: describes a model's vision encoder.
        selector: chooses the tokens.
        budget: tokens to keep of an image.
        layer: block of the encoder whose output the decision is made on.
        options: ``skip_unused_layers``, with a selector that reads no final tokens: the rest of
            the encoder computes only what the kept tokens need. ``overlap`` and ``timed`` as for
            `PendingSelection`.
    """

    def __init__(
        self,
        make_tower: Callable[[Any], UnitTower],
        selector: Selector,
        budget: int,
        layer: int,
        options: Options,
    ) -> None:
        self.make_tower, self.selector, self.budget = make_tower, selector, budget
        self.layer, self.options = layer, options
        reads = reads_of(selector) & AVAILABLE_FIELDS
        self.selects_early = options.skip_unused_layers and reads <= {"reference_tokens"}

    def read(self, model: Any, input_ids: Tensor, given: dict[str, Any]) -> GivenUnits:
        """See `ImageEncoder`; waits for the device, as the model itself does."""
        grids, sizes = read_sizes(model, given)
        return GivenUnits(self, model.model.visual, given.get("pixel_values"), grids, sizes)

    def encode(
        self, visual: Any, pixel_values: Tensor, grids: list[list[int]], record: CallRecord
    ) -> tuple[list[Tensor], Any]:
        """Encodes the images of one call.

        Args:
            visual: the vision encoder.
            pixel_values: ``[patches, C]``, all images in a row.
            grids: patches of each image: time, height, width.
            record: of the call.

        Returns:
            ids int64 ``[T_i]`` of each image, and the encoder's output with those tokens only.
        """
        tower, device = self.make_tower(visual), pixel_values.device
        lengths = [t * h * w for t, h, w in grids]
        grid = torch.tensor(grids)
        arguments = tower.arguments(grid, device)
        images = UnitImages(self, tower, grids, tower.unit_order(arguments), device, record)
        intercepts = Intercepts()
        intercepts.watch(tower.blocks[self.layer], images.start)
        # Not in training, which may run blocks again for their gradients.
        is_early = self.selects_early and max(images.sizes) > self.budget and not visual.training
        if is_early:
            merged = tower.finish_units(intercepts, lambda: images.chosen, lengths, self.layer)
        with record.stage("encoder", device), intercepts.active():
            # The grid stays on the CPU, where it is read.
            pixels = pixel_values.type(visual.dtype)
            output = visual(pixels, grid_thw=grid, return_dict=True, **arguments)
        tokens = images.take(merged[0]) if is_early else images.finish(output.pooler_output)
        extra = tower.extra_outputs(output, images.take)
        record.finish(images.ids)
        return images.ids, type(output)(pooler_output=tokens, **extra)


class GivenUnits(NamedTuple):
    """See `GivenImages`."""

    encoder: UnitEncoder
    visual: Any
    pixel_values: Any  # [patches, C]; None of no images
    grids: list[list[int]]
    sizes: list[int]

    def encode(self, images: list[int], record: CallRecord) -> tuple[list[Tensor], Any]:
        pixels = take_images(self.pixel_values, self.grids, images)
        grids = [self.grids[image] for image in images]
        return self.encoder.encode(self.visual, pixels, grids, record)


class UnitImages:
    """The images of one call and the selection of their tokens; those of the same grid are a batch.

    Attributes:
        sizes: tokens of each.
    """

    def __init__(
        self,
        encoder: UnitEncoder,
        tower: UnitTower,
        grids: list[list[int]],
        unit_order: Tensor | None,
        device: torch.device,
        record: CallRecord,
    ) -> None:
        self._grids = [(t * h // tower.merge, w // tower.merge) for t, h, w in grids]
        self.sizes = [rows * columns for rows, columns in self._grids]
        self._tower, self._device, self._record = tower, device, record
        self._unit_index = None if unit_order is None else unit_order.argsort()
        self._budget = encoder.budget
        self._pending = PendingSelection(encoder.selector, record, device, encoder.options)
        groups: dict[tuple[int, int], list[int]] = {}
        for image, grid in enumerate(self._grids):
            if self.sizes[image] > self._budget:
                groups.setdefault(grid, []).append(image)
        self._groups = list(groups.values())
        self._reference_tokens: list[Tensor] = []
        whole = [image for image, size in enumerate(self.sizes) if size <= self._budget]
        self._ids = {image: torch.arange(self.sizes[image], device=device) for image in whole}

    @property
    def ids(self) -> list[Tensor]:
        """int64 of the kept tokens of each, once they are known."""
        return [self._ids[image] for image in range(len(self.sizes))]

    def start(self, output: Any) -> None:
        """Starts the selection from the output of the reference layer."""
        states = output if isinstance(output, Tensor) else output[0]
        with self._record.stage("pruner", self._device):
            units = self._tower.average_units(states.detach(), self._unit_index)
            self._reference_tokens = self._batches(units)
            for tokens in self._reference_tokens:
                self._pending.start(tokens, self._budget)

    def finish(self, features: Tensor) -> list[Tensor]:
        """The kept ones ``[T_i, D]`` of each image's merged tokens; makes `ids` known.

        Args:
            features: the merged tokens of all images in a row.
        """
        tokens = list(features.split(self.sizes))
        for index, final_tokens in enumerate(self._batches(features)):
            kept = self._select(index, final_tokens).gather(final_tokens)
            for image, rows in zip(self._groups[index], kept.unbind(), strict=True):
                tokens[image] = rows
        return tokens

    def _batches(self, tokens: Tensor) -> list[Tensor]:
        """``[G, N, C]`` of each group, of the tokens of all images in a row."""
        count = len(self.sizes)
        if len(self._groups) == 1 and len(self._groups[0]) == count:
            return [tokens.view(count, -1, tokens.shape[-1])]
        images = tokens.split(self.sizes)
        return [torch.stack([images[image] for image in group]) for group in self._groups]

    @cached_property
    def chosen(self) -> Units:
        """The kept units, before there are merged tokens; makes `ids` known."""
        for index, reference_tokens in enumerate(self._reference_tokens):
            self._select(index, reference_tokens)
        with self._record.stage("pruner", self._device):
            ids = self.ids
            kept = join_ids(ids, self.sizes)
            kept = kept if self._unit_index is None else self._unit_index[kept]
            return Units(self._tower.patches_of(kept), [len(image) for image in ids])

    def take(self, features: Tensor) -> list[Tensor]:
        """The kept ones ``[T_i, D]`` of each image's features, given in the images' order.

        Args:
            features: of all units, or of the kept ones alone.
        """
        ids = self.ids
        if len(features) == sum(self.sizes):
            features = features[join_ids(ids, self.sizes)]
        return list(features.split([len(image) for image in ids]))

    def _select(self, index: int, final_tokens: Tensor) -> Selected:
        group = self._groups[index]
        reference_tokens = self._reference_tokens[index]
        inputs = SelectorInputs(reference_tokens, final_tokens, grid=self._grids[group[0]])
        selected = self._pending.finish(inputs, index)
        self._ids |= zip(group, selected.ids.unbind(), strict=True)
        return selected
