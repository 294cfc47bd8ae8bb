from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import ocvtp_kernels as ocvtp
from ocvtp_kernels.evaluation.lmms_eval.authors import find_authors, read_authors
from ocvtp_kernels.evaluation.lmms_eval.settings import Settings, read_settings
from ocvtp_kernels.selectors.registry import METHODS
from tests.vlm.models import generate, make_llava, make_llava_processor, make_pruner, prepare

# As the authors print them.
PUBLISHED = {
    "OCL_ENABLE": "1",
    "OCL_MODE": "pruning",
    "OCL_LAYER_IDX": "8",
    "OCL_CONFIG": "OC-VTP/OCL_light_decoder_config/oc-vlm_64.json",
    "OCL_CKPT": "weights.pth",
    "OCL_TARGET_NUM": "64",
    "OCL_TOPK": "1",
    "OCL_HAS_CLS": "1",
    "OCL_PAD_MODE": "att_score",
    "OCL_ATTSEL": "meanq",
}
BECAME = Settings(
    64,
    "weights.pth",
    "OC-VTP/OCL_light_decoder_config/oc-vlm_64.json",
    reference_layer=8,
    positions="consecutive",
)


def read(environment: dict[str, str] | None = None, **given: Any) -> Settings:
    return read_settings(given, read_authors(find_authors(environment or {})))


def test_arguments_are_texts_or_numbers() -> None:
    want = Settings(64, "a", importance=False, reference_layer=8)
    assert read(budget=64, pruner="a", importance=False, reference_layer=8) == want
    assert read(budget="64", pruner="a", importance="false", reference_layer="8") == want
    assert read(budget=64.0, pruner="a", importance="False", reference_layer=8.0) == want
    assert read(budget=64, pruner=7).pruner == "7"
    assert read(budget=0, pruner=None, newlines=None) == Settings(0)


@pytest.mark.parametrize("method", METHODS)
def test_every_method(method: str) -> None:
    assert read(budget=4, method=method) == Settings(4, method=method)
    assert read(PUBLISHED, budget=4, method=method).pruner is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "budget: expected a number of tokens to keep, or 0 for all, got none"),
        ({"budget": -1.0}, "budget: expected a whole number, at least 0, got -1.0"),
        ({"budget": 1.5}, "budget: expected a whole number"),
        ({"budget": True}, "budget: expected a whole number"),
        ({"budget": "many"}, "budget: expected a whole number, at least 0, got 'many'"),
        ({"budget": 4}, "pruner: expected a file with the method 'oc-pruner', got None"),
        ({"budget": 4, "pruner": "a", "method": "random"}, "pruner: expected none with the method"),
        ({"budget": 4, "method": "best"}, r"method: expected one of \('oc-pruner', 'vlm-pruner'"),
        (
            {"budget": 4, "pruner": "a", "reference_layer": -2.0},
            "reference_layer: expected a whole",
        ),
        ({"budget": 4, "pruner": "a", "newlines": "some"}, r"newlines: expected one of \('drop'"),
        (
            {"budget": 4, "pruner": "a", "positions": 3},
            r"positions: expected one of \(None, 'conse",
        ),
        ({"budget": 4, "pruner": "a", "importance": "no"}, "importance: expected True or False"),
    ],
    ids=str,
)
def test_wrong_arguments(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(**given)


def test_the_authors_settings() -> None:
    assert read(PUBLISHED) == BECAME
    # What their code takes for granted.
    few = {name: PUBLISHED[name] for name in ("OCL_ENABLE", "OCL_CKPT", "OCL_CONFIG")}
    assert read(few) == BECAME
    assert read(PUBLISHED | {"OCL_HAS_CLS": "0", "OCL_ICD_VENDORS": "/etc/OpenCL"}) == BECAME


def test_what_the_authors_do_not_enable_prunes_nothing() -> None:
    for environment in (PUBLISHED | {"OCL_ENABLE": "0"}, {"OCL_TARGET_NUM": "64"}):
        assert read(environment) == Settings(0)
        assert read(environment, budget=4, pruner="a") == Settings(4, "a")


def test_an_argument_wins_over_the_authors_settings() -> None:
    settings = read(PUBLISHED, budget=128, pruner="b", positions="original")
    assert settings == Settings(128, "b", BECAME.config, reference_layer=8, positions="original")
    assert read(PUBLISHED, budget=0).budget == 0


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("OCL_MODE", "merging", r"OCL_MODE: expected one of \('pruning',\), got 'merging'"),
        ("OCL_TOPK", "2", "OCL_TOPK: expected one of"),
        ("OCL_PAD_MODE", "random", "OCL_PAD_MODE: expected one of"),
        ("OCL_ATTSEL", "cls", "OCL_ATTSEL: expected one of"),
        ("OCL_HAS_CLS", "yes", "OCL_HAS_CLS: expected one of"),
        ("OCL_ENABLE", "yes", "OCL_ENABLE: expected one of"),
        ("OCL_TARGET_NUM", "all", "budget: expected a whole number, at least 0, got 'all'"),
    ],
)
def test_authors_settings_that_are_not_evaluated(name: str, value: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(PUBLISHED | {name: value})


def test_arguments_reach_attach(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    place = "ocvtp_kernels.evaluation.lmms_eval.settings.attach"
    monkeypatch.setattr(place, lambda *args, **options: calls.append((args[3], options)))
    given = {"reference_layer": 3, "newlines": "all", "positions": "original"}
    read(budget=4, method="random", **given).attach(make_llava(), None)
    assert calls == [(4, given)]


def attach(settings: Settings) -> tuple[Any, Any, ocvtp.Handle | None]:
    model, processor = make_llava(), make_llava_processor()
    return model, processor, settings.attach(model, processor)


def test_a_budget_of_zero_attaches_nothing() -> None:
    model, _, handle = attach(Settings(0, "no-such-file"))
    assert handle is None and ocvtp.Handle.of(model) is None


def test_the_pruner_of_a_file_is_attached(tmp_path: Path) -> None:
    pruner = make_pruner()
    path, config = tmp_path / "pruner.safetensors", tmp_path / "config.json"
    pruner.save_checkpoint(path)
    config.write_text(pruner.config.to_json())
    for settings in (Settings(5, str(path)), Settings(5, str(path), str(config))):
        model, processor, handle = attach(settings)
        generate(model, prepare(processor))
        assert handle is not None and handle.last is not None
        other, other_processor = make_llava(), make_llava_processor()
        with ocvtp.attach(other, other_processor, pruner, 5) as want:
            generate(other, prepare(other_processor))
            assert want.last is not None
            pairs = zip(handle.last.ids, want.last.ids, strict=True)
            assert all(torch.equal(one, other) for one, other in pairs)


@pytest.mark.parametrize("name", ["pruner", "config"])
def test_a_file_that_is_not_there(name: str, tmp_path: Path) -> None:
    path = tmp_path / "pruner.safetensors"
    make_pruner().save_checkpoint(path)
    files = {"pruner": str(path), name: str(tmp_path / "none")}
    with pytest.raises(ValueError, match=rf"{name}: found no file '.*none'"):
        attach(Settings(5, **files))


def test_a_file_that_holds_no_pruner(tmp_path: Path) -> None:
    path = tmp_path / "pruner.safetensors"
    path.write_bytes(b"no weights")
    with pytest.raises(ValueError, match=r"pruner\.safetensors"):
        attach(Settings(5, str(path)))
