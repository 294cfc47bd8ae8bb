"""``ocvtp evaluate``: how much of an image the kept tokens preserve, against the budget."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ocvtp_kernels.cli.options import exit_if_misused, require_folder
from ocvtp_kernels.cli.train import parse_counts
from ocvtp_kernels.files import atomic_write
from ocvtp_kernels.installing import require_package

if TYPE_CHECKING:
    from ocvtp_kernels.training.evaluation import Contender, Judge
    from ocvtp_kernels.training.features import FeatureFolder

OC_PRUNER = "oc-pruner"
ABLATIONS = ("layer", "loss")
IMAGES = ("validation", "all")


def evaluate(
    features: Annotated[Path, typer.Option(metavar="DIR", help="Folder of `ocvtp features`.")],
    checkpoint: Annotated[
        Path, typer.Option(metavar="FILE", help="best.safetensors of `ocvtp train`.")
    ],
    budgets: Annotated[
        str, typer.Option(metavar="T,T,...", help="Numbers of tokens to keep.")
    ] = "16,32,64,128,192",
    ablate: Annotated[
        str | None,
        typer.Option(
            help=f"{' or '.join(ABLATIONS)}: compare with a second pruner, trained on another layer"
            " of the same images, or on the same features with another loss."
        ),
    ] = None,
    other_features: Annotated[
        Path | None, typer.Option(metavar="DIR", help="With --ablate layer: the other layer's.")
    ] = None,
    other_checkpoint: Annotated[
        Path | None, typer.Option(metavar="FILE", help="With --ablate: the second pruner.")
    ] = None,
    names: Annotated[
        str | None, typer.Option(metavar="NAME,NAME", help="With --ablate: what to call the two.")
    ] = None,
    images: Annotated[
        str,
        typer.Option(help="validation: those that training leaves out; all: a folder of its own."),
    ] = IMAGES[0],
    limit: Annotated[int | None, typer.Option(metavar="N", min=1, help="Images at most.")] = None,
    seeds: Annotated[
        str, typer.Option(metavar="S,S,...", help="Of the slots' noise and random choice.")
    ] = "0,1,2",
    batch_size: Annotated[int, typer.Option(min=1, help="Images at a time.")] = 16,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    output: Annotated[Path, typer.Option(metavar="DIR", help="Folder for table and picture.")] = (
        Path("ocvtp-evaluated")
    ),
) -> None:
    """Measure the reconstruction error of selections: the pruner, random and a uniform grid.

    Three measures, for every budget: the error of the decoder when it is shown nothing but the
    kept tokens, the error of each token's nearest kept token, and coverage. Leaves table.csv,
    table.md and errors.png.

    Exit code: 0, written; 2, an option or a file is wrong and nothing was written.
    """
    with exit_if_misused("evaluate"):
        from ocvtp_kernels.training.evaluation import evaluate as measure
        from ocvtp_kernels.training.evaluation_report import as_csv, as_markdown, draw, lines
        from ocvtp_kernels.training.features import FeatureFolder

        require_package("matplotlib", "draws the curves", "train")
        if images not in IMAGES:
            raise ValueError(f"images: expected one of {IMAGES}, got {images!r}")
        if ablate is not None and ablate not in ABLATIONS:
            raise ValueError(f"ablate: expected one of {ABLATIONS}, got {ablate!r}")
        if (ablate is not None) != (other_checkpoint is not None):
            raise ValueError("other_checkpoint: expected along with --ablate, and only then")
        if (ablate == "layer") != (other_features is not None):
            raise ValueError("other_features: expected along with --ablate layer, and only then")
        if names is not None and (ablate is None or len(set(names.split(","))) != 2):
            raise ValueError(f"names: expected two, along with --ablate, got {names!r}")
        require_folder(output)
        folder = FeatureFolder(features)
        second = folder if other_features is None else FeatureFolder(other_features)
        if second.paths != folder.paths or second.grid != folder.grid:
            raise ValueError(
                f"other_features: expected the images and the grid of {features}, got others"
            )
        chosen = folder.split()[1] if images == "validation" else range(len(folder))
        of_images = (
            list(chosen)[:limit],
            sorted(set(parse_counts("budgets", budgets))),
            parse_counts("seeds", seeds),
        )
        contenders, judges = _contenders(
            ablate, (folder, checkpoint), (second, other_checkpoint), names, device
        )
        folder.verify()
        if second is not folder:
            second.verify()
        results = [
            result
            for judge in judges
            for result in measure(contenders, judge, *of_images, batch_size)
        ]
    table = lines(results)
    title = {"layer": "Reference layer", "loss": "Loss"}.get(ablate or "", "Reconstruction error")
    text = as_markdown(table, title)
    for name, content in (("table.csv", as_csv(table)), ("table.md", text)):
        atomic_write(output / name, content)
    draw(table, output / "errors.png")
    typer.echo(text)
    typer.echo(output / "errors.png")


def _contenders(
    ablate: str | None,
    first: tuple[FeatureFolder, Path],
    second: tuple[FeatureFolder, Path | None],
    names: str | None,
    device_name: str,
) -> tuple[list[Contender], list[Judge]]:
    """What selects, and on whose tokens and by whose decoder it is measured."""
    import torch

    from ocvtp_kernels.training.evaluation import GRID, RANDOM, Contender, Judge, Trained

    if device_name not in ("cpu", "cuda"):
        raise ValueError(f"device: expected cpu or cuda, got {device_name!r}")
    if device_name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device: expected cpu, as there is no CUDA device")
    device = torch.device(device_name)
    (folder, checkpoint), (others, other_checkpoint) = first, second
    trained = Trained.load(checkpoint, folder, device)
    if ablate is None or other_checkpoint is None:
        contenders = [Contender(OC_PRUNER, trained, folder), RANDOM, GRID]
        return contenders, [Judge("its tokens", trained, folder)]
    pairs = (trained, folder), (Trained.load(other_checkpoint, others, device), others)
    labels = names.split(",") if names else _names(ablate, folder, others)
    named = list(zip(labels, pairs, strict=False))
    # Each pruner selects on its own tokens; both are measured on the tokens of either.
    contenders = [*(Contender(name, *pair) for name, pair in named), RANDOM]
    return contenders, [Judge(f"tokens and decoder of {name}", *pair) for name, pair in named]


def _names(ablate: str, first: FeatureFolder, second: FeatureFolder) -> list[str]:
    if ablate == "loss":
        return ["first", "second"]
    layers = [folder.manifest["reference_layer"] for folder in (first, second)]
    return [f"layer {layer}" for layer in layers] if layers[0] != layers[1] else ["first", "second"]
