"""Folders of small images, and an encoder that costs nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ocvtp_kernels.cli.photo import open_photo
from ocvtp_kernels.training.feature_encoders import ReferenceEncoder
from ocvtp_kernels.training.feature_writer import FeatureWriter, find_images, write_features

WIDTH, SIDE = 6, 4


class Averages:
    """A cheap encoder: the mean colour of 4 x 4 patches, times two."""

    def __init__(self, **changes: Any) -> None:
        self.num_tokens, self.width, self.computed_in = SIDE * SIDE, WIDTH, "cpu float32"
        self.identity: dict[str, Any] = {
            "encoder": "averages",
            "model": None,
            "reference_layer": None,
            "weights_sha256": None,
            "num_tokens": self.num_tokens,
            "width": WIDTH,
            "grid": [SIDE, SIDE],
            "dtype": "float16",
        } | changes
        self.batches: list[int] = []

    def prepare(self, photo: Image.Image) -> Tensor:
        small = photo.resize((SIDE, SIDE), Image.Resampling.BOX)
        return torch.from_numpy(np.array(small)).permute(2, 0, 1).float() / 255

    def encode(self, pixels: Tensor) -> Tensor:
        self.batches.append(len(pixels))
        tokens = pixels.flatten(2).transpose(1, 2)
        return torch.cat([tokens, tokens * 3], dim=-1)


def make_images(folder: Path, count: int, start: int = 0) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{number:03d}.png" for number in range(start, start + count)]
    for number, name in enumerate(names, start):
        noise = np.random.default_rng(number).integers(0, 255, (9, 9, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / name)
    return names


def write(
    images: Path, output: Path, encoder: ReferenceEncoder | None = None, **options: Any
) -> int:
    """Encodes all images of a folder, three a shard."""
    writer = FeatureWriter(output, encoder or Averages(), options.pop("shard_size", 3))
    names = find_images(images)[: options.pop("limit", None)]
    return write_features(images, names, writer, open_photo, **{"batch_size": 2, **options})


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def expect(images: Path, name: str) -> Tensor:
    encoder = Averages()
    return encoder.encode(encoder.prepare(open_photo(images / name))[None])[0].half()
