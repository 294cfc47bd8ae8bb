from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import skimage
import torch
from PIL import Image
from scipy import fft
from skimage import color
from torch import Tensor

import ocvtp_kernels
from ocvtp_kernels.selectors.coverage import coverage, random_coverage
from ocvtp_kernels.vlm.descriptor import GROUPS, PatchDescriptor

DEMO_PRUNER = Path(ocvtp_kernels.__file__).parent / "assets" / "demo_pruner.safetensors"


@pytest.fixture(scope="module")
def descriptor() -> PatchDescriptor:
    return PatchDescriptor()


def make_images(count: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 40, 40, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(336, 336), mode="bicubic")
    noise = torch.rand(count, 3, 336, 336, generator=generator)
    return (0.8 * smooth + 0.2 * noise).clamp(0, 1)


def to_patches(pixels: np.ndarray) -> np.ndarray:
    channels = pixels.shape[-1]
    return pixels.reshape(24, 14, 24, 14, channels).transpose(0, 2, 1, 3, 4)


def to_lab(image: Tensor) -> np.ndarray:
    lab: np.ndarray = color.rgb2lab(image.permute(1, 2, 0).double().numpy()) / 100
    return lab


def test_tokens_are_float32_and_as_wide_as_promised(descriptor: PatchDescriptor) -> None:
    tokens = descriptor(make_images(2).double())
    assert tokens.shape == (2, 576, descriptor.width) and tokens.dtype == torch.float32
    assert descriptor.grid == (24, 24) and descriptor.patch_size * 24 == descriptor.image_size
    assert not list(descriptor.parameters()) and not descriptor.state_dict()


@pytest.mark.parametrize("grey", [0.0, 0.04, 0.5, 1.0])
def test_a_flat_image_leaves_only_position(descriptor: PatchDescriptor, grey: float) -> None:
    tokens = descriptor(torch.full((1, 3, 336, 336), grey))
    assert tokens.isfinite().all()
    assert tokens[..., :-4].abs().max() < 1e-4
    torch.testing.assert_close(tokens[..., -4:].square().sum(-1), torch.full((1, 576), 0.2))


def test_an_image_alone_is_the_same_as_in_a_batch(descriptor: PatchDescriptor) -> None:
    images = make_images(5)
    batch = descriptor(images)
    assert all(torch.equal(descriptor(images[i : i + 1])[0], batch[i]) for i in range(5))


def test_colour_is_that_of_an_independent_cielab(descriptor: PatchDescriptor) -> None:
    image = make_images(1)[0]
    patches = to_patches(to_lab(image))
    colour = descriptor.measure(image[None])["colour"][0].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(colour[..., :3], patches.mean((2, 3)), atol=1e-4)
    np.testing.assert_allclose(colour[..., 3:], patches.std((2, 3)), atol=1e-4)


def test_layout_is_the_quadrants_minus_the_patch(descriptor: PatchDescriptor) -> None:
    image = make_images(1)[0]
    patches = to_patches(to_lab(image))
    layout = descriptor.measure(image[None])["layout"][0].permute(1, 2, 0).numpy()
    bottom_left_b = patches[:, :, 7:, :7, 2].mean((2, 3)) - patches[..., 2].mean((2, 3))
    np.testing.assert_allclose(layout[..., 10], bottom_left_b, atol=1e-4)


def test_frequency_is_the_energy_of_an_independent_dct(descriptor: PatchDescriptor) -> None:
    image = make_images(1)[0]
    coefficients = fft.dctn(to_patches(to_lab(image))[..., 0], axes=(2, 3), norm="ortho")
    down, across = np.mgrid[0:14, 0:14]
    radius = np.hypot(down, across)
    band = (radius >= 1.5) & (radius < 3) & (across < down)
    expected = np.log10(1e-4 + (coefficients**2 * band).sum((2, 3)) / 196)
    frequency = descriptor.measure(image[None])["frequency"][0, 3].numpy()
    np.testing.assert_allclose(frequency, expected, atol=1e-3)


@pytest.mark.parametrize("vertical", [False, True])
def test_stripes_answer_in_one_orientation(descriptor: PatchDescriptor, vertical: bool) -> None:
    stripes = (torch.arange(336) // 4 % 2).float().expand(1, 3, 336, 336)
    gradient = descriptor.measure(stripes if vertical else stripes.mT)["gradient"]
    bin_of_stripes = 0 if vertical else 4
    assert gradient[:, bin_of_stripes].min() > 0.1
    gradient[:, bin_of_stripes] = 0
    assert gradient.max() < 1e-3


def test_a_mirrored_image_has_mirrored_orientations(descriptor: PatchDescriptor) -> None:
    image = make_images(1)
    straight, mirrored = descriptor.measure(image), descriptor.measure(image.flip(3))
    torch.testing.assert_close(mirrored["colour"].flip(3), straight["colour"])
    opposite = [-k % 8 for k in range(8)]
    torch.testing.assert_close(mirrored["gradient"].flip(3), straight["gradient"][:, opposite])


def test_shuffled_patches_are_shuffled_tokens(descriptor: PatchDescriptor) -> None:
    image = make_images(1)
    order = torch.randperm(576, generator=torch.Generator().manual_seed(0))
    patches = torch.nn.functional.unfold(image, 14, stride=14)
    shuffled = torch.nn.functional.fold(patches[..., order], 336, 14, stride=14)
    before, after = descriptor.measure(image), descriptor.measure(shuffled)
    for group in ("colour", "layout", "frequency"):
        torch.testing.assert_close(after[group].flatten(2), before[group].flatten(2)[..., order])


def test_groups_are_centred_and_share_the_norm_as_documented(descriptor: PatchDescriptor) -> None:
    image = make_images(1)
    parts = descriptor(image)[0].split([*(width for width, _ in GROUPS.values()), 4], dim=1)
    for (name, (_, share)), part in zip(GROUPS.items(), parts[:-1], strict=True):
        assert part.mean(0).abs().max() < 1e-5, name
        # A little less than its share: the scale has a floor.
        assert 0.3 * share < part.square().sum(1).mean() < share, name


@pytest.mark.parametrize(
    "images",
    [
        torch.rand(3, 336, 336),
        torch.rand(1, 1, 336, 336),
        torch.rand(1, 3, 224, 224),
        torch.zeros(1, 3, 336, 336, dtype=torch.uint8),
    ],
)
def test_other_images_are_refused_by_name(descriptor: PatchDescriptor, images: Tensor) -> None:
    with pytest.raises(ValueError, match=r"^images: expected"):
        descriptor(images)


@pytest.mark.parametrize("photo", ["chelsea.png", "coffee.png", "rocket.jpg", "camera.png"])
def test_the_demo_pruner_beats_chance(descriptor: PatchDescriptor, photo: str) -> None:
    image = Image.open(Path(skimage.__file__).parent / "data" / photo).convert("RGB")
    pixels = np.asarray(image.resize((336, 336)), dtype=np.float32) / 255
    tokens = descriptor(torch.from_numpy(pixels).permute(2, 0, 1)[None])
    pruner = ocvtp_kernels.OCPruner.from_checkpoint(DEMO_PRUNER)
    with torch.no_grad():
        ids = pruner(tokens, tokens, budget=64).ids
    assert coverage(tokens, ids).item() > random_coverage(tokens[0], 64).mean().item()
