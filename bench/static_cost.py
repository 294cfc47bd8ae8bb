"""The static cost report: ``python -m bench.static_cost [--output] [--counts] [--write-budget]``.

Runs `prune` on Triton kernels in Triton's interpreter (`bench.counted`) with an H200's tiles, and
compares the bytes and FLOPs of each step with the minimum (`bench.least`). Ends with status 1 where
a rule does not hold or a count is beyond ``bench/budgets/static_cost.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch

from bench.counted import Count, counting
from bench.least import Least, least_of, least_total, step_of
from bench.ops import case_of
from bench.workloads import Workload, square
from ocvtp_kernels.files import atomic_write
from ocvtp_kernels.markdown import markdown_table
from ocvtp_kernels.ops.prune.triton import pipeline
from ocvtp_kernels.ops.slot_attention.tiles import ONE_TILE
from ocvtp_kernels.report.text import three_digits
from ocvtp_kernels.triton_common.archs import ARCHS, pretend
from ocvtp_kernels.triton_common.launch import interpreting

ARCH = ARCHS[90]  # of an H200
BUDGET = Path(__file__).parent / "budgets" / "static_cost.json"
# Slowest first, so that the others run beside it.
LOADS = tuple(
    square(b, n, k, "float16")
    for b, n, k in (
        *((8, 576, 192), (8, 576, 128), (8, 576, 64)),
        *((1, 2880, 160), (1, 576, 192), (1, 576, 128), (1, 576, 64)),
    )
)
MAX_LAUNCHES = 20  # with at most `ONE_TILE` slots
MAX_FLOPS, MAX_BYTES = 1.35, 1.7  # times the minimum of the pipeline


class Step(NamedTuple):
    """All launches of a step; bytes are distinct bytes read and written, launch by launch."""

    name: str
    kernel: str
    launches: int
    programs: int  # of one launch
    loaded: int
    stored: int
    bytes: int
    flops: int

    def costs(self) -> dict[str, int]:
        """The numbers that the budget limits."""
        return {"launches": self.launches, "flops": self.flops, "bytes": self.bytes}


def count_launches(load: Workload, multiply: bool = False) -> list[Count]:
    """The launches of one call of `prune`."""
    case = case_of("prune", load, torch.device("cpu"))
    assert case.pruner is not None
    reference_tokens, final_tokens, slots_init, importance = case.inputs(0)
    weights = case.pruner.packed()
    with pretend(ARCH), counting(multiply) as counts:
        pipeline.prune(reference_tokens, final_tokens, weights, slots_init, importance, load.budget)
    return counts


def steps_of(counts: Iterable[Count]) -> list[Step]:
    """Launches by step, in the order of each step's first launch."""
    groups: dict[str, list[Count]] = {}
    for count in counts:
        groups.setdefault(step_of(count.kernel, count.numbers), []).append(count)
    return [
        Step(
            name,
            group[0].kernel,
            len(group),
            max(count.programs for count in group),
            *(sum(getattr(c, field) for c in group) for field in ("loaded", "stored")),
            sum(count.read + count.written for count in group),
            sum(count.flops for count in group),
        )
        for name, group in groups.items()
    ]


def total_of(steps: Sequence[Step]) -> Step:
    """The pipeline as one step."""
    sums = [sum(values) for values in zip(*(step[2:] for step in steps), strict=True)]
    return Step("all", "", *sums)


def broken_rules(load: Workload, costs: dict[str, int]) -> list[str]:
    """A sentence for each rule that the pipeline's launches, FLOPs and bytes break."""
    least = least_total(load)
    limits = {"flops": MAX_FLOPS * least.flops, "bytes": MAX_BYTES * least.bytes}
    if load.num_slots <= ONE_TILE:
        limits["launches"] = MAX_LAUNCHES
    return [
        f"{load}: {costs[name]:,} {name}, {costs[name] / limit:.3f} of the most, {limit:,.0f}"
        for name, limit in limits.items()
        if costs[name] > limit
    ]


def beyond_budget(load: Workload, steps: Sequence[Step], path: Path = BUDGET) -> list[str]:
    """Where a step or the pipeline costs more than the budget file allows."""
    allowed = read_budget(path).get(load)
    if allowed is None:
        return [f"{load}: no budget in {path.name}"]
    return [
        f"{load}: {step.name}: {cost:,} {name}, the budget has {allowed[step.name][name]:,}"
        if step.name in allowed
        else f"{load}: {step.name}: {cost:,} {name}, the budget has no such step"
        for step in (*steps, total_of(steps))
        for name, cost in step.costs().items()
        if step.name not in allowed or cost > allowed[step.name][name]
    ]


def read_budget(path: Path = BUDGET) -> dict[Workload, dict[str, dict[str, int]]]:
    """Launches, FLOPs and bytes by workload and step; step "all" is the pipeline."""
    return {
        square(w["batch"], w["num_tokens"], w["num_slots"], w["dtype"]): w["steps"]
        for w in json.loads(path.read_text(encoding="utf-8"))["workloads"]
    }


