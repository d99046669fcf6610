"""`predict`: reads digits in photos or in the test images, and prints them."""

import csv
import glob
import io
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, fields
from pathlib import Path

from PIL import Image
from torch import Tensor

from mnist_lightning.calibration import RISK
from mnist_lightning.console import Parser
from mnist_lightning.errors import OutputError, PhotoError, printable
from mnist_lightning.files import written_whole
from mnist_lightning.use import photos
from mnist_lightning.use.reader import DigitReader, Prediction

FORMATS = (".csv", ".json")
SHOWN = 10  # test images


def predict(args: list[str]) -> None:
    """Read digits, print them, and write the files that the flags ask for.

    Raises:
        UserError: There is no photo or checkpoint, or a file can't be written.
    """
    parser = Parser("predict", "Read a digit in each photo. Without photos, read the test images.")
    parser.add_argument("photos", nargs="*", metavar="PHOTO", help="A photo, a folder, or a pattern such as '*.jpg'.")
    parser.add_argument("--recursive", action="store_true", help="Search folders for photos at any depth.")
    parser.add_argument(
        "--ckpt_path", default="best", help="The network: best, last, a run folder, version_N or a file. Default: best"
    )
    parser.add_argument("--output", metavar="FILE", type=Path, help="Write the predictions to a .csv or .json file.")
    parser.add_argument("--show", metavar="FOLDER", type=Path, help="Write the network's input images to PNG files.")
    parser.add_argument("--overwrite", action="store_true", help="Replace existing files.")
    parser.add_argument("--data.root", dest="root", default="data", help="Folder of the test images. Default: data")
    options = parser.parse_args(args)
    if options.output:
        parser.check_output(options.output, "--output", FORMATS, options.overwrite)
    if options.show:
        parser.check_output(options.show, "--show", overwrite=options.overwrite)
    paths = find(options.photos, options.recursive)
    for path in paths:
        if path.suffix == ".ckpt":
            parser.error(f"{text_of(path)} is a checkpoint, and no photo; expected --ckpt_path {text_of(path)}")
    reader = DigitReader.load(options.ckpt_path)
    if paths:
        images, problems = photos.prepare_all(paths)
        files = [text_of(path) for path in paths]
    else:
        from mnist_lightning import archive  # imports torchvision, which takes longer than reading a photo

        archive.prepare(options.root)
        images, _ = archive.read(options.root, "test")
        files, problems = [f"test image {number}" for number in range(len(images))], [""] * len(images)
    predictions = reader.predict(images, files, problems)
    if options.output:
        write(predictions, options.output)
    if options.show:
        show(images, predictions, options.show)

    print(f"Checkpoint: {reader.source['checkpoint']}")
    print(table(predictions if paths else predictions[:SHOWN]))
    if not paths:
        print(f"... and {len(images) - SHOWN:,} more, which --output predictions.csv writes to a file.")
    explain(reader, predictions)
    if all(problems):
        raise PhotoError("no photo could be read")


def find(names: Iterable[str], recursive: bool = False) -> list[Path]:
    """Return the photos that names stand for, each once.

    Args:
        names: Files, folders and globs. A folder stands for the files in it whose suffix Pillow knows.
        recursive: Whether folders are searched at any depth.

    Raises:
        PhotoError: A name matches no photos.
    """
    found: list[Path] = []
    for name in names:
        if not name:
            raise PhotoError("the name of a photo is empty")
        try:
            path = Path(name).expanduser()
            if path.is_dir():
                suffixes = Image.registered_extensions()
                files = path.rglob("*") if recursive else path.iterdir()
                paths = [file for file in files if file.suffix.lower() in suffixes and not file.is_dir()]
            elif path.exists():
                paths = [path]
            else:
                paths = [file for file in map(Path, glob.glob(str(path), recursive=True)) if not file.is_dir()]
        except (OSError, RuntimeError) as error:  # the name is too long, or `~name` is not a user
            raise PhotoError(f"{name} can't be looked up: {error}") from error
        if not paths:
            raise PhotoError(f"{name} matches no photos; expected a file, a folder or a glob")
        found += sorted(paths)
    return list(dict.fromkeys(found))


def text_of(path: Path) -> str:
    """Return a path as one line of text. Terminals and CSV files can't show all bytes that a name can have."""
    return printable(os.fsencode(path).decode("utf-8", "backslashreplace")).replace("\n", r"\n")


def table(predictions: list[Prediction]) -> str:
    """Return one line for each prediction, below a heading."""
    lines = [("file", "answer", "confidence", "second choice")]
    for row in predictions:
        lines.append((row.file, "-", row.problem, "") if row.problem else (row.file, row.answer, *row.choices()))
    width = max(len(file) for file, *_ in lines)
    return "\n".join(
        f"{file:{width}}  {answer:6}  {confidence:12}  {second}".rstrip() for file, answer, confidence, second in lines
    )


def explain(reader: DigitReader, predictions: list[Prediction]) -> None:
    """Print what `unsure` means for this network."""
    calibration = reader.calibration
    if not calibration:
        print("The checkpoint holds no threshold for this network, so no answer is unsure.")
    elif calibration.threshold > 1:
        print("All answers are unsure: the network made too many mistakes on the validation images.")
    elif any(row.answer == "unsure" for row in predictions):
        print(
            f"unsure: the confidence is below {calibration.threshold:.2%}. Above it, at most one answer in "
            f"{1 / RISK:,.0f} was wrong on the {calibration.images:,} validation images."
        )


def write(predictions: list[Prediction], path: Path) -> None:
    """Write predictions as CSV or JSON, by the suffix of the path. Each attribute is a column or a key."""
    if path.suffix.lower() == ".json":
        text = json.dumps([asdict(row) for row in predictions], indent=1) + "\n"
    else:
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, [field.name for field in fields(Prediction)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in predictions)
        text = buffer.getvalue()
    with written_whole(path, "output") as partial:
        partial.write_text(text, encoding="utf-8")


def show(images: Tensor, predictions: list[Prediction], folder: Path) -> None:
    """Write images as PNG files, ten times as large, so that a person can see what the network sees.

    Args:
        images: uint8 `(N, 28, 28)`.
        predictions: N predictions. The photo's number and name become the name of the PNG file. A prediction with a
            problem gets no file.
        folder: The folder. It is made if it is missing.
    """
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder} can't be made: {error.strerror}", "show") from error
    for number, (image, row) in enumerate(zip(images, predictions, strict=True), start=1):
        if row.problem:
            continue
        large = Image.fromarray(image.numpy()).resize((280, 280), Image.Resampling.NEAREST)
        # A file's name may have 255 bytes.
        with written_whole(folder / f"{number:04}_{Path(row.file).stem[:50]}.png", "show") as partial:
            large.save(partial, "PNG")
