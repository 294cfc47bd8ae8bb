"""Encoders of one photo into reference and final tokens, and one that needs no weights.

`ocvtp_kernels.vlm.tower_encoder` has those with the vision tower of a Hugging Face model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ocvtp_kernels.selectors.interface import Selected, Selector, SelectorInputs
from ocvtp_kernels.vlm.descriptor import PatchDescriptor


class Encoded(NamedTuple):
    """One photo, encoded."""

    picture: Image.Image  # RGB, what the encoder saw
    inputs: SelectorInputs  # of a batch of one, without padding
    grid: tuple[int, int]  # rows, columns; N = rows * columns, row by row
    given: Mapping[str, Tensor] = {}  # the arguments of a whole model that are the photo, if any
    # What a selector of the place "tower" makes of the photo; None where tokens cannot merge there.
    merge: Callable[[Selector, int], Selected] | None = None


class Encoder(Protocol):
    """The vision encoder interface of `ocvtp prune`."""

    name: str
    num_tokens: int | None  # N; None where it depends on the photo
    width: int  # C_in

    def encode(self, photo: Image.Image) -> Encoded:
        """Encodes an RGB photo of any size."""
        ...


class DescriptorEncoder:
    """The weight-free patch descriptor: both token sets are its 576 tokens.

    A photo is scaled until its short side is 336 pixels, and its middle square kept.
    """

    def __init__(self) -> None:
        self.descriptor = PatchDescriptor()
        self.name = "patch descriptor"
        self.width = self.descriptor.width
        self.num_tokens: int | None = self.descriptor.grid[0] * self.descriptor.grid[1]

    def prepare(self, photo: Image.Image) -> tuple[Image.Image, Tensor]:
        """The encoded part of an RGB photo of any size, and its pixels float32 ``[3, H, W]``."""
        size = (self.descriptor.image_size, self.descriptor.image_size)
        picture = ImageOps.fit(photo, size, method=Image.Resampling.BICUBIC)
        return picture, torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255

    def encode(self, photo: Image.Image) -> Encoded:
        """Encodes an RGB photo of any size."""
        picture, pixels = self.prepare(photo)
        tokens = self.descriptor(pixels[None])
        grid = self.descriptor.grid
        return Encoded(picture, SelectorInputs(tokens, tokens, grid=grid), grid)
