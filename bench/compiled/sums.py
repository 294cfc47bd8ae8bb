"""The order in which a binary sums, read from Triton's GPU dialect.

Floating-point sums round, so two tiles of a kernel give the same bits only if they sum in one
order: equal steps, one matrix instruction, and the same layout over threads, warps and program
wherever ``tl.sum`` runs. Triton chooses that layout for each tile.
"""

from __future__ import annotations

import re

# Constants that may differ between tiles of one size without changing the order of sums.
FREE = (
    "BLOCK_ROWS",
    "BLOCK_COLUMNS",
    "BLOCK_M",
    "BLOCK_N",
    "BLOCK_D",
    "BLOCK_D_STORE",
    "BLOCK_D_SUM",
    "MAX_SPLITS",
    "SLOT_BLOCK_M",
    "SLOT_BLOCK_N",
    "ACC_IN_GLOBAL",
)


def size_of(tile: str) -> str:
    """A tile's constants, less those in `FREE`."""
    words = re.findall(r"[A-Z_]+(?: -?\d+)?", tile)
    return " ".join(word for word in words if word.split()[0] not in FREE)


def sums_of(text: str) -> tuple[str, ...]:
    """Each kind of floating sum in a module of the dialect, sorted.

    A reduction is its length and, along its axis, the elements of a thread, a warp and a program;
    a product of matrices is the version of its instruction.
    """
    layouts = dict(re.findall(r"^(#\w+) = (#\w+\.\w+<.*>)$", text, re.MULTILINE))
    found = set()
    reductions = re.finditer(
        r'"tt\.reduce"\([^)]*\) <\{axis = (\d) : i32\}> \(\{(.*?)\}\) : \(tensor<([^>]*?)(#[\w.]+)',
        text,
        re.DOTALL,
    )
    for axis, body, shape, layout in (each.groups("") for each in reductions):
        if "arith.addf" in body:
            sizes = re.findall(r"(\d+)x", shape)
            length = sizes[int(axis)]
            found.add(f"sum of {length}: {_along(layouts.get(layout, layout), int(axis))}")
    for layout in re.findall(r"(?:tt\.dot|warp_group_dot|tc_gen5_mma)\b[^\n]*(#mma\w*)", text):
        found.add(f"product: {_instruction(layouts.get(layout, layout))}")
    return tuple(sorted(found))


def _along(layout: str, axis: int) -> str:
    parts = {
        name: [int(one) for one in numbers.split(",")]
        for name, numbers in re.findall(r"(\w+) = \[([\d, ]+)\]", layout)
    }
    names = ("sizePerThread", "threadsPerWarp", "warpsPerCTA")
    if all(name in parts for name in names):
        return " x ".join(str(parts[name][axis]) for name in names)
    if "nvidia_mma" in layout:
        shape = parts["instrShape"]
        # Of an accumulator, rows lie in lanes and warps, columns in pairs of one lane.
        along = f"{shape[0]} rows" if axis == 0 else "columns"
        return f"{_instruction(layout)}, {along}, {parts['warpsPerCTA'][axis]} warps"
    return layout


def _instruction(layout: str) -> str:
    version = re.search(r"versionMajor = (\d+)", layout)
    return f"mma {version[1]}" if version else "other"
