"""Figures as text."""

from __future__ import annotations

from collections.abc import Iterable

from ocvtp_kernels.report.fields import Times


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


def times_text(times: Times) -> str:
    """Median, then the 20th to 80th percentile."""
    median, low, high = (duration(t) for t in (times.median, times.p20, times.p80))
    unit = f" {median.split()[1]}"
    if low.endswith(unit) and high.endswith(unit):
        low, high = low.removesuffix(unit), high.removesuffix(unit)
    return f"{median} ({low} to {high})"


def bullets(sentences: Iterable[str]) -> str:
    """A Markdown list."""
    return "\n".join(f"* {sentence}" for sentence in sentences)
