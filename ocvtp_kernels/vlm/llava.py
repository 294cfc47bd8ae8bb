"""LLaVA-1.5: only the kept tokens are projected and get placeholders in the prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from ocvtp_kernels.selectors.interface import (
    Selector,
    place_of,
    reads_of,
    reads_only_reference_tokens,
    require_available,
)
from ocvtp_kernels.selectors.oc_pruner import require_width
from ocvtp_kernels.vlm.handle import Handle, Options, Replacement
from ocvtp_kernels.vlm.pending_selection import PendingSelection
from ocvtp_kernels.vlm.towers import Tower, as_output


def attach_llava(
    model: Any, processor: Any, selector: Selector, budget: int, options: Options
) -> Handle:
    """Attaches a selector to a ``LlavaForConditionalGeneration`` or ``LlavaModel``.

    Candidates are the tokens that the model itself would take from its tower; an image with no
    more of them than the budget runs bitwise as the model alone.

    Raises:
        ValueError: the tower is of no known type, the selector or the reference layer does not fit
            it, something is attached already, or transformers is too old.
    """
    # generate calls the method of the inner model.
    inner = model.base_model
    tower = Tower.of(inner.vision_tower)
    require_width(selector, tower.width)
    require_available(selector, tower.available_fields)
    reference_layer = tower.resolve_reference(options.reference_layer)
    handle = Handle(options.timed)

    def pruned_features(original: Callable[..., Any]) -> Callable[..., Any]:
        return _pruned_features(original, handle, selector, budget, reference_layer, options)

    handle.replace_methods(
        (inner, "get_image_features", pruned_features), *_limit_placeholders(processor, budget)
    )
    return handle


def _limit_placeholders(processor: Any, budget: int) -> list[Replacement]:
    """Makes a LLaVA processor write at most ``budget`` placeholders an image."""

    def fewer(original: Callable[..., str]) -> Callable[..., str]:
        def replace_image_token(self: Any, *args: Any, **kwargs: Any) -> str:
            # From the processor's own count, which depends on CLS and the strategy.
            count = len(original(self, *args, **kwargs)) // len(self.image_token)
            return str(self.image_token * min(budget, count))

        return replace_image_token

    def fewer_counted(original: Callable[..., Any]) -> Callable[..., Any]:
        def _get_num_multimodal_tokens(self: Any, *args: Any, **kwargs: Any) -> Any:
            counted = original(self, *args, **kwargs)
            if counted.num_image_tokens is not None:
                counted.num_image_tokens = [min(budget, n) for n in counted.num_image_tokens]
            return counted

        return _get_num_multimodal_tokens

    replacements: list[Replacement] = [(processor, "replace_image_token", fewer)]
    if hasattr(processor, "_get_num_multimodal_tokens"):
        replacements.append((processor, "_get_num_multimodal_tokens", fewer_counted))
    return replacements


def _pruned_features(
    original: Callable[..., Any],
    handle: Handle,
    selector: Selector,
    budget: int,
    reference_layer: int,
    options: Options,
) -> Callable[..., Any]:
    def get_image_features(
        self: Any,
        pixel_values: Tensor,
        vision_feature_layer: int | Sequence[int] | None = None,
        vision_feature_select_strategy: str | None = None,
        image_sizes: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """As the model's own, with ``pooler_output`` a list of ``[min(budget, N), D]``."""
        tower = Tower.of(self.vision_tower)
        layer = _or_else(vision_feature_layer, self.config.vision_feature_layer)
        strategy = _or_else(
            vision_feature_select_strategy, self.config.vision_feature_select_strategy
        )
        dropped = 1 if strategy == "default" else 0
        num_tokens = tower.num_prefix + tower.count_patches(pixel_values) - dropped
        device = pixel_values.device
        if budget >= num_tokens or image_sizes is not None:
            with handle.stage("encoder", device):
                outputs = original(
                    self,
                    pixel_values,
                    vision_feature_layer=vision_feature_layer,
                    vision_feature_select_strategy=vision_feature_select_strategy,
                    image_sizes=image_sizes,
                    **kwargs,
                )
            handle.record(torch.arange(num_tokens, device=device).repeat(len(pixel_values), 1))
            return outputs

        pending = PendingSelection(selector, handle, device, options)
        compute_rows = (
            options.skip_unused_layers
            and reads_only_reference_tokens(selector)
            and tower.can_compute_rows(reference_layer, layer)
        )
        return_dict = kwargs.pop("return_dict", True)
        kwargs.pop("output_hidden_states", None)
        with handle.stage("encoder", device):
            inputs = tower.encode(
                pixel_values,
                reference_layer,
                layer,
                reads_of(selector),
                on_reference_tokens=lambda reference_tokens: pending.start(
                    reference_tokens, budget
                ),
                row_ids=(lambda: pending.finish().ids) if compute_rows else None,
                num_dropped=dropped,
                skip_unused_layers=options.skip_unused_layers,
                **kwargs,
            )

        def project(tokens: Tensor) -> Tensor:
            with handle.stage("projector", device):
                return cast(Tensor, self.multi_modal_projector(tokens))

        if place_of(selector) == "projector":
            inputs = inputs._replace(final_tokens=project(inputs.final_tokens))
        selected = pending.finish(inputs)
        kept = inputs.final_tokens if compute_rows else selected.gather(inputs.final_tokens)
        features = kept if place_of(selector) == "projector" else project(kept)
        handle.record(selected.ids)
        return as_output(list(features), return_dict)

    return get_image_features


def _or_else(value: Any, default: Any) -> Any:
    return default if value is None else value
