"""Models whose prompt gets as many placeholders as tokens are kept: encode, select, project.

``get_image_features`` of the inner model then returns the kept tokens, and the processor writes the
placeholders. What differs between such families is which tokens of a call form a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from ocvtp_kernels.ops.argmax_gather import gather_tokens
from ocvtp_kernels.selectors.interface import (
    Selected,
    Selector,
    SelectorAttributes,
    SelectorInputs,
    place_of,
    reads_of,
    reads_only_reference_tokens,
    require_available,
    required,
)
from ocvtp_kernels.selectors.oc_pruner import require_fit
from ocvtp_kernels.vlm import positions
from ocvtp_kernels.vlm.handle import CallRecord, Handle, Options
from ocvtp_kernels.vlm.pending_selection import PendingSelection
from ocvtp_kernels.vlm.replaced import Method, Replacement
from ocvtp_kernels.vlm.towers import Tower

# Arguments of `get_image_features` that are not the tower's.
_OWN = frozenset(
    {
        *("pixel_values", "image_sizes", "vision_feature_layer", "vision_feature_select_strategy"),
        *("return_dict", "output_hidden_states"),
    }
)


class ImageGroup(Protocol):
    """Images of a call that have and keep the same numbers of tokens.

    Attributes:
        num_kept: tokens kept of each image.
        is_pruned: whether an image has more of them.
    """

    num_kept: int
    is_pruned: bool

    def take(self, tokens: Tensor) -> Tensor:
        """The group's ``[G, N, ...]`` of the call's tokens; after `keep` the kept ones alone."""
        ...

    def keep(self, selected: Selected) -> None:
        """Reduces the group to the selected tokens."""
        ...


class AllImages:
    """The images of a call whose tokens are taken as they are: all of them are one group.

    Attributes:
        ids: int64 ``[B, T]`` of the kept tokens, once they are known.
        groups: as those of `Selected`.
    """

    is_pruned = True
    ids: Tensor
    groups: Tensor | None = None

    def __init__(self, num_kept: int) -> None:
        self.num_kept = num_kept

    def take(self, tokens: Tensor) -> Tensor:
        """See `ImageGroup`."""
        return gather_tokens(tokens, self.ids) if hasattr(self, "ids") else tokens

    def keep(self, selected: Selected) -> None:
        """See `ImageGroup`."""
        self.ids, self.groups = selected.ids, selected.groups


class PlaceholderPruning:
    """What runs instead of ``get_image_features``; a family says which images form groups.

    Args:
        inner: the model whose method it is. A call takes the model that it is made on, which may
            be a copy.
        selector, budget, options: as `attach` has them.

    Attributes:
        keeps_positions: whether kept tokens stand where they do in the whole prompt.

    Raises:
        ValueError: the tower is of no known type, or the selector, the reference layer or the
            positions do not fit the model.
    """

    # Whether all images have as many candidates.
    one_size = True
    # Fields that the tower can fill, but not for all candidates of an image together.
    unavailable_fields: frozenset[str] = frozenset()

    def __init__(self, inner: Any, selector: Selector, budget: int, options: Options) -> None:
        tower = self.tower(inner)
        require_fit(selector, tower.width, one_size=self.one_size)
        require_available(selector, tower.available_fields - self.unavailable_fields)
        self.selector, self.budget, self.options = selector, budget, options
        self._merges = place_of(selector) == "tower"
        self._reads = reads_of(selector)
        self._selects_early = reads_only_reference_tokens(selector)
        final_layer = inner.config.vision_feature_layer
        if self._merges:
            if not self.one_size:
                raise ValueError(
                    f"pruner: {type(selector).__name__} merges tokens inside a tower of images of "
                    'one size; for others place="encoder" merges its output'
                )
            # Of the size that the tower was trained for; processors seldom have another.
            blank = torch.empty(1, 3, *2 * [tower.config.image_size], device="meta")
            self._plan_merges(inner, {}, tower, blank)
        self.reference_layer = tower.resolve_reference(options.reference_layer, final_layer)
        self.handle = Handle(options.timed)
        self.keeps_positions = self.decide_positions(inner)

    def attach(self, inner: Any, processor: Any, placeholders: Placeholders) -> Handle:
        """Replaces the methods of the inner model and of its processor."""
        replacements: list[Replacement] = [
            (inner, "get_image_features", self.get_image_features),
            (processor, "replace_image_token", placeholders.replace_image_token),
        ]
        if hasattr(processor, "_get_num_multimodal_tokens"):
            count = placeholders.get_num_multimodal_tokens
            replacements.append((processor, "_get_num_multimodal_tokens", count))
        if self.keeps_positions:
            replacements.append((inner, "forward", positions.forward))
        self.handle.replace_methods(*replacements)
        return self.handle

    def tower(self, inner: Any) -> Tower:
        """The vision tower of a model."""
        return Tower.of(inner.vision_tower)

    def decide_positions(self, inner: Any) -> bool:
        """Whether kept tokens of a model keep their positions; see `positions.keeps_positions`."""
        return positions.keeps_positions(self.options, inner)

    def get_image_features(self, original: Method, inner: Any, given: dict[str, Any]) -> Any:
        """As the model's own, with ``pooler_output`` a list of the kept tokens of each image."""
        raise NotImplementedError

    def run_unpruned(
        self, original: Method, given: dict[str, Any], ids: Tensor | list[Tensor]
    ) -> Any:
        """The model's own features of a call whose images keep all their tokens, ``ids``."""
        record = self.handle.begin()
        with record.stage("encoder", given["pixel_values"].device):
            output = original(**given)
        record.finish(ids)
        features = getattr(output, "pooler_output", None)
        # A tuple has none, but no language model is given one.
        if self.keeps_positions and features is not None:
            positions.tell_places(features, positions.whole_places(features))
        return output

    def run(
        self,
        inner: Any,
        given: dict[str, Any],
        tower: Tower,
        pixels: Tensor,
        groups: Sequence[ImageGroup],
        record: CallRecord,
        num_dropped: int | None = None,
        all_rows: bool = False,
    ) -> list[Tensor]:
        """Encodes a call's images once, selects and projects: ``[G, T, D]`` of each group.

        Args:
            inner: the model.
            given: the arguments of the call.
            tower: of the model.
            pixels: ``[B, 3, H, W]``.
            groups: of the call; those that are pruned come first.
            record: of the call.
            num_dropped: tokens left out at the front of ``pixels``' images; the prefix if None.
            all_rows: whether the first group has the tokens of all of ``pixels``, in order.
        """
        layer = read_setting(inner, given, "vision_feature_layer")
        own = {name: value for name, value in given.items() if name not in _OWN}
        if self._merges:
            with record.stage("encoder", pixels.device):
                merges = self._plan_merges(inner, given, tower, pixels)
                merged = tower.encode_merged(
                    pixels,
                    layer,
                    merges,
                    num_dropped=num_dropped,
                    skip_unused_layers=self.options.skip_unused_layers,
                    **own,
                )
            groups[0].keep(merged)
            return [self.project(inner, required(merged.tokens), record)]
        pending = PendingSelection(self.selector, record, pixels.device, self.options)
        saves = self.options.skip_unused_layers
        computes_rows = (
            all_rows
            and self._selects_early
            and saves
            and tower.can_compute_rows(self.reference_layer, layer)
        )

        def start(reference_tokens: Tensor) -> None:
            # Detached, as a layer that checkpoints gradients must save no tensors of others.
            tokens = self.arrange(reference_tokens.detach())
            for group in groups:
                if group.is_pruned:
                    pending.start(group.take(tokens), group.num_kept)

        with record.stage("encoder", pixels.device):
            inputs = tower.encode(
                pixels,
                self.reference_layer,
                layer,
                self._reads,
                on_reference_tokens=start,
                row_ids=(lambda: pending.finish().ids) if computes_rows else None,
                num_dropped=num_dropped,
                skip_unused_layers=saves,
                **own,
            )
        if computes_rows:
            groups[0].keep(pending.finish())
            return [self.project(inner, inputs.final_tokens, record)]
        inputs = self.arrange_inputs(inputs)
        return [
            self._run_group(inner, group, inputs, pending, index, record)
            for index, group in enumerate(groups)
        ]

    def _plan_merges(
        self, inner: Any, given: dict[str, Any], tower: Tower, pixels: Tensor
    ) -> Sequence[int]:
        """How many tokens of ``pixels``' images each layer merges."""
        strategy = read_setting(inner, given, "vision_feature_select_strategy")
        dropped, num_tokens = count_tokens(tower, pixels, strategy)
        # Prefix tokens that the model takes are some of the budget.
        prefix = max(dropped, tower.num_prefix)
        taken = prefix - dropped
        depth = tower.require_mergeable(read_setting(inner, given, "vision_feature_layer"))
        merges = cast(SelectorAttributes, self.selector).merges
        budget = min(self.budget, num_tokens)
        return merges(budget - taken, num_tokens - taken, depth, prefix)

    def arrange(self, tokens: Tensor) -> Tensor:
        """The tower's tokens ``[B, N, ...]`` as groups take them."""
        return tokens

    def arrange_inputs(self, inputs: SelectorInputs) -> SelectorInputs:
        """The same of all that the tower gives."""
        if self._selects_early:
            # The other fields are not read, and arranging may copy.
            return inputs._replace(final_tokens=self.arrange(inputs.final_tokens))
        return inputs.map_tokens(self.arrange)

    def project(self, inner: Any, tokens: Tensor, record: CallRecord) -> Tensor:
        """The projector's output."""
        with record.stage("projector", tokens.device):
            return cast(Tensor, inner.multi_modal_projector(tokens))

    def _run_group(
        self,
        inner: Any,
        group: ImageGroup,
        inputs: SelectorInputs,
        pending: PendingSelection,
        index: int,
        record: CallRecord,
    ) -> Tensor:
        """The projected tokens ``[G, T, D]`` that a group keeps, to which it is then reduced."""
        if not group.is_pruned:
            return self.project(inner, group.take(inputs.final_tokens), record)
        if self._selects_early:
            selected = pending.finish(group=index)
            group.keep(selected)
            # The rows of the kept tokens alone.
            merged = selected.tokens
            kept = group.take(inputs.final_tokens) if merged is None else merged
            return self.project(inner, kept, record)
        of_group = inputs.map_tokens(group.take)
        is_projected = place_of(self.selector) == "projector"
        if is_projected:
            projected = self.project(inner, of_group.final_tokens, record)
            of_group = of_group._replace(final_tokens=projected)
        selected = pending.finish(of_group, index)
        group.keep(selected)
        kept = selected.gather(of_group.final_tokens)
        return kept if is_projected else self.project(inner, kept, record)


