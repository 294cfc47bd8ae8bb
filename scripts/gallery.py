"""Makes the pictures of docs/gallery.md: what each method keeps, on a photo and on a drawn scene.

    python scripts/gallery.py

Offline and without a choice: the photo is one that scikit-image ships, its tokens are those of the
weight-free descriptor; the scene's are those of the tiny LLaVA of this repository.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from ocvtp_kernels.cli.methods import Comparison, compare_methods
from ocvtp_kernels.cli.photo import open_photo
from ocvtp_kernels.cli.picture import kept_panel, oklab_to_rgb, palette
from ocvtp_kernels.cli.prune import OC_PROGRESSIVE, OC_PRUNER, load_pruner
from ocvtp_kernels.files import atomic_write
from ocvtp_kernels.pruner.pruner import OCPruner
from ocvtp_kernels.selectors.interface import Selector
from ocvtp_kernels.selectors.oc_pruner import PrunerSelector
from ocvtp_kernels.selectors.registry import METHODS, make_selector
from ocvtp_kernels.vlm.decoder.photos import NO_LANGUAGE_MODEL, open_decoder
from ocvtp_kernels.vlm.encoder import DescriptorEncoder
from ocvtp_kernels.vlm.tower_encoder import load_model, open_encoder

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "images" / "gallery"
TINY = ROOT / "bench" / "retention" / "tiny-llava"
SCENE = TINY.parent / "scene.png"
QUESTION = "what colour is the star ?"
SIDE = 360  # px of a picture
PHOTO_BUDGET, SCENE_BUDGET = 64, 11  # a ninth of the tokens, as published
# PyramidDrop's counts for four layers; SparseVLM's own are those of 32 layers and larger budgets.
SCHEDULE = [(1, 44), (2, 22), (3, 11)]


def photo() -> Comparison:
    """The cup of coffee, by all methods that need nothing but its tokens."""
    encoder = DescriptorEncoder()
    spec = importlib.util.find_spec("skimage")
    assert spec is not None and spec.origin is not None
    encoded = encoder.encode(open_photo(Path(spec.origin).parent / "data" / "coffee.png"))
    selectors = all_selectors(load_pruner(None, None, 0, encoder))
    return compare_methods(encoded, PHOTO_BUDGET, selectors, NO_LANGUAGE_MODEL, QUESTION)


def scene() -> Comparison:
    """The drawn scene, by all methods but TRIM, which needs the question's embedding."""
    model = load_model(str(TINY))
    encoder = open_encoder(model, TINY)
    pruner = OCPruner.from_checkpoint(TINY / "ocvtp" / "pruner.safetensors").freeze()
    return compare_methods(
        encoder.encode(open_photo(SCENE)),
        SCENE_BUDGET,
        all_selectors(pruner, sparsevlm={"schedule": SCHEDULE}),
        open_decoder(model, TINY),
        QUESTION,
    )


def all_selectors(pruner: OCPruner, **options: Mapping[str, Any]) -> dict[str, Selector]:
    """Every method, by its name."""
    return {
        OC_PRUNER: PrunerSelector(pruner),
        **{name: make_selector(name, **options.get(name, {})) for name in METHODS},
        OC_PROGRESSIVE: make_selector(OC_PROGRESSIVE, pruner=pruner),
    }


def draw(comparison: Comparison, prefix: str, folder: Path) -> list[Path]:
    """Writes the picture, and one a method: kept patches bright, in frames; returns their paths."""
    rows, columns = grid = comparison.encoded.grid
    cell = SIDE // columns, SIDE // rows
    size = columns * cell[0], rows * cell[1]
    large = np.asarray(comparison.encoded.picture.resize(size, Image.Resampling.LANCZOS))
    frames = np.broadcast_to(oklab_to_rgb(palette(1))[0], (*grid, 3))
    pictures = {"all": large}
    for result in comparison.results:
        kept: npt.NDArray[np.bool_] = np.zeros(grid, dtype=bool)
        kept.flat[result.ids] = True
        pictures[result.method.replace("+", "-plus")] = kept_panel(large, cell, kept, frames)
    written = []
    for name, pixels in pictures.items():
        encoded = io.BytesIO()
        Image.fromarray(pixels).save(encoded, "webp", quality=85, method=6)
        written.append(folder / f"{prefix}-{name}.webp")
        atomic_write(written[-1], encoded.getvalue())
    for method, reason in comparison.left_out.items():
        print(f"{prefix}: no {method}: {reason}")
    return written


def main(arguments: list[str] | None = None) -> None:
    """Writes all pictures, and removes those that are no longer made."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=FOLDER, help="a folder of nothing else")
    folder: Path = parser.parse_args(arguments).output
    folder.mkdir(parents=True, exist_ok=True)
    written = draw(photo(), "coffee", folder) + draw(scene(), "scene", folder)
    for path in set(folder.glob("*.webp")) - set(written):
        path.unlink()
    print(f"{len(written)} pictures, {sum(path.stat().st_size for path in written) >> 10} KB")


if __name__ == "__main__":
    main()
