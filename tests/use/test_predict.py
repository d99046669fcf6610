"""`predict`, as people use it: on pictures of their own, and on the test set."""

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import DATA, Run
from PIL import Image, ImageDraw, ImageFont

from mnist_lightning import DigitClassifier
from mnist_lightning.cli import main

BEST = Path("lightning_logs/version_0/checkpoints/best.ckpt")


@pytest.fixture
def pictures(trained: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with digits that are named after what they are, and with what is none; and the run."""
    monkeypatch.setattr("sys.argv", ["mnist_lightning"])
    shutil.copytree(trained, "lightning_logs")
    Path("scans").mkdir()
    for digit in (2, 3, 5, 7):
        picture = Image.new("L", (300, 300), 240)
        ImageDraw.Draw(picture).text((90, 10), str(digit), 20, ImageFont.load_default(220))
        picture.save(f"scans/{digit}.png")
    Image.new("RGB", (60, 60), "white").save("scans/blank.png")
    Path("scans/text.jpg").write_text("no picture")
    Path("scans/notes.txt").write_text("not even by its name")
    return Path("scans")


def rows(out: str) -> list[list[str]]:
    return [line.split(maxsplit=2) for line in out.splitlines()[1:] if line.startswith("scans")]


def test_a_row_for_each_picture_and_the_reason_where_there_is_no_digit(
    pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["predict", "--ckpt_path=best", "--data.images=scans"])
    out = capsys.readouterr().out
    assert out.splitlines()[0].split("  ")[0] == "file"
    read = {Path(file).stem: (answer, rest) for file, answer, rest in rows(out)}
    assert list(read) == ["2", "3", "5", "7", "blank", "text"]
    for digit in ("2", "3", "5", "7"):
        answer, rest = read[digit]
        assert answer == digit or (answer == "unsure" and f"for {digit} " in rest)
    assert read["blank"] == ("-", "nothing stands out from the background")
    assert read["text"] == ("-", "is no picture that Pillow can open")


def test_several_names_with_and_without_quotes(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for names in (["scans/[23].png"], ["scans/2.png", "scans/3.png"], ['["scans/2.png", "scans/3.png"]']):
        main(["predict", "--data.images", *names])
        assert [file for file, *_ in rows(capsys.readouterr().out)] == ["scans/2.png", "scans/3.png"]


@pytest.mark.parametrize("suffix", [".csv", ".json"])
def test_rows_for_machines(suffix: str, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = Path("predictions").with_suffix(suffix)
    main(["predict", "--data.images=scans", f"--output={path}"])
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
    # What a person reads says the same.
    assert {Path(file).stem: answer.strip("-") for file, answer, _ in rows(capsys.readouterr().out)} == {
        name: row["answer"] for name, row in by_name.items()
    }


def test_confidences_are_calibrated_and_below_the_threshold_the_answer_is_unsure(
    pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def change(**calibration: float) -> dict[str, float]:
        content = torch.load(BEST, weights_only=True)
        content["calibration"] |= calibration
        torch.save(content, BEST)
        main(["predict", "--data.images=scans/[2357].png", "--output=out.json", "--overwrite"])
        return {row["answer"]: row["confidence"] for row in json.loads(Path("out.json").read_text())}

    sharp, flat = change(temperature=1.0, threshold=0.0), change(temperature=5.0)
    assert list(sharp) == list(flat) == ["2", "3", "5", "7"]
    assert all(flat[digit] < sharp[digit] - 0.05 for digit in flat)
    capsys.readouterr()
    assert list(change(threshold=0.9999)) == ["unsure"]
    out = capsys.readouterr().out
    assert "unsure: below 99.99%. Of what was above, at most one in 1,000 was wrong on the 5,000 validation" in out


def test_what_the_network_saw(pictures: Path) -> None:
    main(["predict", "--data.images=scans", "--show=seen"])
    names = ["0001_2.png", "0002_3.png", "0003_5.png", "0004_7.png"]  # none for what could not be read
    assert sorted(path.name for path in Path("seen").iterdir()) == names
    with Image.open("seen/0004_7.png") as seen:
        assert (seen.size, seen.mode) == ((280, 280), "L")
        assert seen.getextrema() == (0, 255)
        assert seen.getpixel((0, 0)) == 0


def test_the_test_images_without_pictures(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["predict", f"--data.root={DATA}", "--output=all.csv"])
    with open("all.csv", newline="") as file:
        written = list(csv.DictReader(file))
    assert len(written) == 10_000
    assert [int(row["digit"]) for row in written[:4]] == [7, 2, 1, 0]
    assert written[9_999]["file"] == "test image 9999"
    out = capsys.readouterr().out.splitlines()
    assert out[1].startswith("test image 0  7 ")
    assert "... and 9,990 more" in out[11]


def test_pictures_need_no_archives(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchvision.datasets.MNIST.mirrors", [])
    main(["predict", "--data.images=scans/7.png"])
    assert not Path("data").exists()


def test_a_run_without_validation_says_that_it_is_not_calibrated(
    run: Run, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("fit", "--data.val_size=0")
    assert DigitClassifier.load_from_checkpoint("lightning_logs/version_1/checkpoints/best.ckpt").calibration is None
    capsys.readouterr()
    main(["predict", "--data.images=scans/7.png"])
    assert "The checkpoint has no calibration: confidences are the softmax's" in capsys.readouterr().out


def test_a_name_that_is_no_unicode_costs_no_row(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy("scans/7.png", b"scans/bad\xff\x1b\n.png")
    main(["predict", "--data.images=scans", "--output=out.csv", "--show=seen"])
    with open("out.csv", newline="", encoding="utf-8") as file:
        names = [row["file"] for row in csv.DictReader(file)]
    assert r"scans/bad\xff\x1b\n.png" in names
    assert r"scans/bad\xff\x1b\n.png " in capsys.readouterr().out
    assert len(list(Path("seen").iterdir())) == 5  # none of those that can't be read


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data.images=nowhere/*.png"], "nowhere/*.png (--data.images) names no file, no folder with pictures"),
        ([f"--data.images={'x' * 300}.png"], "(--data.images) can't be looked up: [Errno 36] File name too long"),
        (["--data.images=~nosuchuser/x.png"], "~nosuchuser/x.png (--data.images) can't be looked up"),
        (["--data.images="], "images (--data.images) is empty; expected names of files, folders or globs"),
        (["--data.images=scans", "--trainer.limit_predict_batches=0"], "there is nothing to predict on"),
        (["--data.images=scans/blank.png"], "there is no picture among these that can be read"),
        (["--data.images=scans", "--output=out.txt"], "--output is out.txt; expected a name that ends in .csv, .json"),
        (["--data.images=scans", "--output=no/out.csv"], "--output is no/out.csv, and there is no folder no"),
        (
            ["--data.images=scans", "--output=there.csv"],
            "--output is there.csv, which is there already; expected a new",
        ),
        (["--data.images=scans", "--show=scans"], "--show is scans, which is there already"),
        (["--data.images=scans", "--show=there.csv"], "--show is there.csv, which is a file; expected a folder"),
        (["--data.images=scans", "--trainer.devices=2"], "--trainer.devices is 2; expected 1"),
    ],
)
def test_what_cant_be_done_is_said(
    arguments: list[str], message: str, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("there.csv").write_text("mine")
    before = sorted(Path().rglob("*"))
    with pytest.raises(SystemExit) as stop:
        main(["predict", *arguments])
    assert stop.value.code
    assert message in f"{capsys.readouterr().err}{stop.value.code}"
    assert Path("there.csv").read_text() == "mine"
    assert sorted(Path().rglob("*")) == before
