"""The exact versions of everything that the Makefile installs: constraints.txt.

    python scripts/constraints.py renew torch==2.13.0   # the newest of all, beside this torch
    python scripts/constraints.py beside-torch          # what of it holds in this environment

The file is for every supported Python and system; uv resolves it. The libraries that a build of
torch for CUDA brings are not in it, as torch requires exact versions of them. An environment has
torch installed first; torch and packages that it pins, such as the Triton of such a build, are left
out there.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT / "constraints.txt"
OLDEST_PYTHON = "3.10"
# Where torch brings no Triton, as its builds for the CPU, the newest is taken.
OVERRIDES = "triton>=3.6; sys_platform == 'linux'\n"
# What builds require, of which the package itself has no need.
BUILD = "setuptools-scm>=8\nbuild\n"
HEADER = "# Exact versions of all that the Makefile installs. Made by `make renew`.\n"


def name_of(requirement: str) -> str:
    """The normalized name of the package that a requirement or a pin is about."""
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0]).lower()  # type: ignore[index]


def beside_torch() -> str:
    """The lines that hold beside the torch that is installed here."""
    own = {"torch"}
    for requirement in importlib.metadata.requires("torch") or []:
        if re.search(r"[<=]=|<|~=", requirement.split(";")[0]):
            own.add(name_of(requirement))
    pins = (line for line in FILE.read_text(encoding="utf-8").splitlines() if line[:1].isalpha())
    return "".join(f"{pin}\n" for pin in pins if name_of(pin) not in own)


def renew(torch: str) -> None:
    """Writes the newest versions, beside ``torch``, such as "torch==2.13.0"."""
    if not re.fullmatch(r"torch==[\d.]+", torch):
        sys.exit(f"torch: expected an exact version such as torch==2.13.0, got {torch!r}")
    temporary = ROOT / "build" / "constraints"
    temporary.mkdir(parents=True, exist_ok=True)
    (temporary / "overrides.txt").write_text(OVERRIDES, encoding="utf-8")
    (temporary / "beside.txt").write_text(f"{torch}\n{BUILD}", encoding="utf-8")
    command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--universal", "--upgrade"]
    command += ["--python-version", OLDEST_PYTHON, "--all-extras", "--no-annotate", "--no-header"]
    command += ["--overrides", "overrides.txt", str(ROOT / "pyproject.toml"), "beside.txt"]
    resolved = subprocess.run(command, cwd=temporary, check=True, stdout=subprocess.PIPE, text=True)
    ours = re.findall(r'"([\w.-]+)', (ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    pins = [
        pin
        for pin in resolved.stdout.splitlines(keepends=True)
        if not re.match("(cuda|nvidia)-", pin) or name_of(pin) in ours
    ]
    new = temporary / FILE.name
    new.write_text(HEADER + "".join(pins), encoding="utf-8")
    os.replace(new, FILE)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["beside-torch"]:
            print(beside_torch(), end="")
        case ["renew", torch]:
            renew(torch)
        case _:
            sys.exit(__doc__)
