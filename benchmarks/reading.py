"""How well digits are read that are not MNIST's, what confidence is worth, what export changes, and what pictures cost.

    python benchmarks/reading.py [CONFIG ...]

Trains each config with seed 0, as `accuracy.py` does and where that keeps its runs, and takes its best checkpoint.
Digits are rendered in fonts of Debian's packages (`fonts.txt`), and read from scikit-learn's 8 x 8 images of Optical
Recognition of Handwritten Digits (Alpaydin and Kaynak 1998): as they are, resized to 28 x 28, and as `photos.py`
prepares them. No choice was made on these fonts, nor on scikit-learn's digits. Writes the README's table.
"""

import argparse
import contextlib
import io
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

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

from mnist_lightning import DigitClassifier, MNISTDataModule, archive
from mnist_lightning.calibration import probabilities
from mnist_lightning.cli import main as program
from mnist_lightning.use import photos
from mnist_lightning.use.photos import PhotoError

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
FOR_EACH = 10  # pictures of each digit in each font


def font_file(name: str) -> Path:
    """Return where a font is installed."""
    found = sorted(Path("/usr/share/fonts").rglob(name))
    if not found:
        packages = " ".join((Path(__file__).parent / "fonts.txt").read_text().split())
        sys.exit(f"The font {name} is not installed: apt-get install {packages}")
    return found[0]


def render(digit: int, font: Path, draw: random.Random) -> Image.Image:
    """Draw a digit as somebody could have photographed it.

    On 96 to 1,000 pixels, 0.2 to 0.85 of them high, anywhere; dark on light or light on dark, with at least 0.35 of the
    range from black to white between the two; half of them blurred, by 1 or 2 % of the digit's height; half in light
    that falls off, by 15 or 30 % of the range; two thirds with noise, of 2 or 6 %.
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


def rendered(fonts: list[str]) -> tuple[list[Image.Image], Tensor]:
    """Return pictures of digits in fonts, the same on every call, and their labels int64 `(N,)`."""
    draw, cases = random.Random(0), [(font_file(name), digit) for name in fonts for digit in range(10)] * FOR_EACH
    return [render(digit, font, draw) for font, digit in cases], torch.tensor([digit for _, digit in cases])


def scikit_learn() -> tuple[list[Image.Image], Tensor]:
    """Return scikit-learn's 1,797 digits, 8 x 8 pixels with ink 16 on 0, and their labels int64 `(N,)`."""
    digits = load_digits()
    return [Image.fromarray((digit * 255 / 16).astype(np.uint8)) for digit in digits.images], torch.tensor(
        digits.target
    )


def resized(picture: Image.Image) -> Tensor:
    """Return uint8 `(28, 28)`: what a network sees that is handed a picture as it is."""
    return torch.from_numpy(np.array(picture.convert("L").resize((28, 28), Image.Resampling.BILINEAR)))


def prepared(picture: Image.Image) -> Tensor:
    """Return uint8 `(28, 28)`: what `predict` makes of a picture's file, black where it can't."""
    with tempfile.NamedTemporaryFile(suffix=".png") as file:
        picture.save(file.name)
        try:
            return photos.prepare(Path(file.name))
        except PhotoError:
            return torch.zeros(28, 28, dtype=torch.uint8)


def logits_of(checkpoint: Path, images: Tensor) -> Tensor:
    """Return logits `(N, 10)` for uint8 images `(N, 28, 28)`."""
    model = DigitClassifier.load_from_checkpoint(checkpoint).eval()
    data = MNISTDataModule.load_from_checkpoint(checkpoint, weights_only=True)  # knows how they are normalised
    with torch.no_grad():
        return torch.cat([model(data.on_after_batch_transfer((part, part), 0)[0]) for part in images.split(500)])


