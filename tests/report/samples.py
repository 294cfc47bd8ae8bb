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


def write(folder: Path, what: dict[str, Any], slug: str = "imaginary") -> Path:
    path = folder / slug / f"{what['kind']}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(what), encoding="utf-8")
    return path
