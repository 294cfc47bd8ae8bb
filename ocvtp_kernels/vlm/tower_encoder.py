"""Photos encoded by the vision tower of a Hugging Face model, for `ocvtp prune --model`.

The towers, their layers and reference tokens are those of `ocvtp_kernels.attach`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor, nn

from ocvtp_kernels.installing import install_command
from ocvtp_kernels.selectors.interface import SelectorInputs
from ocvtp_kernels.vlm.encoder import Encoded, Encoder
from ocvtp_kernels.vlm.qwen_encoder import merge_units
from ocvtp_kernels.vlm.towers import AVAILABLE_FIELDS, Tower, resolve_reference

# The layer that LLaVA takes its tokens from, for towers whose model names none.
FINAL_LAYER = -2
QWEN = "qwen2_5_vl"
CLIP_PROCESSOR = "CLIPImageProcessor"
_NOT_LOADED = (OSError, ValueError, KeyError, RuntimeError, SafetensorError)


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
        reference_layer: index of the layer whose output the decision is made on; a third of the
            depth if None, which is the published layer 8 for 24 layers.
        final_layer: index into ``hidden_states``, or several whose channels are joined.

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
    ) -> None:
        tower.module.float().eval()
        self.tower, self.processor, self.name = tower, processor, name
        self.width = tower.width
        self.reference_layer = resolve_reference(reference_layer, len(tower.layers))
        self.final_layer = final_layer
        self.num_tokens = self._count_tokens()

    @torch.inference_mode()
    def encode(self, photo: Image.Image) -> Encoded:
        """Encodes an RGB photo of any size."""
        pixels = self.prepare(photo)
        inputs = self.tower.encode(pixels, self.reference_layer, self.final_layer, AVAILABLE_FIELDS)
        rows, columns = self.tower.read_grid(pixels)
        high, wide = self.tower.patch_size
        # Pixels that fill no patch are not encoded.
        seen = pixels[0, :, : rows * high, : columns * wide]
        return Encoded(_as_picture(seen, self.processor), inputs, (rows, columns))

    def prepare(self, photo: Image.Image) -> Tensor:
        """``[1, 3, H, W]`` of a photo."""
        pixels: Tensor = self.processor(photo, return_tensors="pt")["pixel_values"].float()
        return pixels[:, 0] if pixels.dim() == 5 else pixels

    @torch.inference_mode()
    def _count_tokens(self) -> int | None:
        """By the processor, whose size may differ from the one in the tower's config."""
        blanks = [self.prepare(Image.new("RGB", size)) for size in ((64, 48), (48, 64))]
        inner: Any = getattr(self.tower.module, "vision_model", self.tower.module)
        try:
            inner.embeddings(blanks[0])
        except (RuntimeError, ValueError) as error:
            high, wide = blanks[0].shape[-2:]
            raise ValueError(
                f"model: the tower of {self.name!r} takes no images of {high} x {wide} pixels, "
                f"which its processor makes: {error}"
            ) from error
        (rows, columns), turned = map(self.tower.read_grid, blanks)
        return rows * columns if (rows, columns) == turned else None


