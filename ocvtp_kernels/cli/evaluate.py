"""``ocvtp evaluate``: how much of an image the kept tokens preserve, against the budget."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ocvtp_kernels.cli.options import exit_if_misused, require_folder
from ocvtp_kernels.cli.train import parse_counts
from ocvtp_kernels.files import atomic_write
from ocvtp_kernels.installing import require_package

if TYPE_CHECKING:
    import torch

    from ocvtp_kernels.training.evaluation import Contender, Judge
    from ocvtp_kernels.training.features import FeatureFolder

OC_PRUNER = "oc-pruner"
ABLATIONS = ("layer", "loss")
IMAGES = ("validation", "all")


def evaluate(
    features: Annotated[
        list[Path],
        typer.Option(
            metavar="DIR", help="Folder of `ocvtp features`; with --final-features one a layer."
        ),
    ],
    checkpoint: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="best.safetensors of `ocvtp train`; with --final-features one for each --features,"
            " or none: untrained pruners then, which begin as k-means.",
        ),
    ] = None,
    final_features: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Choose the reference layer: features of the same images, of the layer that the"
            " language model's tokens come from. What is selected on each --features is measured on"
            " these.",
        ),
    ] = None,
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
        str | None,
        typer.Option(
            metavar="NAME,...", help="With --ablate or --final-features: what to call each."
        ),
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

    Four measures, for every budget: the error of the decoder when it is shown nothing but the
    kept tokens, the error of each token's nearest kept token, that of the farthest twentieth of the
    tokens, and coverage. With --final-features nothing is decoded, and the reference layer with the
    lowest error of the farthest twentieth is named. Leaves table.csv, table.md and errors.png.

    Exit code: 0, written; 2, an option or a file is wrong and nothing was written.
    """
    with exit_if_misused("evaluate"):
        from ocvtp_kernels.training.evaluation import evaluate as measure
        from ocvtp_kernels.training.evaluation_report import (
            as_csv,
            as_markdown,
            best_layers,
            draw,
            lines,
        )
        from ocvtp_kernels.training.features import FeatureFolder

        require_package("matplotlib", "draws the curves", "train")
        if images not in IMAGES:
            raise ValueError(f"images: expected one of {IMAGES}, got {images!r}")
        checkpoints = checkpoint or []
        _check(ablate, final_features, features, checkpoints, other_features, other_checkpoint)
        where = _device(device)
        require_folder(output)
        paths = [*features, *(path for path in (other_features, final_features) if path)]
        folders = [FeatureFolder(path) for path in paths]
        first = folders[0]
        for other in folders[1:]:
            if (other.paths, other.grid) != (first.paths, first.grid):
                raise ValueError(
                    f"features: expected the images and the grid of {first.path}, got others in"
                    f" {other.path}"
                )
        chosen = first.split()[1] if images == "validation" else range(len(first))
        of_images = (
            list(chosen)[:limit],
            sorted(set(parse_counts("budgets", budgets))),
            parse_counts("seeds", seeds),
        )
        selecting = folders[:-1] if final_features else folders
        if ablate == "loss":
            selecting = [first, first]
        contenders, judges = _contenders(
            _names(names, "layer" if final_features else ablate, selecting),
            selecting,
            [*checkpoints, *([other_checkpoint] if other_checkpoint else [])],
            folders[-1] if final_features else None,
            where,
        )
        for folder in folders:
            folder.verify()
        results = [
            result
            for judge in judges
            for result in measure(contenders, judge, *of_images, batch_size, where)
        ]
    table = lines(results)
    is_layer = ablate == "layer" or final_features is not None
    title = "Reference layer" if is_layer else "Loss" if ablate else "Reconstruction error"
    text = as_markdown(table, title, best_layers(table) if final_features else "")
    for name, content in (("table.csv", as_csv(table)), ("table.md", text)):
        atomic_write(output / name, content)
    draw(table, output / "errors.png")
    typer.echo(text)
    typer.echo(output / "errors.png")


