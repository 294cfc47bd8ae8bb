"""A pytest plugin: tests of kernels as on a GPU, for which torch's meta device stands in.

    TRITON_INTERPRET=0 python -m pytest -p tests.on_meta --assert=plain -m interpreter tests/ops

Nothing is launched or computed there, so a test fails for one reason alone: a launch or a function
got tensors of the host where a GPU's must be. It changes the process, which must be its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from triton.runtime.jit import JITFunction

from ocvtp_kernels import backends
from ocvtp_kernels.triton_common import archs
from tests import evaluated

META = torch.device("meta")
aten = torch.ops.aten
COPIES = (aten.copy_.default, aten._to_copy.default)

mixes: list[str] = []  # of the test that runs
launches: list[str] = []
launched: Counter[str] = Counter()  # by file of tests


def places(values: Any, numbers: bool = False) -> set[str]:
    """The devices of these tensors, those of numbers on the host only where they matter."""
    tensors = [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]
    return {t.device.type for t in tensors if numbers or t.dim() or t.device == META}


def note(what: object, found: set[str]) -> None:
    mixes.append(f"{what} got tensors on {' and '.join(sorted(found))}")


class Watched(TorchDispatchMode):
    """Notes functions that mix devices; ops launch their kernels, and what leaves is zero."""

    def __torch_dispatch__(
        self, function: Any, _: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        found = places((args, kwargs))
        if len(found) > 1 and function not in COPIES:
            note(function, found)
        if function.namespace == "ocvtp" and backends.override() == "triton":
            if "cpu" in found:
                note(function, found)
            kernels = backends._kernels[function._schema.name.removeprefix("ocvtp::")]
            if "triton" in kernels:
                return kernels["triton"].run(*args)
        if "meta" in found:
            if function is aten._local_scalar_dense.default:
                return 0
            if function in (aten.equal.default, aten.allclose.default):
                return True
            if function is aten._to_copy.default and kwargs.get("device") == torch.device("cpu"):
                args = (torch.zeros_like(args[0], device="cpu"),)
        return function(*args, **kwargs)


def launch(kernel: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
    """`JITFunction.run`, which only looks at where its arguments are."""
    launches.append(kernel.__name__)
    found = places((args, kwargs), numbers=True)
    if found != {"meta"}:
        note(kernel.__name__, found)


def assert_close(actual: Any, expected: Any, **_: Any) -> None:
    """`torch.testing.assert_close`, of which only the devices are left."""
    found = places((actual, expected), numbers=True)
    if len(found) > 1:
        note("assert_close", found)


def pytest_configure() -> None:
    evaluated.install()
    from tests import cases

    cases.DEVICE = META
    archs._pretended.set(archs.ARCHS[90])
    JITFunction.run = launch
    torch.testing.assert_close = assert_close
    # `use_backend` allows Triton's kernels without a GPU where they are interpreted.
    backends.interpreting = lambda: True
    # What is compiled would not be seen.
    torch.compile = lambda function, **_: function
    torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Function]) -> None:
    """Leaves of each test those cases that have a parameter's value which none before them has."""
    seen: set[tuple[str, ...]] = set()
    kept = []
    for item in items:
        params = item.callspec.params.items() if hasattr(item, "callspec") else [("", None)]
        test = item.nodeid.partition("[")[0]
        new = {(test, name, repr(value)) for name, value in params} - seen
        seen |= new
        kept += [item] if new else []
    items[:] = kept


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Iterator[None]:
    mixes.clear()
    launches.clear()
    why = ""
    try:
        with Watched():
            yield
    except (Exception, pytest.fail.Exception) as error:
        why = repr(error)
    launched[pyfuncitem.nodeid.partition("::")[0]] += len(launches)
    if mixes:
        pytest.fail("; ".join(dict.fromkeys(mixes)), pytrace=False)
    if why:
        pytest.skip(f"for want of values: {why}")
    return True


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for file, number in launched.items():
        terminalreporter.write_line(f"{file}: {number} launches")
