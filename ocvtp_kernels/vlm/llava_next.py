"""LLaVA-NeXT: all crops of an image are one sequence of tokens, of which a selector keeps some.

Patches of the padded area, which the model cuts off when it packs the crops, are no candidates.
Which these are, and the positions of the kept tokens, follow from the size of an image alone.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from ocvtp_kernels.selectors.interface import (
    Selector,
    SelectorInputs,
    place_of,
    reads_of,
    reads_only_reference_tokens,
    require_available,
)
from ocvtp_kernels.selectors.oc_pruner import require_width
from ocvtp_kernels.vlm.handle import Handle, Options, Replacement
from ocvtp_kernels.vlm.llava_next_call import read_size, read_sizes, require_patches, take_crops
from ocvtp_kernels.vlm.llava_next_layout import Group, KeepCounts, Layout, Layouts, group_images
from ocvtp_kernels.vlm.pending_selection import PendingSelection
from ocvtp_kernels.vlm.towers import Tower, as_output


class _Pruning:
    """The replaced methods, and their shared state."""

    def __init__(
        self,
        inner: Any,
        selector: Selector,
        budget: int,
        reference_layer: int,
        options: Options,
        handle: Handle,
    ) -> None:
        self.selector, self.budget = selector, budget
        self.reference_layer, self.options = reference_layer, options
        self.handle, self.layouts = handle, Layouts(inner)

    def keep_counts(self, layout: Layout) -> KeepCounts:
        """How many tokens of an image are kept: with "drop" at most the budget in all."""
        tokens, newlines = layout.tokens.shape[0], layout.newlines.shape[0]
        keeps_newlines = self.options.newlines == "all"
        if self.budget >= (tokens if keeps_newlines else layout.num_packed):
            return KeepCounts(tokens, newlines, True)
        return KeepCounts(min(self.budget, tokens), newlines if keeps_newlines else 0, False)

    def placeholders(self, size: Iterable[int] | Tensor) -> int:
        """Placeholders of an image of ``size`` (height, width)."""
        return self.keep_counts(self.layouts.of(read_size(size))).placeholders

    def replace_features(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def get_image_features(
            inner: Any,
            pixel_values: Tensor,
            image_sizes: Any,
            vision_feature_layer: Any = None,
            vision_feature_select_strategy: str | None = None,
            **kwargs: Any,
        ) -> Any:
            # Read before work is queued that the read would wait for.
            sizes = read_sizes(image_sizes)
            layouts = [self.layouts.of(size) for size in sizes]
            counts = [self.keep_counts(layout) for layout in layouts]
            if all(each.whole for each in counts):
                with self.handle.stage("encoder", pixel_values.device):
                    output = original(
                        inner,
                        pixel_values,
                        image_sizes,
                        vision_feature_layer=vision_feature_layer,
                        vision_feature_select_strategy=vision_feature_select_strategy,
                        **kwargs,
                    )
                self.handle.record(
                    [layout.tokens.to(pixel_values.device, copy=True) for layout in layouts]
                )
                return output
            tower = Tower.of(inner.vision_tower)
            require_patches(inner, tower, vision_feature_select_strategy)
            return_dict = kwargs.pop("return_dict", True)
            kwargs.pop("output_hidden_states", None)
            layer = vision_feature_layer
            crops = take_crops(pixel_values, [layout.num_crops for layout in layouts])
            features = self._prune(
                inner,
                tower,
                crops,
                sizes,
                counts,
                inner.config.vision_feature_layer if layer is None else layer,
                **kwargs,
            )
            return as_output(features, return_dict)

        return get_image_features

    def _prune(
        self,
        inner: Any,
        tower: Tower,
        crops: Tensor,
        sizes: list[tuple[int, int]],
        counts: list[KeepCounts],
        final_layer: int | Sequence[int],
        **kwargs: Any,
    ) -> list[Tensor]:
        """Features of every image, ``[T_i, D]``; records what is kept."""
        layouts = [self.layouts.of(size, crops.device) for size in sizes]
        groups = group_images(layouts, counts, tower.count_patches(crops))
        pruned = [group for group in groups if group.is_pruned]
        unpruned = [group for group in groups if not group.is_pruned]
        pending = PendingSelection(self.selector, self.handle, crops.device, self.options)
        inputs = self._encode(tower, crops, final_layer, pending, pruned, **kwargs)
        packed = [
            self._pack(inner, self._project_kept(inner, group, inputs, pending, index), group)
            for index, group in enumerate(pruned)
        ]
        packed += [
            self._pack(inner, self._project(inner, inputs.final_tokens[group.rows]), group)
            for group in unpruned
        ]
        groups = pruned + unpruned
        self.handle.record(_by_image(groups, [group.tokens for group in groups]))
        return _by_image(groups, packed)

    def _encode(
        self,
        tower: Tower,
        crops: Tensor,
        final_layer: int | Sequence[int],
        pending: PendingSelection,
        pruned: list[Group],
        **kwargs: Any,
    ) -> SelectorInputs:
        """Encodes with the patches of all crops in one row; starts the selection of each group."""

        def start(reference_tokens: Tensor) -> None:
            patches = reference_tokens.flatten(0, 1)
            for group in pruned:
                pending.start(patches[group.rows], group.counts.tokens)

        with self.handle.stage("encoder", crops.device):
            inputs = tower.encode(
                crops,
                self.reference_layer,
                final_layer,
                reads_of(self.selector),
                on_reference_tokens=start if pruned else None,
                skip_unused_layers=self.options.skip_unused_layers,
                **kwargs,
            )
        if reads_only_reference_tokens(self.selector):
            # The other fields are not read, and flattening copies.
            return inputs._replace(final_tokens=inputs.final_tokens.flatten(0, 1))
        return inputs.map_tokens(lambda part: part.flatten(0, 1))

    def _project_kept(
        self,
        inner: Any,
        group: Group,
        inputs: SelectorInputs,
        pending: PendingSelection,
        index: int,
    ) -> Tensor:
        """Projected kept tokens ``[G, T, D]`` of a group, which is then reduced to these.

        Args:
            inner: the ``LlavaNextModel``.
            group: of images to prune.
            inputs: of all patches of the call.
            pending: the selection of the call.
            index: of the group's selection, in the order started.
        """
        early = reads_only_reference_tokens(self.selector)
        of_group = None if early else inputs.map_tokens(operator.itemgetter(group.rows))
        if of_group is not None and place_of(self.selector) == "projector":
            projected = self._project(inner, of_group.final_tokens)
            of_group = of_group._replace(final_tokens=projected)
            return group.keep(pending.finish(of_group, index)).gather(projected)
        merged = group.keep(pending.finish(of_group, index)).tokens
        # After `keep`, the group's rows are the kept ones.
        kept = inputs.final_tokens[group.rows] if merged is None else merged
        return self._project(inner, kept)

    def _project(self, inner: Any, tokens: Tensor) -> Tensor:
        with self.handle.stage("projector", tokens.device):
            return cast(Tensor, inner.multi_modal_projector(tokens))

    def _pack(self, inner: Any, features: Tensor, group: Group) -> Tensor:
        """A group's features ``[G, T, D]`` with its kept newlines: ``[G, T + R, D]``, in order."""
        with self.handle.stage("projector", features.device):
            positions = group.positions
            if group.counts.newlines:
                newline = inner.image_newline.to(features)
                newlines = newline.expand(len(group.images), group.counts.newlines, -1)
                features = torch.cat((features, newlines), dim=1)
                positions = torch.cat((positions, group.newlines), dim=1)
            order = positions.argsort(dim=1).unsqueeze(-1)
            return features.take_along_dim(order, dim=1)

    def replace_image_token(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def replace_image_token(
            processor: Any, image_inputs: Any, image_idx: int, **kwargs: Any
        ) -> str:
            size = image_inputs["image_sizes"][image_idx]
            return str(processor.image_token) * self.placeholders(size)

        return replace_image_token

    def replace_counts(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def _get_num_multimodal_tokens(
            processor: Any, image_sizes: Any = None, **kwargs: Any
        ) -> Any:
            counts = original(processor, image_sizes=image_sizes, **kwargs)
            if image_sizes is not None:
                counts.num_image_tokens = [self.placeholders(size) for size in image_sizes]
            return counts

        return _get_num_multimodal_tokens


def attach_llava_next(
    model: Any, processor: Any, selector: Selector, budget: int, options: Options
) -> Handle:
    """Makes a LLaVA-NeXT keep ``budget`` tokens an image, over all its crops.

    With ``options.newlines`` "drop" an image costs ``min(budget, tokens)`` placeholders and its
    newlines go; with "all" the packed grid's newlines, one a row, stay beside them. An image that
    fits whole (with "drop": newlines included) stays as the model packs it, and a call of such
    images only is the original method's, bit for bit.

    Args:
        model: a ``LlavaNextForConditionalGeneration``.
        processor: its ``LlavaNextProcessor``.
        selector: chooses among an image's tokens ``[B, V]``, crop after crop, row after row,
            without padding. `Handle.last` has the kept ones as ids ``crop * patches + patch``,
            ascending, crop 0 being the whole image.
        budget: tokens to keep of each image, at least 1.
        options: see `Options`.

    Raises:
        ValueError: the vision tower is of no known type, the pruner or the reference layer does
            not fit it, or something is attached already.
    """
    inner = model.base_model
    tower = Tower.of(inner.vision_tower)
    require_width(selector, tower.width)
    # Crops overlap, so their tokens share no grid, and each crop has a CLS token of its own.
    require_available(selector, tower.available_fields - {"grid", "cls_token"})
    reference_layer = tower.resolve_reference(options.reference_layer)
    handle = Handle(options.timed)
    pruning = _Pruning(inner, selector, budget, reference_layer, options, handle)
    replacements: list[Replacement] = [
        (inner, "get_image_features", pruning.replace_features),
        (processor, "replace_image_token", pruning.replace_image_token),
    ]
    if hasattr(processor, "_get_num_multimodal_tokens"):
        replacements.append((processor, "_get_num_multimodal_tokens", pruning.replace_counts))
    handle.replace_methods(*replacements)
    return handle


def _by_image(groups: list[Group], parts: list[Tensor]) -> list[Tensor]:
    """The rows of all groups' ``[G, ...]``, in the order of the call's images."""
    rows: dict[int, Tensor] = {}
    for group, part in zip(groups, parts, strict=True):
        rows |= zip(group.images, part, strict=True)
    return [rows[image] for image in sorted(rows)]
