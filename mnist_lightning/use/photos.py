"""A person's picture of a digit, made into an image as those of MNIST were (LeCun et al. 1998)."""

import glob
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

SIZE = 28  # pixels of an image, along each axis
BOX = 20  # pixels of a digit's longest side
CENTRE = 14  # the pixel, along each axis, where its centre of mass comes to lie
WORKING_SIDE = 512  # pixels; a larger picture is reduced to it
COARSE_SIDE = 128  # is enough for the background, and for which parts hang together

# Of the range from black to white: fainter than this on its background, a picture is blank.
LEAST_CONTRAST = 0.06
FAINTEST_STROKE = 0.3  # of the darkest: what is fainter is no stroke
SMALLEST_PART = 0.08  # of the largest: what is smaller is dust


class PhotoError(Exception):
    """There is no such picture, or no digit can be found in it."""


class Photos(NamedTuple):
    """Pictures that were read.

    Attributes:
        paths: of N files.
        images: uint8 `(N, 28, 28)`, ink 255 on 0; all 0 where there is a problem.
        problems: for each why no image could be made of it, or "".
    """

    paths: list[Path]
    images: Tensor
    problems: list[str]


def read(names: Iterable[str]) -> Photos:
    """Read all pictures that are named, and note what can't be read.

    Args:
        names: files, folders (for the pictures in them, by suffix) and globs.

    Raises:
        PhotoError: there is nothing of a name.
    """
    paths = find(names)
    images = torch.zeros(len(paths), SIZE, SIZE, dtype=torch.uint8)
    problems = [""] * len(paths)
    # A bar only for those who would have to wait.
    for index, path in enumerate(tqdm(paths, "Reading pictures", delay=2, leave=False)):
        try:
            images[index] = prepare(path)
        except PhotoError as error:
            problems[index] = str(error)
    return Photos(paths, images, problems)


def write(images: Tensor, names: Iterable[str], problems: Iterable[str], folder: Path) -> None:
    """Write images as PNG files of ten times their size, so that a person can see what a network sees.

    Args:
        images: uint8 `(N, 28, 28)`.
        names: what each is from. Its file is called by number and the last part of its name.
        problems: why there is no image, "" where there is one.
        folder: is made if it is not there.
    """
    folder.mkdir(exist_ok=True)
    for number, (image, name, problem) in enumerate(zip(images, names, problems, strict=True), start=1):
        if problem:
            continue
        large = Image.fromarray(image.numpy()).resize((10 * SIZE, 10 * SIZE), Image.Resampling.NEAREST)
        large.save(folder / f"{number:04}_{Path(name).stem[:50]}.png")  # 255 bytes is the most that a name may have


def find(names: Iterable[str]) -> list[Path]:
    """Return the pictures that are named, each once: in the order of the names, and for each name by path.

    Args and raises: as `read`.
    """
    found: list[Path] = []
    for name in names:
        try:
            paths = _named(name)
        except (OSError, RuntimeError) as error:  # such as a name that is too long, or a home that nobody has
            raise PhotoError(f"{name} (--data.images) can't be looked up: {error}") from error
        if not paths:
            raise PhotoError(f"{name} (--data.images) names no file, no folder with pictures and no glob of any")
        found += paths
    return list(dict.fromkeys(found))


def _named(name: str) -> list[Path]:
    path = Path(name).expanduser()
    if path.is_dir():
        suffixes = Image.registered_extensions()
        return sorted(file for file in path.iterdir() if file.suffix.lower() in suffixes)
    if path.exists():
        return [path]
    return sorted(found for found in map(Path, glob.glob(str(path), recursive=True)) if not found.is_dir())


