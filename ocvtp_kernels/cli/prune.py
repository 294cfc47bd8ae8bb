"""``ocvtp prune``: which tokens of a photo are kept."""

from __future__ import annotations

import json
import os
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ocvtp_kernels.checks import require_budget
from ocvtp_kernels.cli.options import FAILED, Model, exit_if_misused, require_folder
from ocvtp_kernels.files import atomic_write
from ocvtp_kernels.pruner.config import PrunerConfig
from ocvtp_kernels.pruner.pruner import PADDINGS, OCPruner
from ocvtp_kernels.selectors.interface import Selector, place_of
from ocvtp_kernels.selectors.oc_progressive import OCProgressive
from ocvtp_kernels.selectors.oc_pruner import PrunerSelector
from ocvtp_kernels.selectors.registry import METHODS, make_selector
from ocvtp_kernels.text import describe_error, one_line

if TYPE_CHECKING:
    from ocvtp_kernels.cli.methods import Comparison
    from ocvtp_kernels.cli.report import Report
    from ocvtp_kernels.vlm.decoder.photos import DecoderPhotos
    from ocvtp_kernels.vlm.encoder import Encoder

DEMO_CHECKPOINT = "demo_pruner.safetensors"
OC_PRUNER, OC_PROGRESSIVE, ALL = "oc-pruner", "oc-progressive", "all"
QUESTION = "What is in the picture?"
NO_CHECKPOINT = "checkpoint: expected a pruner trained on this model's tokens"


def prune(
    photos: Annotated[list[Path], typer.Argument(metavar="PHOTO...", help="Photos to prune.")],
    budget: Annotated[
        int, typer.Option(help="Tokens to keep; of a photo with fewer, all are.")
    ] = 64,
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="Pruner weights, .pth or .safetensors; the packaged demo's if left out."),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="The authors' JSON; read off the checkpoint if left out.")
    ] = None,
    model: Model = None,
    reference_layer: Annotated[
        int | None,
        typer.Option(help="Tower layer to decide on; by its depth if left out: 8 of 24."),
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            help=f"{OC_PRUNER}, {OC_PROGRESSIVE}, one of the training-free methods"
            f" ({', '.join(METHODS)}), or {ALL} of them side by side."
        ),
    ] = OC_PRUNER,
    question: Annotated[
        str | None,
        typer.Option(
            help=f"What the model is asked, for methods in its decoder; {QUESTION!r} if left out."
        ),
    ] = None,
    padding: Annotated[
        str, typer.Option(help=f"How a gap is filled: {' or '.join(PADDINGS)}.")
    ] = PADDINGS[0],
    seed: Annotated[int, typer.Option(help="Seed of the slots' noise.")] = 0,
    output: Annotated[Path, typer.Option(help="Folder for pictures and records.")] = Path(
        "ocvtp-pruned"
    ),
) -> None:
    """Show which tokens of each PHOTO the object-centric pruner, or another method, keeps.

    Writes an overlay picture (NAME-pruned.png) and a record (NAME-pruned.json: ids, per-slot
    peaks, coverage beside random selection) for each photo. Several methods share a picture, a
    panel each; those that need what the encoder does not provide, such as a CLS token, are named in
    the record. Methods that drop tokens in the decoder do so on the photo and a question, where the
    model has a language model and its image tokens are one grid; all of it is float32 then. A model
    that takes photos at their own size may have fewer tokens than the budget: all are kept then,
    and the record says so. A photo that cannot be read, pruned or written is reported in a line,
    with the reason, and skipped.

    Exit code: 0, all photos pruned; 1, some were not; 2, an option is wrong and nothing was
    written.
    """
    from tqdm import tqdm

    from ocvtp_kernels.cli.methods import compare_methods
    from ocvtp_kernels.cli.photo import open_photo, quiet_pillow
    from ocvtp_kernels.cli.report import prune_encoded

    with exit_if_misused("prune"):
        methods = choose_methods(method)
        # The packaged pruner is trained for the descriptor's tokens alone.
        trained = model is None or checkpoint is not None
        if method in (OC_PRUNER, OC_PROGRESSIVE) and not trained:
            raise ValueError(NO_CHECKPOINT)
        in_decoder = any(map(stands_in_decoder, methods))
        encoder, decoder = load_encoder_and_decoder(model, reference_layer, in_decoder)
        if question is not None and isinstance(decoder, str):
            raise ValueError(f"question: expected none, as nothing is asked: {decoder}")
        asked = QUESTION if question is None else question
        pruner = None
        if {OC_PRUNER, OC_PROGRESSIVE} & set(methods) and trained:
            pruner = load_pruner(checkpoint, config, seed, encoder)
        selectors = make_selectors(methods, pruner, seed, has_decoder=not isinstance(decoder, str))
        if encoder.num_tokens is not None:
            require_budget(budget, encoder.num_tokens)
        elif budget < 1:
            raise ValueError(f"budget: expected at least 1, got {budget}")
        if padding not in PADDINGS:
            raise ValueError(f"padding: expected one of {PADDINGS}, got {padding!r}")
        require_folder(output)

    failures = 0
    stems = output_stems(photos, output)
    with quiet_pillow():
        for photo in tqdm(photos, unit="photo", disable=len(photos) == 1):
            try:
                encoded = encoder.encode(open_photo(photo))
                report: Report | Comparison
                if method == OC_PRUNER and pruner is not None:
                    report = prune_encoded(pruner, encoded, budget, padding)
                else:
                    report = compare_methods(encoded, budget, selectors, decoder, asked)
                picture = write_report(
                    report,
                    stems[photo],
                    photo=str(photo),
                    encoder=encoder.name,
                    checkpoint=None if pruner is None else str(checkpoint or DEMO_CHECKPOINT),
                    noise_seed=seed,
                )
            # Whatever one photo brings about, the others go on; what is no refusal says its type.
            except Exception as error:
                failures += 1
                tqdm.write(f"skipped {one_line(str(photo))}: {describe_error(error)}")
            else:
                line = f"{one_line(photo.stem)}: {report.coverage_line()}"
                tqdm.write(f"{one_line(str(picture))}\n{line}")
    if failures:
        typer.echo(f"{failures} of {len(photos)} photos were skipped", err=True)
        raise typer.Exit(FAILED)


