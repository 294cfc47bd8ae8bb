from __future__ import annotations

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

EXAMPLE = Path(__file__).parents[2] / "examples" / "select_photos.py"
METHODS = ("scope", "divprune", "idpruner", "apet", "random")
SIDE, PATCH = 336, 14


def run(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    runpy.run_path(str(EXAMPLE))["main"](arguments)
    return capsys.readouterr().out


def coverages(printed: str) -> dict[str, float]:
    rows = [line.split() for line in printed.splitlines()[2:-1]]
    return {method: float(coverage) for method, coverage, _, unit in rows if unit == "ms"}


def test_selects_on_bundled_photos(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed = run(["--output", str(tmp_path)], capsys)
    assert printed.startswith("4 photos, 64 of 576 tokens\n")
    found = coverages(printed)
    assert tuple(found) == METHODS
    assert max(found, key=found.__getitem__) == "scope"
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["astronaut.png", "chelsea.png", "coffee.png", "rocket.png"]


def test_draws_as_many_patches_of_photos_of_ones_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos, output = tmp_path / "photos", tmp_path / "kept"
    photos.mkdir()
    pixels = np.random.default_rng(0).integers(128, 256, (SIDE, SIDE, 3), np.uint8)
    Image.fromarray(pixels).save(photos / "a.PNG")
    (photos / "notes.txt").write_text("no photo")
    printed = run([str(photos), "--budget", "10", "--output", str(output)], capsys)
    assert printed.startswith("1 photos, 10 of 576 tokens\n")
    sheet = np.asarray(Image.open(output / "a.PNG.png"))
    assert sheet.shape == (SIDE, SIDE * len(METHODS), 3)
    for panel in np.split(sheet, len(METHODS), axis=1):
        patches = (panel == pixels).reshape(SIDE // PATCH, PATCH, SIDE // PATCH, PATCH, 3)
        assert patches.all((1, 3, 4)).sum() == 10


def test_without_photos_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    main = runpy.run_path(str(EXAMPLE))["main"]
    with pytest.raises(SystemExit, match="no photos"):
        main([str(tmp_path)])
    monkeypatch.setitem(sys.modules, "skimage", None)
    with pytest.raises(SystemExit, match="install scikit-image"):
        main([])
