"""The package's structure: imports run one way, and an op is complete where it stands."""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

import ocvtp_kernels
from ocvtp_kernels import ops
from ocvtp_kernels.ops.registry import SCHEMA_NAMES
from ocvtp_kernels.vlm.family import Family, families

PACKAGE = Path(ocvtp_kernels.__file__).parent
ROOT = Path(__file__).parents[1]
# From the bottom up; a module may import from its own layer and from those below.
LAYERS = (
    ("version", "files", "installing", "markdown", "text", "dtypes", "checks"),
    ("native", "blas"),
    ("triton_common",),
    ("backends",),
    ("ops",),
    ("pruner",),
    ("selectors", "cost"),
    ("vlm",),
    ("training", "serving", "evaluation"),
    ("cli",),
)
LAYER = {name: index for index, names in enumerate(LAYERS) for name in names}
FOLDERS = sorted(path.parent.name for path in (PACKAGE / "ops").glob("*/__init__.py"))


def ops_of(folder: str) -> list[Any]:
    """The functions of a folder that are ops."""
    module = import_module(f"ocvtp_kernels.ops.{folder}")
    own = (value for value in vars(module).values() if hasattr(value, "reference"))
    return [value for value in own if value.__module__ == module.__name__]


OPS = [op for folder in FOLDERS for op in ops_of(folder)]
EVERY_OP = pytest.mark.parametrize("op", OPS, ids=lambda op: op.__name__)


def modules() -> dict[str, Path]:
    """Every module of the package but its root, by its name within it."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        if parts:
            found[".".join(parts)] = path
    return found


MODULES = modules()


def imported(name: str) -> Iterator[str]:
    """The modules that a module imports, in functions and for type checkers too."""
    for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for full in names:
            if full.split(".")[0] != "ocvtp_kernels":
                continue
            within = full.removeprefix("ocvtp_kernels").lstrip(".")
            while within and within not in MODULES:
                within = within.rpartition(".")[0]
            yield within


def test_every_module_has_a_layer() -> None:
    assert {name.split(".")[0] for name in MODULES} == set(LAYER)


@pytest.mark.parametrize("name", MODULES)
def test_imports_run_one_way(name: str) -> None:
    own = LAYER[name.split(".")[0]]
    for other in imported(name):
        if other == "":
            # The root imports what is public, so only the command line may import the root.
            assert name.startswith("cli."), f"{name} imports the package's root"
        else:
            assert LAYER[other.split(".")[0]] <= own, f"{name} imports {other}"


def test_no_modules_import_each_other() -> None:
    waiting = {name: set(imported(name)) - {name, ""} for name in MODULES}
    # A package imports its parts, and a part may read what its package defines first.
    waiting = {
        name: {other for other in others if not name.startswith(f"{other}.")}
        for name, others in waiting.items()
    }
    while free := [name for name, others in waiting.items() if not others & waiting.keys()]:
        for name in free:
            del waiting[name]
    assert not waiting


def words_of(path: Path) -> Iterator[str]:
    """The names and texts of a module's code, without its docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    texts = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in texts:
            yield node.value
        elif isinstance(node, ast.alias):
            yield node.name
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
        else:
            yield from (getattr(node, field, None) or "" for field in ("id", "attr", "name"))


@pytest.mark.parametrize("family", families(), ids=lambda family: family.name)
def test_a_family_is_named_in_its_folder_alone(family: Family) -> None:
    names = {name for each in families() for name in each.model_types}
    folders = {PACKAGE / "vlm" / name for name in names}
    # In serving a module, and a line of the table that vLLM's names are registered by.
    served = PACKAGE / "serving" / "vllm"
    folders |= {served / f"{name}.py" for name in names} | {served / "__init__.py"}
    # lmms-eval has models of its own names.
    evaluated = PACKAGE / "evaluation" / "lmms_eval"
    folders |= {evaluated / f"{name}.py" for name in ("__init__", "llava_hf", "qwen2_5_vl")}
    # The counts of FLOPs hold sizes that were published.
    others = [path for path in MODULES.values() if path.parent.name != "cost"]
    for path in others:
        if not folders & {path, *path.parents}:
            # Sentences, which users read, may name it.
            said = {word.lower().replace("_", "") for word in words_of(path) if " " not in word}
            for name in family.model_types:
                assert not [word for word in said if name.replace("_", "") in word], path


