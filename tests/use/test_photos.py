"""Photos as people have them. Each becomes the same image as a plain black digit on white."""

import io
import os
import re
import subprocess
import sys
import termios
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import DATA
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from mnist_lightning import archive
from mnist_lightning.use import photos
from mnist_lightning.use.photos import PhotoError

Scene = Callable[[np.ndarray], Image.Image]


def coverage(digit: str = "5", size: tuple[int, int] = (400, 320), at: tuple[int, int] = (130, 40)) -> np.ndarray:
    """Return how much of each pixel is ink, float `(H, W)` in 0..1. The digit has about 110 x 170 pixels."""
    ink = Image.new("L", size)
    ImageDraw.Draw(ink).text(at, digit, 255, ImageFont.load_default(240))
    return np.array(ink) / 255


def grey(values: np.ndarray) -> Image.Image:
    return Image.fromarray((255 * values.clip(0, 1)).round().astype(np.uint8))


def coloured(ink: np.ndarray, pen: tuple[int, int, int], paper: tuple[int, int, int]) -> Image.Image:
    values = np.array(paper) + (np.array(pen) - np.array(paper)) * ink[..., None]
    return Image.fromarray(values.round().astype(np.uint8))


def on_transparency(ink: np.ndarray, pen: int) -> Image.Image:
    picture = Image.new("LA", ink.shape[::-1], (pen, 0))
    picture.putalpha(grey(ink))
    return picture


def without_corners(ink: np.ndarray) -> Image.Image:
    picture = grey(0.9 - 0.8 * ink).convert("RGBA")
    opaque = Image.new("L", picture.size)
    ImageDraw.Draw(opaque).rounded_rectangle((0, 0, 399, 319), 50, 255)
    picture.putalpha(opaque)
    return picture


def with_opacity(values: np.ndarray, opacity: np.ndarray | float) -> Image.Image:
    """Return a picture with values `(H, W)` or `(H, W, 3)` in 0..1. Its opacity is in 0..1, too."""
    picture = grey(values).convert("RGBA")
    picture.putalpha(grey(np.broadcast_to(opacity, values.shape[:2])))
    return picture


def in_many_colours(ink: np.ndarray) -> Image.Image:
    down, across = np.mgrid[0:1:320j, 0:1:400j]
    return with_opacity(np.stack([down, across, 1 - down], axis=2), ink)


def in_falling_light(ink: np.ndarray) -> Image.Image:
    down, across = np.mgrid[0:1:320j, 0:1:400j]
    return grey((0.9 - 0.6 * ink) * (1 - 0.5 * across * down))


def on_squared_paper(ink: np.ndarray) -> Image.Image:
    values = 0.95 - 0.8 * ink
    values[::25] -= 0.12
    values[:, ::25] -= 0.12
    return grey(values)


def with_dust(ink: np.ndarray) -> Image.Image:
    values = 1 - ink
    for x, y in np.random.default_rng(0).integers(0, 315, (30, 2)):
        values[y : y + 4, x : x + 4] = 0.2
    return grey(values)


def on_a_dark_table(ink: np.ndarray) -> Image.Image:
    values = np.full((400, 500), 0.2)
    values[60:380, 70:470] = 0.9 - 0.7 * ink
    return grey(values)


def turned_by_exif(ink: np.ndarray) -> bytes:
    picture, exif = grey(1 - ink).transpose(Image.Transpose.ROTATE_90), Image.Exif()
    exif[0x0112] = 6  # viewers turn it clockwise by 90 degrees
    file = io.BytesIO()
    picture.save(file, "JPEG", exif=exif)
    return file.getvalue()


NOISE = np.random.default_rng(0).normal(size=(320, 400))

