"""All tests here under the sanitizers, and that these see what they are for."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.build_cases import ROOT, SANITIZED, said_by
from tests.sanitized import environment

# layer_norm of 17 numbers, of which the input or the output has 16.
STEP = """
import numpy as np
from tests.csrc.shapes import module
kernels, exact = module().float32, module().exact
x, out = (exact(np.zeros(16 + more, np.float32)) for more in {sizes})
print("before", flush=True)
kernels.layer_norm((x, 17, 17, 1e-5, out), 0, 1)
print("after", flush=True)
"""
TORCH = """
import torch
from tests.csrc.shapes import module
x, out = (torch.zeros(16 + more) for more in {sizes})
print("before", flush=True)
module().float32.layer_norm((x.numpy(), 17, 17, 1e-5, out.numpy()), 0, 1)
print("after", flush=True)
"""


@pytest.mark.skipif(not SANITIZED, reason="for make sanitize")
@pytest.mark.parametrize("memory", [STEP, TORCH], ids=["exact", "of a tensor"])
@pytest.mark.parametrize(
    ("sizes", "said"), [((1, 1), None), ((0, 1), "READ of size"), ((1, 0), "WRITE of size")]
)
def test_a_step_past_an_array_is_seen(
    memory: str, sizes: tuple[int, int], said: str | None
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", memory.format(sizes=sizes)],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert "before" in done.stdout
    assert ("after" in done.stdout) == (done.returncode == 0) == (said is None)
    assert said is None or ("heap-buffer-overflow" in done.stderr and said in done.stderr)


@pytest.mark.slow
def test_the_sanitizers_find_nothing() -> None:
    said_by([sys.executable, "-m", "tests.sanitized", "tests/csrc", "--shapes", "300"], ROOT)
