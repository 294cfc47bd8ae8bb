"""The records of result files, ``<results>/<device>/<suite>.json``: one code writes and reads them.

Every record checks itself as it is made, so a file that was read holds what a run may write.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from bench.workloads import Workload
from ocvtp_kernels.cost.work import Work
from ocvtp_kernels.files import atomic_write

SCHEMA = 2
Direction = Literal["forward", "backward"]
Method = Literal["graph", "events", "host", "cpu"]
Stage = Literal["encoder", "pruner", "projector", "prefill"]
Suite = Literal[
    "prune",
    "compile",
    "ops",
    "usage",
    "host",
    "processes",
    "attach",
    "merging",
    "e2e",
    "selectors",
    "ceilings",
]
STAGES: tuple[Stage, ...] = get_args(Stage)
SUITES: tuple[Suite, ...] = get_args(Suite)  # in the order of the report
OURS = "ocvtp"  # the variant that is this package's


class ResultError(ValueError):
    """A result file is malformed; the message names the file and the field."""


@dataclass(frozen=True)
class CheckResult:
    """What the correctness gate found: whether it passed, and its accuracy or its error."""

    passed: bool
    note: str


@dataclass(frozen=True)
class Times:
    """Seconds per call (bytes, of memory) over rounds: median, 20th and 80th percentile.

    Attributes:
        method: a CUDA graph's replay; calls between CUDA events, which count the host where it is
            the slower; the host's clock; or CPU time of the process.
        note: why there is no graph where one was asked for.
    """

    median: float
    p20: float
    p80: float
    rounds: int
    method: Method = "host"
    note: str = ""

    def __post_init__(self) -> None:
        if not 0 < self.p20 <= self.median <= self.p80:
            raise ValueError(
                f"expected 0 < p20 <= median <= p80, got {self.p20}, {self.median}, {self.p80}"
            )

    def over(self, count: int) -> Times:
        """The same for each of ``count`` images of a call."""
        median, p20, p80 = (value / count for value in (self.median, self.p20, self.p80))
        return replace(self, median=median, p20=p20, p80=p80)


@dataclass(frozen=True)
class Versus:
    """A baseline and ours in turns; a ratio is the baseline's over ours: above 1, ours wins."""

    theirs: Times
    ours: Times

    @property
    def ratio(self) -> float:
        """Of the medians."""
        return self.theirs.median / self.ours.median

    @property
    def low(self) -> float:
        """The ratio at its worst: their 20th percentile over our 80th."""
        return self.theirs.p20 / self.ours.p80

    @property
    def high(self) -> float:
        """The ratio at its best: their 80th percentile over our 20th."""
        return self.theirs.p80 / self.ours.p20

    @property
    def is_within_spread(self) -> bool:
        """Whether 1 lies inside the spread, so that another run may reverse it."""
        return self.low <= 1 <= self.high


@dataclass(frozen=True)
class Ceilings:
    """Measured rates of the device: copying (read + write) and large matrix products."""

    copy_gb_s: float
    matmul_tflops: dict[str, float] = field(default_factory=dict)

    def roofline_seconds(self, work: Work, dtype: str) -> float:
        """The larger of the times of FLOPs and bytes.

        Products run at the dtype's rate or, where that is higher, at that of float32.
        """
        rate = max(self.matmul_tflops.get(name, 0.0) for name in (dtype, "float32"))
        return max(work.flops / (rate * 1e12), work.bytes / (self.copy_gb_s * 1e9))


@dataclass(frozen=True)
class OpRow:
    """One variant of one op at one workload; without times where the gate refused it."""

    op: str
    variant: str
    direction: Direction
    workload: Workload
    work: Work
    gate: CheckResult
    times: Times | None

    def __post_init__(self) -> None:
        _require_gated(self.gate, self.times)

    @property
    def key(self) -> tuple[object, ...]:
        """Unique among the rows of a file; the method is last."""
        return *self.case, self.variant, self.times and self.times.method

    @property
    def case(self) -> tuple[str, Direction, Workload]:
        """What all variants of a comparison share."""
        return self.op, self.direction, self.workload

    @property
    def taken(self) -> Times:
        """The times of a row that has some."""
        assert self.times is not None
        return self.times

    @property
    def is_ours(self) -> bool:
        """Whether this is this package's variant."""
        return self.variant == OURS


