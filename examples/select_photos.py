"""What training-free methods keep of a folder of photos, without weights of any model.

    python examples/select_photos.py photos/ --budget 64 --output kept/

Tokens are those of the package's patch descriptor (docs/demo.md), 576 of each photo. All methods
keep as many, of all photos in one batch, and a picture of each photo shows which. Coverage tells
how well the kept tokens stand for all. Without a folder the photos are four of scikit-image's.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

import ocvtp_kernels as ocvtp
from ocvtp_kernels.vlm.encoder import DescriptorEncoder

BUILD = Path(__file__).parents[1] / "build"
BUNDLED = ("astronaut", "chelsea", "coffee", "rocket")
# Of all methods those that can do without a model, each with its options.
METHODS: dict[str, dict[str, Any]] = {
    "scope": {"alpha": 0.0},  # coverage alone, whatever the attention
    "divprune": {},
    "idpruner": {"score": "relevance"},
    "apet": {},
    "random": {"seed": 0},
}


def read_photos(folder: Path | None) -> dict[str, Image.Image]:
    """The photos of a folder by their names, or those that scikit-image ships."""
    if folder is not None:
        known = Image.registered_extensions()
        paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in known)
        opened = {path.name: ImageOps.exif_transpose(Image.open(path)) for path in paths}
        return {name: photo.convert("RGB") for name, photo in opened.items()}
    try:
        from skimage import data
    except ImportError:
        sys.exit("Name a folder of photos, or install scikit-image, which ships some.")
    return {name: Image.fromarray(getattr(data, name)()) for name in BUNDLED}


def draw(picture: Image.Image, ids: Tensor, grid: tuple[int, int]) -> Image.Image:
    """The picture with patches that are not kept dimmed."""
    rows, columns = grid
    kept = torch.zeros(rows * columns, dtype=torch.bool)
    kept[ids] = True
    bright = np.kron(kept.view(grid), np.ones((picture.height // rows, picture.width // columns)))
    pixels = np.asarray(picture) * (0.3 + 0.7 * bright[..., None])
    return Image.fromarray(pixels.astype(np.uint8))


def main(arguments: list[str] | None = None) -> None:
    """Prints a row for each method, and writes a picture for each photo, its panels the methods."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("photos", type=Path, nargs="?", metavar="FOLDER")
    parser.add_argument("--budget", type=int, default=64, help="tokens to keep of 576")
    parser.add_argument("--output", type=Path, default=BUILD / "select_photos", metavar="FOLDER")
    given = parser.parse_args(arguments)
    photos, encoder = read_photos(given.photos), DescriptorEncoder()
    if not photos:
        sys.exit(f"{given.photos}: no photos")
    prepared = [encoder.prepare(photo) for photo in photos.values()]
    tokens = encoder.descriptor(torch.stack([pixels for _, pixels in prepared]))  # [B, 576, 64]
    # A score of our own, where a model has its attention: how much tokens differ from their mean.
    score = (tokens - tokens.mean(dim=1, keepdim=True)).norm(dim=-1)
    scores = {"relevance": score, "cls_attention": score}
    kept = {}
    print(f"{len(photos)} photos, {given.budget} of {tokens.shape[1]} tokens")
    print("method    coverage  time")
    for method, options in METHODS.items():
        for _ in range(2):  # the first call is slower
            start = time.perf_counter()
            kept[method] = ocvtp.select(tokens, given.budget, method, **scores, **options).ids
            seconds = time.perf_counter() - start
        coverage = ocvtp.coverage(tokens, kept[method]).mean()
        print(f"{method:<9} {coverage:8.3f}  {seconds * 1e3:.1f} ms")
    given.output.mkdir(parents=True, exist_ok=True)
    for number, (name, (picture, _)) in enumerate(zip(photos, prepared, strict=True)):
        panels = [draw(picture, ids[number], encoder.descriptor.grid) for ids in kept.values()]
        sheet = Image.fromarray(np.hstack([np.asarray(panel) for panel in panels]))
        sheet.save(given.output / f"{name}.png")
    print(f"pictures ({', '.join(METHODS)} from the left): {given.output}")


if __name__ == "__main__":
    main()
