"""Makes the two folders of photos for training and evaluating the demo's pruner, offline.

The photos are those that scikit-image, scikit-learn and matplotlib ship. ``training/`` gets
collages of eleven of them: crops, recoloured, laid over one another with soft-edged shapes, so
that a few photos make many scenes. ``held-out/`` gets eleven others as they are. Same machine and
seed, same pictures.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from PIL import Image, ImageDraw, ImageFilter, ImageOps
from tqdm import trange

SKIMAGE = ("skimage", "data")
SKLEARN = ("sklearn", "datasets", "images")
TRAINING_PHOTOS = (
    (*SKLEARN, "china.jpg"),
    (*SKLEARN, "flower.jpg"),
    *(
        (*SKIMAGE, name)
        for name in (
            "retina.jpg",
            "hubble_deep_field.jpg",
            "ihc.png",
            "color.png",
            "brick.png",
            "grass.png",
            "gravel.png",
            "cell.png",
            "text.png",
        )
    ),
)
# The two of everyday scenes are drawn as often as three textures each.
TRAINING_WEIGHTS = (3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1)
# motorcycle_right shows the same scene as motorcycle_left, so it is in neither list.
HELD_OUT_PHOTOS = (
    *(
        (*SKIMAGE, name)
        for name in (
            "chelsea.png",
            "coffee.png",
            "astronaut.png",
            "rocket.jpg",
            "motorcycle_left.png",
            "camera.png",
            "coins.png",
            "moon.png",
            "clock_motion.png",
            "page.png",
        )
    ),
    ("matplotlib", "mpl-data", "sample_data", "grace_hopper.jpg"),
)
SIZE = 336
MIN_CROP = 0.25  # of the shorter side
LAYERS = (0, 1, 2, 4, 8)


def read_photo(parts: tuple[str, ...]) -> Image.Image:
    """Opens a file of an installed package as RGB, without importing the package."""
    spec = importlib.util.find_spec(parts[0])
    if spec is None or spec.origin is None:
        raise typer.BadParameter(f"{parts[0]} is not installed, and its photos are needed")
    return Image.open(Path(spec.origin).parent.joinpath(*parts[1:])).convert("RGB")


class Painter:
    """Endless scenes made of a few photos."""

    def __init__(self, photos: list[Image.Image], rng: np.random.Generator) -> None:
        self.photos, self.rng = photos, rng
        self.weights = np.array(TRAINING_WEIGHTS) / sum(TRAINING_WEIGHTS)

    def crop(self) -> Image.Image:
        """A random square of a random photo, turned, tinted, brighter or darker."""
        rng = self.rng
        photo = self.photos[rng.choice(len(self.photos), p=self.weights)]
        side = min(photo.size) * MIN_CROP ** rng.random()
        left, top = rng.uniform(0, photo.width - side), rng.uniform(0, photo.height - side)
        box = (left, top, left + side, top + side)
        square = photo.resize((SIZE, SIZE), Image.Resampling.BICUBIC, box=box)
        square = square.rotate(90 * int(rng.choice([0, 0, 0, 1, 2, 3])))
        if rng.random() < 0.5:
            square = ImageOps.mirror(square)
        if rng.random() < 0.3:
            dark, light = (tuple(map(int, colour)) for colour in rng.integers(0, 256, (2, 3)))
            square = ImageOps.colorize(ImageOps.grayscale(square), dark, light)
        grey = ImageOps.grayscale(square).convert("RGB")
        pixels = np.asarray(Image.blend(grey, square, rng.uniform(0.3, 1.4)), dtype=np.float32)
        pixels = pixels * rng.uniform(0.5, 1.4) * rng.uniform(0.8, 1.1, 3) + rng.uniform(-40, 40)
        return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))

    def plain(self) -> Image.Image:
        """A colour that turns into another."""
        ramp = Image.linear_gradient("L").rotate(90 * int(self.rng.integers(4)))
        dark, light = self.rng.integers(0, 256, (2, 3))
        light = dark + (light - dark) * self.rng.random()
        colours = (tuple(map(int, colour)) for colour in (dark, light))
        return ImageOps.colorize(ramp.resize((SIZE, SIZE)), *colours)

    def shape(self) -> Image.Image:
        """Opacity of an ellipse, a turned rectangle or a half plane, sharp or soft."""
        rng = self.rng
        mask = Image.new("L", (2 * SIZE, 2 * SIZE))
        radius = SIZE * 10 ** rng.uniform(-1.2, -0.2)
        stretch = 2 ** rng.uniform(-1, 1)
        x, y = rng.uniform(SIZE / 2, 3 * SIZE / 2, 2)
        box = (
            x - radius * stretch,
            y - radius / stretch,
            x + radius * stretch,
            y + radius / stretch,
        )
        kind, draw = rng.integers(3), ImageDraw.Draw(mask)
        if kind == 0:
            draw.ellipse(box, fill=255)
        elif kind == 1:
            draw.rectangle(box, fill=255)
        else:
            draw.rectangle((0, 0, x, 2 * SIZE), fill=255)
        mask = mask.rotate(rng.uniform(0, 360), Image.Resampling.BICUBIC)
        mask = mask.crop((SIZE // 2, SIZE // 2, 3 * SIZE // 2, 3 * SIZE // 2))
        return mask.filter(ImageFilter.GaussianBlur(float(rng.choice([0.5, 3, 20]))))

    def paint(self) -> Image.Image:
        """One scene."""
        rng = self.rng
        scene = self.plain() if rng.random() < 0.25 else self.crop()
        for _ in range(rng.choice(LAYERS)):
            layer = self.plain() if rng.random() < 0.35 else self.crop()
            scene.paste(layer, mask=self.shape())
        if rng.random() < 0.3:
            scene = ImageOps.grayscale(scene).convert("RGB")
        if rng.random() < 0.3:
            scene = scene.filter(ImageFilter.GaussianBlur(rng.uniform(0.5, 3)))
        return scene


def main(
    output: Annotated[Path, typer.Option(help="Folder to make both in.")] = Path("demo-photos"),
    count: Annotated[int, typer.Option(min=2, help="Scenes to paint.")] = 1000,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Makes OUTPUT/training and OUTPUT/held-out."""
    for name in ("training", "held-out"):
        (output / name).mkdir(parents=True, exist_ok=True)
    for parts in HELD_OUT_PHOTOS:
        read_photo(parts).save(output / "held-out" / f"{Path(parts[-1]).stem}.png")
    rng = np.random.default_rng(seed)
    painter = Painter([read_photo(parts) for parts in TRAINING_PHOTOS], rng)
    for number in trange(count, unit="scene"):
        painter.paint().save(output / "training" / f"{number:05d}.png", compress_level=1)


if __name__ == "__main__":
    typer.run(main)
