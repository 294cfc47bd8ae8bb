"""``ocvtp prune --method``: other methods, alone and side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from ocvtp_kernels.cli.prune import NO_CHECKPOINT
from ocvtp_kernels.cli.sheet import Panel, draw_sheet
from ocvtp_kernels.selectors.registry import METHODS, select
from ocvtp_kernels.vlm.encoder import DescriptorEncoder
from tests.cli.test_prune import make_photo, run
from tests.vlm.models import make_vision_config

NEED_TEXT = {"trim"}
NEED_DECODER = {"fastv", "dart", "pyramiddrop", "sparsevlm", "oc-progressive"}


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    return make_photo(tmp_path / "garden.png")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    transformers.CLIPVisionModel(make_vision_config()).save_pretrained(folder)
    return folder


def prune(photo: Path, output: Path, *options: object) -> dict[str, Any]:
    result = run("prune", photo, "--output", output, *options)
    assert result.exit_code == 0, result.output
    record: dict[str, Any] = json.loads((output / f"{photo.stem}-pruned.json").read_text())
    assert (output / record["picture"]).is_file()
    return record


def test_one_method(photo: Path, tmp_path: Path) -> None:
    record = prune(photo, tmp_path / "out", "--method", "divprune", "--budget", 40)
    (kept,) = record["methods"]
    tokens = DescriptorEncoder().encode(Image.open(photo)).inputs.final_tokens
    assert kept["ids"] == select(tokens, 40, "divprune").ids[0].tolist()
    assert kept["method"] == "divprune" and kept["found"] == 40 and not record["left_out"]
    assert record["checkpoint"] is None


def test_all_methods_of_a_model(photo: Path, clip: Path, tmp_path: Path) -> None:
    record = prune(photo, tmp_path / "out", "--method", "all", "--model", clip, "--budget", 5)
    kept = {one["method"]: one["ids"] for one in record["methods"]}
    assert set(kept) == set(METHODS) - NEED_TEXT - NEED_DECODER
    left_out = record["left_out"]
    assert set(left_out) == NEED_TEXT | NEED_DECODER | {"oc-pruner"}
    # A trained pruner is needed first.
    assert left_out["oc-pruner"] == left_out["oc-progressive"] == NO_CHECKPOINT
    assert all("text" in left_out[method] for method in NEED_TEXT)
    for method in NEED_DECODER - {"oc-progressive"}:
        assert left_out[method] == "needs a language model"
    places = {one["method"]: one["place"] for one in record["methods"]}
    assert places == dict.fromkeys(kept, "encoder") | {"tome": "tower"}
    assert not any(one["stages"] for one in record["methods"])
    for ids in kept.values():
        assert ids == sorted(set(ids)) and len(ids) == 5


def test_all_methods_of_the_descriptor_name_what_they_lack(photo: Path, tmp_path: Path) -> None:
    record = prune(photo, tmp_path / "out", "--method", "all", "--seed", 3)
    assert {one["method"] for one in record["methods"]} == {
        "oc-pruner",
        "divprune",
        "cdpruner",
        "apet",
        "random",
    }
    assert "keys" in record["left_out"]["vlm-pruner"]
    assert record["left_out"]["oc-progressive"] == "needs a language model"
    seeded = next(one for one in record["methods"] if one["method"] == "random")
    tokens = torch.zeros(1, 576, 2)
    assert seeded["ids"] == select(tokens, 64, "random", seed=3).ids[0].tolist()


def test_an_unknown_method_lists_what_there_is(photo: Path, tmp_path: Path) -> None:
    result = run("prune", photo, "--method", "best", "--output", tmp_path / "out")
    assert result.exit_code == 2
    assert all(name in result.output for name in ("oc-pruner", "vlm-pruner", "all", "'best'"))
    assert not (tmp_path / "out").exists()


def test_a_method_that_lacks_something_says_what(photo: Path, tmp_path: Path) -> None:
    result = run("prune", photo, "--method", "vispruner", "--output", tmp_path / "out")
    assert result.exit_code == 1 and "cls_attention: needed by VisPruner" in result.output


@pytest.mark.parametrize("panels", [1, 2, 5])
def test_the_bright_patches_of_a_panel_are_the_kept(panels: int) -> None:
    photo = Image.new("RGB", (60, 40), (250, 250, 250))
    chosen = [[place, place + 3] for place in range(panels)]
    sheet = draw_sheet(
        photo, (4, 6), [Panel(str(place), "", ids) for place, ids in enumerate(chosen)], "t", "c"
    )
    pixels = np.asarray(sheet).astype(int)
    bright = (pixels > 245).all(axis=-1)
    # Text is bright too, but thin: a patch is a whole block.
    blocks = bright[:-8, :-8] & bright[8:, 8:] & bright[8:, :-8] & bright[:-8, 8:]
    assert blocks.any()
    dim = ((pixels > 90) & (pixels < 170)).all(axis=-1)
    cells = bright.sum() / (bright.sum() + dim.sum())
    assert cells == pytest.approx(2 / 24, rel=0.5)


def test_what_cannot_be_drawn_is_named() -> None:
    photo = Image.new("RGB", (8, 8))
    with pytest.raises(ValueError, match="panels: expected at least one"):
        draw_sheet(photo, (2, 2), [], "t", "c")
    with pytest.raises(ValueError, match="ids: expected 0 to 3"):
        draw_sheet(photo, (2, 2), [Panel("a", "", [4])], "t", "c")
