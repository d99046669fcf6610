"""Turns a picture of a digit into an image like those of MNIST (LeCun et al. 1998)."""

import torch
from torch import Tensor
from torch.nn import functional as F

from mnist_lightning.errors import PhotoError

SIZE = 28  # width and height of an image, in pixels
BOX = 20  # the longest side of a digit, in pixels
CENTRE = 14  # the row and column of its centre of mass
COARSE_SIDE = 128  # pixels that are enough to find the background and the connected parts

LEAST_CONTRAST = 0.06  # a photo with less contrast is blank; 1 is the range from black to white
FAINTEST_STROKE = 0.3  # anything fainter is not part of a stroke; 1 is the darkest ink
SMALLEST_PART = 0.08  # anything smaller is dust; 1 is the area of the largest part


def image(colours: Tensor, opacity: Tensor | None = None) -> Tensor:
    """Return an image like those of MNIST, uint8 `(28, 28)`, ink is 255, background is 0.

    Args:
        colours: float32 `(3, H, W)` in 0..1.
        opacity: float32 `(H, W)` in 0..1. Without it, all pixels are opaque.

    Raises:
        PhotoError: Nothing stands out from the background.
    """
    ink = _ink(_over_background(colours, opacity) if opacity is not None else colours)
    return _centre(_cut_out(ink))


def _over_background(colours: Tensor, opacity: Tensor) -> Tensor:
    """Return colours without transparency, float32 `(C, H, W)` in 0..1."""
    opaque = colours[:, opacity > 0.5]
    if not opaque.numel() or opaque.std(1, correction=0).max() < 0.1:  # ink of one colour on a transparent background
        return opacity[None]
    # The paper has holes or round corners. Fill them with the colour of the paper.
    return colours * opacity + opaque.median(1).values[:, None, None] * (1 - opacity)


def _ink(colours: Tensor) -> Tensor:
    """Return how much ink each pixel has, `(H, W)`: its distance from the background towards the colour of the ink."""
    distance = colours - _background(colours)
    # Noise is symmetric and ink is not, so the mean of the cubed distance points to the ink.
    direction = (distance * distance.square().sum(0)).mean((1, 2))
    direction /= direction.norm().clamp(min=1e-12) * len(direction) ** 0.5  # the distance from white to black is now 1
    return (distance * direction[:, None, None]).sum(0)


