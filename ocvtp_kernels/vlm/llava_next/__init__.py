"""LLaVA-NeXT: all crops of an image are one sequence of tokens, of which a selector keeps some.

Patches of the padded area, which the model cuts off when it packs the crops, are no candidates.
Which these are, and the positions of the kept tokens, follow from the size of an image alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ocvtp_kernels.selectors.interface import Selector
from ocvtp_kernels.vlm.family import Family, ImageReference, InDecoder, WatchReference
from ocvtp_kernels.vlm.handle import Handle, Options
from ocvtp_kernels.vlm.intercept import Intercepts, watch_layer
from ocvtp_kernels.vlm.llava import resolve_reference
from ocvtp_kernels.vlm.llava_next.layout import (
    KeepCounts,
    Layout,
    Layouts,
    PackedGroup,
    group_images,
    keep_counts,
)
from ocvtp_kernels.vlm.placeholders import (
    PlaceholderPruning,
    Placeholders,
    as_output,
    read_setting,
)
from ocvtp_kernels.vlm.positions import Places, tell_places
from ocvtp_kernels.vlm.replaced import Method
from ocvtp_kernels.vlm.towers import Tower


def attach(model: Any, processor: Any, selector: Selector, budget: int, options: Options) -> Handle:
    """Makes a LLaVA-NeXT keep ``budget`` tokens an image, over all its crops.

    With ``options.newlines`` "drop" an image costs ``min(budget, tokens)`` placeholders and its
    newlines go; with "all" the packed grid's newlines, one a row, stay beside them. An image that
    fits whole (with "drop": newlines included) stays as the model packs it, and a call of such
    images only is the original method's, bit for bit.

    Args:
        model: a ``LlavaNextForConditionalGeneration`` or ``LlavaNextModel``.
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
    plan = LlavaNextPlaceholders(Layouts(inner.config), budget, options.newlines)
    return LlavaNextPruning(inner, selector, plan, options).attach(inner, processor, plan)


class LlavaNextPlaceholders(Placeholders):
    """As `Placeholders`: what an image keeps follows from its size.

    Args:
        layouts: of the model.
        budget: of an image.
        newlines: "drop" or "all".
    """

    def __init__(self, layouts: Layouts, budget: int, newlines: str) -> None:
        super().__init__(budget)
        self.layouts, self.newlines = layouts, newlines

    def keep_counts(self, layout: Layout) -> KeepCounts:
        """How many tokens of an image are kept."""
        return keep_counts(layout, self.budget, self.newlines)

    def count(self, size: Iterable[int] | Tensor) -> int:
        """Placeholders of an image of ``size`` (height, width)."""
        return self.keep_counts(self.layouts.of(read_size(size))).placeholders

    def replace_image_token(self, _original: Method, processor: Any, given: dict[str, Any]) -> str:
        """As many placeholders as the image keeps."""
        size = given["image_inputs"]["image_sizes"][given["image_idx"]]
        return str(processor.image_token) * self.count(size)

    def get_num_multimodal_tokens(
        self, original: Method, _processor: Any, given: dict[str, Any]
    ) -> Any:
        """The same, counted."""
        counted, sizes = original(**given), given.get("image_sizes")
        if sizes is not None:
            counted.num_image_tokens = [self.count(size) for size in sizes]
        return counted


class LlavaNextPruning(PlaceholderPruning):
    """As `PlaceholderPruning`: images of the same numbers of tokens are a group."""

    one_size = False
    # Crops overlap, so their tokens share no grid, and each crop has a CLS token of its own.
    unavailable_fields = frozenset({"grid", "cls_token"})

    def __init__(
        self, inner: Any, selector: Selector, plan: LlavaNextPlaceholders, options: Options
    ) -> None:
        super().__init__(inner, selector, plan.budget, options)
        self.plan = plan

    def get_image_features(self, original: Method, inner: Any, given: dict[str, Any]) -> Any:
        """As the model's own, of the kept tokens and newlines."""
        # Read before work is queued that the read would wait for.
        sizes, device = read_sizes(given["image_sizes"]), given["pixel_values"].device
        layouts = [self.plan.layouts.of(size) for size in sizes]
        counts = [self.plan.keep_counts(layout) for layout in layouts]
        if all(each.whole for each in counts):
            ids = [layout.tokens.to(device, copy=True) for layout in layouts]
            return self.run_unpruned(original, given, ids)
        tower = self.tower(inner)
        require_patches(tower, read_setting(inner, given, "vision_feature_select_strategy"))
        crops = take_crops(given["pixel_values"], [layout.num_crops for layout in layouts])
        layouts = [self.plan.layouts.of(size, device) for size in sizes]
        groups = group_images(layouts, counts, tower.num_prefix + tower.count_patches(crops))
        record = self.handle.begin()
        features = self.run(inner, given, tower, crops, groups, record, num_dropped=0)
        with record.stage("projector", device):
            pairs = zip(groups, features, strict=True)
            packed = [group.pack(part, inner.image_newline) for group, part in pairs]
        record.finish(_by_image(groups, [group.tokens for group in groups]))
        packed = _by_image(groups, packed)
        if self.keeps_positions:
            kept = _by_image(groups, [group.all_positions.sort(dim=1).values for group in groups])
            wholes = [layout.num_packed for layout in layouts]
            tell_places(packed, [Places(*each) for each in zip(kept, wholes, strict=True)])
        return as_output(packed, given.get("return_dict"))

    def arrange(self, tokens: Tensor) -> Tensor:
        """The tokens of all crops in one row; leaving out prefixes here would copy them."""
        return tokens.flatten(0, 1)