def export_difference(checkpoint: Path, images: Tensor, expected: Tensor) -> float:
    """Return by how much the logits of exported networks, ONNX and torch.export, differ at most."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        for name in ("digits.onnx", "digits.pt2"):
            program(["export", f"--ckpt_path={checkpoint}", f"--output={folder}/{name}"])
        session = onnxruntime.InferenceSession(f"{folder}/digits.onnx")
        module = torch.export.load(f"{folder}/digits.pt2").module()
        batches = images.split(1_000)  # of which some networks take several views
        onnx = torch.cat([torch.from_numpy(session.run(["logits"], {"images": batch.numpy()})[0]) for batch in batches])
        with torch.no_grad():
            pt2 = torch.cat([module(batch)[0] for batch in batches])
    return max((onnx - expected).abs().max().item(), (pt2 - expected).abs().max().item())


def measure(config: Path, sets: dict[str, tuple[dict[str, Tensor], Tensor]]) -> dict[str, str]:
    """Return a cell for each row of the table."""
    folder = accuracy.folder_of(config) / "seed_0"
    accuracy.train(config, 0, folder)
    checkpoint = folder / "lightning_logs/version_0/checkpoints/best.ckpt"
    chosen = DigitClassifier.load_from_checkpoint(checkpoint).calibration
    assert chosen
    cells = {}
    for name, (versions, labels) in sets.items():
        read = {how: logits_of(checkpoint, images) for how, images in versions.items()}
        before, after = (f"{(logits.argmax(1) == labels).float().mean():.1%}" for logits in read.values())
        sure, digits = probabilities(read["prepared"], chosen).max(1)
        answered = sure >= chosen.threshold
        right = (digits == labels)[answered].float().mean()
        cells[f"{name}: read right, resized → prepared; of those not unsure"] = (
            f"{before} → {after}; {right:.1%} of {answered.float().mean():.0%}"
        )
    images, labels = archive.read(str(report.ROOT / "data"), "test")
    logits = logits_of(checkpoint, images)
    errors = [
        multiclass_calibration_error(probabilities(logits, calibration).float(), labels, num_classes=10, n_bins=15)
        for calibration in (None, chosen)
    ]
    cells["test images: expected calibration error, softmax → calibrated"] = " → ".join(
        f"{error:.2%}" for error in errors
    )
    difference = export_difference(checkpoint, images, logits)
    cells["test images: largest difference of a logit after export"] = f"{difference:.1e}"
    return cells


class PictureTimer(Callback):
    """Adds up what Lightning's profiler says of a run's pictures."""

    share = 0.0

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        durations = trainer.profiler.recorded_durations  # type: ignore[attr-defined]
        pictures = sum(sum(seconds) for action, seconds in durations.items() if "[Callback]Pictures." in action)
        PictureTimer.share = pictures / (time.perf_counter() - trainer.profiler.start_time)  # type: ignore[attr-defined]


def picture_share() -> float:
    """Return which share of a default run's time goes into the pictures that TensorBoard shows."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()):
        options = ["--trainer.profiler=simple", "--trainer.callbacks=__main__.PictureTimer"]
        program(["fit", f"--data.root={report.ROOT / 'data'}", *options])
    return PictureTimer.share


def main() -> None:
    recipes = [report.ROOT / "configs" / name for name in ("fast.yaml", "accurate.yaml")]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="*", type=Path, default=recipes, metavar="CONFIG")
    configs = parser.parse_args().configs
    report.read_block("reading")  # what can't be written in the end is not begun
    commit = report.commit()
    sources: dict[str, Callable[[], tuple[list[Image.Image], Tensor]]] = {
        f"digits in {len(HANDWRITTEN)} handwritten fonts": lambda: rendered(HANDWRITTEN),
        f"digits in {len(PRINTED)} printed fonts": lambda: rendered(PRINTED),
        "digits of scikit-learn's": scikit_learn,
    }
    sets = {}
    for name, source in sources.items():
        print(f"{name} ...", flush=True)
        pictures, labels = source()
        versions = {how.__name__: torch.stack([how(picture) for picture in pictures]) for how in (resized, prepared)}
        sets[f"{len(labels):,} {name}"] = versions, labels
    print("a default run, for the time that its pictures take ...", flush=True)
    pictures_share = picture_share()
    columns = {config.name: measure(config.resolve(), sets) for config in configs}
    table = [
        f"| | {' | '.join(f'`{name}`' for name in columns)} |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for row in next(iter(columns.values())):
        table.append(f"| {row} | {' | '.join(cells[row] for cells in columns.values())} |")
    report.write_block(
        "reading",
        "\n".join(
            [
                *table,
                "",
                f"Seed 0, on {report.setup()}, `{commit}`. Pictures take {pictures_share:.1%} of a default run.",
            ]
        ),
    )
    print(report.read_block("reading"))


if __name__ == "__main__":
    main()
