"""The commands that pages print: a shell reads them, programs take their options, `ocvtp` runs."""

from __future__ import annotations

import argparse
import re
import runpy
import shutil
import subprocess
import sys
import tempfile
from dataclasses import fields
from functools import cache
from importlib.metadata import entry_points
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from packaging.requirements import Requirement
from typer.testing import CliRunner

from bench.__main__ import COMMANDS as BENCH
from ocvtp_kernels.cli import app
from ocvtp_kernels.serving.vllm import ARCHITECTURES, PREFIX
from ocvtp_kernels.serving.vllm.settings import Settings
from tests.build_cases import ROOT
from tests.documents.pages import (
    BUDGET,
    DOCS,
    NAMES,
    PAGES,
    blocks,
    fences,
    leave_authors_files,
    make_model,
    run_as_printed,
)

COMMANDS = typer.main.get_command(app)
WITH_SHELL = [path for path in PAGES if blocks(path, "sh")]
WITH_OCVTP = [path for path in WITH_SHELL if "ocvtp " in "".join(blocks(path, "sh"))]
KEYS = {field.name for field in fields(Settings)}
# The client of a server, which is lmms-eval's own, and the package's models.
LMMS_EVAL = {"openai", *entry_points(group="lmms_eval.models").names}
# Folders and files that commands of a page name and none of it makes.
PHOTOS = ("photos", "IMAGES", "demo-photos/training", "demo-photos/held-out")
RUNS = ("run8", "run-2", "run-mse")


class Parsed(Exception):
    """A program took its options."""


@cache
def calls_of(path: Path) -> list[list[str]]:
    """What the blocks of a page call, in order."""
    with tempfile.TemporaryDirectory() as folder:
        return run_as_printed("\n".join(blocks(path, "sh")), Path(folder), PARSERS)


@pytest.fixture
def parsing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs end where their options are read."""
    read = argparse.ArgumentParser.parse_args

    def end(self: Any, *given: Any, **named: Any) -> None:
        raise Parsed(read(self, *given, **named))

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", end)


def parse_ocvtp(name: str, *arguments: str) -> None:
    COMMANDS.commands[name].make_context(name, list(arguments))


def parse_python(*arguments: str) -> None:
    match arguments:
        case ("-m", "pytest", *given):
            assert all((ROOT / one).exists() for one in given if one.startswith("tests/"))
        case ("-m", "lmms_eval", *given):
            assert given[given.index("--model") + 1] in LMMS_EVAL
        case ("-m", "pip", *given):
            parse_pip(*given)
        case ("-m", "ocvtp_kernels.cli", *given):
            parse_ocvtp(*given)
        case ("-m", module, *given):
            parse_program(given, lambda: runpy.run_module(module, run_name="__main__"))
        case (path, *given):
            text = (ROOT / path).read_text(encoding="utf-8")
            if "typer" in text:
                command = runpy.run_path(str(ROOT / path))["main"]
                made = typer.Typer()
                made.command()(command)
                typer.main.get_command(made).make_context(path, list(given))
            else:
                parse_program(given, lambda: runpy.run_path(str(ROOT / path), run_name="__main__"))


def parse_program(arguments: Any, run: Any) -> None:
    """Raises SystemExit, the options' own complaint, or that of a program without any."""
    before = sys.argv
    sys.argv = ["program", *arguments]
    try:
        with pytest.raises(Parsed):
            run()
    finally:
        sys.argv = before


def parse_pip(verb: str, *arguments: str) -> None:
    assert verb in ("install", "wheel", "download"), verb
    named = [one for one in arguments if not one.startswith("-")]
    for one in named:
        if one.startswith("."):
            one = "ocvtp-kernels" + one.removeprefix(".")
        wanted = Requirement(one)
        if wanted.name == "ocvtp-kernels":
            assert wanted.extras <= extras().keys()


