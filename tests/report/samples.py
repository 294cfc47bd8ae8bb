"""Result files of a device that does not exist."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

DEVICE = "Imaginary accelerator <not real>"
GATE = {"passed": True, "note": ""}


def micro_row(op: str, variant: str, median: float | None, **changes: Any) -> dict[str, Any]:
    workload = {
        "batch": 1,
        "num_tokens": 576,
        "num_slots": 64,
        "budget": 64,
        "in_dim": 1024,
        "slot_dim": 512,
        "dtype": "float32",
    }
    rates = {"tflops": 1.5, "gb_s": 200.0, "share_of_ceiling": 0.5} if median else {}
    return {
        "op": op,
        "variant": variant,
        "direction": "forward",
        "workload": workload | changes.pop("workload", {}),
        "median_s": median,
        "p20_s": median and 0.9 * median,
        "p80_s": median and 1.1 * median,
        "rounds": 7 if median else 0,
        "flops": 3e9,
        "bytes": 4e8,
        **(rates or dict.fromkeys(("tflops", "gb_s", "share_of_ceiling"))),
        "gate": GATE if median else {"passed": False, "note": "wrong | ids"},
        **changes,
    }


def end_to_end_row(
    selector: str, budget: int, ttft: float | None, **changes: Any
) -> dict[str, Any]:
    parts = ("encoder", "pruner", "projector", "prefill")
    return {
        "model": "imaginary/model",
        "mode": "eager",
        "selector": selector,
        "batch": 1,
        "budget": budget,
        "num_tokens": 576,
        "stages": {name: ttft / 5 for name in parts} if ttft else {},
        "ttft_s": ttft,
        "ttft_p20_s": ttft and 0.9 * ttft,
        "ttft_p80_s": ttft and 1.1 * ttft,
        "rounds": 7 if ttft else 0,
        "decode_tokens_per_s": 40.0 if ttft else None,
        "cache_bytes": 2**20 * budget // 64 if ttft else None,
        "pruner_added_s": None,
        "note": "" if ttft else "out of memory",
        **changes,
    }


def end_to_end_rows() -> list[dict[str, Any]]:
    """Pruning wins by 5 at batch 1 and loses by 2 at batch 8, where static mode has no memory."""
    return [
        end_to_end_row("unpruned", 576, 0.5),
        end_to_end_row("ocvtp", 64, 0.1, pruner_added_s=-1e-3),
        end_to_end_row("random", 64, 0.09),
        end_to_end_row("ocvtp", 64, 0.1, mode="static", note="no <graph>"),
        end_to_end_row("unpruned", 576, 0.5, batch=8),
        end_to_end_row("ocvtp", 64, 1.0, batch=8, decode_tokens_per_s=30.0),
        end_to_end_row("unpruned", 576, None, batch=8, mode="static"),
        end_to_end_row("ocvtp", 64, 0.2, batch=8, mode="static"),
    ]


def content(kind: str, rows: list[dict[str, Any]], device: str = DEVICE) -> dict[str, Any]:
    return {
        "schema": 1,
        "kind": kind,
        "device": device,
        "driver": None,
        "versions": {"torch": "0.0", "triton": None, "python": "0.0"},
        "commit": "0123456789abcdef-dirty",
        "date": "2001-02-03T04:05:06+00:00",
        "ceilings": {"copy_gb_s": 100.0, "matmul_tflops": {"float32": 5.0}},
        "rows": rows,
    }


def gpu_rows() -> list[dict[str, Any]]:
    """Ours wins by graph and loses to eager when launched; csrc was refused at batch 8."""
    times = (
        ("eager", "graph", 4e-4), ("eager", "events", 8e-4), ("published", "events", 5e-3),
        ("prune", "graph", 1e-4), ("prune", "events", 1e-3), ("csrc", "graph", 3e-4),
    )  # fmt: skip
    rows = [
        micro_row("prune", variant, median * batch, method=method, workload=load)
        for batch in (1, 8)
        for load in [{"batch": batch, "dtype": "bfloat16"}]
        for variant, method, median in times
    ]
    rows[-1] |= micro_row("prune", "csrc", None, method=None, workload=rows[-1]["workload"])
    return rows


def compile_rows(*methods: str) -> list[dict[str, Any]]:
    """torch.compile by events, and ours by each of ``methods``, 5e-4 s."""
    load = {"dtype": "bfloat16"}
    rows = [micro_row("prune", "prune", 5e-4, method=method, workload=load) for method in methods]
    return [micro_row("prune", "compile", 1e-3, method="events", workload=load), *rows]


def write(folder: Path, what: dict[str, Any], slug: str = "imaginary") -> Path:
    path = folder / slug / f"{what['kind']}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(what), encoding="utf-8")
    return path


def selector_row(method: str, batch: int, median: float | None, **changes: Any) -> dict[str, Any]:
    return {
        "method": method,
        "batch": batch,
        "num_tokens": 576,
        "width": 1024,
        "budget": 64,
        "dtype": "float32",
        "median_s": median,
        "p20_s": median and 0.9 * median,
        "p80_s": median and 1.1 * median,
        "rounds": 7 if median else 0,
        **dict.fromkeys(("graph_median_s", "graph_p20_s", "graph_p80_s")),
        "coverage": 0.5 + batch / 1000,
        "duplicates": 0,
        "exact": True,
        "published": None,
        "loop": None,
        "gate": GATE if median else {"passed": False, "note": "wrong | ids"},
        **changes,
    }


def beside(theirs: float, ours: float) -> dict[str, Any]:
    """A method's published loops and ours."""
    names = ("median_s", "p20_s", "p80_s")
    return {
        **{name: theirs for name in names},
        **{f"ours_{name}": ours for name in names},
        "rounds": 3,
    }


def selector_rows() -> list[dict[str, Any]]:
    """Published loops lose by 200 and win by 2; one method keeps a token twice in a large batch."""
    graph = {"graph_median_s": 1e-4, "graph_p20_s": 9e-5, "graph_p80_s": 2e-4}
    return [
        selector_row("vlm-pruner", 1, 2e-3, published=beside(0.4, 2e-3), **graph),
        selector_row("divprune", 1, 1e-3, published=beside(1e-3, 2e-3), loop=beside(4e-3, 1e-4)),
        selector_row("vlm-pruner", 64, 5e-4),
        selector_row("divprune", 64, None, duplicates=3, exact=False),
        selector_row("vlm-pruner", 1, 3e-3, budget=192),
    ]