SCENES: dict[str, Callable[[np.ndarray], Image.Image | bytes]] = {
    "white on black": grey,
    "red on blue with the same brightness": lambda ink: coloured(ink, (200, 60, 60), (60, 90, 220)),
    "yellow on white": lambda ink: coloured(ink, (250, 230, 80), (255, 255, 255)),
    "black on a transparent background": lambda ink: on_transparency(ink, 0),
    "white on a transparent background": lambda ink: on_transparency(ink, 255),
    "many colours on a transparent background": in_many_colours,
    "cut out of white": lambda ink: with_opacity(np.ones((320, 400)), 1 - ink),
    "opaque to 40 %": lambda ink: with_opacity(1 - ink, 0.4),
    "paper without corners": without_corners,
    "falling light": in_falling_light,
    "squared paper": on_squared_paper,
    "dust": with_dust,
    "a dark table": on_a_dark_table,
    "noise": lambda ink: grey(0.8 - 0.6 * ink + 0.15 * NOISE),
    "faint pencil": lambda ink: grey(0.8 - 0.12 * ink + 0.01 * NOISE),
    "16 bits": lambda ink: Image.fromarray((40_000 - 30_000 * ink).astype(np.uint16)),
    "floats": lambda ink: Image.fromarray((1e6 - 1e6 * ink).astype(np.float32)),
    "1 bit": lambda ink: grey(1 - ink).convert("1"),
    "palette": lambda ink: coloured(ink, (200, 60, 60), (60, 90, 220)).convert("P"),
    "CMYK": lambda ink: coloured(ink, (20, 30, 90), (250, 240, 230)).convert("CMYK"),
    "large": lambda ink: grey(1 - ink).resize((4_000, 3_200)),
    "small": lambda ink: grey(1 - ink).resize((80, 64), Image.Resampling.LANCZOS),
    "in the corner": lambda ink: grey(1 - ink[55:, 130:]),
    "cut at the edges of the digit": lambda ink: grey(1 - ink).crop(grey(ink).getbbox()),
    "turned by EXIF data": turned_by_exif,
}


def prepare(picture: Image.Image | bytes, folder: Path) -> Tensor:
    path = folder / "picture"
    if isinstance(picture, bytes):
        path.write_bytes(picture)
    else:
        picture.save(path, "TIFF" if picture.mode in ("F", "I;16", "CMYK", "LA") else "PNG")
    return photos.prepare(path)


def likeness(one: Tensor, other: Tensor) -> float:
    """Return the correlation of two images at their best match.

    Rounding a centre of mass may move an image by one pixel.
    """
    moved = [one.roll((down, right), (0, 1)) for down in (-1, 0, 1) for right in (-1, 0, 1)]
    pairs = [torch.stack([image.flatten().float(), other.flatten().float()]) for image in moved]
    return max(torch.corrcoef(pair)[0, 1].item() for pair in pairs)


@pytest.mark.parametrize("scene", SCENES.values(), ids=list(SCENES))
def test_a_digit_is_found_in_all_kinds_of_photos(scene: Scene, tmp_path: Path) -> None:
    plain = prepare(grey(1 - coverage()), tmp_path)
    found = prepare(scene(coverage()), tmp_path)
    assert found.shape == (28, 28)
    assert found.dtype == torch.uint8
    assert likeness(found, plain) > 0.9


@pytest.mark.parametrize("digit", "0123456789")
def test_a_digit_has_the_size_and_position_that_mnist_gives_it(digit: str, tmp_path: Path) -> None:
    """Its longest side has 20 pixels, its ink is 255 on 0, and its centre of mass is at (14, 14).

    This holds for all but 13 of MNIST's 60,000 training images.
    """
    image = prepare(grey(1 - coverage(digit)), tmp_path).float()
    rows, columns = image.sum(1), image.sum(0)
    assert max(int((rows > 0).sum()), int((columns > 0).sum())) == 20
    assert image.max() == 255
    positions = torch.arange(28.0)
    for ink in (rows, columns):
        assert round(((ink * positions).sum() / ink.sum()).item()) == 14


def test_width_and_height_keep_their_ratio(tmp_path: Path) -> None:
    values = np.ones((300, 300))
    values[100:200, 140:160] = 0
    image = prepare(grey(values), tmp_path)
    assert (image.sum(1) > 0).sum() == 20
    assert (image.sum(0) > 0).sum() == 4


def test_a_digit_that_touches_the_edge_is_preferred_to_a_speck_inside(tmp_path: Path) -> None:
    values = np.ones((400, 400))
    values[:300, 200:240] = 0  # a one
    values[350:370, 50:70] = 0
    image = prepare(grey(values), tmp_path)
    assert (image.sum(1) > 0).sum() == 20
    assert (image.sum(0) > 0).sum() == 3


