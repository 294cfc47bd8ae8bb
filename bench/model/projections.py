"""Projections of `prune` on GPUs: a model of the compiled kernels, and a roofline floor beside it.

The model's times are those that its budget records (`bench.model.report`). The floor of a step is
the larger of the FLOPs that it needs over the datasheet's matrix rate and of its bytes over the
datasheet's bandwidth (`ocvtp_kernels.cost.work`); launches are free.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from bench.compiled.budget import Budget, Row
from bench.model.report import LOADS, key_of
from bench.ops.prune import steps as least_steps
from bench.report.tables import measured_text
from bench.report.text import duration, three_digits
from bench.results import Results
from bench.workloads import Workload, square
from ocvtp_kernels.cost.work import Work
from ocvtp_kernels.markdown import markdown_table


class Gpu(NamedTuple):
    """A datasheet's ceilings: dense half-precision matrix TFLOP/s and HBM GB/s."""

    name: str
    tflops: float
    gb_s: float
    source: str

    def floor_s(self, works: Iterable[Work]) -> float:
        """Seconds of steps one after another."""
        return sum(max(self.seconds(work)) for work in works)

    def seconds(self, work: Work) -> tuple[float, float]:
        """Seconds of a step's arithmetic and of its memory traffic."""
        return work.flops / (self.tflops * 1e12), work.bytes / (self.gb_s * 1e9)


HOPPER = "half of the 1,979 TFLOP/s printed with sparsity"
GPUS = (
    Gpu("V100", 125, 900, "NVIDIA V100 Tensor Core GPU datasheet, SXM2, float16"),
    Gpu("A100", 312, 2039, "NVIDIA A100 Tensor Core GPU datasheet, 80 GB SXM, bfloat16"),
    Gpu("H100", 989.5, 3350, f"NVIDIA H100 Tensor Core GPU datasheet, SXM, bfloat16; {HOPPER}"),
    Gpu("H200", 989.5, 4800, f"NVIDIA H200 Tensor Core GPU datasheet, SXM, bfloat16; {HOPPER}"),
)

ACCURACY = """\
No GPU has run it: expect a whole call to be right within a quarter, a single step within a half.
For each launch of a CUDA graph `bench/model/` reads the machine code. A warp's control codes give
its issue cycles and what it waits for; copies in flight hide the latency of L2. A step
of a loop lasts as long as the busiest of the schedulers, the tensor cores and the port to L2, for
all programs that the multiprocessor holds at once, or the longest chain of one program. Programs
come in waves; beside them stand the bytes asked of L2 and, where the call's tensors do not fit it,
of memory.

Its constants are published ones, datasheets' and assumptions, the same for every kernel. They were
held against one thing only, an estimate made by hand of the kernels before LayerNorm left their
loops (H100, three workloads): totals agree to within 8 %, and of 28 steps all but two to within
35 % (`tests/bench/model/calibration.json`). L2's rate, within what is published, the share of
cycles in which busy schedulers issue, and the latencies of shuffles and barriers were set with that
estimate in view. So it is a fit of one estimate to another, and no measurement.

What it leaves out: bank conflicts, and lines that two loads share; how L2 is cut in two, and what
its latency becomes under load; the first level's cache, clocks that fall with power or rise where
little runs, the driver, and the host. Instructions under a mask count as if all lanes ran. The
selection's search ends early on most images; it is counted to its end. On A100 nothing was held
against it at all."""

FLOOR = (
    "A step takes the larger of FLOPs / datasheet matrix rate and bytes / datasheet bandwidth; "
    "steps run one after another, and launching costs nothing.",
    "Optimistic: no GPU reaches its datasheet, and small matrices do not fill it. Softmax, GELU, "
    "LayerNorm, GRU gates and the selection's sorting are free, and no logits are computed twice.",
    "Pessimistic: caches hold nothing from one launch to the next.",
    "Half precision (2 bytes an element), float32 state, folded weights; within a step every "
    "tensor moves once. Three iterations, the last without mean, GRU and FFN.",
    "As many kept tokens as slots, and final tokens as wide as reference tokens.",
)


