"""The code that README.md and docs/ print: Python runs as it stands there, commands parse."""

from __future__ import annotations

import json
import re
import shlex
import sys
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import typer

import ocvtp_kernels as ocvtp
from bench.__main__ import COMMANDS as BENCH
from ocvtp_kernels.cli import app
from ocvtp_kernels.serving.vllm import ARCHITECTURES, PREFIX
from ocvtp_kernels.serving.vllm.settings import Settings, read_settings
from tests.build_cases import ROOT
from tests.cases import random_pruner

README = ROOT / "README.md"
SELECTORS = ROOT / "docs" / "selectors.md"
SERVING = ROOT / "docs" / "serving.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md")), ROOT / "CONTRIBUTING.md"]
WIDTH, TOKENS, BUDGET = 64, 576, 64
# What the README calls the authors' files: small ones, of the tiny model's width.
CONFIG = ocvtp.PrunerConfig(
    enc_in_dim=WIDTH,
    enc_dims=(24, 16),
    init_num=BUDGET,
    init_dim=16,
    agg_embed_dim=16,
    agg_ffn_dim=32,
)
COMMANDS = typer.main.get_command(app)
MISTAKES = [("from_json", "read_json"), ("attach(model", "attach(modell"), ("divprune", "pruned")]


def blocks(path: Path, language: str) -> list[str]:
    """What stands between fences of this language."""
    text = path.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def taken_for_granted() -> dict[str, Any]:
    """The names that the blocks use and do not make."""
    generator = torch.Generator().manual_seed(0)

    def tokens() -> torch.Tensor:
        return torch.randn(2, TOKENS, WIDTH, generator=generator)

    return {
        "reference_tokens": tokens(),
        "final_tokens": tokens(),
        "attention_received": torch.rand(2, TOKENS, generator=generator),
        "tokens": tokens(),
        "keys": tokens(),
    }


def make_model() -> dict[str, Any]:
    """A tiny LLaVA of as many image tokens as real ones, whose answers are a few tokens long."""
    pytest.importorskip("transformers")
    from PIL import Image

    from tests.vlm.models import make_llava, make_llava_processor, make_vision_config

    vision = make_vision_config(hidden_size=WIDTH, num_hidden_layers=6, image_size=336)
    model, processor = make_llava(vision_config=vision), make_llava_processor()
    processor.image_processor.size = {"shortest_edge": 336}
    processor.image_processor.crop_size = {"height": 336, "width": 336}
    model.generation_config.max_new_tokens = 3
    photo = Image.effect_mandelbrot((120, 80), (-2, -1, 1, 1), 20).convert("RGB")
    prompt = "USER: <image>\nwhat is in this picture? ASSISTANT:"
    return {"model": model, "processor": processor, "photo": photo, "prompt": prompt}


