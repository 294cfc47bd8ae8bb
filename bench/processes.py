"""What new processes take beside plain PyTorch: memory over many sizes, and the time of imports."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from bench.results import ProcessRow, Results, Versus
from bench.timing import summary

SIZES = 300  # of images, where each has its own
STARTED = 5  # processes, to time an import

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
print(max(1, resident() - before))
"""
IMPORTS = {
    "import ocvtp_kernels": ["-c", "import ocvtp_kernels"],
    "ocvtp --help": ["-m", "ocvtp_kernels.cli", "--help"],
}


def run(results: Results, folder: Path, _: torch.device, short: bool, deadline: float) -> int:
    """Measures every row, saving after each; none is refused. The short list has no memory."""
    for dtype in () if short else ("float32", "bfloat16"):
        add(results, folder, grown(dtype))
    for what in IMPORTS:
        if time.monotonic() < deadline:
            add(results, folder, started(what))
    return 0


def add(results: Results, folder: Path, row: ProcessRow) -> None:
    """Adds a row to a result file and prints it."""
    results.rows.append(row)
    ours, plain = row.versus.ours.median, row.versus.theirs.median
    print(f"{row.name}, {row.what}: {ours:.4g} {row.unit}, plain {plain:.4g}", flush=True)
    results.save(folder)


def grown(dtype: str) -> ProcessRow:
    """Growth of a process' resident memory over images of different sizes."""
    ours, plain = (
        summary([float(output_of(["-c", GROWTH, who, dtype, str(SIZES)]))], "host")
        for who in ("ours", "plain")
    )
    return ProcessRow(dtype, f"memory after {SIZES} sizes of image", "bytes", Versus(plain, ours))


def started(what: str) -> ProcessRow:
    """Time of a process that does one of `IMPORTS`, beside one that imports torch alone."""
    commands = {"ours": IMPORTS[what], "plain": ["-c", "import torch"]}
    taken: dict[str, list[float]] = {name: [] for name in commands}
    # The first turn compiles bytecode, as an installation does.
    with tempfile.TemporaryDirectory() as cache:
        for turn in range(STARTED + 1):
            for name, command in commands.items():
                start = time.perf_counter()
                output_of(["-X", f"pycache_prefix={cache}", *command])
                if turn:
                    taken[name].append(time.perf_counter() - start)
    ours, plain = (summary(values, "host") for values in taken.values())
    return ProcessRow("a new process", what, "s", Versus(plain, ours))


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
