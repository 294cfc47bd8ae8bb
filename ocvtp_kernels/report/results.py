"""The benchmark's result files, ``<results>/<device>/<kind>.json``, read with types.

A file that does not fit schema 1 is an error that names the file and the field.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from ocvtp_kernels.report import selectors, settings
from ocvtp_kernels.report.fields import Field, ResultError, Times, load_json, read_times
from ocvtp_kernels.report.selectors import SelectorRow
from ocvtp_kernels.report.settings import SettingRow

SCHEMA = 1
OP_KINDS = ("prune", "compile", "micro")  # files of rows of ops
KINDS = (*OP_KINDS, "settings", "e2e", "selectors")  # in the order of the report
PIPELINE = ("prune", "forward")
DIRECTIONS = ("forward", "backward")
STAGES = ("encoder", "pruner", "projector", "prefill")
MODES = ("eager", "static")
SELECTORS = ("unpruned", "random", "ocvtp")
METHODS = ("graph", "events", "host")


class Workload(NamedTuple):
    """Sizes that an op was timed at; None where the op has no such size."""

    batch: int
    num_tokens: int
    num_slots: int | None
    budget: int | None
    in_dim: int | None
    slot_dim: int | None
    dtype: str


@dataclass(frozen=True)
class MicroRow:
    """One variant of one op on one workload."""

    op: str
    variant: str
    direction: str
    workload: Workload
    times: Times | None  # None: refused by the correctness gate
    flops: float | None  # per call
    bytes: float | None  # per call, the minimum that must move
    tflops: float | None
    gb_s: float | None
    share_of_ceiling: float | None
    gate_note: str
    method: str | None  # how it was timed, of `METHODS`; None: refused, or an older file

    @property
    def key(self) -> tuple[object, ...]:
        """Unique among the rows of a file; the method is last."""
        return self.op, self.variant, self.direction, self.workload, self.method

    @property
    def is_ours(self) -> bool:
        """Whether this is this package's variant."""
        return self.variant in ("prune", "ocvtp")

    @property
    def shown_variant(self) -> str:
        """The variant's name for a reader: ours is "ocvtp" for every op."""
        return "ocvtp" if self.is_ours else self.variant

    @property
    def is_pipeline(self) -> bool:
        """Whether this is `prune`, forward."""
        return (self.op, self.direction) == PIPELINE


class EndToEndTimes(NamedTuple):
    """Measurements of a whole model."""

    ttft: Times  # until the first token
    stages: dict[str, float]  # seconds by `STAGES`, timed apart from the whole
    decode_tokens_per_s: float
    cache_bytes: int
    pruner_added_s: float | None  # noise may turn it negative; None: not this selector's


class EndToEndRow(NamedTuple):
    """One model with one selector at one batch and budget, in one mode."""

    model: str
    mode: str
    selector: str
    batch: int
    budget: int
    num_tokens: int
    times: EndToEndTimes | None  # None: the note says why
    note: str

    @property
    def is_pruned(self) -> bool:
        """Whether tokens were dropped."""
        return self.selector != "unpruned"


@dataclass(frozen=True)
class ResultFile:
    """One result file and where it came from."""

    path: Path
    kind: str
    device: str
    driver: str | None
    versions: dict[str, str]
    commit: str
    date: str
    copy_gb_s: float | None  # measured
    matmul_tflops: dict[str, float]  # measured, by dtype
    micro: tuple[MicroRow, ...] = ()
    e2e: tuple[EndToEndRow, ...] = ()
    selectors: tuple[SelectorRow, ...] = ()
    settings: tuple[SettingRow, ...] = ()

    @property
    def name(self) -> str:
        """Device folder and kind, unique among files."""
        return f"{self.path.parent.name}/{self.kind}"

    def measured(self) -> list[MicroRow]:
        """The rows that passed the gate."""
        return [row for row in self.micro if row.times is not None]

    def refused(self) -> list[MicroRow]:
        """The rows that did not."""
        return [row for row in self.micro if row.times is None]


def read_results(folder: Path) -> dict[str, list[ResultFile]]:
    """Every result file under ``folder``, by the name of its device folder, both sorted.

    Raises:
        ResultError: a file is malformed.
    """
    results: dict[str, list[ResultFile]] = {}
    for path in sorted(folder.glob("*/*.json")):
        if path.stem in KINDS:
            results.setdefault(path.parent.name, []).append(read_result(path))
    return results


