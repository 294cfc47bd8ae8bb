"""Where LLaVA-NeXT has the tokens of an image, and which of a call's images go together.

All of it follows from the sizes of the images alone.
"""

from __future__ import annotations

from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ocvtp_kernels.selectors.interface import Selected

CPU = torch.device("cpu")
# Sizes remembered; photos of one source share a few.
MAX_SIZES = 256


class Layout(NamedTuple):
    """The tokens of an image of one size, and their places in the model's packed sequence."""

    num_crops: int  # the whole image scaled down, then its tiles
    tokens: Tensor  # int64 [V], ascending: crop * patches of a crop + patch; none is padding
    places: Tensor  # int64 [V], where the packed sequence has them
    newlines: Tensor  # int64 [R], where the packed sequence has its newlines

    @property
    def num_packed(self) -> int:
        """Length of the model's packed sequence, newlines included."""
        return self.tokens.shape[0] + self.newlines.shape[0]

    def to(self, device: torch.device) -> Layout:
        """The same on another device."""
        return Layout(self.num_crops, *(part.to(device) for part in self[1:]))


def lay_out(inner: Any, height: int, width: int) -> Layout:
    """Layout of an image of ``height`` times ``width`` pixels, on the CPU.

    Args:
        inner: a ``LlavaNextModel``; its own ``pack_image_features`` packs ids in place of
            features, so that the layout is the model's by construction.
        height, width: size of the image before it is scaled.
    """
    from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

    vision = inner.config.vision_config
    num_crops = image_size_to_num_patches(
        (height, width), inner.config.image_grid_pinpoints, vision.image_size
    )
    patches = (vision.image_size // vision.patch_size) ** 2
    # Whatever the default device is; float64 holds every id exactly.
    ids = torch.arange(num_crops * patches, dtype=torch.float64, device=CPU)
    (packed,), _ = inner.pack_image_features(
        [ids.view(num_crops, patches, 1)],
        [(height, width)],
        vision_feature_select_strategy=inner.config.vision_feature_select_strategy,
        image_newline=torch.tensor([-1.0], dtype=torch.float64, device=CPU),
    )
    packed = packed.flatten().long()
    places = (packed >= 0).nonzero().flatten()
    tokens, order = packed[places].sort()
    return Layout(num_crops, tokens, places[order], (packed < 0).nonzero().flatten())


class Layouts:
    """Layouts by image size and device, each made and moved once.

    Args:
        inner: a ``LlavaNextModel``.
    """

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self._known: dict[tuple[int, int, torch.device], Layout] = {}

    def of(self, size: tuple[int, int], device: torch.device = CPU) -> Layout:
        """Layout of an image of ``size`` (height, width), on ``device``."""
        key = (*size, device)
        if key not in self._known:
            # What is made in inference mode could not be used in training later.
            with torch.inference_mode(False):
                layout = lay_out(self._inner, *size) if device == CPU else self.of(size).to(device)
            while len(self._known) >= MAX_SIZES:
                del self._known[next(iter(self._known))]
            self._known[key] = layout
        return self._known[key]


class Plan(NamedTuple):
    """How many tokens of an image are kept."""

    tokens: int
    newlines: int
    whole: bool  # whether the image stays as the model packs it

    @property
    def placeholders(self) -> int:
        """Placeholders that the prompt needs."""
        return self.tokens + self.newlines


class Group:
    """Images of a call whose tensors have the same shapes, ``[G, ...]``.

    Attributes:
        images: their places in the call.
        plan: what each of them keeps.
        tokens: ids ``[G, V]`` of their tokens, see `Layout`; after `keep` of those kept.
        places: where these stand in the packed image.
        rows: where these stand among all patches of the call.
        newlines: places of the kept newlines in the packed image, ``[G, R]``; only where the plan
            keeps any.
        is_pruned: whether there were more tokens than the plan keeps.
    """

    def __init__(
        self, images: list[int], plan: Plan, layouts: list[Layout], starts: list[int]
    ) -> None:
        self.images, self.plan = images, plan
        # Of whole images these are told to the user, who may write to them: never a view.
        self.tokens = torch.stack([layout.tokens for layout in layouts])
        self.is_pruned = plan.tokens < self.tokens.shape[1]
        self.places = _stack([layout.places for layout in layouts])
        # A number of the host that is added needs no copy to the device.
        self.rows = _stack(
            [
                layout.tokens + start if start else layout.tokens
                for layout, start in zip(layouts, starts, strict=True)
            ]
        )
        # None or all of them: where they are dropped, images may differ in how many they had.
        if plan.newlines:
            self.newlines = _stack([layout.newlines for layout in layouts])

    def keep(self, selected: Selected) -> Selected:
        """Leaves the tokens selected alone; returns ``selected``."""
        parts = (self.tokens, self.places, self.rows)
        self.tokens, self.places, self.rows = (part.gather(1, selected.ids) for part in parts)
        return selected


def _stack(parts: list[Tensor]) -> Tensor:
    """``[G, ...]``, to be read only: of a single part it is a view."""
    return parts[0].unsqueeze(0) if len(parts) == 1 else torch.stack(parts)


def group_images(layouts: list[Layout], plans: list[Plan], patches: int) -> list[Group]:
    """The images by what they hold and keep, given the patches of a crop."""
    starts = list(accumulate((layout.num_crops * patches for layout in layouts), initial=0))
    alike: dict[tuple[int, Plan], list[int]] = {}
    for image, (layout, plan) in enumerate(zip(layouts, plans, strict=True)):
        alike.setdefault((layout.tokens.shape[0], plan), []).append(image)
    return [
        Group(images, plan, [layouts[i] for i in images], [starts[i] for i in images])
        for (_, plan), images in alike.items()
    ]
