"""Opening photos in the formats and orientations of cameras."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps


def open_photo(path: Path) -> Image.Image:
    """Reads a photo whole, as RGB, upright by its EXIF tag and transparency on white.

    Raises:
        ValueError: the file is missing, truncated or no image.
    """
    try:
        with Image.open(path) as file:
            file.load()
            photo = ImageOps.exif_transpose(file)
    except FileNotFoundError as error:
        raise ValueError("no such file") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"not a whole image: {error}") from error
    if photo.mode.startswith("I"):
        # Pillow would clip 16 bits of grey to 8 instead of scaling them.
        grey = np.asarray(photo).clip(0, 65535) // 256
        photo = Image.fromarray(grey.astype(np.uint8))
    if photo.has_transparency_data:
        photo = photo.convert("RGBA")
        white = Image.new("RGBA", photo.size, "white")
        photo = Image.alpha_composite(white, photo)
    return photo.convert("RGB")
