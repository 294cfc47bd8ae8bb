from __future__ import annotations

import runpy
from pathlib import Path

import pytest
from PIL import Image

EXAMPLE = Path(__file__).parents[2] / "examples" / "llava.py"


@pytest.mark.parametrize("with_photo", [False, True])
def test_answers_twice_offline(
    with_photo: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = tmp_path / "photo.png"
    Image.effect_mandelbrot((120, 80), (-2, -1, 1, 1), 20).save(photo)
    arguments = ["--budget", "40", "--length", "4"]
    if with_photo:
        arguments = [str(photo), "what is this ?", *arguments]
    runpy.run_path(str(EXAMPLE))["main"](arguments)
    printed = capsys.readouterr().out
    assert "all tokens: 576 image tokens" in printed
    assert "pruned: 40 image tokens" in printed
    kept = printed.split("kept tokens of the image: ")[1].strip("[] \n").split(",")
    assert len({int(token) for token in kept}) == 40
    assert all(f"{stage} " in printed for stage in ("encoder", "pruner", "projector"))
