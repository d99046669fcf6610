"""Reads files with photos of digits."""

import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from tqdm import tqdm

from mnist_lightning.errors import PhotoError
from mnist_lightning.use import ink

WORKING_SIDE = 512  # the width and height of larger photos are reduced to at most this many pixels


def prepare_all(paths: list[Path]) -> tuple[Tensor, list[str]]:
    """Prepare many photos. In a terminal, a progress bar appears after the first second.

    Args:
        paths: N files.

    Returns:
        Images, uint8 `(N, 28, 28)`, and N texts. Each text says why there is no image, or is empty.
    """
    images = torch.zeros(len(paths), ink.SIZE, ink.SIZE, dtype=torch.uint8)
    problems = [""] * len(paths)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the steps are small: on busy cores, several threads mostly wait for each other
    try:
        for index, path in enumerate(tqdm(paths, "Reading photos", delay=1, leave=False, disable=None)):
            try:
                images[index] = prepare(path)
            except PhotoError as error:
                problems[index] = str(error)
    finally:
        torch.set_num_threads(threads)
    return images, problems


def prepare(path: Path) -> Tensor:
    """Turn one photo into an image like those of MNIST.

    Everything that differs from the background is ink: dark on light, light on dark, or coloured. The longest side of
    the digit becomes 20 pixels, and its centre of mass moves to the middle, as in 99.98 % of MNIST's images.

    Args:
        path: A file that Pillow opens, with any size, mode and orientation. Only its first picture counts.

    Returns:
        uint8 `(28, 28)`, ink is 255, background is 0.

    Raises:
        PhotoError: The file can't be read, is not a picture, or shows nothing. The message says which.
    """
    try:
        if not path.is_file():  # reading a pipe could wait for ever
            raise PhotoError("is not a file")
        colours, opacity = _read(path)
    except PhotoError:
        raise
    except UnidentifiedImageError as error:
        raise PhotoError("is not a picture that Pillow can open") from error
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise PhotoError(f"has too many pixels; expected at most {Image.MAX_IMAGE_PIXELS:,}") from error
    except OSError as error:
        raise PhotoError(f"can't be read: {error.strerror or error}") from error
    except Exception as error:  # Pillow fails in many ways on a damaged file
        raise PhotoError(f"can't be read as a picture: {error}") from error
    return ink.image(colours, opacity)


def _read(path: Path) -> tuple[Tensor, Tensor | None]:
    """Return colours, float32 `(3, H, W)` in 0..1, and opacity, `(H, W)` in 0..1. Both are at most 512x512.

    Opacity is None if no pixel is transparent.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        Image.init()
        # Pillow would run Ghostscript to open an EPS file.
        with Image.open(path, formats=[name for name in Image.ID if name != "EPS"]) as file:
            file.draft("RGB", (WORKING_SIDE, WORKING_SIDE))  # reads a large JPEG at 1/2, 1/4 or 1/8 of its size
            ImageOps.exif_transpose(file, in_place=True)
            picture: Image.Image = _stretched(file) if file.mode.startswith(("I", "F")) else file
            mode = "RGBA" if picture.has_transparency_data else "RGB"
            picture = picture if picture.mode == mode else picture.convert(mode)
            if mode == "RGBA" and picture.getchannel("A").getextrema() == (255, 255):  # for example, a screenshot
                picture = picture.convert("RGB")
            picture.thumbnail((WORKING_SIDE, WORKING_SIDE), Image.Resampling.BOX)
            values = torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous() / 255
    return values[:3], values[3] if len(values) == 4 else None


def _stretched(picture: Image.Image) -> Image.Image:
    """Return a picture of 16 bits or more as one of 8 bits. Its smallest value becomes black, its largest white."""
    values = np.array(picture, dtype=np.float32)
    np.nan_to_num(values, copy=False, nan=0, posinf=0, neginf=0)
    values -= values.min()  # in place, because a copy of the largest picture takes 341 MiB
    values *= 255 / max(values.max(), 1e-9)
    return Image.fromarray(values.astype(np.uint8))
