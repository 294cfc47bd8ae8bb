"""A kernel written by `scripts/hub_kernels.py` beside the installed package, in one process.

`python -m tests.hub_beside compare REPOSITORY` loads it as Hugging Face's `kernels` does, which
need not be installed, and fails where the two differ in a bit; `compile` where it does not compile.
"""

from __future__ import annotations

import importlib.util
import json
import re
import runpy
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import torch
from torch import Tensor

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TRITON = importlib.util.find_spec("triton") is not None
MASK = [[True] * 7, [True] * 6 + [False]]


def load(repository: Path) -> ModuleType:
    """The build of a repository for this machine, under its own id."""
    folder = repository / "build" / f"torch-{DEVICE}"
    name = json.loads((folder / "metadata.json").read_text(encoding="utf-8"))["id"]
    spec = importlib.util.spec_from_file_location(name, folder / "__init__.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def namespaces() -> set[str]:
    """Those that have an op named prune."""
    names = torch._C._dispatch_get_all_op_names()
    return {name.partition("::")[0] for name in names if name.endswith("::prune")}


def attended(slot_attention: Any, q: Tensor, k: Tensor, v: Tensor) -> list[Tensor]:
    """Outputs and gradients of slot attention."""
    leaves = [each.clone().requires_grad_() for each in (q, k, v)]
    outputs = slot_attention(*leaves, 0.3, 1e-5, torch.tensor(MASK, device=q.device))
    loss = outputs[0].square().sum() + outputs[1].sin().sum()
    return [*outputs, *torch.autograd.grad(loss, leaves)]


def assert_equal(found: list[Tensor], expected: list[Tensor]) -> None:
    """To the last bit."""
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other), (one, other)


def results(ops: Any, device: str) -> list[Tensor]:
    """What a few ops make of the same numbers."""
    from tests.cases import random_pruner

    with torch.random.fork_rng():
        torch.manual_seed(0)
        tokens, final = torch.randn(2, 33, 12, device=device), torch.randn(2, 33, 5, device=device)
        q, k, v = (torch.randn(2, n, 10, device=device) for n in (7, 33, 33))
        slots = torch.randn(2, 7, 10, device=device)
    weights = random_pruner().to(device).packed()
    found = [
        *ops.prune(tokens, final, weights, slots, None, 9),
        *attended(ops.slot_attention, q, k, v),
    ]
    return [*found, ops.farthest_select(torch.cdist(tokens, tokens), None, 9)]


def assert_same(kernel: Any, package: Any, forced: str | None, device: str = "cpu") -> None:
    """The results of the two, each told its backend, are equal."""
    with kernel.use_backend(forced) if forced else nullcontext():
        found = results(kernel, device)
    with package.use_backend(forced) if forced else nullcontext():
        expected = results(package.ops, device)
    assert_equal(found, expected)


@contextmanager
def in_place_of_kernels(kernel: ModuleType) -> Iterator[None]:
    """Within the block `kernels` is a package that loads this kernel."""
    stand_in: Any = ModuleType("kernels")
    stand_in.get_local_kernel = stand_in.get_kernel = lambda *_, **__: kernel
    # `mock.patch.dict` would drop what is imported meanwhile, which torch allows once.
    sys.modules["kernels"] = stand_in
    yield
    del sys.modules["kernels"]


def compare(repository: Path) -> None:
    """Loads the kernel, then the package, and compares them."""
    warnings.simplefilter("error", RuntimeWarning)  # nothing tells of native kernels that lack
    kernel: Any = load(repository)
    assert "ocvtp_kernels" not in sys.modules
    assert namespaces() == {kernel.__name__}
    with in_place_of_kernels(kernel):
        for name, test in runpy.run_path(str(repository / "tests" / "test_ops.py")).items():
            if name.startswith("test_"):
                test()
        card = (repository / "CARD.md").read_text(encoding="utf-8")
        exec("\n".join(re.findall(r"^```python\n(.*?)^```", card, re.M | re.S)), {})

    import ocvtp_kernels
    from ocvtp_kernels import native

    assert namespaces() == {kernel.__name__, "ocvtp"}
    assert kernel.__version__ == ocvtp_kernels.__version__
    assert_same(kernel, ocvtp_kernels, "reference")
    with mock.patch.object(native, "is_built", lambda: False):
        assert_same(kernel, ocvtp_kernels, None)
    if TRITON:
        assert_same(kernel, ocvtp_kernels, "triton", DEVICE)
    try:
        with kernel.use_backend("cuda"):
            kernel.farthest_select(torch.zeros(1, 2, 2, device=DEVICE), None, 1)
    except kernel.BackendUnavailable as error:
        assert "cuda" in str(error)
    else:
        raise AssertionError("the cuda backend, which is not there, ran")


def compile_ops(repository: Path) -> None:
    """Slot attention with its gradients, and a selection, in one graph each."""
    kernel: Any = load(repository)
    q, k = torch.randn(2, 7, 10), torch.randn(2, 33, 10)
    in_one_graph = torch.compile(kernel.slot_attention, fullgraph=True, backend="aot_eager")
    assert_equal(attended(in_one_graph, q, k, k), attended(kernel.slot_attention, q, k, k))
    select = torch.compile(kernel.farthest_select, fullgraph=True, backend="aot_eager")
    distances = torch.cdist(k, k)
    assert_equal([select(distances, None, 9)], [kernel.farthest_select(distances, None, 9)])


if __name__ == "__main__":
    parts = {"compare": compare, "compile": compile_ops}
    parts[sys.argv[1]](Path(sys.argv[2]))
