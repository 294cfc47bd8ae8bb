"""Tests this checkout on the oldest and newest supported versions, and prints one table.

    python scripts/matrix.py [--rows oldest,newest] [--output build/matrix] [--readme README.md]

For a maintainer, before a release and after `make renew`. A row is an environment of its own, of
the newest of everything but what it names, beside a copy of the checkout: the native objects are
built (for CUDA too, where torch is a build for it and there is nvcc) and loaded, and tests are run.
Environments and logs stay in the output folder; only rows of the newest versions are made again.
A row without its Python or torch is "not tried", which is a failure with --strict alone. With
--readme, the line of that file about versions is rewritten from the rows that passed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
LINE = re.compile(r"(<!-- tested:start -->\n).*?(<!-- tested:end -->)", re.S)
BUILD_TOOLS = ("setuptools>=77", "setuptools-scm>=8", "ninja", "cmake>=3.20")
QUICK = ("-m", "not slow")
MODELS = ("tests/vlm", "tests/examples", "tests/cli/test_prune_models.py")
PACKAGES = {"torch": "torch", "triton": "Triton", "transformers": "transformers"}
WIDTHS = {"row": 20, "python": 8, "torch": 14, "triton": 8, "transformers": 14, "native": 22}

FACTS = """
import json, platform, torch
from importlib.metadata import version
from ocvtp_kernels import native
facts = {name: version(name) for name in ("triton", "transformers")} | {"torch": torch.__version__}
loads = {kind: native.missing_reason(kind) for kind in ("cpu", "cuda")}
for kind in (kind for kind, reason in loads.items() if reason is None):
    if not torch._C._dispatch_has_kernel_for_dispatch_key("ocvtp_native::gru_gates", kind.upper()):
        loads[kind] = "it registers no kernels"
facts |= {"python": platform.python_version(), "cuda": torch.version.cuda, "loads": loads}
print(json.dumps(facts))
"""


class Row(NamedTuple):
    """Requested versions; an empty one is the newest.

    ``triton`` is for a torch that brings none, as its builds for the CPU.
    """

    name: str
    python: str
    torch: str
    transformers: str
    triton: str = ""
    others: tuple[str, ...] = ()
    tests: tuple[str, ...] = QUICK

    def requirements(self, brings_triton: bool) -> list[str]:
        """The versions beside torch's."""
        named = {"transformers": self.transformers, "triton": "" if brings_triton else self.triton}
        return [f"{name}=={of}" for name, of in named.items() if of] + list(self.others)


# Triton 3.6's interpreter cannot reduce to scalars of NumPy 2.4.
OLD_NUMPY = ("numpy<2.4",)
ROWS = (
    Row("oldest", "3.10", "2.10.0", "5.16.1", "3.6.0", OLD_NUMPY),
    Row("torch-2.11", "3.12", "2.11.0", "5.17.0", "3.6.0", OLD_NUMPY),
    *(
        Row(f"transformers-{version}", "3.11", "2.13.0", version, tests=MODELS)
        for version in ("5.16.1", "5.20.0", "5.23.0")
    ),
    Row("pinned-torch", "3.11", "2.13.0", "", "3.9.0"),
    Row("newest", "3.13", "", ""),
)


class Result(NamedTuple):
    """The outcome of a row; ``status`` is "passed", "failed" or "not tried"."""

    status: str
    note: str
    facts: dict[str, str]
    native: str = ""
    counts: str = ""


class Stopped(Exception):
    """A step of a row that failed; the message says which."""


def find_python(version: str) -> str | None:
    """A Python of this version: on PATH, or among those of pyenv."""
    found = shutil.which(f"python{version}")
    # pyenv puts wrappers on PATH for versions that are not selected, and those fail.
    if found and subprocess.run([found, "-c", ""], capture_output=True).returncode == 0:
        return found
    versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found_here = sorted(versions.glob(f"{version}.*/bin/python"))
    return str(found_here[-1]) if found_here else None


def copy_checkout(target: Path) -> None:
    """The files that git tracks, as they are now."""
    shutil.rmtree(target, ignore_errors=True)
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, stdout=subprocess.PIPE)
    for name in filter(None, listed.stdout.decode().split("\0")):
        source, copy = ROOT / name, target / name
        if source.is_file():
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, copy)


def count(report: Path) -> str:
    """The counts of a JUnit file."""
    suite = ElementTree.parse(report).getroot().find("testsuite")
    assert suite is not None
    total, failures, errors, skipped = (
        int(suite.attrib[name]) for name in ("tests", "failures", "errors", "skipped")
    )
    failed = failures + errors
    return f"{total - failed - skipped} passed, {failed} failed, {skipped} skipped"