def _background(colours: Tensor) -> Tensor:
    """Return the background in uneven light, `(C, H, W)`: a quadratic surface for each channel.

    One fit starts from the median colour, and one from the colour of the frame, because a bold digit may fill more
    than half of a photo. Least squares are repeated, with less weight on pixels far from the surface (Beaton and
    Tukey 1974).
    """
    channels, height, width = colours.shape
    v, u = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    terms = torch.stack([torch.ones_like(u), u, v, u * u, u * v, v * v], dim=2)  # (H, W, 6)
    step = max(1, max(height, width) // COARSE_SIDE)
    a = terms[::step, ::step].reshape(-1, 6).double()
    b = colours[:, ::step, ::step].reshape(channels, -1).T.double()
    stiffness = 1e-3 * len(a) * torch.eye(6)  # keeps the surface level where no background is visible

    def fit(start: Tensor) -> tuple[Tensor, float]:
        """Fit from a first colour `(C,)`. Return a surface `(6, C)`, and the share of pixels near it."""
        above = b - start
        distance = above.abs().amax(1, keepdim=True)
        for _ in range(12):
            scale = (2.5 * distance.median()).clamp(0.025, 0.3)
            weights = (1 - (distance / scale).clamp(max=1) ** 2) ** 2
            weighted = (a * weights).T
            surface = torch.linalg.solve(weighted @ a + stiffness, weighted @ above)
            distance = (above - a @ surface).abs().amax(1, keepdim=True)
        surface[0] += start
        return surface, (weights > 0.5).double().mean().item()

    frame = torch.cat([colours[:, 0], colours[:, -1], colours[:, :, 0], colours[:, :, -1]], dim=1).double()
    (most, share), (around, share_around) = fit(b.median(0).values), fit(frame.median(1).values)
    return (terms @ (around if share_around > 0.7 * share else most).float()).permute(2, 0, 1)


def _cut_out(ink: Tensor) -> Tensor:
    """Return the rectangle that holds the digit, with ink in 0..1.

    Raises:
        PhotoError: Nothing stands out from the background.
    """
    # With Gaussian noise alone, a quarter of the differences between neighbours are below 0.45 standard deviations.
    steps = torch.cat([ink.diff(dim=0).flatten(), ink.diff(dim=1).flatten(), torch.zeros(1)])
    noise = steps.abs().quantile(0.25).item() / 0.45
    if max(ink.shape) > COARSE_SIDE / 2:
        ink_around = F.pad(ink[None], (1, 1, 1, 1), mode="replicate")
        smooth, noise = F.avg_pool2d(ink_around, 3, stride=1)[0], noise / 3
    else:  # its strokes are too thin for smoothing
        smooth = ink
    level = smooth.max().item()
    if level < max(LEAST_CONTRAST, 6 * noise):
        raise PhotoError("nothing stands out from the background")
    digit = _digit(smooth > max(FAINTEST_STROKE * level, 4 * noise))
    rows, columns = digit.any(1).nonzero(), digit.any(0).nonzero()
    kept = ink * F.max_pool2d(digit[None].float(), 3, stride=1, padding=1)[0]
    return (kept[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] / level).clamp(0, 1)


def _digit(mask: Tensor) -> Tensor:
    """Return which pixels belong to the digit, bool `(H, W)`, given which pixels stand out.

    Dust does not belong to it. A part along the edges, such as a shadow, belongs only if there is no other part.
    """
    height, width = mask.shape
    step = max(1, max(height, width) // COARSE_SIDE)
    coarse = F.max_pool2d(F.pad(mask[None].float(), (0, -width % step, 0, -height % step)), step)
    # Find connected parts: each pixel takes the highest number of its neighbours, until none changes. SciPy's `label`
    # would do the same, but an installed SciPy makes each start slower: torchmetrics imports it.
    numbers, before = torch.arange(1.0, coarse.numel() + 1).view_as(coarse) * coarse, torch.zeros_like(coarse)
    while not torch.equal(numbers, before):
        numbers, before = F.max_pool2d(numbers, 3, stride=1, padding=1) * coarse, numbers
    part = F.interpolate(numbers[None], scale_factor=step)[0, 0, :height, :width] * mask
    parts, areas = part[mask].unique(return_counts=True)
    edges = torch.cat([part[0], part[-1], part[:, 0], part[:, -1]])
    frame, lengths = edges[edges > 0].unique(return_counts=True)
    # A digit near the edge may touch it, but not along a tenth of the frame.
    others = ~torch.isin(parts, frame[lengths > len(edges) / 10])
    if (areas[others] > max(16, mask.numel() / 1_000)).any():
        parts, areas = parts[others], areas[others]
    return torch.isin(part, parts[areas >= SMALLEST_PART * areas.max()])


def _centre(digit: Tensor) -> Tensor:
    """Return an image, uint8 `(28, 28)`, with the size and position that MNIST gives a digit `(H, W)` in 0..1."""
    height, width = (max(1, round(length * BOX / max(digit.shape))) for length in digit.shape)
    small = F.interpolate(digit[None, None], (height, width), mode="bilinear", antialias=True)[0, 0]
    small /= small.max()

    def start(ink: Tensor) -> int:
        """Return where the digit begins along an axis, from its ink at each position."""
        centre = ink @ torch.arange(float(len(ink))) / ink.sum()
        return min(max(round(CENTRE - centre.item()), 0), SIZE - len(ink))  # inside the image

    top, left = start(small.sum(1)), start(small.sum(0))
    image = torch.zeros(SIZE, SIZE)
    image[top : top + height, left : left + width] = small
    return (255 * image).round().to(torch.uint8)
