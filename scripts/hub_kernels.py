"""Writes the ops and their Triton kernels as a kernel repository for Hugging Face's `kernels`.

Its modules are those that `ocvtp_kernels.ops` imports, with relative imports and a namespace of ops
of their own; what the package does not have is in `hub/`. The format is that of
https://github.com/huggingface/kernels: build.toml of edition 5, sources in torch-ext/, and build/
as its builder makes it of sources that need no compiler.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ocvtp_kernels.version import __version__

ROOT = Path(__file__).resolve().parents[1]
OWN = Path(__file__).resolve().parent / "hub"
PACKAGE = "ocvtp_kernels"
NAME = "ocvtp-kernels"
LICENSE = "Apache-2.0"
BACKENDS = ("cpu", "cuda")
TESTS = ("tests/conftest.py", "tests/test_ops.py")
# As installed, for it comes from the Git tag; the Hub's versions are its first number.
VERSION = __version__
MAJOR = int(re.split(r"\D", VERSION)[0])
FOLDERS = sorted((ROOT / PACKAGE / "ops").glob("*/__init__.py"))  # of the ops
# What native.py has beside native objects: casts, and what they are made of.
CASTS = {"WIDE", "upcast", "for_products", "dense_rows", "torch", "Tensor", "product_dtype"}


def path_of(module: str) -> Path | None:
    """Where a module of the package is, None of what is no module."""
    folder = ROOT.joinpath(*module.split("."))
    places = (folder / "__init__.py", folder.with_suffix(".py"))
    return next((path for path in places if path.exists()), None)


def bound_by(node: ast.stmt) -> set[str]:
    """The names that a statement of a module binds."""
    parts = getattr(node, "names", None) or getattr(node, "targets", None) or [node]
    return {getattr(part, "name", getattr(part, "id", "")) for part in parts}


def source_of(module: str, path: Path) -> str:
    """A module's text before its imports are made relative."""
    if module == PACKAGE:
        return (OWN / "__init__.py").read_text(encoding="utf-8")
    if module == f"{PACKAGE}.version":
        return f'"""Which version this is."""\n\n__version__ = "{VERSION}"\n'
    text = path.read_text(encoding="utf-8")
    if module != f"{PACKAGE}.native":
        return text
    casts = [node for node in ast.parse(text).body if bound_by(node) & CASTS]
    parts = [(OWN / "native.py").read_text(encoding="utf-8").rstrip()]
    parts += [ast.get_source_segment(text, node) or "" for node in casts]
    return "\n\n".join(parts) + "\n"


def named_by(module: str, text: str) -> Iterator[str]:
    """What a module imports of the package, in functions too, and the Triton modules of its ops."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == PACKAGE:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.keyword) and node.arg == "triton":
            # The registry imports it when the op is first called.
            yield f"{module}.{ast.literal_eval(node.value)}"


def sources() -> dict[str, str]:
    """Every module that the ops need, by its path within the package."""
    waiting = [PACKAGE, *(f"{PACKAGE}.ops.{path.parent.name}" for path in FOLDERS)]
    found: dict[str, str] = {}
    while waiting:
        module = waiting.pop()
        path = path_of(module)
        # Packages above a module, or above what is no module but a name of one, are imported first.
        waiting += [module.rpartition(".")[0]] if "." in module else []
        place = path.relative_to(ROOT / PACKAGE).as_posix() if path else ""
        if path and place not in found:
            text = source_of(module, path)
            waiting += named_by(module, text)
            found[place] = rewritten(text, "." * len(Path(place).parts))
    return dict(sorted(found.items()))


def rewritten(text: str, dots: str) -> str:
    """A module's text with relative imports, and its ops in the namespace of `_ops`."""
    uses_ops = re.search(r"(?<!`)torch\.ops\.ocvtp\b", text)
    text = re.sub(r"\btorch\.ops\.ocvtp\b", "ops", text)
    text = text.replace('Library("ocvtp"', "Library(ops.name")
    text = text.replace('f"ocvtp::{name}"', "add_op_namespace_prefix(name)")
    if uses_ops:
        names = "add_op_namespace_prefix, ops" if "add_op_namespace_prefix" in text else "ops"
        own = f"\nfrom {dots}_ops import {names}\nfrom {PACKAGE}"
        text = text.replace(f"\nfrom {PACKAGE}", own, 1)
    return re.sub(rf"^( *from ){PACKAGE}\.?([\w.]* import )", rf"\1{dots}\2", text, flags=re.M)


