"""Settings measured in new processes: memory over many sizes, and the time of imports."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence

import torch

from bench.gate import CheckResult
from bench.results import SettingRow, setting_row
from bench.timing import summary

SIZES = 500  # of images, where each has its own
PROCESSES = 11  # started to time an import

GROWTH = """
import sys
import torch
from bench.pruners import random_pruner
from ocvtp_kernels import PrunerConfig

torch.set_num_threads(2)
dtype, sizes = getattr(torch, sys.argv[2]), int(sys.argv[3])
pruner = random_pruner(PrunerConfig(), dtype=dtype).requires_grad_(False)
if sys.argv[1] == "ours":
    pruner.freeze()


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


def prune(num_tokens):
    tokens = torch.randn(1, num_tokens, 1024, dtype=dtype)
    pruner(tokens, tokens, 64)


generator = torch.Generator().manual_seed(0)
with torch.no_grad():
    prune(64)
    prune(64 + 2 * sizes)
    before = resident()
    for more in torch.randperm(2 * sizes, generator=generator)[:sizes].tolist():
        prune(64 + more)
print(resident() - before)
"""


def memories() -> Iterator[Callable[[], SettingRow]]:
    """Growth of a process' memory over images of different sizes."""
    for name in ("float32", "bfloat16"):

        def make(name: str = name) -> SettingRow:
            grown = [
                float(output_of(["-c", GROWTH, who, name, str(SIZES)])) for who in ("ours", "plain")
            ]
            ours, plain = (summary([value], "host") for value in grown)
            what = f"memory after {SIZES} sizes of image"
            return setting_row(
                name, what, 2, "bytes", ours, plain, CheckResult(True, "resident memory")
            )

        yield make


def imports() -> Iterator[Callable[[], SettingRow]]:
    """Start-up time of a process, beside one that imports torch alone."""
    for what, arguments in {
        "import ocvtp_kernels": ["-c", "import ocvtp_kernels"],
        "ocvtp --help": ["-m", "ocvtp_kernels.cli", "--help"],
    }.items():

        def make(what: str = what, arguments: list[str] = arguments) -> SettingRow:
            commands = {"ours": arguments, "plain": ["-c", "import torch"]}
            taken: dict[str, list[float]] = {name: [] for name in commands}
            # The first turn compiles bytecode, as an installation does.
            with tempfile.TemporaryDirectory() as cache:
                for turn in range(PROCESSES + 1):
                    for name, command in commands.items():
                        start = time.perf_counter()
                        output_of(["-X", f"pycache_prefix={cache}", *command])
                        if turn:
                            taken[name].append(time.perf_counter() - start)
            ours, plain = (summary(values, "host") for values in taken.values())
            check = CheckResult(True, "beside import torch")
            return setting_row(
                "a new process", what, torch.get_num_threads(), "s", ours, plain, check
            )

        yield make


def output_of(arguments: Sequence[str]) -> str:
    """Standard output of this Python with these arguments."""
    done = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": ""},
    )
    return done.stdout
