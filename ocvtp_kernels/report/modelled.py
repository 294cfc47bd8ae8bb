"""Times of the Triton kernels by the performance model, read from its file."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ocvtp_kernels.markdown import markdown_table
from ocvtp_kernels.report.costs import Size
from ocvtp_kernels.report.fields import load_json
from ocvtp_kernels.report.text import duration, three_digits

ACCURACY = """\
No GPU has run it: expect a whole call to be right within a quarter, a single step within a half.
For each launch of a CUDA graph `bench/model.py` reads the machine code. A warp's control codes give
its issue cycles and what it waits for; copies in flight hide the latency of L2. A step
of a loop lasts as long as the busiest of the schedulers, the tensor cores and the port to L2, for
all programs that the multiprocessor holds at once, or the longest chain of one program. Programs
come in waves; beside them stand the bytes asked of L2 and, where the call's tensors do not fit it,
of memory.

Its constants are published ones, datasheets' and assumptions, the same for every kernel. They were
held against one thing only, an estimate made by hand of the kernels before LayerNorm left their
loops (H100, three workloads): totals agree to within 8 %, and of 28 steps all but two to within
35 % (`tests/bench/model_calibration.json`). L2's rate, within what is published, the share of
cycles in which busy schedulers issue, and the latencies of shuffles and barriers were set with that
estimate in view. So it is a fit of one estimate to another, and no measurement.

What it leaves out: bank conflicts, and lines that two loads share; how L2 is cut in two, and what
its latency becomes under load; the first level's cache, clocks that fall with power or rise where
little runs, the driver, and the host. Instructions under a mask count as if all lanes ran. The
selection's search ends early on most images; it is counted to its end. On A100 nothing was held
against it at all."""


class Step(NamedTuple):
    """The model's prediction for all launches of a step of a call.

    Attributes:
        name: the step.
        launches: in a call.
        seconds: of all its launches.
        waves: of programs on the GPU, in one launch.
        l2_bytes: requested from L2 by all launches.
        bound: what limits the slowest launch.
    """

    name: str
    launches: int
    seconds: float
    waves: float
    l2_bytes: float
    bound: str


Model = dict[tuple[str, Size], list[Step]]


def read_model(path: Path) -> Model:
    """The model's times by GPU and size.

    The file: ``{"schema": 1, "tables": {"H100 B 1 N 576 K 64": {"gru": {"launches", "us", "waves",
    "l2_mb", "bound"}}}}``; other keys are ignored.

    Raises:
        ResultError: the file is malformed.
    """
    top = load_json(path)
    if (schema := top.get("schema")).count() != 1:
        raise schema.wrong("schema 1")
    model: Model = {}
    for key, table in top.get("tables").members().items():
        match = re.fullmatch(r"(\S+) B (\d+) N (\d+) K (\d+)", key)
        if match is None:
            raise table.wrong("a table named such as 'H100 B 1 N 576 K 64'")
        model[match[1], Size(int(match[2]), int(match[3]), int(match[4]))] = [
            Step(
                name,
                step.get("launches").count(),
                step.get("us").number() * 1e-6,
                step.get("waves").number(),
                step.get("l2_mb").number() * 1e6,
                step.get("bound").text(),
            )
            for name, step in table.members().items()
        ]
    return model


def modelled_s(steps: Sequence[Step]) -> float:
    """The model's seconds of a whole call."""
    return sum(step.seconds for step in steps)


def model_table(gpus: Mapping[str, Sequence[Step]]) -> str:
    """A size's steps, by GPU; waves, bytes and bounds are the last GPU's."""
    by_name = [{step.name: step for step in steps} for steps in gpus.values()]
    last = by_name[-1]
    names = dict.fromkeys(name for steps in by_name for name in steps)
    rows = [
        [
            name,
            str(last[name].launches) if name in last else "",
            *(duration(s[name].seconds) if name in s else "—" for s in by_name),
            *(
                (
                    f"{last[name].waves:.2f}",
                    three_digits(last[name].l2_bytes / 1e6),
                    last[name].bound,
                )
                if name in last
                else ("", "", "")
            ),
        ]
        for name in names
    ]
    launches = sum(step.launches for step in last.values())
    totals = [duration(modelled_s(steps)) for steps in gpus.values()]
    header = ["step", "launches", *(f"{name} (model)" for name in gpus)]
    header += ["waves", "MB asked of L2", "waits for"]
    return markdown_table(header, [*rows, ["all", str(launches), *totals, "", "", ""]])
