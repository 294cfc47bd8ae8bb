"""Image processors of Hugging Face models, without torchvision."""

from __future__ import annotations

import math
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL import Image

CLIP_PROCESSOR = "CLIPImageProcessor"
# A photo more than so many times as long as wide is a strip.
STRIP = 32
# What a processor may make of a strip, in pixels of which it holds about 10 bytes each.
_MOST_PIXELS = 2**26
# Lanczos, the widest of Pillow's filters, reads so many pixels to either side.
_WIDEST_FILTER = 3


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


def keeps_middle(processor: Any) -> bool:
    """Whether a processor scales the short side of a photo and keeps the middle, as CLIP's does.

    That is tried, as others have the same settings and squeeze or pad the whole photo.
    """
    from PIL import Image

    flags = ("do_resize", "do_center_crop")
    if not (
        all(getattr(processor, name, False) for name in flags)
        and set(_read_size(processor, "size")) == {"shortest_edge"}
        and set(_read_size(processor, "crop_size")) == {"height", "width"}
        and isinstance(getattr(processor, "resample", None), int)
    ):
        return False
    whole = Image.linear_gradient("L").resize((8, 64)).convert("RGB")
    seen, expected = (
        processor(photo, return_tensors="pt")["pixel_values"].float()
        for photo in (cut_strip(whole, processor), whole)
    )
    # A level of 255 is about 0.015 here, the gradient over the photo about 4.
    return seen.shape == expected.shape and bool((seen - expected).abs().max() < 0.1)


def cut_strip(photo: Image.Image, processor: Any) -> Image.Image:
    """The middle of an RGB photo, scaled, for a processor that `keeps_middle`.

    The processor makes of it what it would make of the photo, which it would scale whole first,
    to 1 of 255 levels (2 with Lanczos, and a pixel's place with the nearest one and the box). It is
    more only where a filter overshoots black or white, as Pillow scales width and height in an
    order that depends on the size.
    """
    short, crop = _read_size(processor, "size")["shortest_edge"], _read_size(processor, "crop_size")
    is_wide = photo.width > photo.height
    side, length = min(photo.size), max(photo.size)
    cropped = crop["width" if is_wide else "height"]
    scaled, kept = int(short * length / side), max(short, cropped)
    if kept >= scaled:
        return photo
    # The processor crops once more, in the middle of what is kept.
    start = (scaled - cropped) // 2 - (kept - cropped) // 2
    low, high = (end * length / scaled for end in (start, start + kept))
    margin = _WIDEST_FILTER * max(1.0, side / short) + 2
    # Pillow takes a box as float32, in which a place far along a strip is no longer exact.
    first = max(0, math.floor(low - margin))
    last = min(length, math.ceil(high + margin))
    low, high = low - first, high - first
    if is_wide:
        part = photo.crop((first, 0, last, side))
        return part.resize((kept, short), processor.resample, box=(low, 0, high, side))
    part = photo.crop((0, first, side, last))
    return part.resize((short, kept), processor.resample, box=(0, low, side, high))


def require_room(photo: Image.Image, processor: Any) -> None:
    """Raises ValueError for a strip of which a processor would make too many pixels to hold."""
    side, length = min(photo.size), max(photo.size)
    short, made = _read_size(processor, "size").get("shortest_edge"), 0
    # One that makes tiles pads to a square only where it is given several images.
    has_tiles = getattr(processor, "image_grid_pinpoints", None)
    pads = hasattr(processor, "pad_to_square") and getattr(processor, "do_pad", False)
    if pads and not has_tiles:
        made = length**2
    elif short and not getattr(processor, "do_center_crop", False):
        made = short**2 * length // side
    if made > _MOST_PIXELS:
        raise ValueError(
            f"photo: expected at most {_MOST_PIXELS} pixels after the model's processor, which "
            f"would make {made} of {photo.width} x {photo.height}"
        )


def _read_size(processor: Any, name: str) -> dict[str, int]:
    """A setting of a processor in pixels, as far as it is given."""
    # A dict, or what transformers has in its place.
    setting = getattr(processor, name, None) or {}
    return {key: value for key, value in dict(setting).items() if value}