def run_blocks(path: Path, names: dict[str, Any]) -> dict[str, Any]:
    """The names after a page's blocks ran, one behind the other."""
    for number, code in enumerate(blocks(path, "python")):
        exec(compile(code, f"{path.name}, block {number}", "exec"), names)
    return names


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the files lie that the blocks read."""
    monkeypatch.chdir(tmp_path)
    Path("oc-vlm_64.json").write_text(CONFIG.to_json(), encoding="utf-8")
    torch.save(random_pruner(CONFIG).state_dict(), "weights.pth")
    return tmp_path


def assert_kept(ids: torch.Tensor, rows: int) -> None:
    assert ids.shape == (rows, BUDGET)
    assert (ids.diff(dim=1) > 0).all() and ids.min() >= 0 and ids.max() < TOKENS


@pytest.mark.usefixtures("folder")
def test_the_readme_runs_as_printed() -> None:
    model = make_model()
    names = run_blocks(README, {**taken_for_granted(), **model})
    assert names["slots"].shape == (2, BUDGET, CONFIG.init_dim)
    assert names["attention"].shape == (2, BUDGET, TOKENS)
    assert names["attention"].requires_grad
    assert_kept(names["out"].ids, 2)
    assert names["out"].tokens.shape == (2, BUDGET, WIDTH)
    # As its comment says: the same, by the op.
    assert torch.equal(names["ids"], names["out"].ids)
    assert_kept(names["handle"].last.ids[0].reshape(1, -1), 1)
    assert_kept(names["kept"].ids, 2)
    untouched = model["processor"](images=model["photo"], text=model["prompt"], return_tensors="pt")
    placeholders = untouched["input_ids"] == model["model"].config.image_token_id
    assert int(placeholders.sum()) == TOKENS


def test_the_page_of_selectors_runs_as_printed() -> None:
    names = run_blocks(SELECTORS, {**taken_for_granted(), **make_model(), "ocvtp": ocvtp})
    assert_kept(names["kept"].ids, 2)
    assert isinstance(names["handle"], ocvtp.Handle)


def test_the_page_of_serving_says_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    # vLLM itself is in an environment of its own: tests/serving/vllm.
    vllm = ModuleType("vllm")
    vllm.LLM = lambda _model, hf_overrides: hf_overrides  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    overrides = run_blocks(SERVING, {})["llm"]
    assert read_settings(SimpleNamespace(**overrides)).budget == BUDGET
    assert overrides["architectures"] == [PREFIX + "LlavaForConditionalGeneration"]
    (setting,) = blocks(SERVING, "json")
    assert read_settings(SimpleNamespace(**json.loads(setting))).budget == BUDGET
    text = SERVING.read_text(encoding="utf-8")
    keys = {field.name for field in fields(Settings)}
    assert set(re.findall(r"^\| `([a-z_]+)(?:\.…)?` \|", text, re.M)) == keys
    pages = text + README.read_text(encoding="utf-8")
    assert set(re.findall(r"--hf-overrides\.ocvtp\.([a-z_]+)", pages)) <= keys
    served = re.findall(r"^\| `(\w+ForConditionalGeneration)` \|", text, re.M)
    assert set(served) == set(ARCHITECTURES)


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(("right", "wrong"), MISTAKES, ids=["first", "second", "third"])
def test_a_mistake_in_a_block_does_not_pass(
    monkeypatch: pytest.MonkeyPatch, right: str, wrong: str
) -> None:
    text = README.read_text(encoding="utf-8")
    Path("README.md").write_text(text.replace(right, wrong), encoding="utf-8")
    with pytest.raises((AttributeError, NameError, ValueError), match=wrong.split("(")[-1]):
        run_blocks(Path("README.md"), {**taken_for_granted(), **make_model()})


def test_every_block_of_python_has_a_test() -> None:
    pages = [README, *(ROOT / "docs").glob("*.md"), ROOT / "CONTRIBUTING.md"]
    found = {page: len(blocks(page, "python")) for page in pages}
    assert {page: count for page, count in found.items() if count} == {
        README: 3,
        SELECTORS: 2,
        SERVING: 1,
    }


def printed_commands() -> list[str]:
    """The lines that call `ocvtp`, of every page, settings before it left out."""
    code = "\n".join(block for page in PAGES for block in blocks(page, "sh"))
    lines = code.replace("\\\n", " ").splitlines()
    return [line[line.index("ocvtp ") :] for line in lines if re.match(r"(\w+=\S+ )*ocvtp ", line)]


def parse(line: str) -> None:
    """Raises the complaint of the command line about a command."""
    _, name, *arguments = shlex.split(line, comments=True)
    COMMANDS.commands[name].make_context(name, arguments)


def test_printed_commands_of_the_bench_are_there() -> None:
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert set(re.findall(r"python -m bench\s+(\w+)", text)) == BENCH.keys()
    # What has no command is a program of its own, with a file.
    for module in set(re.findall(r"python -m (bench\.[\w.]+)", text)):
        assert find_spec(module) is not None, module


def test_printed_commands_and_options_are_there() -> None:
    lines = printed_commands()
    assert {line.split()[1] for line in lines} >= COMMANDS.commands.keys()
    for line in lines:
        parse(line)


@pytest.mark.parametrize("line", ["ocvtp pruned photo.jpg", "ocvtp flops --joules", "ocvtp train"])
def test_a_command_that_is_not_there_does_not_parse(line: str) -> None:
    with pytest.raises(Exception, match=r"pruned|No such option|Missing parameter"):
        parse(line)


def test_what_the_readme_installs_is_what_its_commands_need() -> None:
    tomllib: Any = pytest.importorskip("tomllib")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    needs = {"transformers", "accelerate", "matplotlib"}  # of prune --model, train and evaluate
    for page in (README, ROOT / "docs" / "training.md"):
        (named,) = re.findall(r"pip install '\.\[([\w,]+)\]'", page.read_text(encoding="utf-8"))
        installed = {re.split(r"\W", one)[0] for name in named.split(",") for one in extras[name]}
        assert needs <= installed
