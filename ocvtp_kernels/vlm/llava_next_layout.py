"""Positions of an image's tokens in LLaVA-NeXT, and which of a call's images form a batch.

All of it follows from the sizes of the images alone.
"""

from __future__ import annotations

from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ocvtp_kernels.selectors.interface import Selected

CPU = torch.device("cpu")
# Image sizes whose layout is cached.
MAX_SIZES = 256


class Layout(NamedTuple):
    """The tokens of an image of one size, and their positions in the model's packed sequence."""

    num_crops: int  # the whole image scaled down, then its tiles
    tokens: Tensor  # int64 [V], ascending: crop * patches of a crop + patch; none is padding
    positions: Tensor  # int64 [V], of these tokens in the packed sequence
    newlines: Tensor  # int64 [R], positions of its newlines

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
    positions = (packed >= 0).nonzero().flatten()
    tokens, order = packed[positions].sort()
    return Layout(num_crops, tokens, positions[order], (packed < 0).nonzero().flatten())


class Layouts:
    """Layouts by image size and device, each made and moved once.

    Args:
        inner: a ``LlavaNextModel``.
    """

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self._cache: dict[tuple[int, int, torch.device], Layout] = {}

    def of(self, size: tuple[int, int], device: torch.device = CPU) -> Layout:
        """Layout of an image of ``size`` (height, width), on ``device``."""
        key = (*size, device)
        if key not in self._cache:
            # Tensors made in inference mode could not be used in training later.
            with torch.inference_mode(False):
                layout = lay_out(self._inner, *size) if device == CPU else self.of(size).to(device)
            while len(self._cache) >= MAX_SIZES:
                del self._cache[next(iter(self._cache))]
            self._cache[key] = layout
        return self._cache[key]


class KeepCounts(NamedTuple):
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
        images: their indices in the call.
        counts: what each of them keeps.
        tokens: ids ``[G, V]`` of their tokens, see `Layout`; after `keep` of those kept.
        positions: of these tokens in the packed image.
        rows: of these tokens among all patches of the call.
        newlines: positions of the kept newlines in the packed image, ``[G, R]``; only where any
            are kept.
        is_pruned: whether there were more tokens than are kept.
    """

    def __init__(
        self, images: list[int], counts: KeepCounts, layouts: list[Layout], starts: list[int]
    ) -> None:
        self.images, self.counts = images, counts
        # Never a view: of whole images the user gets these, and may write to them.
        self.tokens = torch.stack([layout.tokens for layout in layouts])
        self.is_pruned = counts.tokens < self.tokens.shape[1]
        self.positions = _stack([layout.positions for layout in layouts])
        # Adding a host number needs no copy to the device.
        self.rows = _stack(
            [
                layout.tokens + start if start else layout.tokens
                for layout, start in zip(layouts, starts, strict=True)
            ]
        )
        # Newlines are kept all or none; where they are dropped, images may differ in their number.
        if counts.newlines:
            self.newlines = _stack([layout.newlines for layout in layouts])

    def keep(self, selected: Selected) -> Selected:
        """Reduces the group to the selected tokens; returns ``selected``."""
        parts = (self.tokens, self.positions, self.rows)
        self.tokens, self.positions, self.rows = (part.gather(1, selected.ids) for part in parts)
        return selected


def _stack(parts: list[Tensor]) -> Tensor:
    """``[G, ...]``, to be read only: of a single part it is a view."""
    return parts[0].unsqueeze(0) if len(parts) == 1 else torch.stack(parts)


def group_images(layouts: list[Layout], counts: list[KeepCounts], patches: int) -> list[Group]:
    """Groups images that have and keep the same numbers of tokens, given the patches of a crop."""
    starts = list(accumulate((layout.num_crops * patches for layout in layouts), initial=0))
    alike: dict[tuple[int, KeepCounts], list[int]] = {}
    for image, (layout, each) in enumerate(zip(layouts, counts, strict=True)):
        alike.setdefault((layout.tokens.shape[0], each), []).append(image)
    return [
        Group(images, each, [layouts[i] for i in images], [starts[i] for i in images])
        for (_, each), images in alike.items()
    ]