def choose_methods(method: str) -> list[str]:
    """The methods of a name, or all.

    Raises:
        ValueError: there is no such method; the message lists the methods.
    """
    methods = [OC_PRUNER, *METHODS, OC_PROGRESSIVE]
    if method not in (*methods, ALL):
        raise ValueError(f"method: expected one of {', '.join((*methods, ALL))}, got {method!r}")
    return methods if method == ALL else [method]


def stands_in_decoder(method: str) -> bool:
    """Whether a method drops tokens between decoder layers."""
    if method in METHODS:
        return place_of(make_selector(method)) == "decoder"
    return method == OC_PROGRESSIVE


def make_selectors(
    methods: list[str], pruner: OCPruner | None, seed: int, *, has_decoder: bool
) -> dict[str, Selector | str]:
    """By method its selector, or the reason why there is none."""
    options: dict[str, dict[str, Any]] = {"random": {"seed": seed}}
    if not has_decoder:
        options["vlm-pruner"] = {"place": "encoder"}
    selectors: dict[str, Selector | str] = {}
    for name in methods:
        if name in METHODS:
            selectors[name] = make_selector(name, **options.get(name, {}))
        elif pruner is None:
            selectors[name] = NO_CHECKPOINT
        else:
            make = PrunerSelector if name == OC_PRUNER else OCProgressive
            selectors[name] = make(pruner)
    return selectors


def load_encoder(model: str | None, reference_layer: int | None) -> Encoder:
    """The encoder asked for.

    Raises:
        ValueError: it cannot be loaded, or the options do not go together.
    """
    return load_encoder_and_decoder(model, reference_layer, in_decoder=False)[0]


def load_encoder_and_decoder(
    model: str | None, reference_layer: int | None, in_decoder: bool
) -> tuple[Encoder, DecoderPhotos | str]:
    """The encoder asked for and the decoder behind it, or the reason why there is none.

    Args:
        model, reference_layer: the options.
        in_decoder: whether a method stands in the decoder; only then the language model is kept.

    Raises:
        ValueError: the encoder cannot be loaded, or the options do not go together.
    """
    from ocvtp_kernels.vlm.decoder.photos import NO_LANGUAGE_MODEL, open_decoder

    if model is None:
        if reference_layer is not None:
            raise ValueError("reference_layer: expected a model along with it")
        from ocvtp_kernels.vlm.encoder import DescriptorEncoder

        return DescriptorEncoder(), NO_LANGUAGE_MODEL
    from ocvtp_kernels.vlm.tower_encoder import load_model, open_encoder

    loaded = load_model(model)
    encoder = open_encoder(loaded, model, reference_layer)
    if not in_decoder:
        return encoder, "the method stands before the language model"
    try:
        return encoder, open_decoder(loaded, model, reference_layer)
    except ValueError as error:
        return encoder, str(error)


def load_pruner(
    checkpoint: Path | None, config: Path | None, seed: int, encoder: Encoder
) -> OCPruner:
    """The pruner asked for, frozen.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: checkpoint, config and encoder do not fit together.
    """
    given = None if config is None else PrunerConfig.from_json(config)
    if checkpoint is None:
        with as_file(files("ocvtp_kernels") / "assets" / DEMO_CHECKPOINT) as packaged:
            pruner = OCPruner.from_checkpoint(packaged, given, noise_seed=seed)
    else:
        pruner = OCPruner.from_checkpoint(checkpoint, given, noise_seed=seed)
    if pruner.config.enc_in_dim != encoder.width:
        raise ValueError(
            f"checkpoint: expected enc_in_dim {encoder.width} for the tokens of {encoder.name}, "
            f"got {pruner.config.enc_in_dim}"
        )
    if pruner.config.enc_place_mean and pruner.config.num_places != encoder.num_tokens:
        number = encoder.num_tokens or "numbers that depend on the photo"
        raise ValueError(
            f"checkpoint: expected a place mean for the tokens of {encoder.name}, {number}, "
            f"got one of {pruner.config.num_places} (enc_place_mean)"
        )
    return pruner.freeze()


def output_stems(photos: list[Path], output: Path) -> dict[Path, Path]:
    """Where each photo's picture and record go, without their suffixes.

    Photos of the same name are numbered, and no photo is ever overwritten by a picture.
    """
    # Not Path.resolve, which raises on a link to itself before Python 3.13.
    inputs = {os.path.realpath(photo) for photo in photos}
    stems: dict[Path, Path] = {}
    for photo in photos:
        if photo in stems:
            continue
        stem, number = output / f"{photo.stem}-pruned", 2
        while stem in stems.values() or os.path.realpath(f"{stem}.png") in inputs:
            stem, number = output / f"{photo.stem}-pruned-{number}", number + 1
        stems[photo] = stem
    return stems


def write_report(report: Report | Comparison, stem: Path, **about: Any) -> Path:
    """Writes ``stem``.png and ``stem``.json, atomically; returns the picture's path."""
    picture, record = (stem.with_name(stem.name + suffix) for suffix in (".png", ".json"))
    text = json.dumps(report.as_json(**about, picture=picture.name), indent=2) + "\n"
    image = report.draw(title=Path(about["photo"]).stem)
    atomic_write(picture, image.save)
    atomic_write(record, text)
    return picture
