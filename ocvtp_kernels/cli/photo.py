"""Opening photos in the formats, number ranges and orientations that people have them in."""

from __future__ import annotations

import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, TiffImagePlugin, TiffTags

from ocvtp_kernels.text import describe_error

# How a photo is turned upright, by its EXIF orientation.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_UNSIGNED = 1  # the SampleFormat of a TIFF that names none


def open_photo(path: Path) -> Image.Image:
    """Reads a photo whole, as RGB, upright by its EXIF tag and transparency on white.

    Of several frames it is the first. Grey of 16 bits spans black to white by its full range. Grey
    of 32 bits or of floats has no range of its own, so the photo's least finite value is black and
    its greatest white; NaN, -inf and a photo of one value are black, and inf is white. Where EXIF
    cannot be read, the photo stays as it lies.

    Raises:
        ValueError: the file is missing, or its decoder fails, in whatever way; in one line.
    """
    try:
        with Image.open(path) as file:
            file.load()
            # Not exif_transpose, which writes all of the EXIF anew and fails on any odd tag.
            turn = _TURNS.get(_read_orientation(file))
            photo = _convert(file)
            # Or what reads the orientation once more would turn the photo again.
            photo.info.clear()
            return photo if turn is None else photo.transpose(turn)
    except FileNotFoundError as error:
        raise ValueError("no such file") from error
    # A broken file can make its decoder raise anything.
    except Exception as error:
        raise ValueError(f"not a whole image: {describe_error(error)}") from error


@contextmanager
def quiet_pillow() -> Iterator[None]:
    """Hides Pillow's warnings of photos that it reads all the same; for a whole command.

    Filters of warnings belong to the process, so threads within share them.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


def _read_orientation(file: Image.Image) -> Any:
    """The EXIF orientation, 1 to 8 in a sound file; None where there is none to be read."""
    with suppress(Exception):
        orientation = file.getexif().get(ExifTags.Base.Orientation)
        if orientation is not None:
            return orientation
    # Pillow leaves out every entry after one whose value is cut off.
    with suppress(Exception):
        exif = file.info["exif"].removeprefix(b"Exif\0\0")
        order = ">" if exif.startswith(b"MM") else "<"
        (at,) = struct.unpack_from(f"{order}I", exif, 4)
        (count,) = struct.unpack_from(f"{order}H", exif, at)
        for entry in range(at + 2, at + 2 + 12 * count, 12):
            tag, kind, _, value = struct.unpack_from(f"{order}HHIH", exif, entry)
            if (tag, kind) == (ExifTags.Base.Orientation, TiffTags.SHORT):
                return value
    return None


def _convert(photo: Image.Image) -> Image.Image:
    """A photo of any mode as RGB."""
    if photo.mode == "F" or photo.mode.startswith("I"):
        photo = Image.fromarray(_scale_grey(photo))
    if photo.has_transparency_data:
        photo = photo.convert("RGBA")
        white = Image.new("RGBA", photo.size, "white")
        photo = Image.alpha_composite(white, photo)
    return photo.convert("RGB")


def _scale_grey(photo: Image.Image) -> npt.NDArray[np.uint8]:
    """Grey of more than 8 bits, which Pillow would clip, scaled to 8."""
    values = np.asarray(photo)
    # 16 bits are mode I in PPM, and in PNG before Pillow 11.
    if photo.mode.startswith("I;16") or (photo.mode == "I" and photo.format in ("PNG", "PPM")):
        grey = (values.clip(0, 65535) // 256).astype(np.uint8)
        transparent = photo.info.get("transparency")
        if isinstance(transparent, int):
            grey[values == transparent] = 255
        return grey
    if photo.mode == "I" and isinstance(photo, TiffImagePlugin.TiffImageFile):
        kinds = photo.tag_v2.get(TiffImagePlugin.SAMPLEFORMAT, (_UNSIGNED,))
        if kinds[0] == _UNSIGNED:
            values = values.view(np.uint32)
    finite = np.isfinite(values)
    # A NaN that a file marks as signalling warns as it is copied.
    with np.errstate(invalid="ignore"):
        scaled = values.astype(np.float64)
    least, greatest = (scaled[finite].min(), scaled[finite].max()) if finite.any() else (0, 0)
    scaled -= least
    scaled *= 255 / ((greatest - least) or 1)
    # What is not finite; the others lie in 0..255 already.
    np.nan_to_num(scaled, copy=False, nan=0, posinf=255, neginf=0)
    return scaled.round().astype(np.uint8)
