"""Patch tokens without weights: colour, gradients and frequency content of 14 × 14 patches."""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PATCH_SIZE = 14
GRID_SIZE = 24
IMAGE_SIZE = PATCH_SIZE * GRID_SIZE

ORIENTATIONS = 8
# Ring edges in DCT radius, in half cycles per patch; the mean itself (radius 0) is left out.
BAND_EDGES = (0.5, 1.5, 3.0, 6.0, 14.0)
# Of 1 % lightness contrast, about the noise of a photo; differences below it mean nothing.
ENERGY_FLOOR = 1e-4
# Keeps a group that hardly varies over an image, a grey photo's colour for one, from being noise.
SCALE_FLOOR = 0.02

# Channels of each group, and its share: the mean squared norm of its part of a token.
GROUPS = {
    "colour": (6, 1.0),
    "layout": (12, 0.15),
    "gradient": (8, 0.4),
    "frequency": (8, 0.3),
    "context": (22, 0.8),
    "surround": (4, 0.5),
}
POSITION_CHANNELS = 4
POSITION_SHARE = 0.2

# Linear sRGB to CIE XYZ (IEC 61966-2-1), each row divided by the D65 white point.
RGB_TO_XYZ = (
    (0.412456 / 0.950470, 0.357576 / 0.950470, 0.180438 / 0.950470),
    (0.212673, 0.715152, 0.072175),
    (0.019334 / 1.088830, 0.119192 / 1.088830, 0.950304 / 1.088830),
)


def srgb_to_lab(images: Tensor) -> Tensor:
    """CIELAB (CIE 15, D65) divided by 100, from sRGB in 0..1: ``[B,3,H,W]``, same dtype."""
    curved = ((images.clamp(min=0.04045) + 0.055) / 1.055) ** 2.4
    red, green, blue = torch.where(images <= 0.04045, images / 12.92, curved).unbind(1)
    fx, fy, fz = (
        torch.where(t > 0.008856, t.clamp(min=0.008856) ** (1 / 3), 7.787 * t + 16 / 116)
        for t in (r * red + g * green + b * blue for r, g, b in RGB_TO_XYZ)
    )
    return torch.stack([1.16 * fy - 0.16, 5.0 * (fx - fy), 2.0 * (fy - fz)], dim=1)


def orientation_energy(lightness: Tensor) -> Tensor:
    """Gradient magnitude shared among 8 unsigned orientations: ``[B,1,H,W]`` to ``[B,8,H,W]``.

    Central differences with replicated edges, in lightness per pixel. Each pixel votes linearly
    for its two nearest bins (Dalal & Triggs 2005). Bin k is centred on a gradient angle of
    k · 22.5 degrees: bin 0 answers to vertical edges, bin 4 to horizontal ones.
    """
    padded = F.pad(lightness, (1, 1, 1, 1), mode="replicate")
    dx = 0.5 * (padded[:, :, 1:-1, 2:] - padded[:, :, 1:-1, :-2])
    dy = 0.5 * (padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1])
    magnitude = torch.sqrt(dx * dx + dy * dy)
    angle = torch.remainder(torch.atan2(dy, dx), math.pi) * (ORIENTATIONS / math.pi)
    bins = torch.arange(ORIENTATIONS, dtype=angle.dtype, device=angle.device).view(1, -1, 1, 1)
    distance = (angle - bins).abs()
    distance = torch.minimum(distance, ORIENTATIONS - distance)
    return magnitude * (1.0 - distance).clamp(min=0.0)


def dct_basis(size: int) -> Tensor:
    """The orthonormal DCT-II (the transform of JPEG): float64 ``[size, size]``, a row per basis."""
    frequency = torch.arange(size, dtype=torch.float64)[:, None]
    sample = 2 * torch.arange(size, dtype=torch.float64)[None, :] + 1
    basis = math.sqrt(2 / size) * torch.cos(math.pi * frequency * sample / (2 * size))
    basis[0] /= math.sqrt(2)
    return basis


def band_masks(size: int) -> Tensor:
    """Which DCT coefficients make up each band: float64 0/1 ``[8, size, size]``, see `GROUPS`."""
    down, across = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    radius = torch.sqrt((across * across + down * down).double())
    rings = [(radius >= low) & (radius < high) for low, high in itertools.pairwise(BAND_EDGES)]
    sides = (across >= down, across < down)
    return torch.stack([ring & side for ring in rings for side in sides]).double()


