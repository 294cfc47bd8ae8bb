"""The Triton kernel's ids on scores that are hard to tell apart, and what its search costs."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ocvtp_kernels import ops
from tests.cases import DEVICE, random_tokens, to_device
from tests.compiling import on_linux, run_python

pytest.importorskip("triton", reason="triton is not installed")

from ocvtp_kernels.ops.resolve_picks.tiles import gather_splits, resolve_tile
from ocvtp_kernels.ops.resolve_picks.triton import resolve_picks
from ocvtp_kernels.ops.slot_argmax.tiles import reduce_tile
from ocvtp_kernels.triton_common.archs import ARCHS
from ocvtp_kernels.triton_common.blocks import ceil_div

INF, NAN = float("inf"), float("nan")
# Neighbours in every sense: signs, ends, numbers too small for a normal float, the last bit.
HARD = (0.0, -0.0, 1e-45, -1e-45, 1.0, 1.0000001, -1.0, -1.0000001, 3e38, -3e38, INF, -INF, NAN)


def assert_resolved(
    topk_ids: Tensor, max_logprob: Tensor, importance: Tensor | None, budget: int
) -> None:
    num_tokens = 16384 if importance is None else importance.shape[1]
    expected = ops.resolve_picks.reference(topk_ids, max_logprob, importance, budget, num_tokens)
    given = None if importance is None else to_device(importance)
    ids = resolve_picks(topk_ids.to(DEVICE), to_device(max_logprob), given, budget, num_tokens)
    assert torch.equal(ids.cpu(), expected)


@pytest.mark.interpreter
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("with_importance", [False, True])
@pytest.mark.parametrize(
    ("num_slots", "num_tokens", "budget", "top_k"),
    [(1, 1, 1, 1), (7, 33, 5, 1), (300, 40, 40, 1), (9, 33, 20, 4), (64, 5000, 64, 1)],
)
def test_picks_resolve_as_the_reference_resolves_them(
    num_slots: int, num_tokens: int, budget: int, top_k: int, with_importance: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    topk_ids = torch.randint(num_tokens, (2, num_slots, top_k), generator=generator)
    max_logprob = random_tokens(2, num_slots).round()
    max_logprob[0, 0] = float("nan")
    importance = (
        random_tokens(2, num_tokens + 1, seed=1)[:, 1:].round() if with_importance else None
    )
    if importance is not None:
        importance[:, ::3], importance[:, 1::5] = float("nan"), -0.0
    expected = ops.resolve_picks.reference(topk_ids, max_logprob, importance, budget, num_tokens)
    ids = resolve_picks(
        topk_ids.to(DEVICE),
        max_logprob.to(DEVICE),
        None if importance is None else to_device(importance),
        budget,
        num_tokens,
    )
    assert torch.equal(ids.cpu(), expected)


def drawn(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.tensor(HARD)[torch.randint(len(HARD), shape, generator=generator)]


@pytest.mark.interpreter
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize(
    ("num_tokens", "num_slots", "top_k"),
    [(1, 3, 1), (33, 1, 1), (64, 40, 1), (65, 9, 2), (70, 20, 3), (130, 40, 4), (9, 2, 9)],
)
def test_scores_that_are_hard_to_tell_apart(num_tokens: int, num_slots: int, top_k: int) -> None:
    generator = torch.Generator().manual_seed(num_tokens)
    topk_ids = torch.randint(num_tokens, (13, num_slots, top_k), generator=generator)
    for budget in {1, num_tokens // 2 or 1, num_tokens, topk_ids[0].unique().numel()}:
        max_logprob, importance = drawn(generator, 2, num_slots), drawn(generator, 2, num_tokens)
        assert_resolved(topk_ids[:2], max_logprob, importance, budget)
    # All alike, a number an image.
    alike = torch.tensor(HARD)[:, None]
    max_logprob, importance = alike.expand(-1, num_slots), alike.expand(-1, num_tokens)
    assert_resolved(topk_ids, max_logprob, importance, min(num_tokens, max(1, num_slots // 2)))


@pytest.mark.interpreter
@pytest.mark.parametrize("budget", [1, 9000, 16383, 16384])
def test_as_many_tokens_as_it_holds(budget: int) -> None:
    generator = torch.Generator().manual_seed(budget)
    topk_ids = torch.randint(16384, (1, 300), generator=generator)
    max_logprob = torch.randn(1, 300, generator=generator)
    assert_resolved(topk_ids, max_logprob, torch.randn(1, 16384, generator=generator), budget)
    assert_resolved(topk_ids, max_logprob, None, budget)


@pytest.mark.parametrize(("num_slots", "warps"), [*product((1, 64, 160, 640), (4, 8, 16))])
def test_topk_ids_are_loaded_together_up_to_a_limit(num_slots: int, warps: int) -> None:
    for blocks in (1, 2, 18, 90, 512):
        tile = reduce_tile(num_slots, blocks, warps, 256)
        assert tile.block_slots * tile.block_partials <= 16 * 32 * warps
        assert tile.unroll <= 8
        if blocks * tile.block_slots <= 16 * 32 * min(warps, 8) * 4:
            assert tile.block_partials * tile.unroll >= blocks


@pytest.mark.parametrize(("num_tokens", "num_slots"), [(576, 64), (2880, 160)])
def test_the_sizes_of_llava_take_one_pass(num_tokens: int, num_slots: int) -> None:
    blocks = ceil_div(num_tokens, 32)
    tile = resolve_tile(num_slots, blocks, num_tokens, 1024, 2)
    assert (
        tile.reduce.block_slots >= num_slots
        and tile.reduce.block_partials * tile.reduce.unroll >= blocks
    )
    rows = ceil_div(num_slots, gather_splits(ARCHS[90], 1, num_slots))
    assert tile.block_rows >= rows and tile.block_columns == 1024


# Registers and stack of the kernel, then instructions and barriers of a round of the search, and
# the loads of topk_ids in flight together.
COMPILED = """
import sys
import torch
import triton
from bench.compiled.binaries import StandIn, disassembled, usage
from bench.compiled.sass import read_sass
from ocvtp_kernels.triton_common.archs import ARCHS, pretend
from ocvtp_kernels.triton_common.launch import watch
from ocvtp_kernels.ops.resolve_picks.triton import resolve

