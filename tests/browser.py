"""The page in a real browser: drawing with mouse and finger, photos, and what the page shows."""

import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from playwright.sync_api import Browser, CDPSession, Page, sync_playwright
from torch import Tensor

from mnist_lightning import DigitReader
from mnist_lightning.use import photos
from mnist_lightning.use.export import FORMATS
from mnist_lightning.use.reader import Prediction

INITIAL = "Draw one digit, 0 to 9."
DESKTOP: dict[str, Any] = {"viewport": {"width": 1280, "height": 720}}
PHONE: dict[str, Any] = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}

Stroke = list[tuple[float, float]]  # x and y in 0..1, from the top left corner of the pad


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start Debian's chromium. It asks for no address by itself."""
    quiet = ["background-networking", "component-update", "sync", "gpu"]
    flags = ["--no-sandbox", "--no-first-run", *(f"--disable-{name}" for name in quiet)]
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path="/usr/bin/chromium", args=flags)


def exported(reader: DigitReader, folder: Path) -> Path:
    content, _ = FORMATS[".html"](reader)
    file = folder / "digits.html"
    file.write_bytes(content)
    return file


@contextmanager
def opened(browser: Browser, file: Path, **options: Any) -> Iterator[Page]:
    """Open a page. At the end, it must have asked for no other address, and have written no error to the console."""
    context = browser.new_context(**(DESKTOP | options))
    page = context.new_page()
    requests: list[str] = []
    faults: list[str] = []
    context.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("filechooser", lambda _: None)  # a later listener may miss the dialog that a key press opens
    page.goto(file.as_uri())
    yield page
    assert [url for url in requests if not url.startswith("blob:")] == [file.as_uri()]
    assert faults == []
    context.close()


def arc(x: float, y: float, wide: float, high: float, start: float, end: float) -> Stroke:
    """Return a part of an ellipse around `(x, y)`. Angles are in degrees, clockwise from the right."""
    angles = [math.radians(start + (end - start) * i / 24) for i in range(25)]
    return [(x + wide * math.cos(angle), y + high * math.sin(angle)) for angle in angles]


STROKES: list[list[Stroke]] = [
    [arc(0.5, 0.5, 0.2, 0.32, -90, 270)],
    [[(0.54, 0.15), (0.47, 0.85)]],
    [[*arc(0.5, 0.36, 0.18, 0.18, -170, 40), (0.32, 0.82), (0.7, 0.82)]],
    [[*arc(0.46, 0.33, 0.2, 0.16, -150, 90), *arc(0.46, 0.66, 0.23, 0.18, -90, 150)]],
    [[(0.36, 0.18), (0.32, 0.52), (0.68, 0.52)], [(0.64, 0.2), (0.6, 0.85)]],
    [[(0.38, 0.18), (0.36, 0.46), *arc(0.46, 0.63, 0.22, 0.2, -120, 140)], [(0.38, 0.18), (0.68, 0.18)]],
    [[(0.6, 0.15), (0.44, 0.35), (0.35, 0.6), *arc(0.5, 0.67, 0.16, 0.17, 180, -180)]],
    [[(0.3, 0.2), (0.7, 0.2), (0.58, 0.45), (0.46, 0.85)]],
    [[*arc(0.5, 0.34, 0.16, 0.17, 90, 450), *arc(0.5, 0.68, 0.19, 0.17, -90, 270)]],
    [[*arc(0.48, 0.34, 0.18, 0.17, 0, -360), (0.64, 0.5), (0.58, 0.85)]],
]


def on_pad(page: Page, stroke: Stroke) -> list[tuple[float, float]]:
    """Return where the points of a stroke lie in the window, in pixels."""
    pad = page.locator("#pad").bounding_box()
    assert pad
    return [(pad["x"] + x * pad["width"], pad["y"] + y * pad["height"]) for x, y in stroke]


def draw(page: Page, strokes: list[Stroke], finger: CDPSession | None = None) -> None:
    """Draw on the pad, with the mouse or with a finger. Wait for the answer to each stroke."""

    def touch(kind: str, *points: tuple[float, float]) -> None:
        assert finger
        finger.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": x, "y": y} for x, y in points]})

    for stroke in strokes:
        start, *others = on_pad(page, stroke)
        if finger:
            touch("touchStart", start)
        else:
            page.mouse.move(*start)
            page.mouse.down()
        answered(page, while_drawing=True)
        for point in others:
            if finger:
                touch("touchMove", point)
            else:
                page.mouse.move(*point)
        if finger:
            touch("touchEnd")
        else:
            page.mouse.up()
        answered(page)


def drawn(digit: int, side: int = 400) -> Image.Image:
    """Return a picture of a digit, grey, black on white."""
    large = Image.new("L", (2 * side, 2 * side), 255)
    for stroke in STROKES[digit]:
        points = [(2 * side * x, 2 * side * y) for x, y in stroke]
        ImageDraw.Draw(large).line(points, 0, side // 8, "curve")
    return large.resize((side, side), Image.Resampling.BOX)


def as_file(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def give(page: Page, name: str, content: bytes) -> str:
    """Open a photo on the page, and return what it answers."""
    page.locator("#photo").set_input_files({"name": name, "mimeType": "", "buffer": content})
    return answered(page)


def answered(page: Page, while_drawing: bool = False) -> str:
    """Wait for an answer, and return its text. Playwright's own waits look ten times a second, which is slower."""
    look = """([busy, initial]) => new Promise((found, missed) => {
        const end = performance.now() + 20_000;
        const look = () => {
            const { ariaBusy, innerText } = document.getElementById("answer");
            if (ariaBusy === busy && innerText !== initial) found(innerText);
            else if (performance.now() > end) missed(`no answer but ${innerText}`);
            else setTimeout(look, 5);
        };
        look();
    })"""
    return page.evaluate(look, [str(while_drawing).lower(), INITIAL])


def shares(page: Page) -> list[str]:
    """Return the texts beside the ten bars."""
    return page.locator("#bars span").all_inner_texts()


def image(page: Page) -> Tensor:
    """Return the image that the page shows, uint8 `(28, 28)`."""
    script = "() => [...document.getElementById('image').getContext('2d').getImageData(0, 0, 28, 28).data]"
    return torch.tensor(page.evaluate(script), dtype=torch.uint8).view(28, 28, 4)[..., 0]


def difference(page: Page, photo: Path) -> int:
    """Return how much the image that the page shows differs from that of `predict`: 0..255, at the worst pixel."""
    return int((image(page).int() - photos.prepare(photo).int()).abs().max())


def is_same(text: str, found: Prediction) -> bool:
    """Return whether the page's answer says the same as a prediction."""
    if found.problem:
        return text == f"No digit: {found.problem}"
    start = f"unsure\nperhaps {found.digit}, " if found.answer == "unsure" else f"{found.digit}\n"
    return text.startswith(start)


def check_initial(page: Page) -> None:
    """Check that the page shows no digit, also a moment later."""
    for _ in range(2):
        assert page.locator("#answer").inner_text() == INITIAL
        assert shares(page) == [""] * 10
        assert not image(page).any()
        assert page.evaluate("() => pad.getContext('2d').getImageData(0, 0, 256, 256).data.every((n) => n === 255)")
        page.wait_for_timeout(300)
