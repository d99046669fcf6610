"""Random distortions of training images, different for each image of a batch."""

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from mnist_lightning.errors import SettingError

POINTS = 5  # points of the elastic grid along each axis


@dataclass(frozen=True)
class Distortion:
    """How strongly training images are distorted. With the defaults, nothing changes.

    Args:
        rotation: Largest random angle in degrees, clockwise or counterclockwise.
        scale: Largest random change of width and of height: 0.1 means 1/1.1 to 1.1 times the size.
        shear: Largest random slant, in pixels per row.
        translation: Largest random shift along each axis, in pixels.
        elastic: Standard deviation of random local shifts, in pixels (Simard et al. 2003).

    Raises:
        SettingError: A value is negative or not finite.
    """

    rotation: float = 0.0
    scale: float = 0.0
    shear: float = 0.0
    translation: float = 0.0
    elastic: float = 0.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 <= value < math.inf:
                raise SettingError(name, value, "0 or more, and finite")

    def __bool__(self) -> bool:
        """Whether anything is distorted."""
        return any(vars(self).values())

    def weaker(self, by: float) -> "Distortion":
        """Return the same distortions, weaker by a share in 0..1."""
        return Distortion(**{name: value * (1 - by) for name, value in vars(self).items()})

    def __call__(self, images: Tensor, generator: Generator | None = None) -> Tensor:
        """Return images, each distorted by its own random amounts.

        torchvision's random transforms draw one amount for the whole batch (vision#8484). This function also
        resamples only once, so that images get less blurred.

        Args:
            images: float32 `(N, 1, 28, 28)`.
            generator: The source of random numbers, on the device of the images. By default, torch's own.

        Returns:
            float32 `(N, 1, 28, 28)`. Pixels from outside the image repeat its edge.
        """
        device, size = images.device, images.shape[-1]
        pixel = 2 / size  # the size of a pixel in the coordinates of `affine_grid`, which are -1..1

        def draw(largest: float) -> Tensor:  # (N,), in -largest..largest
            return (torch.rand(len(images), device=device, generator=generator) * 2 - 1) * largest

        angle, slant = draw(math.radians(self.rotation)), draw(self.shear)
        width, height = (1 + self.scale) ** draw(1), (1 + self.scale) ** draw(1)
        right, down = draw(self.translation * pixel), draw(self.translation * pixel)
        cos, sin = angle.cos(), angle.sin()
        # The matrix maps each pixel of the result to its source: rotate, then shear, then scale, then translate.
        rows = [
            [width * (cos + slant * sin), width * (slant * cos - sin), right],
            [height * sin, height * cos, down],
        ]
        matrices = torch.stack([torch.stack(row, dim=1) for row in rows], dim=1)  # (N, 2, 3)
        grid = F.affine_grid(matrices, list(images.shape), align_corners=False)  # (N, 28, 28, 2)
        if self.elastic:
            # The paper blurs a fine grid of random shifts. Here, a coarse grid is interpolated: `weights`, (25, 784),
            # holds the weight of each point for each pixel. `F.interpolate` would take seven times as long.
            points = torch.eye(POINTS**2, device=device).view(-1, 1, POINTS, POINTS)
            weights = F.interpolate(points, (size, size), mode="bicubic", align_corners=True).flatten(1)
            shifts = torch.randn(2, len(images), POINTS**2, device=device, generator=generator)
            field = shifts @ weights * (self.elastic * pixel)  # (2, N, 28 * 28)
            grid = grid + field.view(2, -1, size, size).permute(1, 2, 3, 0)
        return F.grid_sample(images, grid, padding_mode="border", align_corners=False)
