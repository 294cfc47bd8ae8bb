"""Fetches what builds need of the oldest torch supported, without installing it: `make headers`.

Its headers, and on macOS the library that is linked. Wheels for every system are compiled beside
them (``OCVTP_TORCH=build/oldest_torch/torch``), and tests/test_csrc.py compiles the bindings so. Of
all wheels of that version, whose headers are the same, macOS's is the smallest.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile

from native_tools import OLDEST_TORCH, ROOT

FOLDER = ROOT / "build" / "oldest_torch"
WHEEL = ("--only-binary", ":all:", "--python-version", "3.12", "--platform", "macosx_11_0_arm64")
PARTS = ("torch/include/", "torch/version.py")
LIBRARY = ("torch/lib/libtorch_cpu.dylib",) if sys.platform == "darwin" else ()


def main() -> None:
    """Fetches them unless they are there."""
    version = f"{OLDEST_TORCH[0]}.{OLDEST_TORCH[1]}.0"
    there = FOLDER / "torch" / "version.py"
    if there.exists() and f"'{version}'" in there.read_text(encoding="utf-8"):
        return
    temporary = FOLDER.with_name(f"{FOLDER.name}.new")
    shutil.rmtree(temporary, ignore_errors=True)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "download")
    options = ("--no-deps", *WHEEL, "--dest", str(temporary), f"torch=={version}")
    subprocess.run([*pip, *options], check=True)
    (wheel,) = temporary.glob("*.whl")
    with zipfile.ZipFile(wheel) as inside:
        inside.extractall(
            temporary, [name for name in inside.namelist() if name.startswith((*PARTS, *LIBRARY))]
        )
    wheel.unlink()
    shutil.rmtree(FOLDER, ignore_errors=True)
    os.replace(temporary, FOLDER)


if __name__ == "__main__":
    main()
