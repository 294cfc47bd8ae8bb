"""The Python that README.md and docs/ print runs as it stands there, one block behind the other."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

import ocvtp_kernels as ocvtp
from ocvtp_kernels.serving.vllm.settings import read_settings
from tests.documents.pages import (
    BUDGET,
    CONFIG,
    DOCS,
    NAMES,
    PAGES,
    README,
    TOKENS,
    WIDTH,
    blocks,
    fences,
    leave_authors_files,
    make_model,
)

pytest.importorskip("transformers")

LANGUAGES = {"python", "sh", "json", "text", "bibtex", "yaml", "toml"}
MISTAKES = [
    ("select(tokens", "choose(tokens", "choose"),
    ("attach(model", "attach(modell", "modell"),
    ("divprune", "pruned", "pruned"),
]
SERVING, PRUNER = DOCS / "serving.md", DOCS / "pruner.md"


def taken_for_granted() -> dict[str, Any]:
    """The names that blocks use and do not make."""
    generator = torch.Generator().manual_seed(0)

    def tokens() -> torch.Tensor:
        return torch.randn(2, TOKENS, WIDTH, generator=generator)

    names = {name: tokens() for name in ("reference_tokens", "final_tokens", "tokens", "keys")}
    attention = torch.rand(2, TOKENS, generator=generator)
    return {**names, "attention_received": attention, "torch": torch, "ocvtp": ocvtp}


def run_blocks(path: Path, names: dict[str, Any]) -> dict[str, Any]:
    """The names after a page's blocks ran."""
    for number, code in enumerate(blocks(path, "python")):
        exec(compile(code, f"{path.name}, block {number}", "exec"), names)
    return names


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the files lie that blocks read, beside a vLLM that returns what it is told."""
    monkeypatch.chdir(tmp_path)
    leave_authors_files(tmp_path)
    vllm = ModuleType("vllm")
    vllm.LLM = lambda _model, hf_overrides: hf_overrides  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    return tmp_path


def assert_kept(ids: torch.Tensor, rows: int) -> None:
    assert ids.shape == (rows, BUDGET)
    assert (ids.diff(dim=1) > 0).all() and ids.min() >= 0 and ids.max() < TOKENS


def of_the_readme(names: dict[str, Any]) -> None:
    assert_kept(names["kept"].ids, 2)
    assert names["updates"].shape == (8, 7, 64) and names["mass"].shape == (8, 7)
    assert names["q"].grad is not None and names["answer"].shape[0] == 1
    # As its comment says: the processor is as before.
    inputs = names["processor"](images=names["photo"], text=names["prompt"], return_tensors="pt")
    assert int((inputs["input_ids"] == names["model"].config.image_token_id).sum()) == TOKENS


def of_the_pruner(names: dict[str, Any]) -> None:
    assert names["slots"].shape == (2, BUDGET, CONFIG.init_dim)
    assert names["attention"].shape == (2, BUDGET, TOKENS)
    assert names["attention"].requires_grad
    assert_kept(names["out"].ids, 2)
    assert names["out"].tokens.shape == (2, BUDGET, WIDTH)
    # As its comment says: the same, by the op.
    assert torch.equal(names["ids"], names["out"].ids)


def of_selectors(names: dict[str, Any]) -> None:
    assert_kept(names["kept"].ids, 2)
    assert isinstance(names["handle"], ocvtp.Handle)


def of_serving(names: dict[str, Any]) -> None:
    # vLLM itself is in an environment of its own: tests/serving/vllm.
    overrides = names["llm"]
    assert read_settings(SimpleNamespace(**overrides)).budget == BUDGET
    assert overrides["architectures"] == ["OcvtpLlavaForConditionalGeneration"]


RIGHT: dict[Path, Callable[[dict[str, Any]], None]] = {
    README: of_the_readme,
    PRUNER: of_the_pruner,
    DOCS / "selectors.md": of_selectors,
    SERVING: of_serving,
}
WITH_PYTHON = [path for path in PAGES if blocks(path, "python")]


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("path", WITH_PYTHON, ids=NAMES.get)
def test_a_page_runs_as_printed(path: Path) -> None:
    RIGHT.get(path, lambda names: None)(run_blocks(path, {**taken_for_granted(), **make_model()}))


def test_pages_whose_results_are_looked_at_are_there() -> None:
    assert set(RIGHT) <= set(WITH_PYTHON)


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(("right", "wrong", "expected"), MISTAKES, ids=["first", "second", "third"])
def test_a_mistake_in_a_block_does_not_pass(right: str, wrong: str, expected: str) -> None:
    text = README.read_text(encoding="utf-8")
    Path("README.md").write_text(text.replace(right, wrong), encoding="utf-8")
    with pytest.raises((AttributeError, NameError, ValueError), match=expected):
        run_blocks(Path("README.md"), {**taken_for_granted(), **make_model()})


@pytest.mark.parametrize("path", PAGES, ids=NAMES.get)
def test_every_block_is_of_a_language_that_is_tried_or_no_code(path: Path) -> None:
    assert {language for language, _ in fences(path)} <= LANGUAGES


@pytest.mark.parametrize("path", PAGES, ids=NAMES.get)
def test_settings_are_json(path: Path) -> None:
    for setting in blocks(path, "json"):
        values = json.loads(setting)
        if "ocvtp" in values:
            assert read_settings(SimpleNamespace(**values)).budget == BUDGET
