import re
from pathlib import Path

import pytest
import torch
from conftest import Run

from mnist_lightning import DigitClassifier, MNISTDataModule, archive
from mnist_lightning.cli import main
from mnist_lightning.use.compare import mcnemar, report

INSTANTIATOR = "lightning.pytorch.cli.instantiate_module"
RUNS = ["lightning_logs/version_0", "lightning_logs/version_1"]


@pytest.mark.parametrize(
    ("counts", "p"),
    [
        ((0, 0), 1),
        ((0, 1), 1),
        ((3, 3), 1),
        ((5, 0), 2 / 32),
        ((9, 2), 2 * (1 + 11 + 55) / 2**11),
        ((2, 9), 2 * (1 + 11 + 55) / 2**11),
        # By SciPy 1.17's binomtest.
        ((46, 125), 1.2492231225254293e-09),
        ((2_000, 2_100), 0.12206497999113655),
    ],
)
def test_mcnemars_test_is_the_toss_of_a_coin_for_each_image(counts: tuple[int, int], p: float) -> None:
    assert mcnemar(*counts) == pytest.approx(p, rel=1e-9)


def test_says_who_is_right_where_the_other_is_wrong() -> None:
    labels = torch.tensor([7, 2, 1, 0, 4, 1])
    a = torch.tensor([7, 2, 1, 0, 9, 8])
    b = torch.tensor([7, 2, 8, 0, 4, 7])
    assert report(a, b, labels).splitlines() == [
        "Both are right on 3, both wrong on 1.",
        "Images that only one reads right, by their number in the test set (label, the other's answer):",
        "A, 1: 2 (1, 8)",
        "B, 1: 4 (4, 9)",
        "McNemar's exact test: p = 1; between these two checkpoints the difference is "
        "not significant at the level 0.05.",
    ]


def test_lists_the_first_ten_images_and_finds_a_significant_difference() -> None:
    labels = torch.zeros(1_200, dtype=torch.int64)
    a = labels.clone()
    a[:11] = 6
    lines = report(a, labels, labels).splitlines()
    assert lines[0] == "Both are right on 1,189, both wrong on 0."
    assert lines[2] == "A, 0: none"
    assert lines[3].endswith("8 (0, 6), 9 (0, 6), ...")
    assert "p = 0.000977; between these two checkpoints the difference is significant" in lines[4]


def test_compares_the_best_checkpoints_of_two_runs(
    run: Run, small_data: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run("fit", "--model.optimizer.lr=0.03", "--trainer.max_epochs=4")
    # What a run was normalised with counts for it alone.
    run("fit", "--model.optimizer.lr=0.05", "--trainer.max_epochs=4", "--data.mean=0.1", "--seed_everything=1")
    capsys.readouterr()
    run("compare", *RUNS)
    lines = capsys.readouterr().out.splitlines()

    images, labels = archive.read(small_data, "test")
    right = []
    for name, mean in zip(RUNS, (0.5, 0.1), strict=True):
        model = DigitClassifier.load_from_checkpoint(f"{name}/checkpoints/best.ckpt").eval()
        pixels, _ = MNISTDataModule(mean=mean).on_after_batch_transfer((images, labels), 0)
        with torch.no_grad():
            right.append(model(pixels).argmax(1) == labels)
    counts = [int(selection.sum()) for selection in (right[0] & ~right[1], right[1] & ~right[0])]
    assert all(counts)
    for line, name, found, letter in zip(lines, RUNS, right, "AB", strict=False):
        share = f"{found.float().mean():.2%}"
        assert line == f"{letter} reads {share} of the test images right: {name}/checkpoints/best.ckpt"
    assert lines[4].startswith(f"A, {counts[0]}: {int((right[0] & ~right[1]).nonzero()[0])} (")
    assert lines[5].startswith(f"B, {counts[1]}: {int((right[1] & ~right[0]).nonzero()[0])} (")
    assert f"p = {mcnemar(*counts):.3g}" in lines[6]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["one"], "the following arguments are required: RUN_B"),
        (["missing", "empty"], "missing does not exist; expected a run folder with checkpoints/best.ckpt, or a"),
        (["empty", "missing"], r"empty/checkpoints/best.ckpt does not exist; expected a run folder"),
        (["text.ckpt", "text.ckpt"], r"text.ckpt \(RUN_A\) is not a checkpoint"),
        (["foreign.ckpt", "text.ckpt"], r"foreign.ckpt \(RUN_A\) does not say how its network is built; expected a"),
        (["other.ckpt", "other.ckpt"], "other.ckpt is not of this program: .* size mismatch for network.conv1.weight"),
    ],
)
def test_what_cant_be_compared_is_named(
    arguments: list[str], message: str, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("empty").mkdir()
    Path("text.ckpt").write_text("no checkpoint")
    lightning = {"state_dict": {"network.conv1.weight": torch.zeros(7, 1, 3, 3)}, "pytorch-lightning_version": "2.6.6"}
    torch.save(lightning | {"hyper_parameters": {"width": 7}}, "foreign.ckpt")
    settings = {"network": {"class_path": "mnist_lightning.LeNet"}, "_instantiator": INSTANTIATOR}
    torch.save(lightning | {"hyper_parameters": settings, "datamodule_hyper_parameters": {}}, "other.ckpt")
    with pytest.raises(SystemExit) as exit_:
        main(["compare", *arguments])
    assert exit_.value.code
    assert re.search(message, f"{exit_.value.code} {capsys.readouterr().err}")
