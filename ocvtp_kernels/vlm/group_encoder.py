"""Images encoded at once, of which a selector keeps tokens, group by group of equal counts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, cast

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
    required,
)
from ocvtp_kernels.selectors.oc_pruner import require_fit
from ocvtp_kernels.vlm.handle import CallRecord, Options
from ocvtp_kernels.vlm.pending_selection import PendingSelection
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


class NumberedGroup(Protocol):
    """A group that knows its images by their indices in the call."""

    images: list[int]


def by_image(groups: Sequence[NumberedGroup], parts: Sequence[Tensor]) -> list[Tensor]:
    """The rows of all groups' ``[G, ...]``, in the order of the call's images."""
    rows: dict[int, Tensor] = {}
    for group, part in zip(groups, parts, strict=True):
        rows |= zip(group.images, part.unbind(), strict=True)
    return [rows[image] for image in sorted(rows)]


class GroupEncoder:
    """Encodes, selects and projects; a family says which images of a call form groups.

    Args:
        inner: the model. A call takes the model that it is given, which may be a copy.
        selector, budget, options: as `attach` has them.

    Raises:
        ValueError: the tower is of no known type, or the selector or the reference layer does not
            fit the model.
    """

    # Whether all images have as many candidates.
    one_size = True
    # Whether the projector takes tokens behind the norm that follows the tower's last layer.
    normed = False
    # Fields that the tower can fill, but not for all candidates of an image together.
    unavailable_fields: frozenset[str] = frozenset()

    def __init__(self, inner: Any, selector: Selector, budget: int, options: Options) -> None:
        tower = self.tower(inner)
        require_fit(selector, tower.width, one_size=self.one_size)
        require_available(selector, tower.available_fields - self.unavailable_fields)
        self.selector, self.budget, self.options = selector, budget, options
        self._merges = place_of(selector) == "tower"
        self._reads = reads_of(selector)
        self.selects_early = reads_only_reference_tokens(selector)
        if self._merges:
            # Of the size that the tower was trained for; processors seldom have another.
            blank = torch.empty(1, 3, *tower.image_size, device="meta")
            self.plan_merges(inner, {}, tower, blank)
        final_layer = self.final_layer(inner, {})
        self.reference_layer = tower.resolve_reference(options.reference_layer, final_layer)

    def tower(self, inner: Any) -> Tower:
        """The vision tower of a model."""
        return Tower.of(inner.vision_tower)

    def final_layer(self, inner: Any, given: dict[str, Any]) -> int | Sequence[int]:
        """The layer of the final tokens, as `Tower.encode` has it, in a call."""
        raise NotImplementedError

    def plan_merges(
        self, inner: Any, given: dict[str, Any], tower: Tower, pixels: Tensor
    ) -> Sequence[int]:
        """How many tokens of ``pixels``' images each layer merges.

        Raises:
            ValueError: tokens cannot merge in this tower.
        """
        raise ValueError(
            f"pruner: {type(self.selector).__name__} merges tokens inside a tower of images of "
            'one size; for others place="encoder" merges its output'
        )

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
        layer = self.final_layer(inner, given)
        own = {name: value for name, value in given.items() if name not in _OWN}
        if self._merges:
            with record.stage("encoder", pixels.device):
                merges = self.plan_merges(inner, given, tower, pixels)
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
            and self.selects_early
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
                normed=self.normed,
                skip_unused_layers=saves,
                **own,
            )
        if computes_rows:
            groups[0].keep(pending.finish())
            return [self.project(inner, inputs.final_tokens, record)]
        inputs = self.arrange_inputs(inputs)
        return [
            self.run_group(inner, group, inputs, pending, index, record)
            for index, group in enumerate(groups)
        ]

    def arrange(self, tokens: Tensor) -> Tensor:
        """The tower's tokens ``[B, N, ...]`` as groups take them."""
        return tokens

    def arrange_inputs(self, inputs: SelectorInputs) -> SelectorInputs:
        """The same of all that the tower gives."""
        if self.selects_early:
            # The other fields are not read, and arranging may copy.
            return inputs._replace(final_tokens=self.arrange(inputs.final_tokens))
        return inputs.map_tokens(self.arrange)

    def project(self, inner: Any, tokens: Tensor, record: CallRecord) -> Tensor:
        """The projector's output."""
        with record.stage("projector", tokens.device):
            return cast(Tensor, inner.multi_modal_projector(tokens))

    def run_group(
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
        if self.selects_early:
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
