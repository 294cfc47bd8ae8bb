"""Models whose prompt gets as many placeholders as tokens are kept: encode, select, project.

``get_image_features`` of the inner model then returns the kept tokens, and the processor writes the
placeholders. What differs between such families is which tokens of a call form a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor

from ocvtp_kernels.ops.argmax_gather import gather_tokens
from ocvtp_kernels.selectors.interface import Selected, Selector, SelectorAttributes
from ocvtp_kernels.vlm import positions
from ocvtp_kernels.vlm.group_encoder import GroupEncoder
from ocvtp_kernels.vlm.handle import Handle, Options
from ocvtp_kernels.vlm.replaced import Method, Replacement, Run
from ocvtp_kernels.vlm.towers import Tower


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


class PlaceholderPruning(GroupEncoder):
    """What runs instead of ``get_image_features``.

    Args:
        inner: the model whose method it is.
        selector, budget, options: as `attach` has them.

    Attributes:
        keeps_positions: whether kept tokens stand where they do in the whole prompt.

    Raises:
        ValueError: as of `GroupEncoder`, or the positions do not fit the model.
    """

    def __init__(self, inner: Any, selector: Selector, budget: int, options: Options) -> None:
        super().__init__(inner, selector, budget, options)
        self.handle = Handle(options.timed)
        self.keeps_positions = self.decide_positions(inner)

    def final_layer(self, inner: Any, given: dict[str, Any]) -> int | Sequence[int]:
        layer: int | Sequence[int] = read_setting(inner, given, "vision_feature_layer")
        return layer

    def attach(self, inner: Any, processor: Any, placeholders: Placeholders) -> Handle:
        """Replaces the methods of the inner model and of its processor."""
        replacements: list[Replacement] = [
            (inner, "get_image_features", self.get_image_features),
            (processor, "replace_image_token", placeholders.replace_image_token),
        ]
        if hasattr(processor, "_get_num_multimodal_tokens"):
            count = placeholders.get_num_multimodal_tokens
            replacements.append((processor, "_get_num_multimodal_tokens", count))
        forward = self.choose_forward()
        if forward is not None:
            replacements.append((inner, "forward", forward))
        self.handle.replace_methods(*replacements)
        return self.handle

    def choose_forward(self) -> Run | None:
        """What runs instead of the inner model's ``forward``; None: nothing."""
        return positions.forward if self.keeps_positions else None

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

    def run(self, *args: Any, **kwargs: Any) -> list[Tensor]:
        """See `GroupEncoder.run`."""
        with positions.apart():
            return super().run(*args, **kwargs)

    def plan_merges(
        self, inner: Any, given: dict[str, Any], tower: Tower, pixels: Tensor
    ) -> Sequence[int]:
        if not self.one_size:
            return super().plan_merges(inner, given, tower, pixels)
        strategy = read_setting(inner, given, "vision_feature_select_strategy")
        dropped, num_tokens = count_tokens(tower, pixels, strategy)
        # Prefix tokens that the model takes are some of the budget.
        prefix = max(dropped, tower.num_prefix)
        taken = prefix - dropped
        depth = tower.require_mergeable(self.final_layer(inner, given))
        merges = cast(SelectorAttributes, self.selector).merges
        budget = min(self.budget, num_tokens)
        return merges(budget - taken, num_tokens - taken, depth, prefix)


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
