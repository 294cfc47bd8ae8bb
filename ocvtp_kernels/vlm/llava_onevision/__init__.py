"""LLaVA-OneVision: as LLaVA-NeXT, all crops of an image are one sequence of tokens.

Of a large image the model interpolates the projected features of the tiles to fewer rows and
columns. Such an image is selected from behind the projector: its tokens are what the language model
reads, and what the selector reads beside them is interpolated alike. Images of a prompt that has
several have one crop each. Videos stay whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ocvtp_kernels.ops.argmax_gather import gather_tokens
from ocvtp_kernels.selectors.interface import Selector, SelectorInputs
from ocvtp_kernels.vlm.family import Family, ImageReference, InDecoder, WatchReference
from ocvtp_kernels.vlm.group_encoder import ImageGroup, by_image
from ocvtp_kernels.vlm.handle import CallRecord, Handle, Options
from ocvtp_kernels.vlm.intercept import Intercepts, watch_layer
from ocvtp_kernels.vlm.llava import resolve_reference
from ocvtp_kernels.vlm.llava_next import (
    LlavaNextPlaceholders,
    LlavaNextPruning,
    read_sizes,
    require_patches,
    take_crops,
)
from ocvtp_kernels.vlm.llava_next.layout import CPU, Layout, keep_counts
from ocvtp_kernels.vlm.llava_onevision.layout import (
    InterpolatedGroup,
    OnevisionLayouts,
    group_images,
)
from ocvtp_kernels.vlm.pending_selection import PendingSelection
from ocvtp_kernels.vlm.placeholders import as_output, read_setting
from ocvtp_kernels.vlm.positions import Places, tell_places
from ocvtp_kernels.vlm.replaced import Method
from ocvtp_kernels.vlm.towers import Tower

# Arguments of `get_image_features` that LLaVA-NeXT's does not have.
_NOT_OF_TOWER = ("batch_num_images", "vision_aspect_ratio")


def attach(model: Any, processor: Any, selector: Selector, budget: int, options: Options) -> Handle:
    """Makes a LLaVA-OneVision keep ``budget`` tokens an image, over all its crops.

    Newlines and images that fit whole are as LLaVA-NeXT's; an image that is one of several in its
    prompt has one newline, at its end.

    Args:
        model: a ``LlavaOnevisionForConditionalGeneration`` or ``LlavaOnevisionModel``.
        processor: its ``LlavaOnevisionProcessor``.
        selector: chooses among an image's tokens ``[B, V]`` without padding. `Handle.last` has the
            kept ones as ids ``crop * patches + patch``, ascending, crop 0 being the whole image;
            of an image whose grid is interpolated as places in the packed image without newlines,
            whose final tokens are projected ones whatever the selector's place.
        budget: tokens to keep of each image, at least 1.
        options: see `Options`.

    Raises:
        ValueError: the vision tower is of no known type, the pruner or the reference layer does
            not fit it, or something is attached already.
    """
    inner = model.base_model
    plan = OnevisionPlaceholders(OnevisionLayouts(inner.config), budget, options.newlines)
    return OnevisionPruning(inner, selector, plan, options).attach(inner, processor, plan)


class Images(NamedTuple):
    """The images of a call."""

    sizes: list[tuple[int, int]]  # heights and widths
    in_tiles: list[bool]  # whether they have tiles beside the whole image

    def lay_out(self, layouts: OnevisionLayouts, device: torch.device = CPU) -> list[Layout]:
        """Their layouts on ``device``."""
        return [layouts.of(size, device, tiles) for size, tiles in zip(*self, strict=True)]


def read_images(given: Any) -> Images:
    """The images by ``image_sizes`` and ``batch_num_images``; of tensors a wait for the device.

    Raises:
        ValueError: they differ in their numbers of images.
    """
    sizes, counts = read_sizes(given["image_sizes"]), given.get("batch_num_images")
    counts = [1] * len(sizes) if counts is None else [int(count) for count in counts]
    if sum(counts) != len(sizes):
        raise ValueError(
            f"batch_num_images: expected the numbers of images of prompts with {len(sizes)} in "
            f"all, got {counts}"
        )
    return Images(sizes, [count == 1 for count in counts for _ in range(count)])


class OnevisionPlaceholders(LlavaNextPlaceholders):
    """As `LlavaNextPlaceholders`; an image by itself has tiles, one of several none.

    Args:
        layouts: of the model.
        budget: of an image.
        newlines: "drop" or "all".
    """

    layouts: OnevisionLayouts

    def replace_image_token(self, _original: Method, processor: Any, given: dict[str, Any]) -> str:
        """As many placeholders as the image keeps."""
        sizes, in_tiles = read_images(given["image_inputs"])
        image = given["image_idx"]
        layout = self.layouts.of(sizes[image], CPU, in_tiles[image])
        return str(processor.image_token) * self.keep_counts(layout).placeholders


class OnevisionPruning(LlavaNextPruning):
    """As `LlavaNextPruning`; of interpolated images all patches are projected."""

    plan: OnevisionPlaceholders

    def get_image_features(self, original: Method, inner: Any, given: dict[str, Any]) -> Any:
        """As the model's own, of the kept tokens and newlines."""
        # Read before work is queued that the read would wait for.
        images, device = read_call(inner, given), given["pixel_values"].device
        layouts = images.lay_out(self.plan.layouts)
        counts = [self.plan.keep_counts(layout) for layout in layouts]
        if all(each.whole for each in counts):
            ids = [layout.tokens.to(device, copy=True) for layout in layouts]
            return self.run_unpruned(original, given, ids)
        tower = self.tower(inner)
        crops = take_crops(given["pixel_values"], [layout.num_crops for layout in layouts])
        length = tower.num_prefix + tower.count_patches(crops)
        layouts = images.lay_out(self.plan.layouts, device)
        groups = group_images(inner.config, images.sizes, layouts, counts, length)
        record = self.handle.begin()
        of_tower = {name: value for name, value in given.items() if name not in _NOT_OF_TOWER}
        features = self.run(inner, of_tower, tower, crops, groups, record, num_dropped=0)
        with record.stage("projector", device):
            pairs = zip(groups, features, strict=True)
            packed = [group.pack(part, inner.image_newline) for group, part in pairs]
        record.finish(by_image(groups, [group.tokens for group in groups]))
        packed = by_image(groups, packed)
        if self.keeps_positions:
            kept = by_image(groups, [group.all_positions.sort(dim=1).values for group in groups])
            wholes = [layout.num_packed for layout in layouts]
            tell_places(packed, [Places(*each) for each in zip(kept, wholes, strict=True)])
        return as_output(packed, given.get("return_dict"))

    def run_group(
        self,
        inner: Any,
        group: ImageGroup,
        inputs: SelectorInputs,
        pending: PendingSelection,
        index: int,
        record: CallRecord,
    ) -> Tensor:
        if not isinstance(group, InterpolatedGroup):
            return super().run_group(inner, group, inputs, pending, index, record)
        # The projector does not commute with the interpolation.
        projected = self.project(inner, group.take_patches(inputs.final_tokens), record)
        features = group.interpolate(projected)
        if not group.is_pruned:
            return features
        if self.selects_early:
            selected = pending.finish(group=index)
        else:
            of_group = inputs.map_tokens(group.take)._replace(final_tokens=features)
            selected = pending.finish(of_group, index)
        group.keep(selected)
        if self.selects_early and selected.tokens is not None:
            return self.project(inner, selected.tokens, record)
        return selected.gather(features)


