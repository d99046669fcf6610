"""The page that `export digits.html` writes, as people use it: with a mouse, a finger, a keyboard and photos."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from axe_playwright_python.sync_playwright import Axe
from browser import (
    DESKTOP,
    PHONE,
    STROKES,
    answered,
    as_file,
    check_initial,
    draw,
    drawn,
    exported,
    give,
    image,
    on_pad,
    opened,
    shares,
)
from helpers import ROOT
from playwright.sync_api import Browser, Page, expect

from mnist_lightning import DigitReader
from mnist_lightning.networks import ConvNet

pytestmark = pytest.mark.slow


@pytest.fixture
def phone(browser: Browser, digits_html: Path) -> Iterator[Page]:
    with opened(browser, digits_html, **PHONE) as page:
        yield page


@pytest.mark.parametrize("digit", range(10))
def test_a_digit_is_drawn_with_the_mouse(digit: int, page: Page) -> None:
    draw(page, STROKES[digit])
    assert answered(page).startswith(f"{digit}\n")


@pytest.mark.parametrize("digit", range(10))
def test_a_digit_is_drawn_with_a_finger(digit: int, phone: Page) -> None:
    draw(phone, STROKES[digit], phone.context.new_cdp_session(phone))
    assert answered(phone).startswith(f"{digit}\n")


def test_undo_removes_the_last_stroke_and_clear_removes_all(page: Page) -> None:
    check_initial(page)
    draw(page, STROKES[4][:1])
    one_stroke = image(page), page.locator("#answer").inner_text(), shares(page)
    assert one_stroke[0].any()
    for undo in (lambda: page.get_by_role("button", name="Undo").click(), lambda: page.keyboard.press("Control+z")):
        draw(page, STROKES[4][1:])
        assert not torch.equal(image(page), one_stroke[0])
        undo()
        expect(page.locator("#answer")).to_have_text(one_stroke[1], use_inner_text=True)
        assert torch.equal(image(page), one_stroke[0])
        assert shares(page) == one_stroke[2]
    draw(page, STROKES[4][1:])
    page.get_by_role("button", name="Clear").click()
    check_initial(page)
    draw(page, STROKES[1])
    page.keyboard.press("Control+z")
    check_initial(page)
    page.keyboard.press("Control+z")
    check_initial(page)


def test_the_answer_follows_the_stroke(page: Page) -> None:
    """The ten bars always show probabilities that sum to one."""
    start, *others = on_pad(page, [(0.5, 0.2), (0.5, 0.4), (0.5, 0.6), (0.5, 0.8)])
    page.mouse.move(*start)
    page.mouse.down()
    images = []
    for point in others:
        page.mouse.move(*point, steps=5)
        page.wait_for_timeout(1000)
        assert answered(page, while_drawing=True).startswith(("1\n", "unsure\n"))
        assert sum(float(share.rstrip(" %")) for share in shares(page)) == pytest.approx(100, abs=0.5)
        images.append(image(page))
    assert not torch.equal(images[0], images[2])
    page.mouse.up()
    assert answered(page).startswith("1\n")


def test_the_page_names_the_run_the_network_and_its_accuracy(reader: DigitReader, page: Page) -> None:
    assert reader.calibration
    about = page.locator("#about").inner_text()
    for words in ("LeNet", reader.source["run"], f"{reader.calibration.accuracy:.2%}", "validation", "20"):
        assert words in about


def test_the_name_of_a_run_is_not_html(browser: Browser, reader: DigitReader, page: Page, tmp_path: Path) -> None:
    run = "runs/</script><b>bold</b><img src=x onerror=alert(1)> $script ${data} \u2028 & '\""
    elements = page.locator("*").count()
    other = DigitReader(reader.network)
    other.source = {"run": run}
    with opened(browser, exported(other, tmp_path)) as named:
        assert re.sub(r"\s", " ", run) in re.sub(r"\s", " ", named.locator("#about").inner_text())
        assert named.locator("*").count() == elements
        draw(named, STROKES[1])
        assert answered(named).startswith("1\n")


def test_a_strict_policy_stops_other_scripts_and_requests(browser: Browser, digits_html: Path) -> None:
    context = browser.new_context()
    page = context.new_page()
    refused: list[str] = []
    page.on("console", lambda message: refused.append(message.text))
    page.goto(digits_html.as_uri())
    policy = page.locator("meta[http-equiv=Content-Security-Policy]").get_attribute("content") or ""
    assert policy.startswith("default-src 'none';")
    assert not re.search(r"unsafe|\*|https?:|data:", policy.replace("img-src data:", ""))  # the empty icon
    page.evaluate(
        """() => {
            const script = document.createElement("script");
            script.textContent = "document.title = 'a script ran'";
            document.body.append(script);
            document.body.insertAdjacentHTML("beforeend", "<img src=x onerror='document.title = 1'><b style='top: 0'>");
            return fetch("https://example.org").catch(() => {});
        }"""
    )
    page.wait_for_timeout(200)
    assert page.title() == "Draw a digit"
    for directive in ("script-src", "img-src", "style-src", "connect-src"):
        assert any(directive in line and "Content Security Policy" in line for line in refused)
    context.close()


def convnet(shift: float) -> DigitReader:
    """A reader with a large network, which is not trained. Its logits are large, so that views differ."""
    torch.manual_seed(0)
    network = ConvNet(shift=shift)
    with torch.no_grad():
        network.classifier.weight *= 200
    return DigitReader(network)


@pytest.fixture(scope="module")
def nine_views_html(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a network that takes long for its nine views."""
    return exported(convnet(0.75), tmp_path_factory.mktemp("nine_views"))