def prepare(path: Path) -> Tensor:
    """Make a picture of a digit an image of MNIST's kind.

    The digit is what differs from the background, in whatever direction of colour: dark on light or light on dark. Its
    longest side becomes 20 pixels, its aspect kept and its edges smooth, and its centre of mass comes to lie in the
    middle, as in 99.98 % of MNIST's images.

    Args:
        path: what Pillow opens, of any size, mode and orientation. Of several pictures in a file, the first counts.

    Returns:
        uint8 `(28, 28)`, ink 255 on 0.

    Raises:
        PhotoError: the file can't be read, is no picture, or nothing is drawn in it. The message says what it is.
    """
    try:
        if not path.is_file():  # a pipe would be waited for, for ever
            raise PhotoError("is not a file")
        colours, opacity = _read(path)
    except PhotoError:
        raise
    except UnidentifiedImageError as error:
        raise PhotoError("is no picture that Pillow can open") from error
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise PhotoError(f"has too many pixels; expected at most {Image.MAX_IMAGE_PIXELS:,}") from error
    except OSError as error:
        raise PhotoError(f"can't be read: {error.strerror or error}") from error
    except Exception as error:  # a damaged file can make Pillow's decoders fail in any way
        raise PhotoError(f"can't be read as a picture: {error}") from error
    ink = _ink(_over_background(colours, opacity) if opacity is not None else colours)
    return _centre(_cut_out(ink))


def _read(path: Path) -> tuple[Tensor, Tensor | None]:
    """Return colours float32 `(3, H, W)` in 0..1, and opacity `(H, W)` in 0..1 or None, of at most 512 x 512."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        Image.init()
        # For an EPS file Pillow would run Ghostscript.
        with Image.open(path, formats=[name for name in Image.ID if name != "EPS"]) as file:
            file.draft("RGB", (WORKING_SIDE, WORKING_SIDE))  # lets a JPEG be read at a half, a quarter or an eighth
            ImageOps.exif_transpose(file, in_place=True)
            picture: Image.Image = _stretched(file) if file.mode.startswith(("I", "F")) else file
            mode = "RGBA" if picture.has_transparency_data else "RGB"
            picture = picture if picture.mode == mode else picture.convert(mode)
            picture.thumbnail((WORKING_SIDE, WORKING_SIDE), Image.Resampling.BOX)
            values = torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 255
    return values[:3], values[3] if mode == "RGBA" else None


def _stretched(picture: Image.Image) -> Image.Image:
    """Return a picture of 16 bits or more, in which black and white may be any two values, as one of 8 bits."""
    values = np.array(picture, dtype=np.float32)
    np.nan_to_num(values, copy=False, nan=0, posinf=0, neginf=0)
    values -= values.min()  # in place, as each copy of the largest picture is 341 MiB
    values *= 255 / max(values.max(), 1e-9)
    return Image.fromarray(values.astype(np.uint8))


def _over_background(colours: Tensor, opacity: Tensor) -> Tensor:
    """Return colours float32 `(C, H, W)` in 0..1 without transparency."""
    opaque = colours[:, opacity > 0.5]
    if not opaque.numel() or opaque.std(1, correction=0).max() < 0.1:  # drawn on nothing, in one colour
        return opacity[None]
    # Paper with holes, or without corners: what is transparent becomes paper.
    return colours * opacity + opaque.median(1).values[:, None, None] * (1 - opacity)


def _ink(colours: Tensor) -> Tensor:
    """Return how far each pixel is from the background in the direction of the ink's colour, `(H, W)`."""
    distance = colours - _background(colours)
    # Noise goes either way, ink goes one: its third moment has the ink's direction.
    direction = (distance * distance.square().sum(0)).mean((1, 2))
    direction /= direction.norm().clamp(min=1e-12) * len(direction) ** 0.5  # from white to black it is 1
    return (distance * direction[:, None, None]).sum(0)


