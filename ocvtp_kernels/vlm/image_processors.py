"""Image processors of Hugging Face models, without torchvision."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL import Image

CLIP_PROCESSOR = "CLIPImageProcessor"


def load_processor(source: str | Path) -> Any:
    """The image processor saved with a model, or None where there is none."""
    from transformers import AutoImageProcessor

    with suppress(ImportError, OSError, ValueError, KeyError):
        return AutoImageProcessor.from_pretrained(source)
    # Older transformers' auto class needs torchvision, the classes themselves do not.
    with suppress(ImportError, OSError, ValueError, KeyError):
        clip = find_processor_class(CLIP_PROCESSOR)
        settings, _ = clip.get_image_processor_dict(source)
        name = settings.get("image_processor_type", "")
        return find_processor_class(name, clip).from_pretrained(source)
    return None


def find_processor_class(saved_name: str, default: Any = None) -> Any:
    """The class of an image processor that needs no torchvision, by its saved name."""
    import transformers

    plain = saved_name.removesuffix("Fast")
    for name in (f"{plain}Pil", plain):
        if plain and hasattr(transformers, name):
            return getattr(transformers, name)
    return default


def as_picture(pixels: Tensor, processor: Any) -> Image.Image:
    """The RGB image that a processor made ``pixels`` ``[3, H, W]`` of."""
    from PIL import Image

    mean, std = (
        torch.tensor(values).view(3, 1, 1) for values in (processor.image_mean, processor.image_std)
    )
    image = (pixels * std + mean).clamp(0, 1).mul(255).round().byte()
    return Image.fromarray(image.permute(1, 2, 0).numpy())