@EVERY_OP
def test_help_tells_everything_about_an_op(op: Any) -> None:
    doc = inspect.getdoc(op)
    assert doc is not None
    assert re.search(r"\[[A-Z.]", doc), "no shape"
    assert re.search(r"dtype|int64|floating", doc), "no dtype"
    assert re.search(r"^Raises:$", doc, re.MULTILINE) and re.search(r"(Value|Type)Error", doc)
    assert re.search(r"^Returns:$", doc, re.MULTILINE)
    assert "Source:" in doc
    signature = inspect.signature(op)
    described = doc.split("Args:")[1].split("Returns:")[0]
    for name, parameter in signature.parameters.items():
        assert re.search(rf"\b{name}\b", described), f"{name} is not described"
        assert parameter.annotation is not inspect.Parameter.empty
    assert signature.return_annotation is not inspect.Signature.empty


@EVERY_OP
def test_an_ops_schema_is_its_signature(op: Any) -> None:
    schema = getattr(torch.ops.ocvtp, op.__name__).default._schema
    parameters = inspect.signature(op).parameters
    names = [SCHEMA_NAMES.get(name, name) for name in parameters]
    assert [argument.name for argument in schema.arguments] == names
    for argument, parameter in zip(schema.arguments, parameters.values(), strict=True):
        has_default = parameter.default is not inspect.Parameter.empty
        assert argument.has_default_value() == has_default
        assert not has_default or argument.default_value == parameter.default


@pytest.mark.parametrize("folder", FOLDERS)
def test_an_op_is_complete(folder: str) -> None:
    own = ops_of(folder)
    assert folder in [op.__name__ for op in own], "no op of the folder's name"
    assert all(callable(op.reference) for op in own), "no oracle"
    for place in (f"tests/ops/{folder}/test_{folder}.py", f"bench/ops/{folder}.py"):
        assert (ROOT / place).exists(), f"no {place}"


def test_what_is_public_is_an_op() -> None:
    assert {getattr(ops, name) for name in ops.__all__} <= set(OPS)
    assert all(getattr(ops, name).__name__ == name for name in ops.__all__)


def resolves(dotted: str) -> bool:
    """Whether ``ocvtp_kernels.a.b`` is a module, or an attribute of one."""
    found, name = ocvtp_kernels, "ocvtp_kernels"
    for part in dotted.split(".")[1:]:
        name = f"{name}.{part}"
        # A function has the name of its folder: the folder first.
        found = sys.modules.get(name) or getattr(found, part, None)
        if found is None:
            return False
    return True


def is_there(path: Path) -> bool:
    """Whether a file exists; one of the package lies where that is installed."""
    sources = ROOT / PACKAGE.name
    path = path.resolve()
    return (PACKAGE / path.relative_to(sources) if path.is_relative_to(sources) else path).exists()


def test_what_docstrings_and_documents_name_is_there() -> None:
    for name in MODULES:
        if "triton" not in name and "__main__" not in name:
            try:
                import_module(f"ocvtp_kernels.{name}")
            except ModuleNotFoundError as error:
                # Of tests that run where vLLM, or lmms-eval, is installed.
                is_vllm = name.startswith("serving.vllm.") and error.name == "vllm"
                is_lmms_eval = name.startswith("evaluation.lmms_eval.")
                assert is_vllm or (is_lmms_eval and error.name in ("lmms_eval", "loguru"))
    paths = [*MODULES.values(), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
    paths += (ROOT / "docs").glob("*.md")
    missing = set()
    for path in paths:
        text = path.read_text(encoding="utf-8")
        named = re.findall(r"`(ocvtp_kernels(?:\.\w+)+)`", text)
        missing |= {(path.name, one) for one in named if ".triton" not in one and not resolves(one)}
        if path.suffix == ".md":
            links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text)
            missing |= {(path.name, one) for one in links if not is_there(path.parent / one)}
    assert not missing
