"""``ocvtp features``: the reference tokens of a folder of images, on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer

from ocvtp_kernels.cli.options import FAILED, Model, exit_if_misused, require_folder
from ocvtp_kernels.cli.prune import load_encoder
from ocvtp_kernels.text import one_line


def features(
    output: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the features.")],
    images: Annotated[
        Path | None,
        typer.Argument(metavar="IMAGE_DIR", help="Folder of images, searched throughout."),
    ] = None,
    model: Model = None,
    reference_layer: Annotated[
        int | None,
        typer.Option(help="Tower layer whose output is kept; by its depth if left out: 8 of 24."),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Images encoded at once.")] = 16,
    shard_size: Annotated[int, typer.Option(help="Images in a file.")] = 512,
    limit: Annotated[
        int | None, typer.Option(help="Encode only so many images, the first by path.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu or cuda; cuda if left out, where there is a GPU.")
    ] = None,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify",
            help="Encode nothing, and compare the features in --output with their manifest, and the"
            " images, where IMAGE_DIR is given, with those that were encoded.",
        ),
    ] = False,
) -> None:
    """Write the reference tokens of every image in IMAGE_DIR, for training: float16, in shards.

    Takes vision towers with a fixed number of tokens. Run again, it resumes after the last complete
    shard, and encodes only images that are new; nothing is half-written when it is killed. An
    image that cannot be read is reported, skipped, named in manifest.json and tried again next
    time. Where a shard is damaged, or an image is no longer the one that was encoded, it stops;
    --verify names all of these.

    Exit code: 0, all images encoded, or nothing damaged or changed; 1, some were skipped, or are
    damaged or changed; 2, an option or a folder is wrong.
    """
    if verify:
        verify_features(output, images)
        return
    from tqdm import tqdm

    from ocvtp_kernels.cli.photo import open_photo, quiet_pillow
    from ocvtp_kernels.training.feature_encoders import make_reference_encoder
    from ocvtp_kernels.training.feature_writer import (
        FeatureWriter,
        find_images,
        write_features,
    )

    with exit_if_misused("features"):
        for name, number in (
            ("batch_size", batch_size),
            ("shard_size", shard_size),
            ("limit", 1 if limit is None else limit),
        ):
            if number < 1:
                raise ValueError(f"{name}: expected at least 1, got {number}")
        images = _require_images(images)
        require_folder(output)
        names = find_images(images)[:limit]
        if not names:
            raise ValueError(f"image_dir: expected images, found none in {images}")
        encoder = make_reference_encoder(
            load_encoder(model, reference_layer),
            device or ("cuda" if torch.cuda.is_available() else "cpu"),
        )
        writer = FeatureWriter(output, encoder, shard_size)
        done = sum(name in writer.done for name in names)
        with quiet_pillow(), tqdm(total=len(names), initial=done, unit="image") as bar:

            def report(name: str, reason: str | None) -> None:
                if reason is not None:
                    bar.write(f"skipped {one_line(name)}: {reason}")
                bar.update()

            skipped = write_features(images, names, writer, open_photo, batch_size, report)
    typer.echo(f"{len(writer.done)} images, {len(writer.shards)} shards: {output}")
    if skipped:
        typer.echo(f"{skipped} of {len(names)} images were skipped", err=True)
        raise typer.Exit(FAILED)


def verify_features(output: Path, images: Path | None) -> None:
    """Prints a line for each shard and each image that is not as it was recorded."""
    from ocvtp_kernels.training.feature_writer import find_changes
    from ocvtp_kernels.training.features import FeatureFolder

    failures = 0
    with exit_if_misused("features"):
        folder = FeatureFolder(output)
        for error in folder.damaged_shards():
            failures += 1
            typer.echo(f"damaged {error}")
        if images is not None:
            recorded = folder.image_files()
            for name, change in find_changes(_require_images(images), recorded, folder.paths):
                failures += 1
                typer.echo(f"changed {one_line(name)}: {change}")
            unknown = sum(file.sha256 is None for file in recorded.values())
            if unknown:
                typer.echo(f"of {unknown} images only the size is recorded", err=True)
    count = f"{len(folder)} images, {len(folder.manifest['shards'])} shards"
    if failures:
        typer.echo(f"{count}: {failures} damaged or changed: {output}", err=True)
        raise typer.Exit(FAILED)
    typer.echo(f"{count}, as recorded: {output}")


def _require_images(images: Path | None) -> Path:
    if images is None or not images.is_dir():
        raise ValueError(f"image_dir: expected a folder of images, got {images}")
    return images