@dataclass(frozen=True)
class ModelTimes:
    """Measurements of a whole model.

    Attributes:
        ttft: to the first token, from pixels and ids on the device.
        stages: seconds, each timed apart from the whole.
        decode_tokens_per_s: of all rows of the batch.
        cache_bytes: keys and values of the prompt and the new tokens.
        pruner_added_s: to the encoder, over choosing at random; noise may turn it negative.
    """

    ttft: Times
    stages: dict[Stage, float]
    decode_tokens_per_s: float
    cache_bytes: int
    pruner_added_s: float | None


@dataclass(frozen=True)
class ModelRow:
    """A vision-language model with one selector; the note says why there are no times."""

    model: str
    mode: Literal["eager", "static"]  # static: a static cache, with CUDA graphs on a GPU
    selector: Literal["unpruned", "random", "ocvtp"]
    batch: int
    budget: int  # tokens kept of an image
    num_tokens: int
    times: ModelTimes | None
    note: str  # or what is special about the times; often empty

    def __post_init__(self) -> None:
        if self.times is None and not self.note:
            raise ValueError("note: expected a reason why there are no times")

    @property
    def key(self) -> tuple[object, ...]:
        """Unique among the rows of a file."""
        return self.model, self.mode, self.selector, self.batch, self.budget, self.num_tokens

    @property
    def is_pruned(self) -> bool:
        """Whether tokens were dropped."""
        return self.selector != "unpruned"


@dataclass(frozen=True)
class Quality:
    """What a selector kept, right or wrong.

    Attributes:
        coverage: see `ocvtp_kernels.selectors.coverage`, mean over images.
        duplicates: kept again though kept already, over all images.
        exact: whether every image keeps exactly T distinct tokens.
    """

    coverage: float
    duplicates: int
    exact: bool


@dataclass(frozen=True)
class SelectorRow:
    """One selector on a batch at a budget; times are of one image of the batch.

    Attributes:
        graph: of a CUDA graph's replay, where it can be captured.
        quality: None where it fails.
        published: published code and ours on one image; loop: the greedy loop alone.
    """

    method: str
    batch: int
    num_tokens: int
    width: int
    budget: int
    dtype: str
    gate: CheckResult
    times: Times | None
    graph: Times | None
    quality: Quality | None
    published: Versus | None
    loop: Versus | None

    def __post_init__(self) -> None:
        _require_gated(self.gate, self.times)

    @property
    def key(self) -> tuple[object, ...]:
        """Unique among the rows of a file."""
        return self.method, self.batch, self.size

    @property
    def size(self) -> tuple[int, int, int, str]:
        """What the methods of one table share: N, T, C and the dtype."""
        return self.num_tokens, self.budget, self.width, self.dtype


@dataclass(frozen=True)
class ProcessRow:
    """What a process or a call takes, and the same with plain PyTorch: seconds, or bytes."""

    name: str
    what: str
    unit: Literal["s", "bytes"]
    versus: Versus

    @property
    def key(self) -> tuple[object, ...]:
        """Unique among the rows of a file."""
        return self.name, self.what


Row = OpRow | ModelRow | SelectorRow | ProcessRow
# Of the other suites `OpRow`.
ROWS: dict[str, type[Row]] = {
    "e2e": ModelRow,
    "selectors": SelectorRow,
    "processes": ProcessRow,
    "attach": ProcessRow,
    "merging": ProcessRow,
}


@dataclass
class Results:
    """A result file: where and with what it was measured, and its rows."""

    suite: Suite
    device: str
    driver: str | None
    ceilings: Ceilings
    versions: dict[str, str | None]  # None: not installed
    commit: str
    date: str = field(
        default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds")
    )
    rows: list[Row] = field(default_factory=list)
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        datetime.fromisoformat(self.date.replace("Z", "+00:00"))
        if self.schema != SCHEMA:
            raise ValueError(f"schema: expected {SCHEMA}, got {self.schema}")

    def op_rows(self) -> list[OpRow]:
        """Its rows of ops."""
        return [row for row in self.rows if isinstance(row, OpRow)]

    def share_of_ceiling(self, row: OpRow) -> float | None:
        """The time at the device's measured rates over the row's; None without a time."""
        if row.times is None:
            return None
        seconds = self.ceilings.roofline_seconds(row.work, row.workload.compute_dtype)
        return seconds / row.times.median

    def save(self, folder: Path) -> Path:
        """Writes ``<suite>.json`` in ``folder`` atomically; returns its path."""
        path = folder / f"{self.suite}.json"
        atomic_write(path, json.dumps(asdict(self), indent=1, allow_nan=False) + "\n")
        return path


