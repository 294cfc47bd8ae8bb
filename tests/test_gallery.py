"""The pictures of docs/: the gallery has every method, and is what its command makes."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ocvtp_kernels.selectors.registry import METHODS
from tests.build_cases import ROOT, load_script

DOCS = ROOT / "docs"
GALLERY = DOCS / "gallery.md"


def test_the_gallery_has_every_method_and_every_picture() -> None:
    text = GALLERY.read_text(encoding="utf-8")
    for method in ("oc-pruner", "oc-progressive", *METHODS):
        assert f"`{method}`" in text
    pictures = [DOCS / one for one in re.findall(r"!\[[^]]+\]\(([^)]+)\)", text)]
    shown = {path.stem.partition("-")[2].replace("-plus", "+") for path in pictures}
    assert shown == {"all", "oc-pruner", "oc-progressive", *METHODS} - {"trim"}
    assert set(pictures) == set((DOCS / "images" / "gallery").iterdir())
    assert sum(path.stat().st_size for path in pictures) < 1 << 20


def test_both_drawings_differ_in_colours_alone() -> None:
    light, dark = (
        (DOCS / "images" / f"architecture-{name}.svg").read_text(encoding="utf-8")
        for name in ("light", "dark")
    )
    assert light != dark
    assert re.sub("#[0-9a-f]{6}", "#", light) == re.sub("#[0-9a-f]{6}", "#", dark)


@pytest.mark.slow
def test_the_gallery_is_what_its_command_makes(tmp_path: Path) -> None:
    load_script("gallery").main(["--output", str(tmp_path)])
    committed = DOCS / "images" / "gallery"
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in committed.iterdir()}
    for path in tmp_path.iterdir():
        made, shown = (
            np.asarray(Image.open(folder / path.name)).astype(int)
            for folder in (tmp_path, committed)
        )
        # Encoders of WebP differ by less than another token does.
        assert np.abs(made - shown).mean() < 0.1, path.name
