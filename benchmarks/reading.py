"""How well digits are read that are not MNIST's, what a confidence is worth, and what export and figures cost.

    python benchmarks/reading.py [CONFIG ...]

Each config is trained with seed 0, as by `accuracy.py` and in the same folder. Its best checkpoint reads:

- photos of digits, drawn in fonts of Debian's packages (`fonts.txt`)
- scikit-learn's 8 x 8 images of Optical Recognition of Handwritten Digits (Alpaydin and Kaynak 1998)
- MNIST's test images

Photos are read twice: resized to 28 x 28 pixels, and prepared by `photos.py`. No recipe or setting was chosen on them.
The results become a table in the README.
"""

import argparse
import contextlib
import io
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import accuracy
import numpy as np
import onnxruntime
import report
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from sklearn.datasets import load_digits
from torch import Tensor
from torchmetrics.functional.classification import multiclass_calibration_error

from mnist_lightning import DigitReader, archive
from mnist_lightning.cli import main as program
from mnist_lightning.errors import PhotoError
from mnist_lightning.use.photos import prepare

HANDWRITTEN = [
    "BecauseWeLearn-Regular.otf",
    "BecauseWeOrganize-Regular.otf",
    "Breip.ttf",
    "Humor-Sans.ttf",
    "Kristi.ttf",
    "Rufscript010.ttf",
    "dkg.ttf",
]
PRINTED = [
    "Cantarell-Regular.otf",
    "DejaVuSans.ttf",
    "DejaVuSerif-Bold.ttf",
    "FreeSerif.ttf",
    "GNUTypewriter.ttf",
    "LiberationMono-Regular.ttf",
    "LiberationSans-Regular.ttf",
]
FOR_EACH = 10  # photos of each digit in each font
BATCH = 500  # images that a network reads at a time

Photos = tuple[list[Image.Image], Tensor]  # N photos, int64 labels (N,)


class Digits(NamedTuple):
    """Photos as images, uint8 `(N, 28, 28)`, and their labels, int64 `(N,)`.

    Attributes:
        resized: Images without preparation.
        prepared: Images as `predict` prepares them. A photo that `predict` refuses is black.
        labels: The digits.
    """

    resized: Tensor
    prepared: Tensor
    labels: Tensor


def font_file(name: str) -> Path:
    """Return the file of an installed font."""
    found = sorted(Path("/usr/share/fonts").rglob(name))
    if not found:
        packages = " ".join((Path(__file__).parent / "fonts.txt").read_text().split())
        sys.exit(f"The font {name} is not installed: apt-get install {packages}")
    return found[0]


def render(digit: int, font: Path, draw: random.Random) -> Image.Image:
    """Draw a digit as it could look in a photo.

    The photo is 96 to 1,000 pixels wide. The digit takes 0.2 to 0.85 of its size, at any place. It is dark on light or
    light on dark, with a contrast of at least 0.35 of the range from black to white. Half of the photos are blurred, by
    1 or 2 % of the digit's height. In half of them, the light falls off by 15 or 30 % of the range. Two thirds have
    noise of 2 or 6 %.
    """
    width = draw.choice([96, 200, 400, 1_000])
    height = int(width * draw.uniform(0.7, 1.4))
    size = 1.3 * min(width, height) * draw.uniform(0.2, 0.85)
    box = ImageFont.truetype(font, 1_000).getbbox(str(digit))
    size = min(size, 950 * width / (box[2] - box[0]), 950 * height / (box[3] - box[1]))
    face = ImageFont.truetype(font, size)
    left, top, right, bottom = face.getbbox(str(digit))
    x = draw.uniform(0, width - (right - left))
    y = draw.uniform(0, height - (bottom - top))
    ink = Image.new("L", (width, height))
    ImageDraw.Draw(ink).text((x - left, y - top), str(digit), 255, face)
    blur = draw.choice([0, 0, 0.01, 0.02]) * (bottom - top)
    coverage = np.array(ink.filter(ImageFilter.GaussianBlur(blur))) / 255

    paper, pen = draw.uniform(0.7, 1), draw.uniform(0, 0.35)
    if draw.random() < 0.5:
        paper, pen = 1 - paper, 1 - pen
    down, across = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j] - 0.5
    angle, fall = draw.uniform(0, 2 * np.pi), draw.choice([0, 0, 0.15, 0.3])
    light = fall * (np.cos(angle) * across + np.sin(angle) * down)
    noise = draw.choice([0, 0.02, 0.06]) * np.random.default_rng(draw.getrandbits(32)).normal(size=(height, width))
    values = paper + (pen - paper) * coverage + light + noise
    return Image.fromarray((255 * values.clip(0, 1)).astype(np.uint8))


def rendered(fonts: list[str]) -> Photos:
    """Return photos of digits in fonts. They are the same on every call."""
    draw, cases = random.Random(0), [(font_file(name), digit) for name in fonts for digit in range(10)] * FOR_EACH
    return [render(digit, font, draw) for font, digit in cases], torch.tensor([digit for _, digit in cases])


def scikit_learn() -> Photos:
    """Return scikit-learn's 1,797 digits. They have 8 x 8 pixels, with ink 255 on 0."""
    digits = load_digits()
    images = [Image.fromarray((digit * 255 / 16).astype(np.uint8)) for digit in digits.images]
    return images, torch.tensor(digits.target)


def as_images(photos: Photos) -> Digits:
    """Return photos as the network receives them."""
    pictures, labels = photos
    return Digits(torch.stack([resized(p) for p in pictures]), torch.stack([prepared(p) for p in pictures]), labels)


def resized(photo: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(photo.convert("L").resize((28, 28), Image.Resampling.BILINEAR)))


