"""Environments beside `.venv`, for other people's packages that want versions of their own."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]
TORCH, TORCHVISION = "torch==2.13.0", "torchvision==0.28.0"
# Entry points and all, without a build, which would replace or remove the tree's native kernels.
METADATA = """
import sys
from setuptools import build_meta
print(build_meta.prepare_metadata_for_build_wheel(sys.argv[1]))
"""

# Beside a torch without CUDA torchvision cannot load its library, and then misses these schemas.
SCHEMAS = """
if not _has_ops():
    _schemas = torch.library.Library("torchvision", "DEF")
    for _name in ("nms", "qnms"):
        _schemas.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""


class Environment:
    """A virtual environment, made anew in ``folder``, with torch and what is needed for builds.

    Attributes:
        python: its interpreter.
        site: the folder of its packages.
    """

    def __init__(self, folder: Path) -> None:
        venv.create(folder, clear=True, with_pip=True)
        self.python = str(folder.absolute() / "bin" / "python")
        self.site = next(folder.glob("lib/python*/site-packages"))
        self.install("setuptools>=77", "setuptools-scm>=8", "wheel", "packaging", TORCH)

    def install(self, *arguments: str) -> None:
        """Runs ``pip install``."""
        pip = [self.python, "-m", "pip", "--disable-pip-version-check", "--quiet", "install"]
        subprocess.run([*pip, *arguments], check=True)

    def install_torchvision(self) -> None:
        """Installs torchvision alone, which asks for a torch with CUDA."""
        self.install("--no-deps", TORCHVISION)
        with (self.site / "torchvision" / "extension.py").open("a") as extension:
            extension.write(SCHEMAS)

    def install_this(self) -> None:
        """Installs this package, as it stands in the checkout."""
        # One of an older checkout would hide the plug-in from processes that run here.
        for old in ROOT.glob("*.egg-info"):
            shutil.rmtree(old)
        with tempfile.TemporaryDirectory() as made:
            command = [self.python, "-c", METADATA, made]
            said = subprocess.check_output(command, cwd=ROOT, text=True)
            name = said.splitlines()[-1]
            shutil.copytree(Path(made) / name, self.site / name)
        (self.site / "ocvtp_kernels.pth").write_text(f"{ROOT}\n")
