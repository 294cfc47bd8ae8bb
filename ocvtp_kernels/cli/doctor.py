"""``ocvtp doctor``: versions, backends, and which op runs where."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict
from typing import Any

import torch
import typer

from ocvtp_kernels import backends, native
from ocvtp_kernels.cli.options import AsJson
from ocvtp_kernels.installing import installed_version
from ocvtp_kernels.ops.registry import COMPOSED
from ocvtp_kernels.version import __version__

PACKAGES = ("triton", "transformers", "safetensors", "numpy", "pillow")
DEVICES = ("cpu", "cuda")


def doctor(as_json: AsJson = False) -> None:
    """Tell versions, devices, the native build, and which backend runs each op and why not."""
    facts = examine()
    typer.echo(json.dumps(facts, indent=2) if as_json else describe(facts))


def examine() -> dict[str, Any]:
    """Everything that `doctor` prints, as plain data."""
    built = native.build_info()
    return {
        "versions": {
            "ocvtp-kernels": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            **{name: installed_version(name) or "not installed" for name in PACKAGES},
        },
        "devices": {
            "cpu": {
                "threads": torch.get_num_threads(),
                "capability": torch.backends.cpu.get_cpu_capability(),
            },
            "cuda": [
                {
                    "name": torch.cuda.get_device_name(index),
                    "capability": ".".join(map(str, torch.cuda.get_device_capability(index))),
                }
                for index in range(torch.cuda.device_count())
            ],
        },
        "native": built if isinstance(built, str) else asdict(built),
        "cpu_kernels": native.cpu_kernels(),
        "ops": {
            op: {
                device: {
                    "backend": backends.select_backend(op, device),
                    "why_not": {
                        backend: reason
                        for backend in backends.BACKENDS
                        if (reason := backends.unsupported_reason(op, backend, device)) is not None
                    },
                }
                for device in DEVICES
            }
            for op in backends.registered_ops()
        },
        "composed_ops": dict(COMPOSED),
    }


def describe(facts: dict[str, Any]) -> str:
    """`examine`'s facts as text."""
    lines = ["versions"]
    lines += [f"  {name:15} {version}" for name, version in facts["versions"].items()]
    cpu, gpus = facts["devices"]["cpu"], facts["devices"]["cuda"]
    lines += ["devices", f"  cpu             {cpu['capability']}, {cpu['threads']} threads"]
    lines += [f"  cuda:{i}          {g['name']}, sm {g['capability']}" for i, g in enumerate(gpus)]
    if not gpus:
        lines.append(f"  cuda            torch {facts['versions']['torch']} sees no GPU")
    built = facts["native"]
    lines.append("native build")
    if isinstance(built, str):
        lines.append(f"  {built}")
    else:
        lines += [f"  {name:18} {value}" for name, value in built.items() if value != ""]
    lines.append(f"  {'cpu kernels':18} {facts['cpu_kernels']}")
    lines.append("ops (backend by the tensors' device)")
    lines += [
        f"  {op:30} "
        + "  ".join(f"{device}: {where[device]['backend']:10}" for device in DEVICES).rstrip()
        for op, where in facts["ops"].items()
    ]
    lines += [f"  {op:30} made of {parts}" for op, parts in facts["composed_ops"].items()]
    return "\n".join([*lines, "why not another backend", *_reasons(facts["ops"])])


def _reasons(ops: dict[str, Any]) -> list[str]:
    """Each reason once, with the ops that it applies to."""
    by_reason: dict[str, list[str]] = {}
    for op, where in ops.items():
        for device in DEVICES:
            for reason in where[device]["why_not"].values():
                names = by_reason.setdefault(reason.replace(f"ocvtp::{op} has", "there is"), [])
                names += [] if op in names else [op]
    return [
        f"  {reason} ({'every op' if len(names) == len(ops) else ', '.join(names)})"
        for reason, names in by_reason.items()
    ]