def read_result(path: Path) -> ResultFile:
    """One result file.

    Raises:
        ResultError: it is malformed.
    """
    top = load_json(path)
    if (schema := top.get("schema")).count() != SCHEMA:
        raise schema.wrong(f"schema {SCHEMA}")
    kind = top.get("kind").text(KINDS)
    if kind != path.stem:
        raise top.get("kind").wrong(f"{path.stem!r}, after which the file is named")
    driver, rows, date = top.get("driver"), top.get("rows").items(), top.get("date")
    try:
        datetime.fromisoformat(date.text().replace("Z", "+00:00"))
    except ValueError as error:
        raise date.wrong("an ISO date") from error
    ceilings = top.get("ceilings") if kind in OP_KINDS else None
    micro = tuple(_micro_row(row) for row in rows) if kind in OP_KINDS else ()
    e2e = tuple(_end_to_end_row(row) for row in rows) if kind == "e2e" else ()
    by_method = tuple(map(selectors.read_row, rows)) if kind == "selectors" else ()
    by_setting = tuple(map(settings.read_row, rows)) if kind == "settings" else ()
    keys: list[tuple[object, ...]] = [row.key for row in micro]
    keys += [row[:6] for row in e2e]
    keys += [row.key for row in by_method]
    keys += [row.key for row in by_setting]
    seen: dict[tuple[object, ...], int] = {}
    for index, key in enumerate(keys):
        if (first := seen.setdefault(key, index)) != index:
            raise ResultError(f"{path}: rows[{index}]: the same measurement as rows[{first}]")
    return ResultFile(
        path=path,
        kind=kind,
        device=top.get("device").text(),
        driver=None if driver.value is None else driver.text(),
        versions={
            name: "not installed" if field.value is None else field.text()
            for name, field in top.get("versions").members().items()
        },
        commit=top.get("commit").text(),
        date=date.text(),
        copy_gb_s=ceilings.get("copy_gb_s").optional_number() if ceilings else None,
        matmul_tflops={
            name: field.number()
            for name, field in (ceilings.get("matmul_tflops").members() if ceilings else {}).items()
        },
        micro=micro,
        e2e=e2e,
        selectors=by_method,
        settings=by_setting,
    )


def pipeline_file(files: Sequence[ResultFile]) -> ResultFile | None:
    """Of a device's files one with times of our `prune` forward; prune.json is preferred."""
    for kind in ("prune", "micro", "compile"):
        for file in files:
            if file.kind == kind and any(r.is_ours and r.is_pipeline for r in file.measured()):
                return file
    return None


def graph_first(rows: Iterable[MicroRow]) -> list[MicroRow]:
    """Of each variant's rows at a workload, that of a graph's replay where there is one."""
    rows = list(rows)
    replayed = {row.key[:-1] for row in rows if row.method == "graph"}
    return [row for row in rows if row.method == "graph" or row.key[:-1] not in replayed]


def _micro_row(row: Field) -> MicroRow:
    size, gate, method = row.get("workload"), row.get("gate"), row.members().get("method")
    times = None
    # Without a passed correctness check a time is ignored: the row is refused.
    if gate.get("passed").flag():
        times = read_times(row, "median_s", "p20_s", "p80_s")
    elif method is not None and method.value is None:
        method = None
    return MicroRow(
        op=row.get("op").text(),
        variant=row.get("variant").text(),
        direction=row.get("direction").text(DIRECTIONS),
        workload=Workload(
            batch=size.get("batch").count(),
            num_tokens=size.get("num_tokens").count(),
            num_slots=size.get("num_slots").optional_count(),
            budget=size.get("budget").optional_count(),
            in_dim=size.get("in_dim").optional_count(),
            slot_dim=size.get("slot_dim").optional_count(),
            dtype=size.get("dtype").text(),
        ),
        times=times,
        flops=row.get("flops").optional_number(),
        bytes=row.get("bytes").optional_number(),
        tflops=row.get("tflops").optional_number(),
        gb_s=row.get("gb_s").optional_number(),
        share_of_ceiling=row.get("share_of_ceiling").optional_number(),
        gate_note=gate.get("note").string(),
        method=None if method is None else method.text(METHODS),
    )


def _end_to_end_row(row: Field) -> EndToEndRow:
    ttft, note = row.get("ttft_s"), row.get("note")
    times = None
    if ttft.value is None:
        note.text()
    else:
        stages = row.get("stages")
        times = EndToEndTimes(
            read_times(row, "ttft_s", "ttft_p20_s", "ttft_p80_s"),
            {stage: stages.get(stage).number() for stage in STAGES},
            row.get("decode_tokens_per_s").seconds(),
            row.get("cache_bytes").count(),
            row.get("pruner_added_s").optional_signed(),
        )
    return EndToEndRow(
        model=row.get("model").text(),
        mode=row.get("mode").text(MODES),
        selector=row.get("selector").text(SELECTORS),
        batch=row.get("batch").count(),
        budget=row.get("budget").count(),
        num_tokens=row.get("num_tokens").count(),
        times=times,
        note=note.string(),
    )