def _check(
    ablate: str | None,
    final_features: Path | None,
    features: list[Path],
    checkpoints: list[Path],
    other_features: Path | None,
    other_checkpoint: Path | None,
) -> None:
    """Raises ValueError where options do not belong together."""
    if ablate is not None and ablate not in ABLATIONS:
        raise ValueError(f"ablate: expected one of {ABLATIONS}, got {ablate!r}")
    if ablate is not None and final_features is not None:
        raise ValueError("final_features: expected without --ablate")
    if (ablate is not None) != (other_checkpoint is not None):
        raise ValueError("other_checkpoint: expected along with --ablate, and only then")
    if (ablate == "layer") != (other_features is not None):
        raise ValueError("other_features: expected along with --ablate layer, and only then")
    if final_features is None and len(features) != 1:
        raise ValueError(
            f"features: expected one folder, or several along with --final-features, got"
            f" {len(features)}"
        )
    counts = (len(features), 0) if final_features else (len(features),)
    if len(checkpoints) not in counts:
        raise ValueError(
            f"checkpoint: expected {' or '.join(map(str, counts))} for {len(features)} --features,"
            f" got {len(checkpoints)}"
        )


def _device(name: str) -> torch.device:
    import torch

    if name not in ("cpu", "cuda"):
        raise ValueError(f"device: expected cpu or cuda, got {name!r}")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device: expected cpu, as there is no CUDA device")
    return torch.device(name)


def _contenders(
    names: list[str],
    folders: list[FeatureFolder],
    checkpoints: list[Path],
    final: FeatureFolder | None,
    device: torch.device,
) -> tuple[list[Contender], list[Judge]]:
    """What selects, and on whose tokens and by whose decoder it is measured."""
    from ocvtp_kernels.training.evaluation import (
        GRID,
        RANDOM,
        Contender,
        Judge,
        Trained,
        Untrained,
    )

    trained = [
        Trained.load(checkpoint, folder, device)
        for checkpoint, folder in zip(checkpoints, folders, strict=False)
    ]
    pruners: Sequence[Trained | Untrained] = trained
    if not trained:
        pruners = [Untrained(folder, device) for folder in folders]
    contenders = [Contender(*each) for each in zip(names, pruners, folders, strict=True)]
    if final is not None:
        return [*contenders, RANDOM], [Judge("the final tokens", None, final)]
    if len(trained) == 1:
        return [*contenders, RANDOM, GRID], [Judge("its tokens", trained[0], folders[0])]
    # Each pruner selects on its own tokens; both are measured on the tokens of either.
    judges = [
        Judge(f"tokens and decoder of {name}", pruner, folder)
        for name, pruner, folder in zip(names, trained, folders, strict=True)
    ]
    return [*contenders, RANDOM], judges


def _names(given: str | None, ablate: str | None, folders: list[FeatureFolder]) -> list[str]:
    """What is called what selects on the tokens of each folder.

    Raises:
        ValueError: names are given and are not one for each, or not distinct.
    """
    if given is not None:
        names = given.split(",")
        if ablate is None or len(names) != len(folders) or not _distinct(names):
            raise ValueError(
                "names: expected two, along with --ablate, or one for each --features, along with"
                f" --final-features, and not random, got {given!r}"
            )
        return names
    if ablate is None:
        return [OC_PRUNER]
    if ablate == "loss":
        return ["first", "second"]
    layers = [folder.manifest["reference_layer"] for folder in folders]
    names = [f"layer {layer}" for layer in layers]
    if not _distinct(names):
        names = [str(folder.path) for folder in folders]
    if not _distinct(names):
        raise ValueError(f"features: expected different folders, got {', '.join(names)}")
    return names


def _distinct(names: list[str]) -> bool:
    return len({*names, "random"}) == len(names) + 1
