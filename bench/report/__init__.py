"""Pages and pictures from result files: ``python -m bench report``. It measures nothing itself."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from bench.machine import RESULTS
from bench.report import retention
from bench.report.pages import (
    PICTURES,
    figures_block,
    page,
    readme_block,
    rewrite_between_markers,
)
from bench.results import SUITES, read_all
from ocvtp_kernels.files import atomic_write
from ocvtp_kernels.installing import require_package


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes ``README.md`` and its pictures beside each device's result files.

    Exit code: 0, written; 2, an option or a file is wrong and nothing was written.
    """
    parser = argparse.ArgumentParser(prog="python -m bench report", description=__doc__)
    parser.add_argument(
        "--results", type=Path, default=RESULTS, metavar="DIR", help="of <device>/<suite>.json"
    )
    said = "whose sentences between markers to rewrite"
    parser.add_argument("--readme", type=Path, metavar="FILE", help=said)
    said = "the page of figures, whose tables between markers to rewrite"
    parser.add_argument("--figures", type=Path, metavar="FILE", help=said)
    said = "the page about retention, whose tables between markers to rewrite"
    parser.add_argument("--retention", type=Path, metavar="FILE", help=said)
    given = parser.parse_args(arguments)
    try:
        written = texts(given.results, given.readme, given.figures)
        written |= retention_texts(given.results / retention.FOLDER, given.retention)
    except (ImportError, OSError, ValueError) as error:
        parser.error(str(error))
    for path, content in written.items():
        atomic_write(path, content)
        print(path)
    for folder in {path.parent for path in written if path.suffix == ".png"}:
        for path in (folder / f"{name}.png" for name in PICTURES):
            if path not in written:
                path.unlink(missing_ok=True)
    return 0


def texts(
    results: Path, readme: Path | None = None, figures: Path | None = None
) -> dict[Path, str | bytes]:
    """What stands in every file that the report writes.

    Raises:
        ImportError: there is no matplotlib.
        ValueError: there are no result files, one is malformed, or a page has no markers.
    """
    require_package("matplotlib", "draws the report", "train")
    from bench.report.pictures import pictures, png

    devices = read_all(results)
    if not devices:
        names = ", ".join(f"*/{suite}.json" for suite in SUITES)
        raise ValueError(f"results: expected any of {names} in {results}, found none")
    written: dict[Path, str | bytes] = {}
    blocks = {}
    if readme is not None:
        blocks[readme] = readme_block(devices)
    if figures is not None:
        beside = os.path.relpath(results, figures.parent)
        blocks[figures] = figures_block(devices, beside)
    for path, block in blocks.items():
        try:
            written[path] = rewrite_between_markers(path.read_text("utf-8"), block)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    for device, files in devices.items():
        drawn = {name: png(figure) for name, figure in pictures(files).items()}
        folder = results / device
        written[folder / "README.md"] = page(files, drawn)
        written |= {folder / f"{name}.png": content for name, content in drawn.items()}
    return written


def retention_texts(folder: Path, page: Path | None = None) -> dict[Path, str | bytes]:
    """The page and picture of the result files about retention, if any, and docs/retention.md.

    Raises:
        ImportError: there is no matplotlib.
        ValueError: a file is malformed, or a page is given that has no markers or nothing to tell.
    """
    require_package("matplotlib", "draws the report", "train")
    from bench.report import pictures

    files = retention.read_files(folder)
    if page is not None:
        if not files:
            raise ValueError(f"results: expected *.json in {folder}, found none")
        beside = os.path.relpath(folder, page.parent)
        text = rewrite_between_markers(page.read_text("utf-8"), retention.block(files, beside))
    written: dict[Path, str | bytes] = {} if page is None else {page: text}
    if files:
        written[folder / "README.md"] = retention.page(files)
        written[folder / retention.PICTURE] = pictures.png(pictures.retention(files))
    return written
