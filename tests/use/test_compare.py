import re
import shutil
from pathlib import Path

import pytest
import torch
from helpers import BEST, DATA, FIRST, SECOND, load

from mnist_lightning import DigitClassifier, LeNet, MNISTDataModule, archive
from mnist_lightning.cli import main
from mnist_lightning.settings import INSTANTIATOR
from mnist_lightning.use.compare import mcnemar, report


@pytest.mark.parametrize(
    ("counts", "p"),
    [
        ((0, 0), 1),
        ((0, 1), 1),
        ((3, 3), 1),
        ((5, 0), 2 / 32),
        ((9, 2), 2 * (1 + 11 + 55) / 2**11),
        ((2, 9), 2 * (1 + 11 + 55) / 2**11),
        # From SciPy 1.17's binomtest.
        ((46, 125), 1.2492231225254293e-09),
        ((2_000, 2_100), 0.12206497999113655),
    ],
)
def test_mcnemars_test_takes_each_image_for_the_toss_of_a_coin(counts: tuple[int, int], p: float) -> None:
    assert mcnemar(*counts) == pytest.approx(p, rel=1e-9)


def test_the_report_says_which_images_only_one_network_reads_right() -> None:
    labels = torch.tensor([7, 2, 1, 0, 4, 1])
    a = torch.tensor([7, 2, 1, 0, 9, 8])
    b = torch.tensor([7, 2, 8, 0, 4, 7])
    assert report(a, b, labels).splitlines() == [
        "Both are right on 3 images, and wrong on 1.",
        "Images that only one reads right: number (label, answer of the other):",
        "A, 1: 2 (1, 8)",
        "B, 1: 4 (4, 9)",
        "McNemar's exact test: p = 1. "
        "The difference between these two checkpoints is not significant at the level 0.05.",
    ]


def test_the_report_lists_the_first_ten_images_and_calls_a_difference_significant() -> None:
    labels = torch.zeros(1_200, dtype=torch.int64)
    a = labels.clone()
    a[:11] = 6
    lines = report(a, labels, labels).splitlines()
    assert lines[0] == "Both are right on 1,189 images, and wrong on 0."
    assert lines[2] == "A, 0: none"
    assert lines[3].startswith("B, 11: 0 (0, 6), 1 (0, 6), ")
    assert lines[3].endswith("8 (0, 6), 9 (0, 6), ...")
    assert "p = 0.000977. The difference between these two checkpoints is significant" in lines[4]


@pytest.fixture
def runs(trained: Path, workplace: Path) -> tuple[Path, Path]:
    """Two runs. The network of the second differs a little, and its images are normalized differently."""
    shutil.copytree(trained, "lightning_logs")
    shutil.copytree(FIRST, SECOND)
    content = load(BEST)
    weights = content["state_dict"]["network.conv2.weight"]
    weights += 0.02 * torch.randn(weights.shape, generator=torch.Generator().manual_seed(0))
    content["datamodule_hyper_parameters"]["mean"] = 0.45
    torch.save(content, SECOND / "checkpoints/best.ckpt")
    return FIRST, SECOND


def test_compares_the_best_checkpoints_of_two_runs(runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    main(["compare", *map(str, runs), f"--data.root={DATA}"])
    lines = capsys.readouterr().out.splitlines()

    images, labels = archive.read(DATA, "test")
    right = []
    for run, mean in zip(runs, (0.5, 0.45), strict=True):
        model = DigitClassifier.load_from_checkpoint(run / "checkpoints/best.ckpt").eval()
        pixels, _ = MNISTDataModule(mean=mean).on_after_batch_transfer((images, labels), 0)
        with torch.no_grad():
            right.append(torch.cat([model(batch).argmax(1) for batch in pixels.split(500)]) == labels)
    counts = [int(selection.sum()) for selection in (right[0] & ~right[1], right[1] & ~right[0])]
    assert all(counts)
    for line, run, found, letter in zip(lines, runs, right, "AB", strict=False):
        share = f"{found.float().mean():.2%}"
        assert line == f"{letter} reads {share} of the test images right: {run}/checkpoints/best.ckpt"
    both, none = int((right[0] & right[1]).sum()), int((~right[0] & ~right[1]).sum())
    assert lines[2] == f"Both are right on {both:,} images, and wrong on {none:,}."
    assert lines[4].startswith(f"A, {counts[0]}: {int((right[0] & ~right[1]).nonzero()[0])} (")
    assert lines[5].startswith(f"B, {counts[1]}: {int((right[1] & ~right[0]).nonzero()[0])} (")
    assert f"p = {mcnemar(*counts):.3g}." in lines[6]


@pytest.mark.parametrize(
    ("names", "files"),
    [
        (["best", "version_0"], [SECOND / "checkpoints/best.ckpt", BEST]),
        (["last", str(BEST)], [SECOND / "checkpoints/last.ckpt", BEST]),
    ],
)
def test_each_name_of_a_checkpoint_can_be_compared(
    names: list[str],
    files: list[Path],
    runs: tuple[Path, Path],
    small_data: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    main(["compare", *names, f"--data.root={small_data}"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.rpartition(": ")[2] for line in lines[:2]] == [str(file) for file in files]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["one"], "the following arguments are required: B"),
        (["one", "two", "--ckpt_path=best"], "unrecognized arguments: --ckpt_path=best"),
        (["missing", "empty"], "missing is not a file; expected best, last, a run folder, version_N or a checkpoint"),
        (["empty", "missing"], "empty has no checkpoints/best.ckpt; expected the folder of a run that has one"),
        (["best", "missing"], "no run in lightning_logs has a checkpoints/best.ckpt; train one first with `fit`"),
        (["text.ckpt", "text.ckpt"], "text.ckpt is not a checkpoint"),
        (["foreign.ckpt", "text.ckpt"], "foreign.ckpt does not name its network; expected a checkpoint of `fit`"),
        (["other.ckpt", "other.ckpt"], "weights in other.ckpt don't fit .* size mismatch for conv1.weight"),
    ],
)
def test_a_checkpoint_that_cant_be_compared_is_named(
    arguments: list[str], message: str, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("empty").mkdir()
    Path("text.ckpt").write_text("no checkpoint")
    # All of LeNet's weights, but with 7 filters in the first layer.
    weights = LeNet().state_dict() | {"conv1.weight": torch.zeros(7, 1, 3, 3)}
    lightning = {
        "state_dict": {f"network.{name}": weight for name, weight in weights.items()},
        "pytorch-lightning_version": "2.6.6",
    }
    torch.save(lightning | {"hyper_parameters": {"width": 7}}, "foreign.ckpt")
    settings = {"network": {"class_path": "mnist_lightning.LeNet"}, "_instantiator": INSTANTIATOR}
    data = {"mean": 0.5, "std": 0.5}
    torch.save(lightning | {"hyper_parameters": settings, "datamodule_hyper_parameters": data}, "other.ckpt")
    with pytest.raises(SystemExit) as stop:
        main(["compare", *arguments])
    assert stop.value.code
    assert re.search(message, f"{stop.value.code} {capsys.readouterr().err}")


def test_test_images_that_cant_be_read_are_named(runs: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchvision.datasets.MNIST.mirrors", [])
    with pytest.raises(SystemExit, match=r"compare: error: --data\.root: nowhere/MNIST/raw/.* is missing, and can't"):
        main(["compare", "best", "last", "--data.root=nowhere"])
