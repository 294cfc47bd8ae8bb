"""What lmms-eval finds by the package's entry points, without lmms-eval."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from ocvtp_kernels.evaluation import lmms_eval
from tests.build_cases import ROOT
from tests.test_imports import HEAVY, imported_by


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("lmms_eval.models.registry_v2")
    module.ModelManifest = SimpleNamespace  # type: ignore[attr-defined]
    for name in ("lmms_eval", "lmms_eval.models"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)


def entry_points() -> dict[str, str]:
    tomllib: Any = pytest.importorskip("tomllib")
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    return dict(tomllib.loads(text)["project"]["entry-points"]["lmms_eval.models"])


def test_every_entry_point_is_a_manifest_of_its_name() -> None:
    for name, place in entry_points().items():
        module, _, attribute = place.partition(":")
        manifest = getattr(import_module(module), attribute)()
        assert manifest.model_id == name
        folder = Path(lmms_eval.__file__).parent
        for path in (manifest.simple_class_path, manifest.chat_class_path):
            file, _, kind = path.removeprefix(f"{module}.").partition(".")
            assert f"\nclass {kind}(" in (folder / f"{file}.py").read_text(encoding="utf-8")


def test_there_are_no_others() -> None:
    assert sorted(entry_points()) == ["llava_hf_ocvtp", "qwen2_5_vl_ocvtp"]


def test_nothing_heavy_is_imported_to_list_models() -> None:
    imported = imported_by(f"import {lmms_eval.__name__}")
    assert not imported & {*HEAVY, "loguru", f"{lmms_eval.__name__}.settings"}
