"""``ocvtp bench``: from the benchmark's result files to a report and tables."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ocvtp_kernels.cli.options import exit_if_misused
from ocvtp_kernels.files import atomic_write
from ocvtp_kernels.installing import require_package

REPORT = Path("bench/report.html")


def bench(
    report: Annotated[bool, typer.Option("--report", help="Write the report page.")] = False,
    results: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder of <device>/<kind>.json.")
    ] = Path("bench/results"),
    output: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help=f"What to write; {REPORT} if left out."),
    ] = None,
    readme: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="With --report: file whose tables between markers to rewrite."
        ),
    ] = None,
) -> None:
    """Report benchmark results. It measures nothing itself.

    Exit code: 0, written; 2, an option or a file is wrong and nothing was written.
    """
    from ocvtp_kernels.report.page import page
    from ocvtp_kernels.report.results import KINDS, read_results
    from ocvtp_kernels.report.tables import readme_tables, rewrite_between_markers

    with exit_if_misused("bench"):
        if not report:
            raise ValueError("expected --report (`make bench` measures)")
        if readme is not None and readme.resolve() == (output or REPORT).resolve():
            raise ValueError(f"readme: expected another file than the report's, got {readme}")
        files = read_results(results)
        texts: dict[Path, str] = {}
        if not files:
            names = ", ".join(f"*/{kind}.json" for kind in KINDS)
            raise ValueError(f"results: expected any of {names} in {results}, found none")
        require_package("matplotlib", "draws the report", "train")
        texts[output or REPORT] = page(files)
        if readme is not None:
            text = readme.read_text(encoding="utf-8")
            try:
                texts[readme] = rewrite_between_markers(text, readme_tables(files))
            except ValueError as error:
                raise ValueError(f"{readme}: {error}") from error
    for path, text in texts.items():
        atomic_write(path, text)
        typer.echo(path)