tokens, slots = map(int, sys.argv[1:])
triton.runtime.driver.set_active(StandIn(90))
shapes = {"topk_ids": (1, -(-tokens // 32), slots), "ids": (1, slots)}
topk_ids, ids = (torch.empty(s, dtype=torch.int64, device="meta") for s in shapes.values())
final_tokens = torch.empty((1, tokens, 1024), dtype=torch.bfloat16, device="meta")
kept = final_tokens.new_empty((1, slots, 1024))
launches = []
with pretend(ARCHS[90]), watch(launches.append):
    importance = final_tokens[..., 0].float()
    resolve(topk_ids, None, importance, tokens, slots, ids, final_tokens, kept)
(launch,) = launches
compiled = launch.kernel.warmup(grid=launch.grid, **launch.arguments, **launch.options)
said = disassembled(compiled.asm["cubin"])
program = read_sass(said)
bodies = [program.instructions[loop.first : loop.last + 1] for loop in program.innermost()]
kinds = [[one.kind for one in body] for body in bodies]
(search,) = [body for body in kinds if "REDUX" in body]
loads = [body.count("LDG") for body in kinds if "LDG" in body and "STG" not in body]
print(*usage(said), len(search), search.count("BAR"), max(loads))
"""


@pytest.mark.compile
@on_linux
@pytest.mark.parametrize(
    ("num_tokens", "num_slots", "most_instructions", "loads"),
    [(576, 64, 130, 8), pytest.param(2880, 160, 200, 48, marks=pytest.mark.slow)],
)
def test_a_round_is_short_and_all_topk_ids_are_loaded_together(
    num_tokens: int, num_slots: int, most_instructions: int, loads: int, tmp_path: Path
) -> None:
    said = run_python(tmp_path, "-c", COMPILED, str(num_tokens), str(num_slots))
    registers, stack, instructions, barriers, together = map(int, said.split())
    assert registers <= 255 and stack == 0
    # With 64-bit integers a round took 112 and 240, and there were twice as many rounds.
    assert instructions <= most_instructions and barriers <= 3
    assert together == loads
