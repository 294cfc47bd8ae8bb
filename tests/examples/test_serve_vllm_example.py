"""What can be seen of the example without vLLM; `tests/serving/vllm/test_example.py` runs it."""

from __future__ import annotations

import importlib.util
import runpy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]
EXAMPLE = runpy.run_path(str(ROOT / "examples" / "serve_vllm.py"))
TINY = ROOT / "bench" / "retention" / "tiny-llava"


def test_without_vllm_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="vLLM is not installed here"):
        EXAMPLE["main"]([])


def test_a_copy_has_the_names_of_released_weights(tmp_path: Path) -> None:
    copy = EXAMPLE["copy_for_vllm"](TINY, tmp_path)
    assert {path.name for path in copy.iterdir()} == {path.name for path in TINY.iterdir()}
    old, new = (load_file(folder / "model.safetensors") for folder in (TINY, copy))
    assert "vision_tower.vision_model.embeddings.class_embedding" in new
    back = {name.replace("vision_tower.vision_model.", "vision_tower."): name for name in new}
    assert back.keys() == old.keys()
    assert all(torch.equal(new[name], old[saved]) for saved, name in back.items())