def _background(colours: Tensor) -> Tensor:
    """Return a quadratic surface for each channel, `(C, H, W)`: the background, in uneven light.

    It goes through what most of the picture is, or through its frame, if that is nearly as much: a bold digit may fill
    more than half. Fitted by least squares, again and again with less weight on what lies far from the surface (Beaton
    and Tukey 1974).
    """
    channels, height, width = colours.shape
    v, u = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    terms = torch.stack([torch.ones_like(u), u, v, u * u, u * v, v * v], dim=2)  # (H, W, 6)
    step = max(1, max(height, width) // COARSE_SIDE)
    a = terms[::step, ::step].reshape(-1, 6).double()
    b = colours[:, ::step, ::step].reshape(channels, -1).T.double()
    stiffness = 1e-3 * len(a) * torch.eye(6)  # where there is no background to go through, stay level

    def fit(start: Tensor) -> tuple[Tensor, float]:
        """Return a surface `(6, C)`, and the share of the picture near it, for a colour `(C,)` to begin with."""
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
    """Return the part of `(H, W)` that holds the digit, in 0..1.

    Raises:
        PhotoError: nothing stands out.
    """
    # Of neighbours' differences a quarter are below 0.45 standard deviations, if there is nothing but normal noise.
    steps = torch.cat([ink.diff(dim=0).flatten(), ink.diff(dim=1).flatten(), torch.zeros(1)])
    noise = steps.abs().quantile(0.25).item() / 0.45
    if max(ink.shape) > COARSE_SIDE / 2:
        ink_around = F.pad(ink[None], (1, 1, 1, 1), mode="replicate")
        smooth, noise = F.avg_pool2d(ink_around, 3, stride=1)[0], noise / 3
    else:  # strokes are too thin
        smooth = ink
    level = smooth.max().item()
    if level < max(LEAST_CONTRAST, 6 * noise):
        raise PhotoError("nothing stands out from the background")
    digit = _digit(smooth > max(FAINTEST_STROKE * level, 4 * noise))
    rows, columns = digit.any(1).nonzero(), digit.any(0).nonzero()
    kept = ink * F.max_pool2d(digit[None].float(), 3, stride=1, padding=1)[0]
    return (kept[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] / level).clamp(0, 1)


def _digit(mask: Tensor) -> Tensor:
    """Return a mask of what belongs to the digit, bool `(H, W)`, in one of all that stands out, of the same shape.

    Dust does not, nor what lies along the edges, as a shadow or the table does, if there is something else.
    """
    height, width = mask.shape
    step = max(1, max(height, width) // COARSE_SIDE)
    coarse = F.max_pool2d(F.pad(mask[None].float(), (0, -width % step, 0, -height % step)), step)
    # Connected parts: each pixel takes the highest number around it until none changes. SciPy's `label` would do it,
    # but torchmetrics imports SciPy where it finds it, which makes every start longer.
    numbers, before = torch.arange(1.0, coarse.numel() + 1).view_as(coarse) * coarse, torch.zeros_like(coarse)
    while not torch.equal(numbers, before):
        numbers, before = F.max_pool2d(numbers, 3, stride=1, padding=1) * coarse, numbers
    part = F.interpolate(numbers[None], scale_factor=step)[0, 0, :height, :width] * mask
    parts, areas = part[mask].unique(return_counts=True)
    edges = torch.cat([part[0], part[-1], part[:, 0], part[:, -1]])
    frame, lengths = edges[edges > 0].unique(return_counts=True)
    # A digit near the edge touches it here or there.
    others = ~torch.isin(parts, frame[lengths > len(edges) / 10])
    if (areas[others] > max(16, mask.numel() / 1_000)).any():
        parts, areas = parts[others], areas[others]
    return torch.isin(part, parts[areas >= SMALLEST_PART * areas.max()])


def _centre(digit: Tensor) -> Tensor:
    """Return uint8 `(28, 28)` with a digit of any size, `(H, W)` in 0..1, as MNIST would have it."""
    height, width = (max(1, round(length * BOX / max(digit.shape))) for length in digit.shape)
    small = F.interpolate(digit[None, None], (height, width), mode="bilinear", antialias=True)[0, 0]
    small /= small.max()

    def start(ink: Tensor) -> int:
        """Return where the digit begins along an axis, given its ink at each position there."""
        centre = ink @ torch.arange(float(len(ink))) / ink.sum()
        return min(max(round(CENTRE - centre.item()), 0), SIZE - len(ink))  # not beyond the edges

    top, left = start(small.sum(1)), start(small.sum(0))
    image = torch.zeros(SIZE, SIZE)
    image[top : top + height, left : left + width] = small
    return (255 * image).round().to(torch.uint8)