def test_mnist_images_cut_at_the_edges_of_the_digit_keep_their_ink(tmp_path: Path) -> None:
    images, _ = archive.read(DATA, "train")
    kept = []
    for image in images[:100]:
        cut = Image.fromarray(image.numpy()).crop(Image.fromarray(image.numpy()).getbbox())
        kept.append(prepare(cut, tmp_path).sum().item() / image.sum().item() > 0.6)
    assert sum(kept) >= 97  # a bold digit may fill more than half of what is left


def test_mnist_images_that_are_enlarged_inverted_and_moved_come_back(tmp_path: Path) -> None:
    images, _ = archive.read(DATA, "train")
    for image in images[:20]:
        picture = Image.new("L", (260, 240), 255)
        picture.paste(Image.fromarray(255 - image.numpy()).resize((112, 112), Image.Resampling.BICUBIC), (70, 20))
        assert likeness(prepare(picture, tmp_path), image) > 0.9


def stroke(size: int, width: int) -> np.ndarray:
    """Return how much of each pixel is ink, float `(size, size)` in 0..1. A line of some pixels' width draws a two."""
    points = [(0.3, 0.35), (0.36, 0.24), (0.5, 0.2), (0.64, 0.25), (0.68, 0.38), (0.6, 0.52), (0.3, 0.8), (0.72, 0.8)]
    ink = Image.new("L", (4 * size, 4 * size))
    ImageDraw.Draw(ink).line([(4 * size * x, 4 * size * y) for x, y in points], 255, 4 * width, "curve")
    return np.array(ink.resize((size, size), Image.Resampling.BOX)) / 255


