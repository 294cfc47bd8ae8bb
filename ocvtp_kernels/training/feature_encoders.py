"""Reference tokens of photos in batches, by the encoders of `ocvtp prune`."""

from __future__ import annotations

import hashlib
import math
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor

from ocvtp_kernels.training.features import DTYPE
from ocvtp_kernels.vlm.encoder import DescriptorEncoder, Encoder
from ocvtp_kernels.vlm.tower_encoder import TowerEncoder
from ocvtp_kernels.vlm.towers import Tower
from ocvtp_kernels.vlm.units import average_units


class ReferenceEncoder(Protocol):
    """Reference tokens of photos, a batch at a time."""

    identity: dict[str, Any]  # the manifest's entries that identify the encoder
    num_tokens: int  # N, of every photo
    width: int  # C
    computed_in: str  # device and dtype

    def prepare(self, photo: Image.Image) -> Tensor:
        """Pixels float32 ``[3, H, W]`` of an RGB photo; called from several threads."""
        ...

    def encode(self, pixels: Tensor) -> Tensor:
        """Reference tokens ``[B, N, C]`` of pixels ``[B, 3, H, W]``, on any device."""
        ...


def make_reference_encoder(encoder: Encoder, device: str = "cpu") -> ReferenceEncoder:
    """Batches for what encodes single photos for ``ocvtp prune``, which is moved to the device.

    Args:
        encoder: the descriptor or a tower of images of one size.
        device: ``"cpu"``, where it computes in float32, or ``"cuda"``, where a tower computes in
            the dtype that its model was saved in.

    Raises:
        ValueError: there is no such device, or N depends on the photo.
    """
    if device not in ("cpu", "cuda"):
        raise ValueError(f"device: expected cpu or cuda, got {device!r}")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device: torch {torch.__version__} sees no GPU")
    if isinstance(encoder, DescriptorEncoder):
        return _DescriptorReference(encoder, torch.device(device))
    if isinstance(encoder, TowerEncoder) and encoder.num_tokens is not None:
        return _TowerReference(encoder, torch.device(device))
    raise ValueError(
        "model: expected a vision tower of images of one size, so that every image has as many "
        f"tokens, got {encoder.name!r}, which takes them at their own size"
    )


class _DescriptorReference:
    """The weight-free patch descriptor."""

    def __init__(self, encoder: DescriptorEncoder, device: torch.device) -> None:
        self._encoder, self.device = encoder, device
        self.descriptor = encoder.descriptor.to(device)
        grid, self.width = self.descriptor.grid, self.descriptor.width
        self.num_tokens = math.prod(grid)
        self.identity = _identify(encoder.name, grid, self.width)
        self.computed_in = f"{device.type} float32"

    def prepare(self, photo: Image.Image) -> Tensor:
        return self._encoder.prepare(photo)[1]

    @torch.inference_mode()
    def encode(self, pixels: Tensor) -> Tensor:
        tokens: Tensor = self.descriptor(pixels.to(self.device))
        return tokens


class _TowerReference:
    """A tower of images of one size."""

    def __init__(self, encoder: TowerEncoder, device: torch.device) -> None:
        self._encoder, self.tower, self.layer = encoder, encoder.tower, encoder.reference_layer
        # The encoder converted the weights to float32, which is exact.
        own = getattr(self.tower.config, "dtype", None) or torch.float32
        weights = _hash_weights(self.tower, self.layer, own)
        of_tower = {"model": encoder.name, "reference_layer": self.layer, "weights_sha256": weights}
        self.device, self.dtype = device, own if device.type == "cuda" else torch.float32
        self.tower.module.to(device=device, dtype=self.dtype)
        grid = encoder.read_grid(self.prepare(Image.new("RGB", (64, 64))))
        self.num_tokens, self.width = math.prod(grid), encoder.width
        name = self.tower.config.model_type
        self.identity = _identify(name, grid, self.width, **of_tower)
        self.computed_in = f"{device.type} {str(self.dtype).removeprefix('torch.')}"

    def prepare(self, photo: Image.Image) -> Tensor:
        return self._encoder.prepare(photo)[0]

    @torch.inference_mode()
    def encode(self, pixels: Tensor) -> Tensor:
        pixels = pixels.to(device=self.device, dtype=self.dtype)
        # hidden_states[0] is the embedding; layers after the one asked for do not run.
        tokens = self.tower.encode(pixels, self.layer, self.layer + 1).reference_tokens
        merge = self._encoder.units.merge
        return tokens if merge == 1 else average_units(tokens, merge)


def _identify(encoder: str, grid: tuple[int, int], width: int, **of_tower: Any) -> dict[str, Any]:
    """Entries of the manifest; those of a tower are null where there is none."""
    no_tower = {"model": None, "reference_layer": None, "weights_sha256": None}
    sizes = {"num_tokens": math.prod(grid), "width": width, "grid": list(grid), "dtype": DTYPE}
    return {"encoder": encoder, **no_tower, **of_tower, **sizes}


def _hash_weights(tower: Tower, layer: int, dtype: torch.dtype) -> str:
    """SHA-256 of the weights that compute the reference tokens: embedding and layers up to theirs.

    Names are not hashed, since they differ between versions of transformers.
    """
    digest = hashlib.sha256()
    inner: Any = getattr(tower.module, "vision_model", tower.module)
    for part in (inner.embeddings, *tower.layers[: layer + 1]):
        for weight in part.parameters():
            values = weight.detach().to(device="cpu", dtype=dtype).flatten()
            digest.update(values.view(torch.uint8).numpy().data)
    return digest.hexdigest()
