"""Projections of the whole way on GPUs: a model of the compiled kernels, and a floor beside it.

The floor of a stage is the larger of its FLOPs over the datasheet's matrix rate and its bytes over
the datasheet's bandwidth; launches are free. Its costs are formulas until kernels
supply counted ones. The model's times come from a file (`bench/model.py` writes it).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ocvtp_kernels.markdown import markdown_table
from ocvtp_kernels.report.costs import CHUNKS, HALF, ITERATIONS, ONE_TILE_SLOTS, STAGES, Cost, Size
from ocvtp_kernels.report.fields import ResultError, load_json
from ocvtp_kernels.report.modelled import BELIEF, Model, model_table, modelled_s
from ocvtp_kernels.report.results import ResultFile, graph_first, whole_way
from ocvtp_kernels.report.text import duration, three_digits, times_text


class Chip(NamedTuple):
    """A datasheet's ceilings: dense half-precision matrix TFLOP/s and HBM GB/s."""

    name: str
    tflops: float
    gb_s: float
    source: str


HOPPER = "half of the 1,979 TFLOP/s printed with sparsity"
CHIPS = (
    Chip("V100", 125, 900, "NVIDIA V100 Tensor Core GPU datasheet, SXM2, float16"),
    Chip("A100", 312, 2039, "NVIDIA A100 Tensor Core GPU datasheet, 80 GB SXM, bfloat16"),
    Chip("H100", 989.5, 3350, f"NVIDIA H100 Tensor Core GPU datasheet, SXM, bfloat16; {HOPPER}"),
    Chip("H200", 989.5, 4800, f"NVIDIA H200 Tensor Core GPU datasheet, SXM, bfloat16; {HOPPER}"),
)
WITH_TRITON = CHIPS[1:]  # what is counted is counted on Triton kernels, which V100 has none of
SIZES = tuple(Size(b, n, k) for n, k in ((576, 64), (2880, 160)) for b in (1, 8, 64))
Counts = dict[Size, list[Cost]]


def costs(size: Size, counts: Counts) -> list[Cost]:
    """The chain's costs: counted where there are counts for this size, else by formula."""
    return counts.get(size) or [stage(size) for stage in STAGES]


def compute_s(cost: Cost, chip: Chip) -> float:
    """Seconds of arithmetic at the datasheet's rate."""
    return cost.flops / (chip.tflops * 1e12)


def memory_s(cost: Cost, chip: Chip) -> float:
    """Seconds of memory traffic at the datasheet's rate."""
    return cost.bytes / (chip.gb_s * 1e9)


def projected_s(chain: Sequence[Cost], chip: Chip) -> float:
    """Seconds of the chain at the datasheet's rates, launches free."""
    return sum(max(compute_s(cost, chip), memory_s(cost, chip)) for cost in chain)


def read_counts(path: Path) -> Counts:
    """Costs counted on the kernels themselves, each the sum over the kernel's launches of a call.

    The file: ``{"schema": 1, "workloads": [{"batch", "num_tokens", "num_slots", "kernels":
    [{"kernel", "launches", "flops", "bytes"}]}]}``.

    Raises:
        ResultError: the file is malformed.
    """
    top = load_json(path)
    if (schema := top.get("schema")).count() != 1:
        raise schema.wrong("schema 1")
    counts: Counts = {}
    for workload in top.get("workloads").items():
        size = Size(*(workload.get(n).count() for n in ("batch", "num_tokens", "num_slots")))
        if size in counts:
            raise ResultError(f"{path}: {workload.place}: {size.text} a second time")
        if not (kernels := workload.get("kernels").items()):
            raise workload.get("kernels").wrong("at least one kernel")
        counts[size] = [
            Cost(
                kernel.get("kernel").text(),
                kernel.get("launches").count(),
                kernel.get("flops").number(),
                kernel.get("bytes").number(),
                "counted",
            )
            for kernel in kernels
        ]
    return counts


def measured_text(results: dict[str, list[ResultFile]], chip: Chip, size: Size) -> str:
    """What a result file of this chip says of this size, at half precision."""
    found = [
        f"{times_text(row.times)}, {row.workload.dtype}"
        + ("" if row.method in (None, "graph") else f", timed by {row.method}")
        for files in results.values()
        if (file := whole_way(files)) is not None and chip.name in file.device
        for row in graph_first(file.measured())
        if row.times is not None
        and row.is_ours
        and row.is_whole_way
        and row.workload[:3] == size[:3]
        and row.workload.dtype in ("float16", "bfloat16")
    ]
    return "; ".join(found) or "not measured"