class QwenTowerEncoder:
    """The tower of Qwen2.5-VL at the photo's own resolution, in float32 on the CPU.

    Tokens are merged units: reference tokens the mean of the patches of a unit, final tokens what
    the merger makes of it. There is no importance, and N depends on the photo.

    Args:
        visual: the model's ``visual``, which becomes float32.
        processor: the model's image processor.
        name: what the model is called in records.
        reference_layer: index of the block whose output the decision is made on; a third of the
            depth if None.

    Raises:
        ValueError: the tower has no such block.
    """

    num_tokens: int | None = None

    def __init__(
        self, visual: Any, processor: Any, name: str, reference_layer: int | None = None
    ) -> None:
        self.visual, self.processor, self.name = visual.float().eval(), processor, name
        self.width = int(visual.config.hidden_size)
        self.reference_layer = resolve_reference(reference_layer, len(visual.blocks))

    @torch.inference_mode()
    def encode(self, photo: Image.Image) -> Encoded:
        """Encodes an RGB photo of any size."""
        processed = self.processor(photo, return_tensors="pt")
        pixels, grid = processed["pixel_values"].float(), processed["image_grid_thw"]
        # A hook for one block, since all hidden states of a large photo would be gigabytes.
        states: list[Any] = []
        hook = self.visual.blocks[self.reference_layer].register_forward_hook(
            lambda _block, _args, output: states.append(output)
        )
        try:
            final_tokens = self.visual(pixels, grid_thw=grid, return_dict=True).pooler_output
        finally:
            hook.remove()
        state = states[0] if isinstance(states[0], Tensor) else states[0][0]
        rows, columns = (int(side) // self.visual.spatial_merge_size for side in grid[0, 1:])
        reference_tokens = merge_units(self.visual, state, grid).unsqueeze(0)
        picture = _as_picture(self._join_patches(pixels, rows, columns), self.processor)
        inputs = SelectorInputs(reference_tokens, final_tokens[None], grid=(rows, columns))
        return Encoded(picture, inputs, (rows, columns))

    def _join_patches(self, pixels: Tensor, rows: int, columns: int) -> Tensor:
        """The image ``[3, H, W]`` that ``pixels`` ``[patches, 3 * time * height * width]`` are.

        Patches come unit by unit, and a photo is repeated over time.
        """
        merge, patch = self.visual.spatial_merge_size, self.visual.patch_size
        units = pixels.reshape(rows, columns, merge, merge, 3, -1, patch, patch)[:, :, :, :, :, 0]
        side = merge * patch
        return units.permute(4, 0, 2, 5, 1, 3, 6).reshape(3, rows * side, columns * side)


def load_tower_encoder(source: str | Path, reference_layer: int | None = None) -> Encoder:
    """The encoder of a Hugging Face model.

    Final tokens are those of the model's own ``vision_feature_layer``, or ``hidden_states[-2]`` as
    LLaVA takes them where it names none; Qwen2.5-VL's are its merger's.

    Args:
        source: hub id or directory of a vision model (CLIP, SigLIP, DINOv2), or of a model with
            one inside: CLIP, SigLIP, LLaVA-1.5, LLaVA-NeXT, Qwen2.5-VL.
        reference_layer: index of the encoder layer whose output the decision is made on; a third
            of the depth if None, which is the published layer 8 for 24 layers.

    Raises:
        ValueError: ``source`` cannot be loaded, has no vision tower known here, or has no such
            layer.
    """
    try:
        from transformers import AutoModel
    except ImportError as error:
        needed = f"model: transformers is needed and is not installed: run {install_command('vlm')}"
        raise ValueError(needed) from error
    try:
        model = AutoModel.from_pretrained(source, dtype="auto")
    except _NOT_LOADED as error:
        # transformers says that a hub cannot be reached, but not that a folder works as well.
        hint = "" if Path(source).is_dir() else " (a folder that has the model's files will do too)"
        raise ValueError(f"model: cannot load {str(source)!r}{hint}: {error}") from error
    config, name = model.config, str(source)
    if config.model_type == QWEN:
        return QwenTowerEncoder(
            model.visual, _load_qwen_processor(source, model.visual), name, reference_layer
        )
    try:
        tower = _find_tower(model)
    except ValueError as error:
        raise ValueError(
            f"model: {name!r} is no {QWEN}, and has no vision tower known here: {error}"
        ) from error
    final_layer = getattr(config, "vision_feature_layer", None)
    final_layer = FINAL_LAYER if final_layer is None else final_layer
    processor = _load_processor(source)
    if processor is None:
        side = tower.config.image_size
        processor = _find_processor_class(CLIP_PROCESSOR)(
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


def _load_processor(source: str | Path) -> Any:
    """The image processor saved with a model, or None where there is none."""
    from transformers import AutoImageProcessor

    with suppress(ImportError, OSError, ValueError, KeyError):
        return AutoImageProcessor.from_pretrained(source)
    # Older transformers' auto class needs torchvision, the classes themselves do not.
    with suppress(ImportError, OSError, ValueError, KeyError):
        clip = _find_processor_class(CLIP_PROCESSOR)
        settings, _ = clip.get_image_processor_dict(source)
        name = settings.get("image_processor_type", "")
        return _find_processor_class(name, clip).from_pretrained(source)
    return None


def _find_processor_class(saved_name: str, default: Any = None) -> Any:
    """The class of an image processor that needs no torchvision, by its saved name."""
    import transformers

    plain = saved_name.removesuffix("Fast")
    for name in (f"{plain}Pil", plain):
        if plain and hasattr(transformers, name):
            return getattr(transformers, name)
    return default


def _load_qwen_processor(source: str | Path, visual: Any) -> Any:
    processor = _load_processor(source)
    if hasattr(processor, "merge_size"):
        return processor
    return _find_processor_class("Qwen2VLImageProcessor")(
        patch_size=visual.patch_size,
        merge_size=visual.spatial_merge_size,
        temporal_patch_size=visual.config.temporal_patch_size,
    )


def _as_picture(pixels: Tensor, processor: Any) -> Image.Image:
    """The RGB image that a processor made ``pixels`` ``[3, H, W]`` of."""
    mean, std = (
        torch.tensor(values).view(3, 1, 1) for values in (processor.image_mean, processor.image_std)
    )
    image = (pixels * std + mean).clamp(0, 1).mul(255).round().byte()
    return Image.fromarray(image.permute(1, 2, 0).numpy())
