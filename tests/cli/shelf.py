"""Tiny models of every family on disk, for the commands that read them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.vlm import (
    models,
    models_gemma3,
    models_next,
    models_onevision,
    models_qwen,
    models_tiles,
)

TOWERS = ["clip", "siglip", "dinov2", "dinov2_with_registers"]
# Of 16 tokens a photo.
MODELS = [*TOWERS, "llava", "llava_next", "llava_onevision", "internvl", "idefics3", "gemma3"]


def save_models(folder: Path) -> None:
    """Saves `MODELS`, and a Qwen under "qwen"."""
    for kind in TOWERS:
        models.make_tower(kind).save_pretrained(folder / kind)
    made: dict[str, tuple[Any, ...]] = {
        "llava": (models.make_llava(), models.make_llava_processor()),
        "llava_next": (models_next.make_llava_next(), models_next.make_next_processor()),
        "llava_onevision": (
            models_onevision.make_onevision(),
            models_onevision.make_onevision_processor().image_processor,
        ),
        "qwen": (models_qwen.make_model(), models_qwen.make_processor().image_processor),
        # Their image processors are made.
        "internvl": (models_tiles.make_internvl(image_size=[2 * models.SIDE] * 2),),
        "idefics3": (models_tiles.make_idefics3(image_size=2 * models.SIDE),),
        "gemma3": (models_gemma3.make_gemma3(),),
    }
    for name, parts in made.items():
        for part in parts:
            part.save_pretrained(folder / name)
