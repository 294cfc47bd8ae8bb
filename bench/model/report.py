"""The performance model: ``python -m bench model [--archs 90] [--workload 1,576,64] [--detail]``.

Compiles the launches of `prune` for GPUs that need not be here, reads their instructions
(`bench.compiled.sass`, `bench.compiled.sass_time`) and says of each step how long it may take
(`bench.model.time`), what its tensor cores multiply and how large its tensors are. The pipeline is
held to what the formulas say is needed (`ocvtp_kernels.cost.work`), each step to
``bench/budgets/model.json``; the command ends with status 1 where one got worse, and
``--write-budget`` records them. No GPU has run what is modelled here.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib.metadata import version

from bench.compiled.budget import FOLDER, Group, Row, Slack, make_parser, settle
from bench.model.launches import Call, compiled_call
from bench.model.time import SILICON, Silicon, Time, time_of
from bench.ops.prune import steps as least_steps
from bench.workloads import Workload, square
from ocvtp_kernels.cost.work import Work
from ocvtp_kernels.markdown import markdown_table
from ocvtp_kernels.ops.slot_attention.tiles import ONE_TILE
from ocvtp_kernels.triton_common.launch import interpreting

BUDGET = FOLDER / "model.json"
ARCHS = sorted({gpu.capability for gpu in SILICON.values()})
SIZES = ((576, 64, (1, 8, 64)), (2880, 160, (1, 8, 64)), (576, 128, (1, 8)), (576, 192, (1, 8)))
LOADS = tuple(square(b, n, k, "bfloat16") for n, k, batches in SIZES for b in batches)
SLACKS = {
    "launches": Slack(),
    "us": Slack(0.02, 0.05),
    "waves": Slack(0.02),
    "l2_mb": Slack(0.01, 0.05),
    "flops": Slack(),
    "bytes": Slack(),
}
MAX_LAUNCHES = 20  # with at most `ONE_TILE` slots
MAX_FLOPS, MAX_BYTES = 1.35, 1.7  # times what the formulas need
Rows = dict[str, Row]


def rows_of(call: Call, gpu: Silicon) -> Rows:
    """Launches by step, and all of them: their time, and of the slowest what bounds it.

    FLOPs are those of the tensor cores, padding included; bytes are a launch's tensors, each once.
    """
    times: dict[str, list[Time]] = {}
    rows: Rows = {}
    for one in call.launches:
        times.setdefault(one.name, []).append(time_of(one, gpu, call.footprint))
    for name, its in times.items():
        launched, slowest = [one for one in call.launches if one.name == name], max(its)
        rows[name] = {
            "launches": len(its),
            "us": round(sum(time.seconds for time in its) * 1e6, 2),
            "programs": max(one.programs for one in launched),
            "resident": slowest.resident,
            "waves": round(slowest.waves, 3),
            "l2_mb": round(sum(time.l2_bytes for time in its) / 1e6, 2),
            "flops": sum(one.flops for one in launched),
            "bytes": sum(one.bytes for one in launched),
            "tensor": round(slowest.tensor, 3),
            "bound": slowest.bound,
        }
    sums = {name: sum(row[name] for row in rows.values()) for name in SLACKS if name != "waves"}
    return {**rows, "all": {name: round(value, 2) for name, value in sums.items()}}


def key_of(gpu: str, load: Workload) -> str:
    """The budget's group of a GPU and a workload."""
    return f"{gpu} B {load.batch} N {load.num_tokens} K {load.num_slots}"


def beyond_the_least(load: Workload, whole: Row) -> list[str]:
    """A sentence for each limit that the pipeline's launches, FLOPs and bytes exceed."""
    least = sum(least_steps(load).values(), Work(0, 0))
    limits = {"flops": MAX_FLOPS * least.flops, "bytes": MAX_BYTES * least.bytes}
    if load.num_slots <= ONE_TILE:
        limits["launches"] = MAX_LAUNCHES
    return [
        f"{load}: {whole[name]:,} {name}, {whole[name] / limit:.3f} of the most, {limit:,.0f}"
        for name, limit in limits.items()
        if whole[name] > limit
    ]


def detail(call: Call) -> str:
    """Every launch's phases, as they stand in the machine code."""
    header = ["step", "tile", "registers", "shared", "programs", "times", "instructions", "busy"]
    header += ["waits", "tensor", "bytes", "copies", "ahead", "multiply-adds"]
    launched = {(one.name, one.tile, one.registers, one.shared): one for one in call.launches}
    rows = [
        [*map(str, (*key, way.programs, times)), *(f"{number:g}" for number in phase.numbers())]
        for key, one in launched.items()
        for way in one.ways
        for times, phase in way.phases
    ]
    return markdown_table(header, rows)


def load_of(text: str) -> Workload:
    """A workload from ``1,576,64``: images, tokens and slots."""
    parts = text.split(",")
    if len(parts) != 3 or not all(part.isdigit() and int(part) for part in parts):
        raise argparse.ArgumentTypeError(f"expected B,N,K such as 1,576,64, got {text!r}")
    batch, num_tokens, num_slots = map(int, parts)
    return square(batch, num_tokens, num_slots, "bfloat16")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = make_parser("model", __doc__, ARCHS)
    parser.add_argument("--workload", type=load_of, action="append", help="B,N,K; may be repeated")
    parser.add_argument("--detail", action="store_true", help="the machine code's phases too")
    given = parser.parse_args(arguments)
    if interpreting():
        parser.error("Triton is in its interpreter, which compiles nothing: unset TRITON_INTERPRET")
    groups: dict[str, Group] = {}
    beyond: list[str] = []
    for arch in given.archs:
        for load in given.workload or LOADS:
            call = compiled_call(load, arch)
            if given.detail:
                print(f"\n## sm_{arch}, {load}\n\n{detail(call)}")
            for gpu in SILICON.values():
                if gpu.capability == arch:
                    rows = rows_of(call, gpu)
                    groups[key_of(gpu.name, load)] = Group(f"Triton {version('triton')}", rows)
                    beyond += beyond_the_least(load, rows["all"])
    return settle(
        BUDGET, groups, SLACKS, given, lambda budget: beyond + budget.violations(groups, SLACKS)
    )
