"""Photos on the page that `export digits.html` writes: opened, pasted and dropped, and of all kinds."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from browser import STROKES, answered, as_file, check_initial, difference, draw, drawn, give, is_same, shares
from helpers import ROOT
from PIL import Image, ImageDraw
from playwright.sync_api import Page

from mnist_lightning import DigitReader

pytestmark = pytest.mark.slow

FORMATS = "expected a picture: PNG, JPEG, WebP, GIF, BMP or AVIF"


def check_as_predict(page: Page, reader: DigitReader, content: bytes, folder: Path, tolerance: int = 2) -> None:
    """Check that the page shows the image and the answer of a photo that `predict` gives."""
    (folder / "photo").write_bytes(content)
    text = give(page, "photo", content)
    assert difference(page, folder / "photo") <= tolerance
    assert is_same(text, reader.read(folder / "photo"))


def test_a_photo_is_opened_in_the_file_dialog(page: Page, reader: DigitReader) -> None:
    for file in sorted((ROOT / "docs/digits").iterdir()):
        with page.expect_file_chooser() as chooser:
            page.get_by_text("Photo", exact=True).click()
        chooser.value.set_files(file)
        assert answered(page).startswith(f"{reader.read(file).answer}\n")
        assert difference(page, file) <= 2


PASTE = "dispatchEvent(new ClipboardEvent('paste', { clipboardData: transfer, bubbles: true }))"
DROP = "pad.dispatchEvent(new DragEvent('drop', { dataTransfer: transfer, bubbles: true, cancelable: true }))"


@pytest.mark.parametrize("event", [PASTE, DROP], ids=["pasted", "dropped"])
def test_a_photo_is_pasted_or_dropped(event: str, page: Page) -> None:
    draw(page, STROKES[1])
    give_by_event = f"""([name, bytes]) => {{
        const transfer = new DataTransfer();
        transfer.items.add(new File([Uint8Array.from(bytes)], name));
        return {event};
    }}"""
    not_prevented = page.evaluate(give_by_event, ["3.png", list(as_file(drawn(3)))])
    assert not_prevented is (event is PASTE)  # a browser would leave the page, and open a dropped file
    assert answered(page).startswith("3\n")
    page.evaluate(give_by_event, ["notes.txt", list(b"no picture")])
    assert answered(page) == f"notes.txt can't be read; {FORMATS}"


@pytest.mark.parametrize("event", ["paste", "drop"])
def test_text_that_is_pasted_or_dropped_changes_nothing(event: str, page: Page) -> None:
    draw(page, STROKES[1])
    kind, data = ("ClipboardEvent", "clipboardData") if event == "paste" else ("DragEvent", "dataTransfer")
    page.evaluate(
        f"""() => {{
            const transfer = new DataTransfer();
            transfer.setData("text/plain", "<b>7</b>");
            pad.dispatchEvent(new {kind}("{event}", {{ {data}: transfer, bubbles: true, cancelable: true }}));
        }}"""
    )
    assert answered(page).startswith("1\n")


def test_strokes_on_a_photo_replace_it(page: Page) -> None:
    assert give(page, "3.png", as_file(drawn(3))).startswith("3\n")
    draw(page, STROKES[1])
    assert answered(page).startswith("1\n")


def turned(orientation: int, kind: str) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return as_file(drawn(2).crop((0, 0, 400, 360)), kind, exif=exif)


def transparent(pen: int) -> Image.Image:
    picture = Image.new("LA", (400, 400), (pen, 0))
    picture.putalpha(drawn(5).point(lambda value: 255 - value))
    return picture


def paper_without_corners() -> Image.Image:
    picture, opaque = drawn(5).convert("RGBA"), Image.new("L", (400, 400))
    ImageDraw.Draw(opaque).rounded_rectangle((0, 0, 399, 399), 50, 255)
    picture.putalpha(opaque)
    return picture


def of_16_bits(least: int, most: int) -> Image.Image:
    return Image.fromarray((least + np.array(drawn(5)) / 255 * (most - least)).astype(np.uint16))


PICTURES: dict[str, Callable[[], bytes]] = {
    **{f"JPEG, orientation {i}": lambda i=i: turned(i, "JPEG") for i in range(1, 9)},
    **{f"PNG, orientation {i}": lambda i=i: turned(i, "PNG") for i in (3, 6)},
    "grey": lambda: as_file(drawn(5)),
    "grey JPEG": lambda: as_file(drawn(5), "JPEG"),
    "black on a transparent background": lambda: as_file(transparent(0)),
    "white on a transparent background": lambda: as_file(transparent(255)),
    "paper without corners": lambda: as_file(paper_without_corners()),
    "16 bits": lambda: as_file(of_16_bits(0, 65_535)),
    "palette": lambda: as_file(drawn(5).convert("P")),
    "1 bit": lambda: as_file(drawn(5).convert("1")),
    "small": lambda: as_file(drawn(5, 28)),
    "WebP": lambda: as_file(drawn(5).convert("RGB"), "WEBP", lossless=True),
    "GIF": lambda: as_file(drawn(5), "GIF"),
    "BMP": lambda: as_file(drawn(5), "BMP"),
    "AVIF": lambda: as_file(drawn(5), "AVIF"),
}


@pytest.mark.parametrize("picture", PICTURES.values(), ids=list(PICTURES))
def test_a_picture_of_any_kind_is_read_as_predict_reads_it(
    picture: Callable[[], bytes], page: Page, reader: DigitReader, tmp_path: Path
) -> None:
    check_as_predict(page, reader, picture(), tmp_path)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize(("share", "tolerance"), [(1, 4), (0.5, 255), (0.125, 255)])
def test_a_large_picture_gets_the_answer_of_predict(
    share: float, tolerance: int, kind: str, page: Page, reader: DigitReader, tmp_path: Path
) -> None:
    """The digit takes a share of the height. Pillow and the page reduce pictures of more than 2,048 pixels differently.

    So the image of a small digit may be moved by a pixel.
    """
    picture = Image.new("L", (5_000, 4_000), 255)
    picture.paste(drawn(5, int(4_000 * share)), (600, 0))
    check_as_predict(page, reader, as_file(picture, kind), tmp_path, tolerance)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("broken.png", as_file(drawn(5))[:500]),
        ("text.png", b"no picture"),
        ("empty.jpg", b""),
        ("<img src=x onerror=alert(1)>.png", b"no picture"),
        ("<b>bold</b> & <script>document.title = ''</script>", b"no picture"),
    ],
    ids=["broken", "text", "empty", "an image in HTML", "a script in HTML"],
)
def test_a_file_that_is_no_picture_is_named_until_the_next_answer(name: str, content: bytes, page: Page) -> None:
    elements = page.locator("*").count()
    assert give(page, name, content) == f"{name} can't be read; {FORMATS}"
    assert shares(page) == [""] * 10
    assert page.locator("*").count() == elements
    assert page.title() == "Draw a digit"
    assert give(page, "3.png", as_file(drawn(3))).startswith("3\n")
    give(page, name, content)
    draw(page, STROKES[1])
    assert answered(page).startswith("1\n")
    give(page, name, content)
    page.get_by_role("button", name="Clear").click()
    check_initial(page)


def test_a_photo_without_a_digit_says_so(page: Page) -> None:
    blank = as_file(Image.new("L", (300, 200), 255))
    assert give(page, "blank.png", blank) == "No digit: nothing stands out from the background"
