"""Vision encoders that turn one photo into the pruner's two token sets.

`DescriptorEncoder` needs no weights; `TowerEncoder` taps the vision tower of a Hugging Face model
at two depths, as arXiv 2511.20439 does on CLIP.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn

from ocvtp_kernels.vlm.descriptor import PatchDescriptor


class Encoded(NamedTuple):
    """One photo, encoded."""

    picture: Image.Image  # RGB, what the encoder saw
    reference_tokens: Tensor  # [1, N, C_in], what the decision is made on
    final_tokens: Tensor  # [1, N, C], what is kept
    importance: Tensor | None  # [1, N], attention received, or None
    grid: tuple[int, int]  # rows, columns; N = rows * columns


class Encoder(Protocol):
    """What `ocvtp prune` asks of a vision encoder."""

    name: str
    num_tokens: int
    width: int

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
        self.num_tokens = self.descriptor.grid[0] * self.descriptor.grid[1]

    def encode(self, photo: Image.Image) -> Encoded:
        """Encodes an RGB photo of any size."""
        size = (self.descriptor.image_size, self.descriptor.image_size)
        picture = ImageOps.fit(photo, size, method=Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1).unsqueeze(0).float() / 255
        tokens = self.descriptor(pixels)
        return Encoded(picture, tokens, tokens, None, self.descriptor.grid)


class TowerEncoder:
    """The vision tower of a Hugging Face model, in float32 on the CPU.

    Final tokens are ``hidden_states[-2]``, as LLaVA takes them; reference tokens are the output
    of an earlier layer; importance is the attention received in the layer that makes the final
    tokens, mean over heads and all queries. Prefix tokens (CLS, registers) are dropped from all.

    Args:
        source: hub id or directory of a CLIP-like vision model, of a CLIP model or of a LLaVA.
        reference_layer: index of the encoder layer whose output the decision is made on; a third
            of the depth if None, which is the published layer 8 for 24 layers.

    Raises:
        ValueError: ``source`` cannot be loaded, has no vision tower that can be tapped, or has
            no such layer.
    """

    def __init__(self, source: str | Path, reference_layer: int | None = None) -> None:
        try:
            from transformers import AutoModel
        except ImportError as error:
            raise ValueError(
                "model: transformers is needed, install it with pip install 'ocvtp-kernels[vlm]'"
            ) from error
        try:
            model = AutoModel.from_pretrained(source, dtype="auto")
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(f"model: cannot load {str(source)!r}: {error}") from error
        self.tower = _find_tower(model, source).float().eval()
        self.processor = _load_processor(source, self.tower)
        config: Any = self.tower.config
        self.name = str(source)
        self.width = int(config.hidden_size)
        self.patch_size = int(config.patch_size)
        self.num_tokens = (int(config.image_size) // self.patch_size) ** 2
        self.layers = _find_layers(self.tower, source)
        depth = len(self.layers)
        self.reference_layer = depth // 3 if reference_layer is None else reference_layer
        if not 0 <= self.reference_layer < depth:
            raise ValueError(f"reference_layer: expected 0 to {depth - 1}, got {reference_layer}")

    @torch.inference_mode()
    def encode(self, photo: Image.Image) -> Encoded:
        """Encodes an RGB photo of any size."""
        pixels: Tensor = self.processor(photo, return_tensors="pt")["pixel_values"].float()
        grid = (pixels.shape[-2] // self.patch_size, pixels.shape[-1] // self.patch_size)
        with _captured_attention(self.layers, self.tower.config) as attention:
            # A list of indices would mean other layers in some transformers versions.
            states = self.tower(pixels, output_hidden_states=True).hidden_states
        num_tokens = grid[0] * grid[1]
        prefix = states[0].shape[1] - num_tokens
        importance = None
        if {"q", "k"} <= attention.keys():
            importance = torch.ops.ocvtp.attention_received(
                attention["q"], attention["k"], "meanq"
            )[:, prefix:]
        return Encoded(
            picture=self._picture(pixels),
            reference_tokens=states[self.reference_layer + 1][:, prefix:],
            final_tokens=states[-2][:, prefix:],
            importance=importance,
            grid=grid,
        )

    def _picture(self, pixels: Tensor) -> Image.Image:
        mean, std = (
            torch.tensor(values).view(3, 1, 1)
            for values in (self.processor.image_mean, self.processor.image_std)
        )
        image = (pixels[0] * std + mean).clamp(0, 1).mul(255).round().byte()
        return Image.fromarray(image.permute(1, 2, 0).numpy())


def _find_tower(model: nn.Module, source: str | Path) -> nn.Module:
    """The vision tower inside a model, however deep it is wrapped."""
    for name in ("vision_tower", "vision_model"):
        inner = getattr(model, name, None)
        if isinstance(inner, nn.Module):
            return _find_tower(inner, source)
    if not hasattr(model.config, "patch_size"):
        raise ValueError(f"model: {str(source)!r} has no vision tower with patches")
    return model


def _find_layers(tower: nn.Module, source: str | Path) -> nn.ModuleList:
    encoder = getattr(tower, "encoder", None)
    for name in ("layers", "layer"):
        layers = getattr(encoder, name, None)
        if isinstance(layers, nn.ModuleList) and len(layers) >= 1:
            return layers
    raise ValueError(f"model: the vision tower of {str(source)!r} has no list of encoder layers")


def _load_processor(source: str | Path, tower: nn.Module) -> Any:
    """The model's own image processor, or CLIP's at the tower's size where none was saved."""
    from transformers import AutoImageProcessor, CLIPImageProcessor

    # Older transformers' auto class needs torchvision; CLIP's own reads the same file without.
    for processor in (AutoImageProcessor, CLIPImageProcessor):
        with suppress(ImportError, OSError, ValueError, KeyError):
            return processor.from_pretrained(source)
    size = int(tower.config.image_size)  # type: ignore[union-attr, arg-type]
    return CLIPImageProcessor(
        size={"shortest_edge": size}, crop_size={"height": size, "width": size}
    )


@contextmanager
def _captured_attention(layers: nn.ModuleList, config: Any) -> Iterator[dict[str, Tensor]]:
    """Queries and keys ``[B, H, N, d]`` of the layer that makes the final tokens.

    Empty where the tower is too shallow, or its attention has no ``q_proj`` and ``k_proj``.
    """
    captured: dict[str, Tensor] = {}
    attention = getattr(layers[-2], "self_attn", None) if len(layers) > 1 else None
    handles = []
    for key in ("q", "k"):
        projection = getattr(attention, f"{key}_proj", None)
        if isinstance(projection, nn.Module):

            def keep(_module: nn.Module, _args: Any, output: Tensor, key: str = key) -> None:
                heads = output.unflatten(-1, (config.num_attention_heads, -1))
                captured[key] = heads.transpose(1, 2)

            handles.append(projection.register_forward_hook(keep))
    try:
        yield captured
    finally:
        for handle in handles:
            handle.remove()
