"""Projections of `prune` on GPUs: a model of the compiled kernels, and a roofline floor beside it.

The floor of a stage is the larger of its FLOPs over the datasheet's matrix rate and its bytes over
the datasheet's bandwidth; launches are free. Costs are counted on the kernels where counts are
given, else formulas. The model's times come from a file (`bench/model.py` writes it).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from ocvtp_kernels.markdown import markdown_table
from ocvtp_kernels.report.costs import (
    CHUNKS,
    HALF,
    ITERATIONS,
    ONE_TILE_SLOTS,
    Size,
    StageCost,
    stage_costs,
)
from ocvtp_kernels.report.fields import ResultError, load_json, read
from ocvtp_kernels.report.modelled import ACCURACY, Model, model_table, modelled_s
from ocvtp_kernels.report.results import ResultFile, graph_first, pipeline_file
from ocvtp_kernels.report.text import bullets, duration, three_digits, times_text


class Gpu(NamedTuple):
    """A datasheet's ceilings: dense half-precision matrix TFLOP/s and HBM GB/s."""

    name: str
    tflops: float
    gb_s: float
    source: str


HOPPER = "half of the 1,979 TFLOP/s printed with sparsity"
GPUS = (
    Gpu("V100", 125, 900, "NVIDIA V100 Tensor Core GPU datasheet, SXM2, float16"),
    Gpu("A100", 312, 2039, "NVIDIA A100 Tensor Core GPU datasheet, 80 GB SXM, bfloat16"),
    Gpu("H100", 989.5, 3350, f"NVIDIA H100 Tensor Core GPU datasheet, SXM, bfloat16; {HOPPER}"),
    Gpu("H200", 989.5, 4800, f"NVIDIA H200 Tensor Core GPU datasheet, SXM, bfloat16; {HOPPER}"),
)
WITH_TRITON = GPUS[1:]  # kernels are counted on Triton, which does not run on V100
SIZES = tuple(Size(b, n, k) for n, k in ((576, 64), (2880, 160)) for b in (1, 8, 64))
Counts = dict[Size, list[StageCost]]


def costs(size: Size, counts: Counts) -> list[StageCost]:
    """Costs of a size's stages: counted where there are counts for it, else by formula."""
    return counts.get(size) or stage_costs(size)


def floors(cost: StageCost, gpu: Gpu) -> tuple[float, float]:
    """Seconds of a stage's arithmetic and of its memory traffic at the datasheet's rates."""
    return cost.flops / (gpu.tflops * 1e12), cost.bytes / (gpu.gb_s * 1e9)


def projected_s(stages: Sequence[StageCost], gpu: Gpu) -> float:
    """Seconds of all stages at the datasheet's rates, launches free."""
    return sum(max(floors(cost, gpu)) for cost in stages)


def read_counts(path: Path) -> Counts:
    """Costs counted on the kernels themselves, each the sum over the kernel's launches of a call.

    The file: ``{"schema": 1, "workloads": [{"batch", "num_tokens", "num_slots", "kernels":
    [{"kernel", "launches", "flops", "bytes"}]}]}``.

    Raises:
        ResultError: the file is malformed.
    """
    counts: Counts = {}
    for workload in load_json(path).get("workloads").items():
        size = Size(*(read(int, workload.get(n)) for n in ("batch", "num_tokens", "num_slots")))
        if size in counts:
            raise ResultError(f"{path}: {workload.field_path}: {size.text} a second time")
        kernels = workload.get("kernels")
        counted = read(tuple[StageCost, ...], kernels)
        if not counted:
            raise kernels.wrong("at least one kernel")
        counts[size] = [replace(cost, source="counted") for cost in counted]
    return counts


def measured_text(results: dict[str, list[ResultFile]], gpu: Gpu, size: Size) -> str:
    """The measured times of this GPU at this size, in half precision."""
    measured = [
        f"{times_text(row.times)}, {row.workload.dtype}"
        + ("" if row.method in (None, "graph") else f", timed by {row.method}")
        for files in results.values()
        if (file := pipeline_file(files)) is not None and gpu.name in file.device
        for row in graph_first(file.measured())
        if row.times is not None
        and row.is_ours
        and row.is_pipeline
        and Size(row.workload.batch, row.workload.num_tokens, row.workload.num_slots or 0) == size
        and row.workload.dtype in ("float16", "bfloat16")
    ]
    return "; ".join(measured) or "not measured"


