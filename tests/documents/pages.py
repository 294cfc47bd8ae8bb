"""The pages of the documentation, the code that they print, and small ones of what it names."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

import ocvtp_kernels as ocvtp
from tests.build_cases import ROOT
from tests.cases import random_pruner

README = ROOT / "README.md"
DOCS = ROOT / "docs"
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted(ROOT.glob("examples/*.md")),
    *sorted(DOCS.rglob("*.md")),
]
NAMES = {path: str(path.relative_to(ROOT)) for path in PAGES}
WIDTH, TOKENS, BUDGET = 64, 576, 64
# The authors' files, in the tiny model's width.
CONFIG = ocvtp.PrunerConfig(
    enc_in_dim=WIDTH,
    enc_dims=(24, 16),
    init_num=BUDGET,
    init_dim=16,
    agg_embed_dim=16,
    agg_ffn_dim=32,
)
FENCE = re.compile(r"^( *)```([^\n]*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
RECORD = """#!/bin/sh
printf '%s\\0' {} "$@" >> "$RECORD"
printf '\\n\\0' >> "$RECORD"
"""


def fences(path: Path) -> list[tuple[str, str]]:
    """The language and the code of each fenced block."""
    return [(found[2], found[3]) for found in FENCE.finditer(path.read_text(encoding="utf-8"))]


def blocks(path: Path, language: str) -> list[str]:
    """The blocks of one language."""
    return [code for found, code in fences(path) if found == language]


def make_model(depth: int = 6) -> dict[str, Any]:
    """A tiny LLaVA of as many image tokens as real ones, whose answers are a few tokens long.

    Args:
        depth: layers of its tower.
    """
    from PIL import Image

    from tests.vlm.models import make_llava, make_llava_processor, make_vision_config

    vision = make_vision_config(hidden_size=WIDTH, num_hidden_layers=depth, image_size=336)
    model, processor = make_llava(vision_config=vision), make_llava_processor()
    processor.image_processor.size = {"shortest_edge": 336}
    processor.image_processor.crop_size = {"height": 336, "width": 336}
    model.generation_config.max_new_tokens = 3
    photo = Image.effect_mandelbrot((120, 80), (-2, -1, 1, 1), 20).convert("RGB")
    prompt = "USER: <image>\nwhat is in this picture? ASSISTANT:"
    return {"model": model, "processor": processor, "photo": photo, "prompt": prompt}


def leave_authors_files(folder: Path) -> None:
    """A config and weights as the authors publish them."""
    (folder / "oc-vlm_64.json").write_text(CONFIG.to_json(), encoding="utf-8")
    torch.save(random_pruner(CONFIG).state_dict(), folder / "weights.pth")


def run_as_printed(code: str, folder: Path, programs: Iterable[str]) -> list[list[str]]:
    """What a block of shell calls: a shell runs it, and programs write their words down.

    Raises:
        AssertionError: the shell stops, as at a program that is not one of these.
    """
    record = folder / "record"
    for name in programs:
        # A name with a folder is called from where the block runs.
        path = folder / name if "/" in name else folder / "shims" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(RECORD.format(name))
        path.chmod(0o755)
    done = subprocess.run(
        ["/bin/bash", "-euo", "pipefail", "-c", code],
        cwd=folder,
        env={"PATH": str(folder / "shims"), "RECORD": str(record)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{code}\n{done.stderr}"
    calls = record.read_text().split("\n\0")[:-1] if record.exists() else []
    return [call.split("\0")[:-1] for call in calls]