def read_call(inner: Any, given: dict[str, Any]) -> Images:
    """The images of a call of ``get_image_features``.

    Raises:
        ValueError: the call's settings are not those that the prompt's placeholders are counted by,
            or not the patches alone are taken, or see `read_images`.
    """
    limit, expected = given.get("vision_aspect_ratio"), inner.config.vision_aspect_ratio
    if limit not in (None, expected):
        raise ValueError(
            f"vision_aspect_ratio: expected {expected!r} as in the model's config, by which the "
            f"prompt's placeholders are counted, got {limit!r}"
        )
    strategy = read_setting(inner, given, "vision_feature_select_strategy")
    require_patches(Tower.of(inner.vision_tower), strategy)
    return read_images(given)


def find_reference(inner: Any, layer: int | None, selectors: Sequence[Selector]) -> WatchReference:
    """See `InDecoder.find_reference`; newlines have no reference tokens."""
    layouts = OnevisionLayouts(inner.config)
    resolved = resolve_reference(inner, layer, selectors, one_size=False)
    return partial(_watch_reference, layouts, resolved)


def _watch_reference(
    layouts: OnevisionLayouts,
    layer: int,
    inner: Any,
    given: dict[str, Any],
    intercepts: Intercepts,
) -> Callable[[], list[ImageReference]]:
    images, pixels = read_call(inner, given), given["pixel_values"]
    of_images = images.lay_out(layouts, pixels.device)
    counts = [keep_counts(layout, layout.num_packed, "all") for layout in of_images]
    tower = Tower.of(inner.vision_tower)
    length = tower.num_prefix + tower.count_patches(pixels)
    groups = group_images(inner.config, images.sizes, of_images, counts, length)
    read = watch_layer(intercepts, tower.layers[layer])

    def references() -> list[ImageReference]:
        tokens = read().flatten(0, 1)
        orders = [group.positions.sort(dim=1) for group in groups]
        parts = [
            gather_tokens(group.take(tokens), order.indices)
            for group, order in zip(groups, orders, strict=True)
        ]
        places = by_image(groups, [order.values for order in orders])
        return list(map(ImageReference, by_image(groups, parts), places))

    return references


FAMILY = Family(
    "LLaVA-OneVision",
    ("llava_onevision",),
    attach,
    in_decoder=InDecoder(find_reference),
    renumbers=True,
)