class PatchDescriptor(nn.Module):
    """Tokens of a photo from formulas alone: no parameters, nothing learned, any batch.

    Stands in for a vision encoder where no weights are at hand. A token is 64 channels, with L, a,
    b the CIELAB values of the sRGB pixels divided by 100:

    ======  =========  ==========================================================================
    0-5     colour     mean L, a, b of the patch; standard deviation of L, a, b in it
    6-17    layout     mean of each 7 × 7 quadrant minus the patch mean: L (top left, top right,
                       bottom left, bottom right), then a, then b
    18-25   gradient   square root of the mean gradient magnitude of L in 8 orientations
                       (`orientation_energy`), a histogram of oriented gradients
    26-33   frequency  log10(1e-4 + energy per pixel) of the DCT of L in 4 rings of radius
                       0.5-1.5-3-6-14, each as (varies mostly across, varies mostly down)
    34-55   context    colour, gradient and frequency averaged over 3 × 3 patches
    56-59   surround   mean L, a, b and mean gradient channel averaged over 7 × 7 patches
    60-63   position   sin and cos of x, sin and cos of y, the patch centre in -π/2..π/2
    ======  =========  ==========================================================================

    Averages over patches leave out what lies beyond the border. Each group but the last is centred
    over the image's own tokens and divided by (the root mean square over tokens of its norm +
    0.02), then multiplied by the root of its share: colour 1, layout 0.15, gradient 0.4, frequency
    0.3, context 0.8, surround 0.5; position has the constant squared norm 0.2. So the plain cosine
    of two tokens compares them, whatever the photo's contrast; a flat image leaves position alone.

    Attributes:
        patch_size: 14, image_size: 336 (pixels), grid: (24, 24), width: 64.
    """

    basis: Tensor
    bands: Tensor
    position: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.patch_size = PATCH_SIZE
        self.image_size = IMAGE_SIZE
        self.grid = (GRID_SIZE, GRID_SIZE)
        self.width = sum(channels for channels, _ in GROUPS.values()) + POSITION_CHANNELS
        axis = (torch.arange(GRID_SIZE) + 0.5) / GRID_SIZE * math.pi - math.pi / 2
        y, x = torch.meshgrid(axis, axis, indexing="ij")
        # Two pairs of sine and cosine have the squared norm 2.
        position = torch.stack([x.sin(), x.cos(), y.sin(), y.cos()]) * math.sqrt(POSITION_SHARE / 2)
        self.register_buffer("basis", dct_basis(PATCH_SIZE).float(), persistent=False)
        self.register_buffer("bands", band_masks(PATCH_SIZE).float(), persistent=False)
        self.register_buffer("position", position.float(), persistent=False)

    def measure(self, images: Tensor) -> dict[str, Tensor]:
        """The groups in their own units, before centring and scaling: each ``[B,c,24,24]``."""
        lab = srgb_to_lab(images)
        mean = F.avg_pool2d(lab, PATCH_SIZE)
        spread = F.avg_pool2d((lab - self._to_pixels(mean)) ** 2, PATCH_SIZE).sqrt()
        quadrants = F.pixel_unshuffle(F.avg_pool2d(lab, PATCH_SIZE // 2), 2)
        gradient = F.avg_pool2d(orientation_energy(lab[:, :1]), PATCH_SIZE).sqrt()
        colour = torch.cat([mean, spread], dim=1)
        frequency = self._log_band_energy(lab[:, 0])
        near = torch.cat([colour, gradient, frequency], dim=1)
        wide = torch.cat([mean, gradient.mean(dim=1, keepdim=True)], dim=1)
        return {
            "colour": colour,
            "layout": quadrants - mean.repeat_interleave(4, dim=1),
            "gradient": gradient,
            "frequency": frequency,
            "context": F.avg_pool2d(near, 3, stride=1, padding=1, count_include_pad=False),
            "surround": F.avg_pool2d(wide, 7, stride=1, padding=3, count_include_pad=False),
        }

    def forward(self, images: Tensor) -> Tensor:
        """Describes every patch.

        Args:
            images: ``[B,3,336,336]``, any floating dtype, sRGB in 0..1.

        Returns:
            ``[B,576,64]`` float32, row by row from the top left.

        Raises:
            ValueError: images has another shape, or is not floating.
        """
        expected = (3, IMAGE_SIZE, IMAGE_SIZE)
        if images.ndim != 4 or tuple(images.shape[1:]) != expected:
            shape = list(images.shape)
            raise ValueError(f"images: expected [B, 3, {IMAGE_SIZE}, {IMAGE_SIZE}], got {shape}")
        if not images.is_floating_point():
            raise ValueError(f"images: expected floating values in 0..1, got {images.dtype}")
        parts = []
        for name, part in self.measure(images.float()).items():
            centred = part - part.mean(dim=(2, 3), keepdim=True)
            power = (centred**2).sum(dim=1, keepdim=True).mean(dim=(2, 3), keepdim=True)
            parts.append(centred * (math.sqrt(GROUPS[name][1]) / (power.sqrt() + SCALE_FLOOR)))
        parts.append(self.position.expand(images.shape[0], -1, -1, -1))
        return torch.cat(parts, dim=1).flatten(2).transpose(1, 2).contiguous()

    def _to_pixels(self, patches: Tensor) -> Tensor:
        """``[B,C,24,24]`` to ``[B,C,336,336]``, every value repeated over its patch."""
        return patches.repeat_interleave(PATCH_SIZE, 2).repeat_interleave(PATCH_SIZE, 3)

    def _log_band_energy(self, lightness: Tensor) -> Tensor:
        """``[B,336,336]`` to ``[B,8,24,24]``: log10 of the floor + mean square of each band."""
        rows = lightness.unflatten(2, (GRID_SIZE, PATCH_SIZE))
        patches = rows.unflatten(1, (GRID_SIZE, PATCH_SIZE)).transpose(2, 3)
        coefficients = self.basis @ patches @ self.basis.T
        energy = (coefficients**2).flatten(3) @ self.bands.flatten(1).T / PATCH_SIZE**2
        return torch.log10(ENERGY_FLOOR + energy).permute(0, 3, 1, 2)
