"""The command ``ocvtp``: a module for each command."""

from __future__ import annotations

import typer

from ocvtp_kernels.cli.doctor import doctor
from ocvtp_kernels.cli.evaluate import evaluate
from ocvtp_kernels.cli.features import features
from ocvtp_kernels.cli.flops import flops
from ocvtp_kernels.cli.prune import prune
from ocvtp_kernels.cli.train import train

app = typer.Typer(
    help="Vision-token pruning: see which tokens of a photo are kept.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(prune)
app.command()(doctor)
app.command()(flops)
app.command()(features)
app.command()(train)
app.command()(evaluate)


def main() -> None:
    """Runs the command line."""
    app()