def _by_image(groups: list[PackedGroup], parts: list[Tensor]) -> list[Tensor]:
    """The rows of all groups' ``[G, ...]``, in the order of the call's images."""
    rows: dict[int, Tensor] = {}
    for group, part in zip(groups, parts, strict=True):
        rows |= zip(group.images, part.unbind(), strict=True)
    return [rows[image] for image in sorted(rows)]


def read_size(size: Iterable[int] | Tensor) -> tuple[int, int]:
    """Height and width of an image in pixels."""
    height, width = size.tolist() if isinstance(size, Tensor) else size
    return int(height), int(width)


def read_sizes(image_sizes: Iterable[Iterable[int]] | Tensor) -> list[tuple[int, int]]:
    """Heights and widths ``[images, 2]``; of a tensor with one wait for the device."""
    rows = image_sizes.tolist() if isinstance(image_sizes, Tensor) else image_sizes
    return [read_size(row) for row in rows]


def require_patches(tower: Tower, strategy: str) -> None:
    """Raises ValueError unless the strategy leaves the patches of a crop and nothing else."""
    prefix = tower.num_prefix
    if prefix != (strategy == "default"):
        raise ValueError(
            "vision_feature_select_strategy: expected one that leaves the patches alone of a "
            f"tower with {prefix} tokens before them, got {strategy!r}"
        )


def take_crops(pixel_values: Tensor, counts: list[int]) -> Tensor:
    """Crops of all images, ``[sum of counts, 3, H, W]``, without those that fill up a batch.

    Args:
        pixel_values: ``[images, max crops, 3, H, W]``, or the crops without padding.
        counts: crops of each image.

    Raises:
        ValueError: there are fewer crops, or other images.
    """
    if pixel_values.dim() == 5:
        images, max_crops = pixel_values.shape[:2]
        if counts == [max_crops] * images:
            return pixel_values.flatten(0, 1)
        if images == len(counts) and max_crops >= max(counts):
            parts = zip(pixel_values, counts, strict=True)
            return torch.cat([image[:count] for image, count in parts])
    elif pixel_values.dim() == 4 and pixel_values.shape[0] == sum(counts):
        return pixel_values
    raise ValueError(
        f"pixel_values: expected {counts} crops an image, as image_sizes tells, "
        f"got shape {list(pixel_values.shape)}"
    )


def find_reference(inner: Any, layer: int | None, selectors: Sequence[Selector]) -> WatchReference:
    """See `InDecoder.find_reference`; newlines have no reference tokens."""
    layouts = Layouts(inner.config)
    resolved = resolve_reference(inner, layer, selectors, one_size=False)
    return partial(_watch_reference, layouts, resolved)


def _watch_reference(
    layouts: Layouts, layer: int, inner: Any, given: dict[str, Any], intercepts: Intercepts
) -> Callable[[], list[ImageReference]]:
    sizes, device = read_sizes(given["image_sizes"]), given["pixel_values"].device
    of_images = [layouts.of(size, device) for size in sizes]
    require_patches(
        Tower.of(inner.vision_tower), read_setting(inner, given, "vision_feature_select_strategy")
    )
    read = watch_layer(intercepts, Tower.of(inner.vision_tower).layers[layer])

    def references() -> list[ImageReference]:
        crops, start, found = read(), 0, []
        for layout in of_images:
            tokens = crops[start : start + layout.num_crops].flatten(0, 1)
            start += layout.num_crops
            positions, order = layout.positions.sort()
            found.append(ImageReference(tokens[layout.rows[order]], positions))
        return found

    return references


FAMILY = Family(
    "LLaVA-NeXT",
    ("llava_next",),
    attach,
    in_decoder=InDecoder(find_reference),
    renumbers=True,
)
