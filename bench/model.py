"""The performance model: ``python -m bench.model [--chips 90] [--workload 1,576,64] [--detail]``.

Compiles the launches of `prune` for GPUs that need not be here, reads their instructions
(`bench.sass`, `bench.sass_time`) and says how long each may take (`bench.model_time`), held against
``bench/budgets/model.json``; ends with status 1 where a step got worse. ``--write-budget`` records
the times, from which ``ocvtp bench --projections --model bench/budgets/model.json`` makes its page.
No GPU has run what is modelled here.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench.growth import Slack, add_options, renewed, worse
from bench.model_launches import Call, compiled_call
from bench.model_time import SILICON, Silicon, Time, time_of
from bench.results import ROOT
from bench.workloads import Workload, square
from ocvtp_kernels.files import atomic_write
from ocvtp_kernels.markdown import markdown_table
from ocvtp_kernels.report.text import three_digits
from ocvtp_kernels.triton_common.launch import interpreting

BUDGET = ROOT / "bench" / "budgets" / "model.json"
LOADS = tuple(square(b, n, k, "bfloat16") for n, k in ((576, 64), (2880, 160)) for b in (1, 8, 64))
SLACKS = {
    "launches": Slack(),
    "us": Slack(0.02, 0.05),
    "waves": Slack(0.02),
    "l2_mb": Slack(0.01, 0.05),
}
Steps = dict[str, dict[str, Any]]


def steps_of(call: Call, gpu: Silicon) -> Steps:
    """Launches by step: how many, their time, and of the slowest what bounds it."""
    groups: dict[str, list[Time]] = {}
    programs: dict[str, int] = {}
    for one in call.launches:
        groups.setdefault(one.name, []).append(time_of(one, gpu, call.footprint))
        programs[one.name] = max(programs.get(one.name, 0), one.programs)
    steps: Steps = {}
    for name, times in groups.items():
        slowest = max(times)
        steps[name] = {
            "launches": len(times),
            "us": round(sum(time.seconds for time in times) * 1e6, 2),
            "programs": programs[name],
            "resident": slowest.resident,
            "waves": round(slowest.waves, 3),
            "l2_mb": round(sum(time.l2_bytes for time in times) / 1e6, 2),
            "tensor": round(slowest.tensor, 3),
            "bound": slowest.bound,
        }
    return steps


def total_us(steps: Steps) -> float:
    """Microseconds of all steps."""
    return float(sum(step["us"] for step in steps.values()))


def key_of(gpu: str, load: Workload) -> str:
    """What tells a table from others."""
    return f"{gpu} B {load.batch} N {load.num_tokens} K {load.num_slots}"


def table(steps: Steps) -> str:
    """Steps in Markdown."""
    header = [
        "step",
        "launches",
        "us",
        "programs",
        "on one",
        "waves",
        "MB of L2",
        "tensor",
        "bound",
    ]
    rows = [
        [
            name,
            str(step["launches"]),
            three_digits(step["us"]),
            str(step["programs"]),
            str(step["resident"]),
            f"{step['waves']:.2f}",
            three_digits(step["l2_mb"]),
            f"{step['tensor']:.0%}",
            step["bound"],
        ]
        for name, step in steps.items()
    ]
    launches = sum(step["launches"] for step in steps.values())
    last = ["all", str(launches), three_digits(total_us(steps)), *[""] * 6]
    return markdown_table(header, [*rows, last])


def detail(call: Call) -> str:
    """Every launch's phases, as they stand in the machine code."""
    header = ["step", "tile", "registers", "shared", "programs", "times", "instructions", "busy"]
    header += ["waits", "tensor", "bytes", "copies", "ahead"]
    rows = []
    for one in dict.fromkeys((c.name, c.tile, c.registers, c.shared) for c in call.launches):
        launched = next(c for c in call.launches if (c.name, c.tile, c.registers, c.shared) == one)
        for way in launched.ways:
            for times, phase in way.phases:
                numbers = [f"{number:g}" for number in phase.numbers()]
                rows.append([*map(str, (*one, way.programs, times)), *numbers])
    return markdown_table(header, rows)


