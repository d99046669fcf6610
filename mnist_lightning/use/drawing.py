"""Pictures for a notebook: a grid of images, and curves. A notebook shows a Pillow image by itself."""

import math
from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from mnist_lightning.runs.figures import INK, PAPER, tiles

COLOURS = ((0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167))  # colour-blind people can tell them apart
RULE = (225, 225, 225)
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 1280, 600, 104, 32, 56, 84  # pixels, before the figure is halved


def grid(images: Tensor, captions: Sequence[object] = (), columns: int = 8, enlarged: int = 3) -> Image.Image:
    """Draw images in rows, each with a caption below.

    Args:
        images: `(N, H, W)` or `(N, 1, H, W)` of any type. The smallest value is black, the largest is white.
        captions: One for each image, all with the same number of lines. Without any, nothing is written.
        columns: Images in a row, at most.
        enlarged: How many times larger each image is drawn.
    """
    plain = images.detach().float().flatten(0, -3)  # (N, H, W)
    return to_pil_image(tiles(plain, [str(caption) for caption in captions], min(columns, len(plain)), enlarged))


def curves(values: Mapping[str, Sequence[float]], x: Sequence[float], label: str) -> Image.Image:
    """Draw a curve for each name. All curves share both axes.

    Args:
        values: Up to four names, each with N finite numbers, at least two.
        x: Where the values lie on the horizontal axis: N numbers, ascending.
        label: What the horizontal axis shows.
    """
    low, high = min(min(curve) for curve in values.values()), max(max(curve) for curve in values.values())

    def across(position: float) -> float:
        return LEFT + (position - x[0]) / (x[-1] - x[0]) * (WIDTH - LEFT - RIGHT)

    def down(value: float) -> float:
        return TOP + (high - value) / max(high - low, 1e-9) * (HEIGHT - TOP - BOTTOM)

    figure = Image.new("RGB", (WIDTH, HEIGHT), PAPER)
    draw, font = ImageDraw.Draw(figure), ImageFont.load_default(26)
    for value in _round_numbers(low, high):
        draw.line((LEFT, down(value), WIDTH - RIGHT, down(value)), RULE, width=2)
        draw.text((LEFT - 12, down(value)), f"{value:g}", INK, font, anchor="rm")
    for position in _round_numbers(x[0], x[-1]):
        draw.text((across(position), HEIGHT - BOTTOM + 12), f"{position:g}", INK, font, anchor="ma")
    draw.text((WIDTH - RIGHT, HEIGHT - 6), label, INK, font, anchor="rd")
    left = float(LEFT)
    for (name, curve), colour in zip(values.items(), COLOURS, strict=False):
        draw.line([(across(at), down(value)) for at, value in zip(x, curve, strict=True)], colour, 4, joint="curve")
        draw.text((left, 10), name, colour, font)
        left += draw.textlength(name, font) + 40
    return figure.reduce(2)  # makes the lines smooth


def _round_numbers(low: float, high: float) -> list[float]:
    """Return about five round numbers from `low` to `high`."""
    least = max(high - low, 1e-9) / 6  # the smallest distance between two of them
    power = 10.0 ** math.floor(math.log10(least))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least)
    return [round(step * number, 9) for number in range(math.ceil(low / step), math.floor(high / step) + 1)]
