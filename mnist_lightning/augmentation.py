"""Distortion of training images, drawn anew for each image of a batch."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

POINTS = 5  # along each axis, of the grid that elastic distortion moves


def distort(
    images: Tensor,
    rotation: float = 0.0,
    scale: float = 0.0,
    shear: float = 0.0,
    translation: float = 0.0,
    elastic: float = 0.0,
) -> Tensor:
    """Distort each image by amounts of its own, on the device where the images are.

    torchvision's random transforms draw once for a whole batch (vision#8484). Here one resampling does all of it, so
    that pixels are interpolated once. Elastic distortion is that of Simard et al. (2003), with a coarse grid of random
    displacements in place of a blurred fine one.

    Args:
        images: float32 `(N, 1, 28, 28)`. Pixels from beyond the edge repeat the edge.
        rotation: the largest angle in degrees, either way.
        scale: the largest change of width, and of height; 0.1 gives 1 / 1.1 to 1.1 times the size.
        shear: the largest slant, either way: how many pixels a row lies to the side of the one above it.
        translation: the largest way in pixels along each axis.
        elastic: standard deviation in pixels of the displacements at 5 x 5 points, interpolated in between.

    Returns:
        float32 `(N, 1, 28, 28)`.
    """
    device, size = images.device, images.shape[-1]
    pixel = 2 / size  # in the coordinates of `affine_grid`, -1..1

    def draw(most: float) -> Tensor:  # (N,), in -most..most
        return (torch.rand(len(images), device=device) * 2 - 1) * most

    angle, slant = draw(math.radians(rotation)), draw(shear)
    width, height = (1 + scale) ** draw(1), (1 + scale) ** draw(1)
    right, down = draw(translation * pixel), draw(translation * pixel)
    cos, sin = angle.cos(), angle.sin()
    # Where each pixel of the result is read from: turned, then slanted, then stretched, then moved.
    rows = [
        [width * (cos + slant * sin), width * (slant * cos - sin), right],
        [height * sin, height * cos, down],
    ]
    matrices = torch.stack([torch.stack(row, dim=1) for row in rows], dim=1)  # (N, 2, 3)
    grid = F.affine_grid(matrices, list(images.shape), align_corners=False)  # (N, 28, 28, 2)
    if elastic:
        # The weight of each point for each pixel, (25, 28 * 28): to interpolate image by image takes 7 times as long.
        points = torch.eye(POINTS**2, device=device).view(-1, 1, POINTS, POINTS)
        weights = F.interpolate(points, (size, size), mode="bicubic", align_corners=True).flatten(1)
        field = torch.randn(2, len(images), POINTS**2, device=device) @ weights * (elastic * pixel)  # (2, N, 28 * 28)
        grid = grid + field.view(2, -1, size, size).permute(1, 2, 3, 0)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)
