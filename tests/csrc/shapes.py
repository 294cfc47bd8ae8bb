"""Random cases of the CPU kernels, each on every instruction set of this CPU.

A case draws sizes around whole vectors and blocks. Its arrays have exactly their size, so that
AddressSanitizer sees a step past them. Inputs of one case in four are spoilt: they hold NaN,
infinities and huge numbers, and outputs must only come out alike however the work is divided.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from types import ModuleType
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.lib.stride_tricks import as_strided
from torch import Tensor

from tests.build_cases import built_tests

Array: TypeAlias = npt.NDArray[Any]
Part: TypeAlias = Callable[[int, int], None]
Divide: TypeAlias = Callable[[Part], None]

ISAS = ("portable", "avx2", "avx512")
EDGES = (1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129)
# As csrc/common/blocks.h, attention_from_rows.h and channel_variance.h have them.
TOKEN_BLOCK, QUERY_BLOCK, CHANNEL_BLOCK = 64, 48, 256
EPS, NORM_EPS = 1e-3, 1e-5


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def token_blocks(tokens: int) -> int:
    return ceil_div(tokens, TOKEN_BLOCK)


@cache
def module() -> ModuleType:
    """``_csrc_tests``, built if its sources changed; see csrc/tests/module.cpp."""
    tree = built_tests("_csrc_tests")
    (path,) = (tree / "csrc" / "tests").glob("_csrc_tests*.so")
    spec = importlib.util.spec_from_file_location("_csrc_tests", path)
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def on_every_isa(isas: Sequence[str] = ISAS) -> Iterator[str]:
    """Those of the instruction sets that this CPU has, each while the kernels run on it."""
    for isa in isas:
        if module().use_isa(isa):
            yield isa


def is_alike(a: Array, b: Array) -> bool:
    """The same bits; of NaN the bits are the compiler's choice, which may swap a sum's terms."""
    same = a.view(f"i{a.itemsize}") == b.view(f"i{b.itemsize}")
    return bool(np.all(same | ((a != a) & (b != b))))


class RandomRows(NamedTuple):
    """Rows of images, ``[B, N, width]``, some apart from each other."""

    field: tuple[Array, int, int]  # as csrc/common/kernel.h::Rows
    x: Array


@cache
def _sizes(high: int) -> st.SearchStrategy[int]:
    return st.sampled_from([n for n in EDGES if n <= high]) | st.integers(1, high)


class Case:
    """What is drawn for one case, and its runs."""

    def __init__(self, data: st.DataObject) -> None:
        self._data = data
        self.dtype = np.dtype(data.draw(st.sampled_from(["float32", "float64"])))
        self.random = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
        self.spoilt = self.chance(25)
        self.eps = np.longdouble(np.finfo(self.dtype).eps)
        self.tiny = np.longdouble(np.finfo(self.dtype).tiny)
        self.kernels, self.isas, self.kind = (
            getattr(module(), self.dtype.name),
            ISAS,
            self.dtype.name,
        )
        self.lost = np.longdouble(0)  # by storing a number, of its size

    def may_be_of_bfloat16(self) -> None:
        """Of float32 every other case becomes one of a kernel's bfloat16 form, see `stored`."""
        if self.kind == "float32" and self.chance(50):
            self.kind, self.isas = "bfloat16", (*ISAS, "avx512_bf16")
            self.kernels, self.lost = module().bfloat16, np.longdouble(2**-8)

    def stored(self, x: Array) -> Array:
        """Numbers as the kernel reads and writes them: bfloat16 is rounded to and comes as bits."""
        return self.exact(half_bits(x, self.kind), np.uint16) if self.kind == "bfloat16" else x

    def seen(self, x: Array) -> Array:
        """The numbers that `stored` stands for."""
        return of_half_bits(x, self.kind) if self.kind == "bfloat16" else x

    def size(self, high: int) -> int:
        return self._data.draw(_sizes(high))

    def between(self, low: int, high: int) -> int:
        return int(self.random.integers(low, high + 1))

    def chance(self, percent: int) -> bool:
        return self.between(1, 100) <= percent

    def normal(self) -> float:
        """A number of this dtype."""
        return float(self.dtype.type(self.random.standard_normal()))

    def rounded(self, x: float) -> np.longdouble:
        """What this dtype holds of a number."""
        return np.longdouble(self.dtype.type(x))

    def exact(self, x: npt.ArrayLike, dtype: npt.DTypeLike | None = None) -> Array:
        """A copy in memory of exactly its size, in this dtype unless another is given."""
        copy: Array = module().exact(np.asarray(x, dtype or self.dtype))
        return copy

    def numbers(
        self, *shape: int, deviation: float = 1, mean: float = 0, whole: bool = False
    ) -> Array:
        """Normal numbers; in a spoilt case a tenth is NaN, infinite, zero, huge or subnormal."""
        x = mean + deviation * self.random.standard_normal(shape)
        x = (np.round(x) if whole else x).astype(self.dtype)
        if self.spoilt:
            limits = np.finfo(self.dtype)
            odd = [np.nan, np.inf, -np.inf, 0, -0.0, limits.max, limits.min]
            odd.append(limits.smallest_subnormal)
            spoils = self.random.choice(np.array(odd, self.dtype), shape)
            x = np.where(self.random.random(shape) < 0.1, spoils, x)
        return self.exact(x)

    def positive(self, *shape: int) -> Array:
        return self.exact(np.abs(self.numbers(*shape)))

    def unwritten(self, *shape: int) -> Array:
        return self.exact(np.full(shape, np.nan))

    def ids(self, *shape: int) -> Array:
        """Memory for ids, of a value that no kernel writes."""
        return self.exact(np.full(shape, -7), np.int64)

    def some_ids(self, batch: int, tokens: int, count: int) -> Array:
        """Distinct ids of each image."""
        ids = [self.random.permutation(tokens)[:count] for _ in range(batch)]
        return self.exact(np.stack(ids), np.int64)

    def rows(self, batch: int, tokens: int, width: int, whole: bool = False) -> RandomRows:
        stride = width + self.between(0, 3)
        length = (batch * tokens - 1) * stride + width
        flat = self.numbers(length, deviation=2 if whole else 1, whole=whole)
        steps = (tokens * stride * flat.itemsize, stride * flat.itemsize, flat.itemsize)
        x = as_strided(flat, (batch, tokens, width), steps)
        return RandomRows((flat, tokens * stride, stride), x)

    def results(
        self,
        count: int,
        body: Callable[[Divide], Sequence[Array]],
        agree: bool = True,
        isas: Sequence[str] = ISAS,
    ) -> Iterator[Sequence[Array]]:
        """What ``body(divide)`` returns on each instruction set.

        ``divide(part)`` calls ``part(begin, end)`` over the work, as a whole or, for the same bits,
        in random pieces from the last to the first. AVX2 and AVX-512 ``agree`` to the bit.
        """
        pieces, end = [], count
        while end > 0:
            begin = end - 1 if self.chance(40) else self.between(0, end - 1)
            pieces.append((begin, end))
            end = begin

        def in_pieces(part: Part) -> None:
            for piece in pieces:
                part(*piece)

        before: tuple[str, Sequence[Array]] = ("portable", ())
        for isa in on_every_isa(isas):
            whole = body(lambda part: part(0, count))
            for a, b in zip(whole, body(in_pieces), strict=True):
                assert is_alike(a, b), f"{isa}: other bits in pieces {pieces}"
            if agree and before[0] != "portable":
                for a, b in zip(whole, before[1], strict=True):
                    assert is_alike(a, b), f"{isa}: other bits than {before[0]}"
            before = isa, whole
            yield whole

    def run(
        self,
        kernel: str,
        count: int,
        outputs: Sequence[Array],
        fields: Callable[..., tuple[Any, ...]],
        agree: bool = True,
    ) -> Iterator[Sequence[Array]]:
        """The results of one kernel, whose struct is ``fields(*copies of outputs)``."""

        def body(divide: Divide) -> Sequence[Array]:
            made = [module().exact(output) for output in outputs]
            struct = fields(*made)
            divide(lambda begin, end: getattr(self.kernels, kernel)(struct, begin, end))
            return made

        return self.results(count, body, agree, self.isas)

    def assert_near(self, got: Array, want: Array, allowed: Array | float) -> None:
        """Within what rounding may do; of spoilt numbers nothing is asked."""
        if self.spoilt:
            return
        off = ~(np.abs(got - want) <= allowed)
        assert not off.any(), f"got {got[off]}, expected {want[off]}, at {np.argwhere(off)}"


