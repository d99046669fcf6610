"""Turns a picture of a digit into an image in the style of MNIST (LeCun et al. 1998)."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mnist_lightning.errors import PhotoError

SIZE = 28  # width and height of an image, in pixels
BOX = 20  # the longest side of a digit, in pixels
CENTRE = 14  # the row and column of its centre of mass
TIE = 1e-3  # a digit moves up and left by this many pixels, so that rounding errors never choose its position
COARSE_SIDE = 128  # a side of this many pixels is enough to find the background and the connected parts

LEAST_CONTRAST = 0.06  # a photo with less contrast is blank; 1 is the range from black to white
FAINTEST_STROKE = 0.3  # anything fainter is not part of a stroke; 1 is the darkest ink
PAPER_SQUARE = 0.45  # the side of a square that paper holds, and strokes do not; 1 is the shorter side of the paper
SMALLEST_PART = 0.08  # anything smaller is dust; 1 is the area of the largest part


def image(colours: Tensor, opacity: Tensor | None = None) -> Tensor:
    """Return an image in the style of MNIST: uint8 `(28, 28)`, ink is 255, background is 0.

    Args:
        colours: float32 `(3, H, W)` in 0..1.
        opacity: float32 `(H, W)` in 0..1. Without it, no pixel is transparent.

    Raises:
        PhotoError: Nothing stands out from the background.
    """
    return _centre(_cut_out(_ink(colours)) if opacity is None else _cut_out_transparent(colours, opacity))


def _cut_out_transparent(colours: Tensor, opacity: Tensor) -> Tensor:
    """Return the same as `_cut_out`, for a picture with transparent pixels.

    Such a picture shows strokes on a transparent background, or paper with round corners or holes. If the paper is
    blank, its shape is the digit.
    """
    opaque = opacity > opacity.max() / 2
    if opacity.max() > LEAST_CONTRAST and _is_paper(opaque[_box(opaque)]):
        # Everything outside of the paper gets the paper's colour. So do the edges, where other colours shine through.
        paper = colours[:, opaque].median(1).values[:, None, None]
        inside = _sum_of_nine(opaque.float()) > 8.5
        try:
            return _cut_out(_ink(torch.where(inside, colours, paper)))
        except PhotoError:
            if 0.5 < _frame(opaque).float().mean() < 1:  # only the corners are missing
                raise
    return _cut_out(_ink(opacity[None]))


def _is_paper(mask: Tensor) -> bool:
    """Return whether a mask `(H, W)` is so thick that it holds a large square. Strokes are thinner."""
    side = max(1, round(PAPER_SQUARE * min(mask.shape)))
    sums = F.pad(mask.double().cumsum(0).cumsum(1), (1, 0, 1, 0))  # over all pixels above and to the left
    squares = sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]
    return squares.max().item() > 0.95 * side**2


def _ink(colours: Tensor) -> Tensor:
    """Return how much ink each pixel has, `(H, W)`: its distance from the background towards the colour of the ink."""
    distance = colours - _background(colours)
    # Noise is symmetric and ink is not, so the sum of the cubed distances points to the ink.
    direction = torch.einsum("chw,hw->c", distance, distance.square().sum(0))
    direction /= direction.norm().clamp(min=1e-12) * len(direction) ** 0.5  # the distance from white to black is now 1
    return torch.einsum("c,chw->hw", direction, distance)


def _background(colours: Tensor) -> Tensor:
    """Return the background in uneven light, `(C, H, W)`: a quadratic surface for each channel.

    One fit starts from the median colour, and one from the colour of the frame, because a bold digit may fill more
    than half of a photo. Least squares are repeated, with less weight on pixels far from the surface (Beaton and
    Tukey 1974).
    """
    channels, height, width = colours.shape
    powers = torch.tensor([[0, 0], [0, 1], [1, 0], [0, 2], [1, 1], [2, 0]])  # of the row and of the column
    down = torch.linspace(-1, 1, height) ** powers[:, :1]  # (6, H)
    across = torch.linspace(-1, 1, width) ** powers[:, 1:]  # (6, W)
    step = max(1, max(height, width) // COARSE_SIDE)
    a = (down[:, ::step, None] * across[:, None, ::step]).flatten(1).double()
    b = colours[:, ::step, ::step].reshape(channels, -1).double()
    stiffness = 1e-3 * a.shape[1] * torch.eye(6)  # keeps the surface level where no background is visible

    def fit(start: Tensor) -> tuple[Tensor, float]:
        """Fit from a first colour `(C,)`. Return a surface `(6, C)`, and the share of pixels near it."""
        above = b - start[:, None]
        surface, distance = torch.zeros(6, channels), above.abs().amax(0)
        for _ in range(12):
            scale = min(max(2.5 * _quantile(distance, 0.5), 0.025), 0.3)
            weights = (1 - (distance / scale).clamp(max=1) ** 2) ** 2
            weighted = a * weights
            before, surface = surface, torch.linalg.solve(weighted @ a.T + stiffness, weighted @ above.T)
            distance = (above - surface.T @ a).abs().amax(0)
            if (surface - before).abs().sum(0).max() < 1e-4:  # a step of an 8-bit picture is 4e-3
                break
        surface[0] += start
        return surface, (weights > 0.5).double().mean().item()

    (most, share), (around, share_around) = fit(b.median(1).values), fit(_frame(colours).double().median(1).values)
    surface = around if share_around > 0.7 * share else most
    return torch.einsum("kc,kh,kw->chw", surface.float(), down, across)


def _cut_out(ink: Tensor) -> Tensor:
    """Return the rectangle that holds the digit, with ink in 0..1.

    Raises:
        PhotoError: Nothing stands out from the background.
    """
    # With Gaussian noise alone, a quarter of the differences between neighbours are below 0.45 standard deviations.
    steps = torch.cat([ink.diff(dim=0).flatten(), ink.diff(dim=1).flatten(), torch.zeros(1)])
    noise = _quantile(steps.abs(), 0.25) / 0.45
    if max(ink.shape) > COARSE_SIDE / 2:
        smooth, noise = _sum_of_nine(ink) / 9, noise / 3
    else:  # its strokes are too thin for smoothing
        smooth = ink
    level = smooth.max().item()
    if level < max(LEAST_CONTRAST, 6 * noise):
        raise PhotoError("nothing stands out from the background")
    digit = _digit(smooth > max(FAINTEST_STROKE * level, 4 * noise))
    box = _box(digit)
    kept = ink[box] * (_sum_of_nine(digit[box].float()) > 0)
    return (kept / level).clamp(0, 1)


def _frame(values: Tensor) -> Tensor:
    """Return the pixels along the edges, `(..., 2 * W + 2 * H)`, of values `(..., H, W)`."""
    return torch.cat([values[..., 0, :], values[..., -1, :], values[..., 0], values[..., -1]], dim=-1)


def _box(mask: Tensor) -> tuple[slice, slice]:
    """Return the rows and columns of the smallest rectangle that holds all True pixels of a mask `(H, W)`."""
    rows, columns = (mask.any(axis).nonzero() for axis in (1, 0))
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def _sum_of_nine(values: Tensor) -> Tensor:
    """Return the sum of each pixel and its eight neighbours, `(H, W)`. Outside of the picture, its edges are repeated.

    torch's pooling takes ten times as long.
    """
    padded = F.pad(values[None], (1, 1, 1, 1), mode="replicate")[0]
    rows = padded[:-2] + padded[1:-1] + padded[2:]
    return rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]


def _quantile(values: Tensor, share: float) -> float:
    """Return a quantile of values `(N,)`. torch would take ten times as long."""
    rank = int(share * (len(values) - 1))
    return np.partition(values.numpy(), rank)[rank].item()


def _digit(mask: Tensor) -> Tensor:
    """Return which pixels belong to the digit, bool `(H, W)`, given which pixels stand out.

    Dust is not part of it. A shape along the edges, such as a shadow, is the digit only if there is nothing else.
    """
    height, width = mask.shape
    step = max(1, max(height, width) // COARSE_SIDE)
    padded = F.pad(mask[None].float(), (0, -width % step, 0, -height % step))
    pixels = F.avg_pool2d(padded, step, divisor_override=1)  # how many pixels stand out in each square
    coarse = (pixels > 0).float()
    # Find connected parts. Each pixel has a number, and takes the highest number of its neighbours until none changes.
    # It then takes the number of the pixel that first had this number, so that a long stroke needs few rounds.
    # SciPy's `label` would do the same, but an installed SciPy makes each start slower: torchmetrics imports it.
    numbers, before = torch.arange(1.0, coarse.numel() + 1).view_as(coarse) * coarse, torch.zeros_like(coarse)
    while not torch.equal(numbers, before):
        highest = F.max_pool2d(numbers, 3, stride=1, padding=1) * coarse
        numbers, before = F.pad(highest.flatten(), (1, 0))[highest.long()], numbers
    part = numbers.long()
    areas = part.flatten().bincount(pixels.flatten(), minlength=part.numel() + 1)
    fine = F.interpolate(numbers[None], scale_factor=step)[0, 0, :height, :width] * mask
    edges = _frame(fine)
    # A digit may touch the edges, but not along more than a tenth of the frame.
    others = areas * (edges.long().bincount(minlength=len(areas)) <= len(edges) / 10)
    if others.max() > max(16, mask.numel() / 1_000):
        areas = others
    kept = (areas >= (SMALLEST_PART * areas.max()).clamp(min=1))[part]
    return (F.interpolate(kept[None].float(), scale_factor=step)[0, 0, :height, :width] * mask).bool()


def _centre(digit: Tensor) -> Tensor:
    """Return an image, uint8 `(28, 28)`, with the size and position that MNIST gives a digit `(H, W)` in 0..1."""
    height, width = (max(1, round(length * BOX / max(digit.shape))) for length in digit.shape)
    small = F.interpolate(digit[None, None], (height, width), mode="bilinear", antialias=True)[0, 0]
    small /= small.max()

    def start(ink: Tensor) -> int:
        """Return where the digit begins along an axis, from its ink at each position."""
        centre = ink @ torch.arange(float(len(ink))) / ink.sum()
        return min(max(round(CENTRE - centre.item() - TIE), 0), SIZE - len(ink))  # inside the image

    top, left = start(small.sum(1)), start(small.sum(0))
    image = torch.zeros(SIZE, SIZE)
    image[top : top + height, left : left + width] = small
    return (255 * image).round().to(torch.uint8)
