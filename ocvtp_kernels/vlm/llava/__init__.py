"""LLaVA-1.5: only the kept tokens are projected and get placeholders in the prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from ocvtp_kernels.selectors.interface import Selector
from ocvtp_kernels.selectors.oc_pruner import require_fit
from ocvtp_kernels.vlm.family import Family, ImageReference, InDecoder, WatchReference
from ocvtp_kernels.vlm.handle import Handle, Options
from ocvtp_kernels.vlm.intercept import Intercepts, watch_layer
from ocvtp_kernels.vlm.placeholders import (
    AllImages,
    PlaceholderPruning,
    Placeholders,
    as_output,
    count_tokens,
    read_setting,
)
from ocvtp_kernels.vlm.positions import Places, tell_places
from ocvtp_kernels.vlm.replaced import Method
from ocvtp_kernels.vlm.towers import Tower


def attach(model: Any, processor: Any, selector: Selector, budget: int, options: Options) -> Handle:
    """Attaches a selector to a ``LlavaForConditionalGeneration`` or ``LlavaModel``.

    Candidates are the tokens that the model itself would take from its tower; an image with no
    more of them than the budget runs bitwise as the model alone.

    Raises:
        ValueError: the tower is of no known type, the selector or the reference layer does not fit
            it, something is attached already, or transformers is too old.
    """
    # generate calls the method of the inner model.
    inner = model.base_model
    pruning = LlavaPruning(inner, selector, budget, options)
    return pruning.attach(inner, processor, Placeholders(budget))


class LlavaPruning(PlaceholderPruning):
    """As `PlaceholderPruning`: all images of a call are one group."""

    def get_image_features(self, original: Method, inner: Any, given: dict[str, Any]) -> Any:
        """As the model's own, with ``pooler_output`` a list of ``[min(budget, N), D]``."""
        tower, pixels = self.tower(inner), given["pixel_values"]
        strategy = read_setting(inner, given, "vision_feature_select_strategy")
        dropped, num_tokens = count_tokens(tower, pixels, strategy)
        if self.budget >= num_tokens or given.get("image_sizes") is not None:
            ids = torch.arange(num_tokens, device=pixels.device).repeat(len(pixels), 1)
            return self.run_unpruned(original, given, ids)
        record, images = self.handle.begin(), AllImages(self.budget)
        (features,) = self.run(
            inner, given, tower, pixels, [images], record, dropped, all_rows=True
        )
        record.finish(images.ids, groups=images.groups)
        kept = list(features)
        if self.keeps_positions:
            tell_places(kept, [Places(ids, num_tokens) for ids in images.ids])
        return as_output(kept, given.get("return_dict"))


def find_reference(inner: Any, layer: int | None, selectors: Sequence[Selector]) -> WatchReference:
    """See `InDecoder.find_reference`."""
    return partial(_watch_reference, resolve_reference(inner, layer, selectors, one_size=True))


def resolve_reference(
    inner: Any, layer: int | None, selectors: Sequence[Selector], *, one_size: bool
) -> int:
    """The reference layer of a model's tower.

    Raises:
        ValueError: there is no such layer, or a selector does not fit the tower.
    """
    tower = Tower.of(inner.vision_tower)
    for selector in selectors:
        require_fit(selector, tower.width, one_size=one_size)
    return tower.resolve_reference(layer, inner.config.vision_feature_layer)


def _watch_reference(
    layer: int, inner: Any, given: dict[str, Any], intercepts: Intercepts
) -> Callable[[], list[ImageReference]]:
    tower, pixels = Tower.of(inner.vision_tower), given["pixel_values"]
    strategy = read_setting(inner, given, "vision_feature_select_strategy")
    dropped, _ = count_tokens(tower, pixels, strategy)
    read = watch_layer(intercepts, tower.layers[layer])
    return lambda: [ImageReference(image) for image in read()[:, dropped:]]


def read_grids(inner: Any, given: dict[str, Any]) -> list[tuple[int, int]]:
    """Rows and columns of each image of a call."""
    pixels = given["pixel_values"]
    return [Tower.of(inner.vision_tower).read_grid(pixels)] * len(pixels)


FAMILY = Family(
    "LLaVA-1.5",
    ("llava",),
    attach,
    in_decoder=InDecoder(find_reference, read_grids, stacked_ids=True),
    renumbers=True,
)