def saved(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def with_alpha(picture: Image.Image, alpha: Image.Image) -> bytes:
    picture = picture.convert("RGBA")
    picture.putalpha(alpha)
    return saved(picture)


def shape_of_paper(size: int, shape: str) -> Image.Image:
    """Return which pixels are opaque, as an image with 0 or 255."""
    opaque = Image.new("L", (size, size), 255)
    draw = ImageDraw.Draw(opaque)
    if shape == "a corner":
        draw.point((0, 0), 0)
    elif shape == "almost opaque":
        opaque.paste(254, (0, 0, size, size // 2))
    else:
        opaque.paste(0, (0, 0, size, size))
        shapes = {
            "round corners": lambda: draw.rounded_rectangle((0, 0, size - 1, size - 1), size // 8, 255),
            "a circle": lambda: draw.ellipse((0, 0, size - 1, size - 1), fill=255),
            "a window": lambda: draw.rounded_rectangle((size // 20, size // 20, size * 19 // 20, size - 2), 9, 255),
        }
        shapes[shape]()
    return opaque


def transparent(ink: np.ndarray, pen: int, mode: str) -> bytes:
    picture = Image.new(mode, ink.shape, (pen,) * (len(mode) - 1) + (0,))
    picture.putalpha(grey(ink))
    return saved(picture)


# Each function takes a grey picture, and returns the same picture in another mode.
SAME: dict[str, Callable[[Image.Image], bytes]] = {
    "LA": lambda picture: saved(picture.convert("LA")),
    "RGB": lambda picture: saved(picture.convert("RGB")),
    "RGBA": lambda picture: saved(picture.convert("RGBA")),
    "P": lambda picture: saved(picture.convert("P")),
    "P with a transparent colour": lambda picture: saved(picture.convert("P"), transparency=1),
    "RGB with a transparent colour": lambda picture: saved(picture.convert("RGB"), transparency=(1, 2, 3)),
    "I;16": lambda picture: saved(Image.fromarray(np.array(picture).astype(np.uint16) * 257)),
    "CMYK": lambda picture: saved(picture.convert("CMYK"), "TIFF"),
}
PAPERS = ["a corner", "almost opaque", "round corners", "a circle", "a window"]


def check_modes(size: int, width: int, pen: int, paper: int, folder: Path) -> None:
    """Check that one picture becomes the same image in all modes, and almost the same with transparent pixels."""
    ink = stroke(size, width)
    picture = grey((paper + (pen - paper) * ink) / 255)
    plain = prepare(picture, folder)
    assert likeness(plain, prepare(grey(ink), folder)) > 0.95
    for mode, change in SAME.items():
        found = prepare(change(picture), folder)
        # The values of 16 bits are rounded, so one pixel at the edge of a stroke may be lost.
        assert likeness(found, plain) > 0.99 if mode == "I;16" else torch.equal(found, plain), mode
    for shape in PAPERS:
        found = prepare(with_alpha(picture, shape_of_paper(size, shape)), folder)
        assert likeness(found, plain) > 0.98, shape
    for mode in ("LA", "RGBA"):
        assert likeness(prepare(transparent(ink, pen, mode), folder), plain) > 0.95, mode
    if (pen, paper) == (0, 255):
        one_bit = picture.convert("1", dither=Image.Dither.NONE)
        assert likeness(prepare(saved(one_bit), folder), plain) > 0.9


INKS = [(0, 255), (160, 255), (215, 255), (255, 20), (110, 30), (200, 235), (255, 0)]


@pytest.mark.parametrize(("width", "pen", "paper"), [(3, 0, 255), (12, 160, 255), (3, 255, 20)])
def test_the_mode_of_a_picture_changes_nothing(width: int, pen: int, paper: int, tmp_path: Path) -> None:
    """Screenshots are opaque, but have transparency data. Their strokes may be thin and pale."""
    check_modes(400, width, pen, paper, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("size", [64, 150, 400, 1_200])
@pytest.mark.parametrize("share", [0.0075, 0.015, 0.03, 0.06, 0.12])
@pytest.mark.parametrize(("pen", "paper"), INKS)
def test_the_mode_changes_nothing_at_any_size(size: int, share: float, pen: int, paper: int, tmp_path: Path) -> None:
    """The width of the stroke is a share of the size."""
    check_modes(size, max(2, round(share * size)), pen, paper, tmp_path)


@pytest.mark.parametrize(
    "picture",
    [
        Image.new("RGB", (400, 300), (230, 228, 220)),
        Image.new("LA", (50, 50), (0, 0)),
        with_opacity(1 - coverage(), 0),
        with_opacity(1 - coverage(), 0.01),
        without_corners(np.zeros((320, 400))),
        Image.new("L", (1, 1)),
        Image.new("L", (1, 9_000), 9),
        grey(0.5 + 0.15 * NOISE),
        grey(np.tile(np.linspace(0.2, 0.9, 400), (300, 1))),
        Image.fromarray(np.full((50, 50), np.nan, dtype=np.float32)),
    ],
    ids=[
        "blank",
        "transparent",
        "hidden",
        "almost hidden",
        "blank without corners",
        "a pixel",
        "a line",
        "noise",
        "a gradient",
        "not a number",
    ],
)
def test_a_photo_without_a_digit_is_refused(picture: Image.Image, tmp_path: Path) -> None:
    with pytest.raises(PhotoError, match=r"^nothing stands out from the background$"):
        prepare(picture, tmp_path)


def bomb(side: int) -> bytes:
    """Return a PNG file of a few kilobytes that claims to hold side x side pixels."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return len(content).to_bytes(4, "big") + name + content + zlib.crc32(name + content).to_bytes(4, "big")

    header = side.to_bytes(4, "big") * 2 + bytes([8, 0, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(9))) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is not a picture that Pillow can open"),
        (b"no picture", "is not a picture that Pillow can open"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "is not a picture that Pillow can open"),
        (saved(grey(1 - coverage()))[:900], "can't be read: .*truncated"),
        (bomb(60_000), r"has too many pixels; expected at most 89,478,485"),
        (bomb(10_000), r"has too many pixels; expected at most 89,478,485"),
    ],
    ids=["empty", "text", "EPS", "truncated", "a bomb", "a smaller bomb"],
)
def test_a_file_that_is_not_a_picture_is_refused_with_the_reason(content: bytes, problem: str, tmp_path: Path) -> None:
    with pytest.raises(PhotoError, match=problem):
        prepare(content, tmp_path)


def test_a_damaged_file_gives_a_photo_error_at_worst(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    refused = 0
    for format_ in ("PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP"):
        file = io.BytesIO()
        grey(1 - coverage()).resize((100, 80)).save(file, format_)
        for _ in range(12):
            content = bytearray(file.getvalue())
            for position in draw.integers(0, len(content), 8):
                content[position] ^= 1 << draw.integers(8)
            try:
                assert prepare(bytes(content), tmp_path).shape == (28, 28)
            except PhotoError:
                refused += 1
    assert refused > 10


def test_the_first_picture_of_an_animation_counts(tmp_path: Path) -> None:
    file = io.BytesIO()
    frames = [grey(1 - coverage(digit)) for digit in "57"]
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    assert likeness(prepare(file.getvalue(), tmp_path), prepare(frames[0], tmp_path)) > 0.9


def test_a_pipe_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(PhotoError, match=r"^is not a file$"):
        photos.prepare(tmp_path / "pipe.png")


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "colour"), [("RGBA", (255, 255, 255, 255)), ("I;16", 40_000), ("P", 3)])
def test_the_largest_photo_needs_less_than_800_mebibytes(mode: str, colour: Any, tmp_path: Path) -> None:
    """The largest photo that is read has 89 million pixels. With four bytes each, one copy takes 341 MiB."""
    Image.new(mode, (9_459, 9_459), colour).save(tmp_path / "large.png", compress_level=1)
    code = """
import resource
from pathlib import Path
from mnist_lightning.use import photos
try:
    photos.prepare(Path("small.png"))
except photos.PhotoError:
    pass
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    photos.prepare(Path("large.png"))
except photos.PhotoError as error:
    print(error)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    Image.new("L", (9, 9)).save(tmp_path / "small.png")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    problem, mebibytes = done.stdout.splitlines()
    assert problem == "nothing stands out from the background"
    assert int(mebibytes) < 800


def test_many_photos_become_images_and_problems(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("5.png", "missing.png", "7.png")]
    for path in (paths[0], paths[2]):
        grey(1 - coverage(path.stem)).save(path)
    images, problems = photos.prepare_all(paths)
    assert problems == ["", "is not a file", ""]
    assert (images.dtype, images.shape) == (torch.uint8, (3, 28, 28))
    assert torch.equal(images, torch.stack([photos.prepare(paths[0]), torch.zeros(28, 28), photos.prepare(paths[2])]))


def test_no_photos_become_no_images() -> None:
    images, problems = photos.prepare_all([])
    assert (images.dtype, images.shape, problems) == (torch.uint8, (0, 28, 28), [])


def drawn(photos_read: int, seconds: float, tty: bool, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return what `prepare_all` writes to a terminal or a pipe while it reads photos that take some seconds each."""

    def slowly(path: Path) -> Tensor:
        time.sleep(seconds)
        return torch.zeros(28, 28, dtype=torch.uint8)

    monkeypatch.setattr(photos, "prepare", slowly)
    reader, writer = os.openpty() if tty else os.pipe()
    if tty:
        termios.tcsetwinsize(writer, (24, 80))  # otherwise it has no columns
    with os.fdopen(writer, "w") as stderr, open(reader, "rb", buffering=0) as screen:
        monkeypatch.setattr(sys, "stderr", stderr)
        photos.prepare_all([Path("photo.png")] * photos_read)
        stderr.write("\nend")
        stderr.flush()
        return screen.read(65_536).decode()


def test_a_terminal_shows_a_bar_after_the_first_second(monkeypatch: pytest.MonkeyPatch) -> None:
    assert re.search(r"Reading photos: .* 8/12 ", drawn(12, 0.15, True, monkeypatch))
    assert "Reading" not in drawn(12, 0.05, True, monkeypatch)


def test_a_pipe_gets_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    assert drawn(12, 0.15, False, monkeypatch) == "\nend"


def test_a_long_stroke_is_one_part(tmp_path: Path) -> None:
    """A spiral of ten turns is found whole."""
    angles = np.linspace(0, 20 * np.pi, 2_000)
    points = [(256 + 3.7 * a * np.cos(a), 256 + 3.7 * a * np.sin(a)) for a in angles]
    picture = Image.new("L", (512, 512), 255)
    ImageDraw.Draw(picture).line(points, 0, 3)
    picture.save(tmp_path / "spiral.png")
    image = photos.prepare(tmp_path / "spiral.png")
    assert image[4:24, 4:24].count_nonzero() > 300