def projections_page(
    results: dict[str, list[ResultFile]], counts: Counts, model: Model | None = None
) -> str:
    """``docs/projections.md``."""
    model = model or {}
    gpus = [[c.name, f"{c.tflops:g}", f"{c.gb_s:g}", c.source] for c in GPUS]
    plain = Size(1, 1, 1)
    blocks = [
        "# Projections",
        "Written by `ocvtp bench --projections`, not by hand. **Every time and share on this page "
        "is a projection** unless its column says *measured*. The *model* is computed from the "
        "machine code that the Triton kernels compile to for a GPU, given by `--model`. The "
        "*floor* is what kernels that move and multiply as much would take at a datasheet's rates: "
        "*counted* on ours ([static cost](static_cost.md), given by `--counts`) or by *formula*.",
        "## Accuracy of the model",
        ACCURACY,
        "## The floor",
        bullets(
            (
                "A stage takes the larger of FLOPs / datasheet matrix rate and bytes / datasheet "
                "bandwidth; stages run one after another, and launching costs nothing.",
                "Optimistic: no GPU reaches its datasheet, and small matrices do not fill it. "
                "Softmax, GELU, LayerNorm, GRU gates and the selection's sorting are free.",
                "Pessimistic: caches hold nothing from one launch to the next.",
                f"Half precision ({HALF} bytes an element), float32 sums, folded weights; within a "
                "launch every matrix moves once.",
                f"{ITERATIONS} iterations, the last without mean, GRU and FFN. `compete` computes "
                f"the logits again for each of {CHUNKS} chunks of D; beyond K {ONE_TILE_SLOTS} the "
                "logits are computed in one more pass.",
                f"C {plain.width}, H and F {plain.hidden}, D {plain.slot_dim}; as many kept tokens "
                "as slots, and final tokens as wide as reference tokens.",
            )
        ),
        markdown_table(["GPU", "dense TFLOP/s", "GB/s", "datasheet"], gpus),
        "## The whole pipeline",
        "V100 runs CUDA C++ and no Triton, so it has a floor and no model.",
        _gpus_table(results, counts, model),
        _beside_the_paper(),
        "## Step by step",
        "Of a whole call: the model on each GPU, launches included, then the floor. Waves, bytes "
        "asked of L2 and what is waited for are the model's, on the last of its GPUs.",
    ]
    for size in SIZES:
        blocks += [f"### {size.text}"]
        modelled = {gpu.name: its for gpu in GPUS if (its := model.get((gpu.name, size)))}
        if modelled:
            blocks += [model_table(modelled)]
        blocks += [_stages_table(costs(size, counts))]
    return "\n\n".join(blocks) + "\n"


def _gpus_table(results: dict[str, list[ResultFile]], counts: Counts, model: Model) -> str:
    rows = []
    for gpu in GPUS:
        for size in SIZES:
            stages = costs(size, counts if gpu in WITH_TRITON else {})
            total = projected_s(stages, gpu)
            pairs = [floors(cost, gpu) for cost in stages]
            arithmetic = sum(compute for compute, memory in pairs if compute >= memory)
            memory = sum(memory for compute, memory in pairs if memory > compute)
            modelled, per_image, of_floor = "—", "—", "—"
            if steps := model.get((gpu.name, size)):
                taken = modelled_s(steps)
                modelled, per_image = duration(taken), duration(taken / size.batch)
                of_floor = f"{taken / total:.2f}"
            floor = f"{duration(total)} ({stages[0].source})"
            shares = f"{arithmetic / total:.0%}", f"{memory / total:.0%}"
            measured = measured_text(results, gpu, size)
            row = [gpu.name, size.text, modelled, per_image, floor, of_floor, *shares, measured]
            rows.append(row)
    header = ["GPU", "workload", "model", "model per image", "floor (costs)", "model / floor"]
    return markdown_table([*header, "floor's arithmetic", "memory", "measured"], rows)


def _beside_the_paper() -> str:
    """The published saving (arXiv 2511.20439: V100, batch 1, ms per image), and the floor."""
    before, after = 811.8, 287.3
    gpu, size = GPUS[0], Size(1, 2880, 160)
    seconds = projected_s(costs(size, {}), gpu)
    return (
        f"The paper reports {before} ms per image without and {after} ms with pruning on one "
        f"{gpu.name} (LLaVA-NeXT, {size.num_slots} of {size.num_tokens} tokens): "
        f"{before - after:.1f} ms less. The pruner's floor there, {duration(seconds)}, is "
        f"{seconds / (before - after) * 1e3:.2%} of that saving."
    )


def _stages_table(stages: Sequence[StageCost]) -> str:
    source = stages[0].source
    header = ["stage", "launches", f"GFLOP ({source})", f"MB ({source})"]
    header += [f"{gpu.name} (floor)" for gpu in WITH_TRITON]
    sums = (sum(getattr(cost, name) for cost in stages) for name in ("launches", "flops", "bytes"))
    total = StageCost("all", *sums)
    rows = [
        [
            cost.kernel,
            str(cost.launches),
            three_digits(cost.flops / 1e9),
            three_digits(cost.bytes / 1e6),
            *(duration(projected_s(part, gpu)) for gpu in WITH_TRITON),
        ]
        for cost, part in [*((c, [c]) for c in stages), (total, list(stages))]
    ]
    return markdown_table(header, rows)
