"""Times of the Triton kernels as the performance model has them, from its file."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ocvtp_kernels.markdown import markdown_table
from ocvtp_kernels.report.costs import Size
from ocvtp_kernels.report.fields import load_json
from ocvtp_kernels.report.text import duration, three_digits

BELIEF = """\
No GPU has run it: believe a whole call to within a quarter, and a single step to within a half.
For each launch of a CUDA graph `bench/model.py` takes the machine code apart. A warp's control
codes say how long it issues and what it waits for; copies in flight hide the latency of L2. A step
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
    """What the model says of all launches of a step of a call.

    Attributes:
        name: the step.
        launches: of a call.
        seconds: theirs together.
        waves: of programs on the chip, of one launch.
        l2_bytes: asked of L2, by all launches.
        bound: what the slowest launch waits for.
    """

    name: str
    launches: int
    seconds: float
    waves: float
    l2_bytes: float
    bound: str


Model = dict[tuple[str, Size], list[Step]]


def read_model(path: Path) -> Model:
    """The model's times by chip and size.

    The file: ``{"schema": 1, "tables": {"H100 B 1 N 576 K 64": {"gru": {"launches", "us", "waves",
    "l2_mb", "bound"}}}}``; what else it holds is left alone.

    Raises:
        ResultError: the file is malformed.
    """
    top = load_json(path)
    if (schema := top.get("schema")).count() != 1:
        raise schema.wrong("schema 1")
    model: Model = {}
    for key, table in top.get("tables").members().items():
        found = re.fullmatch(r"(\S+) B (\d+) N (\d+) K (\d+)", key)
        if found is None:
            raise table.wrong("a table named such as 'H100 B 1 N 576 K 64'")
        model[found[1], Size(int(found[2]), int(found[3]), int(found[4]))] = [
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


def model_table(chips: Mapping[str, Sequence[Step]]) -> str:
    """A size's steps, by chip; the details are the last chip's."""
    of_chip = [{step.name: step for step in steps} for steps in chips.values()]
    last = of_chip[-1]
    names = dict.fromkeys(name for steps in of_chip for name in steps)
    rows = [
        [
            name,
            str(last[name].launches) if name in last else "",
            *(duration(s[name].seconds) if name in s else "—" for s in of_chip),
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
    totals = [duration(modelled_s(steps)) for steps in chips.values()]
    header = ["step", "launches", *(f"{name} (model)" for name in chips)]
    header += ["waves", "MB asked of L2", "waits for"]
    return markdown_table(header, [*rows, ["all", str(launches), *totals, "", "", ""]])