def try_row(row: Row, output: Path) -> Result:
    """Installs, builds, loads and tests one row."""
    python = find_python(row.python)
    if python is None:
        return Result("not tried", f"there is no Python {row.python} here", {})
    folder, log = output / row.name, output / f"{row.name}.log"
    if "" in (row.torch, row.transformers):
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    bin, source, report = folder / "env" / "bin", folder / "source", folder / "report.xml"
    report.unlink(missing_ok=True)
    with log.open("w") as said:

        def step(what: str, *command: str | Path, **settings: str) -> None:
            line = [str(part) for part in command]
            print("$", *line, file=said, flush=True)
            done = subprocess.run(
                line,
                cwd=source,
                env={**os.environ, **settings},
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
            )
            if done.returncode:
                raise Stopped(what)

        pip = (bin / "python", "-m", "pip", "--disable-pip-version-check", "--quiet", "install")
        torch = f"torch=={row.torch}" if row.torch else "torch"
        copy_checkout(source)
        try:
            if not (bin / "python").exists():
                step("no environment", python, "-m", "venv", folder / "env")
            step(f"{torch} cannot be installed", *pip, torch, *row.others)
            step("no build tools", *pip, *BUILD_TOOLS)
        except Stopped as stopped:
            return Result("not tried", f"{stopped}; see {log}", {})
        facts: dict[str, str] = {}
        native = counts = ""
        try:
            for_cuda = ask(bin, "import torch; print(torch.version.cuda or '')")
            wanted = "cuda" if for_cuda and shutil.which("nvcc") else "1"
            settings = {"OCVTP_NATIVE": wanted, "OCVTP_CUDA_ARCHITECTURES": "9.0"}
            brought = ask(bin, "import importlib.util as u; print(u.find_spec('triton') or '')")
            own = ("--no-build-isolation", "-e", ".[test]", *row.requirements(bool(brought)))
            step("does not install", *pip, *own, **settings)
            facts, native = read_facts(bin, source)
            pytest = (bin / "python", "-m", "pytest", "-n", "2", "--dist", "loadfile")
            step("tests fail", *pytest, "--junitxml", report, *row.tests)
            status, note = "passed", ""
        except Stopped as stopped:
            status, note = "failed", f"{stopped}; see {log}"
        if report.exists():
            counts = count(report)
    return Result(status, note, facts, native, counts)


def ask(bin: Path, question: str, source: Path = ROOT) -> str:
    """What the Python of an environment prints.

    Raises:
        Stopped: it fails.
    """
    command = [str(bin / "python"), "-c", question]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True)
    if done.returncode:
        raise Stopped(f"does not import: {done.stderr.strip().splitlines()[-1]}")
    return done.stdout.strip()


def read_facts(bin: Path, source: Path) -> tuple[dict[str, str], str]:
    """The versions of an environment, and which native objects load in it.

    Raises:
        Stopped: one that was built does not load.
    """
    facts = json.loads(ask(bin, FACTS, source))
    loads, cuda = facts.pop("loads"), facts.pop("cuda")
    if loads["cpu"]:
        raise Stopped(f"_C does not load: {loads['cpu']}")
    if not (source / "ocvtp_kernels" / "_C_cuda.abi3.so").exists():
        return facts, "_C"
    if loads["cuda"] is None:
        return facts, "_C, _C_cuda"
    nvcc = subprocess.run(["nvcc", "--version"], capture_output=True, text=True).stdout
    if f"release {cuda.split('.')[0]}." in nvcc:
        raise Stopped(f"_C_cuda does not load: {loads['cuda']}")
    # nvcc is of another CUDA than torch's, so the object is compiled but cannot load.
    return facts, "_C, _C_cuda compiles"


def table(results: dict[Row, Result]) -> str:
    """A line a row."""
    lines = ["".join(f"{title:<{width}}" for title, width in WIDTHS.items()) + "tests"]
    for row, result in results.items():
        asked = row._asdict() | {"row": row.name} | result.facts | {"native": result.native}
        cells = [f"{asked[title] or 'newest':<{width}}" for title, width in WIDTHS.items()]
        if not result.native:
            cells[-1] = " " * WIDTHS["native"]
        note = ", ".join(filter(None, (result.counts, result.note)))
        lines.append("".join(cells) + f"{result.status}: {note}")
    return "\n".join(lines)


def tested_line(results: dict[Row, Result]) -> str:
    """The sentence about versions that the rows which passed allow."""
    passed = [result.facts for result in results.values() if result.status == "passed"]

    def listed(name: str) -> str:
        releases = {tuple(map(int, facts[name].split("+")[0].split(".")[:2])) for facts in passed}
        *others, last = (f"{major}.{minor}" for major, minor in sorted(releases))
        return f"{', '.join(others)} and {last}" if others else last

    parts = [f"Python {listed('python')}"]
    parts += [f"{title} {listed(name)}" for name, title in PACKAGES.items()]
    return textwrap.fill(f"Tested with {'; '.join(parts)} (`make matrix`).", 100) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns 1 where a row failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [row.name for row in ROWS]
    parser.add_argument("--rows", help=f"some of {','.join(names)}; all")
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "matrix")
    parser.add_argument("--readme", type=Path, help="the file whose line about versions to write")
    parser.add_argument("--strict", action="store_true", help="a row that is not tried fails")
    given = parser.parse_args(arguments)
    chosen = given.rows.split(",") if given.rows else names
    if unknown := set(chosen) - set(names):
        parser.error(f"--rows: expected some of {', '.join(names)}, got {', '.join(unknown)}")
    text = "" if given.readme is None else given.readme.read_text(encoding="utf-8")
    if given.readme is not None and not LINE.search(text):
        parser.error(f"--readme: expected a line <!-- tested:start --> in {given.readme}, got none")
    output = given.output.resolve()
    results = {}
    for row in ROWS:
        if row.name in chosen:
            start = time.monotonic()
            results[row] = try_row(row, output)
            print(
                f"{row.name}: {results[row].status}, {time.monotonic() - start:.0f} s", flush=True
            )
    print(f"\n{table(results)}")
    if given.readme is not None and any(each.status == "passed" for each in results.values()):
        temporary = given.readme.with_name(f"{given.readme.name}.new")
        line = tested_line(results)
        temporary.write_text(
            LINE.sub(lambda found: found[1] + line + found[2], text), encoding="utf-8"
        )
        os.replace(temporary, given.readme)
    bad = {"failed", "not tried"} if given.strict else {"failed"}
    return int(any(each.status in bad for each in results.values()))


if __name__ == "__main__":
    sys.exit(main())