class Placeholders:
    """What runs instead of a processor's methods: at most ``budget`` placeholders an image.

    It knows nothing of the model, so that a processor can be copied to other processes alone.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget

    def replace_image_token(self, original: Method, processor: Any, given: dict[str, Any]) -> str:
        """The placeholders of an image."""
        # From the processor's own count, which depends on CLS and the strategy.
        count = len(original(**given)) // len(processor.image_token)
        return str(processor.image_token * min(self.budget, count))

    def get_num_multimodal_tokens(
        self, original: Method, _processor: Any, given: dict[str, Any]
    ) -> Any:
        """The same, counted."""
        counted = original(**given)
        if counted.num_image_tokens is not None:
            counted.num_image_tokens = [min(self.budget, n) for n in counted.num_image_tokens]
        return counted


def read_setting(inner: Any, given: dict[str, Any], name: str) -> Any:
    """An argument of a call, or the model's own setting."""
    value = given.get(name)
    return getattr(inner.config, name) if value is None else value


def count_tokens(tower: Tower, pixel_values: Tensor, strategy: str) -> tuple[int, int]:
    """Tokens left out at the front, and those that the model takes of an image.

    Args:
        tower: of the model.
        pixel_values: ``[..., H, W]``.
        strategy: the model's ``vision_feature_select_strategy``.
    """
    dropped = 1 if strategy == "default" else 0
    return dropped, tower.num_prefix + tower.count_patches(pixel_values) - dropped


def as_output(features: list[Tensor], return_dict: bool | None) -> Any:
    """The features of a call's images as the model's ``get_image_features`` returns them."""
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    output = BaseModelOutputWithPooling(pooler_output=features)
    return output.to_tuple() if return_dict is False else output