def prepared(photo: Image.Image) -> Tensor:
    with tempfile.NamedTemporaryFile(suffix=".png") as file:
        photo.save(file.name)
        try:
            return prepare(Path(file.name))
        except PhotoError:
            return torch.zeros(28, 28, dtype=torch.uint8)


def percent(share: float | Tensor, decimals: int = 1) -> str:
    """Return a share in 0..1 as text."""
    return f"{100 * float(share):.{decimals}f} %"


def accuracies(reader: DigitReader, digits: Digits) -> list[str]:
    """Return four cells: right if resized, right if prepared, answered if prepared, and right of the answered."""
    confidences, read = reader.probabilities(digits.prepared).max(1)
    right = read == digits.labels
    assert reader.calibration
    answered = confidences >= reader.calibration.threshold
    return [
        percent((reader.probabilities(digits.resized).argmax(1) == digits.labels).float().mean()),
        percent(right.float().mean()),
        percent(answered.float().mean(), 0),
        percent(right[answered].float().mean()) if answered.any() else "",
    ]


def trust(reader: DigitReader, checkpoint: Path) -> list[str]:
    """Return two cells about the test images: the expected calibration error, and the largest change by export."""
    images, labels = archive.read(report.DATA, "test")
    with torch.inference_mode():
        batches = [reader(batch) for batch in images.split(BATCH)]
    logits, probabilities = (torch.cat(parts) for parts in zip(*batches, strict=True))
    error = multiclass_calibration_error(probabilities, labels, num_classes=10, n_bins=15)
    return [percent(error, 2), f"{export_difference(checkpoint, images, logits):.1e}"]


def export_difference(checkpoint: Path, images: Tensor, expected: Tensor) -> float:
    """Return the largest difference between logits of the checkpoint and of an exported file, ONNX or torch.export."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        for name in ("digits.onnx", "digits.pt2"):
            program(["export", f"{folder}/{name}", f"--ckpt_path={checkpoint}"])
        session = onnxruntime.InferenceSession(f"{folder}/digits.onnx")
        module = torch.export.load(f"{folder}/digits.pt2").module()
        batches = images.split(BATCH)
        onnx = torch.cat([torch.from_numpy(session.run(["logits"], {"images": batch.numpy()})[0]) for batch in batches])
        with torch.inference_mode():
            pt2 = torch.cat([module(batch)[0] for batch in batches])
    return max((onnx - expected).abs().max().item(), (pt2 - expected).abs().max().item())


def best_checkpoint(config: Path) -> Path:
    """Train a config, unless that was done before, and return its best checkpoint."""
    folder = accuracy.folder_of(config) / "seed_0"
    accuracy.train(config, 0, folder)
    return folder / "lightning_logs/version_0/checkpoints/best.ckpt"


def tables(checkpoints: dict[str, Path], sources: dict[str, Digits]) -> str:
    """Return the README's two tables.

    Args:
        checkpoints: The checkpoint of each recipe.
        sources: The digits of each source.
    """
    photos = [
        "| recipe | photos | right if resized | right if prepared | answered | right of the answered |",
        "|---|---|---|---|---|---|",
    ]
    test_images = ["| recipe | calibration error | largest difference after export |", "|---|---|---|"]
    for recipe, checkpoint in checkpoints.items():
        reader = DigitReader.load(checkpoint)
        for source, digits in sources.items():
            cells = [f"`{recipe}`", f"{len(digits.labels):,} {source}", *accuracies(reader, digits)]
            photos.append(f"| {' | '.join(cells)} |")
        test_images.append(f"| {' | '.join([f'`{recipe}`', *trust(reader, checkpoint)])} |")
    return "\n".join([*photos, "", *test_images])


class FigureTimer(Callback):
    """Adds up what Lightning's profiler says about the figures of a run.

    Attributes:
        share: Their share of the time of the run, in 0..1.
    """

    share = 0.0

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        durations = trainer.profiler.recorded_durations  # type: ignore[attr-defined]
        figures = sum(sum(seconds) for action, seconds in durations.items() if "[Callback]Figures." in action)
        FigureTimer.share = figures / (time.perf_counter() - trainer.profiler.start_time)  # type: ignore[attr-defined]


def figure_share(*flags: str) -> float:
    """Return the share of a default run's time that TensorBoard's figures take."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()):
        options = ["--trainer.profiler=simple", f"--trainer.callbacks={__name__}.FigureTimer", *flags]
        program(["fit", f"--data.root={report.DATA}", *options])
    return FigureTimer.share


def main() -> None:
    recipes = [report.ROOT / "configs" / name for name in ("fast.yaml", "accurate.yaml")]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="*", type=Path, default=recipes, metavar="CONFIG")
    configs = [config.resolve() for config in parser.parse_args().configs]
    report.read_block("reading")  # stops now if the table can't be written at the end
    commit = report.commit()
    found = {
        f"digits in {len(HANDWRITTEN)} handwritten fonts": lambda: rendered(HANDWRITTEN),
        f"digits in {len(PRINTED)} printed fonts": lambda: rendered(PRINTED),
        "digits of scikit-learn": scikit_learn,
    }
    sources = {}
    for name, photos in found.items():
        print(f"{name} ...", flush=True)
        sources[name] = as_images(photos())
    print("a default run, for the time of its figures ...", flush=True)
    share = figure_share()
    text = tables({config.name: best_checkpoint(config) for config in configs}, sources)
    setup = f"Seed 0, on {report.setup()}, `{commit}`. TensorBoard's figures take {percent(share)} of a default run."
    report.write_block("reading", f"{text}\n\n{setup}")
    print(report.read_block("reading"))


if __name__ == "__main__":
    main()
