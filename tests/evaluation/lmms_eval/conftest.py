"""Tests on a real lmms-eval, in the environment of `make test-lmms-eval`; none elsewhere."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

HAS_LMMS_EVAL = importlib.util.find_spec("lmms_eval") is not None
collect_ignore_glob = [] if HAS_LMMS_EVAL else ["test_*.py"]

# Read when they are imported: no network.
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
if HAS_LMMS_EVAL:
    os.environ.update(OFFLINE)


@pytest.fixture(scope="session")
def tiny() -> Path:
    """The folder of the LLaVA that was trained on scenes."""
    from bench.retention.model import FOLDER

    return FOLDER / "tiny-llava"


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to run in: the task's data where scenes.yaml has it, and a pruner."""
    from bench.retention.lmms_eval.write import DATA, write_task
    from tests.evaluation.lmms_eval.running import COUNT, PRUNER, SEED
    from tests.vlm.models import make_pruner

    folder = tmp_path_factory.mktemp("run")
    write_task(folder / DATA, COUNT, SEED)
    make_pruner(128, seed=1).save_checkpoint(folder / PRUNER)
    return folder


@pytest.fixture(autouse=True)
def in_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    for name in [name for name in os.environ if name.startswith("OCL_")]:
        monkeypatch.delenv(name)
