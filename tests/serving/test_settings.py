from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ocvtp_kernels import OCPruner
from ocvtp_kernels.selectors.interface import SelectorInputs, run_selector
from ocvtp_kernels.selectors.oc_pruner import PrunerSelector
from ocvtp_kernels.selectors.tome import ToMe
from ocvtp_kernels.serving.vllm.settings import (
    BUDGET,
    Settings,
    find_pruner,
    fingerprint,
    keeps_positions,
    load_selector,
    read_settings,
    request_budget,
)
from tests.vlm.models import make_pruner


def config(**ocvtp: Any) -> SimpleNamespace:
    return SimpleNamespace(ocvtp=ocvtp)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model's folder, with a pruner in a folder of its own."""
    (tmp_path / "ocvtp").mkdir()
    make_pruner().save_checkpoint(tmp_path / "ocvtp" / "pruner.safetensors")
    return tmp_path


def test_no_setting() -> None:
    assert read_settings(SimpleNamespace()) is None


def test_settings() -> None:
    assert read_settings(config(budget=64, pruner="a")) == Settings(64, "a")
    given = {"budget": 8, "method": "hiprune", "options": {"anchor_share": 0.2}}
    assert read_settings(config(**given)) == Settings(**given)


@pytest.mark.parametrize(
    ("ocvtp", "error", "message"),
    [
        ({"budgte": 1, "a": 2}, ValueError, r"ocvtp: unknown keys \['a', 'budgte'\]; expected"),
        ({"pruner": "a"}, ValueError, "ocvtp.budget: expected a number"),
        ({"budget": 0, "pruner": "a"}, ValueError, "ocvtp.budget: expected at least 1, got 0"),
        ({"budget": "64", "pruner": "a"}, TypeError, "ocvtp.budget: expected a whole"),
        ({"budget": True, "pruner": "a"}, TypeError, "ocvtp.budget: expected a whole"),
        ({"budget": 1.5, "pruner": "a"}, TypeError, "ocvtp.budget: expected a whole"),
        ({"budget": 1}, ValueError, "ocvtp.pruner: expected a file with the method 'oc-pruner'"),
        ({"budget": 1, "pruner": 3}, TypeError, "ocvtp.pruner: expected the name of a file"),
        (
            {"budget": 1, "pruner": "a", "method": "divprune"},
            ValueError,
            "ocvtp.pruner: expected none with the method 'divprune', got 'a'",
        ),
        ({"budget": 1, "method": "best"}, ValueError, "ocvtp.method: expected one of"),
        ({"budget": 1, "method": ["a"]}, ValueError, "ocvtp.method: expected one of"),
        ({"budget": 1, "pruner": "a", "options": {"seed": 1}}, ValueError, "ocvtp.options"),
        ({"budget": 1, "method": "random", "options": 3}, TypeError, "ocvtp.options"),
        ({"budget": 1, "pruner": "a", "importance": "no"}, TypeError, "ocvtp.importance"),
        ({"budget": 1, "pruner": "a", "reference_layer": -1}, ValueError, "ocvtp.reference_layer"),
        ({"budget": 1, "pruner": "a", "reference_layer": "8"}, TypeError, "ocvtp.reference_layer"),
        ({"budget": 1, "pruner": "a", "newlines": "some"}, ValueError, "ocvtp.newlines"),
        ({"budget": 1, "pruner": "a", "positions": "last"}, ValueError, "ocvtp.positions: exp"),
        ({"budget": 1, "pruner": "a", "positions": 1}, ValueError, "ocvtp.positions: exp"),
        ({"budget": 1, "pruner": "a", "dtype": "int8"}, ValueError, "ocvtp.dtype"),
    ],
    ids=str,
)
def test_wrong_settings(ocvtp: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        read_settings(config(**ocvtp))


@pytest.mark.parametrize("given", ["64", 64, [("budget", 64)]], ids=str)
def test_a_setting_without_keys(given: Any) -> None:
    with pytest.raises(TypeError, match="ocvtp: expected keys and values"):
        read_settings(SimpleNamespace(ocvtp=given))


ROTARY, GRID = {"rope_theta": 10000.0}, {"rope_theta": 10000.0, "mrope_section": [4, 6, 6]}


@pytest.mark.parametrize(
    ("rope", "positions", "expected"),
    [
        (ROTARY, None, True),
        (ROTARY, "original", True),
        (ROTARY, "consecutive", False),
        (GRID, None, True),
        (GRID, "original", True),
        (GRID, "consecutive", "expected 'original' for a_model, got 'consecutive'"),
        (None, None, False),
        (None, "consecutive", False),
        (None, "original", "expected 'consecutive' for a_model, got 'original'"),
    ],
)
def test_kept_tokens_keep_their_positions_where_they_can(
    rope: Any, positions: str | None, expected: bool | str
) -> None:
    text = SimpleNamespace(rope_parameters=rope) if rope else SimpleNamespace()
    hf_config = SimpleNamespace(get_text_config=lambda: text, model_type="a_model")
    settings = Settings(4, "a", positions=positions)
    if isinstance(expected, bool):
        assert keeps_positions(settings, hf_config) == expected
    else:
        with pytest.raises(ValueError, match=f"^ocvtp.positions: {expected}$"):
            keeps_positions(settings, hf_config)


def test_the_budget_of_a_request() -> None:
    settings = Settings(64, "a")
    assert request_budget(settings, {}) == 64
    assert request_budget(settings, {BUDGET: 16, "max_pixels": 1}) == 16
    for wanted in (0, 65, "16", True, 1.5, None, [16]):
        with pytest.raises(ValueError, match="ocvtp_budget: expected 1 to 64, the server's"):
            request_budget(settings, {BUDGET: wanted})
    with pytest.raises(ValueError, match="ocvtp_budget: expected beside images_kwargs"):
        request_budget(settings, {"images_kwargs": {BUDGET: 16}})


def test_a_pruner_in_the_models_folder_and_anywhere(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    inside = folder / "ocvtp" / "pruner.safetensors"
    settings = Settings(4, "ocvtp/pruner.safetensors")
    assert find_pruner(settings, str(folder)) == inside
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    assert find_pruner(Settings(4, str(inside)), str(elsewhere)) == inside
    monkeypatch.chdir(folder)
    assert find_pruner(settings, str(elsewhere)).resolve() == inside
    assert find_pruner(settings, "nobody/no-such-model").resolve() == inside


def test_a_pruner_of_a_hub(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    cache = tmp_path_factory.mktemp("hub")
    repository = cache / "models--somebody--model"
    shutil.copytree(folder, repository / "snapshots" / "0123")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    settings = Settings(4, "ocvtp/pruner.safetensors")
    found = find_pruner(settings, "somebody/model")
    assert found == repository / "snapshots" / "0123" / "ocvtp" / "pruner.safetensors"
    assert load_selector(settings, "somebody/model", "cpu")
    assert fingerprint(settings, "somebody/model") == fingerprint(settings, str(folder))


@pytest.mark.parametrize("model", ["", "nobody/no-such-model"])
def test_a_missing_pruner(model: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"ocvtp.pruner: found no file 'no.safetensors', nor in"):
        find_pruner(Settings(4, "no.safetensors"), model or str(folder))


def test_a_pruner_that_would_be_read_as_the_models_weights(folder: Path) -> None:
    shutil.copy(folder / "ocvtp" / "pruner.safetensors", folder / "pruner.safetensors")
    with pytest.raises(ValueError, match="beside the model's weights"):
        find_pruner(Settings(4, "pruner.safetensors"), str(folder))
    (folder / "model.safetensors.index.json").touch()
    assert find_pruner(Settings(4, "pruner.safetensors"), str(folder)).parent == folder


@pytest.mark.parametrize("default", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_pruner_is_loaded_in_its_dtype_under_any_default(
    dtype: str, default: torch.dtype, folder: Path
) -> None:
    settings = Settings(4, "ocvtp/pruner.safetensors", dtype=dtype)
    path = folder / "ocvtp" / "pruner.safetensors"
    want = OCPruner.from_checkpoint(path, dtype=getattr(torch, dtype)).freeze()
    torch.set_default_dtype(default)
    try:
        with torch.device("meta"):
            selector = load_selector(settings, str(folder), "cpu")
    finally:
        torch.set_default_dtype(torch.float32)
    assert isinstance(selector, PrunerSelector) and selector.pruner.frozen
    assert all(
        torch.equal(one, other)
        for one, other in zip(selector.pruner.packed(), want.packed(), strict=True)
    )
    tokens = torch.randn(2, 9, want.config.enc_in_dim, generator=torch.Generator().manual_seed(0))
    selected = run_selector(selector, SelectorInputs(tokens, tokens), 4)
    assert torch.equal(selected.ids, want(tokens.to(getattr(torch, dtype)), tokens, 4).ids)


def test_other_methods_and_their_options() -> None:
    selector = load_selector(
        Settings(4, method="random", options={"seed": 3}), "nobody/no-such-model", "cpu"
    )
    assert selector.seed == 3  # type: ignore[attr-defined]
    with pytest.raises(TypeError, match="sed: random takes no such option"):
        load_selector(Settings(4, method="random", options={"sed": 3}), "", "cpu")
    with pytest.raises(ValueError, match=r"ocvtp.options: expected 'hiprune' to keep exactly"):
        load_selector(Settings(4, method="hiprune", options={"as_published": True}), "", "cpu")
    with pytest.raises(ValueError, match=r"ocvtp.method: 'vlm-pruner' drops tokens between"):
        load_selector(Settings(4, method="vlm-pruner"), "", "cpu")
    with pytest.raises(ValueError, match=r"ocvtp.method: 'tome' merges tokens inside the tower"):
        load_selector(Settings(4, method="tome"), "", "cpu")
    merging = Settings(4, method="tome", options={"place": "encoder"})
    assert isinstance(load_selector(merging, "", "cpu"), ToMe)


def test_the_fingerprint_tells_settings_and_weights_apart(folder: Path) -> None:
    path = folder / "ocvtp" / "pruner.safetensors"
    settings = Settings(4, "ocvtp/pruner.safetensors")
    marks = {
        fingerprint(each, str(folder))
        for each in (
            settings,
            Settings(5, settings.pruner),
            Settings(4, settings.pruner, reference_layer=3),
            Settings(4, settings.pruner, positions="consecutive"),
            Settings(4, method="random"),
            Settings(4, method="random", options={"seed": 1}),
        )
    }
    assert len(marks) == 6
    assert fingerprint(settings, str(folder)) == fingerprint(Settings(4, str(path)), "")
    make_pruner(seed=1).save_checkpoint(path)
    assert fingerprint(settings, str(folder)) not in marks