def card(repo_id: str | None) -> str:
    """The repository's README: an example, and the ops with the first lines of their docstrings."""
    rows = []
    for node in (node for path in FOLDERS for node in ast.parse(path.read_text("utf-8")).body):
        if isinstance(node, ast.FunctionDef):
            by = [one.func for one in node.decorator_list if isinstance(one, ast.Call)]
            if {ast.unparse(one) for one in by} & {"op", "composite"}:
                rows.append(
                    f"| `{node.name}` | {(ast.get_docstring(node) or '').splitlines()[0]} |"
                )
    load = 'get_local_kernel(Path("."))'
    if repo_id:
        load = f'get_kernel("{repo_id}", version={MAJOR}, trust_remote_code=True)'
    facts = {"version": VERSION, "license": LICENSE.lower(), "load": load, "ops": "\n".join(rows)}
    return (OWN / "CARD.md").read_text(encoding="utf-8").format(**facts)


def build_toml(repo_id: str | None) -> str:
    """What is built: nothing is compiled."""
    general = {"name": NAME, "version": MAJOR, "edition": 5, "license": LICENSE}
    lines = ["[general]", *(f"{key} = {json.dumps(value)}" for key, value in general.items())]
    lines.append(f"backends = {json.dumps(BACKENDS)}")
    if repo_id:
        lines += ["", "[general.hub]", f"repo-id = {json.dumps(repo_id)}"]
    return "\n".join([*lines, "", "[torch-noarch]", ""])


def files(repo_id: str | None) -> dict[str, str]:
    """Every file of the repository, by its path."""
    copied = {"LICENSE": ROOT, **dict.fromkeys(("flake.nix", *TESTS), OWN)}
    found = {to: (at / Path(to).name).read_text(encoding="utf-8") for to, at in copied.items()}
    found |= {"build.toml": build_toml(repo_id), "CARD.md": card(repo_id)}
    modules = sources()
    found |= {f"torch-ext/{PACKAGE}/{path}": text for path, text in modules.items()}
    # Of the sources, so that two versions of them can be loaded at once.
    unique = hashlib.sha256(json.dumps(modules).encode()).hexdigest()[:7]
    own_ops = (OWN / "_ops.py").read_text(encoding="utf-8")
    for backend in BACKENDS:
        folder, namespace = f"build/torch-{backend}", f"_{PACKAGE}_{backend}_{unique}"
        facts = {"id": namespace, "name": NAME, "version": MAJOR, "license": LICENSE}
        facts |= {"python-depends": [], "backend": {"type": backend}}
        found[f"{folder}/metadata.json"] = json.dumps(facts, indent=2) + "\n"
        found[f"{folder}/_ops.py"] = own_ops.replace("NAMESPACE", namespace)
        found |= {f"{folder}/{path}": text for path, text in modules.items()}
    return found


def write(output: Path, repo_id: str | None = None) -> None:
    """Writes the repository, aside first.

    Args:
        output: a folder that is empty or not there.
        repo_id: "owner/name" of the repository on the Hub, where it has one.

    Raises:
        ValueError: the folder holds something already, the repository's name is none, or the
            package is not installed, so that its version is unknown.
    """
    if VERSION.endswith("unknown"):
        raise ValueError(f"version: expected that of an installed package, got {VERSION}")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"output: expected an empty folder or a new one, got {output}")
    if repo_id is not None and not re.fullmatch(r"[\w.-]+/[\w.-]+", repo_id):
        raise ValueError(f"repo_id: expected owner/name, got {repo_id!r}")
    output = output.resolve()
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}-", dir=output.parent) as temporary:
        aside = Path(temporary) / output.name
        for path, text in files(repo_id).items():
            (aside / path).parent.mkdir(parents=True, exist_ok=True)
            (aside / path).write_text(text, encoding="utf-8", newline="\n")
        os.replace(aside, output)


def main() -> None:
    """Writes it where the command says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("output", type=Path, help="a folder that is empty or not there")
    parser.add_argument("--repo-id", help="owner/name of the repository on the Hub")
    arguments = parser.parse_args()
    try:
        write(arguments.output, arguments.repo_id)
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