def projections_page(budget: Budget, results: Mapping[str, Sequence[Results]]) -> str:
    """The page of projections: ``budget`` has the model's times, ``results`` what was measured."""
    blocks = [
        "# Projections",
        "**Every time and share on this page is a projection** unless its column says *measured*. "
        "The *model* is computed from the machine code that the Triton kernels compile to for a "
        "GPU. The *floor* is what kernels that move and multiply no more than needed would take at "
        "a datasheet's rates.",
        "## Accuracy of the model",
        ACCURACY,
        "## The floor",
        "\n".join(f"* {sentence}" for sentence in FLOOR),
        markdown_table(
            ["GPU", "dense TFLOP/s", "GB/s", "datasheet"],
            [[gpu.name, f"{gpu.tflops:g}", f"{gpu.gb_s:g}", gpu.source] for gpu in GPUS],
        ),
        "## The whole pipeline",
        "V100 runs CUDA C++ and no Triton, so it has a floor and no model.",
        _whole(budget, results),
        _beside_the_paper(),
        "## Step by step",
        "All launches of a step: the model and the floor on each GPU. Waves, bytes asked of L2 and "
        "what is waited for are the model's, on the last of its GPUs; FLOPs and bytes what the "
        "step needs.",
    ]
    for load in LOADS:
        blocks += [f"### {_text(load)}", _by_step(budget, load)]
    return "\n\n".join(blocks) + "\n"


def _text(load: Workload) -> str:
    return f"B {load.batch}, N {load.num_tokens}, K {load.num_slots}"


def _rows(budget: Budget, gpu: Gpu, load: Workload) -> dict[str, Row]:
    group = budget.groups.get(key_of(gpu.name, load))
    return group.rows if group else {}


def _whole(budget: Budget, results: Mapping[str, Sequence[Results]]) -> str:
    rows = []
    for gpu in GPUS:
        for load in LOADS:
            works = least_steps(load).values()
            floor, pairs = gpu.floor_s(works), list(map(gpu.seconds, works))
            arithmetic = sum(compute for compute, memory in pairs if compute >= memory)
            model = ["—"] * 3
            if modelled := _rows(budget, gpu, load):
                taken = modelled["all"]["us"] * 1e-6
                model = [duration(taken), duration(taken / load.batch), f"{taken / floor:.2f}"]
            share = arithmetic / floor
            row = [gpu.name, _text(load), *model, duration(floor), f"{share:.0%}"]
            rows.append([*row, f"{1 - share:.0%}", measured_text(results, gpu.name, load)])
    header = ["GPU", "workload", "model", "model per image", "model / floor", "floor"]
    return markdown_table([*header, "floor's arithmetic", "memory", "measured"], rows)


def _beside_the_paper() -> str:
    """The published saving (arXiv 2511.20439: V100, batch 1, ms per image), and the floor."""
    before, after = 811.8, 287.3
    gpu, load = GPUS[0], square(1, 2880, 160, "float16")
    seconds = gpu.floor_s(least_steps(load).values())
    return (
        f"The paper reports {before} ms per image without and {after} ms with pruning on one "
        f"{gpu.name} (LLaVA-NeXT, {load.num_slots} of {load.num_tokens} tokens): "
        f"{before - after:.1f} ms less. The pruner's floor there, {duration(seconds)}, is "
        f"{seconds / (before - after) * 1e3:.2%} of that saving."
    )


def _by_step(budget: Budget, load: Workload) -> str:
    gpus = [gpu for gpu in GPUS if _rows(budget, gpu, load)] or list(GPUS)
    last = _rows(budget, gpus[-1], load)
    least = {name: [work] for name, work in least_steps(load).items()}
    least["all"] = [work for works in least.values() for work in works]
    rows = []
    for name in last or least:
        row, works = last.get(name, {}), least.get(name, [])
        cells = [name, str(row.get("launches", ""))]
        for gpu in gpus:
            modelled = _rows(budget, gpu, load).get(name)
            cells.append(duration(modelled["us"] * 1e-6) if modelled else "—")
            cells.append(duration(gpu.floor_s(works)) if works else "—")
        cells += [f"{row['waves']:.2f}" if "waves" in row else ""]
        cells += [three_digits(row["l2_mb"]) if row else "", row.get("bound", "")]
        need = sum(works, Work(0, 0))
        rows.append([*cells, three_digits(need.flops / 1e9), three_digits(need.bytes / 1e6)])
    header = ["step", "launches"]
    header += [f"{gpu.name} ({of})" for gpu in gpus for of in ("model", "floor")]
    header += ["waves", "MB asked of L2", "waits for", "GFLOP", "MB"]
    return markdown_table(header, rows)