def read_json(path: Path) -> Any:
    """What a file of JSON holds.

    Raises:
        ResultError: it cannot be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ResultError(f"{path}: cannot be read: {error}") from error


def read_results(path: Path) -> Results:
    """A result file.

    Raises:
        ResultError: it cannot be read, or something in it is not what a run writes.
    """
    top = read_json(path)
    row_type: Any = ROWS.get(path.stem, OpRow)
    found: Results = parse(Results, top, str(path), rows=list[row_type])
    if found.suite != path.stem:
        raise ResultError(f"{path}: suite: expected {path.stem!r}, got {found.suite!r}")
    first: dict[tuple[object, ...], int] = {}
    for i, row in enumerate(found.rows):
        if (j := first.setdefault(row.key, i)) != i:
            raise ResultError(f"{path}: rows[{i}]: the same measurement as rows[{j}]")
    return found


def read_all(folder: Path) -> dict[str, list[Results]]:
    """Every result file under ``folder`` by its device's folder; suites in the report's order.

    Raises:
        ResultError: one is malformed.
    """
    found: dict[str, list[Results]] = {}
    for device in sorted(folder.glob("*/")):
        paths = (device / f"{suite}.json" for suite in SUITES)
        if files := [read_results(path) for path in paths if path.exists()]:
            found[device.name] = files
    return found


T = TypeVar("T")
KINDS: dict[Any, str] = {
    str: "a text",
    bool: "true or false",
    int: "an integer",
    float: "a number",
    list: "a list",
    dict: "an object",
}


def parse(hint: Any, value: Any, where: str, **instead: Any) -> Any:
    """A value of JSON as a type hint describes it.

    Args:
        hint: one of `KINDS`, a Literal, ``X | None``, or a dataclass of these.
        value: from JSON.
        where: the file and the field, for messages.
        instead: hints of a dataclass' fields that take the place of its own.

    Raises:
        ResultError: the value is something else.
    """
    kind, arguments = get_origin(hint) or hint, get_args(hint)
    if kind in (Union, UnionType):
        return None if value is None else parse(arguments[0], value, where)
    if kind is Literal:
        return _require(value in arguments, where, f"one of {', '.join(arguments)}", value)
    if kind is float and type(value) is int:
        value = float(value)
    is_record = is_dataclass(kind)
    plain: Any = dict if is_record else kind
    fits = type(value) is plain and (plain is not float or math.isfinite(value))
    _require(fits, where, KINDS[plain], value)
    if kind is list:
        return [parse(arguments[0], one, f"{where}[{i}]") for i, one in enumerate(value)]
    start = where + (": " if where.endswith(".json") else ".")
    if kind is dict:
        names, of = arguments
        return {parse(names, k, where): parse(of, one, start + k) for k, one in value.items()}
    if not is_record:
        return value
    hints = get_type_hints(kind) | instead
    for one in fields(kind):
        if not (one.name in value or one.default is not MISSING or callable(one.default_factory)):
            raise ResultError(f"{start}{one.name}: missing")
    given = {k: parse(of, value[k], start + k) for k, of in hints.items() if k in value}
    try:
        return kind(**given)
    except ValueError as error:
        raise ResultError(f"{where}: {error}") from error


def _require(holds: bool, where: str, expected: str, value: T) -> T:
    if not holds:
        raise ResultError(f"{where}: expected {expected}, got {repr(value)[:80]}")
    return value


def _require_gated(gate: CheckResult, times: Times | None) -> None:
    if gate.passed == (times is None):
        raise ValueError(
            "times: expected them with a passed gate and not without, got "
            f"{'none' if times is None else 'some'} ({gate.note})"
        )


def graph_first(rows: Sequence[OpRow]) -> list[OpRow]:
    """Of each variant's rows at a workload, that of a graph's replay where there is one."""
    replayed = {row.key[:-1] for row in rows if row.key[-1] == "graph"}
    return [row for row in rows if row.key[-1] == "graph" or row.key[:-1] not in replayed]
