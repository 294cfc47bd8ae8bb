"""Where LLaVA-NeXT has the tokens of an image, which follows from the image's size alone."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

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
