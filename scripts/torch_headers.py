"""Fetches the headers of the oldest torch supported: `make headers`.

tests/test_csrc.py then compiles the bindings against them too. Of all wheels of that version, whose
headers are the same, macOS's is the smallest.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "build" / "torch_headers"
WHEEL = ("--only-binary", ":all:", "--python-version", "3.12", "--platform", "macosx_11_0_arm64")


def oldest_torch() -> str:
    """The version that the native build asks for at least."""
    text = (ROOT / "scripts" / "native_tools.py").read_text(encoding="utf-8")
    found = re.search(r"^OLDEST_TORCH = \((\d+), (\d+)\)", text, re.M)
    assert found is not None
    return f"{found[1]}.{found[2]}.0"


def main() -> None:
    """Fetches them unless they are there."""
    version = oldest_torch()
    if (FOLDER / version).exists():
        return
    temporary = FOLDER / "temporary"
    shutil.rmtree(temporary, ignore_errors=True)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "download")
    options = ("--no-deps", *WHEEL, "--dest", str(temporary), f"torch=={version}")
    subprocess.run([*pip, *options], check=True)
    (wheel,) = temporary.glob("*.whl")
    with zipfile.ZipFile(wheel) as inside:
        names = [name for name in inside.namelist() if name.startswith("torch/include/")]
        inside.extractall(temporary, names)
    os.replace(temporary / "torch" / "include", FOLDER / version)
    shutil.rmtree(temporary)


if __name__ == "__main__":
    main()