def wide(x: Array) -> Array:
    """In the oracles' numbers."""
    return x.astype(np.longdouble)


def half_bits(x: Array, kind: str) -> Array:
    """float32 in half precision, as uint16: NumPy has no bfloat16."""
    bits: Array = torch.from_numpy(x).to(getattr(torch, kind)).view(torch.uint16).numpy()
    return bits


def of_half_bits(bits: Array, kind: str) -> Array:
    """The float32 that `half_bits` stands for."""
    x: Array = torch.from_numpy(bits).view(getattr(torch, kind)).float().numpy()
    return x


def tensor(x: Array) -> Tensor:
    return torch.from_numpy(np.array(x))


def assert_ids(got: Array, want: Tensor) -> None:
    assert (got == want.numpy()).all(), f"got {got}, expected {want}"


def any_shape(case: Case) -> tuple[int, int, int]:
    return case.between(1, 3), case.size(40), case.size(140)


def assert_normed(case: Case, x: Array, normed: Array) -> None:
    x = wide(x)
    off = x - x.mean(-1, keepdims=True)
    scale = 1 / np.sqrt(np.square(off).mean(-1, keepdims=True) + case.rounded(NORM_EPS))
    # Of almost equal elements only the bits of their deviation count.
    lost = (16 + x.shape[-1] / 16) * case.eps * (np.abs(x).max(-1, keepdims=True) * scale + 1)
    allowed = lost + (lost + case.lost) * np.abs(off * scale)
    case.assert_near(case.seen(normed), off * scale, allowed)


def fuzz(test: Callable[[Case], None]) -> Callable[[], None]:
    """The test on as many random cases as ``--shapes`` says."""
    quiet = np.errstate(all="ignore")(test)
    return settings.get_profile("csrc")(given(st.builds(Case, st.data()))(quiet))
