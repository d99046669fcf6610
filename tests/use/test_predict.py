"""`predict`, as people use it: on photos of their own, and on the test images."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Program, Run
from helpers import BEST, DATA, ROOT, load
from PIL import Image, ImageDraw, ImageFont

from mnist_lightning import DigitReader
from mnist_lightning.calibration import ABOVE_ALL
from mnist_lightning.cli import main
from mnist_lightning.errors import PhotoError
from mnist_lightning.use.predict import find

DIGITS = ["2", "3", "5", "7"]
DIGIT_FILES = [f"scans/{digit}.png" for digit in DIGITS]


@pytest.fixture
def scans(trained: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with photos that are named after their digits, with other files, and a run beside it."""
    monkeypatch.setattr("sys.argv", ["mnist_lightning"])
    shutil.copytree(trained, "lightning_logs")
    Path("scans").mkdir()
    for digit in DIGITS:
        photo = Image.new("L", (300, 300), 240)
        ImageDraw.Draw(photo).text((90, 10), digit, 20, ImageFont.load_default(220))
        photo.save(f"scans/{digit}.png")
    Image.new("RGB", (60, 60), "white").save("scans/blank.png")
    Path("scans/text.jpg").write_text("no picture")
    Path("scans/notes.txt").write_text("not a picture by its name either")
    return Path("scans")


def rows(out: str) -> list[list[str]]:
    """Return the file, the answer and the rest of each line about a photo."""
    return [line.split(maxsplit=2) for line in out.splitlines() if line.startswith("scans")]


def predictions(*arguments: str) -> list[dict[str, Any]]:
    """Run `predict`, and return what it writes."""
    main(["predict", *arguments, "--output=out.json", "--overwrite"])
    return json.loads(Path("out.json").read_text())


def test_each_photo_gets_a_line_with_its_digit_or_with_the_reason_why_there_is_none(
    scans: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["predict", "scans", "--ckpt_path=best"])
    out = capsys.readouterr().out
    assert out.splitlines()[0] == f"Checkpoint: {BEST}"
    assert out.splitlines()[1].split() == ["file", "answer", "confidence", "second", "choice"]
    read = {Path(file).stem: (answer, rest) for file, answer, rest in rows(out)}
    assert list(read) == [*DIGITS, "blank", "text"]
    for digit in DIGITS:
        answer, rest = read[digit]
        assert answer == digit or (answer == "unsure" and f"for {digit} " in rest)
    assert read["blank"] == ("-", "nothing stands out from the background")
    assert read["text"] == ("-", "is not a picture that Pillow can open")


@pytest.mark.parametrize("names", [["scans/[23].png"], ["scans/2.png", "scans/3.png"]])
def test_photos_are_named_by_globs_or_one_by_one(
    names: list[str], scans: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["predict", *names])
    assert [file for file, *_ in rows(capsys.readouterr().out)] == ["scans/2.png", "scans/3.png"]