def worsened(tables: Mapping[str, Steps], budget: Mapping[str, Any]) -> dict[str, list[str]]:
    """What got worse than recorded, by table and step; no step is recorded: said too."""
    found: dict[str, list[str]] = {}
    for key, steps in tables.items():
        recorded = budget["tables"].get(key)
        if recorded is None:
            continue
        whole = worse({"us": total_us(recorded)}, {"us": total_us(steps)}, SLACKS)
        if whole:
            found[key] = whole
        for name in steps.keys() & recorded.keys():
            said = worse(recorded[name], steps[name], SLACKS)
            if said:
                found[f"{key}: {name}"] = said
    return dict(sorted(found.items()))


def budget_with(
    budget: Mapping[str, Any], tables: Mapping[str, Steps], triton: str, why: str
) -> dict[str, Any]:
    """The budget with these tables.

    Raises:
        ValueError: a step got worse and ``why`` does not say why.
    """
    same = budget["triton"] == triton
    found = worsened(tables, budget) if same else {}
    if found and not why:
        key, said = next(iter(found.items()))
        raise ValueError(
            f"{len(found)} got worse, such as {key}: {'; '.join(said)}. --because says why they may"
        )
    old = budget["reasons"] if same else {}
    kept = {**(budget["tables"] if same else {}), **tables}
    present = {f"{key}: {name}" for key, steps in kept.items() for name in steps} | kept.keys()
    gone = {name: reason for name, reason in old.items() if name not in present}
    return {
        "schema": 1,
        "triton": triton,
        "tables": kept,
        "reasons": renewed(old, gone, found, why),
    }


def read_budget(path: Path = BUDGET) -> dict[str, Any]:
    """The budget file, or an empty one."""
    if not path.exists():
        return {"schema": 1, "triton": "", "tables": {}, "reasons": {}}
    values = json.loads(path.read_text(encoding="utf-8"))
    assert isinstance(values, dict)
    return values


def load_of(text: str) -> Workload:
    """A workload from ``1,576,64``: images, tokens and slots."""
    parts = text.split(",")
    if len(parts) != 3 or not all(part.isdigit() and int(part) for part in parts):
        raise argparse.ArgumentTypeError(f"expected B,N,K such as 1,576,64, got {text!r}")
    batch, num_tokens, num_slots = map(int, parts)
    return square(batch, num_tokens, num_slots, "bfloat16")


def archs_of(text: str) -> list[int]:
    """Capabilities from ``80,90``."""
    known = sorted({gpu.capability for gpu in SILICON.values()})
    parts = text.split(",")
    if not set(parts) <= set(map(str, known)):
        raise argparse.ArgumentTypeError(f"expected some of {known}, got {text!r}")
    return [int(part) for part in parts]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.model", description=__doc__)
    parser.add_argument("--chips", type=archs_of, default=[80, 90], help="such as 90; 80,90")
    parser.add_argument("--workload", type=load_of, action="append", help="B,N,K; may be repeated")
    parser.add_argument("--detail", action="store_true", help="the machine code's phases too")
    parser.add_argument("--budget", type=Path, default=BUDGET, help=argparse.SUPPRESS)
    add_options(parser)
    given = parser.parse_args(arguments)
    if interpreting():
        parser.error("Triton is in its interpreter, which compiles nothing: unset TRITON_INTERPRET")
    triton, budget = version("triton"), read_budget(given.budget)
    tables: dict[str, Steps] = {}
    for capability in given.chips:
        for load in given.workload or LOADS:
            call = compiled_call(load, capability)
            if given.detail:
                print(f"\n## sm_{capability}, {load}\n\n{detail(call)}")
            for gpu in SILICON.values():
                if gpu.capability == capability:
                    key = key_of(gpu.name, load)
                    tables[key] = steps_of(call, gpu)
                    print(f"\n## {key}\n\n{table(tables[key])}", flush=True)
    if given.write_budget:
        try:
            written = budget_with(budget, tables, triton, given.because or "")
        except ValueError as error:
            print(f"--write-budget: nothing is recorded: {error}", file=sys.stderr)
            return 2
        text = json.dumps(written, indent=1) + "\n"
        atomic_write(given.budget, text)
        return 0
    if triton != budget["triton"]:
        print(f"\nnothing is compared: recorded with Triton {budget['triton'] or 'none'}")
        return 0
    found = worsened(tables, budget)
    for name, said in found.items():
        print(f"{name}: {'; '.join(said)}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
