"""The order of a binary's sums, as it is read out of the compiler's text."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

if find_spec("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)

from bench.compiled.binaries import Row, worst
from bench.compiled.sums import size_of, sums_of
from bench.compiled.triton import unlike

ROWS = "#ttg.blocked<{sizePerThread = [1, 4], threadsPerWarp = [2, 16], warpsPerCTA = [4, 1]}>"
MMA = (
    "#ttg.nvidia_mma<{versionMajor = 3, versionMinor = 0, warpsPerCTA = [4, 2], "
    "instrShape = [16, 32, 16]}>"
)
TEXT = f"""
#blocked = {ROWS}
#mma = {MMA}
  %0 = "tt.reduce"(%a) <{{axis = 1 : i32}}> ({{
  ^bb0(%x: f32, %y: f32):
    %s = arith.addf %x, %y : f32
    tt.reduce.return %s : f32
  }}) : (tensor<64x128xf32, #blocked>) -> tensor<64xf32, #ttg.slice<{{dim = 1}}>>
  %1 = "tt.reduce"(%b) <{{axis = 0 : i32}}> ({{
  ^bb0(%x: f32, %y: f32):
    %s = arith.maxnumf %x, %y : f32
    tt.reduce.return %s : f32
  }}) : (tensor<64x32xf32, #mma>) -> tensor<32xf32, #ttg.slice<{{dim = 0}}>>
  %2 = "tt.reduce"(%c) <{{axis = 0 : i32}}> ({{
  ^bb0(%x: f32, %y: f32):
    %s = arith.addf %x, %y : f32
    tt.reduce.return %s : f32
  }}) : (tensor<64x32xf32, #mma>) -> tensor<32xf32, #ttg.slice<{{dim = 0}}>>
  %3 = ttng.warp_group_dot %q, %k, %d : !ttg.memdesc<> * !ttg.memdesc<> -> tensor<64x32xf32, #mma>
"""
ROW = Row(90, "linear", "NORM BLOCK_M 64 BLOCK_N 16 BLOCK_K 64", "bfloat16", 4, 3)


def test_sums_and_products_are_found_and_maxima_are_not() -> None:
    assert sums_of(TEXT) == (
        "product: mma 3",
        "sum of 128: 4 x 16 x 1",
        "sum of 64: mma 3, 16 rows, 4 warps",
    )
    assert sums_of("") == ()


def test_another_layout_is_another_order() -> None:
    other = TEXT.replace("[1, 4]", "[1, 8]").replace("[2, 16]", "[4, 8]")
    assert "sum of 128: 8 x 8 x 1" in sums_of(other) and sums_of(other) != sums_of(TEXT)


def test_a_size_is_what_fixes_the_sums() -> None:
    assert (
        size_of(ROW.tile) == size_of("NORM BLOCK_M 128 BLOCK_N 256 BLOCK_K 64") == "NORM BLOCK_K 64"
    )
    assert (
        size_of("BLOCK_SLOTS 64 BLOCK_TOKENS 32 BLOCK_D 64 MAX_SPLITS 0 BLOCK_D_SUM 64")
        == "BLOCK_SLOTS 64 BLOCK_TOKENS 32"
    )
    assert size_of("SLOTS 64 TOKENS 32") != size_of("SLOTS 64 TOKENS 64")


def test_tiles_that_sum_in_different_orders_are_said() -> None:
    here = ROW._replace(orders=frozenset([("sum of 64: 4 x 16 x 1",)]))
    there = here._replace(tile="NORM BLOCK_M 64 BLOCK_N 64 BLOCK_K 64")
    assert unlike([here, there]) == []
    other = there._replace(orders=frozenset([("sum of 64: 8 x 8 x 1",)]))
    (said,) = unlike([here, other])
    assert said.startswith("sm_90 linear NORM BLOCK_K 64, bfloat16: tiles sum in 2 orders")
    assert "BLOCK_N 16 BLOCK_K 64: sum of 64: 4 x 16 x 1" in said
    assert unlike([here, other._replace(arch=80)]) == []
    # Two binaries of one tile, too.
    assert unlike([worst(here, here._replace(orders=other.orders))]) != []
