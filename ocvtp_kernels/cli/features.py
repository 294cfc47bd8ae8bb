"""``ocvtp features``: the reference tokens of a folder of images, on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer

from ocvtp_kernels.cli.options import FAILED, Model, exit_if_misused, require_folder
from ocvtp_kernels.cli.prune import load_encoder


def features(
    images: Annotated[
        Path, typer.Argument(metavar="IMAGE_DIR", help="Folder of images, searched throughout.")
    ],
    output: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the features.")],
    model: Model = None,
    reference_layer: Annotated[
        int | None,
        typer.Option(help="Tower layer whose output is kept; a third of its depth if left out."),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Images encoded at once.")] = 16,
    shard_size: Annotated[int, typer.Option(help="Images in a file.")] = 512,
    limit: Annotated[
        int | None, typer.Option(help="Encode only so many images, the first by path.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu or cuda; cuda if left out, where there is a GPU.")
    ] = None,
) -> None:
    """Write the reference tokens of every image in IMAGE_DIR, for training: float16, in shards.

    Takes vision towers with a fixed number of tokens. Run again, it resumes after the last complete
    shard, and encodes only images that are new; nothing is half-written when it is killed. An
    image that cannot be read is reported, skipped, named in manifest.json and tried again next
    time.

    Exit code: 0, all images encoded; 1, some were skipped; 2, an option or a folder is wrong.
    """
    from tqdm import tqdm

    from ocvtp_kernels.cli.photo import open_photo
    from ocvtp_kernels.training.feature_encoders import make_reference_encoder
    from ocvtp_kernels.training.feature_writer import (
        FeatureWriter,
        find_images,
        printable,
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
        if not images.is_dir():
            raise ValueError(f"image_dir: expected a folder, got {images}")
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
        with tqdm(total=len(names), initial=done, unit="image") as bar:

            def report(name: str, reason: str | None) -> None:
                if reason is not None:
                    bar.write(f"skipped {printable(name)}: {reason}")
                bar.update()

            skipped = write_features(images, names, writer, open_photo, batch_size, report)
    typer.echo(f"{len(writer.done)} images, {len(writer.shards)} shards: {output}")
    if skipped:
        typer.echo(f"{skipped} of {len(names)} images were skipped", err=True)
        raise typer.Exit(FAILED)
