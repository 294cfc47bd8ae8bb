"""``ocvtp train``: a pruner from the tokens of a folder of images."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from ocvtp_kernels.cli.options import FAILED, exit_if_misused
from ocvtp_kernels.installing import require_package
from ocvtp_kernels.training.config import (
    PRECISIONS,
    PRESETS,
    PUBLISHED,
    STARTS,
    TrainConfig,
    preset_keys,
    pruner_config,
    read_config,
)
from ocvtp_kernels.training.features import FeatureFolder
from ocvtp_kernels.training.loss import CHANNEL_REDUCTIONS, NORM_MODES

DEFAULTS = TrainConfig()


def _option(description: str, name: str, **more: Any) -> Any:
    default = getattr(DEFAULTS, name)
    if isinstance(default, tuple):
        default = ",".join(map(str, default))
    shown = "" if default is None else f" [{default}]"
    return typer.Option(help=description + shown, show_default=False, **more)


def train(
    features: Annotated[Path, typer.Option(metavar="DIR", help="Folder of `ocvtp features`.")],
    output: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the run.")],
    config: Annotated[
        Path | None,
        typer.Option(
            help="JSON or TOML: keys named as these options, and under `pruner` the pruner's; or"
            " the authors' JSON. Options go before it."
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help=f"Settings that go together, {' or '.join(PRESETS)}; options and config go before"
            f" them. [{PUBLISHED}]",
            show_default=False,
        ),
    ] = None,
    epochs: Annotated[int | None, _option("Passes over the images.", "epochs")] = None,
    limit: Annotated[
        int | None, _option("Images to use; all if left out.", "limit", metavar="N")
    ] = None,
    batch_size: Annotated[
        int | None, _option("Images a step, over all processes.", "batch_size")
    ] = None,
    lr: Annotated[float | None, _option("Learning rate at its height.", "lr")] = None,
    warmup_epochs: Annotated[
        float | None, _option("Epochs to that height, at most half of all.", "warmup_epochs")
    ] = None,
    weight_decay: Annotated[float | None, _option("AdamW's.", "weight_decay")] = None,
    grad_clip: Annotated[float | None, _option("Largest gradient norm.", "grad_clip")] = None,
    slots: Annotated[
        str | None, _option("Numbers of slots, one drawn a step.", "slots", metavar="K,K,...")
    ] = None,
    patience: Annotated[
        int | None, _option("Epochs to wait for a better validation loss.", "patience")
    ] = None,
    seed: Annotated[int | None, _option("Of everything that is random.", "seed")] = None,
    start: Annotated[
        str | None, _option(f"Weights to start from, {' or '.join(STARTS)}.", "start")
    ] = None,
    encode_lr: Annotated[
        float | None, _option("Share of the learning rate for the encode MLP.", "encode_lr")
    ] = None,
    slots_lr: Annotated[
        float | None, _option("Share of the learning rate for Slot Attention.", "slots_lr")
    ] = None,
    place_mean: Annotated[
        bool | None,
        typer.Option(
            "--place-mean/--no-place-mean",
            help="Take the mean of each place's tokens off the pruner's input"
            " (`enc_place_mean` under `pruner`). [no]",
            show_default=False,
        ),
    ] = None,
    mixed_precision: Annotated[
        str | None, _option(f"{' or '.join(PRECISIONS)}.", "mixed_precision")
    ] = None,
    target_scale: Annotated[
        float | None,
        _option("What tokens are multiplied by to be reconstructed.", "target_scale"),
    ] = None,
    power_p: Annotated[
        float | None,
        _option("How strongly small slots weigh in the loss; 0: plain MSE.", "power_p"),
    ] = None,
    cap_w: Annotated[float | None, _option("Largest weight of a slot.", "cap_w")] = None,
    norm_mode: Annotated[
        str | None, _option(f"Of slot weights: {', '.join(NORM_MODES)}.", "norm_mode")
    ] = None,
    reduce_channel: Annotated[
        str | None,
        _option(f"Of the error: {' or '.join(CHANNEL_REDUCTIONS)}.", "reduce_channel"),
    ] = None,
    checkpoint_every: Annotated[
        int | None,
        _option("Steps between checkpoints; each epoch ends with one.", "checkpoint_every"),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume/--fresh", help="Go on with the run in the folder, or begin anew."),
    ] = True,
) -> None:
    """Train an object-centric pruner on tokens that `ocvtp features` wrote.

    Leaves in the output folder pruner.safetensors (for `ocvtp prune --checkpoint`),
    best.safetensors (with the decoder, for `ocvtp evaluate`), log.csv, health.csv (whether the
    slots are of use, by epoch and K), loss.png and a model card.
    A run that was stopped goes on from its last checkpoint with the same command, and ends as if
    it had not been. It goes on only with the features that it began with, and each time every
    shard is compared with its SHA-256 first. Start it with `accelerate launch` or `torchrun` for
    several processes.

    Exit code: 0, trained; 1, the loss is not finite any more; 2, an option or a file is wrong.
    """
    given = {
        name: value
        for name, value in locals().items()
        if name in {field.name for field in dataclasses.fields(TrainConfig)} and value is not None
    }
    from ocvtp_kernels.training import loop, run

    with exit_if_misused("train"):
        require_package("matplotlib", "draws the curves", "train")
        require_package("accelerate", "runs the training", "train")
        if slots is not None:
            given["slots"] = parse_counts("slots", slots)
        settings, keys = ({}, None) if config is None else read_config(config)
        tokens = FeatureFolder(features)
        in_file = settings.pop("preset", PUBLISHED)
        base, base_keys = preset_keys(preset or in_file, tokens.num_tokens)
        keys = {**base_keys, **(keys or {})}
        if place_mean is not None:
            keys["enc_place_mean"] = place_mean
        try:
            run.train(
                tokens,
                output,
                TrainConfig.from_dict({**base, **settings, **given}),
                pruner_config(keys or None, tokens.num_tokens, tokens.width),
                is_fresh=not resume,
                command="ocvtp " + shlex.join(sys.argv[1:]),
            )
        except loop.Diverged as error:
            typer.echo(f"ocvtp train: {error}; try a lower --lr", err=True)
            raise typer.Exit(FAILED) from error
    typer.echo(output / "pruner.safetensors")


def parse_counts(name: str, text: str) -> tuple[int, ...]:
    """Whole numbers, at least one, from "16,32".

    Raises:
        ValueError: the text is not that.
    """
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise ValueError(f"{name}: expected whole numbers like 16,32, got {text!r}") from error
