"""What several commands share: exit codes, checks and options."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

FAILED, MISUSED = 1, 2

Model = Annotated[
    str | None,
    typer.Option(
        metavar="HUB_ID_OR_DIR",
        help="Hugging Face model whose vision tower makes the tokens; a weight-free patch"
        " descriptor if left out.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


@contextmanager
def exit_if_misused(command: str) -> Iterator[None]:
    """Ends the command where an option, a file or an installation is wrong, saying what."""
    try:
        yield
    except (ValueError, OSError, ImportError) as error:
        typer.echo(f"ocvtp {command}: {error}", err=True)
        raise typer.Exit(MISUSED) from error


def require_folder(output: Path) -> None:
    """Raises ValueError where there is a file in the folder's place."""
    if output.exists() and not output.is_dir():
        raise ValueError(f"output: expected a folder, got a file: {output}")
