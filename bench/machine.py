"""Where a measurement is made: the device, its driver, the versions and the commit that run."""

from __future__ import annotations

import platform
import re
from pathlib import Path

import torch

from bench.checkout import ROOT as ROOT
from bench.checkout import commit, output_of
from bench.results import Ceilings, ResultError, Results, Suite, read_results
from ocvtp_kernels.installing import installed_version
from ocvtp_kernels.version import __version__

RESULTS = ROOT / "bench" / "results"


def new_results(
    suite: Suite, device: torch.device, ceilings: Ceilings, commit_run: str | None = None
) -> Results:
    """A result file of this machine without rows; the commit is Git's if none is given."""
    return Results(
        suite, device_name(device), driver(device), ceilings, versions(), commit_run or commit()
    )


def read_ceilings(path: Path, device: torch.device) -> Ceilings:
    """The ceilings of a result file of the same device.

    Raises:
        ResultError: it is no result file, or one of another device.
    """
    found = read_results(path)
    if found.device != device_name(device):
        raise ResultError(
            f"{path}: expected those of {device_name(device)}, got those of {found.device}"
        )
    return found.ceilings


def device_name(device: torch.device) -> str:
    """The vendor's name of the device; of a CPU with the number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        facts = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        facts = ""
    names = re.findall(r"^model name\s*:\s*(.+)$", facts, re.MULTILINE)
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name}, {torch.get_num_threads()} threads"


def default_folder(device: torch.device) -> Path:
    """``bench/results/<device>``, of letters, digits and dashes."""
    slug = re.sub(r"[^a-z0-9]+", "-", device_name(device).lower()).strip("-")
    return RESULTS / (slug or device.type)


def driver(device: torch.device) -> str | None:
    """The GPU driver's version, if there is one and its tool is there."""
    if device.type != "cuda":
        return None
    output = output_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return output.splitlines()[0].strip() if output else None


def versions() -> dict[str, str | None]:
    """Versions of the packages that run; None where one is not installed."""
    return {
        "torch": torch.__version__,
        **{name: installed_version(name) for name in ("triton", "transformers")},
        "python": platform.python_version(),
        "ocvtp-kernels": __version__,
    }
