"""LLaVA-1.5: only the kept tokens are projected and get placeholders in the prompt."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from ocvtp_kernels.selectors.interface import (
    Selected,
    Selector,
    SelectorInputs,
    place_of,
    reads_of,
    reads_only_reference_tokens,
    require_available,
)
from ocvtp_kernels.selectors.oc_pruner import require_width
from ocvtp_kernels.vlm.handle import Handle, Method, Options, Replacement
from ocvtp_kernels.vlm.pending_selection import PendingSelection
from ocvtp_kernels.vlm.towers import Tower, as_output, resolve_reference

# Arguments of `get_image_features` that are not the tower's.
_OWN = frozenset(
    {
        *("pixel_values", "image_sizes", "vision_feature_layer", "vision_feature_select_strategy"),
        *("return_dict", "output_hidden_states"),
    }
)


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
    return LlavaPruning(model.base_model, selector, budget, options).attach(processor)


class LlavaPruning:
    """What runs instead of the methods of a LLaVA-1.5 and its processor.

    Args:
        inner: the ``LlavaModel``. Methods take the model that they are called on, which may be a
            copy of it.
        selector, budget, options: as `attach` has them.
    """

    # Fields that the tower can fill, but not for all candidates of an image together.
    unavailable_fields: frozenset[str] = frozenset()

    def __init__(self, inner: Any, selector: Selector, budget: int, options: Options) -> None:
        tower = Tower.of(inner.vision_tower)
        require_width(selector, tower.width)
        require_available(selector, tower.available_fields - self.unavailable_fields)
        self.inner, self.selector, self.budget, self.options = inner, selector, budget, options
        self.reference_layer = resolve_reference(options.reference_layer, len(tower.layers))
        self.handle = Handle(options.timed)

    def attach(self, processor: Any) -> Handle:
        """Replaces the methods of the model and of its processor."""
        replacements: list[Replacement] = [
            (self.inner, "get_image_features", self.get_image_features),
            (processor, "replace_image_token", self.replace_image_token),
        ]
        if hasattr(processor, "_get_num_multimodal_tokens"):
            replacements.append((processor, "_get_num_multimodal_tokens", self.count_tokens))
        self.handle.replace_methods(*replacements)
        return self.handle

    def replace_image_token(self, original: Method, processor: Any, given: dict[str, Any]) -> str:
        """At most ``budget`` placeholders an image."""
        # From the processor's own count, which depends on CLS and the strategy.
        count = len(original(**given)) // len(processor.image_token)
        return str(processor.image_token * min(self.budget, count))

    def count_tokens(self, original: Method, _processor: Any, given: dict[str, Any]) -> Any:
        """The same, counted."""
        counted = original(**given)
        if counted.num_image_tokens is not None:
            counted.num_image_tokens = [min(self.budget, n) for n in counted.num_image_tokens]
        return counted

    def get_image_features(self, original: Method, inner: Any, given: dict[str, Any]) -> Any:
        """As the model's own, with ``pooler_output`` a list of ``[min(budget, N), D]``."""
        tower, pixels = Tower.of(inner.vision_tower), given["pixel_values"]
        layer = read_setting(inner, given, "vision_feature_layer")
        strategy = read_setting(inner, given, "vision_feature_select_strategy")
        dropped = 1 if strategy == "default" else 0
        num_tokens = tower.num_prefix + tower.count_patches(pixels) - dropped
        if self.budget >= num_tokens or given.get("image_sizes") is not None:
            ids = torch.arange(num_tokens, device=pixels.device).repeat(len(pixels), 1)
            return self.run_unpruned(original, given, ids)
        pending = PendingSelection(self.selector, self.handle, pixels.device, self.options)
        compute_rows = (
            self.options.skip_unused_layers
            and reads_only_reference_tokens(self.selector)
            and tower.can_compute_rows(self.reference_layer, layer)
        )
        inputs = self.encode(
            inner,
            pixels,
            given,
            lambda reference_tokens: pending.start(reference_tokens, self.budget),
            row_ids=(lambda: pending.finish().ids) if compute_rows else None,
            num_dropped=dropped,
        )
        if compute_rows:
            selected = pending.finish()
            features = self.project(inner, inputs.final_tokens)
        else:
            selected, features = self.project_kept(inner, inputs, pending)
        self.handle.record(selected.ids)
        return as_output(list(features), given.get("return_dict"))

    def run_unpruned(
        self, original: Method, given: dict[str, Any], ids: Tensor | list[Tensor]
    ) -> Any:
        """The model's own features of a call whose images keep all their tokens, ``ids``."""
        with self.handle.stage("encoder", given["pixel_values"].device):
            output = original(**given)
        self.handle.record(ids)
        return output

    def encode(
        self,
        inner: Any,
        pixels: Tensor,
        given: dict[str, Any],
        on_reference_tokens: Callable[[Tensor], None] | None,
        **options: Any,
    ) -> SelectorInputs:
        """Runs the tower on ``pixels``, see `Tower.encode`; ``given`` are the call's arguments."""
        with self.handle.stage("encoder", pixels.device):
            return Tower.of(inner.vision_tower).encode(
                pixels,
                self.reference_layer,
                read_setting(inner, given, "vision_feature_layer"),
                reads_of(self.selector),
                on_reference_tokens=on_reference_tokens,
                skip_unused_layers=self.options.skip_unused_layers,
                **options,
                **{name: value for name, value in given.items() if name not in _OWN},
            )

    def project(self, inner: Any, tokens: Tensor) -> Tensor:
        """The projector's output."""
        with self.handle.stage("projector", tokens.device):
            return cast(Tensor, inner.multi_modal_projector(tokens))

    def project_kept(
        self, inner: Any, inputs: SelectorInputs, pending: PendingSelection, group: int = 0
    ) -> tuple[Selected, Tensor]:
        """Finishes the selection of a group of images; what is kept, and it projected."""
        if place_of(self.selector) == "projector":
            inputs = inputs._replace(final_tokens=self.project(inner, inputs.final_tokens))
            selected = pending.finish(inputs, group)
            return selected, selected.gather(inputs.final_tokens)
        selected = pending.finish(inputs, group)
        return selected, self.project(inner, selected.gather(inputs.final_tokens))


def read_setting(inner: Any, given: dict[str, Any], name: str) -> Any:
    """An argument of a call, or the model's own setting."""
    value = given.get(name)
    return getattr(inner.config, name) if value is None else value
