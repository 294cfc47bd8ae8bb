"""Damaged photos of every format that Pillow writes, read as `ocvtp prune` reads them.

``python -m tests.cli.mutated --count 10000`` reads so many, and prints what became of them.
"""

from __future__ import annotations

import argparse
import io
import random
import resource
import sys
import tempfile
import time
import traceback
import warnings
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ocvtp_kernels.cli.photo import open_photo, quiet_pillow
from ocvtp_kernels.vlm.encoder import DescriptorEncoder

# By format, the photos that are damaged: mode and options. A format with several frames has two.
VARIANTS: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "AVIF": [("RGB", {"speed": 10}), ("RGBA", {"speed": 10})],
    "BMP": [("RGB", {}), ("P", {}), ("1", {})],
    "DDS": [("RGBA", {}), ("L", {}), ("RGB", {"pixel_format": "DXT1"})],
    "GIF": [("P", {}), ("P", {"transparency": 3, "save_all": True}), ("L", {})],
    "ICNS": [("RGBA", {})],
    "ICO": [("RGBA", {}), ("RGB", {"bitmap_format": "bmp"})],
    "IM": [("L", {}), ("RGB", {}), ("F", {}), ("I;16", {}), ("P", {})],
    "JPEG": [
        ("RGB", {"exif": True}),
        ("L", {"progressive": True}),
        ("CMYK", {}),
        ("RGB", {"exif": True, "restart_marker_rows": 1, "optimize": True}),
    ],
    "JPEG2000": [("RGB", {}), ("L", {"no_jp2": True}), ("RGBA", {"tile_size": (32, 32)})],
    "MPO": [("RGB", {"save_all": True, "exif": True})],
    "MSP": [("1", {})],
    "PCX": [("RGB", {}), ("P", {}), ("1", {})],
    "PNG": [
        ("RGB", {"exif": True}),
        ("RGBA", {"save_all": True}),
        ("P", {"transparency": bytes(range(256))}),
        ("I;16", {"transparency": 40000}),
        ("1", {}),
        ("LA", {}),
    ],
    "PPM": [("RGB", {}), ("L", {}), ("1", {}), ("I", {}), ("F", {})],
    "QOI": [("RGB", {}), ("RGBA", {})],
    "SGI": [("RGB", {}), ("L", {}), ("RGBA", {"bpc": 2})],
    "SPIDER": [("F", {})],
    "TGA": [("RGB", {"compression": "tga_rle"}), ("P", {}), ("LA", {}), ("1", {})],
    "TIFF": [
        ("RGB", {"exif": True}),
        ("F", {}),
        ("I", {}),
        ("I;16B", {}),
        ("LAB", {}),
        ("RGBA", {"compression": "tiff_lzw", "save_all": True}),
        ("CMYK", {"compression": "tiff_adobe_deflate"}),
        ("RGB", {"compression": "jpeg"}),
        ("1", {"compression": "group4"}),
    ],
    "WEBP": [("RGB", {"exif": True}), ("RGBA", {"lossless": True, "save_all": True})],
}


def make_photo(mode: str) -> Image.Image:
    """A smooth photo of 61 x 47 pixels."""
    coarse = np.random.default_rng(0).integers(0, 255, (5, 7, 4), dtype=np.uint8)
    photo = Image.fromarray(coarse).resize((61, 47), Image.Resampling.BICUBIC)
    grey = np.asarray(photo.convert("L"))
    if mode.startswith("I;16"):
        dtype = ">u2" if mode.endswith("B") else "<u2"
        return Image.frombytes(mode, photo.size, (grey.astype(dtype) * 257).tobytes())
    if mode == "LAB":
        return Image.frombytes(mode, photo.size, photo.convert("RGB").tobytes())
    if mode in ("CMYK", "P", "I", "F"):
        photo = photo.convert("RGB")
    return photo.convert(mode)


def make_sound() -> dict[str, list[bytes]]:
    """Sound files by format, as far as this Pillow writes them."""
    exif = Image.Exif()
    exif[0x010F], exif[0x0112], exif[0x011A] = "a maker of cameras", 6, 72.0
    exif.get_ifd(0x8769)[0x9003] = "2020:02:02 02:02:02"
    sound: dict[str, list[bytes]] = defaultdict(list)
    Image.init()
    for kind, variants in VARIANTS.items():
        for mode, options in variants if kind in Image.SAVE else ():
            more = {**options, "exif": exif} if "exif" in options else dict(options)
            photo, file = make_photo(mode), io.BytesIO()
            if "save_all" in options:
                more["append_images"] = [photo.transpose(Image.Transpose.ROTATE_180)]
            try:
                with quiet_pillow():
                    photo.save(file, kind, **more)
            # A codec that was left out, or a mode that this version does not write.
            except (OSError, KeyError, ValueError, RuntimeError):
                continue
            sound[kind].append(file.getvalue())
    return sound


