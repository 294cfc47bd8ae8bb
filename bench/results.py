"""Result files: one JSON per device and kind."""

from __future__ import annotations

import json
import platform
import re
import subprocess
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from bench.ceilings import Ceilings
from bench.gate import CheckResult
from bench.shapes import Workload
from bench.timing import Timing
from ocvtp_kernels.cost.work import Work
from ocvtp_kernels.files import atomic_write
from ocvtp_kernels.installing import installed_version
from ocvtp_kernels.version import __version__

SCHEMA = 1
ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"


@dataclass(frozen=True)
class Row:
    """One variant of one op at one workload; without a time where the gate refused it."""

    op: str
    variant: str
    direction: str  # "forward" or "backward"
    workload: dict[str, Any]
    median_s: float | None
    p20_s: float | None
    p80_s: float | None
    rounds: int
    flops: int
    bytes: int
    tflops: float | None
    gb_s: float | None
    share_of_ceiling: float | None
    gate: CheckResult
    method: str | None = None  # of timing: "graph", "events" or "host"


def row(
    op: str,
    variant: str,
    direction: str,
    load: Workload,
    work: Work,
    ceilings: Ceilings,
    check: CheckResult,
    timing: Timing | None,
) -> Row:
    """A row with its rates; a time without a passed gate is an error."""
    head = (op, variant, direction, asdict(load))
    if timing is None:
        return Row(
            *head, None, None, None, 0, work.flops, work.bytes, None, None, None, check, None
        )
    if not check.passed:
        raise ValueError(f"{op} {variant}: a refused variant gets no time ({check.note})")
    return Row(
        *head,
        timing.median_s,
        timing.p20_s,
        timing.p80_s,
        timing.rounds,
        work.flops,
        work.bytes,
        work.flops / timing.median_s / 1e12,
        work.bytes / timing.median_s / 1e9,
        ceilings.roofline_seconds(work, load.dtype) / timing.median_s,
        check,
        timing.method,
    )


@dataclass(frozen=True)
class EndToEnd:
    """A vision-language model with one selector; None and no stages where it has no figures."""

    model: str
    mode: str  # "eager", or "static": a static cache, with CUDA graphs on a GPU
    selector: str  # "unpruned", "random" or "ocvtp"
    batch: int
    budget: int  # tokens kept of an image
    num_tokens: int
    stages: dict[str, float]  # seconds of encoder, pruner, projector and prefill, timed apart
    ttft_s: float | None  # median of the whole, timed apart from its stages
    ttft_p20_s: float | None
    ttft_p80_s: float | None
    rounds: int
    decode_tokens_per_s: float | None  # of all rows of the batch
    cache_bytes: int | None  # keys and values of the prompt and the new tokens
    pruner_added_s: float | None  # see bench.llava.pruner_added
    note: str  # why there are no figures, or what is special about them; often empty


@dataclass(frozen=True)
class Beside:
    """Published code and ours, in turns in one run on one image: seconds a call."""

    median_s: float  # the published code's
    p20_s: float
    p80_s: float
    ours_median_s: float
    ours_p20_s: float
    ours_p80_s: float
    rounds: int


@dataclass(frozen=True)
class SelectorRow:
    """One selector on a batch at a budget; without times where the gate refused it."""

    method: str
    batch: int
    num_tokens: int
    width: int
    budget: int
    dtype: str
    median_s: float | None  # an image, as all times here but the last two
    p20_s: float | None
    p80_s: float | None
    rounds: int
    graph_median_s: float | None  # of a CUDA graph's replay, where it can be captured
    graph_p20_s: float | None
    graph_p80_s: float | None
    coverage: float | None  # see `ocvtp_kernels.selectors.coverage`, mean over images
    duplicates: int | None  # tokens kept more than once, over all images
    exact: bool | None  # whether every image keeps exactly the budget
    published: Beside | None  # the whole method
    loop: Beside | None  # its greedy loop alone, the matrix given
    gate: CheckResult


@dataclass(frozen=True)
class SettingRow:
    """One way to use the package and plain PyTorch used in the same way; see `bench.settings`."""

    setting: str
    what: str  # the op and its sizes
    threads: int
    unit: str  # of the figures: "s", of CPU time where there is one thread, or "bytes"
    median: float | None  # None where the gate refused it
    p20: float | None
    p80: float | None
    plain_median: float | None
    plain_p20: float | None
    plain_p80: float | None
    rounds: int
    gate: CheckResult


def setting_row(
    name: str,
    what: str,
    threads: int,
    unit: str,
    ours: Timing | None,
    plain: Timing | None,
    check: CheckResult,
) -> SettingRow:
    """A row; a refused one has no figures."""
    mine, theirs = (
        (None, None, None) if one is None else (one.median_s, one.p20_s, one.p80_s)
        for one in (ours, plain)
    )
    rounds = 0 if ours is None else ours.rounds
    return SettingRow(name, what, threads, unit, *mine, *theirs, rounds, check)


@dataclass
class Result:
    """A result file."""

    kind: str  # see bench.run
    device: str
    driver: str | None
    ceilings: Ceilings
    versions: dict[str, str | None] = field(default_factory=lambda: versions())
    commit: str = field(default_factory=lambda: commit())
    date: str = field(
        default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds")
    )
    rows: list[Row] | list[EndToEnd] | list[SelectorRow] | list[SettingRow] = field(
        default_factory=list
    )
    schema: int = SCHEMA

    def save(self, folder: Path) -> Path:
        """Writes ``<kind>.json`` in ``folder`` atomically; returns its path."""
        path = folder / f"{self.kind}.json"
        atomic_write(path, json.dumps(asdict(self), indent=1, allow_nan=False) + "\n")
        return path


def read_ceilings(path: Path, device: str) -> Ceilings:
    """The ceilings of a result file.

    Raises:
        ValueError: it is no result file, or one of another device.
    """
    try:
        top = json.loads(path.read_text(encoding="utf-8"))
        measured_on, ceilings = top["device"], Ceilings(**top["ceilings"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: expected a result file: {error}") from error
    if measured_on != device:
        raise ValueError(f"{path}: expected those of {device}, got those of {measured_on}")
    return ceilings


def device_name(device: torch.device) -> str:
    """The vendor's name of the device; of a CPU with the number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        facts = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        facts = ""
    names = re.findall(r"^model name\s*:\s*(.+)$", facts, re.MULTILINE)
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name}, {torch.get_num_threads()} threads"


def default_folder(device: torch.device) -> Path:
    """``bench/results/<device>``, of letters, digits and dashes."""
    slug = re.sub(r"[^a-z0-9]+", "-", device_name(device).lower()).strip("-")
    return RESULTS / (slug or device.type)


def driver(device: torch.device) -> str | None:
    """The GPU driver's version, if there is one and its tool is there."""
    if device.type != "cuda":
        return None
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    output = _output_of(command)
    return output.splitlines()[0].strip() if output else None


def versions() -> dict[str, str | None]:
    """Versions of the packages that run; None where one is not installed."""
    return {
        "torch": torch.__version__,
        **{name: installed_version(name) for name in ("triton", "transformers")},
        "python": platform.python_version(),
        "ocvtp-kernels": __version__,
    }


def commit() -> str:
    """The commit run, "-dirty" if tracked files differ from it; "unknown" outside a checkout."""
    head = _output_of(["git", "rev-parse", "HEAD"])
    if not head:
        return "unknown"
    changed = _output_of(["git", "status", "--porcelain", "--untracked-files=no"])
    return head.strip() + ("-dirty" if changed else "")


def _output_of(command: list[str]) -> str | None:
    try:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout
