"""Photos encoded by the vision tower of a Hugging Face model, for `ocvtp prune --model`.

The towers, their layers and reference tokens are those of `ocvtp_kernels.attach`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor, nn

from ocvtp_kernels.installing import install_command
from ocvtp_kernels.selectors.interface import Selected, Selector, SelectorAttributes
from ocvtp_kernels.vlm.encoder import Encoded, Encoder
from ocvtp_kernels.vlm.family import find_family, model_types
from ocvtp_kernels.vlm.image_processors import (
    CLIP_PROCESSOR,
    STRIP,
    as_picture,
    cut_strip,
    find_processor_class,
    keeps_middle,
    load_processor,
    require_room,
)
from ocvtp_kernels.vlm.towers import AVAILABLE_FIELDS, Tower
from ocvtp_kernels.vlm.units import as_units

# The layer that LLaVA takes its tokens from, for towers whose model names none.
FINAL_LAYER = -2
_NOT_LOADED = (OSError, ValueError, KeyError, RuntimeError, SafetensorError)


class PhotoUnits(NamedTuple):
    """Of which patches a model makes one token, and how it is given a whole photo."""

    merge: int = 1  # height and width of a unit, in patches
    joins: bool = False  # whether the projector takes patches side by side, or else their mean
    normed: bool = False  # see `Tower.encode`
    settings: Mapping[str, Any] = {}  # of the image processor, by which it makes no tiles


class TowerEncoder:
    """A tower of images of one size, in float32 on the CPU.

    Candidates are the patches alone: prefix tokens (CLS, registers) have no position in a picture,
    and are left out even where the model's own strategy takes them. Where the processor makes
    crops beside the whole photo, as LLaVA-NeXT's does, the whole photo is encoded. Importance is
    the attention received in the layer that makes the (deepest) final tokens.

    Args:
        tower: the tower, whose parameters become float32.
        processor: the model's image processor.
        name: what the model is called in records.
        reference_layer: index of the layer whose output the decision is made on; if None by the
            depth, as `resolve_reference` has it: the published layer 8 for 24 layers.
        final_layer: index into ``hidden_states``, or several whose channels are joined.
        units: of which patches the model makes one token; None: of each.

    Raises:
        ValueError: the tower has no such reference layer, or takes no images of the processor's
            size.
    """

    def __init__(
        self,
        tower: Tower,
        processor: Any,
        name: str,
        reference_layer: int | None = None,
        final_layer: int | Sequence[int] = FINAL_LAYER,
        units: PhotoUnits | None = None,
    ) -> None:
        tower.module.float().eval()
        self.tower, self.processor, self.name = tower, processor, name
        self.width = tower.width
        self.reference_layer = tower.resolve_reference(reference_layer, final_layer)
        self.final_layer, self.units = final_layer, units or PhotoUnits()
        self._keeps_middle = keeps_middle(processor)
        self._merges = units is None and tower.can_merge(final_layer)
        self.num_tokens = self._count_tokens()

    @torch.inference_mode()
    def encode(self, photo: Image.Image) -> Encoded:
        """Encodes an RGB photo of any size."""
        pixels = self.prepare(photo)
        units = self.units
        inputs = self.tower.encode(
            pixels, self.reference_layer, self.final_layer, AVAILABLE_FIELDS, normed=units.normed
        )
        if units.merge > 1:
            inputs = as_units(inputs, units.merge, units.joins)
        rows, columns = self.tower.read_grid(pixels)
        high, wide = self.tower.patch_size
        # Pixels that fill no patch are not encoded.
        seen = pixels[0, :, : rows * high, : columns * wide]
        picture = as_picture(seen, self.processor)
        given, merge = {"pixel_values": pixels}, partial(self._merge, pixels)
        grid = self.read_grid(pixels)
        return Encoded(picture, inputs, grid, given, merge if self._merges else None)

    def read_grid(self, pixels: Tensor) -> tuple[int, int]:
        """Rows and columns of the tokens of pixels ``[..., H, W]``."""
        rows, columns = self.tower.read_grid(pixels)
        return rows // self.units.merge, columns // self.units.merge

    def _merge(self, pixels: Tensor, selector: Selector, budget: int) -> Selected:
        """See `Encoded`."""
        tower, layer = self.tower, self.final_layer
        merges = cast(SelectorAttributes, selector).merges(
            budget, tower.count_patches(pixels), tower.require_mergeable(layer), tower.num_prefix
        )
        return tower.encode_merged(pixels, layer, merges)

    def prepare(self, photo: Image.Image) -> Tensor:
        """``[1, 3, H, W]`` of an RGB photo of any size.

        Of a strip, a photo more than 32 times as long as wide, a processor that keeps the middle
        is given no more than that.

        Raises:
            ValueError: the photo is a strip of which the processor would make gigabytes.
        """
        if max(photo.size) > STRIP * min(photo.size):
            if self._keeps_middle:
                photo = cut_strip(photo, self.processor)
            else:
                require_room(photo, self.processor)
        settings = dict(self.units.settings)
        processed = self.processor(photo, return_tensors="pt", **settings)
        pixels: Tensor = processed["pixel_values"].float()
        return pixels[:, 0] if pixels.dim() == 5 else pixels

    @torch.inference_mode()
    def _count_tokens(self) -> int | None:
        """By the processor, whose size may differ from the one in the tower's config."""
        blanks = [self.prepare(Image.new("RGB", size)) for size in ((64, 48), (48, 64))]
        try:
            self.tower.encode(blanks[0], 0, 0)
        except (RuntimeError, ValueError) as error:
            high, wide = blanks[0].shape[-2:]
            raise ValueError(
                f"model: the tower of {self.name!r} takes no images of {high} x {wide} pixels, "
                f"which its processor makes: {error}"
            ) from error
        (rows, columns), turned = map(self.read_grid, blanks)
        return rows * columns if (rows, columns) == turned else None