def test_a_slow_network_never_holds_up_a_stroke(browser: Browser, nine_views_html: Path) -> None:
    """No task of the page takes more than 100 ms. A busy machine may stop the page once, so there is a second try."""
    longest = [milliseconds_of_the_longest_task(browser, nine_views_html)]
    if longest[0] > 100:
        longest.append(milliseconds_of_the_longest_task(browser, nine_views_html))
    print(f"longest task: {longest} ms")
    assert longest[-1] <= 100


def milliseconds_of_the_longest_task(browser: Browser, file: Path) -> float:
    """Draw and give a photo. A browser reports tasks of more than 50 ms, and 0 stands for shorter ones."""
    with opened(browser, file) as page:
        page.evaluate(
            """() => {
                globalThis.tasks = [0];
                const add = (list) => globalThis.tasks.push(...list.getEntries().map(({ duration }) => duration));
                new PerformanceObserver(add).observe({ type: "longtask" });
            }"""
        )
        for digit in (8, 5, 3):
            draw(page, STROKES[digit])
            page.get_by_role("button", name="Clear").click()
        give(page, "large.png", as_file(drawn(5).resize((5_000, 4_000))))
        page.wait_for_timeout(200)
        return page.evaluate("() => Math.max(...globalThis.tasks)")


def test_nine_views_answer_at_the_end_of_a_stroke(browser: Browser, nine_views_html: Path) -> None:
    """While a stroke goes on, the page computes one view. The probabilities at the end are those of all."""
    with opened(browser, nine_views_html) as page:
        start, end = on_pad(page, [(0.15, 0.15), (0.6, 0.45)])
        page.mouse.move(*start)
        page.mouse.down()
        page.mouse.move(*end, steps=4)
        page.wait_for_timeout(1_500)  # until the answer to the last movement
        results = []
        for shift, while_drawing in ((0.0, True), (0.75, False)):
            answered(page, while_drawing)
            (expected,) = convnet(shift).probabilities(image(page)[None])
            results.append(torch.tensor([float(share.rstrip(" %")) / 100 for share in shares(page)]))
            assert torch.allclose(results[-1], expected, atol=1e-3)
            page.mouse.up()
        assert (results[0] - results[1]).abs().max() > 0.01


def test_an_answer_that_comes_too_late_is_not_shown(browser: Browser, nine_views_html: Path) -> None:
    with opened(browser, nine_views_html) as page:
        start, end = on_pad(page, [(0.15, 0.15), (0.6, 0.45)])
        page.mouse.move(*start)
        page.mouse.down()
        page.mouse.move(*end)
        page.mouse.up()
        page.get_by_role("button", name="Clear").click()
        page.wait_for_timeout(2_000)
        check_initial(page)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("device", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_people_with_disabilities_are_served(
    device: dict[str, Any], scheme: str, browser: Browser, digits_html: Path
) -> None:
    with opened(browser, digits_html, color_scheme=scheme, **device) as page:
        states = [
            lambda: None,
            lambda: draw(page, STROKES[8]),
            lambda: draw(page, [[(0.2, 0.2), (0.8, 0.8)], [(0.8, 0.2), (0.2, 0.8)]]),
            lambda: give(page, "notes.txt", b"no picture"),
        ]
        for change in states:
            change()
            violations = Axe().run(page).response["violations"]
            assert [(found["id"], found["impact"]) for found in violations] == []


def test_the_keyboard_reaches_everything(page: Page) -> None:
    reached = []
    for _ in range(3):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("() => document.activeElement.id"))
        outline = (
            "() => getComputedStyle(document.activeElement.closest('label') ?? document.activeElement).outlineStyle"
        )
        assert page.evaluate(outline) != "none"
    assert reached == ["undo", "clear", "photo"]
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files(ROOT / "docs/digits/seven.png")
    assert answered(page).startswith("7\n")
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Enter")
    check_initial(page)


def test_a_screen_reader_hears_the_answer(page: Page) -> None:
    draw(page, STROKES[7])
    status = page.get_by_role("status")
    expect(status).to_have_attribute("aria-live", "polite")
    assert status.inner_text().startswith("7\n")
    expect(page.get_by_role("list", name="Probability of each digit").get_by_role("listitem")).to_have_count(10)


@pytest.mark.parametrize(("width", "height"), [(360, 740), (1_280, 720), (1_600, 900), (320, 640), (800, 1_100)])
def test_the_answer_is_in_sight_beside_the_pad(width: int, height: int, browser: Browser, digits_html: Path) -> None:
    with opened(browser, digits_html, viewport={"width": width, "height": height}) as page:
        draw(page, STROKES[8])
        for text in ("", "a_file_with_a_very_long_name_" * 8):
            if text:
                give(page, f"{text}.png", b"no picture")
            assert page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")
        draw(page, STROKES[8])
        assert page.evaluate("() => scrollY") == 0
        for name in ("#pad", "#answer", "#image"):
            box = page.locator(name).bounding_box()
            assert box
            assert box["x"] >= 0
            assert box["y"] >= 0
            assert box["x"] + box["width"] <= width
            assert box["y"] + box["height"] <= height
