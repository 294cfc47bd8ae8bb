"""The package as people use a CPU: ops at workloads, plain PyTorch used in the same way beside.

Half precision, autocast, modes of autograd, filled caches, small sizes and numbers of threads.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product

from bench.ops import BENCHES
from bench.results import Direction
from bench.workloads import HEADLINE, Workload, square

Usage = tuple[str, Workload, Direction]
HALF = "bfloat16"
PATCHES = square(1, 49, 16, "float32")
TINY = Workload(1, 16, 4, 4, 64, 32, threads=1)
TINY_OPS = ("prune", "prune_picks", "merge", "gru_cell", "slot_attention", "channel_variance")


def usages() -> Iterator[Usage]:
    """What a run of the suite times, the most important first."""
    half = replace(HEADLINE, dtype=HALF)
    ways = [replace(HEADLINE, mode=mode) for mode in ("no_grad", "inference_mode", "busy")]
    ways += [replace(HEADLINE, mode="autocast"), half, replace(half, mode="busy")]
    for load, threads in product(ways, (1, 2)):
        yield "prune", replace(load, threads=threads), "forward"
    for mode in ("without_native", *BENCHES["prune"].ways):
        yield "prune", replace(HEADLINE, mode=mode, threads=2), "forward"
    yield "prune", replace(square(64, 49, 49, HALF), threads=2), "forward"
    for load in (PATCHES, square(8, 196, 64, "float32")):
        yield "prune", replace(load, mode="autocast", threads=2), "forward"
    yield "training", replace(half, threads=2), "forward"
    batch = replace(HEADLINE, batch=4, threads=2)
    for load in (replace(batch, dtype=HALF), replace(batch, mode="autocast")):
        yield "slot_attention", load, "forward"
        for op in ("slot_attention", "slot_attention_step"):
            yield op, load, "backward"
    for way, dtype in (("cls", "float16"), ("cls_one_head", "float16"), ("one_head", HALF)):
        load = square(1, 577, 64, dtype)
        yield "attention_received", replace(load, mode=way, threads=1), "forward"
    for op in TINY_OPS:
        yield op, TINY, "forward"
