"""How often a launch goes round each of its kernel's loops, for the kernels that `prune` launches.

A kernel's line gives its `Branch`es: programs that go one way, with the rounds of the loops with
matrix products, from the outermost to the innermost, one nest after the other, and then those of
the loops without.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from ocvtp_kernels.triton_common.launch import Launch

Numbers = dict[str, Any]
Nest = tuple[int, ...]  # rounds of a loop and the loops in it, the outermost first


class Branch(NamedTuple):
    """Programs of a launch that go the same way.

    Attributes:
        programs: how many.
        products: nests of loops with matrix products on their way, by address.
        rest: nests of loops without, by address.
        skip: nests with matrix products that stand before theirs, on the way of other programs.
        end: which of the kernel's exits they take, by address; that of the longest way if None.
        early: they end once they have incremented the semaphore.
        moved: bytes of a step of the last of ``rest``, which tell how far it is unrolled.
    """

    programs: int
    products: tuple[Nest, ...] = ()
    rest: tuple[Nest, ...] = ()
    skip: int = 0
    end: int | None = None
    early: bool = False
    moved: int = 0


def up(number: int, tile: int) -> int:
    """``number / tile`` rounded up."""
    return -(-number // tile)


def _linear(n: Numbers, programs: int) -> list[Branch]:
    return [Branch(programs, ((up(n["depth"], n["BLOCK_K"]),),))]


def _first(n: Numbers, programs: int) -> list[Branch]:
    encode = n.get("programs", programs)
    return [
        Branch(encode, ((up(n["depth"], n["BLOCK_K"]),),)),
        Branch(programs - encode, ((up(n["dim"], n["SLOT_BLOCK_K"]),),), ((0,),), 1),
    ]


def _gru(n: Numbers, programs: int) -> list[Branch]:
    return [Branch(programs, tuple((up(n[side], n["BLOCK_K"]),) for side in ("width", "dim")))]


def _softmax_stats(n: Numbers, programs: int) -> list[Branch]:
    blocks = up(n["num_slots"], n["BLOCK_SLOTS"])
    return [Branch(programs, ((blocks, up(n["depth"], n["BLOCK_K"])),))]


def _slot_attention_fwd(n: Numbers, programs: int) -> list[Branch]:
    num_splits = up(n["num_groups"], n["groups_per_program"])
    blocks = n["groups_per_program"], n["blocks_per_group"], up(n["depth"], n["BLOCK_K"])
    if num_splits == 1:
        return [Branch(programs, (blocks,), ((0,),))]
    # The last program of an output tile adds up all splits, some channels at a time.
    sums = up(n["BLOCK_D"], n["BLOCK_D_SUM"])
    last = up(programs, num_splits)
    return [
        Branch(last, (blocks,), ((sums,),)),
        Branch(programs - last, (blocks,), ((0,),), early=True),
    ]


def _argmax(n: Numbers, programs: int) -> list[Branch]:
    return [Branch(programs, ((up(n["depth"], n["BLOCK_K"]),),))]


def _resolve(n: Numbers, programs: int) -> list[Branch]:
    blocks = up(n["num_blocks"], n["BLOCK_PARTIALS"] * n["UNROLL"])
    # Of 31 bits two a round, if no count says earlier that the cut is found.
    narrow = 16
    gather = up(n["rows_per_split"], n["BLOCK_ROWS"]), up(n["width"], n["BLOCK_COLUMNS"])
    moved = 2 * n["BLOCK_ROWS"] * n["BLOCK_COLUMNS"] * n["final_tokens"].element_size()
    nests = ((up(n["num_slots"], n["BLOCK_SLOTS"]), blocks), (narrow,), gather)
    return [Branch(programs, (), nests, moved=moved)]


def _start(n: Numbers, programs: int) -> list[Branch]:
    rows = n["token_programs"], n["weight_programs"]
    return [
        Branch(its, rest=((0,),), end=end) for end, its in enumerate((*rows, programs - sum(rows)))
    ]


def _straight(_: Numbers, programs: int) -> list[Branch]:
    return [Branch(programs)]


TRIPS: dict[str, Callable[[Numbers, int], list[Branch]]] = {
    "linear": _linear,
    "first": _first,
    "gru": _gru,
    "softmax_stats": _softmax_stats,
    "slot_attention_fwd": _slot_attention_fwd,
    "argmax": _argmax,
    "resolve": _resolve,
    "start": _start,
    "layer_norm": _straight,
}


def branches(launch: Launch) -> list[Branch]:
    """A launch's branches.

    Raises:
        KeyError: the table has no line for the kernel.
    """
    programs = 1
    for axis in launch.grid:
        programs *= axis
    name = launch.kernel.__name__.removesuffix("_kernel")
    return [b for b in TRIPS[name](launch.arguments, programs) if b.programs]
