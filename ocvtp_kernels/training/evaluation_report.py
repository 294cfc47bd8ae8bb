"""Results of an evaluation as a table and as a picture."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from ocvtp_kernels.files import atomic_write
from ocvtp_kernels.markdown import markdown_table
from ocvtp_kernels.training.evaluation import ERRORS, RANDOM, Measures, Result
from ocvtp_kernels.training.log import GRID, INK

TITLES = {
    "decoded": "error of the decoder shown the kept tokens",
    "nearest": "error of the nearest kept token",
    "farthest": "the same of the farthest twentieth of the tokens",
    "coverage": "coverage (higher is better)",
}
ROUNDING = 1e-12
CHOSEN_BY = "farthest"  # of the measures, the one that a reference layer is chosen by
COLOURS = ("#d9480f", "#3b6fb6", "#0f8b7d", "#8a5bb5", "#a8791a", "#c2417e")
STYLES = ("-", "--", ":")


class Line(NamedTuple):
    """One row of the table: a measure of a way to select, at a budget."""

    judge: str
    measure: str
    budget: int
    method: str
    mean: float  # over images and seeds
    over_images: float  # standard deviation over images, each the mean of its seeds
    over_seeds: float  # standard deviation over seeds, each the mean of all images
    images: int
    seeds: int


def lines(results: Sequence[Result]) -> list[Line]:
    """The table's rows, measure by measure; of what was not decoded there are none."""
    return [
        _line(result, name, values)
        for name in Measures._fields
        for result in results
        if (values := getattr(result.measures, name)) is not None
    ]


def _line(result: Result, name: str, values: Tensor) -> Line:
    over_images, over_seeds = (values.mean(dim).std(correction=0).item() for dim in (0, 1))
    seeds, images = values.shape
    row = (result.judge, name, result.budget, result.method)
    return Line(*row, values.mean().item(), over_images, over_seeds, images, seeds)


def as_csv(table: Sequence[Line]) -> str:
    """All of it, nine digits."""
    file = io.StringIO(newline="")
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(Line._fields)
    for line in table:
        writer.writerow(f"{cell:.9g}" if isinstance(cell, float) else cell for cell in line)
    return file.getvalue()


def best_layers(table: Sequence[Line], measure: str = CHOSEN_BY) -> str:
    """A sentence that names the layer with the lowest error at every budget, and over all.

    Errors are divided by those of the random choice at the same budget; over all counts their mean
    over budgets. Empty where every budget keeps all tokens.

    Args:
        table: one judge's, with the random choice.
        measure: one of `ERRORS`.
    """
    errors = {(line.budget, line.method): line.mean for line in table if line.measure == measure}
    # Where all tokens are kept every error is 0 but for rounding.
    budgets = sorted({budget for budget, _ in errors if errors[budget, RANDOM.name] > ROUNDING})
    if not budgets:
        return ""
    names = dict.fromkeys(name for _, name in errors if name != RANDOM.name)
    of_random = {
        name: [errors[budget, name] / errors[budget, RANDOM.name] for budget in budgets]
        for name in names
    }
    found = []
    for place, budget in enumerate(budgets):
        best = min(of_random, key=lambda name: of_random[name][place])
        found.append(f"{budget} tokens {best} ({of_random[best][place]:.3f})")
    means = {name: sum(ratios) / len(ratios) for name, ratios in of_random.items()}
    best = min(means, key=lambda name: means[name])
    found.append(f"over all **{best}** ({means[best]:.3f})")
    return f"Best by the {TITLES[measure]}, as a share of the random choice's: {', '.join(found)}."


def as_markdown(table: Sequence[Line], title: str, summary: str = "") -> str:
    """A table a judge and measure, budgets across: mean ± deviation over images."""
    parts = [f"# {title}", *([summary] if summary else [])]
    if table:
        parts.append(
            f"{table[0].images} images, {table[0].seeds} seeds of slots' noise and random choice."
            " Mean ± standard deviation over images (of each image's mean over seeds); then the"
            " standard deviation over seeds (of the mean over images). Errors are over the"
            " variance of an image's tokens: 1 is what their mean alone would do."
        )
    budgets = sorted({line.budget for line in table})
    for judge, measure in dict.fromkeys((line.judge, line.measure) for line in table):
        parts.append(f"## {TITLES[measure][0].upper()}{TITLES[measure][1:]}, on {judge}")
        own = [line for line in table if (line.judge, line.measure) == (judge, measure)]
        cells = {
            (line.method, line.budget): f"{line.mean:.4f} ± {line.over_images:.4f}"
            f" ({line.over_seeds:.4f})"
            for line in own
        }
        rows = [
            [method, *(cells.get((method, budget), "") for budget in budgets)]
            for method in dict.fromkeys(line.method for line in own)
        ]
        parts.append(markdown_table(["tokens kept", *map(str, budgets)], rows))
    return "\n\n".join(parts) + "\n"


def draw(table: Sequence[Line], path: Path) -> None:
    """Every measure against the budget, a panel a judge and measure, to a PNG.

    Bands are the standard error over images.
    """
    from matplotlib.figure import Figure

    panels = list(dict.fromkeys((line.judge, line.measure) for line in table))
    judges = list(dict.fromkeys(judge for judge, _ in panels))
    measures = list(dict.fromkeys(measure for _, measure in panels))
    columns = len(measures)
    size = (4.2 * columns, 3.6 * len(judges) + 0.4)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(judges), columns, squeeze=False)
    methods = list(dict.fromkeys(line.method for line in table))
    for judge, measure in panels:
        axes = grid[judges.index(judge)][measures.index(measure)]
        for number, method in enumerate(methods):
            own = [line for line in table if line[:2] == (judge, measure) and line.method == method]
            if not own:
                continue
            own.sort(key=lambda line: line.budget)
            budgets = [line.budget for line in own]
            error = [line.over_images / line.images**0.5 for line in own]
            colour = COLOURS[number % len(COLOURS)]
            style = STYLES[number // len(COLOURS) % len(STYLES)]
            means = [line.mean for line in own]
            axes.plot(budgets, means, style, color=colour, marker="o", markersize=3, label=method)
            low = [m - e for m, e in zip(means, error, strict=True)]
            high = [m + e for m, e in zip(means, error, strict=True)]
            axes.fill_between(budgets, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.set_title(TITLES[measure], fontsize=10)
        axes.set_xlabel(f"tokens kept, on {judge}")
        axes.set_xscale("log", base=2)
        axes.set_xticks(budgets, [str(budget) for budget in budgets])
        axes.minorticks_off()
        if measure in ERRORS:
            axes.set_ylim(bottom=0)
        axes.grid(color=GRID, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    grid[0][0].legend(frameon=False, labelcolor=INK, fontsize=9)
    atomic_write(path, lambda temporary: figure.savefig(temporary, dpi=150))
