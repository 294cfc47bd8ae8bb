"""Positions of an image's tokens in LLaVA-NeXT, and which of a call's images form a batch.

All of it follows from the sizes of the images alone.
"""

from __future__ import annotations

from itertools import accumulate
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ocvtp_kernels.ops.argmax_gather import gather_tokens
from ocvtp_kernels.selectors.interface import Selected
from ocvtp_kernels.vlm.towers import count_prefix

CPU = torch.device("cpu")
# Image sizes whose layout is cached.
MAX_SIZES = 256


class Layout(NamedTuple):
    """The tokens of an image of one size, and their positions in the model's packed sequence."""

    num_crops: int  # the whole image scaled down, then its tiles
    tokens: Tensor  # int64 [V], ascending: crop * patches of a crop + patch; none is padding
    positions: Tensor  # int64 [V], of these tokens in the packed sequence
    rows: Tensor  # int64 [V], of these tokens in the tower's output of all crops, prefixes included
    newlines: Tensor  # int64 [R], positions of its newlines

    @property
    def num_packed(self) -> int:
        """Length of the model's packed sequence, newlines included."""
        return self.tokens.shape[0] + self.newlines.shape[0]

    def to(self, device: torch.device) -> Layout:
        """The same on another device."""
        return Layout(self.num_crops, *(part.to(device) for part in self[1:]))