@pytest.mark.parametrize("suffix", [".csv", ".json"])
def test_predictions_are_written_for_other_programs(
    suffix: str, scans: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path("predictions").with_suffix(suffix)
    main(["predict", "scans", f"--output={path}"])
    if suffix == ".json":
        written = json.loads(path.read_text())
    else:
        with path.open(newline="") as file:
            written = list(csv.DictReader(file))
    columns = ["file", "answer", "digit", "confidence", "second_digit", "second_confidence", "problem"]
    assert [list(row) for row in written] == [columns] * 6
    by_name = {Path(row["file"]).stem: row for row in written}
    assert int(by_name["7"]["digit"]) == 7
    assert 0 <= float(by_name["7"]["second_confidence"]) <= float(by_name["7"]["confidence"]) <= 1
    assert by_name["blank"]["problem"] == "nothing stands out from the background"
    assert by_name["blank"]["digit"] in ("", None)
    # The terminal shows the same answers.
    assert {Path(file).stem: answer.strip("-") for file, answer, _ in rows(capsys.readouterr().out)} == {
        name: row["answer"] for name, row in by_name.items()
    }


def test_answers_below_the_threshold_are_unsure(scans: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def set_threshold(threshold: float) -> list[dict[str, Any]]:
        content = load(BEST)
        content["calibration"]["threshold"] = threshold
        torch.save(content, BEST)
        return predictions(*DIGIT_FILES)

    written = set_threshold(0.0)
    assert [row["answer"] for row in written] == DIGITS
    assert "unsure" not in capsys.readouterr().out
    confidences = sorted(row["confidence"] for row in written)

    written = set_threshold(confidences[1])  # a confidence that equals the threshold is enough
    assert [row["answer"] == "unsure" for row in written] == [row["confidence"] < confidences[1] for row in written]
    assert [str(row["digit"]) for row in written] == DIGITS  # an unsure answer still shows the digit
    assert (
        f"unsure: the confidence is below {confidences[1]:.2%}. Above it, at most one answer in 1,000 was wrong on "
        "the 5,000 validation images."
    ) in capsys.readouterr().out

    assert {row["answer"] for row in set_threshold(ABOVE_ALL)} == {"unsure"}
    assert (
        "All answers are unsure: the network made too many mistakes on the validation images."
        in capsys.readouterr().out
    )


def test_show_writes_what_the_network_sees(scans: Path) -> None:
    main(["predict", "scans", "--show=seen"])
    names = ["0001_2.png", "0002_3.png", "0003_5.png", "0004_7.png"]  # none for files that can't be read
    assert sorted(path.name for path in Path("seen").iterdir()) == names
    with Image.open("seen/0004_7.png") as seen:
        assert (seen.size, seen.mode) == ((280, 280), "L")
        assert seen.getextrema() == (0, 255)
        assert seen.getpixel((0, 0)) == 0


def test_without_photos_the_test_images_are_read(scans: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["predict", f"--data.root={DATA}", "--output=all.csv"])
    with open("all.csv", newline="") as file:
        written = list(csv.DictReader(file))
    assert len(written) == 10_000
    assert [int(row["digit"]) for row in written[:4]] == [7, 2, 1, 0]
    assert written[9_999]["file"] == "test image 9999"
    out = capsys.readouterr().out.splitlines()
    assert out[2].startswith("test image 0  7 ")
    assert out[12] == "... and 9,990 more, which --output predictions.csv writes to a file."


def test_photos_need_no_archives(scans: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchvision.datasets.MNIST.mirrors", [])
    main(["predict", "scans/7.png"])
    assert not Path("data").exists()


def test_without_photos_missing_archives_are_named(scans: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchvision.datasets.MNIST.mirrors", [])
    with pytest.raises(SystemExit, match=r"predict: error: --data\.root: nowhere/MNIST/raw/.* is missing, and can't"):
        main(["predict", "--data.root=nowhere"])


def test_a_network_that_was_not_validated_is_never_unsure(
    run: Run, scans: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("fit", "--data.val_size=0", "--trainer.max_epochs=1")
    assert DigitReader.load("version_1").calibration is None
    capsys.readouterr()
    assert {row["answer"] == str(row["digit"]) for row in predictions(*DIGIT_FILES)} == {True}
    out = capsys.readouterr().out
    assert out.splitlines()[0] == "Checkpoint: lightning_logs/version_1/checkpoints/best.ckpt"
    assert "The checkpoint holds no threshold for this network, so no answer is unsure." in out


def test_a_photo_whose_name_is_not_unicode_is_read_too(scans: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy("scans/7.png", b"scans/bad\xff\x1b\n.png")
    main(["predict", "scans", "--output=out.csv", "--show=seen"])
    with open("out.csv", newline="", encoding="utf-8") as file:
        names = [row["file"] for row in csv.DictReader(file)]
    assert r"scans/bad\xff\x1b\n.png" in names
    assert r"scans/bad\xff\x1b\n.png " in capsys.readouterr().out
    assert len(list(Path("seen").iterdir())) == 5  # none for files that can't be read


def test_a_photo_is_read_without_the_libraries_of_training(scans: Path, program: Program) -> None:
    """They take seconds to import."""
    python = (
        "import sys; from mnist_lightning.cli import main; main(sys.argv[1:]); "
        "print({name.partition('.')[0] for name in sys.modules} & "
        "{'lightning', 'pytorch_lightning', 'torchvision', 'torchmetrics', 'tensorboard'})"
    )
    process = program("predict", str(ROOT / "docs/digits/seven.png"), python=python)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert "seven.png  7 " in out or " for 7 " in out
    assert out.splitlines()[-1] == "set()"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere/*.png"], "error: nowhere/*.png matches no photos; expected a file, a folder or a glob"),
        (["scans/7.png", "empty"], "error: empty matches no photos; expected a file, a folder or a glob"),
        ([f"{'x' * 300}.png"], "xxx.png can't be looked up: [Errno 36] File name too long"),
        (["~nosuchuser/x.png"], "error: ~nosuchuser/x.png can't be looked up: Could not determine home directory"),
        ([""], "error: the name of a photo is empty"),
        (["scans/7.png", str(BEST)], f"error: {BEST} is a checkpoint, and no photo; expected --ckpt_path {BEST}"),
        (["scans/blank.png"], "error: no photo could be read"),
        (
            ["scans", "--output=out.txt"],
            "--output: out.txt has an unknown format; expected a name that ends in .csv, .json",
        ),
        (["scans", "--output=no/out.csv"], "error: --output: the folder no does not exist"),
        (["scans", "--output=there.csv"], "error: --output: there.csv already exists; expected a new name, or"),
        (["scans", "--output=empty.csv"], "error: --output: empty.csv is a folder; expected a file"),
        (["scans", "--show=scans"], "error: --show: scans already exists; expected a new name, or"),
        (["scans", "--show=there.csv"], "error: --show: there.csv is a file; expected a folder"),
        (["scans", "--show=no/seen"], "error: --show: the folder no does not exist"),
        (["scans", "--ckpt_path=missing.ckpt"], "error: --ckpt_path: missing.ckpt is not a file; expected best, last"),
        (["scans", "--data.images=scans"], "error: unrecognized arguments: --data.images=scans"),
        (["scans", "--recursiv"], "error: unrecognized arguments: --recursiv; did you mean --recursive?"),
    ],
)
def test_an_error_names_the_flag_and_what_was_found(
    arguments: list[str], message: str, scans: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("there.csv").write_text("mine")
    Path("empty").mkdir()
    Path("empty.csv").mkdir()
    before = sorted(Path().rglob("*"))
    with pytest.raises(SystemExit) as stop:
        main(["predict", *arguments])
    assert stop.value.code
    assert message in f"{capsys.readouterr().err}{stop.value.code}"
    assert Path("there.csv").read_text() == "mine"
    assert sorted(Path().rglob("*")) == before


def test_a_photo_is_found_by_file_folder_or_glob(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("scans/more/empty").mkdir(parents=True)
    for name in ("b.JPG", "a.png", "notes.txt", "more/c.png", "[1].png"):
        Path("scans", name).touch()
    one, a, b, c = (Path("scans", name) for name in ("[1].png", "a.png", "b.JPG", "more/c.png"))
    assert find(["scans"]) == [one, a, b]
    assert find(["scans/*.png", "scans/notes.txt"]) == [one, a, Path("scans/notes.txt")]
    assert find(["scans/[1].png", "scans/**/*.png"]) == [one, a, c]  # each once
    for name in ("scans/*.gif", "nowhere.png", "scans/more/empty"):
        with pytest.raises(PhotoError, match="matches no photos; expected a file, a folder or a glob") as error:
            find([name])
        assert str(error.value).startswith(name)


def test_folders_are_searched_at_any_depth_only_if_that_is_asked_for(scans: Path) -> None:
    Path("scans/old/older").mkdir(parents=True)
    shutil.copy("scans/2.png", "scans/old/older/2.png")
    shutil.copy("scans/notes.txt", "scans/old/notes.txt")
    files = [*DIGIT_FILES, "scans/blank.png", "scans/text.jpg"]
    assert [row["file"] for row in predictions("scans")] == files
    assert [row["file"] for row in predictions("scans", "--recursive")] == sorted([*files, "scans/old/older/2.png"])
    assert [row["file"] for row in predictions("scans/old", "--recursive")] == ["scans/old/older/2.png"]
    with pytest.raises(SystemExit, match="error: scans/old matches no photos"):
        main(["predict", "scans/old"])


@pytest.mark.slow
def test_500_photos_need_hardly_more_memory_than_50(scans: Path) -> None:
    """A photo of a megapixel has 3 MB. If `predict` kept 450 of them, it would need 1,300 MiB more."""
    noise = np.random.default_rng(0).normal(0, 8, (866, 1_155, 3))
    with Image.open("scans/7.png") as seven:
        digit = np.array(seven.convert("RGB").resize((1_155, 866)), dtype=np.float32)
    Image.fromarray((digit + noise).clip(0, 255).astype(np.uint8)).save("photo.jpg")

    def peak(photos: int) -> float:
        """Return the most memory, in MiB, of a process that reads photos."""
        folder = Path(f"{photos}_photos")
        folder.mkdir()
        for number in range(photos):
            os.link("photo.jpg", folder / f"{number:03}.jpg")
        process = subprocess.Popen(
            [sys.executable, "-m", "mnist_lightning", "predict", str(folder), f"--output={folder}.csv"],
            stdout=subprocess.DEVNULL,
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0
        assert len(Path(f"{folder}.csv").read_text().splitlines()) == 1 + photos
        return usage.ru_maxrss / 1024

    few = peak(50)
    assert peak(500) - few < 40