def load_tower_encoder(source: str | Path, reference_layer: int | None = None) -> Encoder:
    """`load_model` and `open_encoder`."""
    return open_encoder(load_model(source), source, reference_layer)


def load_model(source: str | Path) -> Any:
    """A Hugging Face model in the dtype that it was saved in, without its head.

    Args:
        source: hub id or directory.

    Raises:
        ValueError: it cannot be loaded.
    """
    try:
        from transformers import AutoModel
    except ImportError as error:
        needed = f"model: transformers is needed and is not installed: run {install_command('vlm')}"
        raise ValueError(needed) from error
    try:
        return AutoModel.from_pretrained(source, dtype="auto")
    except _NOT_LOADED as error:
        # transformers says that a hub cannot be reached, but not that a folder works as well.
        hint = "" if Path(source).is_dir() else " (a folder that has the model's files will do too)"
        raise ValueError(f"model: cannot load {str(source)!r}{hint}: {error}") from error


def open_encoder(model: Any, source: str | Path, reference_layer: int | None = None) -> Encoder:
    """The encoder of a Hugging Face model.

    Final tokens are those of the model's own ``vision_feature_layer``, or ``hidden_states[-2]`` as
    LLaVA takes them where it names none; those of a merger are its output.

    Args:
        model: a vision model (CLIP, SigLIP, DINOv2), one with such a model inside (CLIP, SigLIP),
            or a model of any family that `ocvtp_kernels.attach` knows.
        source: hub id or directory that it was loaded from.
        reference_layer: index of the encoder layer whose output the decision is made on; if None
            by the depth, as `resolve_reference` has it: the published layer 8 for 24 layers.

    Raises:
        ValueError: the model has no vision tower known here, or no such layer.
    """
    name, processor = str(source), load_processor(source)
    family = find_family(model.config.model_type)
    if family is not None and family.open_photos is not None:
        return family.open_photos(model, processor, name, reference_layer)
    return open_tower(model, processor, name, reference_layer)


def open_tower(model: Any, processor: Any, name: str, reference_layer: int | None) -> TowerEncoder:
    """The encoder of a model that is or has a tower of images of one size.

    Args:
        model: the model.
        processor: its image processor; CLIP's if None.
        name: what the model is called in records.
        reference_layer: as `TowerEncoder` has it.

    Raises:
        ValueError: the model has no vision tower known here, or no such layer.
    """
    try:
        tower = _find_tower(model)
    except ValueError as error:
        raise ValueError(
            f"model: {name!r} is none of {model_types()}, and has no vision tower known here: "
            f"{error}"
        ) from error
    final_layer = getattr(model.config, "vision_feature_layer", None)
    final_layer = FINAL_LAYER if final_layer is None else final_layer
    if processor is None:
        side = tower.config.image_size
        processor = find_processor_class(CLIP_PROCESSOR)(
            size={"shortest_edge": side}, crop_size={"height": side, "width": side}
        )
    return TowerEncoder(tower, processor, name, reference_layer, final_layer)


def _find_tower(model: nn.Module) -> Tower:
    """The vision tower that a model is, or has inside."""
    try:
        return Tower.of(model)
    except ValueError:
        for name in ("vision_tower", "vision_model"):
            inner = getattr(model, name, None)
            if isinstance(inner, nn.Module):
                return _find_tower(inner)
        raise
