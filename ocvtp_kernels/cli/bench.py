"""``ocvtp bench``: from the benchmark's result files to a report, tables and projections."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ocvtp_kernels.cli.options import exit_if_misused
from ocvtp_kernels.files import atomic_write
from ocvtp_kernels.installing import require_package

REPORT, PROJECTIONS = Path("bench/report.html"), Path("docs/projections.md")


def bench(
    report: Annotated[bool, typer.Option("--report", help="Write the report page.")] = False,
    projections: Annotated[
        bool, typer.Option("--projections", help="Write the page of projections.")
    ] = False,
    results: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder of <device>/<kind>.json.")
    ] = Path("bench/results"),
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help=f"What to write; {REPORT}, or {PROJECTIONS}, if left out."
        ),
    ] = None,
    readme: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="With --report: file whose tables between markers to rewrite."
        ),
    ] = None,
    counts: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="With --projections: JSON of counted kernel costs."),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="With --projections: JSON of modelled kernel times."),
    ] = None,
) -> None:
    """Report benchmark results, or project them from datasheets. It measures nothing itself.

    Exit code: 0, written; 2, an option or a file is wrong and nothing was written.
    """
    from ocvtp_kernels.report.modelled import read_model
    from ocvtp_kernels.report.page import page
    from ocvtp_kernels.report.projections import projections_page, read_counts
    from ocvtp_kernels.report.results import KINDS, read_results
    from ocvtp_kernels.report.tables import readme_tables, rewrite_between_markers

    with exit_if_misused("bench"):
        if report == projections:
            raise ValueError("expected one of --report and --projections (`make bench` measures)")
        if projections and readme is not None:
            raise ValueError("readme: goes with --report")
        if report and counts is not None:
            raise ValueError("counts: goes with --projections")
        if report and model is not None:
            raise ValueError("model: goes with --projections")
        if readme is not None and readme.resolve() == (output or REPORT).resolve():
            raise ValueError(f"readme: expected another file than the report's, got {readme}")
        files = read_results(results)
        texts: dict[Path, str] = {}
        if projections:
            counted = {} if counts is None else read_counts(counts)
            modelled = {} if model is None else read_model(model)
            texts[output or PROJECTIONS] = projections_page(files, counted, modelled)
        else:
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
