"""Times of the Triton kernels by the performance model, read from its file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ocvtp_kernels.markdown import markdown_table
from ocvtp_kernels.report.costs import Size
from ocvtp_kernels.report.fields import Amount, Text, load_json, read
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


@dataclass(frozen=True)
class Step:
    """The model's prediction for all launches of a step of a call."""

    launches: int
    us: Amount  # of all its launches
    waves: Amount  # of programs on the GPU, in one launch
    l2_mb: Amount  # requested from L2 by all launches
    bound: Text  # what limits the slowest launch

    @property
    def seconds(self) -> float:
        """Of all its launches."""
        return self.us * 1e-6


Steps = Mapping[str, Step]  # by name
Model = dict[tuple[str, Size], Steps]


def read_model(path: Path) -> Model:
    """The model's times by GPU and size.

    The file: ``{"schema": 1, "tables": {"H100 B 1 N 576 K 64": {"gru": {"launches", "us", "waves",
    "l2_mb", "bound"}}}}``; other keys are ignored.

    Raises:
        ResultError: the file is malformed.
    """
    top = load_json(path)
    model: Model = {}
    tables = top.get("tables")
    for key in tables.members():
        match = re.fullmatch(r"(\S+) B (\d+) N (\d+) K (\d+)", key)
        if match is None:
            raise tables.get(key).wrong("a table named such as 'H100 B 1 N 576 K 64'")
        size = Size(int(match[2]), int(match[3]), int(match[4]))
        model[match[1], size] = read(dict[str, Step], tables.get(key))
    return model


def modelled_s(steps: Steps) -> float:
    """The model's seconds of a whole call."""
    return sum(step.seconds for step in steps.values())


def model_table(gpus: Mapping[str, Steps]) -> str:
    """A size's steps, by GPU; waves, bytes and bounds are the last GPU's."""
    last = [*gpus.values()][-1]
    rows = []
    for name in dict.fromkeys(name for steps in gpus.values() for name in steps):
        launches, *rest = "", "", "", ""
        if step := last.get(name):
            launches = str(step.launches)
            rest = [f"{step.waves:.2f}", three_digits(step.l2_mb), step.bound]
        times = [duration(steps[name].seconds) if name in steps else "—" for steps in gpus.values()]
        rows.append([name, launches, *times, *rest])
    launches = str(sum(step.launches for step in last.values()))
    totals = [duration(modelled_s(steps)) for steps in gpus.values()]
    header = ["step", "launches", *(f"{name} (model)" for name in gpus)]
    header += ["waves", "MB asked of L2", "waits for"]
    return markdown_table(header, [*rows, ["all", launches, *totals, "", "", ""]])
