"""Figures as text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from bench.results import Results, Times, Versus
from bench.workloads import Workload

CLOCKS = {"graph": ", by graph", "events": ", launched", "cpu": ", CPU time"}
PUBLISHED_IN_DIM, PUBLISHED_SLOT_DIM = 1024, 512


def duration(seconds: float) -> str:
    """A time to three digits, in the unit that suits it."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= 0.9995 * scale:
            return f"{three_digits(seconds / scale)} {unit}"
    return f"{three_digits(seconds / 1e-9)} ns"


def three_digits(value: float) -> str:
    """Three significant digits, never in powers of ten."""
    if value == 0 or value >= 99.95:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"


def megabytes(value: float) -> str:
    """Bytes of memory."""
    return f"{value / 1e6:.0f} MB"


def tflops_text(value: float) -> str:
    """A rate of arithmetic, given in TFLOP/s."""
    large = f"{three_digits(value)} TFLOP/s"
    return large if value >= 1 else f"{three_digits(value * 1e3)} GFLOP/s"


def bandwidth_text(gb_s: float) -> str:
    """A rate of memory traffic, given in GB/s."""
    return f"{three_digits(gb_s / 1e3)} TB/s" if gb_s >= 1e3 else f"{three_digits(gb_s)} GB/s"


def tokens_per_s(seconds: float) -> str:
    """The rate of decoding, from the time of a token."""
    return f"{three_digits(1 / seconds)} tokens/s"


def times_text(times: Times) -> str:
    """Median, then the 20th to 80th percentile."""
    median, low, high = (duration(t) for t in (times.median, times.p20, times.p80))
    unit = f" {median.split()[1]}"
    if low.endswith(unit) and high.endswith(unit):
        low, high = low.removesuffix(unit), high.removesuffix(unit)
    return f"{median} ({low} to {high})"


def ratio_text(versus: Versus) -> str:
    """The ratio with its spread."""
    low, mid, high = (three_digits(r) for r in (versus.low, versus.ratio, versus.high))
    return f"{mid}× ({low} to {high})"


def clock_text(method: str | None) -> str:
    """How a time was taken, after a comma; nothing for the host's clock."""
    return CLOCKS.get(method or "", "")


def workload_text(workload: Workload, dtype: bool = True) -> str:
    """Sizes in the project's letters, and the way it is used where that is not the usual one."""
    w = workload
    parts = [f"B {w.batch}", f"N {w.num_tokens}", f"K {w.num_slots}"]
    parts += [] if w.budget == w.num_slots else [f"T {w.budget}"]
    widths = (("C", w.in_dim, PUBLISHED_IN_DIM), ("D", w.slot_dim, PUBLISHED_SLOT_DIM))
    parts += [f"{name} {size}" for name, size, usual in widths if size != usual]
    return " · ".join([*parts, *([w.dtype] if dtype else []), *usage_texts(w)])


def usage_texts(workload: Workload) -> list[str]:
    """The mode and the threads, where they are not the usual ones."""
    mode, threads = workload.mode, workload.threads
    said = [] if mode == "no_grad" else [mode]
    return said + ([] if threads is None else [f"{threads} thread{'s' if threads > 1 else ''}"])


def provenance(file: Results) -> str:
    """Driver, versions, commit and date of a result file."""
    driver = f"driver {file.driver}" if file.driver else "no driver"
    return f"{driver}; {versions_text(file.versions, file.commit)}; {file.date}"


def versions_text(versions: Mapping[str, str | None], commit: str) -> str:
    """What ran."""
    named = ", ".join(f"{name} {version or 'not installed'}" for name, version in versions.items())
    head, dash, dirty = commit.partition("-")
    return f"{named}; commit {head[:12]}{dash}{dirty}"


def bullets(sentences: Iterable[str]) -> str:
    """A Markdown list."""
    return "\n".join(f"* {sentence}" for sentence in sentences)


def folded(title: str, table: str) -> str:
    """A table that opens at a click."""
    return f"<details><summary>{title}</summary>\n\n{table}\n\n</details>"
