"""The page reads over 1,000 pictures as `predict` reads them. `pytest -s` shows the counts."""

import random
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
from browser import STROKES, answered, as_file, difference, draw, give, is_same
from helpers import DATA, ROOT
from PIL import Image, ImageDraw, ImageOps
from playwright.sync_api import Page

from mnist_lightning import DigitReader, archive

sys.path.insert(0, str(ROOT / "benchmarks"))

pytestmark = pytest.mark.slow


def drawing(digit: int, side: int, chance: random.Random) -> Image.Image:
    """Draw a digit, black on white: turned, slanted and scaled at random. Lines are 1/30 to 1/9 of the side wide."""
    turn, slant, size = chance.gauss(0, 0.15), chance.gauss(0, 0.15), chance.uniform(0.4, 1.2)
    right, down = chance.uniform(-0.1, 0.1), chance.uniform(-0.1, 0.1)
    width = 4 * side / chance.uniform(9, 30)
    large = Image.new("L", (4 * side, 4 * side), 255)
    pen = ImageDraw.Draw(large)
    for stroke in STROKES[digit]:
        points = []
        for x, y in stroke:
            x, y = size * (x - 0.5 + slant * (0.5 - y)), size * (y - 0.5)
            x, y = x * np.cos(turn) - y * np.sin(turn), x * np.sin(turn) + y * np.cos(turn)
            points.append((4 * side * (0.5 + x + right), 4 * side * (0.5 + y + down)))
        pen.line(points, 0, round(width), "curve")
        for x, y in (points[0], points[-1]):
            pen.ellipse((x - width / 2, y - width / 2, x + width / 2, y + width / 2), 0)
    return large.resize((side, side), Image.Resampling.BOX)


def drawings() -> Iterator[Image.Image]:
    chance = random.Random(0)
    for number in range(300):
        yield drawing(number % 10, 256, chance)


def fonts() -> Iterator[Image.Image]:
    """Printed and handwritten digits, with blur, noise and uneven light, in pictures of 96 to 1,400 pixels."""
    import reading

    chance = random.Random(0)
    for name in reading.HANDWRITTEN + reading.PRINTED:
        for digit in [*range(10)] * 3:
            yield reading.render(digit, reading.font_file(name), chance)


def enlarged() -> Iterator[Image.Image]:
    chance = random.Random(0)
    images, _ = archive.read(DATA, "test")
    for number in range(250):
        picture = Image.fromarray(images[number].numpy())
        side = chance.randint(28, 900)
        picture = picture.resize((side, side), chance.choice([Image.Resampling.BICUBIC, Image.Resampling.NEAREST]))
        yield ImageOps.invert(picture) if number % 2 else picture


def on_paper() -> Iterator[Image.Image]:
    """Drawings in colour, with noise and in uneven light."""
    chance, noise = random.Random(0), np.random.default_rng(0)
    for number in range(100):
        side = chance.choice([150, 256, 500, 900, 1_400])
        ink = 1 - np.array(drawing(number % 10, side, chance))[..., None] / 255
        paper, pen = noise.uniform(0.55, 1, 3), noise.uniform(0, 0.4, 3)
        down, across = np.mgrid[0 : 1 : side * 1j, 0 : 1 : side * 1j] - 0.5
        light = 1 + chance.uniform(-0.5, 0.5) * across + chance.uniform(-0.5, 0.5) * down
        values = (paper + (pen - paper) * ink) * light[..., None] + 0.02 * noise.normal(size=(side, side, 3))
        yield Image.fromarray((255 * values.clip(0, 1)).round().astype(np.uint8))


def transparent() -> Iterator[Image.Image]:
    """Strokes on a transparent background, and paper with round corners."""
    chance = random.Random(0)
    for number in range(100):
        picture = drawing(number % 10, chance.choice([100, 256, 500, 1_200]), chance)
        opacity = Image.new("L", picture.size, 0)
        if number % 2:
            opacity = ImageOps.invert(picture)
            picture = Image.new("RGB", picture.size, tuple(chance.randint(0, 255) for _ in range(3)))
        else:
            corner = picture.width - 1
            ImageDraw.Draw(opacity).rounded_rectangle((0, 0, corner, corner), picture.width // 8, 255)
        picture = picture.convert("RGBA")
        picture.putalpha(opacity)
        yield picture


def test_the_page_reads_pictures_as_predict_reads_them(page: Page, reader: DigitReader, tmp_path: Path) -> None:
    sources = [drawings(), fonts(), enlarged(), on_paper(), transparent()]
    files = [file.read_bytes() for file in sorted((ROOT / "docs/digits").iterdir())]
    counts = {"docs/digits": compare(page, reader, files, tmp_path)}
    for source in sources:
        counts[source.__name__] = compare(page, reader, map(as_file, source), tmp_path)
    total = np.sum(list(counts.values()), axis=0)
    for name, (pictures, images, answers) in {**counts, "all": total}.items():
        print(f"{name:12} {pictures:5} pictures, {images:5} the same image, {answers:5} the same answer")
    pictures, images, answers = total
    assert pictures > 1_000
    assert images >= 0.99 * pictures
    assert answers >= 0.999 * pictures


def compare(page: Page, reader: DigitReader, files: Iterable[bytes], folder: Path) -> tuple[int, int, int]:
    """Return the number of pictures, of images that differ by at most 2 of 255, and of the same answers."""
    pictures = images = answers = 0
    for content in files:
        path = folder / "photo"
        path.write_bytes(content)
        text = give(page, "photo", content)
        found = reader.read(path)
        pictures += 1
        images += bool(found.problem) or difference(page, path) <= 2
        answers += is_same(text, found)
        if not is_same(text, found):
            print(text.split("\n"), found)
    return pictures, images, answers


@pytest.mark.parametrize("digit", range(10))
def test_a_drawing_is_prepared_as_its_picture_would_be(digit: int, page: Page, tmp_path: Path) -> None:
    draw(page, STROKES[digit])
    values = page.evaluate("() => [...pad.getContext('2d').getImageData(0, 0, 256, 256).data]")
    Image.fromarray(np.array(values, np.uint8).reshape(256, 256, 4)).save(tmp_path / "pad.png")
    assert answered(page).startswith(f"{digit}\n")
    assert difference(page, tmp_path / "pad.png") <= 2