def parse_make(*arguments: str) -> None:
    done = subprocess.run(["make", "-n", *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def parse_vllm(verb: str, model: str, *arguments: str) -> None:
    assert verb == "serve" and not model.startswith("-")
    found = re.findall(r"--hf-overrides\.ocvtp\.(\w+)", " ".join(arguments))
    assert found and set(found) <= KEYS
    for option, value in pairwise(arguments):
        if option == "--hf-overrides.architectures+":
            assert value.removeprefix(PREFIX) in ARCHITECTURES


def parse_torchrun(*arguments: str) -> None:
    parse_python(*arguments[arguments.index("-m") :])


def parse_gpu_check(*arguments: str) -> None:
    parse_python("-m", "bench.gpu_check", *arguments)


PARSERS = {
    "ocvtp": parse_ocvtp,
    "python": parse_python,
    ".venv/bin/python": parse_python,
    ".venv-gpu/bin/python": parse_python,
    "pip": parse_pip,
    "make": parse_make,
    "vllm": parse_vllm,
    "torchrun": parse_torchrun,
    "bench/gpu_check.sh": parse_gpu_check,
}


def parse(call: list[str]) -> None:
    """Raises what the program says to options that it does not have."""
    program, *arguments = call
    PARSERS[program](*arguments)


@cache
def extras() -> dict[str, list[str]]:
    tomllib: Any = pytest.importorskip("tomllib")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return project["optional-dependencies"]


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")  # a module run again as a program
@pytest.mark.usefixtures("parsing")
@pytest.mark.parametrize("path", WITH_SHELL, ids=NAMES.get)
def test_programs_take_the_options_that_a_page_prints(path: Path) -> None:
    for call in calls_of(path):
        parse(call)


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
@pytest.mark.usefixtures("parsing")
@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("ocvtp pruned photo.jpg", "pruned"),
        ("ocvtp flops --joules", "No such option.*--joules"),
        ("ocvtp train", "Missing.*features"),
        ("python -m bench pruned", "usage: python -m bench COMMAND"),
        ("python -m bench run --joules", "unrecognized arguments: --joules"),
        ("python -m lmms_eval --model joules", "joules"),
        ("python scripts/matrix.py --joules", "unrecognized arguments: --joules"),
        ("python scripts/no_such.py", "No such file.*no_such.py"),
        ("bench/gpu_check.sh --only smoke,joules", "--only: .*joules"),
        ("pip install '.[joules]'", "joules"),
        ("make joules", "No rule to make target 'joules'"),
        ("vllm serve llava --hf-overrides.ocvtp.joules 64", "joules"),
        ("joules", "joules: command not found"),
        ("cd nowhere", "nowhere: No such file or directory"),
    ],
)
def test_a_mistake_in_a_command_is_found(
    line: str, complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises((Exception, SystemExit)) as raised:
        for call in run_as_printed(line, tmp_path, PARSERS):
            parse(call)
    assert not isinstance(raised.value, Parsed)
    assert re.search(complaint, f"{raised.value}\n{''.join(capsys.readouterr())}")


def test_loops_settings_and_folders_are_those_of_a_shell(tmp_path: Path) -> None:
    code = "for layer in 4 8; do\n  A=1 ocvtp features 'a b' \\\n    --output layer$layer\ndone"
    calls = run_as_printed(code + "\nbench/gpu_check.sh  # 13 minutes", tmp_path, PARSERS)
    assert calls == [
        ["ocvtp", "features", "a b", "--output", "layer4"],
        ["ocvtp", "features", "a b", "--output", "layer8"],
        ["bench/gpu_check.sh"],
    ]


def test_every_command_is_printed_somewhere() -> None:
    printed = {call[1] for path in WITH_SHELL for call in calls_of(path) if call[0] == "ocvtp"}
    assert printed == COMMANDS.commands.keys()
    text = "\n".join(path.read_text(encoding="utf-8") for path in PAGES)
    assert set(re.findall(r"python -m bench\s+(\w+)", text)) == BENCH.keys()


def test_what_the_page_of_training_installs_is_what_its_commands_need() -> None:
    needs = {"transformers", "accelerate", "matplotlib"}  # of prune --model, train and evaluate
    (line,) = [call for call in calls_of(DOCS / "training.md") if call[0] == "pip"]
    named = Requirement("ocvtp-kernels" + line[-1].removeprefix(".")).extras
    installed = {re.split(r"\W", one)[0] for name in named for one in extras()[name]}
    assert needs <= installed


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with small ones of the files that pages name."""
    pytest.importorskip("accelerate")
    from PIL import Image

    folder, model = tmp_path_factory.mktemp("stand_ins"), "llava-hf/llava-1.5-7b-hf"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        made = make_model(depth=24)
        for part in (made["model"], made["processor"]):
            part.save_pretrained(model)
        leave_authors_files(folder)
        shutil.copytree(ROOT / "scripts", "scripts", ignore=shutil.ignore_patterns("*.py", "__*"))
        shutil.copytree(ROOT / "bench/retention/tiny-llava", "bench/retention/tiny-llava")
        for name in ("photo.jpg", "PHOTO", "SCENE"):
            made["photo"].save(name, "PNG")
        generator = torch.Generator().manual_seed(0)
        for place in PHOTOS:
            Path(place).mkdir(parents=True)
            for number in range(4):
                noise = torch.randint(0, 256, (64, 64, 3), generator=generator).byte()
                Image.fromarray(noise.numpy()).save(f"{place}/{number}.png")
        call_ocvtp("features", "IMAGES", "--model", model, "--output", "layer8")
        call_ocvtp("train", "--features", "layer8", "--output", "run8")
        shutil.copytree("layer8", "layer-2")
        for place in RUNS[1:]:
            shutil.copytree("run8", place)
    return folder


def call_ocvtp(*arguments: str) -> str:
    """Runs a command, training for one epoch; what it prints."""
    name, *given = arguments
    if name == "train":
        given += ["--epochs", "1", "--slots", str(BUDGET)]
    done = CliRunner().invoke(app, [name, *given])
    assert done.exit_code == 0, f"{arguments}: {done.output}"
    return done.output


@pytest.mark.slow
@pytest.mark.parametrize("path", WITH_OCVTP, ids=NAMES.get)
def test_printed_commands_run_on_small_files(
    path: Path, stand_ins: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(shutil.copytree(stand_ins, tmp_path / "copy"))
    for program, *arguments in calls_of(path):
        if program == "ocvtp":
            call_ocvtp(*arguments)


@pytest.mark.parametrize("path", PAGES, ids=NAMES.get)
def test_what_a_command_prints_is_what_the_page_shows(path: Path, tmp_path: Path) -> None:
    for (language, code), (behind, shown) in pairwise(fences(path)):
        if (language, behind) == ("sh", "text"):
            calls = run_as_printed(code, tmp_path, PARSERS)
            if [program for program, *_ in calls] == ["ocvtp"]:
                assert shown in call_ocvtp(*calls[0][1:])