def lay_out(config: Any, height: int, width: int) -> Layout:
    """Layout of an image of ``height`` times ``width`` pixels, on the CPU.

    Args:
        config: of a LLaVA-NeXT; the model's own ``pack_image_features`` packs ids in place of
            features, so that the layout is the model's by construction.
        height, width: size of the image before it is scaled.
    """
    from transformers.models.llava_next.modeling_llava_next import (
        LlavaNextModel,
        image_size_to_num_patches,
    )

    vision = config.vision_config
    num_crops = image_size_to_num_patches(
        (height, width), config.image_grid_pinpoints, vision.image_size
    )
    patches = (vision.image_size // vision.patch_size) ** 2
    # Whatever the default device is; float64 holds every id exactly.
    ids = torch.arange(num_crops * patches, dtype=torch.float64, device=CPU)
    # Of the model it reads the config alone.
    (packed,), _ = LlavaNextModel.pack_image_features(
        SimpleNamespace(config=config),
        [ids.view(num_crops, patches, 1)],
        [(height, width)],
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        image_newline=torch.tensor([-1.0], dtype=torch.float64, device=CPU),
    )
    packed = packed.flatten().long()
    positions = (packed >= 0).nonzero().flatten()
    tokens, order = packed[positions].sort()
    rows = tokens + count_prefix(vision) * (tokens // patches + 1)
    return Layout(num_crops, tokens, positions[order], rows, (packed < 0).nonzero().flatten())


class Layouts:
    """Layouts by image size and device, each made and moved once.

    Args:
        config: of a LLaVA-NeXT.
    """

    def __init__(self, config: Any) -> None:
        self._config = config
        self._cache: dict[tuple[int, int, torch.device], Layout] = {}

    def of(self, size: tuple[int, int], device: torch.device = CPU) -> Layout:
        """Layout of an image of ``size`` (height, width), on ``device``."""
        key = (*size, device)
        layout = self._cache.get(key)
        if layout is None:
            # Tensors made in inference mode could not be used in training later.
            with torch.inference_mode(False):
                layout = lay_out(self._config, *size) if device == CPU else self.of(size).to(device)
            # Replaced as a whole, since other threads may read it.
            kept = list(self._cache.items())[-(MAX_SIZES - 1) :]
            self._cache = dict(kept) | {key: layout}
        return layout

    def __getstate__(self) -> dict[str, Any]:
        return {"_config": self._config, "_cache": {}}


class KeepCounts(NamedTuple):
    """How many tokens of an image are kept."""

    tokens: int
    newlines: int
    whole: bool  # whether the image stays as the model packs it

    @property
    def placeholders(self) -> int:
        """Placeholders that the prompt needs."""
        return self.tokens + self.newlines


def keep_counts(layout: Layout, budget: int, newlines: str) -> KeepCounts:
    """How many tokens of an image are kept: with newlines "drop" at most the budget in all."""
    tokens, rows = layout.tokens.shape[0], layout.newlines.shape[0]
    keeps_newlines = newlines == "all"
    if budget >= (tokens if keeps_newlines else layout.num_packed):
        return KeepCounts(tokens, rows, True)
    return KeepCounts(min(budget, tokens), rows if keeps_newlines else 0, False)


class PackedGroup:
    """Images of a call whose tensors have the same shapes, ``[G, ...]``.

    Attributes:
        images: their indices in the call.
        counts: what each of them keeps.
        num_kept: tokens kept of each, without newlines.
        tokens: ids ``[G, V]`` of their tokens, see `Layout`; after `keep` of those kept.
        positions: of these tokens in the packed image.
        rows: of these tokens in the tower's output of all crops of the call.
        newlines: positions of the kept newlines in the packed image, ``[G, R]``; only where any
            are kept.
        is_pruned: whether there were more tokens than are kept.
    """

    def __init__(
        self, images: list[int], counts: KeepCounts, layouts: list[Layout], starts: list[int]
    ) -> None:
        self.images, self.counts, self.num_kept = images, counts, counts.tokens
        # Never a view: of whole images the user gets these, and may write to them.
        self.tokens = torch.stack([layout.tokens for layout in layouts])
        self.is_pruned = counts.tokens < self.tokens.shape[1]
        self.positions = _stack([layout.positions for layout in layouts])
        # Adding a host number needs no copy to the device.
        self.rows = _stack(
            [
                layout.rows + start if start else layout.rows
                for layout, start in zip(layouts, starts, strict=True)
            ]
        )
        # Newlines are kept all or none; where they are dropped, images may differ in their number.
        if counts.newlines:
            self.newlines = _stack([layout.newlines for layout in layouts])

    def take(self, tokens: Tensor) -> Tensor:
        """Of the tower's output of all crops ``[P, ...]`` the group's tokens: ``[G, V, ...]``."""
        return tokens[self.rows]

    def keep(self, selected: Selected) -> None:
        """Reduces the group to the selected tokens."""
        parts = (self.tokens, self.positions, self.rows)
        self.tokens, self.positions, self.rows = (part.gather(1, selected.ids) for part in parts)

    @property
    def all_positions(self) -> Tensor:
        """Of tokens and kept newlines in the packed image, ``[G, T + R]``, newlines last."""
        if not self.counts.newlines:
            return self.positions
        return torch.cat((self.positions, self.newlines), dim=1)

    def pack(self, features: Tensor, newline: Tensor) -> Tensor:
        """Features ``[G, T, D]`` of the tokens with the kept newlines: ``[G, T + R, D]``, in order.

        Args:
            features: of the tokens.
            newline: ``[D]``.
        """
        if self.counts.newlines:
            newlines = newline.to(features).expand(len(self.images), self.counts.newlines, -1)
            features = torch.cat((features, newlines), dim=1)
        return gather_tokens(features, self.all_positions.argsort(dim=1))


def _stack(parts: list[Tensor]) -> Tensor:
    """``[G, ...]``, to be read only: of a single part it is a view."""
    return parts[0].unsqueeze(0) if len(parts) == 1 else torch.stack(parts)


def group_images(layouts: list[Layout], counts: list[KeepCounts], length: int) -> list[PackedGroup]:
    """Groups images that have and keep the same numbers of tokens; pruned ones come first.

    Args:
        layouts: of each image.
        counts: what each keeps.
        length: tokens that the tower makes of a crop.
    """
    starts = list(accumulate((layout.num_crops * length for layout in layouts), initial=0))
    alike: dict[tuple[int, KeepCounts], list[int]] = {}
    for image, (layout, each) in enumerate(zip(layouts, counts, strict=True)):
        alike.setdefault((layout.tokens.shape[0], each), []).append(image)
    groups = [
        PackedGroup(images, each, [layouts[i] for i in images], [starts[i] for i in images])
        for (_, each), images in alike.items()
    ]
    return sorted(groups, key=lambda group: not group.is_pruned)
