"""A pruner trained from the tokens of images, saved, loaded again and asked which tokens to keep.

    python examples/train_pruner.py --features features --steps 2000 --output run

Features are a folder that `ocvtp features` wrote, of whatever model. Without it tokens are those of
the package's patch descriptor (docs/demo.md), of crops of photos that scikit-image ships. The loop
is short, to be copied and changed; `ocvtp train` (docs/training.md) has the published schedule,
validates and resumes.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Iterable
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

import ocvtp_kernels as ocvtp
from ocvtp_kernels.training import (
    AreaWeightedMSE,
    Draws,
    FeatureFolder,
    OCAutoencoder,
    published_shapes,
    start_as_kmeans,
)
from ocvtp_kernels.vlm.encoder import DescriptorEncoder

BUILD = Path(__file__).parents[1] / "build"
# Photos of scikit-image.
TRAINING = ("brick", "cell", "coffee", "colorwheel", "grass", "gravel", "rocket", "text")
HELD_OUT = ("astronaut", "chelsea")
CROPS = 16  # of a photo
SLOTS, BATCH = 64, 6
DECODER_LR, PRUNER_LR = 1e-3, 5e-5


def encode_crops(photos: Iterable[str]) -> Tensor:
    """Tokens ``[B, 576, 64]`` of random crops, half as high as their photo or half as wide."""
    try:
        from skimage import data
    except ImportError:
        sys.exit("Give --features, or install scikit-image, which ships photos.")
    encoder, pixels = DescriptorEncoder(), []
    for photo in (Image.fromarray(getattr(data, name)()).convert("RGB") for name in photos):
        side = min(photo.size) // 2
        for x, y in torch.rand(CROPS, 2).tolist():
            left, top = int(x * (photo.width - side)), int(y * (photo.height - side))
            pixels.append(encoder.prepare(photo.crop((left, top, left + side, top + side)))[1])
    return torch.cat([encoder.descriptor(each[None]) for each in pixels])


def loss_of(model: OCAutoencoder, tokens: Tensor, draws: Draws) -> Tensor:
    """The published loss, in units of the tokens' variance."""
    out = model(tokens, **draws._asdict())
    # The decoder's output starts with a deviation near 1.
    loss: Tensor = AreaWeightedMSE()(out.reconstruction, tokens / tokens.std(), out.attention)
    return loss


def main(arguments: list[str] | None = None) -> None:
    """Prints the loss on images held out, and the coverage of what the pruner keeps of them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--features", type=Path, metavar="FOLDER")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--budget", type=int, default=64, help="tokens to keep of an image")
    parser.add_argument("--output", type=Path, default=BUILD / "train_pruner", metavar="FOLDER")
    given = parser.parse_args(arguments)
    torch.manual_seed(0)
    if given.features is None:
        training, held_out = encode_crops(TRAINING), encode_crops(HELD_OUT)
    else:
        folder = FeatureFolder(given.features)
        training, held_out = (
            torch.stack([folder[each] for each in part]).float() for part in folder.split()
        )

    # The published proportions at the tokens' width, with fewer layers in the decoder.
    config = dataclasses.replace(published_shapes(*training.shape[1:]), backbone_nlayer=1)
    model = OCAutoencoder(config)
    # Slots are of use from the first step on, which is most of what so short a run ends with.
    start_as_kmeans(model)
    pruner_parts = (model.encode_project, model.initializ, model.aggregat)
    pruner_parameters = [each for part in pruner_parts for each in part.parameters()]
    optimizer = torch.optim.AdamW(
        [
            {"params": model.decode.parameters(), "lr": DECODER_LR},
            {"params": pruner_parameters, "lr": PRUNER_LR},
        ]
    )
    same_draws = model.draw(len(held_out), SLOTS)
    for step in range(given.steps + 1):
        if step % 50 == 0 or step == given.steps:
            with torch.no_grad():
                loss = loss_of(model.eval(), held_out, same_draws)
            print(f"step {step}: loss {loss:.3f}", flush=True)
        if step == given.steps:
            break
        batch = training[torch.randint(len(training), (BATCH,))]
        loss = loss_of(model.train(), batch, model.draw(BATCH, SLOTS))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    path = given.output / "pruner.safetensors"
    model.pruner().save_checkpoint(path)
    pruner = ocvtp.OCPruner.from_checkpoint(path).freeze()
    kept = pruner(held_out, held_out, budget=given.budget)
    at_random = ocvtp.select(held_out, given.budget, "random", seed=0)
    print(f"{path}: keeps {kept.ids.shape[1]} of {held_out.shape[1]} tokens")
    for name, ids in (("coverage", kept.ids), ("of random tokens", at_random.ids)):
        print(f"{name}: {ocvtp.coverage(held_out, ids).mean():.3f}")


if __name__ == "__main__":
    main()
