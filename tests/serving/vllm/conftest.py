"""Tests on a real vLLM, in the environment of `make test-vllm`; there are none elsewhere."""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Callable
from pathlib import Path

import pytest

HAS_VLLM = importlib.util.find_spec("vllm") is not None
collect_ignore_glob = [] if HAS_VLLM else ["test_*.py"]

# Read when vLLM is imported: engines in this process, and no network.
SETTINGS = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}
if HAS_VLLM:
    os.environ.update(SETTINGS)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], object]:
    """Makes the checkpoint of a family, once."""
    from tests.serving.vllm.checkpoints import make_checkpoint

    folder: Path = tmp_path_factory.mktemp("checkpoints")
    return functools.cache(lambda name: make_checkpoint(name, folder / name))