Steps = dict[Workload, list[Step]]


def _workloads(found: Steps, content: Callable[[Workload, list[Step]], dict[str, Any]]) -> str:
    workloads = [
        {
            "batch": load.batch,
            "num_tokens": load.num_tokens,
            "num_slots": load.num_slots,
            **content(load, steps),
        }
        for load, steps in found.items()
    ]
    return json.dumps({"schema": 1, "workloads": workloads}, indent=1) + "\n"


def budget_text(found: Steps) -> str:
    """The budget file with these costs."""
    return _workloads(
        found,
        lambda load, steps: {
            "dtype": load.dtype,
            "steps": {step.name: step.costs() for step in (*steps, total_of(steps))},
        },
    )


def counts_text(found: Steps) -> str:
    """The file that ``ocvtp bench --projections --counts`` takes."""
    return _workloads(
        found,
        lambda _, steps: {"kernels": [{"kernel": s.name, **s.costs()} for s in steps]},
    )


PREFACE = f"""# Static cost

Written by `python -m bench.static_cost --output docs/static_cost.md`, not by hand. One call of
`prune` on Triton kernels, run in Triton's interpreter with the tiles of sm_{ARCH.capability} (an
H200), every load, store, atomic and dot counted; nothing is timed, so the figures are the same
anywhere. *Loaded* and *stored* are the bytes that programs ask for, masked lanes left out. *Memory*
is the distinct bytes that a launch reads plus those that it writes, summed over launches: what
crosses device memory if caches hold everything within a launch and nothing between launches. FLOPs
are 2 M N K of every dot, padding included. *Least* is what a step needs at least: its inputs read
once, its outputs written once, and the FLOPs of the folded algebra, without padding, recomputed
logits, partial sums or softmax statistics (`bench.least`). Three iterations; importance float32.
The budget `bench/budgets/static_cost.json` limits these numbers; `--write-budget` writes it anew.
Rules for the pipeline: at most {MAX_LAUNCHES} launches with at most {ONE_TILE} slots,
{MAX_FLOPS}× the least FLOPs and {MAX_BYTES}× the least bytes."""
HEADER = ["MB memory", "least", "×", "GFLOP", "least", "×"]


def _cells(step: Step, least: Least) -> list[str]:
    cells = []
    for unit, cost, needed in ((1e6, step.bytes, least.bytes), (1e9, step.flops, least.flops)):
        ratio = f"{cost / needed:.2f}" if needed else "—"
        cells += [three_digits(cost / unit), three_digits(needed / unit), ratio]
    return cells


def page(found: Steps) -> str:
    """``docs/static_cost.md``."""
    whole = [
        [str(load), str(total.launches), *_cells(total, least_total(load))]
        for load, total in ((load, total_of(steps)) for load, steps in found.items())
    ]
    blocks = [PREFACE, "## The pipeline", markdown_table(["workload", "launches", *HEADER], whole)]
    for load, steps in found.items():
        least = least_of(load)
        rows = [
            [
                *(step.name, step.kernel, str(step.launches), str(step.programs)),
                *(three_digits(number / 1e6) for number in (step.loaded, step.stored)),
                *_cells(step, least.get(step.name, Least(0, 0))),
            ]
            for step in steps
        ]
        header = ["step", "kernel", "launches", "programs", "MB loaded", "MB stored", *HEADER]
        blocks += [f"## {load}", markdown_table(header, rows)]
    return "\n\n".join(blocks) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.static_cost", description=__doc__)
    parser.add_argument("--output", type=Path, help="the page; printed if not given")
    parser.add_argument("--counts", type=Path, help="JSON of the counts, for ocvtp bench")
    parser.add_argument("--write-budget", action="store_true", help=f"write {BUDGET.name} anew")
    parser.add_argument("--jobs", type=int, help="workloads at a time; one a CPU if not given")
    given = parser.parse_args(arguments)
    with ProcessPoolExecutor(given.jobs, get_context("spawn")) as pool:
        counted = list(pool.map(count_launches, LOADS))
    found = {load: steps_of(counts) for load, counts in zip(LOADS, counted, strict=True)}
    found = dict(reversed(found.items()))
    texts = {given.output: page(found), given.counts: counts_text(found)}
    if given.write_budget:
        texts[BUDGET] = budget_text(found)
    for path, text in texts.items():
        if path is not None:
            atomic_write(path, text)
            print(path)
    if given.output is None:
        print(page(found))
    wrong = [
        s for load, steps in found.items() for s in broken_rules(load, total_of(steps).costs())
    ]
    wrong += [sentence for load, steps in found.items() for sentence in beyond_budget(load, steps)]
    print("\n".join(wrong), file=sys.stderr, end="\n" if wrong else "")
    return 1 if wrong else 0


if __name__ == "__main__":
    if not interpreting():
        # Triton decides as it is imported.
        command = [sys.executable, "-m", "bench.static_cost", *sys.argv[1:]]
        os.execve(sys.executable, command, {**os.environ, "TRITON_INTERPRET": "1"})
    sys.exit(main())
