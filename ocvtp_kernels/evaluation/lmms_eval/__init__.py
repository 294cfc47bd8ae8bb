"""Models of lmms-eval that keep a fixed number of tokens of every image.

lmms-eval finds these functions by the entry points ``lmms_eval.models`` of the installed package
and calls them whenever it lists models. Nothing else of this folder is imported before one is used.
"""

from __future__ import annotations

from typing import Any


def llava_hf() -> Any:
    """The manifest of ``llava_hf_ocvtp``: LLaVA-1.5 and LLaVA-NeXT."""
    return _manifest("llava_hf")


def qwen2_5_vl() -> Any:
    """The manifest of ``qwen2_5_vl_ocvtp``."""
    return _manifest("qwen2_5_vl")


def _manifest(name: str) -> Any:
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(
        model_id=f"{name}_ocvtp",
        simple_class_path=f"{__name__}.{name}.Simple",
        chat_class_path=f"{__name__}.{name}.Chat",
    )