def damage(data: bytes, draw: random.Random) -> bytes:
    """A file with one to three kinds of damage, each of which may be in its header."""
    changed = bytearray(data)
    for _ in range(draw.randint(1, 3)):
        end = draw.choice((16, 64, 512, len(changed)))
        at = draw.randrange(max(1, min(end, len(changed))))
        size = draw.choice((1, 2, 4, 8, 64, 300))
        kind = draw.randrange(9)
        if kind == 0:
            for place in range(at, min(at + size, len(changed))):
                changed[place] ^= 1 << draw.randrange(8)
        elif kind == 1:
            changed[at : at + size] = bytes(len(changed[at : at + size]))
        elif kind == 2:
            changed[at : at + size] = b"\xff" * len(changed[at : at + size])
        elif kind == 3:
            changed[at : at + size] = draw.randbytes(len(changed[at : at + size]))
        elif kind == 4:
            del changed[at:]
        elif kind == 5:
            del changed[at : at + size]
        elif kind == 6:
            changed[at:at] = draw.randbytes(size)
        elif kind == 7:
            changed[at:at] = changed[at : at + size]
        else:
            # A number of a header: a size, a count, an offset.
            number = draw.choice(
                (0, 1, 9, 255, 8000, 13000, 2**15, 2**16 - 1, 2**31 - 1, 2**32 - 1)
            )
            width = draw.choice((2, 4))
            raw = (number % 2 ** (8 * width)).to_bytes(width, draw.choice(("little", "big")))
            changed[at : at + width] = raw
    return bytes(changed)


def mend_sums(data: bytes) -> bytes:
    """A PNG whose chunks have the checksums of their contents, so that these are looked at."""
    mended, at = bytearray(data), 8
    while at + 12 <= len(mended):
        end = at + 8 + int.from_bytes(mended[at : at + 4], "big")
        if end + 4 > len(mended):
            break
        mended[end : end + 4] = zlib.crc32(mended[at + 4 : end]).to_bytes(4, "big")
        at = end + 4
    return bytes(mended)


def make_damaged(count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """Damaged files, of each format in turn."""
    sound = make_sound()
    kinds = sorted(sound)
    for number in range(count):
        draw = random.Random(f"{seed} {number}")
        kind = kinds[number % len(kinds)]
        damaged = damage(draw.choice(sound[kind]), draw)
        yield kind, mend_sums(damaged) if kind == "PNG" else damaged


class Outcome(NamedTuple):
    """What became of damaged files."""

    read: Counter[str]  # by format
    skipped: Counter[str]
    faults: list[str]  # tracebacks, and reasons that are no sentence
    longest: tuple[float, str, int]  # seconds, format and number of the slowest file


def read_damaged(count: int, seed: int, folder: Path) -> Outcome:
    """Reads damaged files up to the pixels that the descriptor takes."""
    encoder = DescriptorEncoder()
    outcome = Outcome(Counter(), Counter(), [], (0.0, "", -1))
    for number, (kind, data) in enumerate(make_damaged(count, seed)):
        path = folder / "damaged"
        path.write_bytes(data)
        begun = time.perf_counter()
        try:
            with quiet_pillow():
                encoder.prepare(open_photo(path))
            outcome.read[kind] += 1
        except ValueError as error:
            reason = str(error)
            empty = not reason.removeprefix("not a whole image:").strip()
            if empty or "Warning" in reason or len(reason.splitlines()) > 1:
                outcome.faults.append(f"{kind} {number}: {reason!r}")
            outcome.skipped[kind] += 1
        except Exception:
            outcome.faults.append(f"{kind} {number}: {traceback.format_exc()}")
        seconds = time.perf_counter() - begun
        if seconds > outcome.longest[0]:
            outcome = outcome._replace(longest=(seconds, kind, number))
    return outcome


def main() -> None:
    """Reads as many as asked for; ends with 1 if any ended otherwise than read or skipped."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    warnings.simplefilter("error")
    with tempfile.TemporaryDirectory() as folder:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        outcome = read_damaged(options.count, options.seed, Path(folder))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for kind in sorted(outcome.read | outcome.skipped):
        print(f"{kind:10}{outcome.read[kind]:6} read{outcome.skipped[kind]:6} skipped")
    print(f"longest: {outcome.longest[0]:.2f} s, {outcome.longest[1]} {outcome.longest[2]}")
    print(f"peak memory: {(peak - before) / 1024:.0f} MiB above {before / 1024:.0f} MiB")
    print(f"{len(outcome.faults)} faults", *outcome.faults[:20], sep="\n")
    sys.exit(bool(outcome.faults))


if __name__ == "__main__":
    main()
