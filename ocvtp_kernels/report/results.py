"""The benchmark's result files, ``<results>/<device>/<kind>.json``, read with types.

A file that does not fit schema 1 is an error that names the file and the field.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from ocvtp_kernels.report.fields import (
    GATED,
    IN_SECONDS,
    Amount,
    Gate,
    Members,
    ResultError,
    Seconds,
    Text,
    Times,
    load_json,
    read,
)
from ocvtp_kernels.report.selectors import SelectorRow
from ocvtp_kernels.report.settings import SettingRow

Kind = Literal["prune", "compile", "micro", "settings", "e2e", "selectors"]
Stage = Literal["encoder", "pruner", "projector", "prefill"]
KINDS: tuple[str, ...] = get_args(Kind)  # in the order of the report
OP_KINDS = KINDS[:3]  # files of rows of ops
STAGES: tuple[Stage, ...] = get_args(Stage)
PIPELINE = ("prune", "forward")


@dataclass(frozen=True)
class Workload:
    """Sizes that an op was timed at; None where the op has no such size."""

    batch: int
    num_tokens: int
    num_slots: int | None
    budget: int | None
    in_dim: int | None
    slot_dim: int | None
    dtype: Text


@dataclass(frozen=True)
class MicroRow:
    """One variant of one op on one workload."""

    op: Text
    variant: Text
    direction: Literal["forward", "backward"]
    workload: Workload
    times: Annotated[Times | None, GATED, IN_SECONDS]  # None: refused by the correctness gate
    flops: Amount | None  # per call
    bytes: Amount | None  # per call, the minimum that must move
    tflops: Amount | None
    gb_s: Amount | None
    share_of_ceiling: Amount | None
    gate: Gate
    # How it was timed; None: refused, or an older file.
    method: Literal["graph", "events", "host"] | None = None

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


Rows = Sequence[MicroRow]


@dataclass(frozen=True)
class EndToEndTimes:
    """Measurements of a whole model."""

    ttft: Annotated[Times, Members(Times, ("ttft_s", "ttft_p20_s", "ttft_p80_s"))]  # first token
    stages: dict[Stage, Amount]  # seconds, timed apart from the whole
    decode_tokens_per_s: Seconds
    cache_bytes: int
    pruner_added_s: float | None  # noise may turn it negative; None: not this selector's


@dataclass(frozen=True)
class EndToEndRow:
    """One model with one selector at one batch and budget, in one mode."""

    model: Text
    mode: Literal["eager", "static"]
    selector: Literal["unpruned", "random", "ocvtp"]
    batch: int
    budget: int
    num_tokens: int
    times: Annotated[EndToEndTimes | None, Members(EndToEndTimes, ("ttft_s",), is_optional=True)]
    note: str  # says why there are no times

    @property
    def key(self) -> tuple[object, ...]:
        """Unique among the rows of a file."""
        return self.model, self.mode, self.selector, self.batch, self.budget, self.num_tokens

    @property
    def is_pruned(self) -> bool:
        """Whether tokens were dropped."""
        return self.selector != "unpruned"


@dataclass(frozen=True)
class Ceilings:
    """Rates measured on a device."""

    copy_gb_s: Amount | None
    matmul_tflops: dict[str, Amount]  # by dtype


@dataclass(frozen=True)
class Header:
    """Where the rows of a result file came from."""

    kind: Kind
    device: Text
    driver: Text | None
    versions: dict[str, Text | None]  # None: not installed
    commit: Text
    date: Text
    ceilings: Ceilings


@dataclass(frozen=True)
class ResultFile(Header):
    """One result file; all but one of the tuples of rows are empty."""

    path: Path
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


ROWS: dict[str, type] = {
    "micro": MicroRow,
    "e2e": EndToEndRow,
    "selectors": SelectorRow,
    "settings": SettingRow,
}


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
    if read(Kind, top.get("kind")) != path.stem:
        raise top.get("kind").wrong(f"{path.stem!r}, after which the file is named")
    header: Header = read(Header, top)
    try:
        datetime.fromisoformat(header.date.replace("Z", "+00:00"))
    except ValueError as error:
        raise top.get("date").wrong("an ISO date") from error
    name: str = "micro" if header.kind in OP_KINDS else header.kind
    rows: list[Any] = []
    seen: dict[tuple[object, ...], int] = {}
    for index, field in enumerate(top.get("rows").items()):
        row = read(ROWS[name], field)
        if name == "e2e" and row.times is None:
            read(Text, field.get("note"))  # it says why
        # Older files have no method; where there is one, only a refused row's is null.
        if name == "micro" and row.times is not None and "method" in field.members():
            read(Text, field.get("method"))
        if (first := seen.setdefault(row.key, index)) != index:
            raise ResultError(f"{path}: {field.field_path}: the same measurement as rows[{first}]")
        rows.append(row)
    given: dict[str, Any] = vars(header) | {"path": path, name: tuple(rows)}
    return ResultFile(**given)


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