def projections_page(
    results: dict[str, list[ResultFile]], counts: Counts, model: Model | None = None
) -> str:
    """``docs/projections.md``."""
    model = model or {}
    chips = [[c.name, f"{c.tflops:g}", f"{c.gb_s:g}", c.source] for c in CHIPS]
    plain = Size(1, 1, 1)
    blocks = [
        "# Projections",
        "Written by `ocvtp bench --projections`, not by hand. **Every time and share on this page "
        "is a projection** unless its column says *measured*. The *model* is computed from the "
        "machine code that the Triton kernels compile to for a chip, given by `--model`. The "
        "*floor* is what kernels that move and multiply as much would take at a datasheet's rates: "
        "*counted* on ours ([static cost](static_cost.md), given by `--counts`) or by *formula*.",
        "## How far the model is believed",
        BELIEF,
        "## The floor",
        "\n".join(
            f"* {line}"
            for line in (
                "A stage takes the larger of FLOPs / datasheet matrix rate and bytes / datasheet "
                "bandwidth; stages run one after another, and launching costs nothing.",
                "Optimistic: no chip reaches its datasheet, and small matrices do not fill it. "
                "Softmax, GELU, LayerNorm, GRU gates and the selection's sorting are free.",
                "Pessimistic: caches hold nothing from one launch to the next.",
                f"Half precision ({HALF} bytes a number), float32 sums, folded weights; within a "
                "launch every matrix moves once.",
                f"{ITERATIONS} iterations, the last without mean, GRU and FFN. `compete` computes "
                f"the logits again for each of {CHUNKS} chunks of D; beyond K {ONE_TILE_SLOTS} the "
                "logits are computed in one more pass.",
                f"C {plain.width}, H and F {plain.hidden}, D {plain.slot_dim}; as many kept tokens "
                "as slots, and final tokens as wide as reference tokens.",
            )
        ),
        markdown_table(["chip", "dense TFLOP/s", "GB/s", "datasheet"], chips),
        "## The whole pruner",
        "V100 runs CUDA C++ and no Triton, so it has a floor and no model.",
        _chips_table(results, counts, model),
        _beside_the_paper(),
        "## Step by step",
        "Of a whole call: the model on each chip, launches included, then the floor. Waves, bytes "
        "asked of L2 and what is waited for are the model's, on the last of its chips.",
    ]
    for size in SIZES:
        blocks += [f"### {size.text}"]
        modelled = {chip.name: its for chip in CHIPS if (its := model.get((chip.name, size)))}
        if modelled:
            blocks += [model_table(modelled)]
        blocks += [_stages_table(costs(size, counts))]
    return "\n\n".join(blocks) + "\n"


def _chips_table(results: dict[str, list[ResultFile]], counts: Counts, model: Model) -> str:
    rows = []
    for chip in CHIPS:
        for size in SIZES:
            chain = costs(size, counts if chip in WITH_TRITON else {})
            total = projected_s(chain, chip)
            bounds = {
                "arithmetic": sum(
                    c for k in chain if (c := compute_s(k, chip)) >= memory_s(k, chip)
                ),
                "memory": sum(m for k in chain if (m := memory_s(k, chip)) > compute_s(k, chip)),
            }
            steps = model.get((chip.name, size))
            taken = modelled_s(steps) if steps else None
            rows.append(
                [
                    chip.name,
                    size.text,
                    "—" if taken is None else duration(taken),
                    "—" if taken is None else duration(taken / size.batch),
                    f"{duration(total)} ({chain[0].source})",
                    "—" if taken is None else f"{taken / total:.2f}",
                    *(f"{share / total:.0%}" for share in bounds.values()),
                    measured_text(results, chip, size),
                ]
            )
    header = ["chip", "workload", "model", "model per image", "floor (costs)", "model / floor"]
    return markdown_table([*header, "floor's arithmetic", "memory", "measured"], rows)


def _beside_the_paper() -> str:
    """The published saving (arXiv 2511.20439: V100, batch 1, ms per image), and the floor."""
    before, after = 811.8, 287.3
    chip, size = CHIPS[0], Size(1, 2880, 160)
    seconds = projected_s(costs(size, {}), chip)
    return (
        f"The paper reports {before} ms per image without and {after} ms with pruning on one "
        f"{chip.name} (LLaVA-NeXT, {size.num_slots} of {size.num_tokens} tokens): "
        f"{before - after:.1f} ms less. The pruner's floor there, {duration(seconds)}, is "
        f"{seconds / (before - after) * 1e3:.2%} of that saving."
    )


def _stages_table(chain: Sequence[Cost]) -> str:
    source = chain[0].source
    header = ["stage", "launches", f"GFLOP ({source})", f"MB ({source})"]
    header += [f"{chip.name} (floor)" for chip in WITH_TRITON]
    total = Cost(
        "all",
        sum(cost.launches for cost in chain),
        sum(cost.flops for cost in chain),
        sum(cost.bytes for cost in chain),
    )
    rows = [
        [
            cost.stage,
            str(cost.launches),
            three_digits(cost.flops / 1e9),
            three_digits(cost.bytes / 1e6),
            *(duration(projected_s(part, chip)) for chip in WITH_TRITON),
        ]
        for cost, part in [*((c, [c]) for c in chain), (total, list(chain))]
    ]
    return markdown_table(header, rows)
